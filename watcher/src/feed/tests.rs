//! The feed from store to mirror: what goes in comes out, and nothing else does harm.

use selection::{
    Balance, Fact, Family, Here, Hints, Kind as ServiceKind, Pod, Port, Protocol, Row, Service, ServiceName,
    Slice, SlicePort,
};

use super::*;
use crate::inspect;
use crate::sample::{
    Random, apply_service, apply_slice, here, hinted, histories, name, rows, service, slice, slice_key, store,
};
use crate::store::{Event, Key, Kind, Store, Stream};

/// A store that tells its changes, version by version.
struct Server {
    store: Store,
    version: u64,
}

impl Server {
    fn new(mut store: Store) -> Self {
        store.record();
        Self { store, version: 1 }
    }

    fn snapshot(&self, subscription: &Subscription) -> Vec<Vec<u8>> {
        snapshot(&self.store, subscription, 7, self.version, Some(Duration::ZERO))
    }

    /// Applies `events` and tells the reader of `subscription`, which is at version `from`.
    fn change(&mut self, events: Vec<Event>, subscription: &Subscription, from: u64) -> Vec<Vec<u8>> {
        events.into_iter().for_each(|event| self.store.apply(event));
        self.version += 1;
        Changes::take(&mut self.store).encode(subscription, from, self.version, None)
    }
}

fn feed(mirror: &mut Mirror, frames: &[Vec<u8>]) {
    for frame in frames {
        mirror.frame(frame).unwrap();
    }
}

/// A store with a table, a mirror that has it too.
fn pair(events: Vec<Event>) -> (Server, Mirror) {
    let server = Server::new(store(events));
    let mut mirror = Mirror::new(here());
    feed(&mut mirror, &server.snapshot(&Subscription::All));
    (server, mirror)
}

/// The rows of the store's own table.
fn expected(store: &mut Store) -> Vec<Row> {
    store.publish();
    rows(store.table())
}

