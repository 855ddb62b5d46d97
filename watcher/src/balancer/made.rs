//! The Service that a load balancer's own store is told of: its addresses are those of the pool, its endpoints the node
//! ports of healthy nodes. So all that chooses an endpoint elsewhere chooses a node here. In: a claim, nodes, what probes
//! said. Out: items of a store. Never a decision that a table makes.

use std::net::IpAddr;

use selection::{Balance, Fact, Family, Kind, Protocol, ServiceName, Slice, SlicePort, Symbol};
use serde_json::Value;

use super::Claim;
use crate::object::{Object, Reading};
use crate::store::{Item, Kind as Of};

/// A node that connections may go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: Symbol,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<Symbol>,
    /// `status.addresses` of type `InternalIP`.
    pub ips: Vec<IpAddr>,
    /// Load balancers are to leave it out.
    pub is_excluded: bool,
}

/// Keeps a node out, whatever its value, unless that is `false`.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

impl Node {
    /// Reads an object. Whether it is ready does not count (KEP-3458): its node ports may work all the same, and probes
    /// tell.
    pub fn read(object: &Value) -> Option<Self> {
        let Ok(Reading { object: Object::Node { name, zone, is_eligible }, .. }) =
            Object::of_kind(Of::Node, object)
        else {
            return None;
        };
        let excluded = object.pointer("/metadata/labels").and_then(|labels| labels.get(EXCLUDED)?.as_str());
        let addresses = object.pointer("/status/addresses").and_then(Value::as_array).into_iter().flatten();
        let internal = addresses.filter(|address| address["type"] == "InternalIP");
        let ips = internal.filter_map(|address| address["address"].as_str()?.parse().ok()).collect();
        let is_labelled = excluded.is_some_and(|value| value != "false");
        Some(Self { name, zone, ips, is_excluded: is_labelled || !is_eligible })
    }
}

/// The Service of `claim` with these addresses.
pub(super) fn service(claim: &Claim, addresses: &[IpAddr]) -> Option<Item> {
    let mut service = claim.service.clone()?;
    service.kind = Kind::LoadBalancer;
    service.load_balancer_vips = addresses.into();
    service.external_ips = Box::default();
    service.proxy_name = None;
    // Which node has endpoints of its own is what its health check tells.
    (service.external_local, service.internal_local) = (false, false);
    service.health_check_node_port = 0;
    service.ports.iter_mut().for_each(|port| port.node_port = 0);
    if service.balance == Balance::Off {
        service.balance = Balance::default();
    }
    let is_tcp = |port: &selection::Port| port.protocol == Protocol::Tcp;
    service.ports = service.ports.into_iter().filter(is_tcp).collect();
    Some(Item::Service(service))
}

/// The slice of `family`: an endpoint for each node, ready if `is_healthy` says so of it.
pub(super) fn nodes<'a>(
    claim: &Claim,
    family: Family,
    nodes: impl Iterator<Item = &'a Node>,
    is_healthy: impl Fn(&Node) -> bool,
) -> Item {
    let ports = claim.tcp().filter(|port| port.node_port != 0).map(|port| SlicePort {
        name: Some(port.name.clone()),
        protocol: port.protocol,
        port: port.node_port,
    });
    let endpoints = nodes.filter(|node| !node.is_excluded).filter_map(|node| {
        let ip = node.ips.iter().find(|ip| Family::of(ip) == family)?;
        Some(Fact {
            ip: *ip,
            ready: is_healthy(node),
            serving: true,
            terminating: false,
            node: Some(node.name.clone()),
            zone: node.zone.clone(),
            hints: None,
            pod: None,
        })
    });
    let name = match family {
        Family::V4 => "nodes-ipv4",
        Family::V6 => "nodes-ipv6",
    };
    let slice = Slice {
        name: format!("{}-{name}", claim.name.name).into(),
        family: Some(family),
        headless: false,
        ports: ports.collect(),
        endpoints: endpoints.collect(),
        triggered: None,
    };
    item(&claim.name, slice)
}

/// A slice of the Service's own, of which only the ports are used that have no node port.
pub(super) fn own(claim: &Claim, slice: &Slice) -> Item {
    let mut slice = slice.clone();
    let is_portless = |port: &SlicePort| {
        claim.tcp().any(|of| {
            of.node_port == 0 && Some(&of.name) == port.name.as_ref() && of.protocol == port.protocol
        })
    };
    slice.ports = slice.ports.into_iter().filter(is_portless).collect();
    item(&claim.name, slice)
}

fn item(service: &ServiceName, slice: Slice) -> Item {
    Item::Slice {
        namespace: service.namespace.clone(),
        service: Some(service.name.clone()),
        slice: Box::new(slice),
        hosts: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(labels: Value, taints: Value, ready: &str) -> Node {
        Node::read(&json!({
            "metadata": {"name": "a", "labels": labels},
            "spec": {"taints": taints},
            "status": {
                "addresses": [
                    {"type": "Hostname", "address": "a"},
                    {"type": "ExternalIP", "address": "198.51.100.1"},
                    {"type": "InternalIP", "address": "10.0.0.1"},
                    {"type": "InternalIP", "address": "fd00::1"},
                ],
                "conditions": [{"type": "Ready", "status": ready}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_node_is_left_out_by_label_and_taint_and_not_because_it_is_not_ready() {
        let plain = node(json!({}), json!([]), "False");
        assert!(!plain.is_excluded);
        assert_eq!(plain.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.1", "fd00::1"]);
        assert!(node(json!({EXCLUDED: ""}), json!([]), "True").is_excluded);
        assert!(!node(json!({EXCLUDED: "false"}), json!([]), "True").is_excluded);
        let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
        assert!(node(json!({}), taint, "True").is_excluded);
    }

    #[test]
    fn a_made_up_service_leads_from_the_pools_addresses_to_the_node_ports() {
        let object = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": super::super::CLASS, "externalTrafficPolicy": "Local",
                "clusterIPs": ["10.96.0.1"], "healthCheckNodePort": 32000, "sessionAffinity": "ClientIP",
                "loadBalancerSourceRanges": ["203.0.113.0/24"],
                "ports": [
                    {"name": "http", "port": 80, "nodePort": 30080},
                    {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053},
                    {"name": "raw", "port": 81},
                ],
            },
        });
        let claim = Claim::read(&object, super::super::CLASS, false).unwrap();
        assert_eq!((claim.check(), claim.is_portless()), (Some(32000), true));
        let ip: IpAddr = "192.0.2.7".parse().unwrap();
        let Some(Item::Service(service)) = service(&claim, &[ip]) else { panic!("no Service") };
        assert_eq!(&*service.load_balancer_vips, [ip]);
        assert_eq!(service.ports.len(), 2, "TCP only");
        assert!(!service.external_local && service.affinity_seconds.is_some());
        assert_eq!(service.source_ranges.len(), 1);
        let plain = node(json!({}), json!([]), "True");
        let Item::Slice { slice, .. } = nodes(&claim, Family::V6, [&plain].into_iter(), |_| false) else {
            panic!("no slice");
        };
        assert_eq!(slice.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [30080]);
        assert_eq!(
            (slice.endpoints[0].ip.to_string(), slice.endpoints[0].ready),
            ("fd00::1".to_owned(), false)
        );
    }
}
