//! Which endpoints may serve from here: policies, hints, the end of a Pod. In: a client on node-a.
//! Never a condition written by hand, nor a hint but where one node to a zone is too few: the
//! controller makes them.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::create;
use crate::{Client, Pod};

fn local() -> Value {
    json!({"spec": {"internalTrafficPolicy": "Local"}})
}

/// service.go: "should respect internalTrafficPolicy=Local Pod to Pod".
pub async fn local_traffic_stays_on_the_node(client: &Client) {
    let web = client.service("web", json!({})).await;
    let near = client.near("web", "near").await;
    let _far = client.far("web", "far").await;
    client.wait_served(&web.port(80), &["near", "far"], "the policy is Cluster").await;
    client.namespace.patch_service("web", local()).await;
    client.wait_served(&web.port(80), &["near"], "the policy is Local").await;
    near.delete().await;
    near.end().await;
    client.wait_dropped(&web.port(80), "endpoints are on another node only").await;
    let _next = client.near("web", "next").await;
    client.wait_served(&web.port(80), &["next"], "a local endpoint has appeared").await;
}

/// Without endpoints anywhere, Local refuses as Cluster does; with some elsewhere, it drops.
pub async fn local_traffic_is_refused_without_endpoints_anywhere(client: &Client) {
    let web = client.service("web", json!({"internalTrafficPolicy": "Local"})).await;
    client.wait_refused(&web.port(80), "there is no endpoint anywhere").await;
    let far = client.far("web", "far").await;
    client.wait_dropped(&web.port(80), "an endpoint is on another node").await;
    far.delete().await;
    far.end().await;
    client.wait_refused(&web.port(80), "there is no endpoint anywhere again").await;
}

/// service.go: "should fallback to local terminating endpoints … internalTrafficPolicy=Local".
pub async fn local_terminating_endpoints_serve_before_ready_ones_elsewhere(client: &Client) {
    let web = client.service("web", json!({"internalTrafficPolicy": "Local"})).await;
    let near = client.near("web", "near").await;
    let _far = client.far("web", "far").await;
    client.wait_served(&web.port(80), &["near"], "it is local").await;
    near.delete().await;
    let none_ready = async || match client.namespace.ready("web").await {
        Ok(ready) if ready.len() == 2 => Ok(()),
        other => Err(format!("{other:?}")),
    };
    crate::wait_until(crate::SOON, "only the far endpoint is ready", none_ready).await;
    let next = client.near("web", "next").await;
    client
        .wait_served(&web.port(80), &["next"], "a ready local endpoint comes before a terminating one")
        .await;
    next.set_ready(false).await;
    client.wait_served(&web.port(80), &["near"], "terminating, but local").await;
}

/// service.go: "should fallback to terminating endpoints when there are no ready endpoints".
pub async fn terminating_endpoints_serve_when_there_are_no_others(client: &Client) {
    let web = client.service("web", json!({})).await;
    let pods = [client.near("web", "near").await, client.far("web", "far").await];
    client.wait_served(&web.port(80), &["near", "far"], "both are ready").await;
    for pod in &pods {
        pod.delete().await;
    }
    let none_ready = async || match client.namespace.ready("web").await {
        Ok(ready) if ready.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    };
    crate::wait_until(crate::SOON, "no endpoint is ready", none_ready).await;
    client.wait_served(&web.port(80), &["near", "far"], "both are terminating").await;
    let _next = client.far("web", "next").await;
    client.wait_served(&web.port(80), &["next"], "a ready one comes before terminating ones").await;
}

/// traffic_distribution.go: PreferSameZone.
pub async fn endpoints_hinted_for_the_zone_are_preferred(client: &Client) {
    prefers_near(client, "PreferSameZone").await;
}

/// traffic_distribution.go: PreferSameNode.
pub async fn endpoints_hinted_for_the_node_are_preferred(client: &Client) {
    prefers_near(client, "PreferSameNode").await;
}

async fn prefers_near(client: &Client, distribution: &str) {
    let web = client.service("web", json!({"trafficDistribution": distribution})).await;
    let near = client.near("web", "near").await;
    let _far = client.far("web", "far").await;
    client.wait_served(&web.port(80), &["near"], "it is hinted for here").await;
    near.set_ready(false).await;
    client.wait_served(&web.port(80), &["far"], "nothing that is hinted for here is ready").await;
    near.set_ready(true).await;
    client.wait_served(&web.port(80), &["near"], "it is ready again").await;
    client.namespace.patch_service("web", json!({"spec": {"trafficDistribution": null}})).await;
    client.wait_served(&web.port(80), &["near", "far"], "there are no hints").await;
}

/// proxy/topology.go: hints for the node come before hints for the zone, and either counts only if
/// every ready endpoint has one.
pub async fn hints_for_the_node_come_before_hints_for_the_zone(client: &Client) {
    let web = client.service("web", json!({"selector": null})).await;
    let pods = [
        client.near("by-hand", "one").await,
        client.near("by-hand", "two").await,
        client.far("by-hand", "three").await,
    ];
    let to = |nodes: [&str; 3], zones: [&str; 3]| {
        let hint = |i: usize| json!({"forNodes": [{"name": nodes[i]}], "forZones": [{"name": zones[i]}]});
        [0, 1, 2].map(hint)
    };
    let zones = ["zone-a", "zone-a", "zone-b"];
    for family in [0, 1] {
        let hints = to(["node-a", "node-b", "node-b"], zones);
        create::<EndpointSlice>(&client.namespace.slices(), slice(family, &pods, &hints)).await;
    }
    client.wait_served(&web.port(80), &["one"], "it is hinted for this node").await;
    hint(client, &pods, &to(["node-b", "node-b", "node-b"], zones)).await;
    client.wait_served(&web.port(80), &["one", "two"], "they are hinted for this zone").await;
    hint(client, &pods, &to(["node-b", "node-b", "node-b"], ["zone-b", "zone-b", "zone-b"])).await;
    client.wait_served(&web.port(80), &["one", "two", "three"], "none is hinted for here").await;
    let mut some = to(["node-a", "node-b", "node-b"], zones);
    some[2] = json!(null);
    hint(client, &pods, &some).await;
    client.wait_served(&web.port(80), &["one", "two", "three"], "one has no hint, so none counts").await;
}

/// A slice of the Service `web` with these endpoints and hints.
fn slice(family: usize, pods: &[Pod], hints: &[Value]) -> Value {
    let endpoint =
        |(pod, hints): (&Pod, &Value)| json!({"addresses": [pod.host.ips()[family]], "hints": hints});
    let endpoints: Vec<_> = pods.iter().zip(hints).map(endpoint).collect();
    let (name, address_type) = [("ipv4", "IPv4"), ("ipv6", "IPv6")][family];
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": address_type,
        "endpoints": endpoints,
        "ports": [{"name": "web", "port": 8080}],
    })
}

async fn hint(client: &Client, pods: &[Pod], hints: &[Value]) {
    for family in [0, 1] {
        let slice = slice(family, pods, hints);
        let name = slice["metadata"]["name"].as_str().expect("a name").to_owned();
        let patched =
            client.namespace.slices().patch(&name, &PatchParams::default(), &Patch::Merge(&slice)).await;
        patched.unwrap_or_else(|error| panic!("cannot hint {name}: {error}"));
    }
}
