//! Many readers of several hubs: whatever becomes of a hub, each has the whole truth in the end, and never nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{Patch, PatchParams};
use rustix::process::{Resource, getrlimit, setrlimit};
use selection::{Here, ServiceName, Table};
use serde_json::{Value, json};
use tests::cluster::create;
use tests::{Cluster, Namespace, Program, World, ask, tools, wait_until};
use tokio::time::{MissedTickBehavior, interval};
use watcher::{Scope, Source, Watch};

tests::tests! {
    a_thousand_readers_of_two_hubs_miss_nothing_when_either_is_killed,
}

/// Readers, each as a sidecar reads.
const READERS: usize = 1_000;
/// Services of the cluster.
const SERVICES: usize = 40;
/// Services that a reader subscribes to.
const EACH: usize = 4;
/// Endpoints of a Service, at any moment.
const ENDPOINTS: usize = 3;
/// From one change to the next.
const PACE: Duration = Duration::from_millis(100);
/// A machine that does all of it at once is slow.
const PATIENCE: Duration = Duration::from_secs(180);

/// Where readers connect: a sidecar that balances them over the hubs.
const FRONT: &str = "127.0.0.1:64100";

async fn a_thousand_readers_of_two_hubs_miss_nothing_when_either_is_killed(world: World) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("a descriptor for each reader");
    let namespace = Namespace::new(Cluster::shared().await).await;
    let slices = namespace.slices();
    for number in 0..SERVICES {
        furnish(&namespace.services(), &slices, number).await;
    }
    let mut one = Hub::start(&world, &namespace, "127.0.0.2").await;
    let mut other = Hub::start(&world, &namespace, "127.0.0.3").await;
    let _front = front(&world, &[one.ip, other.ip]).await;

    let emptied = Arc::<Mutex<Vec<String>>>::default();
    let mut readers = Vec::new();
    for number in 0..READERS {
        readers.push(Reader::start(&namespace.name, number, &emptied).await);
    }
    wait_until(PATIENCE, "all readers are told by either hub", async || {
        match (one.readers().await?, other.readers().await?) {
            (a, b) if a + b == READERS && a.min(b) > READERS / 5 => Ok(()),
            counts => Err(format!("{counts:?}")),
        }
    })
    .await;

    let story = async {
        for turn in 0..2 {
            let (killed, left) = if turn == 0 { (&mut one, &mut other) } else { (&mut other, &mut one) };
            killed.program.kill();
            wait_until(PATIENCE, "all readers are told by the hub that is left", async || {
                match left.readers().await? {
                    READERS => Ok(()),
                    count => Err(format!("{count} readers; {}", left.program.state())),
                }
            })
            .await;
            *killed = Hub::start(&world, &namespace, killed.ip).await;
        }
    };
    let changes = async {
        let mut ticks = interval(PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        for change in 1.. {
            ticks.tick().await;
            replace_endpoint(&slices, change).await;
        }
    };
    tokio::select! {
        () = story => {}
        () = changes => {}
    }

    let mut truth = BTreeMap::new();
    for number in 0..SERVICES {
        let name = format!("web-{number}");
        truth.insert(name.clone(), namespace.ready(&name).await.expect("the slices of a Service"));
    }
    wait_until(PATIENCE, "every reader has the endpoints that the API server has", async || {
        let wrong = readers.iter().filter_map(|reader| reader.differs(&truth));
        let wrong: Vec<_> = wrong.collect();
        match wrong.first() {
            None => Ok(()),
            Some(first) => Err(format!("{} readers do not: {first}", wrong.len())),
        }
    })
    .await;
    let emptied = emptied.lock().expect("no panic holds it");
    assert!(emptied.is_empty(), "{} tables lacked something: {}", emptied.len(), emptied[0]);
}

/// The endpoints of a Service after so many changes of one of them.
fn endpoints(number: usize, generation: usize) -> Value {
    (0..ENDPOINTS)
        .map(|n| {
            let host = if n == 0 { ENDPOINTS + generation % 200 } else { n };
            json!({"addresses": [format!("10.200.{number}.{host}")], "conditions": {"ready": true}})
        })
        .collect()
}

async fn furnish(services: &Api<Service>, slices: &Api<EndpointSlice>, number: usize) {
    let name = format!("web-{number}");
    let ports = json!([{"name": "web", "port": 80}]);
    create(services, json!({"metadata": {"name": name}, "spec": {"ports": ports}})).await;
    let labels = json!({"kubernetes.io/service-name": name});
    let slice = json!({
        "metadata": {"name": format!("{name}-1"), "labels": labels}, "addressType": "IPv4",
        "ports": [{"name": "web", "port": 9000}], "endpoints": endpoints(number, 0),
    });
    create(slices, slice).await;
}

