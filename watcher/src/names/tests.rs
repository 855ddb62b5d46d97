use selection::{Fact, Family};

use super::*;
use crate::sample::{self, apply_service, apply_slice, service, slice, slice_key};
use crate::store::{Event, Item, Key, Kind as StreamKind, Store, Stream};

fn headless(name: &str) -> Service {
    Service { kind: Kind::Headless, cluster_ips: [].into(), ..service(name, 0) }
}

fn with_hosts(service: &str, slice: Slice, hosts: &[(u32, &str)]) -> Event {
    let hosts = hosts.iter().map(|(at, name)| Host { at: *at, name: (*name).into() }).collect();
    let service = Some(Symbol::from(service));
    Event::Applied(Item::Slice { namespace: "shop".into(), service, slice: Box::new(slice), hosts })
}

/// What `store` gives after it made a table.
fn names(store: &mut Store) -> Option<Names> {
    store.publish();
    store.take_names()
}

fn following(items: Vec<Event>) -> (Store, Names) {
    let mut store = sample::store(items);
    store.follow_names();
    let names = names(&mut store).unwrap();
    (store, names)
}

fn hosts(names: &Names, service: &str) -> Vec<(String, Option<String>)> {
    let Some(named) = names.service("shop", service) else { return Vec::new() };
    named.endpoints().map(|e| (e.ip.to_string(), e.host.map(str::to_owned))).collect()
}

fn holders(names: &Names, ip: [u8; 4]) -> Vec<String> {
    names.at(&ip.into()).iter().map(ToString::to_string).collect()
}

#[test]
fn a_view_has_addresses_of_services_and_names_of_ready_endpoints() {
    let mut unready = slice("db-1", &[1, 2, 3]);
    unready.endpoints[1].ready = false;
    let external = Service { kind: Kind::ExternalName("db.example.com".into()), ..service("ext", 9) };
    let (_, names) = following(vec![
        apply_service(service("web", 1)),
        apply_slice("web", slice("web-1", &[7])),
        apply_service(headless("db")),
        with_hosts("db", unready, &[(1, "db-1"), (2, "db-2")]),
        apply_service(external),
    ]);
    assert_eq!(names.version(), 1);
    assert!(names.is_whole());
    assert_eq!(hosts(&names, "db"), [("10.0.0.1".into(), None), ("10.0.0.3".into(), Some("db-2".into()))]);
    assert_eq!(holders(&names, [10, 96, 0, 1]), ["shop/web"]);
    assert_eq!(holders(&names, [10, 0, 0, 3]), ["shop/db"]);
    assert_eq!(holders(&names, [10, 0, 0, 2]), [""; 0], "it is not ready");
    assert_eq!(holders(&names, [10, 0, 0, 7]), [""; 0], "its Service has an address of its own");
    assert_eq!(holders(&names, [10, 96, 0, 9]), [""; 0], "an external name has none");
    assert!(names.has_namespace("shop") && !names.has_namespace("bank"));
    assert!(names.service("shop", "gone").is_none() && names.service("bank", "web").is_none());
}

#[test]
fn nothing_is_known_before_the_first_table_and_nothing_is_kept_unless_it_is_followed() {
    let mut store = Store::new(sample::here());
    store.follow_names();
    store.apply(Event::Follow(Stream::all(StreamKind::Services)));
    store.apply(Event::Follow(Stream::all(StreamKind::Slices)));
    sample::listed(StreamKind::Services).into_iter().for_each(|event| store.apply(event));
    store.apply(apply_service(headless("db")));
    assert!(names(&mut store).is_none(), "the slices are not listed");
    sample::listed(StreamKind::Slices).into_iter().for_each(|event| store.apply(event));
    assert!(names(&mut store).is_some_and(|names| names.service("shop", "db").is_some()));

    let mut store = sample::store(vec![apply_service(service("web", 1))]);
    assert!(names(&mut store).is_none());
}

