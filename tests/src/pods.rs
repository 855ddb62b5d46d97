//! Pods: objects of the API server whose status the test writes, each with a real server process.
//!
//! In: a name, the label `app`, a node. Out: what a kubelet would make of it: the process on a host
//! of its own, the status, the end. The EndpointSlices are the real controller's. It never shortens
//! a Pod's life: deletion, termination and removal are three calls, in the order of a kubelet.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::create;
use crate::{Host, Namespace, Node, Program, World, tools, wait_until};

/// The port on which a Pod serves that was not told another, named `web`.
pub const PORT: u16 = 8080;

/// Where a Pod goes.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// To a node that is a name only: the Pod is a host on the bridge.
    Named(&'a str),
    /// To a node that runs: the Pod is behind it. Its server tells more in its greeting: name,
    /// address of the client, address that it serves at; and it serves UDP at the same ports.
    On(&'a Node),
}

impl<'a> From<&'a str> for Place<'a> {
    fn from(name: &'a str) -> Place<'a> {
        Place::Named(name)
    }
}

impl<'a> From<&'a Node> for Place<'a> {
    fn from(node: &'a Node) -> Place<'a> {
        Place::On(node)
    }
}

/// How long a server may take to start and, after its last connection, to end.
const PROMPT: Duration = Duration::from_secs(20);

/// Owning one means that its server runs and its addresses exist.
pub struct Pod {
    /// Its name, with which its server greets.
    pub name: String,
    /// Where its server runs.
    pub host: Host,
    api: Api<KubePod>,
    server: Program,
}

/// The connections that a server has had.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Counts {
    /// Accepted.
    pub accepted: u64,
    /// Accepted, and ended by the client in good order.
    pub served: u64,
}

impl Pod {
    /// Starts a server and creates its Pod with the label `app`, running but not ready.
    pub async fn start(
        world: &World,
        namespace: &Namespace,
        app: &str,
        name: &str,
        place: impl Into<Place<'_>>,
    ) -> Pod {
        Pod::start_at(world, namespace, app, name, place, &[("web", PORT)]).await
    }

    /// As [`Pod::start`], serving at these ports by these names.
    pub async fn start_at(
        world: &World,
        namespace: &Namespace,
        app: &str,
        name: &str,
        place: impl Into<Place<'_>>,
        ports: &[(&str, u16)],
    ) -> Pod {
        let numbers: Vec<u16> = ports.iter().map(|&(_, number)| number).collect();
        let (node, host, server) = match place.into() {
            Place::Named(node) => {
                let host = Host::new(world, name);
                let server = start_server(world, &host, name, &[], &addresses(&host, &numbers, "")).await;
                (node, host, server)
            }
            Place::On(node) => {
                let host = node.place(world, name);
                let served = [addresses(&host, &numbers, ""), addresses(&host, &numbers, "udp:")].concat();
                let server = start_server(world, &host, name, &["--tell"], &served).await;
                (node.name.as_str(), host, server)
            }
        };
        let api: Api<KubePod> = Api::namespaced(namespace.client.clone(), &namespace.name);
        let port = |&(name, number)| {
            let udp = format!("{name}-udp");
            [
                json!({"name": name, "containerPort": number}),
                json!({"name": udp, "containerPort": number, "protocol": "UDP"}),
            ]
        };
        let ports: Vec<_> = ports.iter().flat_map(port).collect();
        let spec =
            json!({"nodeName": node, "containers": [{"name": "web", "image": "none", "ports": ports}]});
        create(&api, json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": spec})).await;
        let pod = Pod { name: name.to_owned(), host, api, server };
        pod.set_ready(false).await;
        pod
    }

    /// Starts a server and creates its Pod, ready.
    pub async fn ready(
        world: &World,
        namespace: &Namespace,
        app: &str,
        name: &str,
        place: impl Into<Place<'_>>,
    ) -> Pod {
        let pod = Pod::start(world, namespace, app, name, place).await;
        pod.set_ready(true).await;
        pod
    }

    /// Where its server listens in IPv4, as EndpointSlices make an endpoint of it.
    pub fn address(&self) -> String {
        format!("{}:{PORT}", self.host.ip4())
    }

    /// Writes its status: running, its addresses, ready or not.
    pub async fn set_ready(&self, ready: bool) {
        let [ip, ip6] = self.host.ips();
        let ready = if ready { "True" } else { "False" };
        self.write_status(json!({
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}, {"ip": ip6}],
            "conditions": [{"type": "Ready", "status": ready}],
        }))
        .await;
    }

    /// Deletes it with the usual grace: it is terminating, its server runs on.
    pub async fn delete(&self) {
        let deleted = self.api.delete(&self.name, &DeleteParams::default()).await;
        deleted.unwrap_or_else(|error| panic!("cannot delete {}: {error}", self.name));
    }

    /// Ends its server in good order (SIGTERM), takes its addresses away and removes the object.
    ///
    /// # Panics
    /// When the server does not end, which it does as soon as no connection is open.
    pub async fn end(self) -> Counts {
        let status = self.server.stop(PROMPT).await;
        assert!(status.success(), "{}", self.server.state());
        let output = self.server.output();
        let last = output.lines().last().unwrap_or_default();
        let counts = serde_json::from_str(last);
        let counts =
            counts.unwrap_or_else(|error| panic!("{} printed no counts ({error}): {output}", self.name));
        drop(self.host);
        self.api.delete(&self.name, &DeleteParams::default().grace_period(0)).await.ok();
        counts
    }

    /// Kills its server without a word; the object stays as it is.
    pub fn kill(&self) {
        self.server.kill();
    }

    async fn write_status(&self, status: Value) {
        let patch = Patch::Merge(json!({"status": status}));
        let written = self.api.patch_status(&self.name, &PatchParams::default(), &patch).await;
        written.unwrap_or_else(|error| panic!("cannot write the status of {}: {error}", self.name));
    }
}

/// Starts a server that greets with `name` on both addresses of a host, and waits until it listens.
pub async fn serve(world: &World, host: &Host, name: &str, port: u16) -> Program {
    start_server(world, host, name, &[], &addresses(host, &[port], "")).await
}

async fn start_server(
    world: &World,
    host: &Host,
    name: &str,
    options: &[&str],
    addresses: &[String],
) -> Program {
    let mut command = host.command(tools::own("remora-test-endpoint", "tests"));
    command.args(options).arg(name).args(addresses);
    let server = Program::start(world, name, command);
    wait_until(PROMPT, "the endpoint listens", async || match server.output().starts_with("listening") {
        true => Ok(()),
        false => Err(server.state()),
    })
    .await;
    server
}

/// Both addresses of a host with each of these ports, as the server takes them.
fn addresses(host: &Host, ports: &[u16], prefix: &str) -> Vec<String> {
    let both = |&port: &u16| host.ips().map(|ip| format!("{prefix}{}", SocketAddr::new(ip, port)));
    ports.iter().flat_map(both).collect()
}
