//! Which Services are wanted, and who waits for which place. Pure. In: questions, answers, who was used. Out: what to
//! ask for. Never waits.
//!
//! ```text
//!           asked               answered, a Service has it              not used
//! [nobody] ──────▶ [a place] ──────────────────────────▶ [a Service] ─────────────▶ [nobody]
//!                      └────── answered, nobody has it: the node's ──────────────────▲
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use selection::{Destination, ServiceName, Table};
use watcher::feed::{Request, Subscription};

/// Places asked for at once; whoever asks for another one is told that nobody knows.
const PLACES: usize = 256;

/// What is wanted. `W`: somebody who waits; dropped when there is nothing to wait for any more.
#[derive(Debug)]
pub(super) struct Wants<W> {
    /// Never fade.
    always: BTreeSet<ServiceName>,
    /// When each was last found in use, and how many connections it had had then.
    used: BTreeMap<ServiceName, (Instant, u64)>,
    /// Places whose Service is not known, the first request that has each, and who waits.
    places: BTreeMap<Destination, (u64, Vec<W>)>,
    /// Of the last request.
    number: u64,
    /// The last that was answered.
    answered: u64,
}

impl<W> Wants<W> {
    /// Wants these Services, and always will.
    pub(super) fn new(always: impl IntoIterator<Item = ServiceName>) -> Self {
        let always = always.into_iter().collect();
        Self { always, used: BTreeMap::new(), places: BTreeMap::new(), number: 1, answered: 0 }
    }

    /// What is to be asked for.
    pub(super) fn request(&self) -> Request {
        let services = self.always.iter().chain(self.used.keys()).cloned();
        let places = self.places.keys().copied().collect();
        Request { subscription: Subscription::services(services), places, number: self.number }
    }

    /// The last request has been answered.
    pub(super) fn is_answered(&self) -> bool {
        self.answered == self.number
    }

    /// Somebody wants to know whose these places are; whether there is something new to ask for.
    pub(super) fn ask(&mut self, asked: Vec<(Destination, W)>, table: &Table, now: Instant) -> bool {
        let mut is_new = false;
        for (place, waits) in asked {
            if let Some((_, port)) = table.at(&place) {
                self.uses(&port.id.service, now);
                continue;
            }
            let has_room = self.places.len() < PLACES;
            match self.places.get_mut(&place) {
                Some((_, waiting)) => waiting.push(waits),
                None if has_room => {
                    self.places.insert(place, (self.number + 1, vec![waits]));
                    is_new = true;
                }
                None => {}
            }
        }
        self.number += u64::from(is_new);
        is_new
    }

    /// The request of this number, and those before, have been answered: `table` has it. Gives the places that nobody has.
    pub(super) fn answered(&mut self, number: u64, table: &Table, now: Instant) -> Vec<Destination> {
        self.answered = number;
        let answered = self.places.extract_if(.., |_, (asked, _)| *asked <= number);
        let places: Vec<Destination> = answered.map(|(place, _)| place).collect();
        let mut unknown = Vec::new();
        for place in places {
            match table.at(&place) {
                Some((_, port)) => self.uses(&port.id.service, now),
                None => unknown.push(place),
            }
        }
        unknown
    }

    /// Nobody will answer for now. What was asked for still is, once somebody does.
    pub(super) fn give_up(&mut self) {
        self.answered = 0;
        self.places.values_mut().for_each(|(_, waiting)| waiting.clear());
    }

    /// Some had so many connections so far, of which so many are open; whether one was not used for `idle` and is wanted
    /// no longer.
    pub(super) fn fade(
        &mut self,
        counted: impl Iterator<Item = (ServiceName, u64, u64)>,
        now: Instant,
        idle: Duration,
    ) -> bool {
        let mut counts: BTreeMap<ServiceName, (u64, u64)> = BTreeMap::new();
        for (service, opened, open) in counted {
            let (all, active) = counts.entry(service).or_default();
            *all += opened;
            *active += open;
        }
        for (service, (at, opened)) in &mut self.used {
            let (all, active) = counts.get(service).copied().unwrap_or_default();
            if active > 0 || all > *opened {
                (*at, *opened) = (now, all);
            }
        }
        let before = self.used.len();
        self.used.retain(|_, (at, _)| now.duration_since(*at) < idle);
        let fades = self.used.len() < before;
        self.number += u64::from(fades);
        fades
    }

