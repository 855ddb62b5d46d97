//! What becomes of new connections to each Service port, and what differs between two tables. In: tables. Out: what to
//! signal. Never sends anything, and keeps nothing: the tables say it all.

use std::collections::HashSet;
use std::net::SocketAddr;

use selection::{
    Destination, Draw, Flow, Path, Protocol, Question, Seed, ServicePort, Table, Tallies, Tried, Verdict,
};

use crate::capture::agreement::Signal;

/// A place of which something else is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) address: SocketAddr,
    /// What was said of it.
    pub(super) before: Signal,
    /// What is to be said.
    pub(super) signal: Signal,
}

/// All that `table` says, each place once.
pub(super) fn all(table: &Table) -> impl Iterator<Item = (SocketAddr, Signal)> + '_ {
    let claimed = table.all().flat_map(|port| places(port).filter(|place| claims(table, port, place)));
    claimed.map(|place| (place.into(), signal(table, &place)))
}

/// What is to be said now that `table` follows `earlier`. Looks at what may differ, not at everything.
pub(super) fn turns(earlier: &Table, table: &Table) -> Vec<Turn> {
    let differing = earlier.differing(table).chain(table.differing(earlier));
    let places: HashSet<Destination> = differing.flat_map(|port| places(port)).collect();
    let turns = places.into_iter().map(|place| Turn {
        address: place.into(),
        before: signal(earlier, &place),
        signal: signal(table, &place),
    });
    turns.filter(|turn| turn.before != turn.signal).collect()
}

/// Where a Pod may dial `port` by TCP, but for the nodes, which are never captured.
fn places(port: &ServicePort) -> impl Iterator<Item = Destination> + '_ {
    let is_ours =
        |(place, path): &(Destination, Path)| place.protocol == Protocol::Tcp && *path != Path::NodePort;
    port.destinations().filter(is_ours).map(|(place, _)| place)
}

/// `port` is the one that has `place`, if more than one claim it.
fn claims(table: &Table, port: &ServicePort, place: &Destination) -> bool {
    table.at(place).is_some_and(|(_, claimant)| std::ptr::eq(&raw const **claimant, port))
}

