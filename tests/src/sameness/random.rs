//! Random cases. In: a seed, and how many. Out: batches with a feed that changes on the way, and for each pick what
//! `selection` alone makes of the same facts: its table is built of them directly, without feed and mirror.

use std::net::{IpAddr, SocketAddr};

use filter::cases::{Answer, Batch, Connect, Settle, Step};
use filter::inquiry::{Held, Inquiry, Reply};
use selection::story::Outcome;
use selection::{
    Change, Draw, Endpoint, Failure, Family, Flow, Health, Millis, Path, Pin, Question, Row, Seed, Service,
    ServiceName, ServicePort, Slice, Table, Tried, Verdict,
};
use watcher::feed::Encoder;

use super::Case;

#[path = "../../../selection/examples/sameness/chance.rs"]
#[allow(missing_docs, unreachable_pub, reason = "selection has its own test with it")]
mod chance;

use chance::{Dice, Place};

/// Services of a batch.
const SERVICES: usize = 3;
/// Tables that come one after the other in a batch.
const TABLES: usize = 4;
/// Picks of each table.
const ASKS: usize = 10;
/// Connections with each table.
const CONNECTS: usize = 5;

/// Batches with at least so many picks of which everything is told, and half as many connections.
pub fn random(seed: u64, asks: usize) -> Vec<Case> {
    let mut dice = Dice(seed);
    (0..asks.div_ceil(TABLES * ASKS)).map(|number| World::random(&mut dice, number).case).collect()
}

/// What is known of one Service.
struct Known {
    service: Service,
    /// It is there.
    is_there: bool,
    /// Each with its number, in the order of their names.
    slices: Vec<(u64, Slice)>,
}

/// A batch that grows, and the table that there is.
struct World<'d> {
    dice: &'d mut Dice,
    place: Place,
    services: Vec<Known>,
    table: Table,
    version: u64,
    numbers: u64,
    pin: Option<Pin>,
    open: usize,
    now: Millis,
    case: Case,
}

impl<'d> World<'d> {
    fn random(dice: &'d mut Dice, number: usize) -> Self {
        let place = Place::random(dice);
        let name = |name: &Option<selection::Symbol>| name.as_deref().map(str::to_owned);
        let batch = Batch {
            node: name(&place.here.node),
            zone: name(&place.here.zone),
            seed: (dice.next(), dice.next()),
            steps: Vec::new(),
        };
        let mut world = World {
            dice,
            place,
            services: Vec::new(),
            table: Table::default(),
            version: 1,
            numbers: 0,
            pin: None,
            open: 0,
            now: 100_000,
            case: Case::new(format!("random batch {number}"), batch),
        };
        world.snapshot();
        for round in 0..TABLES {
            if round > 0 {
                world.change();
            }
            (0..ASKS).for_each(|_| world.ask());
            (0..CONNECTS).for_each(|_| world.connect());
        }
        let rows: Vec<Row> = world.table.all().map(|port| Row::from(&**port)).collect();
        let rows = serde_json::to_string(&rows).expect("JSON");
        world.case.add(Step::Rows, Some(Answer::Rows(rows)));
        world
    }

