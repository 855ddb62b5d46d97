//! A Service port as a row of plain data, for people and programs: what `remora endpoints -o json` prints.

use std::net::IpAddr;

use serde::Serialize;

use crate::{Endpoint, Family, Protocol, ServicePort};

/// One Service port of one family, with the endpoints usable here. Lists of addresses are sorted as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "each field is the field of the same name of ServicePort, as text")]
pub struct Row {
    pub service: String,
    pub family: Family,
    pub port: String,
    pub protocol: Protocol,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    pub service_port: u16,
    pub node_port: u16,
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    #[serde(rename = "loadBalancerVIPs")]
    pub load_balancer_vips: Vec<String>,
    pub source_ranges: Vec<String>,
    pub affinity_seconds: u32,
    pub health_check_node_port: u16,
    pub internal_local: bool,
    pub external_local: bool,
    pub cluster: Vec<String>,
    pub local: Vec<String>,
    pub has_any: bool,
}

impl From<&ServicePort> for Row {
    fn from(port: &ServicePort) -> Self {
        let endpoints = |is_member: fn(&&Endpoint) -> bool| {
            sorted(port.endpoints.iter().filter(is_member).map(|endpoint| endpoint.address))
        };
        Self {
            service: port.id.service.to_string(),
            family: port.id.family,
            port: port.id.port.to_string(),
            protocol: port.id.protocol,
            cluster_ip: port.cluster_ip.map_or_else(|| "None".to_owned(), |ip| ip.to_string()),
            service_port: port.port,
            node_port: port.node_port,
            external_ips: sorted::<IpAddr>(port.external_ips.iter().copied()),
            load_balancer_vips: sorted::<IpAddr>(port.load_balancer_vips.iter().copied()),
            source_ranges: sorted(port.source_ranges.iter().copied()),
            affinity_seconds: port.affinity_seconds.unwrap_or(0),
            health_check_node_port: port.health_check_node_port,
            internal_local: port.internal_local,
            external_local: port.external_local,
            cluster: endpoints(|endpoint| endpoint.in_cluster),
            local: endpoints(|endpoint| endpoint.in_local),
            has_any: port.has_any,
        }
    }
}

fn sorted<T: ToString>(values: impl Iterator<Item = T>) -> Vec<String> {
    let mut texts: Vec<String> = values.map(|value| value.to_string()).collect();
    texts.sort_unstable();
    texts
}
