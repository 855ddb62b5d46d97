//! The relay beside its peers on the same cores: CPU per unit of work first, throughput beside it, and the memory
//! of idle connections. Rounds are interleaved and medians compared, since a machine's speed drifts.
//! `sidecar/benches/peers` installs the peers; one that is missing is named and left out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench fails by panicking")]

mod capture;
mod endpoint;
mod load;
mod peer;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use load::Work;
use peer::{Peer, Running};

/// Rounds of which the median counts.
const ROUNDS: usize = 7;
/// Connections that are held open for the figure of memory.
const IDLE: usize = 2_000;

fn main() {
    let asked = |word: &str| std::env::args().any(|argument| argument == word);
    if asked("endpoint") {
        endpoint::serve();
    } else if asked("capture") {
        capture::run();
    } else {
        with_endpoint(compare);
    }
}

/// An endpoint on every address. Owning one means that it serves.
struct Endpoint(Child);

impl Endpoint {
    /// Starts it by `command`, to which only what it is to do is added: the endpoint and its port.
    fn start(mut command: Command) -> (Self, u16) {
        let pipes = command.arg("endpoint").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = pipes.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut said).unwrap();
        (Self(server), said.trim().parse().unwrap())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Runs `measure` with the port of an endpoint, and a folder; both end with it.
fn with_endpoint(measure: impl FnOnce(u16, &Path)) {
    let (_endpoint, port) = Endpoint::start(Command::new(std::env::current_exe().unwrap()));
    let folder = std::env::temp_dir().join(format!("remora-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    // Other users read in it.
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    measure(port, &folder);
    let _ = std::fs::remove_dir_all(&folder);
}

fn compare(port: u16, folder: &Path) {
    let mut peers: Vec<Running> = Vec::new();
    for (number, peer) in (1..).zip(Peer::ALL) {
        // An address of its own for each, so that none runs out of the ports of another.
        let endpoint = SocketAddr::from(([127, 0, 1, number], port));
        match peer.start(endpoint, folder) {
            Ok(running) => peers.push(running),
            Err(why) => eprintln!("left out: {why}"),
        }
    }
    for work in Work::ALL {
        let mut figures: Vec<Vec<(f64, f64)>> = vec![Vec::new(); peers.len()];
        for round in 0..=ROUNDS {
            for (peer, figures) in peers.iter().zip(&mut figures) {
                let before = peer.cpu();
                let took = load::run(work, peer.address);
                let cpu = peer.cpu() - before;
                // The first round warms up.
                if round > 0 {
                    figures.push((cpu.as_secs_f64() / work.units(), work.units() / took.as_secs_f64()));
                }
            }
        }
        report(work, &peers, figures);
    }
    println!("\nmemory of an idle relayed connection, KB, {IDLE} at once, each after one request");
    for peer in peers.iter().filter(|peer| peer.peer != Peer::Direct) {
        let before = peer.resident();
        let held = load::hold(IDLE, peer.address);
        let bytes = peer.resident().saturating_sub(before) as f64;
        println!("  {:<10} {:>8.1}", peer.peer.name(), bytes / 1000.0 / IDLE as f64);
        drop(held);
    }
}

/// Prints the medians, and each one's ratio to Remora's.
fn report(work: Work, peers: &[Running], figures: Vec<Vec<(f64, f64)>>) {
    let medians: Vec<(f64, f64)> = figures
        .iter()
        .map(|rounds| (median(rounds.iter().map(|r| r.0)), median(rounds.iter().map(|r| r.1))))
        .collect();
    let ours =
        peers.iter().zip(&medians).find(|(peer, _)| peer.peer == Peer::Remora).map(|(_, m)| *m).unwrap();
    println!("\n{}", work.title());
    println!("  {:<10} {:>12} {:>8} {:>14} {:>8}", "", work.cpu_unit(), "ratio", work.rate_unit(), "ratio");
    for (peer, (cpu, rate)) in peers.iter().zip(&medians) {
        let name = peer.peer.name();
        if peer.peer == Peer::Direct {
            println!(
                "  {name:<10} {:>12} {:>8} {:>14.2} {:>8.2}",
                "",
                "",
                rate * work.rate_scale(),
                rate / ours.1
            );
        } else {
            println!(
                "  {name:<10} {:>12.3} {:>8.2} {:>14.2} {:>8.2}",
                cpu * work.cpu_scale(),
                cpu / ours.0,
                rate * work.rate_scale(),
                rate / ours.1
            );
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
