//! How long `remora node` takes until 5,000 node ports listen, and how much memory it holds then. The program itself, from
//! manifests; bounds: 2 s, 60 MB.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench that cannot measure fails")]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const PORTS: u16 = 5_000;
/// The first node port; a range that is not given out for connections (net.ipv4.ip_local_port_range).
const FIRST: u16 = 20_000;
const WITHIN: Duration = Duration::from_secs(2);
const MEMORY: u64 = 60_000_000;

fn main() -> ExitCode {
    let folder = std::env::temp_dir().join(format!("remora-bench-node-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    // One that has no ports, for what the program itself takes.
    std::fs::write(folder.join("none.yaml"), manifests(0..1, 0)).unwrap();
    std::fs::write(folder.join("ports.yaml"), manifests(0..PORTS, FIRST)).unwrap();
    let (_, bare) = measure(&folder.join("none.yaml"), 0);
    let rounds: Vec<_> = (0..3).map(|_| measure(&folder.join("ports.yaml"), u64::from(PORTS))).collect();
    std::fs::remove_dir_all(&folder).unwrap();

    let longest = rounds.iter().map(|(took, _)| *took).max().unwrap();
    let most = rounds.iter().map(|(_, bytes)| *bytes).max().unwrap();
    println!("{PORTS} node ports, two data threads, three rounds, the worst:");
    println!(
        "  from the first table until all listen  {:>7.0} ms  (bound {} ms)",
        longest.as_secs_f64() * 1e3,
        WITHIN.as_millis()
    );
    println!(
        "  memory                                 {:>7.1} MB  (bound {} MB)",
        most as f64 / 1e6,
        MEMORY / 1_000_000
    );
    println!("  of it without any node port            {:>7.1} MB", bare as f64 / 1e6);
    if longest > WITHIN || most > MEMORY {
        println!("MISSED");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Starts the program; how long it took from its table to all listeners, and its memory then.
fn measure(manifests: &std::path::Path, ports: u64) -> (Duration, u64) {
    let mut node = Command::new(env!("CARGO_BIN_EXE_remora"))
        .args(["node", "--nodeport-addresses=127.0.0.0/8,::1/128", "--health=127.0.0.1:0", "--threads=2"])
        .arg(format!("--source=manifests:{}", manifests.display()))
        .arg("--log-level=error")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let health = BufReader::new(node.stdout.take().unwrap())
        .lines()
        .find_map(|line| line.unwrap().strip_prefix("health ").map(|address| address.parse().unwrap()));
    let health: SocketAddr = health.unwrap();
    let mut synced = None;
    let took = loop {
        let page = ask(health);
        let value = |name: &str| {
            let line = page.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse::<f64>().ok()).unwrap_or_default() as u64
        };
        if value("remora_table_version") > 0 {
            synced.get_or_insert_with(Instant::now);
        }
        if let Some(synced) = synced.filter(|_| value("remora_node_ports{state=\"open\"}") == ports) {
            break synced.elapsed();
        }
    };
    let memory = resident(&node);
    node.kill().unwrap();
    node.wait().unwrap();
    (took, memory)
}

fn ask(health: SocketAddr) -> String {
    let mut stream = TcpStream::connect(health).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

fn resident(node: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Services with a node port each, from `first` on, and one endpoint each; without node ports if `first` is 0.
fn manifests(numbers: std::ops::Range<u16>, first: u16) -> String {
    let mut text = String::new();
    for n in numbers {
        let [high, low] = (n + 1).to_be_bytes();
        let (kind, port) = if first > 0 {
            ("NodePort", format!(", nodePort: {}", first + n))
        } else {
            ("ClusterIP", String::new())
        };
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web-{n}, namespace: shop}}\n\
             spec:\n  type: {kind}\n  clusterIP: 10.96.{high}.{low}\n  clusterIPs: [10.96.{high}.{low}]\n\
             \x20 ports: [{{port: 80{port}}}]\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: web-{n}-a, namespace: shop, labels: {{kubernetes.io/service-name: web-{n}}}}}\n\
             addressType: IPv4\nports: [{{name: \"\", port: 8080}}]\nendpoints: [{{addresses: [10.244.{high}.{low}]}}]\n"
        )
        .unwrap();
    }
    text
}
