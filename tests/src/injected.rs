//! Remora in a Pod, as an injected container has it: prepared once by root, then run as a user of
//! its own with one capability.
//!
//! In: a client's Pod on a node. Out: a sidecar that takes the Pod's connections to Services, to be
//! stopped, interrupted and killed. It reaches the API server through the Service `kubernetes`, as
//! every container does. It never has a way to the API server that the Pod has not.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::Signal;

use crate::cluster::{KUBERNETES, NODES, SERVICES};
use crate::container::{Container, File};
use crate::remora::run;
use crate::{Client, Host, Program, ask, tools, wait_until};

/// Who it is; the rules of `remora capture` tell its packets by this.
const USER: u32 = 64102;

const HEALTH: u16 = 64104;
const ADMIN: &str = "127.0.0.1:64103";

/// How long it may take to have its first table and to take connections, on a busy machine.
const READY: Duration = Duration::from_secs(30);

/// How long it may take to end without open connections.
const PROMPT: Duration = Duration::from_secs(20);

/// Owning one means that the Pod is prepared; the sidecar runs unless it was stopped or killed.
pub struct Injected {
    process: Process,
    health: SocketAddr,
    /// Connections that it had taken when it was first known to take any.
    before: u64,
}

/// A hub beside the cluster. Owning one means that it runs, unless it was killed.
pub struct Hub {
    /// The process.
    pub program: Program,
    place: PathBuf,
    _host: Host,
}

impl Hub {
    /// Starts one for the cluster of a client, without waiting for it.
    pub fn start(client: &Client) -> Hub {
        let place = client.world.own_folder().join("feed");
        let host = Host::new(&client.world, "hub");
        let mut command = host.command(tools::own("remora", "sidecar"));
        command.env("KUBECONFIG", client.namespace.cluster.kubeconfig());
        command.args(["hub", "--source", "kube", "--feed", &format!("unix:{}", place.display())]);
        Hub { program: Program::start(&client.world, "hub", command), place, _host: host }
    }

    /// What its readers name as their source.
    pub fn source(&self) -> String {
        format!("feed:unix:{}", self.place.display())
    }
}

/// How it runs.
enum Process {
    /// As a process of its user, whose one capability is ambient.
    Plain(Program),
    /// In a container, as a CRI makes it, where it has to raise what it has.
    Contained(Container),
}

impl Injected {
    /// Prepares the Pod of a client and starts the sidecar, without waiting for it.
    pub async fn start(client: &Client) -> Injected {
        prepare(&client.pod.host).await;
        Injected::start_again(client, "remora").await
    }

    /// Starts a sidecar in a Pod that is prepared. `name` is the name of its log.
    pub async fn start_again(client: &Client, name: &str) -> Injected {
        let program = tools::for_everybody("remora", "sidecar");
        Injected::start_as(client, name, client.pod.host.command_as(USER, &["net_raw"], program))
    }

    /// Prepares the Pod of a client and starts a sidecar that a hub feeds, without waiting for it.
    pub async fn start_fed(client: &Client, hub: &Hub, more: &[&str]) -> Injected {
        prepare(&client.pod.host).await;
        let mut command =
            client.pod.host.command_as(USER, &["net_raw"], tools::for_everybody("remora", "sidecar"));
        // A feed that asks for no token does not know where its readers are.
        let [(_, zone), _] = NODES;
        command.args(arguments(&hub.source())).args(["--zone", zone]).args(more);
        Injected::of(Process::Plain(Program::start(&client.world, "remora", command)), &client.pod.host)
    }

    /// The same with so many descriptors at most.
    pub async fn start_with_descriptors(client: &Client, name: &str, descriptors: u32) -> Injected {
        let mut command = client.pod.host.command_as(USER, &["net_raw"], "prlimit");
        command
            .arg(format!("--nofile={descriptors}:{descriptors}"))
            .arg(tools::for_everybody("remora", "sidecar"));
        Injected::start_as(client, name, command)
    }

    fn start_as(client: &Client, name: &str, mut command: Command) -> Injected {
        command.env("KUBECONFIG", write_kubeconfig(client)).args(arguments("kube"));
        Injected::of(Process::Plain(Program::start(&client.world, name, command)), &client.pod.host)
    }

