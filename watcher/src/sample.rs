//! Small Services, slices and histories for tests.

use selection::{
    Balance, Fact, Family, Here, Kind as ServiceKind, Pod, Port, Protocol, Row, Service, ServiceName, Slice,
    SlicePort, Symbol, Table,
};

use crate::store::{Event, Item, Key, Kind, Store, Stream};

/// What a source says of where we are that knows the zone of our node.
pub(crate) fn in_zone(zone: &str) -> Here {
    Here { node: None, zone: Some(zone.into()) }
}

pub(crate) fn here() -> Here {
    Here { node: Some("n1".into()), zone: Some("a".into()) }
}

pub(crate) fn name(service: &str) -> ServiceName {
    ServiceName::new("shop", service)
}

pub(crate) fn service(service: &str, last: u8) -> Service {
    let port = Port { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
    Service {
        name: name(service),
        kind: ServiceKind::ClusterIp,
        cluster_ips: [[10, 96, 0, last].into()].into(),
        ports: [port].into(),
        external_ips: [].into(),
        load_balancer_vips: [].into(),
        source_ranges: [].into(),
        internal_local: false,
        external_local: false,
        affinity_seconds: None,
        health_check_node_port: 0,
        has_selector: true,
        proxy_protocol: false,
        proxy_name: None,
        balance: Balance::default(),
    }
}

pub(crate) fn slice(slice: &str, endpoints: &[u8]) -> Slice {
    let fact = |last: &u8| Fact {
        ip: [10, 0, 0, *last].into(),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("n1".into()),
        zone: Some("a".into()),
        hints: None,
        pod: Some(Pod { name: format!("pod-{last}").into(), id: u64::from(*last) + 1 }),
    };
    Slice {
        name: slice.into(),
        family: Some(Family::V4),
        headless: false,
        ports: [SlicePort { name: Some("http".into()), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: endpoints.iter().map(fact).collect(),
        triggered: None,
    }
}

pub(crate) fn apply_service(value: Service) -> Event {
    Event::Applied(Item::Service(Box::new(value)))
}

pub(crate) fn apply_slice(service: &str, value: Slice) -> Event {
    let service = Some(Symbol::from(service));
    Event::Applied(Item::Slice {
        namespace: "shop".into(),
        service,
        slice: Box::new(value),
        hosts: Vec::new(),
    })
}

/// The first endpoint of `slice` is to serve `zone`.
pub(crate) fn hinted(mut slice: Slice, zone: &str) -> Slice {
    let hints = selection::Hints { zones: [zone.into()].into(), nodes: [].into() };
    slice.endpoints[0].hints = Some(Box::new(hints));
    slice
}

pub(crate) fn slice_key(name: &str) -> Key {
    Key::Slice { namespace: "shop".into(), name: name.into() }
}

pub(crate) fn listed(kind: Kind) -> [Event; 2] {
    [Event::ListBegins(Stream::all(kind)), Event::ListEnds(Stream::all(kind))]
}

/// A store whose first lists had these. It is here because its source says so, which may change its mind.
pub(crate) fn store(items: Vec<Event>) -> Store {
    let mut store = Store::new(Here { zone: None, ..here() });
    store.apply(Event::Here(here()));
    let [services, services_end] = listed(Kind::Services);
    let [slices, slices_end] = listed(Kind::Slices);
    [services, slices]
        .into_iter()
        .chain(items)
        .chain([services_end, slices_end])
        .for_each(|e| store.apply(e));
    store
}

pub(crate) fn rows(table: &Table) -> Vec<Row> {
    let mut ports: Vec<_> = table.all().collect();
    ports.sort_by(|a, b| a.id.cmp(&b.id));
    ports.into_iter().map(|port| Row::from(&**port)).collect()
}

/// xorshift: small, and the same on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

/// What happens to a few objects, each in its own order.
pub(crate) fn histories(random: &mut Random) -> Vec<Vec<Event>> {
    let mut histories = Vec::new();
    for i in 1..=3 {
        let service_name = format!("service-{i}");
        let mut history = Vec::new();
        for _ in 0..random.below(5) {
            history.push(match random.below(4) {
                0 => Event::Gone(Stream::all(Kind::Services), Key::Service(name(&service_name))),
                1 => apply_service(Service { proxy_name: Some("x".into()), ..service(&service_name, i) }),
                _ => apply_service(Service {
                    internal_local: random.below(2) == 0,
                    ..service(&service_name, i + u8::try_from(random.below(3)).unwrap())
                }),
            });
        }
        histories.push(history);
    }
    for i in 0..5 {
        let slice_name = format!("slice-{i}");
        let mut history = Vec::new();
        for _ in 0..random.below(6) {
            let owner = format!("service-{}", 1 + random.below(3));
            let first = u8::try_from(random.below(12)).unwrap();
            let mut value = slice(&slice_name, &(first..first + 4).collect::<Vec<_>>());
            for fact in &mut value.endpoints {
                (fact.ready, fact.terminating) = (random.below(3) > 0, random.below(3) == 0);
                fact.node = Some(["n1", "n2"][random.below(2)].into());
            }
            history.push(match random.below(4) {
                0 => Event::Gone(Stream::all(Kind::Slices), slice_key(&slice_name)),
                _ => apply_slice(&owner, value),
            });
        }
        histories.push(history);
    }
    histories.push((0..random.below(3)).map(|i| Event::Here(in_zone(["a", "b", "c"][i]))).collect());
    histories
}
