//! Picks agree with a naive oracle: who may be chosen, refuse against drop, source ranges, pins, and the better
//! of two. The oracle starts from the facts of the slices, not from the pools of the port.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]

mod sample;

use std::net::{IpAddr, SocketAddr};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use sample::Listed;
use selection::{
    Balance, Draw, Endpoint, Fact, Flow, Here, Kind, Path, Pin, Pod, Question, Service, ServicePort, Step,
    Tried, Unpinned, Verdict, explain, pick, put_aside,
};

/// An endpoint of a case. Its address is its position.
#[derive(Clone, Debug)]
struct Member {
    ready: bool,
    serving: bool,
    terminating: bool,
    here: bool,
    pod: u64,
    load: u32,
    aside: bool,
}

/// A pin, relative to the rest of the case.
#[derive(Clone, Debug)]
struct Held {
    of: Index,
    elsewhere: bool,
    other_pod: bool,
    ago: u64,
    seconds: u32,
}

#[derive(Clone, Debug)]
struct Case {
    balance: Balance,
    internal_local: bool,
    external_local: bool,
    ranges: Vec<&'static str>,
    affinity: Option<u32>,
    members: Vec<Member>,
    path: Path,
    client: IpAddr,
    inside: bool,
    hash: u64,
    turn: u64,
    now: u64,
    pin: Option<Held>,
    tried: Vec<Index>,
}

/// The timeouts that a Service of a case may have, in seconds.
const TIMEOUTS: [u32; 3] = [1, 10_800, u32::MAX];

/// Maglev now and then: its tables are dear to fill.
fn balance() -> impl Strategy<Value = Balance> {
    prop_oneof![
        10 => Just(Balance::LeastConnections),
        10 => Just(Balance::Random),
        10 => Just(Balance::RoundRobin),
        1 => Just(Balance::Maglev),
    ]
}

fn members() -> impl Strategy<Value = Vec<Member>> {
    // A case is of one mood, so that empty pools and pools that mostly fail are as common as sound ones.
    (0.0..=1.0f64, 0.0..=1.0f64, 0.0..=1.0f64).prop_flat_map(|(ready, here, aside)| {
        let flag = prop::bool::weighted;
        let member =
            (flag(ready), flag(0.6), flag(0.4), flag(here), select(vec![0, 7, 8]), 0..4u32, flag(aside));
        let member = member.prop_map(|(ready, serving, terminating, here, pod, load, aside)| Member {
            ready,
            serving,
            terminating,
            here,
            pod,
            load,
            aside,
        });
        vec(member, 0..=9)
    })
}

fn pin() -> impl Strategy<Value = Option<Held>> {
    let ago = select(vec![0, 1, 999, 1_000, 1_001, 10_800_000, 10_800_001, u64::MAX]);
    let flag = prop::bool::weighted;
    let held = (any::<Index>(), flag(0.1), flag(0.2), ago, select(TIMEOUTS.to_vec()));
    let held = held.prop_map(|(of, elsewhere, other_pod, ago, seconds)| Held {
        of,
        elsewhere,
        other_pod,
        ago,
        seconds,
    });
    prop::option::weighted(0.7, held)
}

fn case() -> impl Strategy<Value = Case> {
    let ranges = select(vec![
        vec![],
        vec!["10.0.0.0/8"],
        vec!["192.0.2.7/24", "198.51.100.0/24"],
        vec!["2001:db8::/32"],
        vec!["10.1.0.0/16", "0.0.0.0/0"],
    ]);
    let client = select(vec!["10.1.2.3", "192.0.2.200", "203.0.113.9", "::ffff:10.1.2.3", "2001:db8::1"]);
    let path = select(vec![Path::ClusterIp, Path::LoadBalancer, Path::ExternalIp, Path::NodePort]);
    let affinity = prop::option::weighted(0.8, select(TIMEOUTS.to_vec()));
    let policy = (balance(), any::<bool>(), any::<bool>(), ranges, affinity);
    let turn = prop_oneof![0..100u64, any::<u64>(), Just(u64::MAX)];
    let now = prop_oneof![0..20_000_000u64, Just(u64::MAX)];
    let asked = (path, client, any::<bool>(), any::<u64>(), turn, now);
    let tried = prop_oneof![2 => Just(vec![]), 3 => vec(any::<Index>(), 1..=8)];
    (policy, members(), asked, pin(), tried).prop_map(|(policy, members, asked, pin, tried)| {
        let (balance, internal_local, external_local, ranges, affinity) = policy;
        let (path, client, inside, hash, turn, now) = asked;
        let client = client.parse().expect("an address");
        Case {
            balance,
            internal_local,
            external_local,
            ranges,
            affinity,
            members,
            path,
            client,
            inside,
            hash,
            turn,
            now,
            pin,
            tried,
        }
    })
}

