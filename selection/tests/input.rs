//! Facts that no API server would let through neither panic nor take others down, and are read as kube-proxy
//! reads them where it has a rule.
#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]

mod sample;

use std::net::IpAddr;
use std::sync::Arc;

use selection::{
    Balance, Change, Fact, Family, Here, Kind, Port, Protocol, Row, Service, Slice, SlicePort, Table, build,
    skip,
};

fn rows(service: &Service, slices: &[Slice]) -> Vec<Row> {
    let ports = build(service, &slices.iter().collect::<Vec<_>>(), &Here::default(), &[]);
    ports.iter().map(|port| Row::from(&**port)).collect()
}

fn web() -> Service {
    sample::service("web", [10, 96, 0, 1], Balance::LeastConnections)
}

#[test]
fn an_address_of_the_other_family_is_passed_over_and_its_neighbours_serve() {
    let stranger: IpAddr = "fd00::1".parse().expect("an address");
    let mapped: IpAddr = "::ffff:10.244.0.1".parse().expect("an address");
    let facts = [sample::ip(0), stranger, mapped, sample::ip(1)].map(sample::fact);
    let rows = rows(&web(), &[sample::slice("web-1", facts)]);
    assert_eq!(rows[0].cluster, ["10.244.0.1:8080", "10.244.0.2:8080"]);
}

#[test]
fn of_two_ports_with_one_name_and_protocol_the_later_counts_and_a_rebuild_settles() {
    let mut service = web();
    let udp = Port { protocol: Protocol::Udp, ..sample::port("http", 80) };
    service.ports = [sample::port("http", 80), udp, sample::port("http", 81)].into();
    let slice = sample::slice("web-1", [sample::fact(sample::ip(0))]);
    let first = build(&service, &[&slice], &Here::default(), &[]);
    let seen: Vec<_> = first.iter().map(|port| (port.port, port.id.protocol)).collect();
    assert_eq!(seen, [(80, Protocol::Udp), (81, Protocol::Tcp)]);
    let second = build(&service, &[&slice], &Here::default(), &first);
    assert!(first.iter().zip(&second).all(|(a, b)| Arc::ptr_eq(a, b)));
}

#[test]
fn slice_ports_without_name_or_number_join_nothing() {
    let mut slice = sample::slice("web-1", [sample::fact(sample::ip(0))]);
    let port =
        |name: Option<&str>, port| SlicePort { name: name.map(Arc::from), protocol: Protocol::Tcp, port };
    slice.ports = [port(None, 8080), port(Some("http"), 0), port(Some("other"), 80)].into();
    let mut service = web();
    service.ports = [sample::port("http", 80), sample::port("", 81)].into();
    for row in rows(&service, &[slice]) {
        assert_eq!((row.cluster.len(), row.has_any), (0, false), "{}", row.port);
    }
}

#[test]
fn slices_of_names_and_headless_ones_give_nothing() {
    let facts = || [sample::fact(sample::ip(0))];
    let fqdn = Slice { family: None, ..sample::slice("web-1", facts()) };
    let headless = Slice { headless: true, ..sample::slice("web-2", facts()) };
    let other = Slice { family: Some(Family::V6), ..sample::slice("web-3", facts()) };
    assert!(!rows(&web(), &[fqdn, headless, other])[0].has_any);
}

#[test]
fn source_ranges_lose_the_bits_of_the_host_and_any_of_length_0_opens_its_family_alone() {
    let ranges = |texts: &[&str]| {
        let mut service = web();
        service.cluster_ips = [IpAddr::from([10, 96, 0, 1]), "fd00::1".parse().expect("an address")].into();
        service.source_ranges = texts.iter().map(|text| text.parse().expect("a range")).collect();
        rows(&service, &[]).into_iter().map(|row| row.source_ranges).collect::<Vec<_>>()
    };
    assert_eq!(ranges(&["10.1.2.3/8", "2001:db8::7/32"]), [["10.0.0.0/8"], ["2001:db8::/32"]]);
    assert_eq!(
        ranges(&["10.1.2.3/8", "1.2.3.4/0", "2001:db8::/32"]),
        [vec![], vec!["2001:db8::/32".to_owned()]]
    );
}