    fn uses(&mut self, service: &ServiceName, now: Instant) {
        if !self.always.contains(service) {
            self.used.entry(service.clone()).or_insert((now, 0)).0 = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use selection::{Balance, Change, Here, Kind, Port, Protocol, Service};

    const IDLE: Duration = Duration::from_secs(600);

    fn place(service: u8) -> Destination {
        Destination::new(([10, 96, 0, service], 80).into(), Protocol::Tcp)
    }

    fn name(service: u8) -> ServiceName {
        ServiceName::new("shop", format!("web-{service}").as_str())
    }

    /// The table with these Services.
    fn table(services: &[u8]) -> Table {
        let change = |number: &u8| {
            let port = Port { name: "p".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
            let service = Service {
                name: name(*number),
                kind: Kind::ClusterIp,
                cluster_ips: Box::new([[10, 96, 0, *number].into()]),
                ports: Box::new([port]),
                external_ips: Box::default(),
                load_balancer_vips: Box::default(),
                source_ranges: Box::default(),
                internal_local: false,
                external_local: false,
                affinity_seconds: None,
                health_check_node_port: 0,
                has_selector: true,
                proxy_protocol: false,
                proxy_name: None,
                balance: Balance::LeastConnections,
            };
            let ports = selection::build(&service, &[], &Here::default(), &[]);
            Change { service: service.name, ports }
        };
        Table::default().with(&services.iter().map(change).collect::<Vec<_>>())
    }

    fn wanted(wants: &Wants<u8>) -> (Subscription, Vec<Destination>, u64) {
        let request = wants.request();
        (request.subscription.clone(), request.places.to_vec(), request.number)
    }

    #[test]
    fn a_place_is_asked_for_until_it_is_answered_and_its_service_from_then_on() {
        let now = Instant::now();
        let mut wants = Wants::new([name(9)]);
        assert_eq!(wanted(&wants), (Subscription::services([name(9)]), vec![], 1));
        assert!(!wants.is_answered());
        assert!(wants.answered(1, &table(&[9]), now).is_empty() && wants.is_answered());
        assert!(wants.ask(vec![(place(1), 0), (place(2), 1)], &table(&[9]), now));
        assert!(!wants.ask(vec![(place(1), 2)], &table(&[9]), now), "it is asked for already");
        assert_eq!(wanted(&wants), (Subscription::services([name(9)]), vec![place(1), place(2)], 2));
        assert!(wants.answered(1, &table(&[9]), now).is_empty(), "an earlier answer says nothing of them");
        assert!(!wants.is_answered());
        assert_eq!(wants.answered(2, &table(&[1, 9]), now), [place(2)]);
        assert_eq!(wanted(&wants), (Subscription::services([name(1), name(9)]), vec![], 2));
        assert!(!wants.ask(vec![(place(1), 3)], &table(&[1, 9]), now), "the table has it");
    }

    #[test]
    fn a_service_without_connections_fades() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut wants = Wants::new([name(9)]);
        wants.ask(vec![(place(1), 0), (place(2), 1)], &table(&[]), start);
        wants.answered(2, &table(&[1, 2]), start);
        let counted = |one: (u64, u64), two: (u64, u64)| [(name(1), one.0, one.1), (name(2), two.0, two.1)];
        assert!(!wants.fade(counted((1, 1), (1, 0)).into_iter(), at(300), IDLE));
        assert!(!wants.fade(counted((1, 1), (1, 0)).into_iter(), at(899), IDLE));
        assert!(wants.fade(counted((1, 1), (1, 0)).into_iter(), at(900), IDLE), "it had no connection");
        assert_eq!(wanted(&wants), (Subscription::services([name(1), name(9)]), vec![], 3), "one is open");
        assert!(wants.fade([].into_iter(), at(1_500), IDLE));
        assert_eq!(wanted(&wants), (Subscription::services([name(9)]), vec![], 4));
    }

    #[test]
    fn nobody_waits_while_the_feed_is_lost_and_places_are_bounded() {
        let now = Instant::now();
        let mut wants = Wants::new([]);
        let (waits, waiting) = std::sync::mpsc::channel::<()>();
        wants.ask(vec![(place(1), waits)], &table(&[]), now);
        wants.give_up();
        assert!(waiting.recv().is_err(), "it was let go");
        assert_eq!(wants.request().places.len(), 1, "and is asked for still");
        let (waits, _waiting) = std::sync::mpsc::channel::<()>();
        let all = (0..1000).map(|port| {
            let place = Destination::new(([10, 96, 1, 1], port).into(), Protocol::Tcp);
            (place, waits.clone())
        });
        wants.ask(all.collect(), &table(&[]), now);
        assert_eq!(wants.request().places.len(), PLACES);
    }
}
