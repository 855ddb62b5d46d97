//! What an instance knows of an endpoint outlives the table: the same Pod at the same address keeps its tally,
//! and a new Pod starts clean.
#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]

mod sample;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use selection::{Balance, Fact, Here, Pod, Service, ServicePort, Tally, build};

/// What the slices say of one address.
#[derive(Clone, Copy, Debug)]
struct State {
    listed: bool,
    ready: bool,
    serving: bool,
    terminating: bool,
    here: bool,
    pod: u64,
}

#[derive(Clone, Debug)]
enum Act {
    /// The slices become so, read in this order, and are built as many times.
    Build(Vec<State>, bool, usize),
    /// A connection to the address begins or ends, if it may.
    Open(usize),
    Close(usize),
}

fn state() -> impl Strategy<Value = State> {
    let flag = prop::bool::weighted;
    let state = (flag(0.8), flag(0.6), flag(0.7), flag(0.3), flag(0.5), select(vec![0u64, 1, 1, 1, 2]));
    state.prop_map(|(listed, ready, serving, terminating, here, pod)| State {
        listed,
        ready,
        serving,
        terminating,
        here,
        pod,
    })
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (vec(state(), 6), any::<bool>(), 1..3usize).prop_map(|(s, backwards, times)| Act::Build(s, backwards, times)),
        3 => (0..6usize).prop_map(Act::Open),
        2 => (0..6usize).prop_map(Act::Close),
    ];
    vec(act, 1..40)
}

fn rebuilt(
    service: &Service,
    states: &[State],
    backwards: bool,
    old: &[Arc<ServicePort>],
) -> Arc<ServicePort> {
    let mut facts: Vec<Fact> = states
        .iter()
        .enumerate()
        .filter(|(_, state)| state.listed)
        .map(|(i, state)| Fact {
            ready: state.ready,
            serving: state.serving,
            terminating: state.terminating,
            node: state.here.then(|| "here".into()),
            pod: (state.pod != 0).then(|| Pod { name: "pod".into(), id: state.pod }),
            ..sample::fact(sample::ip(i))
        })
        .collect();
    if backwards {
        facts.reverse();
    }
    let here = Here { node: Some("here".into()), zone: None };
    build(service, &[&sample::slice("web-1", facts)], &here, old).remove(0)
}

type Known = BTreeMap<(SocketAddr, u64), Arc<Tally>>;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tally_stays_with_its_address_and_pod_while_it_serves_or_has_connections(acts in acts()) {
        let service = Service { internal_local: false, ..sample::service("web", [10, 96, 0, 1], Balance::Random) };
        let mut port: Vec<Arc<ServicePort>> = Vec::new();
        let mut known = Known::new();
        let mut ever: Vec<Arc<Tally>> = Vec::new();
        for act in acts {
            match act {
                Act::Open(i) => {
                    let address = SocketAddr::new(sample::ip(i), 8080);
                    if let Some(e) = port.first().and_then(|p| p.endpoints.iter().find(|e| e.address == address)) {
                        e.tally.open();
                    }
                }
                Act::Close(i) => {
                    let address = SocketAddr::new(sample::ip(i), 8080);
                    let busy = known.iter().find(|((at, _), tally)| *at == address && tally.active() > 0);
                    if let Some((_, tally)) = busy {
                        tally.close();
                    }
                }
                Act::Build(states, backwards, times) => {
                    for _ in 0..times {
                        let new = rebuilt(&service, &states, backwards, &port);
                        let serving: Vec<_> = port.iter().flat_map(|p| p.endpoints.iter()).map(|e| (e.address, e.pod)).collect();
                        known.retain(|key, tally| serving.contains(key) || tally.active() > 0);
                        let mut next = Known::new();
                        for e in &new.endpoints {
                            let key = (e.address, e.pod);
                            match known.remove(&key) {
                                Some(tally) => prop_assert!(Arc::ptr_eq(&tally, &e.tally), "{key:?} lost its tally"),
                                None => {
                                    let used = ever.iter().any(|tally| Arc::ptr_eq(tally, &e.tally));
                                    prop_assert!(!used, "{key:?} has the tally of another");
                                    prop_assert_eq!((e.tally.active(), e.tally.failures()), (0, 0));
                                    ever.push(Arc::clone(&e.tally));
                                }
                            }
                            next.insert(key, Arc::clone(&e.tally));
                        }
                        next.extend(known);
                        known = next;
                        port = vec![new];
                    }
                }
            }
        }
    }
}