impl Case {
    fn address(i: usize) -> SocketAddr {
        SocketAddr::new(sample::ip(i), 8080)
    }

    fn port(&self) -> std::sync::Arc<ServicePort> {
        let service = Service {
            kind: Kind::LoadBalancer,
            load_balancer_vips: ["192.0.2.1".parse().expect("an address")].into(),
            external_ips: ["192.0.2.2".parse().expect("an address")].into(),
            source_ranges: self.ranges.iter().map(|range| range.parse().expect("a range")).collect(),
            internal_local: self.internal_local,
            external_local: self.external_local,
            affinity_seconds: self.affinity,
            ..sample::service("web", [10, 96, 0, 1], self.balance)
        };
        let facts = self.members.iter().enumerate().map(|(i, member)| Fact {
            ready: member.ready,
            serving: member.serving,
            terminating: member.terminating,
            node: Some(if member.here { "here" } else { "there" }.into()),
            pod: (member.pod != 0).then(|| Pod { name: "pod".into(), id: member.pod }),
            ..sample::fact(sample::ip(i))
        });
        let slice = sample::slice("web-1", facts);
        let here = Here { node: Some("here".into()), zone: None };
        selection::build(&service, &[&slice], &here, &[]).remove(0)
    }

    /// The health of the port's endpoints, which are those members that serve at all.
    fn health(&self, port: &ServicePort) -> Listed {
        let member = |e: &Endpoint| {
            (0..self.members.len()).find(|i| Self::address(*i) == e.address).expect("a known address")
        };
        Listed {
            loads: port.endpoints.iter().map(|e| self.members[member(e)].load).collect(),
            aside: port.endpoints.iter().map(|e| self.members[member(e)].aside).collect(),
        }
    }

    fn tried(&self) -> Tried {
        let mut tried = Tried::default();
        for at in self.tried.iter().filter(|_| !self.members.is_empty()) {
            tried.add(Self::address(at.index(self.members.len())));
        }
        tried
    }

    fn given_pin(&self) -> Option<Pin> {
        let held = self.pin.as_ref()?;
        let at = if self.members.is_empty() { 0 } else { held.of.index(self.members.len()) };
        let pod = self.members.get(at).map_or(0, |member| member.pod);
        Some(Pin {
            address: Self::address(if held.elsewhere { 200 } else { at }),
            pod: if held.other_pod { pod + 1 } else { pod },
            used: self.now.saturating_sub(held.ago),
            seconds: held.seconds,
        })
    }

    fn question<'a>(&self, tried: &'a Tried) -> Question<'a> {
        Question {
            path: self.path,
            flow: Flow { client: SocketAddr::new(self.client, 4321), inside: self.inside },
            draw: Draw { hash: self.hash, turn: self.turn },
            now: self.now,
            pin: self.given_pin(),
            tried,
        }
    }
}

/// What must come out.
#[derive(Debug, PartialEq)]
enum Expected {
    Drop,
    Refuse,
    Exhausted,
    Pinned(SocketAddr),
    OneOf(Vec<SocketAddr>),
}

