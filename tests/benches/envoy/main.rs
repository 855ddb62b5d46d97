//! What Remora's filter costs in Envoy: the CPU time of one worker for each request and each connection, beside the same
//! Envoy with a static cluster. Rows between the two show what Envoy itself takes for being told an endpoint, and what a
//! module takes that does nothing. Rounds are interleaved and ratios are those within a round, since a machine's speed
//! drifts. Prints tables and fails if a bound is missed.
//!
//! `tests/tools envoy` installs Envoy, `filter/build` makes the module, `cargo build --release -p sidecar` the program
//! that feeds it; `make bench` has done all three.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench fails by panicking")]

mod load;
mod variant;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use load::Work;
use tests::{envoy, tools};
use variant::{Running, Variant};

/// Rounds of which the median counts.
const ROUNDS: usize = 15;
/// The endpoints of the Service, all with one port.
const ENDPOINTS: [&str; 3] = ["127.0.1.1", "127.0.1.2", "127.0.1.3"];

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "endpoint") {
        load::serve();
        return ExitCode::SUCCESS;
    }
    envoy::build_filter();
    let folder = std::env::temp_dir().join(format!("remora-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let held = measure(&folder);
    let _ = std::fs::remove_dir_all(&folder);
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(folder: &Path) -> bool {
    let mut endpoints = Ending::start(Command::new(std::env::current_exe().unwrap()).arg("endpoint"));
    let mut said = String::new();
    BufReader::new(endpoints.0.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let port: u16 = said.trim().parse().unwrap();
    let feed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _feeder = feeder(port, feed, folder);
    let mut held = true;
    for (work, bound) in [(Work::Http, 1.15), (Work::Tcp, 1.20)] {
        let start = |variant: &Variant| variant.start(work, port, feed, folder);
        let variants: Vec<Running> = Variant::of(work).iter().map(start).collect();
        let mut rounds: Vec<Vec<f64>> = Vec::new();
        for round in 0..=ROUNDS {
            let figures = variants.iter().map(|variant| variant.round(work)).collect();
            // The first one warms up.
            if round > 0 {
                rounds.push(figures);
            }
        }
        held &= report(work, bound, &variants, &rounds);
    }
    held
}

/// Prints the medians, and those of the ratios to the static cluster.
fn report(work: Work, bound: f64, variants: &[Running], rounds: &[Vec<f64>]) -> bool {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "\n{} ({} rounds, load average {})",
        work.title(),
        rounds.len(),
        load.split(' ').next().unwrap_or("")
    );
    println!("  {:<34} {:>12} {:>8} {:>8}", "", "CPU µs each", "ratio", "bound");
    let mut held = true;
    for (at, running) in variants.iter().enumerate() {
        let cpu = median(rounds.iter().map(|round| round[at]));
        let ratio = median(rounds.iter().map(|round| round[at] / round[0]));
        let name = running.variant.name();
        print!("  {name:<34} {:>12.1} {ratio:>8.2}", cpu * 1e6);
        if running.variant == Variant::Remora {
            held = ratio <= bound;
            print!(" {bound:>8.2} {}", if held { "ok" } else { "MISSED" });
        }
        println!();
    }
    held
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A `remora` that feeds the Envoys with the Service `shop/web`.
fn feeder(port: u16, feed: SocketAddr, folder: &Path) -> Ending {
    let manifest = folder.join("web.yaml");
    let endpoints = ENDPOINTS.map(|ip| format!("{{addresses: [{ip}]}}")).join(", ");
    let text = format!(
        "{{kind: Service, apiVersion: v1, metadata: {{name: web, namespace: shop}}, spec: {{clusterIP: 10.96.0.10, ports: \
         [{{port: 80}}]}}}}\n---\n{{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, metadata: {{name: web, namespace: \
         shop, labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4, ports: [{{name: '', port: {port}}}], \
         endpoints: [{endpoints}]}}\n"
    );
    std::fs::write(&manifest, text).unwrap();
    let mut command = Command::new(tools::own("remora", "sidecar"));
    command.args(["sidecar", "--threads", "1", "--log-level", "error", "--feed", &feed.to_string()]);
    command.args(["--source", &format!("manifests:{}", manifest.display())]);
    Ending::start(&mut command)
}

/// The module that does nothing.
fn empty_module(folder: &Path) -> PathBuf {
    module(folder, "empty", include_str!("empty.wat"))
}

/// The module that names `endpoint`, whoever asks.
fn fixed_module(folder: &Path, endpoint: &str) -> PathBuf {
    assert_eq!(endpoint.len(), 15, "fixed.wat counts the bytes of {endpoint}");
    module(folder, "fixed", &include_str!("fixed.wat").replace("ENDPOINT", endpoint))
}

/// A module made from its text by Binaryen.
fn module(folder: &Path, name: &str, text: &str) -> PathBuf {
    let (source, module) = (folder.join(format!("{name}.wat")), folder.join(format!("{name}.wasm")));
    std::fs::write(&source, text).unwrap();
    let status = Command::new("wasm-as").arg(source).arg("-o").arg(&module).status();
    assert!(status.expect("wasm-as, of Binaryen").success());
    module
}

/// A program that ends with this.
struct Ending(Child);

impl Ending {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
