//! A client in a Pod, and what serves its connections: the node's kube-proxy alone, or Remora in
//! the same Pod. Whatever is true of it must be true both ways.
//!
//! ```text
//!   the client's Pod, on node-a        near Pods, on node-a      far Pods, on node-b
//!   ┌──────────────────────────┐
//!   │ program of user 1000 ────┼──▶ node-a's kube-proxy ──▶ an endpoint
//!   │        └──▶ (Remora) ────┼──────────────────────────▶ an endpoint
//!   └──────────────────────────┘
//! ```
//!
//! In: the way. Out: who answered connections from that Pod, or exactly how they failed. It never
//! connects from anywhere else, and never as root.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use rustix::io::Errno;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::{Cluster, Hub, Injected, Namespace, Node, Pod, SOON, World, tools, wait_until};

/// Who makes the connections: an ordinary user.
const USER: u32 = 1000;

/// Connections for each endpoint that is expected to answer: by chance, one of two is never drawn
/// in one of 2^39 times.
const EACH: usize = 20;

/// What serves the connections of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Its node's kube-proxy; nothing else is in the Pod.
    KubeProxy,
    /// Remora, in the Pod.
    Remora,
    /// The same, fed by a hub with what the Pod uses.
    OnDemand,
}

/// Owning one means that its Pod runs, and Remora in it if that is the way.
pub struct Client {
    injected: Option<Injected>,
    hub: Option<Hub>,
    /// Its Pod, labelled `app: client`, which serves too.
    pub pod: Pod,
    /// Where its Services and their Pods are.
    pub namespace: Namespace,
    /// Whose hosts and files these are.
    pub world: World,
}

/// What became of a connection.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was greeted, used and ended in good order.
    Answered {
        /// The name of who answered.
        by: String,
        /// The client's address, as the endpoint saw it.
        source: SocketAddr,
        /// The address at which the endpoint was reached.
        at: SocketAddr,
    },
    /// It failed.
    Failed {
        /// In what: `connect` is connect(2).
        step: String,
        /// The error's number, if the system gave one.
        errno: Option<i32>,
        /// The error in words.
        error: String,
    },
}

impl Outcome {
    /// connect(2) gave ECONNREFUSED.
    pub fn is_refused(&self) -> bool {
        self.is_errno_of_connect(Errno::CONNREFUSED)
    }

    /// connect(2) had no answer of any kind in more time than one SYN is waited for.
    pub fn is_silence(&self) -> bool {
        self.is_errno_of_connect(Errno::INPROGRESS)
    }

    fn is_errno_of_connect(&self, expected: Errno) -> bool {
        matches!(self, Outcome::Failed { step, errno: Some(errno), .. }
            if step == "connect" && *errno == expected.raw_os_error())
    }

    /// Who answered, or the failure.
    pub fn by(&self) -> Result<&str, &Outcome> {
        match self {
            Outcome::Answered { by, .. } => Ok(by),
            failed => Err(failed),
        }
    }
}

/// A Service's addresses, IPv4 first.
#[derive(Clone, Copy, Debug)]
pub struct Addresses(pub [IpAddr; 2]);

impl Addresses {
    /// Both with a port.
    pub fn port(&self, port: u16) -> [SocketAddr; 2] {
        self.0.map(|ip| SocketAddr::new(ip, port))
    }
}

impl Client {
    /// Puts a client on node-a of the shared cluster, and returns when connections go its way.
    pub async fn start(world: World, way: Way) -> Client {
        let namespace = Namespace::new(Cluster::shared().await).await;
        let [near, _] = namespace.cluster.nodes().await;
        let pod = Pod::ready(&world, &namespace, "client", "client", near).await;
        let mut client = Client { injected: None, hub: None, pod, namespace, world };
        match way {
            Way::KubeProxy => {}
            Way::Remora => client.inject().await,
            Way::OnDemand => client.feed(&[]).await,
        }
        client
    }

    /// Prepares the Pod for Remora, starts it, and waits until it takes connections.
    pub async fn inject(&mut self) {
        let injected = Injected::start(self).await;
        self.take(injected).await;
    }

