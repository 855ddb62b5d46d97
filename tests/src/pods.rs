//! Pods: objects of the API server whose status the test writes, each with a real server process.
//!
//! In: a name, the label `app`, a node. Out: what a kubelet would make of it: the process on a host
//! of its own, the status, the end. The EndpointSlices are the real controller's. It never shortens
//! a Pod's life: deletion, termination and removal are three calls, in the order of a kubelet.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::create;
use crate::{Host, Namespace, Program, World, tools, wait_until};

/// The port on which every Pod serves, named `web`.
pub const PORT: u16 = 8080;

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
    pub async fn start(world: &World, namespace: &Namespace, app: &str, name: &str, node: &str) -> Pod {
        let host = Host::new(world, name);
        let server = serve(world, &host, name, PORT).await;
        let api: Api<KubePod> = Api::namespaced(namespace.client.clone(), &namespace.name);
        let spec = json!({
            "nodeName": node,
            "containers": [{"name": "web", "image": "none", "ports": [{"name": "web", "containerPort": PORT}]}],
        });
        create(&api, json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": spec})).await;
        let pod = Pod { name: name.to_owned(), host, api, server };
        pod.set_ready(false).await;
        pod
    }

    /// Starts a server and creates its Pod, ready.
    pub async fn ready(world: &World, namespace: &Namespace, app: &str, name: &str, node: &str) -> Pod {
        let pod = Pod::start(world, namespace, app, name, node).await;
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
    let mut command = host.command(tools::own("remora-test-endpoint", "tests"));
    command.arg(name).args([format!("{}:{port}", host.ip4()), format!("[{}]:{port}", host.ip6())]);
    let server = Program::start(world, name, command);
    wait_until(PROMPT, "the endpoint listens", async || match server.output().starts_with("listening") {
        true => Ok(()),
        false => Err(server.state()),
    })
    .await;
    server
}
