//! The program under test: a `remora sidecar` or `remora node` on a host of its own, and what its commands print.
//!
//! In: a kubeconfig file and listeners. Out: a running sidecar, asked only in ways that a user has:
//! its ports, `remora endpoints`, its health and metrics. It never looks into the process.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::{Host, Program, World, ask, tools, wait_until};

const HEALTH: u16 = 64104;
const ADMIN: &str = "127.0.0.1:64103";

/// How long a sidecar may take to serve, on a busy machine.
const READY: Duration = Duration::from_secs(30);

/// Owning one means that it runs.
pub struct Sidecar {
    /// The process.
    pub program: Program,
    /// Where it runs; its listeners are at this host's addresses.
    pub host: Host,
}

impl Sidecar {
    /// Starts one, without waiting until it serves. Each of `listen` is `PORT=NAMESPACE/NAME:PORT`;
    /// it listens at the host's IPv4 address.
    pub fn start(world: &World, kubeconfig: &Path, listen: &[&str], more: &[&str]) -> Sidecar {
        let host = Host::new(world, "sidecar");
        let listens =
            listen.iter().flat_map(|listen| ["--listen".to_owned(), format!("{}:{listen}", host.ip4())]);
        let more = listens.chain(more.iter().map(|&more| more.to_owned())).collect();
        Sidecar::run(world, kubeconfig, host, "sidecar", more)
    }

    /// Starts a `remora node` that stands for `node` of the cluster, at its host's addresses, and waits until it is
    /// ready.
    pub async fn node(world: &World, kubeconfig: &Path, node: &str, more: &[&str]) -> Sidecar {
        let host = Host::new(world, node);
        let [ip4, ip6] = host.ips();
        let own = [format!("--node={node}"), format!("--node-ips={ip4},{ip6}")];
        let more = own.into_iter().chain(more.iter().map(|&more| more.to_owned())).collect();
        let node = Sidecar::run(world, kubeconfig, host, "node", more);
        node.wait_ready(READY).await;
        node
    }

    fn run(world: &World, kubeconfig: &Path, host: Host, verb: &str, more: Vec<String>) -> Sidecar {
        let mut command = host.command(tools::own("remora", "sidecar"));
        command.env("KUBECONFIG", kubeconfig).args([verb, "--source", "kube"]);
        command.args(["--health", &format!("0.0.0.0:{HEALTH}"), "--admin", ADMIN]).args(more);
        let program = Program::start(world, host.name(), command);
        Sidecar { program, host }
    }

    /// Starts one and waits until it is ready.
    pub async fn ready(world: &World, kubeconfig: &Path, listen: &[&str]) -> Sidecar {
        let sidecar = Sidecar::start(world, kubeconfig, listen, &[]);
        sidecar.wait_ready(READY).await;
        sidecar
    }

    /// Where it listens.
    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.host.ip4().into(), port)
    }

    /// Waits until `/readyz` says 200.
    pub async fn wait_ready(&self, deadline: Duration) {
        wait_until(deadline, "the sidecar is ready", async || match self.get("/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("/readyz: {other:?}; {}", self.program.state())),
        })
        .await;
    }

    /// Asks its health port: status and body.
    pub async fn get(&self, path: &str) -> Result<(u16, String), String> {
        ask::get(self.address(HEALTH), path).await
    }

    /// Its own `remora endpoints SERVICE`: the endpoints usable in the Cluster policy, IPv4 and the
    /// first port only.
    pub async fn endpoints(&self, service: &str) -> Result<Vec<String>, String> {
        usable(&self.ask(&["endpoints", service, "--admin", ADMIN, "-o", "json"]).await?)
    }

    /// Runs a command of `remora` beside the sidecar; its standard output, parsed.
    pub async fn ask(&self, arguments: &[&str]) -> Result<Value, String> {
        let printed = run(&self.host, arguments, None).await?;
        serde_json::from_str(&printed).map_err(|error| format!("{error} in {printed}"))
    }

    /// Waits until it uses exactly these endpoints for a Service.
    pub async fn wait_endpoints(&self, deadline: Duration, service: &str, expected: &[String]) {
        let what = format!("the sidecar uses {expected:?} for {service}");
        wait_until(deadline, &what, async || match self.endpoints(service).await {
            Ok(usable) if usable == expected => Ok(()),
            other => Err(format!("{other:?}; {}", self.program.state())),
        })
        .await;
    }
}

/// Runs `remora` on a host until it ends: its standard output, or its standard error as the error.
pub async fn run(host: &Host, arguments: &[&str], kubeconfig: Option<&Path>) -> Result<String, String> {
    let mut command = host.command(tools::own("remora", "sidecar"));
    command.args(arguments.iter().map(OsStr::new));
    if let Some(kubeconfig) = kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    let output = tokio::process::Command::from(command).kill_on_drop(true).output().await;
    let output = output.map_err(|error| format!("cannot run remora: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{arguments:?}, {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// The endpoints that the rows of `remora endpoints -o json` name as usable: those of the first IPv4
/// row, sorted.
pub fn usable(rows: &Value) -> Result<Vec<String>, String> {
    let rows = rows.as_array().ok_or_else(|| format!("no array: {rows}"))?;
    let row = rows.iter().find(|row| row["family"] == "IPv4");
    let usable = row.and_then(|row| row["cluster"].as_array());
    let mut usable: Vec<String> =
        usable.into_iter().flatten().filter_map(|endpoint| endpoint.as_str().map(str::to_owned)).collect();
    usable.sort();
    Ok(usable)
}
