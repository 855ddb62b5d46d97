//! The shop: a Service `web` over a few Pods, with a sidecar before it. What most tests begin with.
//!
//! In: a cluster and a number of Pods. Out: all of it running, the sidecar using all endpoints. It
//! never hides a failed connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::{Cluster, Namespace, Pod, Sidecar, World, load, wait_until};

/// How soon a change must be everywhere, on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// The controllers back off for up to half a minute after an API server that was killed.
const CONTROLLER: Duration = Duration::from_secs(120);

/// Owning one means that its programs run.
pub struct Shop {
    /// The sidecar, listening for `web:80` at its port 8080.
    pub sidecar: Sidecar,
    /// The Pods behind the Service, `web-0` and on, on the nodes in turn.
    pub pods: Vec<Pod>,
    /// Where the Service is.
    pub namespace: Namespace,
    /// `NAMESPACE/web`.
    pub service: String,
}

impl Shop {
    /// Opens a shop with this many Pods, and returns when the sidecar uses them all.
    pub async fn open(world: &World, cluster: Arc<Cluster>, pods: usize) -> Shop {
        let namespace = Namespace::new(cluster).await;
        namespace.service("web", json!({})).await;
        let mut running = Vec::new();
        for number in 0..pods {
            running.push(pod(world, &namespace, number).await);
        }
        let service = format!("{}/web", namespace.name);
        let listen = format!("8080={service}:80");
        let sidecar = Sidecar::ready(world, &namespace.cluster.kubeconfig(), &[&listen]).await;
        let shop = Shop { sidecar, pods: running, namespace, service };
        shop.wait_controller().await;
        shop.wait_settled().await;
        shop
    }

    /// Adds a Pod, ready; nobody has to have noticed when this returns.
    pub async fn add(&mut self, world: &World, number: usize) {
        self.pods.push(pod(world, &self.namespace, number).await);
    }

    /// Waits until the slices have exactly the Pods of the shop, whatever the sidecar knows.
    pub async fn wait_controller(&self) {
        wait_until(CONTROLLER, "the controller has seen the Pods", async || {
            match self.namespace.ready("web").await {
                Ok(ready) if ready == self.addresses() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Waits until the sidecar uses exactly the Pods of the shop.
    pub async fn wait_settled(&self) {
        self.sidecar.wait_endpoints(SOON, &self.service, &self.addresses()).await;
    }

    /// The addresses of the Pods, sorted.
    pub fn addresses(&self) -> Vec<String> {
        let mut addresses: Vec<_> = self.pods.iter().map(Pod::address).collect();
        addresses.sort();
        addresses
    }

    /// Makes connections one after the other: how many each Pod has answered.
    ///
    /// # Panics
    /// When one of them fails.
    pub async fn visit(&self, times: usize) -> BTreeMap<String, usize> {
        let mut answers = BTreeMap::new();
        for time in 0..times {
            let answer = load::connect(self.sidecar.address(8080)).await;
            let name = answer.unwrap_or_else(|error| {
                panic!("connection {time} of {times} failed: {error}; {}", self.sidecar.program.state())
            });
            *answers.entry(name).or_default() += 1;
        }
        answers
    }

    /// Makes connections and checks that each of these Pods, and nobody else, has answered some.
    pub async fn assert_served_by(&self, names: &[&str]) {
        let answers = self.visit(names.len() * 40).await;
        assert_eq!(answers.keys().map(String::as_str).collect::<Vec<_>>(), names, "{answers:?}");
    }
}

async fn pod(world: &World, namespace: &Namespace, number: usize) -> Pod {
    let (node, _) = crate::cluster::NODES[number % crate::cluster::NODES.len()];
    Pod::ready(world, namespace, "web", &format!("web-{number}"), node).await
}