fn expected(case: &Case) -> Expected {
    let all = || 0..case.members.len();
    let member = |i: &usize| &case.members[*i];
    let going = |i: &usize| member(i).serving && member(i).terminating;

    if case.path == Path::LoadBalancer {
        let v4: Vec<_> = case.ranges.iter().filter(|range| range.contains('.')).collect();
        let open = v4.is_empty() || v4.iter().any(|range| range.ends_with("/0"));
        // Read off the tables above: which client stands in which range.
        let is_in = |range: &str| match case.client.to_string().as_str() {
            "10.1.2.3" | "::ffff:10.1.2.3" => range.starts_with("10."),
            "192.0.2.200" => range.starts_with("192.0.2."),
            _ => false,
        };
        if !open && !v4.iter().any(|range| is_in(range)) {
            return Expected::Drop;
        }
    }
    let local = match case.path {
        Path::ClusterIp => case.internal_local,
        _ => case.external_local && !case.inside,
    };
    let stage = |here: bool| {
        let ready: Vec<usize> = all().filter(|i| member(i).ready && (member(i).here || !here)).collect();
        if ready.is_empty() {
            all().filter(|i| going(i) && (member(i).here || !here)).collect()
        } else {
            ready
        }
    };
    let pool = stage(local);
    if pool.is_empty() {
        let any = all().any(|i| member(&i).ready || going(&i));
        return if any { Expected::Drop } else { Expected::Refuse };
    }
    let tried = |i: &usize| case.tried.iter().any(|at| at.index(case.members.len()) == *i);
    let aside = pool.iter().filter(|i| member(i).aside).count();
    let most_aside = aside > pool.len() / 2;

    if let (Some(pin), Some(seconds)) = (case.given_pin(), case.affinity) {
        let fresh = u128::from(case.now - pin.used) <= u128::from(seconds) * 1000;
        let at = pool.iter().find(|i| Case::address(**i) == pin.address && member(i).pod == pin.pod);
        if let Some(at) = at
            && pin.seconds == seconds
            && fresh
            && !tried(at)
            && (most_aside || !member(at).aside)
        {
            return Expected::Pinned(Case::address(*at));
        }
    }
    let untried: Vec<usize> = pool.iter().copied().filter(|i| !tried(i)).collect();
    let well: Vec<usize> = untried.iter().copied().filter(|i| !member(i).aside).collect();
    let candidates = if most_aside || well.is_empty() { untried } else { well };
    match candidates.is_empty() {
        true => Expected::Exhausted,
        false => Expected::OneOf(candidates.into_iter().map(Case::address).collect()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pick_that_does_not_look_at_the_client_is_the_same_for_every_client(case in case(), other in any::<u32>()) {
        let case = Case { affinity: None, ..case };
        let port = case.port();
        if port.looks_at_client(case.path) {
            prop_assert!(port.balance == Balance::Maglev || case.path == Path::LoadBalancer);
            return Ok(());
        }
        let health = case.health(&port);
        let tried = case.tried();
        let question = case.question(&tried);
        let flow = Flow { client: SocketAddr::new(IpAddr::from(other.to_be_bytes()), 1), ..question.flow };
        let asked_by_another = pick(&port, &Question { flow, ..question }, &health);
        prop_assert_eq!(format!("{:?}", pick(&port, &question, &health)), format!("{:?}", asked_by_another));
    }

    #[test]
    fn a_pick_is_what_a_naive_reading_of_the_rules_allows(case in case()) {
        let port = case.port();
        let health = case.health(&port);
        let tried = case.tried();
        let question = case.question(&tried);
        let mut steps = Vec::new();
        let told = explain(&port, &question, &health, &mut |step| steps.push(step));
        let verdict = pick(&port, &question, &health);
        prop_assert_eq!(format!("{:?}", told), format!("{:?}", verdict), "explain is pick");

        let expected = expected(&case);
        match (&expected, verdict) {
            (Expected::Drop, Verdict::Drop) => {}
            (Expected::Refuse, Verdict::Refuse) => {
                let nowhere = matches!(steps.last(), Some(Step::Empty { elsewhere: false }));
                prop_assert!(nowhere, "{:?}", steps);
            }
            (Expected::Exhausted, Verdict::Refuse) => {
                prop_assert!(matches!(steps.last(), Some(Step::Exhausted)));
            }
            (Expected::Pinned(address), Verdict::Endpoint(endpoint, _)) => {
                prop_assert_eq!(*address, endpoint.address);
                let pinned = steps.iter().any(|step| matches!(step, Step::Pinned(_)));
                prop_assert!(pinned, "{:?}", steps);
            }
            (Expected::OneOf(candidates), Verdict::Endpoint(endpoint, _)) => {
                prop_assert!(candidates.contains(&endpoint.address), "{} of {:?}", endpoint.address, candidates);
                let void = steps.iter().any(|step| matches!(step, Step::Unpinned(_)));
                prop_assert_eq!(void, question.pin.is_some(), "a pin that does not hold is told of");
                for step in &steps {
                    if let Step::Candidates { candidates: counted, .. } = step {
                        prop_assert_eq!(*counted, candidates.len());
                    }
                }
            }
            (expected, verdict) => prop_assert!(false, "{:?} was expected, not {:?}", expected, verdict),
        }
        if let Verdict::Endpoint(endpoint, pin) = verdict {
            let renewed = case.affinity.map(|seconds| Pin {
                address: endpoint.address,
                pod: endpoint.pod,
                used: case.now,
                seconds,
            });
            prop_assert_eq!(pin, renewed, "a pick renews the pin, and only with affinity");
        }
    }

    #[test]
    fn least_connections_takes_the_less_loaded_of_two_candidates_and_a_failing_one_last(case in case()) {
        let case = Case { balance: Balance::LeastConnections, pin: None, ..case };
        let port = case.port();
        let health = case.health(&port);
        let tried = case.tried();
        let mut steps = Vec::new();
        let verdict = explain(&port, &case.question(&tried), &health, &mut |step| steps.push(step));
        let drawn: Vec<_> = steps
            .iter()
            .filter_map(|step| if let Step::Drawn(endpoint, load) = step { Some((*endpoint, *load)) } else { None })
            .collect();
        let Expected::OneOf(candidates) = expected(&case) else {
            prop_assert!(drawn.is_empty());
            return Ok(());
        };
        prop_assert_eq!(drawn.len(), if candidates.len() > 1 { 2 } else { 0 });
        let standing = |e: &Endpoint| {
            let at = port.endpoints.iter().position(|other| other.address == e.address).expect("of the port");
            (health.aside[at], health.loads[at])
        };
        let (taken, _) = sample::chosen(verdict);
        for (other, load) in &drawn {
            prop_assert!(candidates.contains(&other.address));
            prop_assert_eq!(*load, standing(other).1);
            prop_assert!(standing(taken) <= standing(other), "{:?} over {:?}", standing(taken), standing(other));
        }
        if let [(a, _), (b, _)] = drawn[..] {
            prop_assert_ne!(a.address, b.address, "two different ones");
        }
    }

    #[test]
    fn at_most_half_of_a_pool_is_put_aside_and_never_a_single_one(case in case()) {
        let port = case.port();
        let health = case.health(&port);
        for pool in [&port.cluster, &port.local] {
            let failing = pool.members.iter().filter(|i| health.aside[**i as usize]).count();
            let aside = put_aside(&port, pool, &health, case.now);
            prop_assert!(aside <= pool.members.len() / 2);
            prop_assert_eq!(aside, if failing > pool.members.len() / 2 { 0 } else { failing });
        }
    }
}

/// The reason why `pin` is void in a Service of three endpoints with an affinity of 10 s, or `None`.
fn unpinned(
    pin: Pin,
    change: impl FnOnce(&mut Service, &mut Vec<Fact>, &mut Listed, &mut Tried),
) -> Option<Unpinned> {
    let mut service = sample::service("web", [10, 96, 0, 1], Balance::Random);
    service.affinity_seconds = Some(10);
    let mut facts: Vec<_> = (0..3).map(|i| sample::fact(sample::ip(i))).collect();
    let (mut health, mut tried) = (Listed::default(), Tried::default());
    change(&mut service, &mut facts, &mut health, &mut tried);
    let port = sample::of_facts(&service, facts);
    let mut reason = None;
    let question = Question { now: 50_000, pin: Some(pin), ..sample::question(sample::flow(1), 0, &tried) };
    let verdict = explain(&port, &question, &health, &mut |step| {
        if let Step::Unpinned(why) = step {
            reason = Some(why);
        }
    });
    let (taken, _) = sample::chosen(verdict);
    if reason.is_none() {
        assert_eq!(taken.address, pin.address);
    }
    reason
}

#[test]
fn a_pin_tells_why_it_does_not_hold() {
    let address = SocketAddr::new(sample::ip(1), 8080);
    let pod = Pod::id_of(&format!("pod-{}", sample::ip(1)));
    let pin = Pin { address, pod, used: 40_000, seconds: 10 };
    assert_eq!(unpinned(pin, |_, _, _, _| ()), None, "10 s of 10 s");
    assert_eq!(unpinned(Pin { used: 60_000, ..pin }, |_, _, _, _| ()), None, "a clock that went back");
    assert_eq!(unpinned(Pin { used: 39_999, ..pin }, |_, _, _, _| ()), Some(Unpinned::Expired));
    assert_eq!(unpinned(Pin { seconds: 11, ..pin }, |_, _, _, _| ()), Some(Unpinned::Changed));
    assert_eq!(unpinned(pin, |s, _, _, _| s.affinity_seconds = None), Some(Unpinned::Changed));
    assert_eq!(unpinned(pin, |_, f, _, _| drop(f.remove(1))), Some(Unpinned::Gone));
    assert_eq!(unpinned(pin, |_, f, _, _| f[1].ready = false), Some(Unpinned::Gone));
    assert_eq!(unpinned(Pin { pod: pod + 1, ..pin }, |_, _, _, _| ()), Some(Unpinned::Gone), "another Pod");
    assert_eq!(unpinned(pin, |_, _, _, t| t.add(address)), Some(Unpinned::Failing));
    assert_eq!(unpinned(pin, |_, _, h, _| h.aside = vec![false, true, false]), Some(Unpinned::Failing));
    assert_eq!(unpinned(pin, |_, _, h, _| h.aside = vec![true, true, false]), None, "most are aside");
}

#[test]
fn the_ninth_endpoint_tried_and_later_ones_are_not_remembered() {
    let port = sample::ports(10, Balance::RoundRobin);
    let mut tried = Tried::default();
    let mut seen = std::collections::BTreeSet::new();
    for turn in 0..8 {
        let (endpoint, _) = sample::chosen(pick(
            &port,
            &sample::question(sample::flow(1), turn * 7, &tried),
            &Listed::default(),
        ));
        assert!(seen.insert(endpoint.address), "{} was tried", endpoint.address);
        tried.add(endpoint.address);
    }
    assert_eq!((tried.count(), Tried::MOST), (8, 8));
    for endpoint in &port.endpoints {
        tried.add(endpoint.address);
    }
    assert_eq!(tried.count(), 8);
    sample::chosen(pick(&port, &sample::question(sample::flow(1), 3, &tried), &Listed::default()));
}