    /// The Service of this number. Its cluster IPs are its own; those outside others may have too.
    fn service(&mut self, at: usize) -> Service {
        let mut service = chance::service(self.dice, &self.place);
        service.name = ServiceName::new("shop", format!("web-{at}"));
        for ip in &mut service.cluster_ips {
            *ip = match ip {
                IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() + at as u32).into()),
                IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() + at as u128).into()),
            };
        }
        service
    }

    fn slice(&mut self, service: &ServiceName, at: usize) -> Slice {
        let slice = chance::slice(self.dice, &self.place, at);
        Slice { name: format!("{}-{at}", service.name).into(), ..slice }
    }

    fn snapshot(&mut self) {
        for at in 0..SERVICES {
            let service = self.service(at);
            let mut slices = Vec::new();
            for n in 0..2 + self.dice.below(3) {
                self.numbers += 1;
                slices.push((self.numbers, self.slice(&service.name, n)));
            }
            self.services.push(Known { service, is_there: true, slices });
        }
        let mut encoder = Encoder::snapshot(self.dice.next());
        for Known { service, slices, .. } in &self.services {
            encoder.service(service);
            slices.iter().for_each(|(number, slice)| encoder.slice(*number, &service.name, slice));
        }
        self.case.frames(encoder.complete(self.version, None));
        (0..SERVICES).for_each(|at| self.rebuild(at));
    }

    /// Something changes in one Service.
    fn change(&mut self) {
        let at = self.dice.below(SERVICES);
        let name = self.services[at].service.name.clone();
        let n = self.dice.below(self.services[at].slices.len().max(1));
        let what = if self.services[at].slices.is_empty() { 0 } else { self.dice.below(8) };
        let (before, service, slice);
        let mut encoder = Encoder::changes(self.version);
        match what {
            0 | 1 => {
                service = self.service(at);
                encoder.service(&service);
                self.services[at].service = service.clone();
                self.services[at].is_there = true;
            }
            2 => {
                encoder.service_gone(&name);
                self.services[at].is_there = false;
            }
            3 => {
                let (number, _) = self.services[at].slices.remove(n);
                encoder.slice_gone(number);
            }
            _ => {
                let number;
                (number, before) = self.services[at].slices[n].clone();
                slice = if what == 4 {
                    Slice { name: before.name.clone(), ..chance::slice(self.dice, &self.place, n) }
                } else {
                    self.moody(before.clone())
                };
                encoder.slice_changed(number, &name, &before, &slice);
                self.services[at].slices[n].1 = slice.clone();
            }
        }
        let frames = encoder.complete(self.version + 1, None);
        self.version += 1;
        self.case.frames(frames);
        self.rebuild(at);
    }

    /// The same endpoints, some in another condition.
    fn moody(&mut self, mut slice: Slice) -> Slice {
        for fact in &mut slice.endpoints {
            fact.ready ^= self.dice.chance(20);
            fact.terminating ^= self.dice.chance(5);
        }
        slice
    }

    /// Builds one Service's part of the table from its facts.
    fn rebuild(&mut self, at: usize) {
        let Known { service, is_there, slices } = &self.services[at];
        let slices: Vec<&Slice> = slices.iter().map(|(_, slice)| slice).collect();
        let ports = if *is_there {
            selection::build(service, &slices, &self.place.here, self.table.ports(&service.name))
        } else {
            Vec::new()
        };
        self.table = self.table.with(&[Change { service: service.name.clone(), ports }]);
    }

    fn client(&mut self) -> SocketAddr {
        let (dice, place) = (&mut *self.dice, &self.place);
        let ip = if dice.chance(50) { IpAddr::V4(place.v4(dice)) } else { IpAddr::V6(place.v6(dice)) };
        SocketAddr::new(ip, dice.next() as u16)
    }

    /// A pick of which everything is told.
    fn ask(&mut self) {
        let at = self.dice.below(SERVICES);
        let service = &self.services[at].service;
        let dialled = chance::destination(self.dice, service, self.table.ports(&service.name));
        let name = service.name.clone();
        let client = self.client();
        let mut inquiry = Inquiry::dialled(dialled.into(), dialled.protocol, client);
        let table = self.table.clone();
        let mut found = table.at(&dialled);
        if self.dice.chance(20) {
            let port = [format!("p{}", self.dice.below(3)), (80 + self.dice.below(3)).to_string()];
            let port = &port[self.dice.below(2)];
            inquiry = Inquiry {
                service: Some(name.to_string()),
                port: Some(port.clone()),
                address: None,
                ..inquiry
            };
            let family = Family::of(&client.ip().to_canonical());
            found = table.port(&name, port, family).map(|port| (Path::ClusterIp, port));
        }
        let dice = &mut *self.dice;
        inquiry.inside = dice.chance(40);
        inquiry.seed = (dice.next(), dice.next());
        inquiry.turn = if dice.chance(50) { dice.next() } else { dice.next() % 100 };
        inquiry.now = self.now + dice.next() % 100_000;
        inquiry.pin = self.pin.map(Held::from);
        let Some((path, port)) = found else {
            let reply = Reply { outcome: Outcome::Pass, endpoint: None, pin: None };
            return self.case.add(Step::Ask(inquiry), Some(Answer::Asked(reply)));
        };
        let n = port.endpoints.len();
        let percent = [0, 0, 10, 40, 80, 100][dice.below(6)];
        let health = Listed {
            loads: (0..n).map(|_| dice.below(4) as u32).collect(),
            aside: (0..n).map(|_| dice.chance(percent)).collect(),
        };
        let mut tried = Tried::default();
        for _ in 0..dice.below(4) {
            if n > 0 && dice.chance(50) {
                let address = port.endpoints[dice.below(n)].address;
                tried.add(address);
                inquiry.tried.push(address);
            }
        }
        for (endpoint, (load, aside)) in port.endpoints.iter().zip(health.loads.iter().zip(&health.aside)) {
            if *load > 0 {
                inquiry.loads.push((endpoint.address, *load));
            }
            if *aside {
                inquiry.aside.push(endpoint.address);
            }
        }
        let flow = Flow { client, inside: inquiry.inside };
        let draw = Draw::new(&Seed(inquiry.seed.0, inquiry.seed.1), &flow, inquiry.turn);
        let question = Question { path, flow, draw, now: inquiry.now, pin: self.pin, tried: &tried };
        let reply = self.pick(port, &question, &health);
        self.case.add(Step::Ask(inquiry), Some(Answer::Asked(reply)));
    }

    /// What `selection` says; a new pin is the next one's, most of the time.
    fn pick(&mut self, port: &ServicePort, question: &Question<'_>, health: &Listed) -> Reply {
        match selection::pick(port, question, health) {
            Verdict::Refuse => Reply { outcome: Outcome::Refuse, endpoint: None, pin: None },
            Verdict::Drop => Reply { outcome: Outcome::Drop, endpoint: None, pin: None },
            Verdict::Endpoint(endpoint, pin) => {
                if pin.is_some() || self.dice.chance(20) {
                    self.pin = pin.filter(|_| self.dice.chance(80));
                }
                Reply {
                    outcome: Outcome::Endpoint,
                    endpoint: Some(endpoint.address),
                    pin: pin.map(Held::from),
                }
            }
        }
    }

    /// A connection that the VM itself keeps account of, and perhaps the end of another one.
    fn connect(&mut self) {
        let at = self.dice.below(SERVICES);
        let service = &self.services[at].service;
        let dialled = chance::destination(self.dice, service, self.table.ports(&service.name));
        let dice = &mut *self.dice;
        self.now += dice.next() % 2_000;
        // Few clients, so that they come back.
        let client = SocketAddr::new([10, 1, 2, dice.below(6) as u8].into(), dice.next() as u16);
        let most = 1 + dice.below(filter::vm::ATTEMPTS);
        self.case.add(Step::Connect(Connect { dialled: dialled.into(), client, most, now: self.now }), None);
        self.open += 1;
        if dice.chance(60) {
            let settle = Settle {
                which: dice.below(self.open),
                tried: 1 + dice.below(most),
                failure: dice.chance(50).then(|| dice.below(Failure::ALL.len())),
                connected: dice.chance(50),
                reached: dice.chance(30).then(|| dice.below(filter::vm::ATTEMPTS + 1)),
                now: self.now + dice.next() % 500,
            };
            self.open -= 1;
            self.case.add(Step::Settle(settle), None);
        }
    }
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
