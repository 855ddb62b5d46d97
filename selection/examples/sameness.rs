//! Random picks, folded into one number: the same code runs natively and as wasm, and must give the same number.
//! In: how many cases. Out: the digest. Draws chance from a fixed series; knows no clock and no input but these.

use std::net::{IpAddr, SocketAddr};

use selection::{
    Change, Draw, Endpoint, Flow, Health, Millis, Pin, Question, Seed, Service, Slice, Table, Tried, Verdict,
    build, fixed_hash, pick,
};

#[path = "sameness/chance.rs"]
#[allow(missing_docs, unreachable_pub, reason = "a module here and in the end-to-end tests")]
mod chance;

use chance::{Dice, Place, destination, service, slice};

/// Services that are built; each serves this many of the cases.
const PICKS_A_SERVICE: u32 = 50;

/// The digest of `cases` random picks.
#[unsafe(no_mangle)]
#[allow(unsafe_code, reason = "the host of a wasm module finds the function by its name")]
pub extern "C" fn digest(cases: u32) -> u64 {
    let mut dice = Dice(0x5eed);
    let mut digest = Digest(0);
    let mut table = Table::default();
    let mut left = cases;
    while left > 0 {
        let place = Place::random(&mut dice);
        let service = service(&mut dice, &place);
        let slices: Vec<Slice> = (0..2 + dice.below(3)).map(|i| slice(&mut dice, &place, i)).collect();
        let old = table.ports(&service.name);
        let ports = build(&service, &slices.iter().collect::<Vec<_>>(), &place.here, old);
        table = table.with(&[Change { service: service.name.clone(), ports: ports.clone() }]);
        for port in &ports {
            for endpoint in &port.endpoints {
                digest.endpoint(endpoint);
                digest.number(u64::from(endpoint.in_cluster) * 2 + u64::from(endpoint.in_local));
            }
            digest.number(u64::from(port.has_any));
        }
        let picks = PICKS_A_SERVICE.min(left);
        left -= picks;
        let mut pin = None;
        for _ in 0..picks {
            pin = one_pick(&mut dice, &place, &service, &table, pin, &mut digest);
        }
    }
    digest.0
}

/// Dials one of the addresses of `service`, picks, folds the verdict, and returns the client's pin.
fn one_pick(
    dice: &mut Dice,
    place: &Place,
    service: &Service,
    table: &Table,
    pin: Option<Pin>,
    digest: &mut Digest,
) -> Option<Pin> {
    let dialled = destination(dice, service, table.ports(&service.name));
    let Some((path, port)) = table.at(&dialled) else {
        digest.number(1);
        return pin;
    };
    let client = if dice.chance(50) { IpAddr::V4(place.v4(dice)) } else { IpAddr::V6(place.v6(dice)) };
    let flow = Flow { client: SocketAddr::new(client, dice.next() as u16), inside: dice.chance(40) };
    let n = port.endpoints.len();
    let percent = [0, 0, 10, 40, 80, 100][dice.below(6)];
    let health = Listed {
        loads: (0..n).map(|_| dice.below(4) as u32).collect(),
        aside: (0..n).map(|_| dice.chance(percent)).collect(),
    };
    let mut tried = Tried::default();
    for _ in 0..dice.below(4) {
        if n > 0 && dice.chance(50) {
            tried.add(port.endpoints[dice.below(n)].address);
        }
    }
    let seed = Seed(dice.next(), dice.next());
    let draw = Draw::new(&seed, &flow, if dice.chance(50) { port.next_turn() } else { dice.next() });
    let now = 100_000 + dice.next() % 100_000;
    let question = Question { path, flow, draw, now, pin, tried: &tried };
    match pick(port, &question, &health) {
        Verdict::Refuse => digest.number(2),
        Verdict::Drop => digest.number(3),
        Verdict::Endpoint(endpoint, new) => {
            digest.endpoint(endpoint);
            if let Some(new) = new {
                digest.address(new.address);
                digest.number(new.pod);
                digest.number(new.used);
                digest.number(u64::from(new.seconds));
            }
            if dice.chance(30) {
                endpoint.tally.open();
            }
            return new.filter(|_| dice.chance(80));
        }
    }
    pin
}

/// Health as two lists.
struct Listed {
    loads: Vec<u32>,
    aside: Vec<bool>,
}

impl Health for Listed {
    fn load(&self, index: usize, _: &Endpoint) -> u32 {
        self.loads[index]
    }

    fn aside(&self, index: usize, _: &Endpoint, _: Millis) -> bool {
        self.aside[index]
    }
}

/// Everything that was folded in so far.
struct Digest(u64);

impl Digest {
    fn number(&mut self, number: u64) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.0.to_le_bytes());
        bytes[8..].copy_from_slice(&number.to_le_bytes());
        self.0 = fixed_hash(&bytes);
    }

    fn address(&mut self, address: SocketAddr) {
        let bits = match address.ip() {
            IpAddr::V4(ip) => u128::from(ip.to_bits()),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        self.number(bits as u64);
        self.number((bits >> 64) as u64);
        self.number(u64::from(address.port()));
    }

    fn endpoint(&mut self, endpoint: &Endpoint) {
        self.address(endpoint.address);
        self.number(endpoint.pod);
        self.number(u64::from(endpoint.tally.active()));
    }
}
