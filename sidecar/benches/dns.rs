//! Names of Services by Remora and by CoreDNS, on the same core: answers a second, CPU for each, and how long one
//! takes. Rounds are interleaved and medians compared, since a machine's speed drifts. CoreDNS has its cache and the
//! plugin that answers from a zone in memory, which is the least that it can do. `sidecar/benches/peers` builds it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench fails by panicking")]

use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Rounds of which the median counts.
const ROUNDS: usize = 9;
/// How long one lasts.
const ROUND: Duration = Duration::from_secs(2);
/// Names that are asked for, in no order.
const SERVICES: usize = 1_000;
/// Questions under way.
const AT_ONCE: usize = 32;

fn main() {
    let folder = std::env::temp_dir().join(format!("remora-bench-dns-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let servers = [remora(&folder), coredns(&folder)];
    let servers: Vec<Server> = servers
        .into_iter()
        .filter_map(|server| server.map_err(|why| eprintln!("left out: {why}")).ok())
        .collect();
    let mut rounds: Vec<Vec<Round>> = servers.iter().map(|_| Vec::new()).collect();
    for number in 0..=ROUNDS {
        for (server, rounds) in servers.iter().zip(&mut rounds) {
            let round = server.round();
            // The first warms up.
            if number > 0 {
                rounds.push(round);
            }
        }
    }
    println!(
        "names of {SERVICES} Services, A and AAAA in turn, {AT_ONCE} questions under way, the server on one core"
    );
    println!("  {:<10} {:>12} {:>14} {:>9} {:>9}", "", "answers/s", "CPU, us each", "p50, us", "p99, us");
    let mut medians = Vec::new();
    for (server, rounds) in servers.iter().zip(&rounds) {
        let of = |read: fn(&Round) -> f64| median(rounds.iter().map(read));
        let figures = [of(|r| r.rate), of(|r| r.cpu), of(|r| r.p50), of(|r| r.p99)];
        let [rate, cpu, p50, p99] = figures;
        println!("  {:<10} {rate:>12.0} {cpu:>14.2} {p50:>9.0} {p99:>9.0}", server.name);
        medians.push(figures);
    }
    drop(servers);
    let _ = std::fs::remove_dir_all(&folder);
    if let [ours, theirs] = medians[..] {
        let is_met = ours[0] >= theirs[0] && ours[3] <= theirs[3];
        println!(
            "  at least its answers a second, and p99 no worse: {}",
            if is_met { "met" } else { "MISSED" }
        );
        assert!(is_met, "the target is missed");
    }
}

struct Server {
    name: &'static str,
    address: SocketAddr,
    child: Child,
}

struct Round {
    rate: f64,
    cpu: f64,
    p50: f64,
    p99: f64,
}

fn remora(folder: &Path) -> Result<Server, String> {
    let mut manifest = String::new();
    for i in 0..SERVICES {
        let ip = ip(i);
        writeln!(
            manifest,
            "---\n{{kind: Service, metadata: {{name: service-{i}, namespace: bench}}, spec: {{clusterIP: {ip}, \
             ports: [{{port: 80}}]}}}}"
        )
        .unwrap();
    }
    let file = folder.join("services.yaml");
    std::fs::write(&file, manifest).unwrap();
    let address = free();
    let mut command = on_one_core(env!("CARGO_BIN_EXE_remora"));
    command.args(["sidecar", "--log-level", "error", "--source", &format!("manifests:{}", file.display())]);
    command.args(["--dns", &address.to_string(), "--dns-forward", "127.0.0.1:1"]);
    Server::start("remora", address, command)
}

fn coredns(folder: &Path) -> Result<Server, String> {
    let mut zone = String::from(
        "$ORIGIN cluster.local.\n@ 5 IN SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ 5 IN NS ns.dns\n",
    );
    for i in 0..SERVICES {
        writeln!(zone, "service-{i}.bench.svc 5 IN A {}", ip(i)).unwrap();
    }
    let (zone_file, file, address) = (folder.join("zone"), folder.join("Corefile"), free());
    std::fs::write(&zone_file, zone).unwrap();
    let corefile = format!(
        "cluster.local:{} {{\n bind {}\n errors\n cache 30\n loadbalance\n file {}\n}}\n",
        address.port(),
        address.ip(),
        zone_file.display()
    );
    std::fs::write(&file, corefile).unwrap();
    let peers = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers");
    let found = Command::new(peers).args(["where", "coredns"]).output().map_err(|error| error.to_string())?;
    if !found.status.success() {
        return Err(format!("coredns: {}", String::from_utf8_lossy(&found.stderr).trim()));
    }
    let mut command = on_one_core(String::from_utf8_lossy(&found.stdout).trim());
    command.args(["-quiet", "-conf"]).arg(file);
    Server::start("coredns", address, command)
}

/// A command for `program` on the first core; the second is the client's.
fn on_one_core(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "0", program]);
    command
}