/// What every connection of this Pod to `place` comes to. The pick says it: without endpoints it depends on nothing but
/// who may use a load balancer, and that is for the connection itself to find out.
fn signal(table: &Table, place: &Destination) -> Signal {
    let Some((path, port)) = table.at(place) else { return Signal::Pass };
    if path == Path::LoadBalancer && !port.source_ranges.is_empty() {
        return Signal::Serve;
    }
    let flow = Flow { client: (*place).into(), inside: true };
    let question = Question {
        path,
        flow,
        draw: Draw::new(&Seed(0, 0), &flow, 0),
        now: 0,
        pin: None,
        tried: &Tried::default(),
    };
    match selection::pick(port, &question, &Tallies) {
        Verdict::Endpoint(..) => Signal::Serve,
        Verdict::Refuse => Signal::Refuse,
        Verdict::Drop => Signal::Drop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use selection::{
        Balance, Change, Fact, Family, Here, Kind, Port, Service, ServiceName, Slice, SlicePort,
    };

    fn service(number: u8, internal_local: bool) -> Service {
        Service {
            name: ServiceName::new("shop", format!("web-{number}").as_str()),
            kind: Kind::ClusterIp,
            cluster_ips: Box::new([[10, 96, 0, number].into()]),
            ports: [Protocol::Tcp, Protocol::Udp]
                .map(|protocol| Port { name: "p".into(), protocol, port: 80, node_port: 0 })
                .into(),
            external_ips: Box::default(),
            load_balancer_vips: Box::default(),
            source_ranges: Box::default(),
            internal_local,
            external_local: false,
            affinity_seconds: None,
            health_check_node_port: 0,
            has_selector: true,
            proxy_protocol: false,
            proxy_name: None,
            balance: Balance::LeastConnections,
        }
    }

    fn change(service: &Service, has_endpoint: bool) -> Change {
        let endpoints: Box<[Fact]> = if has_endpoint {
            Box::new([Fact {
                ip: [10, 244, 0, 1].into(),
                ready: true,
                serving: true,
                terminating: false,
                node: None,
                zone: None,
                hints: None,
                pod: None,
            }])
        } else {
            Box::default()
        };
        let slice = Slice {
            name: "s".into(),
            family: Some(Family::V4),
            headless: false,
            ports: Box::new([SlicePort { name: Some("p".into()), protocol: Protocol::Tcp, port: 80 }]),
            endpoints,
            triggered: None,
        };
        let ports = selection::build(service, &[&slice], &Here::default(), &[]);
        Change { service: service.name.clone(), ports }
    }

    fn at(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 96, 0, number], 80))
    }

    /// What is to be said, in the order of addresses.
    fn said(earlier: &Table, table: &Table) -> Vec<(SocketAddr, Signal)> {
        let mut said: Vec<_> =
            turns(earlier, table).into_iter().map(|turn| (turn.address, turn.signal)).collect();
        said.sort_by_key(|(address, _)| *address);
        said
    }

    fn all_of(table: &Table) -> Vec<(SocketAddr, Signal)> {
        let mut said: Vec<_> = all(table).collect();
        said.sort_by_key(|(address, _)| *address);
        said
    }

    #[test]
    fn a_port_is_served_refused_or_dropped_as_its_endpoints_are_and_passes_when_it_is_gone() {
        let (cluster, local) = (service(1, false), service(2, true));
        let empty = Table::default();
        let first = empty.with(&[change(&cluster, false), change(&local, true)]);
        assert_eq!(said(&empty, &first), [(at(1), Signal::Refuse), (at(2), Signal::Drop)]);
        assert_eq!(all_of(&first), said(&empty, &first));

        let second = first.with(&[change(&cluster, true)]);
        assert_eq!(said(&first, &second), [(at(1), Signal::Serve)]);
        assert_eq!(all_of(&second), [(at(1), Signal::Serve), (at(2), Signal::Drop)]);
        assert_eq!(turns(&first, &second)[0].before, Signal::Refuse);

        let third = second.with(&[change(&local, false)]);
        assert_eq!(said(&second, &third), [(at(2), Signal::Refuse)]);

        let gone = third.with(&[Change { service: local.name.clone(), ports: Vec::new() }]);
        assert_eq!(said(&third, &gone), [(at(2), Signal::Pass)]);
        assert_eq!(all_of(&gone), [(at(1), Signal::Serve)]);
    }

    #[test]
    fn a_place_that_two_claim_is_said_once_and_stays_when_one_of_them_goes() {
        let with_external = |number| {
            let ips: Box<[_]> = Box::new([[203, 0, 113, 1].into()]);
            Service { external_ips: ips, ..service(number, false) }
        };
        let (one, two) = (with_external(1), with_external(2));
        let external = SocketAddr::from(([203, 0, 113, 1], 80));
        let empty = Table::default();
        let both = empty.with(&[change(&one, true), change(&two, false)]);
        let of_both = [(at(1), Signal::Serve), (at(2), Signal::Refuse), (external, Signal::Serve)];
        assert_eq!(said(&empty, &both), of_both);
        assert_eq!(all_of(&both), of_both);

        let second = both.with(&[Change { service: one.name.clone(), ports: Vec::new() }]);
        assert_eq!(said(&both, &second), [(at(1), Signal::Pass), (external, Signal::Refuse)]);
        let neither = second.with(&[Change { service: two.name.clone(), ports: Vec::new() }]);
        assert_eq!(said(&second, &neither), [(at(2), Signal::Pass), (external, Signal::Pass)]);
    }

    #[test]
    fn who_may_use_a_load_balancer_is_for_the_connection_to_find_out() {
        let mut web = service(1, false);
        web.kind = Kind::LoadBalancer;
        web.load_balancer_vips = Box::new([[203, 0, 113, 1].into()]);
        web.source_ranges = Box::new(["10.0.0.0/8".parse().unwrap()]);
        let empty = Table::default();
        let table = empty.with(&[change(&web, false)]);
        let vip = SocketAddr::from(([203, 0, 113, 1], 80));
        assert_eq!(said(&empty, &table), [(at(1), Signal::Refuse), (vip, Signal::Serve)]);
    }

    #[test]
    fn a_change_of_one_service_says_nothing_of_the_others() {
        let services: Vec<Service> = (1..=200).map(|number| service(number, false)).collect();
        let changes: Vec<Change> = services.iter().map(|service| change(service, false)).collect();
        let empty = Table::default();
        let first = empty.with(&changes);
        assert_eq!(turns(&empty, &first).len(), 200);
        let second = first.with(&[change(&services[6], true)]);
        assert_eq!(said(&first, &second), [(at(7), Signal::Serve)]);
    }
}
