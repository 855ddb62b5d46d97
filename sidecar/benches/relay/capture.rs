//! What capture costs: one sidecar with two doors, a listener and the rules of `remora capture`, in a network namespace
//! of the bench's own. Beside it the same connections made directly, and through a destination NAT as kube-proxy's
//! rules make one. Needs root; without it, it says so and measures nothing.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::load::{self, Work};
use crate::peer::{Peer, Running, configuration};
use crate::{Endpoint, ROUNDS, median, with_endpoint};

/// Says that the process is inside its namespace.
const INSIDE: &str = "REMORA_BENCH_INSIDE";
/// The Service that is captured, and one that the node translates.
const CAPTURED: &str = "10.96.0.1:80";
const TRANSLATED: &str = "10.97.0.1:80";
const POD: &str = "10.244.0.1";
/// Another Pod.
const ELSEWHERE: &str = "10.245.0.2";
/// As the sidecar's user.
const USER: &str = "64102";
/// For the figure of memory.
const SERVICES: usize = 100;

/// Runs the bench, inside a namespace that ends with it.
pub(crate) fn run() {
    if std::env::var_os(INSIDE).is_none() {
        let mut again = Command::new("unshare");
        again.args(["--net", "--"]).arg(std::env::current_exe().unwrap()).arg("capture").env(INSIDE, "1");
        let error = again.exec();
        panic!("cannot run unshare (util-linux): {error}");
    }
    if !rustix::process::geteuid().is_root() {
        return println!("\ncapture: not measured, it needs root");
    }
    with_endpoint(|port, folder| measure(SocketAddr::new(POD.parse().unwrap(), port), folder));
}