async fn replace_endpoint(slices: &Api<EndpointSlice>, change: usize) {
    let number = change * 7 % SERVICES;
    let patch = Patch::Merge(json!({"endpoints": endpoints(number, change)}));
    let name = format!("web-{number}-1");
    // While hubs start, a machine may be too busy for an answer in time; the next change comes anyway.
    let _ = slices.patch(&name, &PatchParams::default(), &patch).await;
}

/// A hub of the cluster, at an address of its own.
struct Hub {
    program: Program,
    ip: &'static str,
}

impl Hub {
    async fn start(world: &World, namespace: &Namespace, ip: &'static str) -> Hub {
        let mut command = Command::new(tools::own("remora", "sidecar"));
        command.args(["hub", "--source", "kube", "--feed", &format!("{ip}:64105")]);
        command.args(["--health", &format!("{ip}:64104")]);
        command.env("KUBECONFIG", namespace.cluster.kubeconfig());
        let hub = Hub { program: Program::start(world, &format!("hub-{ip}"), command), ip };
        wait_ready(ip, &hub.program).await;
        hub
    }

    /// How many read from it.
    async fn readers(&self) -> Result<usize, String> {
        let (_, page) = ask::get(health(self.ip), "/metrics").await?;
        let number = page.lines().find_map(|line| line.strip_prefix("remora_feed_readers ")?.parse().ok());
        number.ok_or(page)
    }
}

fn health(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), 64104)
}

async fn wait_ready(ip: &str, program: &Program) {
    wait_until(PATIENCE, "it is ready", async || match ask::get(health(ip), "/readyz").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}; {}", program.state())),
    })
    .await;
}

/// A sidecar whose listener leads to either hub.
async fn front(world: &World, hubs: &[&str]) -> Program {
    let folder = world.own_folder().join("front");
    std::fs::create_dir_all(&folder).expect("the folder of the world");
    let endpoints: Vec<_> = hubs.iter().map(|ip| json!({"addresses": [ip]})).collect();
    let labels = json!({"kubernetes.io/service-name": "hub"});
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hub", "namespace": "remora"},
         "spec": {"clusterIP": "10.96.0.99", "clusterIPs": ["10.96.0.99"], "ports": [{"port": 64105}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
         "metadata": {"name": "hub-1", "namespace": "remora", "labels": labels}, "addressType": "IPv4",
         "ports": [{"name": "", "port": 64105}], "endpoints": endpoints},
    ]});
    std::fs::write(folder.join("hub.json"), objects.to_string()).expect("the folder of the world");
    let mut command = Command::new(tools::own("remora", "sidecar"));
    command.args(["sidecar", "--source", &format!("manifests:{}", folder.display())]);
    command.args(["--listen", &format!("{FRONT}=remora/hub:64105"), "--health", "127.0.0.1:64104"]);
    command.args(["--admin", "127.0.0.1:64103"]);
    let front = Program::start(world, "front", command);
    wait_ready("127.0.0.1", &front).await;
    front
}

/// Who reads the feed as a sidecar does, and notes every table that lacks an endpoint.
struct Reader {
    watch: Watch,
    services: Vec<ServiceName>,
}

impl Reader {
    async fn start(namespace: &str, number: usize, emptied: &Arc<Mutex<Vec<String>>>) -> Reader {
        let services: Vec<_> = (0..EACH)
            .map(|n| ServiceName::new(namespace, format!("web-{}", (number + n * 11) % SERVICES)))
            .collect();
        let source = Source::parse(&format!("feed:http://{FRONT}")).expect("a source");
        let scope = Scope::Services(services.clone());
        let watch = watcher::start(source, scope, Here::default()).await.expect("a feed is followed");
        let (tables, wanted, emptied) = (watch.tables.clone(), services.clone(), Arc::clone(emptied));
        tokio::spawn(async move {
            tables
                .reaches(|table| {
                    let lacks = wanted.iter().find(|name| addresses(table, name).len() != ENDPOINTS);
                    if let Some(name) = lacks.filter(|_| table.version() > 0) {
                        let found = format!("reader {number}: {name} {:?}", addresses(table, name));
                        emptied.lock().expect("no panic holds it").push(found);
                    }
                    false
                })
                .await;
        });
        Reader { watch, services }
    }

    /// What it has that is not so.
    fn differs(&self, truth: &BTreeMap<String, Vec<String>>) -> Option<String> {
        let table = self.watch.tables.load();
        let wrong = self.services.iter().find(|name| addresses(&table, name) != truth[&*name.name])?;
        let broken = self.watch.status().broken;
        Some(format!("{wrong} {:?}, not {:?}; {broken:?}", addresses(&table, wrong), truth[&*wrong.name]))
    }
}

/// The endpoints of a Service in a table, sorted.
fn addresses(table: &Table, name: &ServiceName) -> Vec<String> {
    let ports = table.ports(name).iter();
    let mut found: Vec<_> =
        ports.flat_map(|port| port.endpoints.iter()).map(|endpoint| endpoint.address.to_string()).collect();
    found.sort();
    found
}
