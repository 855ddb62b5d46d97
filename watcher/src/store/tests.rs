//! The store as a function of its events.

use selection::{Row, Service};

use super::*;
use crate::inspect;
use crate::sample::{
    Random, apply_service, apply_slice, here, hinted, histories, in_zone, listed, name, rows, service, slice,
    slice_key, store,
};

/// Lists `kind` again, finding `items`.
fn list_again(store: &mut Store, kind: Kind, items: Vec<Event>) {
    let [begin, end] = listed(kind);
    [begin].into_iter().chain(items).chain([end]).for_each(|event| store.apply(event));
}

/// The endpoints of `service` in the table that is published next, or was last.
fn endpoints(store: &mut Store, service: &str) -> Vec<String> {
    store.publish();
    let row = store.table().ports(&name(service)).first().map(|port| Row::from(&**port));
    row.map(|row| row.cluster).unwrap_or_default()
}

fn missed(store: &Store) -> u64 {
    store.counts().missed().map(|(_, count)| count).sum()
}

#[test]
fn nothing_is_published_before_both_kinds_are_listed() {
    let mut store = Store::new(here());
    let [begin, end] = listed(Kind::Services);
    [begin, apply_service(service("web", 1)), end].into_iter().for_each(|event| store.apply(event));
    assert!(store.publish().is_none(), "the slices are not known");
    let [begin, end] = listed(Kind::Slices);
    [begin, apply_slice("web", slice("web-1", &[1]))].into_iter().for_each(|event| store.apply(event));
    assert!(store.publish().is_none(), "the list of slices is not complete");
    store.apply(end);
    let table = store.publish().expect("everything is known");
    assert_eq!((table.version(), rows(&table)[0].cluster.len()), (1, 1));
}

#[test]
fn an_empty_cluster_has_a_first_table_and_the_same_is_not_published_twice() {
    let mut store = store(vec![]);
    assert_eq!(store.publish().map(|table| table.version()), Some(1));
    assert!(store.publish().is_none());
    store.apply(apply_slice("nobody", slice("s", &[1])));
    assert!(store.publish().is_none(), "a slice of no Service changes no table");
}

#[test]
fn a_followed_stream_that_may_not_be_read_is_not_waited_for_and_its_services_pass() {
    let mut store = Store::new(here());
    let stream = |kind, namespace: &str| Stream { kind, part: Part::Namespace(namespace.into()) };
    for (kind, namespace) in
        [(Kind::Services, "shop"), (Kind::Slices, "shop"), (Kind::Services, "bank"), (Kind::Slices, "bank")]
    {
        store.apply(Event::Follow(stream(kind, namespace)));
    }
    let list = |store: &mut Store, stream: Stream, items: Vec<Event>| {
        store.apply(Event::ListBegins(stream.clone()));
        items.into_iter().for_each(|event| store.apply(event));
        store.apply(Event::ListEnds(stream));
    };
    list(&mut store, stream(Kind::Services, "shop"), vec![apply_service(service("web", 1))]);
    list(&mut store, stream(Kind::Slices, "shop"), vec![apply_slice("web", slice("web-1", &[1]))]);
    let account = Service { name: ServiceName::new("bank", "account"), ..service("account", 2) };
    list(&mut store, stream(Kind::Services, "bank"), vec![apply_service(account.clone())]);
    store.apply(Event::Lost(stream(Kind::Slices, "bank"), Loss::Unreachable));
    assert!(store.publish().is_none(), "what does not answer is waited for");
    store.apply(Event::Lost(stream(Kind::Slices, "bank"), Loss::Forbidden));
    let table = store.publish().expect("what is forbidden is not waited for");
    assert_eq!(table.ports(&name("web")).len(), 1);
    assert_eq!(table.ports(&account.name).len(), 0, "without its slices it would be refused");
    list(&mut store, stream(Kind::Slices, "bank"), vec![]);
    let table = store.publish().expect("a permission given later counts");
    assert_eq!(table.ports(&account.name).len(), 1);
}

#[test]
fn a_slice_whose_label_changes_moves_to_the_other_service() {
    let mut store = store(vec![
        apply_service(service("web", 1)),
        apply_service(service("api", 2)),
        apply_slice("web", slice("s", &[1])),
    ]);
    assert_eq!(endpoints(&mut store, "web"), ["10.0.0.1:8080"]);
    store.apply(apply_slice("api", slice("s", &[1])));
    assert_eq!(endpoints(&mut store, "web"), [""; 0]);
    assert_eq!(endpoints(&mut store, "api"), ["10.0.0.1:8080"]);
    let unlabelled = Item::Slice {
        namespace: "shop".into(),
        service: None,
        slice: Box::new(slice("s", &[1])),
        hosts: Vec::new(),
    };
    store.apply(Event::Applied(unlabelled));
    assert_eq!(endpoints(&mut store, "api"), [""; 0]);
    assert_eq!(store.slices(), 0);
}