/// Everything that a Service and a slice can say.
fn rich() -> Vec<Event> {
    let port = |name: &str, protocol, port, node_port| Port { name: name.into(), protocol, port, node_port };
    let service = Service {
        name: ServiceName::new("bank", "rich"),
        kind: ServiceKind::LoadBalancer,
        cluster_ips: ["10.96.0.9".parse().unwrap(), "fd00::9".parse().unwrap()].into(),
        ports: [
            port("", Protocol::Tcp, 80, 30080),
            port("dns", Protocol::Udp, 53, 0),
            port("s", Protocol::Sctp, 1, 0),
        ]
        .into(),
        external_ips: ["192.0.2.1".parse().unwrap()].into(),
        load_balancer_vips: ["192.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap()].into(),
        source_ranges: ["10.1.2.3/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()].into(),
        internal_local: true,
        external_local: true,
        affinity_seconds: Some(0),
        health_check_node_port: 31000,
        has_selector: true,
        proxy_protocol: false,
        proxy_name: None,
        balance: Balance::Maglev,
    };
    let fact = |last: u8, hints: Option<Hints>| Fact {
        ip: [10, 0, 1, last].into(),
        ready: last != 2,
        serving: last != 3,
        terminating: last == 2,
        node: (last != 3).then(|| format!("n{last}").into()),
        zone: (last != 3).then(|| "a".into()),
        hints: hints.map(Box::new),
        pod: (last != 3).then(|| Pod { name: format!("pod-{last}").into(), id: u64::MAX - u64::from(last) }),
    };
    let hints = Hints { zones: ["a".into(), "b".into()].into(), nodes: ["n1".into()].into() };
    let slice_port =
        |name: Option<&str>, protocol, port| SlicePort { name: name.map(Into::into), protocol, port };
    let slice = Slice {
        name: "rich-1".into(),
        family: Some(Family::V4),
        headless: false,
        ports: [
            slice_port(Some(""), Protocol::Tcp, 8080),
            slice_port(Some("dns"), Protocol::Udp, 5353),
            slice_port(None, Protocol::Sctp, 0),
        ]
        .into(),
        endpoints: [fact(1, Some(hints)), fact(2, None), fact(3, None)].into(),
        triggered: Some(1_700_000_000_000),
    };
    let odd = Slice {
        name: "odd".into(),
        family: None,
        headless: true,
        ports: [].into(),
        endpoints: [].into(),
        triggered: Some(0),
    };
    let external = Service {
        kind: ServiceKind::ExternalName("example.com".into()),
        cluster_ips: [].into(),
        proxy_name: Some("".into()),
        affinity_seconds: None,
        balance: Balance::Off,
        ..Service::clone(&service)
    };
    let named =
        |name: &str, service: &Service| Service { name: ServiceName::new("bank", name), ..service.clone() };
    let of = |slice| {
        Event::Applied(crate::store::Item::Slice {
            namespace: "bank".into(),
            service: Some("rich".into()),
            slice: Box::new(slice),
            hosts: Vec::new(),
        })
    };
    let kinds = [ServiceKind::ClusterIp, ServiceKind::NodePort];
    let more = kinds.into_iter().map(|kind| {
        apply_service(Service {
            name: ServiceName::new("bank", format!("{kind:?}")),
            kind,
            ..service.clone()
        })
    });
    more.chain([
        apply_service(named("rich", &service)),
        apply_service(named("external", &external)),
        of(slice),
        of(odd),
    ])
    .collect()
}

#[test]
fn every_fact_comes_out_as_it_went_in() {
    let server = Server::new(store(rich()));
    let streams = vec![Stream::all(Kind::Services), Stream::all(Kind::Slices)];
    let mut copy = Store::new(here());
    let mut decoder = Decoder::new(streams);
    for frame in server.snapshot(&Subscription::All) {
        decoder.frame(&frame, &mut |event| copy.apply(event)).unwrap();
    }
    let facts = |store: &Store| -> Vec<_> {
        let facts = |entry: &crate::store::Entry| {
            (entry.service.clone(), entry.slices().into_iter().cloned().collect::<Vec<_>>())
        };
        store.entries(|_| true).into_iter().map(|(name, entry)| (name.clone(), facts(entry))).collect()
    };
    assert_eq!(facts(&copy), facts(&server.store));
    assert_eq!(facts(&copy).len(), 4);
    assert!(copy.publish().is_some());
    let inspections = |store: &Store| format!("{:?}", inspect::inspect_all(store));
    assert_eq!(inspections(&copy), inspections(&server.store));
}

#[test]
fn the_first_frame_of_a_snapshot_shows_nothing_and_the_last_one_all() {
    let (server, mut mirror) = pair(vec![]);
    assert_eq!((mirror.is_synced(), mirror.epoch(), mirror.version()), (true, Some(7), 1));
    let events = (0..200).flat_map(|i| {
        let many = Slice { endpoints: slice("", &[9; 40]).endpoints, ..slice(&format!("s-{i}"), &[]) };
        [apply_service(service(&format!("s-{i}"), 1)), apply_slice(&format!("s-{i}"), many)]
    });
    let mut server = Server { store: store(events.collect()), ..server };
    let frames = server.snapshot(&Subscription::All);
    assert!(frames.len() > 2 && frames.iter().all(|frame| frame.len() <= FRAME + 64), "{}", frames.len());
    for (n, frame) in frames.iter().enumerate() {
        let progress = mirror.frame(frame).unwrap();
        assert_eq!(progress.complete, n + 1 == frames.len());
        assert_eq!(mirror.table().all().count() > 0, progress.complete);
    }
    assert_eq!(rows(mirror.table()), expected(&mut server.store));
}

#[test]
fn a_new_snapshot_swaps_at_its_end_and_keeps_what_is_known_of_endpoints() {
    let web = || vec![apply_service(service("web", 1)), apply_slice("web", slice("web-1", &[1, 2]))];
    let mut events = web();
    events.extend([apply_service(service("old", 2)), apply_slice("old", slice("old-1", &[3]))]);
    let (_, mut mirror) = pair(events);
    let first = mirror.table().clone();
    let tally = &first.ports(&name("web"))[0].endpoints[1].tally;
    tally.open();
    assert!(tally.failed(1, 2));
    // The server starts again and has not all as it was.
    let mut events = web();
    events.extend([apply_slice("web", slice("web-2", &[4])), apply_service(service("new", 3))]);
    let mut server = Server::new(store(events));
    let frames = snapshot(&server.store, &Subscription::All, 8, 1, None);
    feed(&mut mirror, &frames);
    assert_eq!(mirror.epoch(), Some(8));
    assert_eq!(rows(mirror.table()), expected(&mut server.store));
    let kept = &mirror.table().ports(&name("web"))[0].endpoints[1].tally;
    assert_eq!((kept.active(), kept.failures()), (1, 1));
    let version = mirror.table().version();
    feed(&mut mirror, &frames);
    assert_eq!(mirror.table().version(), version, "the same snapshot is no new table");
}

#[test]
fn whatever_happens_a_mirror_has_the_rows_of_the_store() {
    for seed in 1..=300 {
        let mut random = Random(seed);
        let subscription = match seed % 3 {
            0 => Subscription::All,
            1 => Subscription::namespaces(["shop".into(), "bank".into()]),
            _ => Subscription::services([name("service-1"), name("service-3"), name("nobody")]),
        };
        let mut server = Server::new(store(vec![]));
        let mut mirror = Mirror::new(here());
        let mut whole = Store::new(here());
        let mut decoder = Decoder::new(vec![Stream::all(Kind::Services), Stream::all(Kind::Slices)]);
        let mut tell = |mirror: &mut Mirror, frames: Vec<Vec<u8>>| {
            feed(mirror, &frames);
            for frame in frames {
                decoder.frame(&frame, &mut |event| whole.apply(event)).unwrap();
            }
        };
        tell(&mut mirror, server.snapshot(&subscription));
        let mut left: Vec<_> = histories(&mut random).into_iter().map(Vec::into_iter).collect();
        let mut batch = Vec::new();
        while !left.is_empty() {
            let at = random.below(left.len());
            match left[at].next() {
                // The place of the server is not that of the reader.
                Some(Event::Here(_)) => {}
                Some(event) => batch.push(event),
                None => drop(left.swap_remove(at)),
            }
            if random.below(3) == 0 {
                let frames = server.change(std::mem::take(&mut batch), &subscription, mirror.version());
                tell(&mut mirror, frames);
            }
            if random.below(10) == 0 {
                batch.drain(..).for_each(|event| server.store.apply(event));
                Changes::take(&mut server.store);
                tell(&mut mirror, server.snapshot(&subscription));
            }
        }
        let frames = server.change(batch, &subscription, mirror.version());
        tell(&mut mirror, frames);
        let covered = |row: &Row| {
            let (namespace, name) = row.service.split_once('/').unwrap();
            subscription.covers(&ServiceName::new(namespace, name))
        };
        let expected: Vec<_> = expected(&mut server.store).into_iter().filter(covered).collect();
        assert_eq!(rows(mirror.table()), expected, "seed {seed}");
        whole.publish();
        assert_eq!(rows(whole.table()), expected, "seed {seed}");
    }
}

#[test]
fn what_changes_tells_no_more_than_it_must() {
    let (mut server, mut mirror) = pair(vec![
        apply_service(service("web", 1)),
        apply_service(service("api", 2)),
        apply_slice("web", slice("web-1", &(1..=100).collect::<Vec<_>>())),
    ]);
    let nothing = server.change(vec![], &Subscription::All, mirror.version());
    assert!(nothing.is_empty(), "nothing changed");
    let elsewhere = Subscription::services([name("api")]);
    let one_less = || vec![apply_slice("web", slice("web-1", &(2..=100).collect::<Vec<_>>()))];
    assert!(server.change(one_less(), &elsewhere, 1).is_empty(), "nothing that is covered");
    let at = mirror.version();
    server.change(vec![apply_slice("web", slice("web-1", &(1..=100).collect::<Vec<_>>()))], &elsewhere, 1);
    let frames = server.change(one_less(), &Subscription::All, at);
    assert!(frames.len() == 1 && frames[0].len() < 40, "one endpoint less: {} bytes", frames[0].len());
    let before = mirror.table().clone();
    feed(&mut mirror, &frames);
    let api = |table: &selection::Table| std::sync::Arc::clone(&table.ports(&name("api"))[0]);
    assert!(std::sync::Arc::ptr_eq(&api(&before), &api(mirror.table())), "the others are as they were");
}

#[test]
fn one_endpoint_with_long_names_changes_in_200_bytes() {
    let (namespace, owner) = ("production-checkout", "checkout-service");
    let fact = |n: u8, pod: &str| Fact {
        ip: [10, 0, 1, n].into(),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(format!("ip-10-0-123-{n}.eu-west-1.compute.internal").into()),
        zone: Some("eu-west-1a".into()),
        hints: Some(Box::new(Hints { zones: ["eu-west-1a".into()].into(), nodes: [].into() })),
        pod: Some(Pod { name: format!("checkout-service-6f9d5b7c4d-{pod}").into(), id: Pod::id_of(pod) }),
    };
    let with = |changed: Option<u8>, at| {
        let pod = |n| if changed == Some(n) { format!("y{n:04}") } else { format!("x{n:04}") };
        let endpoints = (1..=100).map(|n| fact(n, &pod(n))).collect();
        let slice = Slice { endpoints, triggered: Some(at), ..slice("checkout-service-7xk2p", &[]) };
        let (namespace, service) = (namespace.into(), Some(owner.into()));
        Event::Applied(crate::store::Item::Slice {
            namespace,
            service,
            slice: Box::new(slice),
            hosts: Vec::new(),
        })
    };
    let (mut server, mut mirror) = pair(vec![
        apply_service(Service { name: ServiceName::new(namespace, owner), ..service("", 1) }),
        with(None, 1_790_000_000_000),
    ]);
    server.version = 1_000_000;
    mirror.frame(&server.snapshot(&Subscription::All)[0]).unwrap();
    let frames = server.change(vec![with(Some(50), 1_790_000_001_000)], &Subscription::All, 1_000_000);
    assert!(frames.len() == 1 && frames[0].len() <= 200, "{} bytes", frames[0].len());
    feed(&mut mirror, &frames);
    assert_eq!(rows(mirror.table()), expected(&mut server.store));
}

#[test]
fn a_slice_of_thousands_of_endpoints_fits_in_frames() {
    let endpoints = |from: u32, to: u32| -> Box<[Fact]> {
        let one = slice("", &[1]).endpoints[0].clone();
        (from..to)
            .map(|n| Fact { ip: std::net::Ipv4Addr::from(0x0a00_0000 + n).into(), ..one.clone() })
            .collect()
    };
    let large =
        |from, to| apply_slice("web", Slice { endpoints: endpoints(from, to), ..slice("large", &[]) });
    let (mut server, mut mirror) = pair(vec![apply_service(service("web", 1)), large(0, 5_000)]);
    assert_eq!(rows(mirror.table()), expected(&mut server.store));
    assert_eq!(rows(mirror.table())[0].cluster.len(), 5_000);
    let version = server.version;
    let frames = server.change(vec![large(4_000, 9_000)], &Subscription::All, version);
    assert!(frames.iter().all(|frame| frame.len() <= FRAME + 64));
    feed(&mut mirror, &frames);
    assert_eq!(rows(mirror.table()), expected(&mut server.store));
}

#[test]
fn a_service_that_no_frame_can_hold_takes_no_other_one_down() {
    let huge = Service {
        source_ranges: vec!["2001:db8::/64".parse().unwrap(); 60_000].into(),
        ..service("huge", 2)
    };
    let (mut server, mut mirror) =
        pair(vec![apply_service(service("web", 1)), apply_service(service("huge", 2))]);
    assert_eq!(mirror.services(), 2);
    let frames = server.change(vec![apply_service(huge)], &Subscription::All, 1);
    feed(&mut mirror, &frames);
    assert_eq!((mirror.services(), mirror.table().ports(&name("web")).len()), (1, 1));
    let mut other = Mirror::new(here());
    feed(&mut other, &server.snapshot(&Subscription::All));
    assert_eq!(rows(other.table()), rows(mirror.table()));
}

#[test]
fn a_gap_between_versions_is_noticed_and_the_next_snapshot_heals() {
    let (mut server, mut mirror) = pair(vec![apply_service(service("web", 1))]);
    let change = |server: &mut Server, last, from| {
        server.change(vec![apply_slice("web", slice("web-1", &[last]))], &Subscription::All, from)
    };
    change(&mut server, 1, 1);
    let frames = change(&mut server, 2, 2);
    let before = rows(mirror.table());
    assert_eq!(mirror.frame(&frames[0]), Err(Error::Gap));
    assert_eq!(
        mirror.frame(&change(&mut server, 3, 1)[0]),
        Err(Error::Gap),
        "nothing but a snapshot is taken"
    );
    assert_eq!(rows(mirror.table()), before, "the old table stays");
    feed(&mut mirror, &server.snapshot(&Subscription::All));
    assert_eq!(rows(mirror.table()), expected(&mut server.store));
}

#[test]
fn a_heartbeat_tells_the_age_and_is_welcome_at_any_time() {
    let beat = heartbeat(Some(Duration::from_millis(1_500)));
    let mut mirror = Mirror::new(here());
    let told = Progress { age: Some(Duration::from_millis(1_500)), ..Progress::default() };
    assert_eq!(mirror.frame(&beat), Ok(told));
    assert!(!mirror.is_synced());
    assert_eq!(mirror.frame(&heartbeat(None)), Ok(Progress::default()));
    let (_, mut mirror) = pair(vec![]);
    assert_eq!(mirror.frame(&beat), Ok(told));
}

/// Frames for the tests of harm: a snapshot, then changes.
fn story() -> Vec<Vec<u8>> {
    let mut server = Server::new(store(rich()));
    let mut frames = server.snapshot(&Subscription::All);
    let changes = [
        vec![apply_service(service("web", 1)), apply_slice("web", slice("web-1", &[1, 2, 3]))],
        vec![apply_slice("web", slice("web-1", &[1, 4, 3, 5]))],
        vec![Event::Gone(Stream::all(Kind::Slices), slice_key("web-1"))],
        vec![Event::Gone(Stream::all(Kind::Services), Key::Service(name("web")))],
    ];
    for events in changes {
        let version = server.version;
        frames.extend(server.change(events, &Subscription::All, version));
    }
    frames.push(heartbeat(Some(Duration::from_secs(1))));
    frames
}

#[test]
fn bytes_that_were_cut_or_changed_are_refused_and_the_table_stays() {
    let frames = story();
    let mut mirror = Mirror::new(here());
    for frame in &frames {
        for end in 0..frame.len() {
            assert_eq!(mirror.frame(&frame[..end]), Err(Error::Malformed), "cut to {end} bytes");
        }
        for at in 0..frame.len() {
            for bit in 0..8 {
                let mut changed = frame.clone();
                changed[at] ^= 1 << bit;
                assert_eq!(mirror.frame(&changed), Err(Error::Malformed), "byte {at}");
            }
        }
        // Such a stream would be opened again; here the story goes on in another mirror.
        assert!(!mirror.is_synced());
    }
}

#[test]
fn what_chance_makes_of_frames_neither_panics_nor_grows() {
    let frames: Vec<_> = story().iter().map(|frame| seal::unsealed(frame).unwrap().to_vec()).collect();
    let mut random = Random(0x5eed);
    for _ in 0..5_000 {
        let mut mirror = Mirror::new(here());
        let mut bytes = 0;
        for frame in &frames {
            let mut frame = frame.clone();
            for _ in 0..random.below(4) {
                let at = random.below(frame.len() + 1);
                let end = (at + random.below(12)).min(frame.len());
                match random.below(5) {
                    0 => drop(frame.drain(at..end)),
                    1 => drop(frame.splice(at..at, [255, 255, 255, 255, 15])),
                    2 => {
                        let copy = frame[at..end].to_vec();
                        frame.splice(at..at, copy);
                    }
                    3 => frame.truncate(at),
                    _ => frame[at..end]
                        .iter_mut()
                        .for_each(|byte| *byte = u8::try_from(random.below(256)).unwrap()),
                }
            }
            bytes += frame.len();
            let before = mirror.table().version();
            if mirror.frame(&seal::sealed(frame)).is_err() {
                assert_eq!(mirror.table().version(), before, "an error makes no table");
            }
        }
        let endpoints: usize = mirror.table().all().map(|port| port.endpoints.len()).sum();
        assert!(endpoints <= bytes, "{endpoints} endpoints of {bytes} bytes");
    }
}

#[test]
fn operations_and_fields_of_newer_writers_are_passed_over() {
    let (server, _) = pair(rich());
    let mut expected_store = store(rich());
    for frame in server.snapshot(&Subscription::All) {
        let old = seal::unsealed(&frame).unwrap().to_vec();
        let mut new = Vec::new();
        for field in wire::Fields(&old) {
            // Before each field others: a number, eight bytes, an operation.
            wire::put_number(&mut new, 90, 1);
            wire::put_eight(&mut new, 91, 1);
            wire::put_message(&mut new, 14, |out| wire::put_bytes(out, 1, b"unknown"));
            match field.unwrap() {
                (1, value) => wire::put_eight(&mut new, 1, value.number().unwrap()),
                (field, wire::Value::Number(number)) => wire::put_number(&mut new, field, number),
                (field @ 8.., wire::Value::Bytes(bytes)) => wire::put_message(&mut new, field, |out| {
                    out.extend_from_slice(bytes);
                    wire::put_number(out, 1_000, 1);
                    wire::put_bytes(out, 31, b"unknown");
                }),
                (field, wire::Value::Bytes(bytes)) => wire::put_bytes(&mut new, field, bytes),
            }
        }
        let mut mirror = Mirror::new(here());
        mirror.frame(&seal::sealed(new)).unwrap();
        assert_eq!(rows(mirror.table()), expected(&mut expected_store));
    }
}

/// Frames as an earlier writer wrote them; binaries that speak so are out there. A file is never changed, only added.
const OLD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/feed/1.frames");

#[test]
fn old_bytes_are_understood() {
    let bytes = std::fs::read(OLD).unwrap();
    let mut splitter = Splitter::default();
    splitter.push(&bytes);
    let mut mirror = Mirror::new(here());
    let mut seen = Vec::new();
    while let Some(frame) = splitter.frame().unwrap() {
        mirror.frame(frame).unwrap();
        let services = rows(mirror.table())
            .iter()
            .map(|row| (row.service.clone(), row.cluster.len()))
            .collect::<Vec<_>>();
        seen.push((
            mirror.version(),
            services.iter().filter(|(name, _)| name == "shop/web").map(|(_, n)| *n).next(),
        ));
        if mirror.version() == 1 {
            assert_eq!(rows(mirror.table()), expected(&mut store(rich())));
        }
    }
    assert_eq!(seen, [(1, None), (2, Some(3)), (3, Some(4)), (4, Some(0)), (5, None), (5, None)]);
}

#[test]
fn that_endpoints_are_told_of_their_clients_is_told() {
    let announced = rich().into_iter().map(|event| match event {
        Event::Applied(crate::store::Item::Service(service)) => {
            let service = Box::new(Service { proxy_protocol: true, ..*service });
            Event::Applied(crate::store::Item::Service(service))
        }
        other => other,
    });
    let mut mirror = Mirror::new(here());
    for frame in snapshot(&store(announced.collect()), &Subscription::All, 1, 1, None) {
        mirror.frame(&frame).unwrap();
    }
    let ports = mirror.table().ports(&ServiceName::new("bank", "rich"));
    assert!(!ports.is_empty() && ports.iter().all(|port| port.proxy_protocol));
}

#[test]
fn a_reader_that_does_not_know_where_it_is_is_told_before_its_first_table() {
    let server = Server::new(store(vec![
        apply_service(service("web", 1)),
        apply_slice("web", hinted(slice("web-a", &[1]), "a")),
        apply_slice("web", hinted(slice("web-b", &[2]), "b")),
    ]));
    let there = |node: &str, zone: &str| Here { node: Some(node.into()), zone: Some(zone.into()) };
    let endpoints = |mirror: &Mirror| rows(mirror.table())[0].cluster.clone();
    let frame = super::here(&there("n7", "b"));
    assert!(
        frame.starts_with(b"\x2a\x02n7\x2a\x01b\x3a\x04\x08\x01\x10\x02"),
        "other binaries read it: {frame:?}"
    );
    let mut mirror = Mirror::new(Here::default());
    feed(&mut mirror, &[super::here(&there("n7", "b"))]);
    assert!(!mirror.is_synced(), "it is no transaction");
    feed(&mut mirror, &server.snapshot(&Subscription::All));
    assert_eq!((mirror.here(), endpoints(&mirror)), (&there("n7", "b"), vec!["10.0.0.2:8080".to_owned()]));
    feed(&mut mirror, &[super::here(&Here { node: Some("n7".into()), zone: None })]);
    feed(&mut mirror, &server.snapshot(&Subscription::All));
    assert_eq!(endpoints(&mirror).len(), 2, "another snapshot is for the place told before it");
    let mut told = Mirror::new(here());
    feed(&mut told, &[super::here(&there("n7", "b"))]);
    assert_eq!(*told.here(), here());
}

#[test]
fn the_story_is_written_as_it_was() {
    let stream: Vec<u8> = story().iter().flat_map(|frame| [&prefix(frame)[..], frame].concat()).collect();
    let written = std::env::temp_dir().join("remora-feed.frames");
    if stream != std::fs::read(OLD).unwrap_or_default() {
        std::fs::write(&written, &stream).unwrap();
        panic!("the writer changed: keep the old file, and add {} as another", written.display());
    }
}
