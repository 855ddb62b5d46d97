//! Random Services, slices and places, from a fixed series of numbers. In: [`Dice`]. Out: values. The tests of sameness
//! have it in common; nothing here knows what is made of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use selection::{
    Balance, Destination, Fact, Family, Here, Hints, Kind, Pod, Port, Protocol, Service, ServiceName,
    ServicePort, Slice, SlicePort, Symbol,
};

/// Where we are, and the names that occur there.
pub struct Place {
    pub here: Here,
    nodes: [Symbol; 3],
    zones: [Symbol; 3],
    /// Percent of endpoints that are ready, terminating, hinted for zones, hinted for nodes.
    moods: [u64; 4],
}

impl Place {
    pub fn random(dice: &mut Dice) -> Self {
        let nodes = ["n1", "n2", "n3"].map(Symbol::from);
        let zones = ["a", "b", "c"].map(Symbol::from);
        let here = Here {
            node: dice.chance(80).then(|| nodes[0].clone()),
            zone: dice.chance(80).then(|| zones[0].clone()),
        };
        let moods = [[20, 50, 95, 100], [0, 10, 50, 90], [0, 0, 90, 100], [0, 0, 90, 100]];
        Self { here, nodes, zones, moods: moods.map(|of| of[dice.below(4)]) }
    }

    pub fn v4(&self, dice: &mut Dice) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x0a00_0000 | (dice.next() as u32 & 0x0000_ffff))
    }

    pub fn v6(&self, dice: &mut Dice) -> Ipv6Addr {
        Ipv6Addr::from_bits((0xfd00 << 112) | u128::from(dice.next() & 0x0000_ffff))
    }
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1));
const EXTERNAL: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const VIP_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const VIP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

pub fn service(dice: &mut Dice, place: &Place) -> Service {
    // Maglev now and then: its tables are dear to fill.
    let balance = match dice.below(16) {
        0 => Balance::Maglev,
        n => [Balance::LeastConnections, Balance::Random, Balance::RoundRobin][n % 3],
    };
    let ports = (0..1 + dice.below(3)).map(|i| Port {
        name: format!("p{i}").into(),
        protocol: PROTOCOLS[dice.below(3)],
        port: 80 + i as u16,
        node_port: if dice.chance(50) { 30_000 + i as u16 } else { 0 },
    });
    let ports = ports.collect();
    let ranges = (0..dice.below(3)).filter_map(|_| {
        let length = [0, 12, 20, 24][dice.below(4)];
        ipnet::IpNet::new(IpAddr::V4(place.v4(dice)), length).ok()
    });
    let source_ranges = ranges.collect();
    Service {
        name: ServiceName::new("shop", format!("web-{}", dice.below(5))),
        kind: [Kind::ClusterIp, Kind::NodePort, Kind::LoadBalancer][dice.below(3)].clone(),
        cluster_ips: [&[V4][..], &[V6], &[V4, V6], &[V6, V4]][dice.below(4)].into(),
        ports,
        external_ips: if dice.chance(50) { [EXTERNAL].into() } else { [].into() },
        load_balancer_vips: if dice.chance(50) { [VIP_V4, VIP_V6].into() } else { [].into() },
        source_ranges,
        internal_local: dice.chance(30),
        external_local: dice.chance(40),
        affinity_seconds: dice.chance(50).then_some([1, 50, 10_800][dice.below(3)]),
        health_check_node_port: 0,
        has_selector: true,
        proxy_protocol: false,
        proxy_name: None,
        balance,
    }
}

pub fn slice(dice: &mut Dice, place: &Place, i: usize) -> Slice {
    let family = [Family::V4, Family::V6][dice.below(2)];
    let ports = (0..3).flat_map(|p| {
        PROTOCOLS.map(|protocol| SlicePort {
            name: Some(format!("p{p}").into()),
            protocol,
            port: 8_080 + p as u16,
        })
    });
    let most = [6, 12, 60][dice.below(3)];
    let endpoints = (0..dice.below(most)).map(|_| fact(dice, place, family)).collect();
    Slice {
        name: format!("web-{i}").into(),
        family: Some(family),
        headless: false,
        ports: ports.collect(),
        endpoints,
        triggered: None,
    }
}

fn fact(dice: &mut Dice, place: &Place, family: Family) -> Fact {
    let at = dice.below(40) as u16;
    let [ready, terminating, zones, nodes] = place.moods;
    let some = |dice: &mut Dice, percent: u64, of: &[Symbol; 3]| -> Box<[Symbol]> {
        if dice.chance(percent) { of[dice.below(2)..].into() } else { [].into() }
    };
    let hints = Hints { zones: some(dice, zones, &place.zones), nodes: some(dice, nodes, &place.nodes) };
    let pod = dice.below(3).to_string();
    Fact {
        ip: match family {
            Family::V4 => Ipv4Addr::new(10, 244, 0, at as u8).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, at).into(),
        },
        ready: dice.chance(ready),
        serving: dice.chance(60),
        terminating: dice.chance(terminating),
        node: dice.chance(90).then(|| place.nodes[dice.below(3)].clone()),
        zone: None,
        hints: Some(Box::new(hints)),
        pod: dice.chance(80).then(|| Pod { id: Pod::id_of(&pod), name: pod.into() }),
    }
}

/// An address that clients may dial: mostly one that is served.
pub fn destination(dice: &mut Dice, service: &Service, ports: &[Arc<ServicePort>]) -> Destination {
    if !ports.is_empty() && dice.chance(95) {
        let served = || ports.iter().flat_map(|port| port.destinations());
        let at = dice.below(served().count());
        if let Some((destination, _)) = served().nth(at) {
            return destination;
        }
    }
    let port = &service.ports[dice.below(service.ports.len())];
    let ip = [V4, V6, EXTERNAL, VIP_V4, VIP_V6][dice.below(5)];
    Destination { ip, port: port.port, protocol: port.protocol }
}

/// Splitmix64: numbers by definition.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}
