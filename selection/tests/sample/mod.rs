//! Services, slices and health to pick from: small values that tests and benches vary.
#![allow(dead_code, reason = "each test uses its part of the samples")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use selection::{
    Balance, Draw, Endpoint, Fact, Family, Flow, Health, Here, Kind, Millis, Path, Pin, Pod, Port, Protocol,
    Question, Seed, Service, ServiceName, ServicePort, Slice, SlicePort, Tried, Verdict,
};

/// The seed of every sample draw.
pub(crate) const SEED: Seed = Seed(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);

/// A Service of one TCP port, 80, without anything special.
pub(crate) fn service(name: &str, cluster_ip: [u8; 4], balance: Balance) -> Service {
    Service {
        name: ServiceName::new("shop", name),
        kind: Kind::ClusterIp,
        cluster_ips: [IpAddr::from(cluster_ip)].into(),
        ports: [port("http", 80)].into(),
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
        balance,
    }
}

pub(crate) fn port(name: &str, port: u16) -> Port {
    Port { name: name.into(), protocol: Protocol::Tcp, port, node_port: 0 }
}

/// A slice of IPv4 for the port `http`, whose endpoints listen on 8080.
pub(crate) fn slice(name: &str, endpoints: impl IntoIterator<Item = Fact>) -> Slice {
    Slice {
        name: name.into(),
        family: Some(Family::V4),
        headless: false,
        ports: [SlicePort { name: Some("http".into()), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: endpoints.into_iter().collect(),
        triggered: None,
    }
}

/// A ready endpoint of a Pod named after its address.
pub(crate) fn fact(ip: IpAddr) -> Fact {
    let name = format!("pod-{ip}");
    let pod = Pod { id: Pod::id_of(&name), name: name.into() };
    Fact {
        ip,
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone: None,
        hints: None,
        pod: Some(pod),
    }
}

/// The `i`th Pod address.
pub(crate) fn ip(i: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x0af4_0001 + i as u32).into()
}

/// The Service port of `n` ready endpoints.
pub(crate) fn ports(n: usize, balance: Balance) -> Arc<ServicePort> {
    of_facts(&service("web", [10, 96, 0, 1], balance), (0..n).map(|i| fact(ip(i))))
}

/// The only port of `service` with `facts` in one slice.
pub(crate) fn of_facts(service: &Service, facts: impl IntoIterator<Item = Fact>) -> Arc<ServicePort> {
    let slice = slice("web-1", facts);
    let mut built = selection::build(service, &[&slice], &Here::default(), &[]);
    assert_eq!(built.len(), 1, "{service:?} has one port");
    built.remove(0)
}

/// The `i`th client, outside of the cluster.
pub(crate) fn flow(i: u32) -> Flow {
    let ip = Ipv4Addr::from_bits(0xc612_0000 + i / 16);
    Flow { client: SocketAddr::new(ip.into(), 20_000 + (i % 16) as u16), inside: false }
}

/// What a first pick over the cluster IP asks.
pub(crate) fn question(flow: Flow, turn: u64, tried: &Tried) -> Question<'_> {
    Question { path: Path::ClusterIp, flow, draw: Draw::new(&SEED, &flow, turn), now: 0, pin: None, tried }
}

/// The endpoint of a verdict that must have one, with the pin.
#[track_caller]
pub(crate) fn chosen(verdict: Verdict<'_>) -> (&Endpoint, Option<Pin>) {
    match verdict {
        Verdict::Endpoint(endpoint, pin) => (endpoint, pin),
        other => panic!("an endpoint was expected, not {other:?}"),
    }
}

/// Health as two lists by the position of an endpoint in its port; what is beyond them is idle and well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listed {
    pub(crate) loads: Vec<u32>,
    pub(crate) aside: Vec<bool>,
}

impl Health for Listed {
    fn load(&self, index: usize, _: &Endpoint) -> u32 {
        self.loads.get(index).copied().unwrap_or(0)
    }

    fn aside(&self, index: usize, _: &Endpoint, _: Millis) -> bool {
        self.aside.get(index).copied().unwrap_or(false)
    }
}