    /// Starts a sidecar in a container, in a Pod that is prepared.
    pub async fn start_in_container(client: &Client) -> Injected {
        let host = &client.pod.host;
        let kubeconfig = File { name: "/kubeconfig", content: kubeconfig(client) };
        let container = Container::start(
            &client.world,
            host,
            &["CAP_NET_RAW"],
            &["KUBECONFIG=/kubeconfig"],
            &[kubeconfig],
            &arguments("kube").each_ref().map(String::as_str),
        );
        Injected::of(Process::Contained(container), host)
    }

    fn of(process: Process, host: &Host) -> Injected {
        Injected { process, health: (host.ip4(), HEALTH).into(), before: 0 }
    }

    fn program(&self) -> &Program {
        match &self.process {
            Process::Plain(program) => program,
            Process::Contained(container) => &container.program,
        }
    }

    /// Waits until it has a table and takes the client's connections.
    pub async fn wait_taking(&mut self, client: &Client) {
        let kubernetes = SocketAddr::from((KUBERNETES, 443));
        wait_until(READY, "Remora takes the Pod's connections", async || {
            client.touch(kubernetes).await;
            match self.metric("remora_connections_opened_total").await? {
                0 => {
                    let tables = self.metric("remora_table_version").await;
                    Err(format!("it took none, after {tables:?} tables; {}", self.state()))
                }
                _ => Ok(()),
            }
        })
        .await;
        self.before = self.metric("remora_connections_opened_total").await.expect("it told just above");
    }

    /// Checks that it has taken connections since it was first known to, or has had them refused or dropped.
    pub async fn assert_taken(&self) {
        let taken = self.metric("remora_connections_opened_total").await;
        let places = self.metric("remora_capture_ports").await;
        let served = self.metric("remora_capture_ports{verdict=\"serve\"}").await;
        let before = self.before;
        assert!(
            taken.as_ref().is_ok_and(|&taken| taken > before)
                || matches!((&places, &served), (Ok(places), Ok(served)) if places > served),
            "{taken:?} after {before}, {served:?} of {places:?} served: {}",
            self.state()
        );
    }

    /// The sum of a metric over all its labels, or what it is for those that are named with it.
    pub async fn metric(&self, name: &str) -> Result<u64, String> {
        let (_, page) = ask::get(self.health, "/metrics").await?;
        let ours = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let values =
            page.lines().filter(ours).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        Ok(values.sum())
    }

    /// The status that `/readyz` gives.
    pub async fn readiness(&self) -> Result<u16, String> {
        ask::get(self.health, "/readyz").await.map(|(status, _)| status)
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.program().kill();
    }

    /// Ends it in good order; no connection may be open.
    pub async fn stop(&self) -> ExitStatus {
        self.program().stop(PROMPT).await
    }

    /// Interrupts it: neither bytes nor heartbeats go out.
    pub fn pause(&self) {
        self.program().signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.program().signal(Signal::CONT);
    }

    /// Its state, to say why something did not happen.
    pub fn state(&self) -> String {
        self.program().state()
    }
}

/// The init step, as root: all Service addresses of the cluster are taken.
pub async fn prepare(host: &Host) {
    let [ip4, ip6] = SERVICES;
    let up = run(host, &["capture", "up", "--services", ip4, "--services", ip6], None).await;
    up.unwrap_or_else(|error| panic!("the Pod is not prepared: {error}"));
}

/// Undoes that.
pub async fn unprepare(host: &Host) {
    let down = run(host, &["capture", "down"], None).await;
    down.unwrap_or_else(|error| panic!("it is not undone: {error}"));
}

fn arguments(source: &str) -> [String; 10] {
    let [(node, _), _] = NODES;
    let health = format!("0.0.0.0:{HEALTH}");
    ["sidecar", "--capture", "--source", source, "--node", node, "--health", &health, "--admin", ADMIN]
        .map(str::to_owned)
}

/// The kubeconfig of Remora's user of the API server.
fn kubeconfig(client: &Client) -> String {
    client.namespace.cluster.kubeconfig_inside("remora").to_string()
}

/// Writes the kubeconfig where only the sidecar's user can read it.
fn write_kubeconfig(client: &Client) -> PathBuf {
    let path = client.world.own_folder().join("remora.kubeconfig");
    let done = fs::write(&path, kubeconfig(client))
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o400)))
        .and_then(|()| chown(&path, Some(USER), Some(USER)));
    done.unwrap_or_else(|error| panic!("cannot write {} for user {USER}: {error}", path.display()));
    path
}
