//! Which Service ports refuse or drop every connection, from one table to the next. In: tables. Out: what to signal.
//! Never sends anything.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use selection::{
    Destination, Draw, Flow, Path, Protocol, Question, Seed, ServicePort, Table, Tallies, Tried, Verdict,
};

use crate::capture::agreement::{Signal, VERDICT_LASTS};

/// Ports that are remembered because the node refused them; more of them are refused one by one.
const REFUSED_MOST: usize = 256;

/// Every verdict that holds.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    /// Those of Service ports, until a table says otherwise.
    ports: HashMap<SocketAddr, Signal>,
    /// Ports that a Service does not have, at its address, and when the node refused a connection there.
    refused: HashMap<SocketAddr, Instant>,
}

impl Verdicts {
    /// What to signal after the node refused a captured connection to `address`. Where the table knows the Service of
    /// that address, and no such port of it, it will refuse the next one too, and better in `connect()` itself.
    pub(super) fn node_refused(&mut self, address: SocketAddr, table: &Table) -> Option<Signal> {
        self.refused.retain(|_, at| at.elapsed() < VERDICT_LASTS);
        let destination = Destination::new(address, Protocol::Tcp);
        let lacks_port = || table.all().any(|port| port.cluster_ip == destination.ip);
        if self.refused.len() >= REFUSED_MOST || table.at(&destination).is_some() || !lacks_port() {
            return None;
        }
        self.refused.insert(address, Instant::now());
        Some(Signal::Refuse)
    }

    /// What to signal now that `table` follows `earlier`. Looks at what may differ, not at everything.
    pub(super) fn change(&mut self, earlier: &Table, table: &Table) -> Vec<(SocketAddr, Signal)> {
        let old: HashMap<_, _> = earlier.differing(table).filter_map(|port| verdict(port)).collect();
        let new: HashMap<_, _> = table.differing(earlier).filter_map(|port| verdict(port)).collect();
        let mut changes = Vec::new();
        self.refused.retain(|address, at| {
            let is_served = table.at(&Destination::new(*address, Protocol::Tcp)).is_some();
            if is_served {
                changes.push((*address, Signal::Serve));
            }
            !is_served && at.elapsed() < VERDICT_LASTS
        });
        for address in old.keys().filter(|address| !new.contains_key(address)) {
            self.ports.remove(address);
            changes.push((*address, Signal::Serve));
        }
        for (address, signal) in new {
            if self.ports.insert(address, signal) != Some(signal) {
                changes.push((address, signal));
            }
        }
        changes
    }

    /// All that hold, to be said again.
    pub(super) fn all(&self) -> impl Iterator<Item = (SocketAddr, Signal)> {
        self.ports.iter().map(|(address, signal)| (*address, *signal))
    }
}

/// What every connection of this Pod to the `ClusterIP` of `port` comes to, if nobody serves them. The pick says it;
/// without endpoints it depends on nothing else.
fn verdict(port: &ServicePort) -> Option<(SocketAddr, Signal)> {
    if port.id.protocol != Protocol::Tcp {
        return None;
    }
    let address = SocketAddr::new(port.cluster_ip, port.port);
    let flow = Flow { client: address, inside: true };
    let question = Question {
        path: Path::ClusterIp,
        flow,
        draw: Draw::new(&Seed(0, 0), &flow, 0),
        now: 0,
        pin: None,
        tried: &Tried::default(),
    };
    match selection::pick(port, &question, &Tallies) {
        Verdict::Endpoint(..) => None,
        Verdict::Refuse => Some((address, Signal::Refuse)),
        Verdict::Drop => Some((address, Signal::Drop)),
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

    #[test]
    fn a_service_without_endpoints_is_refused_and_one_without_local_endpoints_dropped_until_they_are_served()
    {
        let (cluster, local) = (service(1, false), service(2, true));
        let mut verdicts = Verdicts::default();
        let empty = Table::default();
        let first = empty.with(&[change(&cluster, false), change(&local, true)]);
        let mut said = verdicts.change(&empty, &first);
        said.sort_by_key(|(address, _)| *address);
        assert_eq!(said, [(at(1), Signal::Refuse), (at(2), Signal::Drop)]);
        assert_eq!(verdicts.all().count(), 2);

        let second = first.with(&[change(&cluster, true)]);
        assert_eq!(verdicts.change(&first, &second), [(at(1), Signal::Serve)]);
        assert_eq!(verdicts.all().collect::<Vec<_>>(), [(at(2), Signal::Drop)]);

        let third = second.with(&[change(&local, false)]);
        assert_eq!(verdicts.change(&second, &third), [(at(2), Signal::Refuse)]);

        let gone = third.with(&[Change { service: local.name.clone(), ports: Vec::new() }]);
        assert_eq!(verdicts.change(&third, &gone), [(at(2), Signal::Serve)]);
        assert_eq!(verdicts.all().count(), 0);
    }

    #[test]
    fn a_port_that_a_service_lacks_is_refused_once_the_node_did_and_served_once_it_has_it() {
        let web = service(1, false);
        let mut verdicts = Verdicts::default();
        let empty = Table::default();
        let table = empty.with(&[change(&web, true)]);
        assert_eq!(verdicts.change(&empty, &table), []);
        let (lacking, unknown) =
            (SocketAddr::from(([10, 96, 0, 1], 81)), SocketAddr::from(([10, 96, 0, 9], 80)));
        assert_eq!(verdicts.node_refused(lacking, &table), Some(Signal::Refuse));
        assert_eq!(verdicts.node_refused(unknown, &table), None, "it may be somebody else's Service");
        assert_eq!(verdicts.node_refused(at(1), &table), None, "the table knows better");
        assert_eq!(verdicts.all().count(), 0, "nothing says that it stays so");

        let mut more = web.clone();
        more.ports = Box::new([Port { name: "p".into(), protocol: Protocol::Tcp, port: 81, node_port: 0 }]);
        let next = table.with(&[change(&more, true)]);
        assert_eq!(verdicts.change(&table, &next), [(lacking, Signal::Serve)]);
        assert_eq!(verdicts.change(&table, &next), [], "once is enough");
    }

    #[test]
    fn a_change_of_one_service_says_nothing_of_the_others() {
        let services: Vec<Service> = (1..=200).map(|number| service(number, false)).collect();
        let all: Vec<Change> = services.iter().map(|service| change(service, false)).collect();
        let (empty, mut verdicts) = (Table::default(), Verdicts::default());
        let first = empty.with(&all);
        assert_eq!(verdicts.change(&empty, &first).len(), 200);
        let second = first.with(&[change(&services[6], true)]);
        assert_eq!(verdicts.change(&first, &second), [(at(7), Signal::Serve)]);
    }
}
