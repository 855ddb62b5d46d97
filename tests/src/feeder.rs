//! A `remora` that feeds Envoys from manifest files.
//!
//! In: Services and the addresses of their endpoints. Out: the feed on loopback, at the port that `envoy/` names. The
//! files are real files, changed as an editor changes them.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use crate::{Program, SOON, World, ask, tools, wait_until};

/// Where it is served, as the files of `envoy/` have it.
pub const FEED: &str = "127.0.0.1:64105";
const ADMIN: &str = "127.0.0.1:64103";
const HEALTH: &str = "127.0.0.1:64104";

/// A Service of the namespace `shop`, port 80, as it is written to a file.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// Its ClusterIP, or both with a comma.
    pub ip: &'static str,
    /// How to choose among its endpoints.
    pub balance: &'static str,
    /// Clients stay with their endpoint.
    pub sticky: bool,
    /// Its endpoints.
    pub endpoints: Vec<SocketAddr>,
}

/// Owning one means that the feed is served.
pub struct Feeder {
    /// The process.
    pub program: Program,
    /// Where it reads them; more may be put there.
    pub manifests: PathBuf,
    verb: &'static str,
}

impl Service {
    /// A Service with nothing special.
    pub fn new(
        name: &'static str,
        ip: &'static str,
        endpoints: impl IntoIterator<Item = SocketAddr>,
    ) -> Service {
        let endpoints = endpoints.into_iter().collect();
        Service { name, ip, balance: "round-robin", sticky: false, endpoints }
    }

    fn write(&self, text: &mut String) {
        let Service { name, ip, balance, sticky, endpoints } = self;
        let (first, ips) = (ip.split(',').next().unwrap_or_default(), ip.replace(',', "', '"));
        let affinity = if *sticky { ", sessionAffinity: ClientIP" } else { "" };
        let written = writeln!(
            text,
            "---\n{{kind: Service, apiVersion: v1, metadata: {{name: {name}, namespace: shop, annotations: \
             {{remora.dev/balance: {balance}}}}}, spec: {{clusterIP: '{first}', clusterIPs: ['{ips}'], \
             ports: [{{port: 80}}]{affinity}}}}}"
        );
        written.expect("text grows");
        // One slice for each endpoint: they differ in their port, too.
        for (number, endpoint) in endpoints.iter().enumerate() {
            let written = writeln!(
                text,
                "---\n{{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, metadata: {{name: {name}-{number}, \
                 namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}, addressType: {}, \
                 ports: [{{name: '', port: {}}}], endpoints: [{{addresses: ['{}']}}]}}",
                if endpoint.is_ipv6() { "IPv6" } else { "IPv4" },
                endpoint.port(),
                endpoint.ip(),
            );
            written.expect("text grows");
        }
    }
}

impl Feeder {
    /// Starts one and waits until it serves these Services; `more` are arguments of `remora sidecar`.
    pub async fn ready(world: &World, services: &[Service], more: &[&str]) -> Feeder {
        Self::run("sidecar", world, services, more).await
    }

    /// The same with `remora hub`.
    pub async fn hub(world: &World, services: &[Service], more: &[&str]) -> Feeder {
        Self::run("hub", world, services, more).await
    }

    async fn run(verb: &'static str, world: &World, services: &[Service], more: &[&str]) -> Feeder {
        let manifests = world.own_folder().join("manifests");
        std::fs::create_dir_all(&manifests).expect("the folder of the world");
        write(&manifests, services);
        let feeder = Feeder { program: run(verb, world, &manifests, more), manifests, verb };
        feeder.wait_ready().await;
        feeder
    }

    /// From here on, these are the Services. Nobody has to have noticed when this returns.
    pub fn change(&self, services: &[Service]) {
        write(&self.manifests, services);
    }

    /// How many read the feed.
    pub async fn readers(&self) -> Result<u64, String> {
        let (_, page) = ask::get(HEALTH.parse().expect("an address"), "/metrics").await?;
        let number = page.lines().find_map(|line| line.strip_prefix("remora_feed_readers "));
        number.and_then(|number| number.parse().ok()).ok_or(page)
    }

    /// Waits until so many read the feed.
    pub async fn wait_readers(&self, count: u64) {
        wait_until(SOON, &format!("{count} read the feed"), async || match self.readers().await {
            Ok(readers) if readers == count => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// Where its feed is.
    pub fn feed(&self) -> SocketAddr {
        FEED.parse().expect("an address")
    }

    /// Where it has everything from, as the flag `--source` says it.
    pub fn source(&self) -> String {
        source(&self.manifests)
    }

    /// Ends it without a word (SIGKILL).
    pub fn kill(&self) {
        self.program.kill();
    }

    /// Starts it again after [`Feeder::kill`].
    pub async fn restart(&mut self, world: &World) {
        self.program = run(self.verb, world, &self.manifests, &[]);
        self.wait_ready().await;
    }

    /// One of its metrics that has no labels.
    pub async fn number(&self, name: &str) -> Result<f64, String> {
        let (_, page) = ask::get(HEALTH.parse().expect("an address"), "/metrics").await?;
        let number = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        number.ok_or_else(|| format!("there is no {name}"))
    }

    async fn wait_ready(&self) {
        wait_until(SOON, "the feeder is ready", async || {
            match ask::get(HEALTH.parse().expect("an address"), "/readyz").await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}; {}", self.program.state())),
            }
        })
        .await;
    }
}

fn run(verb: &str, world: &World, manifests: &std::path::Path, more: &[&str]) -> Program {
    let mut command = Command::new(tools::own("remora", "sidecar"));
    command.args([verb, "--source", &source(manifests)]);
    command.args(["--feed", FEED, "--admin", ADMIN, "--health", HEALTH]).args(more);
    Program::start(world, "feeder", command)
}

fn source(manifests: &std::path::Path) -> String {
    format!("manifests:{}", manifests.display())
}

/// Puts the new file in the old one's place at once: a reader sees one or the other.
fn write(folder: &std::path::Path, services: &[Service]) {
    let mut text = String::new();
    services.iter().for_each(|service| service.write(&mut text));
    let draft = folder.with_extension("draft");
    std::fs::write(&draft, text).expect("the folder of the world");
    std::fs::rename(draft, folder.join("services.yaml")).expect("the folder of the world");
}
