//! The policies of a Service at its node ports, with two `remora node` beside each other: which of them answers, which
//! endpoints serve, what load balancers are told. They are the end-to-end cases of Kubernetes for node ports and health
//! checks, with the names of Kubernetes in the comments.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;
use serde_json::json;
use tests::node_ports::{Met, at, met, node_port, number, refused, wait_met};
use tests::{Cluster, Namespace, Pod, SOON, Sidecar, World, ask, wait_until};

tests::tests! {
    a_policy_that_changes_is_followed_by_node_ports_and_health_checks,
    terminating_endpoints_serve_node_ports_when_there_are_no_others,
    under_policy_local_terminating_endpoints_serve_and_the_health_check_fails,
    endpoints_that_are_not_ready_serve_only_if_they_are_published,
    affinity_at_a_node_port_is_switched_and_times_out,
}

/// Two nodes of the cluster, each with its node ports.
async fn two(world: &World, namespace: &Namespace) -> [Sidecar; 2] {
    let kubeconfig = namespace.cluster.kubeconfig();
    [
        Sidecar::node(world, &kubeconfig, "node-a", &[]).await,
        Sidecar::node(world, &kubeconfig, "node-b", &[]).await,
    ]
}

/// The names that answer 40 connections.
async fn answering(address: SocketAddr) -> Result<BTreeSet<String>, String> {
    let mut names = BTreeSet::new();
    for _ in 0..40 {
        names.insert(met(address).await.map_err(|error| format!("{error:?}"))?);
    }
    Ok(names)
}