#[test]
fn a_view_follows_changes_of_host_names_which_no_table_has() {
    let (mut store, _) =
        following(vec![apply_service(headless("db")), with_hosts("db", slice("db-1", &[1]), &[(0, "db-0")])]);
    store.apply(with_hosts("db", slice("db-1", &[1]), &[(0, "db-1")]));
    let (table, renamed) = (store.publish(), store.take_names().unwrap());
    assert!(table.is_none(), "no endpoint of a table changed");
    assert_eq!(hosts(&renamed, "db"), [("10.0.0.1".into(), Some("db-1".into()))]);
    store.apply(with_hosts("db", slice("db-1", &[1]), &[(0, "db-1")]));
    assert!(names(&mut store).is_none(), "nothing changed");
    store.apply(Event::Here(sample::in_zone("b")));
    assert!(names(&mut store).is_none(), "names are the same in every zone");
}

#[test]
fn an_address_of_two_services_stays_with_the_second_when_the_first_goes() {
    let (mut store, names_then) = following(vec![
        apply_service(headless("db")),
        apply_slice("db", slice("db-1", &[1])),
        apply_service(headless("other")),
        apply_slice("other", slice("other-1", &[1])),
    ]);
    assert_eq!(holders(&names_then, [10, 0, 0, 1]), ["shop/db", "shop/other"]);
    store.apply(Event::Gone(Stream::all(StreamKind::Services), Key::Service(sample::name("db"))));
    let after = names(&mut store).unwrap();
    assert_eq!(holders(&after, [10, 0, 0, 1]), ["shop/other"]);
    store.apply(Event::Gone(Stream::all(StreamKind::Slices), slice_key("other-1")));
    store.apply(Event::Gone(Stream::all(StreamKind::Services), Key::Service(sample::name("other"))));
    let after = names(&mut store).unwrap();
    assert!(holders(&after, [10, 0, 0, 1]).is_empty() && !after.has_namespace("shop"));
    assert_eq!(holders(&names_then, [10, 0, 0, 1]), ["shop/db", "shop/other"], "an old view stays as it was");
}

#[test]
fn an_endpoint_that_is_terminating_but_ready_keeps_its_name() {
    // What the controller writes for publishNotReadyAddresses: ready, whatever else holds.
    let published = |fact: Fact| Fact { terminating: true, serving: false, ..fact };
    let mut value = slice("db-1", &[1]);
    value.endpoints = value.endpoints.into_iter().map(published).collect();
    let (_, names) = following(vec![apply_service(headless("db")), apply_slice("db", value)]);
    assert_eq!(hosts(&names, "db").len(), 1);
}

#[test]
fn a_part_of_a_source_is_not_whole() {
    let part = |kind| Stream { kind, part: crate::store::Part::Namespace("shop".into()) };
    let mut store = Store::new(sample::here());
    for kind in [StreamKind::Services, StreamKind::Slices] {
        store.apply(Event::ListBegins(part(kind)));
        store.apply(Event::ListEnds(part(kind)));
    }
    store.follow_names();
    assert!(!names(&mut store).unwrap().is_whole());
}

#[test]
fn a_change_copies_the_shards_that_it_touches_and_no_others() {
    let endpoints = |service: u8| {
        let fact = |i: u32| Fact {
            ip: std::net::Ipv4Addr::from(0x0a00_0000 | u32::from(service) << 12 | i).into(),
            ..slice("", &[1]).endpoints[0].clone()
        };
        (0..1_000).map(fact).collect::<Vec<_>>()
    };
    let of = |service: u8, name: &str, family| Slice {
        endpoints: endpoints(service).into(),
        family: Some(family),
        ..slice(name, &[])
    };
    let mut items = Vec::new();
    for i in 0..50 {
        let name = format!("db-{i}");
        items.push(apply_service(headless(&name)));
        items.push(apply_slice(&name, of(i, &format!("{name}-1"), Family::V4)));
    }
    let (mut store, before) = following(items);
    let mut changed = of(7, "db-7-1", Family::V4);
    changed.endpoints[500].ready = false;
    store.apply(apply_slice("db-7", changed));
    let after = names(&mut store).unwrap();
    let pairs = before.shards.iter().zip(after.shards.iter());
    let copied = pairs.filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
    assert!((1..=2).contains(&copied), "{copied} shards: that of the Service, and that of the address");
}
