//! A Service without an address: found by its name alone, but its endpoints are judged and picked like any other's.
#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]

mod sample;

use std::sync::Arc;

use sample::{fact, ip, service, slice};
use selection::{Balance, Here, Kind, Service, Skip, Slice, build, skip};

fn headless() -> Service {
    Service {
        kind: Kind::Headless,
        cluster_ips: [].into(),
        affinity_seconds: Some(60),
        ..service("db", [10, 96, 0, 9], Balance::Random)
    }
}

#[test]
fn its_slices_serve_whether_they_are_labelled_headless_or_not_and_no_address_leads_to_it() {
    let labelled = Slice { headless: true, ..slice("db-1", [fact(ip(1))]) };
    let by_hand =
        slice("db-2", [fact(ip(2)), selection::Fact { ready: false, serving: false, ..fact(ip(3)) }]);
    let ports = build(&headless(), &[&labelled, &by_hand], &Here::default(), &[]);
    assert_eq!(ports.len(), 1, "only the family that its slices have");
    let port = &ports[0];
    let addresses: Vec<_> = port.endpoints.iter().map(|e| e.address.ip()).collect();
    assert_eq!(addresses, [ip(1), ip(2)]);
    assert_eq!((port.cluster_ip, port.destinations().count(), port.affinity_seconds), (None, 0, None));
    let again = build(&headless(), &[&labelled, &by_hand], &Here::default(), &ports);
    assert!(Arc::ptr_eq(&again[0], port), "nothing changed");
}

#[test]
fn a_table_leaves_it_out_and_a_service_with_an_address_takes_no_slice_that_is_labelled_headless() {
    assert_eq!(skip(&headless()), Some(Skip::Headless));
    let labelled = Slice { headless: true, ..slice("web-1", [fact(ip(1))]) };
    let ports = build(&service("web", [10, 96, 0, 1], Balance::Random), &[&labelled], &Here::default(), &[]);
    assert!(ports[0].endpoints.is_empty());
    let off = Service { balance: Balance::Off, ..headless() };
    assert_eq!(skip(&off), Some(Skip::Off));
}