#[test]
fn a_slice_that_left_the_stream_of_one_service_for_that_of_another_is_not_lost() {
    let stream = |kind, service: &str| Stream { kind, part: Part::Service(name(service)) };
    let mut store = Store::new(here());
    for service_name in ["web", "api"] {
        for kind in [Kind::Services, Kind::Slices] {
            store.apply(Event::ListBegins(stream(kind, service_name)));
            store.apply(Event::ListEnds(stream(kind, service_name)));
        }
    }
    store.apply(apply_service(service("web", 1)));
    store.apply(apply_service(service("api", 2)));
    store.apply(apply_slice("web", slice("s", &[1])));
    store.apply(apply_slice("api", slice("s", &[1])));
    store.apply(Event::Gone(stream(Kind::Slices, "web"), slice_key("s")));
    assert_eq!(endpoints(&mut store, "api"), ["10.0.0.1:8080"]);
    store.apply(Event::Gone(stream(Kind::Slices, "api"), slice_key("s")));
    assert_eq!(endpoints(&mut store, "api"), [""; 0]);
}

#[test]
fn listing_again_heals_and_counts_what_no_event_told() {
    let mut store = store(vec![
        apply_service(service("web", 1)),
        apply_service(service("old", 2)),
        apply_slice("web", slice("web-1", &[1, 2])),
        apply_slice("web", slice("web-2", &[3])),
    ]);
    assert_eq!(endpoints(&mut store, "web").len(), 3);
    assert_eq!(missed(&store), 0, "a first list has nothing to miss");
    list_again(
        &mut store,
        Kind::Slices,
        vec![apply_slice("web", slice("web-1", &[1])), apply_slice("web", slice("web-3", &[4]))],
    );
    assert_eq!(endpoints(&mut store, "web"), ["10.0.0.1:8080", "10.0.0.4:8080"]);
    assert_eq!(missed(&store), 3, "one changed, one new, one gone");
    list_again(&mut store, Kind::Services, vec![apply_service(service("web", 1))]);
    store.publish();
    assert!(store.table().ports(&name("old")).is_empty());
    assert_eq!((missed(&store), store.services()), (4, 1));
    list_again(&mut store, Kind::Services, vec![apply_service(service("web", 1))]);
    assert_eq!(missed(&store), 4, "what is as it was known was not missed");
    assert!(store.publish().is_none());
}

#[test]
fn a_stream_that_breaks_leaves_everything_as_it_was() {
    let mut store = store(vec![apply_service(service("web", 1)), apply_slice("web", slice("web-1", &[1]))]);
    store.publish();
    for loss in Loss::ALL {
        store.apply(Event::Lost(Stream::all(Kind::Slices), loss));
    }
    store.apply(Event::ListBegins(Stream::all(Kind::Slices)));
    store.apply(Event::Lost(Stream::all(Kind::Slices), Loss::Unreachable));
    assert!(store.publish().is_none());
    assert_eq!(endpoints(&mut store, "web"), ["10.0.0.1:8080"]);
    assert_eq!(store.counts().losses().map(|(_, count)| count).sum::<u64>(), 8);
}

#[test]
fn an_object_that_cannot_be_read_stays_as_it_was_known_even_when_listed_again() {
    let mut store = store(vec![apply_service(service("web", 1)), apply_slice("web", slice("web-1", &[1]))]);
    store.publish();
    list_again(&mut store, Kind::Services, vec![Event::Unreadable(Key::Service(name("web")))]);
    list_again(&mut store, Kind::Slices, vec![Event::Unreadable(slice_key("web-1"))]);
    assert!(store.publish().is_none());
    assert_eq!(endpoints(&mut store, "web"), ["10.0.0.1:8080"]);
}

#[test]
fn a_service_that_is_skipped_stays_known_and_leaves_the_table() {
    let mut store = store(vec![apply_service(service("web", 1)), apply_slice("web", slice("web-1", &[1]))]);
    assert_eq!(endpoints(&mut store, "web").len(), 1);
    let other = Service { proxy_name: Some("".into()), ..service("web", 1) };
    store.apply(apply_service(other));
    let table = store.publish().expect("it changed");
    assert!(table.ports(&name("web")).is_empty());
    let inspection = inspect::inspect(&store, &name("web")).expect("it is known");
    assert_eq!(inspection.skipped, Some(selection::Skip::OtherProxy));
    assert!(inspect::inspect(&store, &name("nobody")).is_none());
}

#[test]
fn another_zone_of_our_own_builds_everything_anew() {
    let mut store = store(vec![
        apply_service(service("web", 1)),
        apply_slice("web", hinted(slice("web-a", &[1]), "a")),
        apply_slice("web", hinted(slice("web-b", &[2]), "b")),
    ]);
    assert_eq!(endpoints(&mut store, "web"), ["10.0.0.1:8080"]);
    store.apply(Event::Here(in_zone("b")));
    assert_eq!(endpoints(&mut store, "web"), ["10.0.0.2:8080"]);
    store.apply(Event::Here(Here::default()));
    assert_eq!(endpoints(&mut store, "web").len(), 2);
    assert!(store.publish().is_none());
}

