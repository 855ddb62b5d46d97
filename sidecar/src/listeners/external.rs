//! The addresses of an external name as Service ports, so that picking, retries and passive health are those of every
//! other Service. In: a name's addresses. Out: a port for each family, made by the very constructor of a table's.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use selection::{Fact, Family, Here, Kind, Port, Protocol, Service, ServicePort, Slice, SlicePort, Symbol};

use super::way::Outside;

/// The ports behind `outside`, whose name has the addresses `ips`, but for `own`, where connections would come back.
/// Endpoints that `old` has too keep their account.
pub(super) fn ports(
    outside: &Outside,
    ips: &[IpAddr],
    own: SocketAddr,
    here: &Here,
    old: &[Arc<ServicePort>],
) -> Arc<[Arc<ServicePort>]> {
    let port = Port { name: Symbol::default(), protocol: Protocol::Tcp, port: outside.port, node_port: 0 };
    let slice = |family| {
        let ips = ips.iter().filter(|ip| Family::of(ip) == family);
        let others = ips.filter(|ip| SocketAddr::new(**ip, outside.port) != own);
        Slice {
            name: family.to_string().into(),
            family: Some(family),
            headless: false,
            ports: [SlicePort { name: Some(Symbol::default()), protocol: Protocol::Tcp, port: outside.port }]
                .into(),
            endpoints: others.copied().map(ready).collect(),
            triggered: None,
        }
    };
    let slices = [Family::V4, Family::V6].map(slice);
    let slices: Vec<&Slice> = slices.iter().filter(|slice| !slice.endpoints.is_empty()).collect();
    let service = Service {
        name: outside.service.clone(),
        kind: Kind::Headless,
        cluster_ips: Box::default(),
        ports: [port].into(),
        external_ips: Box::default(),
        load_balancer_vips: Box::default(),
        source_ranges: Box::default(),
        internal_local: false,
        external_local: false,
        affinity_seconds: None,
        health_check_node_port: 0,
        has_selector: false,
        proxy_name: None,
        proxy_protocol: false,
        balance: outside.balance,
    };
    selection::build(&service, &slices, here, old).into()
}

/// An address of which nothing is known but that it is one.
fn ready(ip: IpAddr) -> Fact {
    Fact {
        ip,
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone: None,
        hints: None,
        pod: None,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Name;
    use selection::{Balance, ServiceName};

    use super::*;

    #[test]
    fn each_family_has_a_port_and_an_address_that_stays_keeps_its_account() {
        let outside = Outside {
            service: ServiceName::new("shop", "db"),
            name: Name::from_ascii("db.example.").unwrap(),
            port: 5432,
            balance: Balance::Random,
        };
        let ips: [IpAddr; 3] =
            [[192, 0, 2, 1].into(), [192, 0, 2, 2].into(), std::net::Ipv6Addr::LOCALHOST.into()];
        let own = "192.0.2.2:5432".parse().unwrap();
        let (here, none) = (Here::default(), []);
        let first = ports(&outside, &ips, own, &here, &none);
        let addresses =
            |port: &ServicePort| port.endpoints.iter().map(|e| e.address.to_string()).collect::<Vec<_>>();
        assert_eq!(
            first.iter().map(|port| addresses(port)).collect::<Vec<_>>(),
            [["192.0.2.1:5432"], ["[::1]:5432"]]
        );
        let next = ports(&outside, &ips[..2], "[::]:1".parse().unwrap(), &here, &first);
        assert_eq!((next.len(), addresses(&next[0]).len()), (1, 2));
        assert!(Arc::ptr_eq(&next[0].endpoints[0].tally, &first[0].endpoints[0].tally));
        assert_eq!(next[0].destinations().count(), 0, "no address leads to it");
    }
}