fn ip(i: usize) -> String {
    format!("10.96.{}.{}", i / 250, i % 250 + 1)
}

/// On an address that nobody else's connections come from, so that the port is free for streams too.
fn free() -> SocketAddr {
    UdpSocket::bind("127.0.77.1:0").unwrap().local_addr().unwrap()
}

impl Server {
    fn start(name: &'static str, address: SocketAddr, mut command: Command) -> Result<Self, String> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
        let mut server = Self { name, address, child };
        let socket = server.socket();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (deadline, mut answer) = (Instant::now() + Duration::from_secs(20), [0; 512]);
        while Instant::now() < deadline && server.child.try_wait().unwrap().is_none() {
            let asked = socket.send(&query(0, SERVICES - 1, 1));
            // No answer, an answer of who does not know it yet: once more.
            if let (Ok(_), Ok(length)) = (asked, socket.recv(&mut answer))
                && answer[3] & 0x0f == 0
                && length > 40
            {
                return Ok(server);
            }
        }
        Err(format!("{name} does not answer"))
    }

    fn socket(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.address).unwrap();
        socket
    }

    /// Asks as fast as it answers.
    fn round(&self) -> Round {
        let on_second = Command::new("taskset").args(["-cp", "1", &std::process::id().to_string()]).output();
        drop(on_second);
        let socket = self.socket();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let (mut sent, mut times, mut turn) = ([Instant::now(); AT_ONCE], Vec::new(), 0_usize);
        let mut ask = |id: usize, sent: &mut [Instant; AT_ONCE]| {
            turn += 1;
            sent[id] = Instant::now();
            // A large odd step: no two neighbours in the table follow each other.
            let kind = if turn % 2 == 0 { 1 } else { 28 };
            socket.send(&query(id as u16, turn * 617 % SERVICES, kind)).unwrap();
        };
        let (start, cpu) = (Instant::now(), self.cpu());
        (0..AT_ONCE).for_each(|id| ask(id, &mut sent));
        let mut answer = [0; 512];
        while start.elapsed() < ROUND {
            let length = socket.recv(&mut answer).expect("it answers every question");
            assert!(length > 40 && answer[3] & 0x0f == 0, "it does not know a name");
            let id = usize::from(u16::from_be_bytes([answer[0], answer[1]]));
            times.push(sent[id].elapsed());
            ask(id, &mut sent);
        }
        let (took, cpu) = (start.elapsed(), self.cpu() - cpu);
        times.sort_unstable();
        let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e6;
        let count = times.len() as f64;
        Round {
            rate: count / took.as_secs_f64(),
            cpu: cpu.as_secs_f64() * 1e6 / count,
            p50: at(50),
            p99: at(99),
        }
    }

    /// CPU time of all its threads so far.
    fn cpu(&self) -> Duration {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let of = |task: std::fs::DirEntry| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0)
        };
        Duration::from_nanos(std::fs::read_dir(tasks).unwrap().flatten().map(of).sum())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A query as the resolver of C writes it.
fn query(id: u16, service: usize, kind: u8) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in [&format!("service-{service}"), "bench", "svc", "cluster", "local"] {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, kind, 0, 1]);
    bytes
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