#[test]
fn what_the_source_says_of_our_place_counts_where_we_were_not_told() {
    let place = |node: Option<&str>, zone: Option<&str>| Here {
        node: node.map(Into::into),
        zone: zone.map(Into::into),
    };
    let (one, other) = (place(Some("n1"), Some("a")), place(Some("n2"), Some("b")));
    for (told, said, then) in [
        (place(None, None), other.clone(), other.clone()),
        (place(None, Some("a")), other.clone(), place(Some("n2"), Some("a"))),
        (one.clone(), other.clone(), one.clone()),
        (place(Some("n2"), None), other.clone(), other.clone()),
        // That of another node.
        (place(Some("n1"), None), other, place(Some("n1"), None)),
        (place(Some("n1"), None), in_zone("a"), one),
    ] {
        let mut store = Store::new(told);
        store.apply(Event::Here(said));
        assert_eq!(*store.here(), then);
        store.apply(Event::Here(Here::default()));
        assert_eq!(*store.here(), store.told);
    }
}

#[test]
fn an_unchanged_port_and_an_unchanged_endpoint_keep_what_is_known_of_them() {
    let mut store = store(vec![
        apply_service(service("web", 1)),
        apply_service(service("api", 2)),
        apply_slice("web", slice("web-1", &[1, 2])),
    ]);
    let first = store.publish().unwrap();
    first.ports(&name("web"))[0].endpoints[1].tally.open();
    store.apply(apply_slice("web", slice("web-1", &[2, 3])));
    let second = store.publish().unwrap();
    assert_eq!(second.ports(&name("web"))[0].endpoints[0].tally.active(), 1);
    assert!(Arc::ptr_eq(&first.ports(&name("api"))[0], &second.ports(&name("api"))[0]));
}

#[test]
fn a_trigger_counts_once_and_not_in_the_first_lists() {
    let triggered = |at| Slice { triggered: Some(at), ..slice("web-1", &[1]) };
    let mut store = store(vec![apply_service(service("web", 1)), apply_slice("web", triggered(1))]);
    store.publish();
    assert_eq!(store.take_triggers(), [0; 0]);
    store.apply(apply_slice("web", triggered(2)));
    store.apply(apply_slice("web", triggered(2)));
    assert_eq!((store.take_triggers(), store.take_triggers()), (vec![2], vec![]));
}

#[test]
fn a_service_without_slices_is_told_how_to_get_them() {
    let store = store(vec![apply_service(service("web", 1))]);
    let inspection = inspect::inspect(&store, &name("web")).unwrap();
    assert_eq!(
        inspection.warnings,
        [
            "Service shop/web has a selector but no EndpointSlices: export them with kubectl get endpointslices -l \
          kubernetes.io/service-name=web -n shop -o yaml"
        ]
    );
}

#[test]
fn a_port_that_no_slice_knows_by_name_is_told_what_there_is() {
    let mut other = slice("web-1", &[1]);
    other.ports[0].name = Some("metrics".into());
    let store = store(vec![apply_service(service("web", 1)), apply_slice("web", other)]);
    let inspection = inspect::inspect(&store, &name("web")).unwrap();
    assert_eq!(
        inspection.warnings,
        [
            "Service shop/web port \"http\"/TCP: its EndpointSlices (IPv4) have endpoints, but no port of this name \
          and protocol; they have \"metrics\"/TCP"
        ]
    );
}

/// The table after `histories`, interleaved and published in between as `random` likes.
fn table_after(histories: &[Vec<Event>], random: &mut Random) -> (Vec<Row>, String) {
    let mut store = store(vec![]);
    let mut left: Vec<_> = histories.iter().map(|history| history.iter()).collect();
    while !left.is_empty() {
        let at = random.below(left.len());
        match left[at].next() {
            Some(event) => store.apply(event.clone()),
            None => drop(left.swap_remove(at)),
        }
        if random.below(4) == 0 {
            store.publish();
        }
    }
    store.publish();
    let inspections = format!("{:?}", inspect::inspect_all(&store));
    (rows(store.table()), inspections)
}

#[test]
fn any_order_of_the_same_events_gives_the_same_table() {
    for seed in 1..=300 {
        let mut random = Random(seed);
        let histories = histories(&mut random);
        let expected = table_after(&histories, &mut random);
        for _ in 0..10 {
            assert_eq!(table_after(&histories, &mut random), expected, "seed {seed}");
        }
    }
}

#[test]
fn a_table_made_step_by_step_equals_one_made_at_once() {
    for seed in 1..=300 {
        let mut random = Random(seed);
        let histories = histories(&mut random);
        let (stepped, _) = table_after(&histories, &mut random);
        let events: Vec<_> = histories.iter().flatten().cloned().collect();
        let mut at_once = store(vec![]);
        events.into_iter().for_each(|event| at_once.apply(event));
        at_once.publish();
        assert_eq!(rows(at_once.table()), stepped, "seed {seed}");
    }
}
