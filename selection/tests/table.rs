//! The table agrees with a naive one over any sequence of changes: who has a destination, whatever the order
//! in which Services come, change and go.
#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]

mod sample;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;
use selection::{
    Balance, Change, Destination, Family, Here, Path, Port, Protocol, Service, ServiceName, ServicePort,
    Table, build,
};

/// A Service in few words, so that many collide.
#[derive(Clone, Debug)]
struct Sketch {
    name: usize,
    v4: u8,
    v6: Option<u8>,
    external: Vec<u8>,
    vips: Vec<u8>,
    /// Number, protocol and node port; the name is made of the first two.
    ports: Vec<(u16, Protocol, u16)>,
}

fn v4(last: u8) -> IpAddr {
    IpAddr::from([10, 96, 0, last])
}

fn v6(last: u8) -> IpAddr {
    IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)])
}

fn name(i: usize) -> ServiceName {
    ServiceName::new(["shop", "shop", "bank"][i % 3], format!("web-{}", i / 2))
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let port = (
        80..83u16,
        select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp]),
        select(vec![0, 0, 30_000, 30_001u16]),
    );
    let few = || vec(1..5u8, 0..3);
    (0..6usize, 1..5u8, prop::option::of(1..5u8), few(), few(), btree_set(port, 0..3)).prop_map(
        |(name, v4, v6, external, vips, ports)| Sketch {
            name,
            v4,
            v6,
            external,
            vips,
            ports: ports.into_iter().collect(),
        },
    )
}

impl Sketch {
    fn service(&self) -> Service {
        let both = |lasts: &[u8]| lasts.iter().flat_map(|last| [v4(*last), v6(*last)]).collect();
        let port = |(number, protocol, node_port): &(u16, Protocol, u16)| Port {
            name: format!("{number}-{protocol}-{node_port}").into(),
            protocol: *protocol,
            port: *number,
            node_port: *node_port,
        };
        Service {
            name: name(self.name),
            cluster_ips: [v4(self.v4)].into_iter().chain(self.v6.map(v6)).collect(),
            external_ips: both(&self.external),
            load_balancer_vips: both(&self.vips),
            ports: self.ports.iter().map(port).collect(),
            ..sample::service("any", [0; 4], Balance::Random)
        }
    }
}

/// Services by name with their sketches and built ports: the naive table.
type Naive = BTreeMap<ServiceName, (Sketch, Vec<Arc<ServicePort>>)>;

/// Every destination that a sketch can have, and a few that none has.
fn universe() -> Vec<Destination> {
    let ips = (0..6).flat_map(|last| [v4(last), v6(last)]);
    let mut all: Vec<Destination> = ips
        .flat_map(|ip| (79..84).map(move |port| (ip, port)))
        .flat_map(|(ip, port)| {
            [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| Destination { ip, port, protocol })
        })
        .collect();
    for family in [Family::V4, Family::V6] {
        for port in 29_999..30_003 {
            all.extend(
                [Protocol::Tcp, Protocol::Udp].map(|protocol| Destination::node(family, port, protocol)),
            );
        }
    }
    all
}

/// Who has `destination` among all: cluster IPs before load balancers before external IPs before node ports,
/// then by name, family, port name and protocol.
fn owner(naive: &Naive, destination: &Destination) -> Option<(Path, Arc<ServicePort>)> {
    let mut claims = Vec::new();
    for (sketch, ports) in naive.values() {
        for (number, protocol, node_port) in &sketch.ports {
            for port in ports {
                let family = port.id.family;
                if *port.id.port != *format!("{number}-{protocol}-{node_port}")
                    || *protocol != destination.protocol
                {
                    continue;
                }
                let is = |ip: IpAddr, number: u16| destination.ip == ip && destination.port == number;
                let has = |lasts: &[u8]| {
                    lasts
                        .iter()
                        .any(|last| is(if family == Family::V4 { v4(*last) } else { v6(*last) }, *number))
                };
                let cluster = if family == Family::V4 { Some(sketch.v4) } else { sketch.v6 };
                let key = (port.id.service.clone(), family, port.id.port.to_string(), *protocol);
                if has(cluster.as_slice()) {
                    claims.push((1, key, Path::ClusterIp, port));
                } else if has(&sketch.vips) {
                    claims.push((2, key, Path::LoadBalancer, port));
                } else if has(&sketch.external) {
                    claims.push((3, key, Path::ExternalIp, port));
                } else if *node_port != 0 && *destination == Destination::node(family, *node_port, *protocol)
                {
                    claims.push((4, key, Path::NodePort, port));
                }
            }
        }
    }
    claims.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    claims.first().map(|(_, _, path, port)| (*path, Arc::clone(port)))
}

fn assert_same(table: &Table, naive: &Naive) -> Result<(), TestCaseError> {
    for destination in universe() {
        let found = table.at(&destination).map(|(path, port)| (path, Arc::clone(port)));
        let expected = owner(naive, &destination);
        let words = |claim: &Option<(Path, Arc<ServicePort>)>| {
            claim.as_ref().map(|(path, port)| (*path, port.id.clone()))
        };
        prop_assert_eq!(words(&found), words(&expected), "{:?}", destination);
        let same = found.zip(expected).is_none_or(|(a, b)| Arc::ptr_eq(&a.1, &b.1));
        prop_assert!(same, "{:?}: the newest value of the port", destination);
    }
    for i in 0..6 {
        let ports = table.ports(&name(i));
        let expected = naive.get(&name(i)).map_or(&[][..], |(_, ports)| ports);
        prop_assert_eq!(ports.len(), expected.len());
        prop_assert!(ports.iter().zip(expected).all(|(a, b)| Arc::ptr_eq(a, b)));
    }
    prop_assert_eq!(table.all().count(), naive.values().map(|(_, ports)| ports.len()).sum::<usize>());
    Ok(())
}

