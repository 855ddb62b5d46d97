//! Addresses of Services that are not of the captured ranges, called from inside: all as without
//! Remora. In: a client. Never a load balancer: its addresses are written where one would.

use std::net::{IpAddr, SocketAddr};

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::Client;

/// Addresses that are nobody else's, of documentation.
fn outside(client: &Client) -> [IpAddr; 2] {
    let number = client.namespace.number;
    let low = u8::try_from(number).expect("fewer than 256 namespaces in a test binary");
    [[203, 0, 113, low].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(low)].into()]
}

fn port(ips: [IpAddr; 2], port: u16) -> [SocketAddr; 2] {
    ips.map(|ip| SocketAddr::new(ip, port))
}

/// service.go: "should be possible to connect to a service via ExternalIP when the external IP is
/// not assigned to a node".
pub async fn an_external_ip_is_reached_from_inside(client: &Client) {
    let ips = outside(client);
    let web = client.service("web", json!({"externalIPs": ips})).await;
    let _pods = (client.near("web", "near").await, client.far("web", "far").await);
    client.wait_served(&port(ips, 80), &["near", "far"], "by the external IP").await;
    client.wait_served(&web.port(80), &["near", "far"], "by the cluster IP").await;
}

/// service.go: "should be able to connect … via load balancer"; from inside, the external policy is
/// Cluster whatever the Service says.
pub async fn a_load_balancers_address_is_reached_from_inside(client: &Client) {
    let ips = outside(client);
    let web = client.service("web", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"})).await;
    let ingress: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
    let status = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
    let written = client.namespace.services().patch_status("web", &PatchParams::default(), &status).await;
    written.expect("the load balancer's addresses are written");
    let far = client.far("web", "far").await;
    client.wait_served(&port(ips, 80), &["far"], "there is no local endpoint").await;
    let _near = client.near("web", "near").await;
    client.wait_served(&port(ips, 80), &["near", "far"], "by the load balancer's address").await;
    client.wait_served(&web.port(80), &["near", "far"], "by the cluster IP").await;
    drop(far);
}

/// service.go: "should be able to create a functioning NodePort service".
pub async fn a_node_port_is_reached_at_both_nodes(client: &Client) {
    let web = client.service("web", json!({"type": "NodePort"})).await;
    let _pods = (client.near("web", "near").await, client.far("web", "far").await);
    let service = client.namespace.services().get("web").await.expect("the Service");
    let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
    let number = ports[0].node_port.and_then(|number| u16::try_from(number).ok()).expect("a node port");
    for node in client.nodes().await {
        client.wait_served(&port(node.host.ips(), number), &["near", "far"], &node.name).await;
    }
    client.wait_served(&web.port(80), &["near", "far"], "by the cluster IP").await;
}
