//! Which endpoints may serve from here: policies, hints, the end of a Pod. In: a client on node-a.
//! Never a hint or a condition written by hand: the controller makes them.

use serde_json::{Value, json};

use crate::Client;

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
