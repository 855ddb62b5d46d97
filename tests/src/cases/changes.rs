//! Services that come, go and change what they are. In: a client. Never a new client for a change:
//! who knew the old Service meets the new one.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::client::Addresses;
use crate::cluster::create;
use crate::{Client, Pod};

/// service.go: "should be rejected when no endpoints exist".
pub async fn connect_is_refused_without_endpoints_until_one_appears(client: &Client) {
    let web = client.service("web", json!({})).await;
    client.wait_refused(&web.port(80), "there has never been an endpoint").await;
    let pod = client.far("web", "pod").await;
    client.wait_served(&web.port(80), &["pod"], "an endpoint has appeared").await;
    pod.delete().await;
    pod.end().await;
    client.wait_refused(&web.port(80), "the only endpoint is gone").await;
    let _pod = client.near("web", "next").await;
    client.wait_served(&web.port(80), &["next"], "the next endpoint has appeared").await;
}

/// An endpoint that exists but is not ready is none.
pub async fn connect_is_refused_while_no_endpoint_is_ready(client: &Client) {
    let web = client.service("web", json!({})).await;
    let pod = client.far("web", "pod").await;
    client.wait_served(&web.port(80), &["pod"], "it is ready").await;
    pod.set_ready(false).await;
    client.wait_refused(&web.port(80), "it is not ready").await;
    pod.set_ready(true).await;
    client.wait_served(&web.port(80), &["pod"], "it is ready again").await;
}

/// service.go: "should work after the service has been recreated".
pub async fn a_service_is_deleted_and_made_again_at_its_address(client: &Client) {
    let web = client.service("web", json!({})).await;
    let _pod = client.far("web", "pod").await;
    client.wait_served(&web.port(80), &["pod"], "the first Service").await;
    let deleted = client.namespace.services().delete("web", &DeleteParams::default()).await;
    deleted.expect("the Service is deleted");
    client.wait_dropped(&web.port(80), "the Service is deleted").await;
    let again = client.service("web", json!({"clusterIP": web.0[0], "clusterIPs": web.0})).await;
    assert_eq!(again.0, web.0);
    client.wait_served(&web.port(80), &["pod"], "it was made again").await;
}

/// Addresses of the range that no Service has ever had: kube-proxy, which knows the ServiceCIDR,
/// drops what is for them.
pub async fn an_address_of_no_service_is_left_to_the_node(client: &Client) {
    let nobody = Addresses([[10, 96, 250, 250].into(), [0xfd00, 0x96, 0, 0, 0, 0, 0, 0xfafa].into()]);
    client.wait_dropped(&nobody.port(80), "no Service has this address").await;
    // And a Service beside it is none the worse.
    let web = client.service("web", json!({})).await;
    let _pod = client.far("web", "pod").await;
    client.wait_served(&web.port(80), &["pod"], "its neighbour is a Service").await;
}

/// service.go: "should be able to change the type from ClusterIP to ExternalName" and back.
pub async fn a_service_becomes_an_external_name_and_back(client: &Client) {
    let web = client.service("web", json!({})).await;
    let _pod = client.far("web", "pod").await;
    client.wait_served(&web.port(80), &["pod"], "it has a cluster IP").await;
    let external = json!({"spec": {"type": "ExternalName", "externalName": "shop.example"}});
    client.namespace.patch_service("web", external).await;
    client.wait_dropped(&web.port(80), "it is an external name, its address is free").await;
    let back = json!({
        "type": "ClusterIP",
        "externalName": null,
        "ipFamilyPolicy": "RequireDualStack",
        "clusterIP": web.0[0],
        "clusterIPs": web.0,
    });
    client.namespace.patch_service("web", json!({"spec": back})).await;
    client.wait_served(&web.port(80), &["pod"], "it has its cluster IP again").await;
}

/// service.go: "should be able to change the type from ClusterIP to NodePort", without a gap.
pub async fn a_service_keeps_its_address_through_other_types(client: &Client) {
    let web = client.service("web", json!({})).await;
    let _pod = client.far("web", "pod").await;
    for kind in ["ClusterIP", "NodePort", "LoadBalancer", "ClusterIP"] {
        client.namespace.patch_service("web", json!({"spec": {"type": kind}})).await;
        client.wait_served(&web.port(80), &["pod"], kind).await;
    }
}

/// service.go: "should implement service.kubernetes.io/service-proxy-name".
pub async fn a_service_of_another_proxy_goes_the_nodes_way(client: &Client) {
    let label = |value| json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": value}}});
    let web = client.service("web", json!({})).await;
    let _pod = client.far("web", "pod").await;
    client.wait_served(&web.port(80), &["pod"], "it has no label").await;
    client.namespace.patch_service("web", label(json!("another"))).await;
    client.wait_dropped(&web.port(80), "another proxy serves it, and there is none here").await;
    client.namespace.patch_service("web", label(json!(null))).await;
    client.wait_served(&web.port(80), &["pod"], "the label is gone").await;
}

/// service.go: "should implement service.kubernetes.io/headless".
pub async fn slices_labelled_headless_are_not_used(client: &Client) {
    let web = client.service("web", json!({})).await;
    let _pod = client.far("web", "pod").await;
    // The controller keeps the labels of its own slices, so these are the test's.
    let legacy = client.near("legacy", "legacy").await;
    for name in ["IPv4", "IPv6"] {
        create::<EndpointSlice>(&client.namespace.slices(), slice(name, &legacy)).await;
    }
    client.wait_served(&web.port(80), &["pod", "legacy"], "all slices are used").await;
    label_slices(client, json!("")).await;
    client.wait_served(&web.port(80), &["pod"], "two slices are labelled").await;
    label_slices(client, json!(null)).await;
    client.wait_served(&web.port(80), &["pod", "legacy"], "the labels are gone").await;
}

/// A slice of the Service `web`, written by hand.
fn slice(family: &str, pod: &Pod) -> serde_json::Value {
    let [ip4, ip6] = pod.host.ips();
    json!({
        "metadata": {"name": family.to_lowercase(), "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": family,
        "endpoints": [{"addresses": [if family == "IPv4" { ip4 } else { ip6 }]}],
        "ports": [{"name": "web", "port": 8080}],
    })
}

async fn label_slices(client: &Client, value: serde_json::Value) {
    let patch = Patch::Merge(json!({"metadata": {"labels": {"service.kubernetes.io/headless": value}}}));
    for name in ["ipv4", "ipv6"] {
        let patched = client.namespace.slices().patch(name, &PatchParams::default(), &patch).await;
        patched.unwrap_or_else(|error| panic!("cannot label {name}: {error}"));
    }
}

/// service.go: "should create endpoints for unready pods", and for a Service that tolerates none.
pub async fn unready_endpoints_serve_if_they_are_published(client: &Client) {
    let web = client.service("web", json!({"publishNotReadyAddresses": true})).await;
    let pod = client.far("web", "pod").await;
    pod.set_ready(false).await;
    client.wait_served(&web.port(80), &["pod"], "it is published though not ready").await;
    let publish = |publish: bool| json!({"spec": {"publishNotReadyAddresses": publish}});
    client.namespace.patch_service("web", publish(false)).await;
    client.wait_refused(&web.port(80), "it is not published and not ready").await;
    client.namespace.patch_service("web", publish(true)).await;
    client.wait_served(&web.port(80), &["pod"], "it is published again").await;
}