    /// The same, fed by a hub; `more` are arguments of the sidecar.
    pub async fn feed(&mut self, more: &[&str]) {
        let hub = Hub::start(self);
        let injected = Injected::start_fed(self, &hub, more).await;
        self.hub = Some(hub);
        self.take(injected).await;
    }

    async fn take(&mut self, mut injected: Injected) {
        injected.wait_taking(self).await;
        self.injected = Some(injected);
    }

    /// Remora in the Pod.
    ///
    /// # Panics
    /// When that is not the way.
    pub fn remora(&self) -> &Injected {
        self.injected.as_ref().expect("Remora is in this Pod")
    }

    /// The hub that feeds it.
    ///
    /// # Panics
    /// When none does.
    pub fn hub(&self) -> &Hub {
        self.hub.as_ref().expect("a hub feeds this Pod")
    }

    /// The node of its Pod, and the other one.
    pub async fn nodes(&self) -> &[Node; 2] {
        self.namespace.cluster.nodes().await
    }

    /// A ready Pod on the client's node.
    pub async fn near(&self, app: &str, name: &str) -> Pod {
        let [near, _] = self.nodes().await;
        Pod::ready(&self.world, &self.namespace, app, name, near).await
    }

    /// A ready Pod on the other node.
    pub async fn far(&self, app: &str, name: &str) -> Pod {
        let [_, far] = self.nodes().await;
        Pod::ready(&self.world, &self.namespace, app, name, far).await
    }

