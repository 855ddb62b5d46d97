//! What changes cost an Envoy that knows a large cluster, and how soon a change in the API server is in effect in all of
//! its workers. Prints each figure beside its bound, and fails where a bound is not kept. What is bounded is CPU time,
//! and a median; the rest is told.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tests::envoy::{self, Envoy, Version};
use tests::feeder::{FEED, Feeder, Service};
use tests::gateway::{HTTP, at};
use tests::http::{Client, Server};
use tests::world::{self, Test};
use tests::{Namespace, Program, World, cluster, scale, tools, wait_until};

/// A feeder reads thousands of files.
const PATIENCE: Duration = Duration::from_secs(180);
/// Services of the large cluster.
const SERVICES: usize = 10_000;
/// A VM for each worker, and one of the main thread.
const VMS: f64 = 3.0;
/// Changes whose CPU is measured.
const CHANGES: usize = 100;
/// Turns of requests without changes, and of as many with changes.
const ROUNDS: usize = 6;
/// Requests of a turn.
const REQUESTS: usize = 300;
/// Changes in the API server.
const FLIPS: usize = 60;
/// Connections of which each worker has some.
const CONNECTIONS: usize = 6;

static IS_MISSED: Mutex<bool> = Mutex::new(false);

fn main() -> ExitCode {
    if !world::is_inside() {
        envoy::build_filter();
    }
    let ended = world::main(vec![
        Test { name: "a_change_of_one_endpoint", run: |world| Box::pin(a_change_of_one_endpoint(world)) },
        Test {
            name: "from_the_api_server_to_all_workers",
            run: |world| Box::pin(from_the_api_server(world)),
        },
    ]);
    if *IS_MISSED.lock().expect("no panic holds it") { ExitCode::FAILURE } else { ended }
}

/// A figure, and the bound that it is to keep.
fn row(what: &str, figure: f64, bound: Option<f64>) {
    let is_over = bound.is_some_and(|bound| figure > bound);
    *IS_MISSED.lock().expect("no panic holds it") |= is_over;
    let shown = bound.map(|bound| bound.to_string()).unwrap_or_default();
    println!("{what:<66}{figure:>10.2}{shown:>10}{}", if is_over { "  NOT KEPT" } else { "" });
}

/// The time within which this share is done, in milliseconds.
fn within(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get((last as f64 * share).round() as usize).copied().unwrap_or_default().as_secs_f64() * 1e3
}

async fn a_change_of_one_endpoint(world: World) {
    let server = Server::start("127.0.1.1:9000").await;
    let feeder = Feeder::ready(&world, &[Service::new("web", "10.96.0.10", [server.address])], &[]).await;
    let envoy = Envoy::ready(&world, Version::Newest, &envoy::configuration("http.yaml")).await;
    let cluster = scale::Cluster::write(&feeder.manifests, SERVICES);
    let number = async |name: &str| envoy.number(&format!("wasmcustom.{name}")).await.expect("a number");
    wait_until(PATIENCE, "the cluster is known", async || match number("remora_services").await {
        known if known == SERVICES as u64 + 1 => Ok(()),
        known => Err(format!("{known} Services")),
    })
    .await;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::one(at(HTTP)).await.expect("a connection"));
    }
    let mut generation = 0;
    // Returns once the feeder tells it: Envoy's own numbers are seconds late.
    let mut change = async || {
        generation += 1;
        let before = feeder.number("remora_table_version").await.expect("a number");
        cluster.replace_endpoint(generation * 7919 % SERVICES, generation);
        wait_until(PATIENCE, "the change is told", async || {
            match feeder.number("remora_table_version").await? {
                version if version > before => Ok(()),
                version => Err(format!("version {version}")),
            }
        })
        .await;
    };
    change().await;

    println!("{SERVICES} Services, {} endpoints; two workers", SERVICES * scale::ENDPOINTS);
    println!("{:<66}{:>10}{:>10}", "", "", "bound");
    // What Envoy uses without changes, and then with them. Its threads have no names in a world of processes: the share
    // of one VM is a third, as each worker has one, and the main thread.
    let spent_so_far = || envoy.program.cpu() as f64 / VMS;
    let (mut idle, mut still, mut busy, mut spent) = (0.0, 0.0, 0.0, 0.0);
    for changes in [0, CHANGES / 4].repeat(4) {
        let (begun, before) = (Instant::now(), spent_so_far());
        if changes == 0 {
            wait_until(PATIENCE, "a moment has passed", async || {
                let _ = feeder.number("remora_table_version").await;
                if begun.elapsed() > Duration::from_secs(3) { Ok(()) } else { Err(String::new()) }
            })
            .await;
            (idle, still) = (idle + begun.elapsed().as_secs_f64(), still + spent_so_far() - before);
        } else {
            for _ in 0..changes {
                change().await;
            }
            (busy, spent) = (busy + begun.elapsed().as_secs_f64(), spent + spent_so_far() - before);
        }
    }
    let each = (spent - still / idle * busy) / CHANGES as f64 / 1e3;
    row("a change of one endpoint: CPU time in each VM, µs", each, Some(1_000.0));
    println!("  (with {:.0} µs a second without changes)", still / idle / 1e3);

    let (mut quiet, mut changing) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (times, with_changes) in [(&mut quiet, false), (&mut changing, true)] {
            let mut asked = 0;
            let mut ask = async || {
                for client in &mut clients {
                    let begun = Instant::now();
                    let answer = client.get("web.shop", "/", &[]).await.expect("an answer");
                    assert_eq!(answer.status, 200, "{answer:?}");
                    times.push(begun.elapsed());
                    asked += 1;
                }
                asked
            };
            if with_changes {
                let changes = async {
                    loop {
                        change().await;
                    }
                };
                tokio::select! {
                    () = async { while ask().await < REQUESTS {} } => {}
                    () = changes => {}
                }
            } else {
                while ask().await < REQUESTS {}
            }
        }
    }
    for (share, name) in [(0.5, "median"), (0.99, "99th percentile"), (1.0, "the longest")] {
        row(&format!("a request without changes, ms, {name}"), within(&mut quiet, share), None);
        row(&format!("a request while endpoints change, ms, {name}"), within(&mut changing, share), None);
    }
}