#[test]
fn the_health_check_port_is_that_of_a_load_balancer_with_policy_local() {
    let port = |kind: Kind, external_local: bool| {
        let service = Service { kind, external_local, health_check_node_port: 32_000, ..web() };
        rows(&service, &[])[0].health_check_node_port
    };
    assert_eq!(port(Kind::LoadBalancer, true), 32_000);
    assert_eq!(port(Kind::LoadBalancer, false), 0);
    assert_eq!(port(Kind::NodePort, true), 0);
}

#[test]
fn the_health_check_counts_addresses_on_this_node_once_and_only_ready_ones() {
    let here = Here { node: Some("node-a".into()), zone: None };
    let on = |n, node: &str| Fact { node: Some(node.into()), ..sample::fact(sample::ip(n)) };
    let service = Service {
        kind: Kind::LoadBalancer,
        external_local: true,
        health_check_node_port: 32_000,
        ports: [sample::port("http", 80), sample::port("more", 81)].into(),
        ..web()
    };
    let more = SlicePort { name: Some("more".into()), protocol: Protocol::Tcp, port: 9090 };
    let slices = |facts: Vec<Fact>| {
        let slice = sample::slice("web-1", facts);
        Slice { ports: slice.ports.iter().cloned().chain([more.clone()]).collect(), ..slice }
    };
    let before = slices(vec![on(0, "node-a"), on(1, "node-a"), on(2, "node-b")]);
    let first = build(&service, &[&before], &here, &[]);
    assert_eq!(first.iter().map(|port| port.local_ready).collect::<Vec<_>>(), [2, 2]);
    // Both serve on as long as nobody else is here, and count no longer.
    let terminating = |fact: Fact| Fact { ready: false, terminating: true, ..fact };
    let after = slices(vec![terminating(on(0, "node-a")), terminating(on(1, "node-a")), on(2, "node-b")]);
    let second = build(&service, &[&after], &here, &first);
    assert_eq!(second.iter().map(|port| port.local_ready).collect::<Vec<_>>(), [0, 0]);
    assert_eq!(second[0].local.members, first[0].local.members);
}

#[test]
fn seventy_thousand_endpoints_many_of_them_twice_serve_once_each() {
    let facts = (0..70_000).map(|i| sample::fact(sample::ip(i % 69_000)));
    let slices: Vec<Slice> = {
        let facts: Vec<Fact> = facts.collect();
        facts
            .chunks(1_000)
            .enumerate()
            .map(|(i, some)| sample::slice(&format!("web-{i}"), some.to_vec()))
            .collect()
    };
    let port = build(&web(), &slices.iter().collect::<Vec<_>>(), &Here::default(), &[]).remove(0);
    assert_eq!((port.endpoints.len(), port.cluster.members.len()), (69_000, 69_000));
    assert!(port.endpoints.is_sorted_by(|a, b| a.address < b.address), "each address once");
}

#[test]
fn twenty_thousand_ports_are_built_and_rebuilt() {
    let mut service = web();
    service.ports = (0..20_000u16).map(|i| sample::port(&format!("p{i}"), i + 1)).collect();
    let first = build(&service, &[], &Here::default(), &[]);
    let second = build(&service, &[], &Here::default(), &first);
    assert_eq!((first.len(), second.len()), (20_000, 20_000));
    assert!(first.iter().zip(&second).all(|(a, b)| Arc::ptr_eq(a, b)));
    let table = Table::default().with(&[Change { service: service.name.clone(), ports: first }]);
    assert_eq!(table.ports(&service.name).len(), 20_000);
}

#[test]
fn a_service_without_addresses_or_ports_is_skipped_or_empty() {
    let headless = Service { cluster_ips: [].into(), ..web() };
    assert!(skip(&headless).is_some());
    assert!(build(&headless, &[], &Here::default(), &[]).is_empty());
    let portless = Service { ports: [].into(), ..web() };
    assert!(skip(&portless).is_none());
    assert!(build(&portless, &[], &Here::default(), &[]).is_empty());
}