    /// Creates a Service of both families, as [`Namespace::service`] does.
    pub async fn service(&self, name: &str, spec: Value) -> Addresses {
        let mut whole = json!({"ipFamilyPolicy": "RequireDualStack"});
        for (field, value) in spec.as_object().into_iter().flatten() {
            whole[field] = value.clone();
        }
        let service = self.namespace.service(name, whole).await;
        let ips = service.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().expect("an address")).collect();
        Addresses(ips.try_into().unwrap_or_else(|ips| panic!("not an address of each family: {ips:?}")))
    }

    /// Makes connections one after the other, no more after one has failed. Each is given the time of a machine that
    /// stands still now and then.
    pub async fn connect(&self, address: SocketAddr, times: usize) -> Vec<Outcome> {
        self.run("connect", address, times).await
    }

    /// The same for who comes again: no answer soon is an answer too.
    pub async fn try_to(&self, address: SocketAddr, times: usize) -> Vec<Outcome> {
        self.run("try", address, times).await
    }

    /// Makes one connection, and comes again.
    pub async fn try_once(&self, address: SocketAddr) -> Outcome {
        self.try_to(address, 1).await.remove(0)
    }

    /// Makes one connection and ends it without a word: whether it was made.
    pub async fn touch(&self, address: SocketAddr) -> bool {
        let open = format!("exec 3<>/dev/tcp/{}/{}", address.ip(), address.port());
        let mut command = self.pod.host.command_as(USER, &[], "/usr/bin/timeout");
        command.args(["10", "bash", "-c", &open]).stdin(Stdio::null()).stderr(Stdio::null());
        Command::from(command).kill_on_drop(true).status().await.expect("setpriv, of util-linux").success()
    }

    /// Sends many bytes through one connection and back, and compares them.
    pub async fn transfer(&self, address: SocketAddr, megabytes: usize) -> Outcome {
        self.run("transfer", address, megabytes).await.remove(0)
    }

    /// Sends bytes through as many connections at once and back, and compares them: some fast, some slowly, some ended
    /// early on one side, some reset on the way.
    pub async fn streams(&self, address: SocketAddr, times: usize) -> Vec<Outcome> {
        self.run("streams", address, times).await
    }

    /// Sends a datagram and waits for its answer.
    pub async fn ask(&self, address: SocketAddr) -> Outcome {
        self.run("ask", address, 1).await.remove(0)
    }

    /// Opens connections, which are in use until they are let go.
    ///
    /// # Panics
    /// When one is not answered.
    pub async fn hold(&self, address: SocketAddr, times: usize) -> Held {
        let mut child = self.command("hold", address, times).stdin(Stdio::piped()).spawn().expect("a client");
        let mut held = Held { lines: BufReader::new(child.stdout.take().expect("a pipe")), child };
        for number in 0..times {
            let outcome = held.next().await.expect("a line for each connection");
            outcome.by().unwrap_or_else(|failed| panic!("connection {number} of {times}: {failed:?}"));
        }
        held
    }

    /// Opens connections that say nothing and wait for nothing, answered or not, until the returned child is killed.
    pub fn clog(&self, address: SocketAddr, times: usize) -> Child {
        let (ip, port) = (address.ip(), address.port());
        let open =
            format!("for n in $(seq {times}); do exec {{fd}}<>/dev/tcp/{ip}/{port}; done; exec sleep 60");
        let mut command = self.pod.host.command_as(USER, &[], "bash");
        command.args(["-c", &open]).stdin(Stdio::null());
        Command::from(command).kill_on_drop(true).spawn().expect("setpriv, of util-linux")
    }

    /// Waits until connections are answered, and by each of these Pods and nobody else.
    pub async fn wait_served(&self, addresses: &[SocketAddr], by: &[&str], why: &str) {
        let expected: BTreeSet<String> = by.iter().map(|&name| name.to_owned()).collect();
        for &address in addresses {
            wait_until(SOON, &format!("{by:?} answer at {address}: {why}"), async || {
                let outcomes = self.try_to(address, EACH * by.len()).await;
                let answered: Result<BTreeSet<String>, _> =
                    outcomes.iter().map(|outcome| outcome.by().map(str::to_owned)).collect();
                match answered {
                    Ok(answered) if answered == expected => Ok(()),
                    other => Err(format!("{other:?}{}", self.state())),
                }
            })
            .await;
        }
    }

    /// Waits until connect(2) gives ECONNREFUSED.
    pub async fn wait_refused(&self, addresses: &[SocketAddr], why: &str) {
        self.wait_outcome(addresses, &format!("connect(2) is refused: {why}"), Outcome::is_refused).await;
    }

    /// Waits until connect(2) gets no answer.
    pub async fn wait_dropped(&self, addresses: &[SocketAddr], why: &str) {
        self.wait_outcome(addresses, &format!("connect(2) hangs: {why}"), Outcome::is_silence).await;
    }

    async fn wait_outcome(&self, addresses: &[SocketAddr], what: &str, expected: impl Fn(&Outcome) -> bool) {
        for &address in addresses {
            wait_until(SOON, &format!("at {address}: {what}"), async || {
                let outcome = self.try_once(address).await;
                if expected(&outcome) { Ok(()) } else { Err(format!("{outcome:?}{}", self.state())) }
            })
            .await;
        }
    }

    /// Checks, when a case is through, that its connections went the way they were meant to.
    pub async fn finish(self) {
        if let Some(injected) = &self.injected {
            injected.assert_taken().await;
        }
    }

    fn state(&self) -> String {
        self.injected.as_ref().map(|injected| format!("; {}", injected.state())).unwrap_or_default()
    }

    async fn run(&self, verb: &str, address: SocketAddr, number: usize) -> Vec<Outcome> {
        let output = self.command(verb, address, number).stdin(Stdio::null()).output().await;
        let output = output.expect("a client, by setpriv of util-linux");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the client of {address}: {}, {errors}", output.status);
        String::from_utf8_lossy(&output.stdout).lines().map(parse).collect()
    }

    fn command(&self, verb: &str, address: SocketAddr, number: usize) -> Command {
        let program = tools::for_everybody("remora-test-client", "tests");
        let mut command = self.pod.host.command_as(USER, &[], program);
        command.args([verb, &address.to_string(), &number.to_string()]);
        let mut command = Command::from(command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }
}

/// Owning one means that connections are open and in use.
pub struct Held {
    // Its input, when closed, ends it.
    child: Child,
    lines: BufReader<tokio::process::ChildStdout>,
}

impl Held {
    /// Ends the connections: those that broke before or did not end in good order.
    pub async fn let_go(mut self) -> Vec<Outcome> {
        drop(self.child.stdin.take());
        let mut broken = Vec::new();
        while let Some(outcome) = self.next().await {
            broken.push(outcome);
        }
        broken
    }

    async fn next(&mut self) -> Option<Outcome> {
        let mut line = String::new();
        self.lines.read_line(&mut line).await.expect("the client's output");
        (!line.is_empty()).then(|| parse(&line))
    }
}

fn parse(line: &str) -> Outcome {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("the client printed {line}: {error}"))
}