async fn from_the_api_server(world: World) {
    let namespace = Namespace::new(cluster::Cluster::shared().await).await;
    // The API server takes no loopback addresses for endpoints.
    let servers = ["10.200.0.1", "10.200.0.2"];
    let mut running = Vec::new();
    for ip in servers {
        let added = Command::new("ip").args(["addr", "add", &format!("{ip}/32"), "dev", "lo"]).status();
        assert!(added.expect("ip, of iproute2").success());
        running.push(Server::start(&format!("{ip}:9000")).await);
    }
    let spec = json!({"selector": null});
    namespace.service("web", spec).await;
    let slices: Api<EndpointSlice> = namespace.slices();
    let slice = |ip: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "web", "port": 9000}],
            "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        })
    };
    cluster::create(&slices, slice(servers[0])).await;
    let mut command = Command::new(tools::own("remora", "sidecar"));
    command.args(["hub", "--source", "kube", "--feed", FEED, "--admin", "127.0.0.1:64103"]);
    command.env("KUBECONFIG", namespace.cluster.kubeconfig());
    let _hub = Program::start(&world, "hub", command);
    let envoy = Envoy::ready(&world, Version::Newest, &envoy::configuration("http.yaml")).await;
    let authority = format!("web.{}", namespace.name);
    let mut clients = connections(&envoy).await;
    wait_until(PATIENCE, "the first endpoint serves", async || {
        let met = ask(&mut clients, &authority).await;
        if met == BTreeSet::from([running[0].address]) { Ok(()) } else { Err(format!("{met:?}")) }
    })
    .await;
    let (mut all, mut beyond) = (Vec::new(), Vec::new());
    for flip in 1..=FLIPS {
        let next = &running[flip % 2];
        let patch: Value = slice(servers[flip % 2]);
        let begun = Instant::now();
        let patched = async {
            slices
                .patch("web-1", &PatchParams::default(), &Patch::Merge(&patch))
                .await
                .expect("it is patched");
            Instant::now()
        };
        // One after the other on all connections, until a whole turn is the new one's.
        let seen = async {
            while ask(&mut clients, &authority).await != BTreeSet::from([next.address]) {}
            Instant::now()
        };
        let (committed, seen) = tokio::time::timeout(PATIENCE, async { tokio::join!(patched, seen) })
            .await
            .expect("every change comes into effect");
        all.push(seen - begun);
        beyond.push(seen.saturating_duration_since(committed));
    }
    println!("{:<66}{:>10}{:>10}", "", "", "bound");
    row("a change is in effect in all workers, ms, median", within(&mut all, 0.5), Some(50.0));
    row("  99th percentile", within(&mut all, 0.99), None);
    row("  since the API server has answered, median", within(&mut beyond, 0.5), None);
    row("  99th percentile", within(&mut beyond, 0.99), None);
}

/// Connections, until each worker has two.
async fn connections(envoy: &Envoy) -> Vec<Client> {
    let mut clients = Vec::new();
    wait_until(PATIENCE, "each worker has connections", async || {
        clients.push(Client::one(at(HTTP)).await?);
        let mut counts = Vec::new();
        for worker in 0..2 {
            let name = format!("listener.127.0.0.1_8080.worker_{worker}.downstream_cx_active");
            counts.push(envoy.number(&name).await?);
        }
        if counts.iter().all(|count| *count >= 2) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
    clients
}

/// One request on each connection: who answered. Nobody that is not there yet is an answer of its own.
async fn ask(clients: &mut [Client], authority: &str) -> BTreeSet<SocketAddr> {
    let mut met = BTreeSet::new();
    for client in clients {
        let answer = client.get(authority, "/", &[]).await.expect("an answer");
        met.insert(answer.who().parse().unwrap_or(at("0.0.0.0:0")));
    }
    met
}