/// What happens to one Service: it becomes this, or goes.
fn turn() -> impl Strategy<Value = (Sketch, bool)> {
    (sketch(), prop::bool::weighted(0.7))
}

fn change(naive: &mut Naive, sketch: &Sketch, stays: bool) -> Change {
    let service = sketch.service();
    let slice = sample::slice("web-1", []);
    let old = naive.get(&service.name).map(|(_, ports)| ports.clone()).unwrap_or_default();
    let ports = if stays { build(&service, &[&slice], &Here::default(), &old) } else { Vec::new() };
    if stays {
        naive.insert(service.name.clone(), (sketch.clone(), ports.clone()));
    } else {
        naive.remove(&service.name);
    }
    Change { service: service.name, ports }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_changes_gives_what_a_naive_map_gives(batches in vec(vec(turn(), 1..4), 1..10)) {
        let mut naive = Naive::new();
        let mut table = Table::default();
        for (version, batch) in batches.iter().enumerate() {
            let (old_table, old_naive) = (table.clone(), naive.clone());
            let changes: Vec<Change> = batch.iter().map(|(sketch, stays)| change(&mut naive, sketch, *stays)).collect();
            table = table.with(&changes);
            prop_assert_eq!(table.version(), version as u64 + 1);
            assert_same(&table, &naive)?;
            assert_same(&old_table, &old_naive)?;
        }
        let gone: Vec<Change> = naive.keys().map(|name| Change { service: name.clone(), ports: Vec::new() }).collect();
        assert_same(&table.with(&gone), &Naive::new())?;
    }

    #[test]
    fn the_order_in_which_services_come_does_not_matter(
        sketches in vec(sketch(), 1..8),
        order in any::<u64>(),
    ) {
        let mut naive = Naive::new();
        let first = {
            let changes: Vec<Change> = sketches.iter().map(|sketch| change(&mut naive, sketch, true)).collect();
            Table::default().with(&changes)
        };
        let mut last: Vec<Change> =
            naive.iter().map(|(name, (_, ports))| Change { service: name.clone(), ports: ports.clone() }).collect();
        let len = last.len();
        last.rotate_left((order % len as u64) as usize);
        if order & 1 << 63 != 0 {
            last.reverse();
        }
        let one_by_one = last.iter().fold(Table::default(), |table, change| table.with(std::slice::from_ref(change)));
        assert_same(&first, &naive)?;
        assert_same(&one_by_one, &naive)?;
        assert_same(&one_by_one.with(&last), &naive)?;
    }
}

#[test]
fn ten_thousand_services_with_one_external_ip_are_told_apart_when_they_go() {
    let claimed = Destination::new("192.0.2.1:80".parse().expect("an address"), Protocol::Tcp);
    let changes: Vec<Change> = (0..10_000u32)
        .map(|i| {
            let service = Service {
                external_ips: [claimed.ip].into(),
                ..sample::service(&format!("web-{i:05}"), (0x0a60_0000 + i).to_be_bytes(), Balance::Random)
            };
            let ports = build(&service, &[], &Here::default(), &[]);
            Change { service: service.name, ports }
        })
        .collect();
    let mut table = Table::default().with(&changes);
    for gone in &changes[..20] {
        let (path, port) = table.at(&claimed).expect("someone has it");
        assert_eq!((path, &port.id.service), (Path::ExternalIp, &gone.service));
        table = table.with(&[Change { service: gone.service.clone(), ports: Vec::new() }]);
    }
}

#[test]
fn a_port_is_found_by_name_or_number_over_tcp_first_and_in_the_other_family_if_need_be() {
    let named = |name: &str, port, protocol| Port { name: name.into(), protocol, port, node_port: 0 };
    let service = Service {
        cluster_ips: [v4(1), v6(1)].into(),
        ports: [
            named("dns", 53, Protocol::Udp),
            named("dns-tcp", 53, Protocol::Tcp),
            named("99", 80, Protocol::Tcp),
        ]
        .into(),
        ..sample::service("dns", [0; 4], Balance::Random)
    };
    let single = Service { cluster_ips: [v6(2)].into(), ..sample::service("v6", [0; 4], Balance::Random) };
    let change = |service: &Service| Change {
        service: service.name.clone(),
        ports: build(service, &[], &Here::default(), &[]),
    };
    let table = Table::default().with(&[change(&service), change(&single)]);
    let found = |service: &Service, wanted, family| {
        table.port(&service.name, wanted, family).map(|port| (port.id.port.to_string(), port.id.family))
    };
    assert_eq!(found(&service, "53", Family::V4), Some(("dns-tcp".into(), Family::V4)));
    assert_eq!(found(&service, "dns", Family::V6), Some(("dns".into(), Family::V6)));
    assert_eq!(found(&service, "80", Family::V6), Some(("99".into(), Family::V6)));
    assert_eq!(found(&service, "99", Family::V4), Some(("99".into(), Family::V4)));
    assert_eq!(found(&single, "80", Family::V4), Some(("http".into(), Family::V6)), "the only family");
    for unknown in ["", "54", "DNS", "65589", "-1"] {
        assert_eq!(found(&service, unknown, Family::V4), None, "{unknown:?}");
    }
    let mapped: SocketAddr = "[::ffff:10.96.0.1]:80".parse().expect("an address");
    assert!(table.at(&Destination::new(mapped, Protocol::Tcp)).is_some(), "IPv4 written as IPv6");
    assert!(
        table.at(&Destination::new("10.96.0.1:81".parse().expect("an address"), Protocol::Tcp)).is_none()
    );
}