fn measure(endpoint: SocketAddr, folder: &Path) {
    shell(&format!(
        "ip link set lo up && ip link add eth0 type veth peer name cable && ip link set cable up && ip link set eth0 up && ip addr add {POD}/16 dev eth0 && \
         ip route add default dev eth0"
    ));
    // Every connection has the same two addresses: more of them than ports that rest for a minute.
    shell(
        "echo 1024 65535 >/proc/sys/net/ipv4/ip_local_port_range && echo 1 >/proc/sys/net/ipv4/tcp_tw_reuse",
    );
    shell(&format!(
        "printf 'table ip node {{\\n chain output {{\\n type nat hook output priority -100\\n \
         ip daddr 10.97.0.1 tcp dport 80 dnat to {endpoint}\\n }}\\n}}\\n' | nft -f -"
    ));
    shell(&format!("{} capture up --services 10.96.0.0/16 >/dev/null", env!("CARGO_BIN_EXE_remora")));
    let manifest = folder.join("capture.yaml");
    std::fs::write(&manifest, configuration(endpoint) + &services()).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups", "--bounding-set=-all,+net_raw"]);
    command.args(["--inh-caps=-all,+net_raw", "--ambient-caps=-all,+net_raw", "--no-new-privs"]);
    command.args([
        env!("CARGO_BIN_EXE_remora"),
        "sidecar",
        "--threads",
        "2",
        "--log-level",
        "error",
        "--capture",
    ]);
    command.args(["--listen", "127.0.0.1:0=bench/endpoint:80"]);
    command.args(["--source", &format!("manifests:{}", manifest.display())]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("setpriv (util-linux)");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let listen =
        lines.find_map(|line| Some(line.strip_prefix("listen ")?.split(' ').next()?.parse().unwrap()));
    let sidecar = Running::of(Peer::Remora, listen.expect("it listens"), child);
    let resident = sidecar.resident();

    let captured: SocketAddr = CAPTURED.parse().unwrap();
    // Before the rules have heard the sidecar, nobody is there.
    while TcpStream::connect_timeout(&captured, Duration::from_millis(200)).is_err() {}
    for work in Work::ALL {
        let mut figures = [Vec::new(), Vec::new()];
        for round in 0..=ROUNDS {
            for (address, figures) in [sidecar.address, captured].into_iter().zip(&mut figures) {
                let before = sidecar.cpu();
                let took = load::run(work, address).as_secs_f64();
                let cpu = (sidecar.cpu() - before).as_secs_f64();
                if round > 0 {
                    figures.push((
                        cpu / work.units() * work.cpu_scale(),
                        work.units() / took * work.rate_scale(),
                    ));
                }
            }
        }
        let [(cpu, rate), (captured_cpu, captured_rate)] = figures.map(|rounds| {
            (median(rounds.iter().map(|round| round.0)), median(rounds.iter().map(|round| round.1)))
        });
        println!("\n{}", work.title());
        println!(
            "  {:<10} {:>12} {:>8} {:>14} {:>8}",
            "",
            work.cpu_unit(),
            "ratio",
            work.rate_unit(),
            "ratio"
        );
        println!("  {:<10} {cpu:>12.3} {:>8.2} {rate:>14.2} {:>8.2}", "--listen", 1.0, 1.0);
        let (more, less) = (captured_cpu / cpu, captured_rate / rate);
        println!("  {:<10} {captured_cpu:>12.3} {more:>8.2} {captured_rate:>14.2} {less:>8.2}", "captured");
    }
    others();
    println!("\nlatency of a request of 1 KB at 2,000 a second, µs{:>10} {:>8}", "p50", "p99");
    let ways = [("direct", endpoint), ("NAT", TRANSLATED.parse().unwrap()), ("captured", captured)];
    for (name, address) in ways {
        let latencies = load::latencies(address, 2_000, Duration::from_secs(5));
        let at = |share: f64| latencies[(latencies.len() as f64 * share) as usize].as_secs_f64() * 1e6;
        println!("  {name:<48} {:>10.0} {:>8.0}", at(0.5), at(0.99));
    }
    println!("\nmemory of a sidecar with {SERVICES} Services: {:.1} MB", resident as f64 / 1e6);
}

/// Connections that are not for Services, to another Pod over a cable of their own, with the rules and without, in turns.
fn others() {
    let mut command = Command::new("unshare");
    command.args(["--net", "--"]).arg(std::env::current_exe().unwrap());
    let (pod, port) = Endpoint::start(command);
    let inside = format!("nsenter --net=/proc/{}/ns/net ip", pod.0.id());
    shell(&format!(
        "ip link add near type veth peer name far netns {} && ip link set near up && {inside} link set far up && \
         ip addr add 10.245.0.1/24 dev near && {inside} addr add {ELSEWHERE}/24 dev far",
        pod.0.id()
    ));
    let endpoint = SocketAddr::new(ELSEWHERE.parse().unwrap(), port);
    let remora = env!("CARGO_BIN_EXE_remora");
    let states = ["capture down", "capture up --services 10.96.0.0/16"];
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..2 * ROUNDS {
        for (state, rates) in states.iter().zip(&mut rates) {
            shell(&format!("{remora} {state} >/dev/null"));
            rates.push(Work::Requests.units() / load::run(Work::Requests, endpoint).as_secs_f64() / 1e3);
        }
    }
    let [without, with] = rates.map(|rates| median(rates.into_iter()));
    println!(
        "\nrequests that are not for Services, thousand/s: {without:.1} without the rules, {with:.1} with them"
    );
}

/// Services of ten endpoints each.
fn services() -> String {
    let of = |number: usize| {
        let endpoints: Vec<String> =
            (1..=10).map(|pod| format!("{{addresses: [10.245.{number}.{pod}]}}")).collect();
        let name = format!("service-{number}");
        format!(
            "---\n{{kind: Service, apiVersion: v1, metadata: {{name: {name}, namespace: bench}}, spec: {{clusterIP: \
             10.96.1.{number}, ports: [{{port: 80}}]}}}}\n---\n{{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, \
             metadata: {{name: {name}, namespace: bench, labels: {{kubernetes.io/service-name: {name}}}}}, addressType: \
             IPv4, ports: [{{name: '', port: 80}}], endpoints: [{}]}}\n",
            endpoints.join(", ")
        )
    };
    (1..SERVICES).map(of).collect()
}

fn shell(script: &str) {
    let status = Command::new("sh").args(["-c", script]).status().unwrap();
    assert!(status.success(), "{script}: {status}");
}