async fn wait_answering(address: SocketAddr, expected: &[&str]) {
    wait_until(SOON, &format!("{expected:?} answer at {address}"), async || {
        let names = answering(address).await?;
        if names.iter().eq(expected) { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
}

/// The health check of `web`.
async fn health_check(namespace: &Namespace) -> u16 {
    let spec = namespace.services().get("web").await.expect("the Service").spec.expect("a spec");
    spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).expect("a health check")
}

async fn wait_healthy(node: &Sidecar, port: u16, status: u16) {
    let address = SocketAddr::new(node.host.ip4().into(), port);
    wait_until(SOON, &format!("the health check at {address} says {status}"), async || {
        match ask::get(address, "/healthz").await {
            Ok((is, _)) if is == status => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

fn silent(met: &Met) -> bool {
    *met == Err(Some(Errno::TIMEDOUT))
}

/// "should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes"
async fn a_policy_that_changes_is_followed_by_node_ports_and_health_checks(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let [near, far] = two(&world, &namespace).await;
    let _pod = Pod::ready(&world, &namespace, "web", "web-0", "node-a").await;
    namespace.service("web", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"})).await;
    let (port, check) = (number(&namespace).await, health_check(&namespace).await);
    wait_healthy(&near, check, 200).await;
    wait_healthy(&far, check, 503).await;
    wait_met(&near, at(&near, port)[0], "its endpoint answers", Result::is_ok).await;
    wait_met(&far, at(&far, port)[0], "nobody answers", silent).await;

    namespace.patch_service("web", json!({"spec": {"externalTrafficPolicy": "Cluster"}})).await;
    for node in [&near, &far] {
        wait_met(node, at(node, port)[0], "any endpoint answers", Result::is_ok).await;
        wait_met(node, at(node, check)[0], "there is no health check", refused).await;
    }

    namespace.patch_service("web", json!({"spec": {"externalTrafficPolicy": "Local"}})).await;
    let check = health_check(&namespace).await;
    wait_healthy(&near, check, 200).await;
    wait_healthy(&far, check, 503).await;
    wait_met(&far, at(&far, port)[0], "nobody answers again", silent).await;
}

/// "should fallback to terminating endpoints when there are no ready endpoints with externalTrafficPolicy=Cluster"
async fn terminating_endpoints_serve_node_ports_when_there_are_no_others(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let [node, _] = two(&world, &namespace).await;
    let old = Pod::ready(&world, &namespace, "web", "old", "node-b").await;
    let [v4, _] = at(&node, node_port(&namespace, json!({})).await);
    wait_answering(v4, &["old"]).await;
    old.delete().await;
    wait_until(SOON, "no endpoint is ready", async || match namespace.ready("web").await {
        Ok(ready) if ready.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    wait_answering(v4, &["old"]).await;
    let _new = Pod::ready(&world, &namespace, "web", "new", "node-b").await;
    wait_answering(v4, &["new"]).await;
}

/// "should fallback to local terminating endpoints when there are no ready endpoints with
/// externalTrafficPolicy=Local", "should fail health check node port if there are only terminating endpoints"
async fn under_policy_local_terminating_endpoints_serve_and_the_health_check_fails(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let [near, far] = two(&world, &namespace).await;
    let old = Pod::ready(&world, &namespace, "web", "old", "node-a").await;
    let _ready_elsewhere = Pod::ready(&world, &namespace, "web", "elsewhere", "node-b").await;
    namespace.service("web", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"})).await;
    let (port, check) = (number(&namespace).await, health_check(&namespace).await);
    wait_healthy(&near, check, 200).await;
    wait_answering(at(&near, port)[0], &["old"]).await;
    old.delete().await;
    wait_healthy(&near, check, 503).await;
    wait_answering(at(&near, port)[0], &["old"]).await;
    wait_answering(at(&far, port)[0], &["elsewhere"]).await;
    old.end().await;
    wait_met(&near, at(&near, port)[0], "nobody answers", silent).await;
}

/// "should be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is true", "should not …
/// if PublishNotReadyAddresses is false"
async fn endpoints_that_are_not_ready_serve_only_if_they_are_published(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let [node, _] = two(&world, &namespace).await;
    let pod = Pod::start(&world, &namespace, "web", "web-0", "node-b").await;
    let [v4, _] = at(&node, node_port(&namespace, json!({})).await);
    for (publishes, what) in [(true, "it is published"), (false, "it is not"), (true, "it is again")] {
        namespace.patch_service("web", json!({"spec": {"publishNotReadyAddresses": publishes}})).await;
        let is_it = |met: &Met| if publishes { met.is_ok() } else { refused(met) };
        wait_met(&node, v4, what, is_it).await;
    }
    pod.delete().await;
    wait_answering(v4, &["web-0"]).await;
}

/// "should be able to switch session affinity for NodePort service", "should have session affinity timeout work for
/// NodePort service"
async fn affinity_at_a_node_port_is_switched_and_times_out(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let [node, _] = two(&world, &namespace).await;
    let mut pods = Vec::new();
    for n in 0..3 {
        pods.push(Pod::ready(&world, &namespace, "web", &format!("web-{n}"), "node-b").await);
    }
    let [v4, _] = at(&node, node_port(&namespace, json!({})).await);
    wait_answering(v4, &["web-0", "web-1", "web-2"]).await;
    namespace.patch_service("web", json!({"spec": {"sessionAffinity": "ClientIP"}})).await;
    wait_until(SOON, "one endpoint has the client", async || match answering(v4).await? {
        names if names.len() == 1 => Ok(()),
        names => Err(format!("{names:?}")),
    })
    .await;
    let short = json!({"clientIP": {"timeoutSeconds": 1}});
    namespace.patch_service("web", json!({"spec": {"sessionAffinityConfig": short}})).await;
    let first = met(v4).await.expect("an answer");
    wait_until(SOON, "a client that was away for longer meets another one", async || {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let next = met(v4).await;
        if next.as_ref().is_ok_and(|next| *next != first) { Ok(()) } else { Err(format!("{next:?}")) }
    })
    .await;
    namespace
        .patch_service("web", json!({"spec": {"sessionAffinity": "None", "sessionAffinityConfig": null}}))
        .await;
    wait_answering(v4, &["web-0", "web-1", "web-2"]).await;
}
