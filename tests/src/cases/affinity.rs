//! Session affinity by client address. In: a client, which is one address in each family. Never a
//! claim about which endpoint it is, only that it stays.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::{Client, Pod, SOON, wait_until};

const NAMES: [&str; 3] = ["one", "two", "three"];

fn affinity(kind: &str) -> Value {
    json!({"spec": {"sessionAffinity": kind}})
}

async fn pods(client: &Client) -> [Pod; 3] {
    let [one, two, three] = NAMES;
    [client.near("web", one).await, client.far("web", two).await, client.far("web", three).await]
}

/// Waits until many connections are all answered by the same: who it is.
async fn wait_stuck(client: &Client, address: SocketAddr) -> String {
    wait_until(SOON, &format!("{address} is answered by one endpoint only"), async || {
        let outcomes = client.try_to(address, 40).await;
        let answered: Result<BTreeSet<&str>, _> = outcomes.iter().map(|outcome| outcome.by()).collect();
        match answered {
            Ok(answered) if answered.len() == 1 => Ok(answered.into_iter().collect()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// service.go: "should be able to switch session affinity for service with type clusterIP".
pub async fn affinity_is_switched_on_and_off(client: &Client) {
    let web = client.service("web", json!({})).await;
    let _pods = pods(client).await;
    client.wait_served(&web.port(80), &NAMES, "there is no affinity").await;
    for _ in 0..2 {
        client.namespace.patch_service("web", affinity("ClientIP")).await;
        for address in web.port(80) {
            let one = wait_stuck(client, address).await;
            assert_eq!(wait_stuck(client, address).await, one, "it stays");
        }
        client.namespace.patch_service("web", affinity("None")).await;
        client.wait_served(&web.port(80), &NAMES, "there is no affinity any more").await;
    }
}

/// kube-proxy's unit tests: an endpoint that goes takes its pins along.
pub async fn a_client_whose_endpoint_goes_is_pinned_to_another(client: &Client) {
    let web = client.service("web", json!({"sessionAffinity": "ClientIP"})).await;
    let mut pods: Vec<Pod> = pods(client).await.into();
    let [address, _] = web.port(80);
    let all = async || match client.namespace.ready("web").await {
        Ok(ready) if ready.len() == 6 => Ok(()),
        other => Err(format!("{other:?}")),
    };
    wait_until(SOON, "all Pods are ready", all).await;
    let first = wait_stuck(client, address).await;
    let pinned = pods.iter().position(|pod| pod.name == first).expect("one of the Pods");
    let gone = pods.remove(pinned);
    gone.delete().await;
    gone.end().await;
    let second = wait_stuck(client, address).await;
    assert_ne!(second, first);
    assert_eq!(wait_stuck(client, address).await, second, "it stays");
}
