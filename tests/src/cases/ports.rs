//! Ports of Services: several, changed, named. In: a client. Never anything of a protocol's content.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::cluster::create;
use crate::{Client, Outcome, Pod};

const WEB: (&str, u16) = ("web", 8080);
const ADMIN: (&str, u16) = ("admin", 9090);

fn web() -> Value {
    json!({"name": "web", "port": 80, "targetPort": "web"})
}

fn admin() -> Value {
    json!({"name": "admin", "port": 81, "targetPort": "admin"})
}

/// A ready Pod on the far node that serves at these ports.
async fn serving(client: &Client, name: &str, ports: &[(&str, u16)]) -> Pod {
    let [_, far] = client.nodes().await;
    let pod = Pod::start_at(&client.world, &client.namespace, "web", name, far, ports).await;
    pod.set_ready(true).await;
    pod
}

/// At which ports of endpoints connections end up.
async fn ends(client: &Client, address: SocketAddr) -> BTreeSet<u16> {
    let port = |outcome| match outcome {
        Outcome::Answered { at, .. } => at.port(),
        failed => panic!("{address}: {failed:?}"),
    };
    client.connect(address, 40).await.into_iter().map(port).collect()
}

/// service.go: "should serve multiport endpoints from pods".
pub async fn each_port_of_a_service_leads_to_its_own(client: &Client) {
    let web = client.service("web", json!({"ports": [web(), admin()]})).await;
    let _pod = serving(client, "pod", &[WEB, ADMIN]).await;
    client.wait_served(&web.port(80), &["pod"], "the first port").await;
    client.wait_served(&web.port(81), &["pod"], "the second port").await;
    for (first, second) in web.port(80).into_iter().zip(web.port(81)) {
        assert_eq!(ends(client, first).await, [8080].into());
        assert_eq!(ends(client, second).await, [9090].into());
    }
}

/// service.go: "should be updated after adding or deleting ports".
pub async fn a_port_is_added_and_removed(client: &Client) {
    let at = client.service("web", json!({"ports": [web()]})).await;
    let _pod = serving(client, "pod", &[WEB, ADMIN]).await;
    client.wait_served(&at.port(80), &["pod"], "the only port").await;
    client.wait_refused(&at.port(81), "the Service has no such port").await;
    client.namespace.patch_service("web", json!({"spec": {"ports": [web(), admin()]}})).await;
    client.wait_served(&at.port(81), &["pod"], "the port was added").await;
    client.namespace.patch_service("web", json!({"spec": {"ports": [admin()]}})).await;
    client.wait_refused(&at.port(80), "the port was removed").await;
    client.wait_served(&at.port(81), &["pod"], "the other port stays").await;
}

/// service.go: "should serve endpoints on same port and different protocols" and named targetPorts.
pub async fn a_named_port_means_another_number_on_each_endpoint(client: &Client) {
    let web = client.service("web", json!({})).await;
    let _old = serving(client, "old", &[("web", 8080)]).await;
    let _new = serving(client, "new", &[("web", 9090)]).await;
    client.wait_served(&web.port(80), &["old", "new"], "each at its own number").await;
    for address in web.port(80) {
        assert_eq!(ends(client, address).await, [8080, 9090].into());
    }
}

/// endpointslice.go: "should support a Service with multiple ports/endpoint IPs specified in
/// multiple EndpointSlices".
pub async fn slices_written_by_hand_serve_together(client: &Client) {
    let web = client.service("web", json!({"selector": null, "ports": [web(), admin()]})).await;
    let near = client.near("by-hand", "near").await;
    let [_, far] = client.nodes().await;
    let ports = [WEB, ADMIN];
    let far = Pod::start_at(&client.world, &client.namespace, "by-hand", "far", far, &ports).await;
    for (name, pod, (port, number)) in
        [("near-web", &near, WEB), ("far-web", &far, WEB), ("far-admin", &far, ADMIN)]
    {
        for (family, ip) in ["IPv4", "IPv6"].into_iter().zip(pod.host.ips()) {
            let slice = json!({
                "metadata": {
                    "name": format!("{name}-{}", family.to_lowercase()),
                    "labels": {"kubernetes.io/service-name": "web"},
                },
                "addressType": family,
                "endpoints": [{"addresses": [ip]}],
                "ports": [{"name": port, "port": number}],
            });
            create::<EndpointSlice>(&client.namespace.slices(), slice).await;
        }
    }
    client.wait_served(&web.port(80), &["near", "far"], "one port, two slices of each family").await;
    client.wait_served(&web.port(81), &["far"], "the other port, one slice of each family").await;
}

/// networking.go: "should function for pod-Service: udp"; DNS is a Service like this one.
pub async fn udp_goes_the_nodes_way_beside_tcp_on_the_same_port(client: &Client) {
    let udp = json!({"name": "dns", "protocol": "UDP", "port": 53, "targetPort": "web-udp"});
    let tcp = json!({"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": "web"});
    let dns = client.service("web", json!({"ports": [udp, tcp]})).await;
    let _pod = serving(client, "pod", &[WEB]).await;
    client.wait_served(&dns.port(53), &["pod"], "over TCP").await;
    for (family, address) in dns.port(53).into_iter().enumerate() {
        crate::wait_until(crate::SOON, &format!("{address} answers over UDP"), async || {
            match client.ask(address).await {
                Outcome::Answered { by, source, .. } if by == "pod" => {
                    assert_eq!(source.ip(), client.pod.host.ips()[family], "called by the Pod itself");
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}