#[test]
fn an_unchanged_service_stays_the_very_same_value() {
    let service = sample::service("web", [10, 96, 0, 1], Balance::LeastConnections);
    let facts: Vec<Fact> = (0..20).map(|i| sample::fact(sample::ip(i))).collect();
    let slice = sample::slice("web-1", facts.clone());
    let first = build(&service, &[&slice], &Here::default(), &[]);
    first[0].endpoints[3].tally.open();
    first[0].endpoints[4].tally.failed(0, 1);
    let halves = [
        sample::slice("web-2", facts[10..].iter().rev().cloned()),
        sample::slice("web-3", facts[..12].to_vec()),
    ];
    let again = build(&service, &halves.each_ref(), &Here::default(), &first);
    assert!(Arc::ptr_eq(&first[0], &again[0]), "cut otherwise, the same endpoints");

    let mut unused = facts.clone();
    unused.push(Fact { ready: false, ..sample::fact(sample::ip(99)) });
    let again = build(&service, &[&sample::slice("web-1", unused)], &Here::default(), &first);
    assert!(Arc::ptr_eq(&first[0], &again[0]), "one that does not serve changes nothing");
}

#[test]
fn every_field_that_a_reader_sees_makes_another_value() {
    let base = Service {
        kind: selection::Kind::LoadBalancer,
        external_ips: ["192.0.2.1".parse().expect("an address")].into(),
        ..sample::service("web", [10, 96, 0, 1], Balance::LeastConnections)
    };
    let slice = sample::slice("web-1", (0..3).map(|i| sample::fact(sample::ip(i))));
    let first = build(&base, &[&slice], &Here::default(), &[]);
    let changes: [fn(&mut Service); 12] = [
        |s| s.cluster_ips = ["10.96.0.2".parse().expect("an address")].into(),
        |s| s.ports[0].port = 81,
        |s| s.ports[0].node_port = 30_000,
        |s| s.external_ips = ["192.0.2.9".parse().expect("an address")].into(),
        |s| s.load_balancer_vips = ["192.0.2.9".parse().expect("an address")].into(),
        |s| s.source_ranges = ["192.0.2.0/24".parse().expect("a range")].into(),
        |s| s.internal_local = true,
        |s| s.external_local = true,
        |s| s.affinity_seconds = Some(1),
        |s| s.balance = Balance::Random,
        |s| s.proxy_protocol = true,
        |s| (s.external_local, s.health_check_node_port) = (true, 30_001),
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut service = base.clone();
        change(&mut service);
        let next = build(&service, &[&slice], &Here::default(), &first);
        assert!(!Arc::ptr_eq(&first[0], &next[0]), "change {i}");
        for e in &next[0].endpoints {
            let before = first[0].endpoints.iter().find(|old| old.address == e.address).expect("an old one");
            assert!(Arc::ptr_eq(&before.tally, &e.tally), "change {i} keeps the tallies");
        }
    }
}

#[test]
fn the_turns_of_a_port_go_on_in_its_next_value() {
    let service = sample::service("web", [10, 96, 0, 1], Balance::RoundRobin);
    let slice = |n| sample::slice("web-1", (0..n).map(|i| sample::fact(sample::ip(i))));
    let first = build(&service, &[&slice(3)], &Here::default(), &[]);
    assert_eq!((first[0].next_turn(), first[0].next_turn()), (0, 1));
    let second = build(&service, &[&slice(4)], &Here::default(), &first);
    assert_eq!((second[0].next_turn(), first[0].next_turn()), (2, 3), "old and new share them");
}
