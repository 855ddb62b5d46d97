//! The VM without an Envoy: frames in, endpoints out.

use selection::{Balance, Fact, Failure, Kind, Port, Service, ServiceName, Slice, SlicePort};
use watcher::feed::Encoder;

use super::*;
use crate::outcome::{Outcome, Reached};

const CLIENT: ([u8; 4], u16) = ([10, 1, 2, 3], 40_000);

fn service(balance: Balance, affinity_seconds: Option<u32>) -> Service {
    Service {
        name: ServiceName::new("shop", "web"),
        kind: Kind::ClusterIp,
        cluster_ips: ["10.96.0.1".parse().unwrap()].into(),
        ports: [Port { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }].into(),
        balance,
        affinity_seconds,
        external_ips: [].into(),
        load_balancer_vips: [].into(),
        source_ranges: [].into(),
        internal_local: false,
        external_local: false,
        health_check_node_port: 0,
        has_selector: true,
        proxy_protocol: false,
        proxy_name: None,
    }
}

fn slice(endpoints: usize) -> Slice {
    let fact = |n: usize| Fact {
        ip: format!("10.0.0.{}", n + 1).parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone: None,
        hints: None,
        pod: None,
    };
    Slice {
        name: "web-1".into(),
        family: Some(Family::V4),
        ports: [SlicePort { name: Some("http".into()), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: (0..endpoints).map(fact).collect(),
        headless: false,
        triggered: None,
    }
}

/// A VM that mirrors the Service `shop/web` of so many endpoints.
fn vm(balance: Balance, affinity_seconds: Option<u32>, endpoints: usize) -> Vm {
    let mut vm = Vm::new(Seed(1, 2));
    vm.join(1, "feed", &Here::default(), Subscription::All).unwrap();
    let (service, slice) = (service(balance, affinity_seconds), slice(endpoints));
    let mut encoder = Encoder::snapshot(7);
    encoder.service(&service);
    encoder.slice(1, &service.name, &slice);
    for frame in encoder.complete(1, Some(std::time::Duration::from_secs(3))) {
        vm.frame(&frame, 10_000).unwrap();
    }
    vm
}

fn port(vm: &Vm) -> (Path, Arc<ServicePort>) {
    let wanted = Wanted::Service(ServiceName::new("shop", "web"), "80".into());
    let Found::Port(path, port) = vm.find(&wanted) else { panic!("no port") };
    (path, port)
}

fn choose(vm: &mut Vm, client: impl Into<SocketAddr>, now: Millis) -> Attempt {
    let (path, port) = port(vm);
    vm.choose(&port, path, client.into(), ATTEMPTS, 5_000, now).unwrap()
}

fn first(attempt: &Attempt) -> SocketAddr {
    attempt.endpoints()[0].unwrap()
}

const DONE: Outcome = outcome(1, None, true);

const fn outcome(tried: usize, failure: Option<Failure>, connected: bool) -> Outcome {
    Outcome { tried, failure, connected, reached: Reached::AsChosen }
}

#[test]
fn what_is_wanted_is_found_by_name_by_number_and_by_address() {
    let vm = vm(Balance::Random, None, 2);
    let web = ServiceName::new("shop", "web");
    for wanted in [
        Wanted::Service(web.clone(), "80".into()),
        Wanted::Service(web.clone(), "http".into()),
        Wanted::Address("10.96.0.1:80".parse().unwrap()),
        Wanted::Address("[::ffff:10.96.0.1]:80".parse().unwrap()),
    ] {
        assert!(matches!(vm.find(&wanted), Found::Port(Path::ClusterIp, _)), "{wanted:?}");
    }
    for wanted in [
        Wanted::Service(web, "81".into()),
        Wanted::Service(ServiceName::new("shop", "other"), "80".into()),
        Wanted::Address("10.96.0.1:81".parse().unwrap()),
    ] {
        assert!(matches!(vm.find(&wanted), Found::Unknown), "{wanted:?}");
    }
    assert!(matches!(
        Vm::new(Seed(1, 2)).find(&Wanted::Address("10.96.0.1:80".parse().unwrap())),
        Found::NoTable
    ));
    assert_eq!(vm.age(10_500), Some(3_500));
}

#[test]
fn the_endpoints_of_one_request_differ_and_are_as_many_as_there_are() {
    for endpoints in 1..=5 {
        for balance in [Balance::LeastConnections, Balance::Random, Balance::RoundRobin, Balance::Maglev] {
            let mut vm = vm(balance, None, endpoints);
            for _ in 0..20 {
                let chosen = choose(&mut vm, CLIENT, 0).endpoints();
                let mut all: Vec<_> = chosen.iter().flatten().collect();
                all.sort();
                all.dedup();
                assert_eq!(all.len(), endpoints.min(ATTEMPTS), "{balance:?} of {endpoints}: {chosen:?}");
            }
        }
    }
}

#[test]
fn turns_go_round_though_more_endpoints_are_named_than_tried() {
    let mut vm = vm(Balance::RoundRobin, None, 3);
    let turns: Vec<_> = (0..6).map(|_| first(&choose(&mut vm, CLIENT, 0)).to_string()).collect();
    assert_eq!(turns[..3], turns[3..]);
    assert_eq!(turns.iter().collect::<std::collections::HashSet<_>>().len(), 3);
}

#[test]
fn an_attempt_counts_at_its_first_endpoint_until_it_is_settled() {
    let mut vm = vm(Balance::LeastConnections, None, 2);
    let held: Vec<_> = (0..10).map(|_| choose(&mut vm, CLIENT, 0)).collect();
    let (_, port) = port(&vm);
    let active = |port: &ServicePort| port.endpoints.iter().map(|e| e.tally.active()).collect::<Vec<_>>();
    assert_eq!(active(&port), [5, 5]);
    held.into_iter().for_each(|attempt| drop(vm.settle(attempt, &DONE, 1)));
    assert_eq!(active(&port), [0, 0]);
}

#[test]
fn an_endpoint_that_failed_is_put_aside_and_comes_back() {
    let mut vm = vm(Balance::Random, None, 3);
    let attempt = choose(&mut vm, CLIENT, 1_000);
    let failing = first(&attempt);
    let aside = vm.settle(attempt, &outcome(2, None, true), 1_001);
    assert_eq!(aside.iter().map(|a| (a.endpoint, a.failures)).collect::<Vec<_>>(), [(failing, 1)]);
    for _ in 0..50 {
        let attempt = choose(&mut vm, CLIENT, 1_500);
        assert!(!attempt.endpoints()[..2].contains(&Some(failing)), "two others are well");
        vm.settle(attempt, &DONE, 1_501);
    }
    let trial = (0..50).map(|_| choose(&mut vm, CLIENT, 2_500)).find(|a| first(a) == failing).unwrap();
    assert!(trial.is_trial());
    vm.settle(trial, &DONE, 2_600);
    assert!(!choose(&mut vm, CLIENT, 2_700).is_trial());
}

#[test]
fn what_is_known_of_an_authority_is_what_the_table_has_as_it_is() {
    let mut vm = vm(Balance::Random, None, 3);
    let mut known = Known::default();
    let read = || Some(Wanted::Service(ServiceName::new("shop", "web"), "80".into()));
    let ports: Vec<_> = (0..2)
        .map(|_| match vm.find_known(&mut known, b"web.shop", read) {
            Found::Port(Path::ClusterIp, port) => port,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(Arc::ptr_eq(&ports[0], &ports[1]));
    assert!(matches!(vm.find_known(&mut known, b"other", || None), Found::Unknown));
    for frame in Encoder::snapshot(7).complete(2, None) {
        vm.frame(&frame, 20_000).unwrap();
    }
    assert!(matches!(vm.find_known(&mut known, b"web.shop", read), Found::Unknown), "the Service is gone");
    let empty = Vm::new(Seed(1, 2));
    assert!(matches!(empty.find_known(&mut known, b"web.shop", read), Found::NoTable));
}

#[test]
fn only_endpoints_that_a_mesh_has_tried_for_sure_are_blamed() {
    for (tried, reached, blamed) in [
        // As it was told: the first failed, the second answered.
        (2, Some(1), &[0][..]),
        // The first was passed over, or the first two.
        (1, Some(1), &[]),
        (2, Some(2), &[]),
        // After the list, the mesh's own choice: one of the list again, or another one, or none.
        (4, Some(0), &[]),
        (4, None, &[]),
    ] {
        let mut vm = vm(Balance::Random, None, 6);
        let attempt = choose(&mut vm, CLIENT, 0);
        let chosen = attempt.endpoints();
        let reached = Reached::At(reached.and_then(|at: usize| chosen[at]));
        let outcome = Outcome { reached, ..outcome(tried, None, true) };
        let aside: Vec<_> =
            vm.settle(attempt, &outcome, 1).iter().map(|aside| Some(aside.endpoint)).collect();
        assert_eq!(aside, blamed.iter().map(|at| chosen[*at]).collect::<Vec<_>>(), "{tried} {reached:?}");
    }
    // A failed connect is the last one's.
    let mut vm = vm(Balance::Random, None, 6);
    let attempt = choose(&mut vm, CLIENT, 0);
    let third = attempt.endpoints()[2];
    let outcome = Outcome { reached: Reached::At(third), ..outcome(1, Some(Failure::Refused), false) };
    let aside = vm.settle(attempt, &outcome, 1);
    assert_eq!(aside.iter().map(|aside| Some(aside.endpoint)).collect::<Vec<_>>(), [third]);
}

#[test]
fn a_long_connection_to_an_endpoint_that_had_failed_clears_it_once_its_connect_must_be_over() {
    let mut vm = vm(Balance::Random, None, 1);
    let attempt = choose(&mut vm, CLIENT, 0);
    vm.settle(attempt, &outcome(1, Some(Failure::Timeout), false), 1);
    let trial = choose(&mut vm, CLIENT, 2_000);
    vm.decide_trials(7_000);
    assert!(trial.is_trial());
    vm.decide_trials(7_001);
    assert!(!trial.is_trial());
    drop(trial);
}

#[test]
fn what_this_machine_lacks_and_a_client_that_left_put_nobody_aside() {
    let mut vm = vm(Balance::Random, None, 1);
    for failure in [Some(Failure::Ports), Some(Failure::Descriptors), None] {
        let attempt = choose(&mut vm, CLIENT, 0);
        assert_eq!(vm.settle(attempt, &outcome(1, failure, false), 1), [], "{failure:?}");
    }
}

#[test]
fn a_client_stays_with_its_endpoint_and_moves_with_a_retry() {
    let mut vm = vm(Balance::Random, Some(600), 5);
    let attempt = choose(&mut vm, CLIENT, 0);
    let pinned = first(&attempt);
    vm.settle(attempt, &DONE, 1);
    for now in 2..30 {
        let attempt = choose(&mut vm, (CLIENT.0, now as u16), now);
        assert_eq!(first(&attempt), pinned);
        vm.settle(attempt, &DONE, now);
    }
    let attempt = choose(&mut vm, CLIENT, 50);
    let moved = attempt.endpoints()[1].unwrap();
    vm.settle(attempt, &outcome(2, None, true), 60);
    for now in 70..90 {
        let attempt = choose(&mut vm, CLIENT, now);
        assert_eq!(first(&attempt), moved);
        vm.settle(attempt, &DONE, now);
    }
}

#[test]
fn nobody_serves_a_service_without_endpoints() {
    let mut vm = vm(Balance::Random, None, 0);
    let (path, port) = port(&vm);
    let chosen = vm.choose(&port, path, CLIENT.into(), ATTEMPTS, 5_000, 0);
    assert_eq!(chosen.unwrap_err(), Unserved::NoEndpoint);
}

#[test]
fn a_frame_that_is_none_leaves_the_table() {
    let mut vm = vm(Balance::Random, None, 2);
    vm.frame(b"nonsense", 0).unwrap_err();
    assert_eq!(port(&vm).1.endpoints.len(), 2);
}

#[test]
fn the_plugins_of_one_vm_share_a_feed_and_ask_for_what_any_of_them_wants() {
    let mut vm = Vm::new(Seed(1, 2));
    let here = Here { zone: Some("a".into()), node: None };
    let web = || Subscription::services([ServiceName::new("shop", "web")]);
    vm.join(1, "feed", &here, web()).unwrap();
    vm.link.opened(7, 1, 0);
    vm.join(2, "feed", &here, web()).unwrap();
    assert!(!vm.link.take_stale(), "nothing new is wanted");
    vm.join(3, "feed", &here, Subscription::namespaces(["bank".into()])).unwrap();
    assert!(vm.link.take_stale());
    let (_, wanted) = vm.feed().unwrap();
    assert!(wanted.covers(&ServiceName::new("shop", "web")) && wanted.covers(&ServiceName::new("bank", "x")));
    assert!(!wanted.covers(&ServiceName::new("shop", "other")));
    assert!(vm.join(4, "other", &here, web()).unwrap_err().contains("vm_id"));
    assert!(vm.join(4, "feed", &Here::default(), web()).unwrap_err().contains("node and zone"));
    vm.leave(1);
    assert!(vm.link.is_due(0), "the owner of the stream is gone");
}
