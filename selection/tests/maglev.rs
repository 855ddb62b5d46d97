//! Maglev in numbers: a client keeps its endpoint, on every host alike, and few move when an endpoint goes.
#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]

mod sample;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use sample::Listed;
use selection::{Balance, Draw, Fact, Flow, Here, Question, ServicePort, Tried, build, client_hash, pick};

/// The address of the `i`th client.
fn client(i: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x6440_0000 + i).into()
}

/// Where `port` sends a client.
fn endpoint(port: &ServicePort, client: IpAddr, health: &Listed) -> SocketAddr {
    let flow = Flow { client: SocketAddr::new(client, 4321), inside: false };
    sample::chosen(pick(port, &sample::question(flow, 0, &Tried::default()), health)).0.address
}

fn endpoints(port: &ServicePort, clients: u32) -> Vec<SocketAddr> {
    (0..clients).map(|i| endpoint(port, client(i), &Listed::default())).collect()
}

#[test]
fn a_client_gets_the_same_endpoint_whatever_its_port_the_turn_the_draw_and_the_load() {
    let port = sample::ports(20, Balance::Maglev);
    for i in 0..2_000 {
        let home = endpoint(&port, client(i), &Listed::default());
        let busy = Listed { loads: vec![i; 20], aside: Vec::new() };
        let tried = Tried::default();
        for other in [1, 40_000 + (i % 20_000) as u16] {
            let flow = Flow { client: SocketAddr::new(client(i), other), inside: i % 2 == 0 };
            let draw = Draw { hash: u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15), turn: u64::from(i) };
            let question = Question { draw, now: u64::from(i), ..sample::question(flow, 0, &tried) };
            assert_eq!(sample::chosen(pick(&port, &question, &busy)).0.address, home);
        }
        let IpAddr::V4(v4) = client(i) else { unreachable!("clients are IPv4") };
        assert_eq!(endpoint(&port, v4.to_ipv6_mapped().into(), &busy), home, "written as IPv6");
    }
}

#[test]
fn hosts_agree_whatever_the_order_of_the_facts_their_history_and_their_tallies() {
    let service = sample::service("web", [10, 96, 0, 1], Balance::Maglev);
    let facts: Vec<Fact> = (0..30).map(|i| sample::fact(sample::ip(i))).collect();
    let here = |node: &str| Here { node: Some(node.into()), zone: Some("a".into()) };
    let first = {
        let slice = sample::slice("web-1", facts.clone());
        build(&service, &[&slice], &here("one"), &[]).remove(0)
    };
    let second = {
        // Another host saw half of them first, in three slices, with failures and connections.
        let few = sample::slice("web-9", facts[10..25].iter().rev().cloned());
        let early = build(&service, &[&few], &here("two"), &[]);
        for (i, endpoint) in early[0].endpoints.iter().enumerate() {
            (0..i).for_each(|_| endpoint.tally.open());
        }
        let slices = [
            sample::slice("web-3", facts[20..].iter().rev().cloned()),
            sample::slice("web-1", facts[..5].iter().cloned()),
            sample::slice("web-2", facts[3..22].iter().cloned()),
        ];
        build(&service, &slices.each_ref(), &here("two"), &early).remove(0)
    };
    assert_eq!(endpoints(&first, 20_000), endpoints(&second, 20_000));
}

#[test]
fn at_most_2_of_n_clients_move_when_one_of_n_endpoints_goes_up_to_50() {
    const CLIENTS: u32 = 20_000;
    let service = sample::service("web", [10, 96, 0, 1], Balance::Maglev);
    let (mut most, mut at) = (0.0, (0, 0));
    for n in 2..=50 {
        let facts: Vec<Fact> = (0..n).map(|i| sample::fact(sample::ip(i * 7 + n))).collect();
        let full = sample::of_facts(&service, facts.clone());
        let before = endpoints(&full, CLIENTS);
        for gone in 0..n {
            let mut rest = facts.clone();
            let address = SocketAddr::new(rest.remove(gone).ip, 8080);
            let after = endpoints(&sample::of_facts(&service, rest), CLIENTS);
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            let forced = before.iter().filter(|before| **before == address).count();
            assert!(moved >= forced);
            let times = moved as f64 * n as f64 / f64::from(CLIENTS);
            assert!(times <= 2.0, "{moved} of {CLIENTS} clients moved when 1 of {n} went: {times:.2}/N");
            if times > most {
                (most, at) = (times, (n, gone));
            }
        }
    }
    println!("at most {most:.2}/N of the clients moved, when {at:?} went");
}

#[test]
fn clients_are_spread_evenly() {
    for n in [2, 3, 10, 50, 300] {
        let port = sample::ports(n, Balance::Maglev);
        let homes = endpoints(&port, 1_000 * n as u32);
        let of = |e: &selection::Endpoint| homes.iter().filter(|home| **home == e.address).count();
        let counts: Vec<usize> = port.endpoints.iter().map(of).collect();
        let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
        println!("{n} endpoints, 1,000 clients each: {least:?} to {most:?}");
        assert!(least >= Some(850) && most <= Some(1_150), "{n} endpoints: {counts:?}");
    }
}

#[test]
fn an_endpoint_put_aside_moves_its_own_clients_only_and_spreads_them() {
    for n in [2usize, 3, 10, 50] {
        let port = sample::ports(n, Balance::Maglev);
        for aside in [1, n / 4, n / 2] {
            let mut health = Listed { aside: vec![false; n], loads: Vec::new() };
            (0..aside).for_each(|i| health.aside[(i * 3 + 1) % n] = true);
            let is_aside = |address: SocketAddr| {
                let at = port.endpoints.iter().position(|e| e.address == address).expect("of the port");
                health.aside[at]
            };
            let (mut moved, mut taken) = (0usize, std::collections::BTreeMap::<SocketAddr, usize>::new());
            for i in 0..20_000 {
                let home = endpoint(&port, client(i), &Listed::default());
                let now = endpoint(&port, client(i), &health);
                assert_eq!(home == now, !is_aside(home), "client {i} of {n} endpoints, {aside} aside");
                assert!(!is_aside(now));
                if home != now {
                    moved += 1;
                    *taken.entry(now).or_default() += 1;
                }
            }
            let left = n - health.aside.iter().filter(|aside| **aside).count();
            let most = taken.values().max().copied().unwrap_or(0);
            let mean = moved as f64 / left as f64;
            assert!(most as f64 <= mean * 1.5 + 30.0, "{n} endpoints, {aside} aside: {most}, mean {mean:.0}");
        }
    }
}

#[test]
fn nobody_moves_when_most_are_put_aside() {
    let port = sample::ports(10, Balance::Maglev);
    let health = Listed { aside: (0..10).map(|i| i < 6).collect(), loads: Vec::new() };
    for i in 0..5_000 {
        assert_eq!(endpoint(&port, client(i), &health), endpoint(&port, client(i), &Listed::default()));
    }
}

#[test]
fn a_client_whose_endpoint_was_tried_gets_another_one_always_the_same() {
    let port = sample::ports(10, Balance::Maglev);
    for i in 0..5_000 {
        let mut tried = Tried::default();
        tried.add(endpoint(&port, client(i), &Listed::default()));
        let flow = Flow { client: SocketAddr::new(client(i), 4321), inside: false };
        let next = |turn| {
            let question = sample::question(flow, turn, &tried);
            sample::chosen(pick(&port, &question, &Listed::default())).0.address
        };
        assert_eq!(next(0), next(1));
        let home = endpoint(&port, client(i), &Listed::default());
        assert_ne!(next(0), home);
    }
}

#[test]
fn a_client_follows_an_order_of_its_own_past_whoever_was_tried_or_is_aside() {
    let port = sample::ports(10, Balance::Maglev);
    let next = |i: u32, tried: &[SocketAddr], aside: &[SocketAddr]| {
        let mut all = Tried::default();
        tried.iter().for_each(|address| all.add(*address));
        let flow = Flow { client: SocketAddr::new(client(i), 4321), inside: false };
        let aside = port.endpoints.iter().map(|endpoint| aside.contains(&endpoint.address)).collect();
        let health = Listed { aside, loads: Vec::new() };
        sample::chosen(pick(&port, &sample::question(flow, 0, &all), &health)).0.address
    };
    for i in 0..1_000 {
        let mut order: Vec<SocketAddr> = Vec::new();
        for _ in 0..5 {
            order.push(next(i, &order, &[]));
        }
        // Each of the first four is well, was tried or is aside.
        for case in 0..3_u32.pow(4) {
            let is = |at: usize| case / 3_u32.pow(at as u32) % 3;
            let those = |what| (0..4).filter(|at| is(*at) == what).map(|at| order[at]).collect::<Vec<_>>();
            let expected = (0..4).find(|at| is(*at) == 0).unwrap_or(4);
            assert_eq!(next(i, &those(1), &those(2)), order[expected], "{order:?} {case}");
        }
    }
}

#[test]
fn more_endpoints_than_a_table_has_entries_still_serve() {
    let port = sample::ports(70_000, Balance::Maglev);
    let homes: std::collections::BTreeSet<_> = endpoints(&port, 2_000).into_iter().collect();
    assert!(homes.len() > 1_900, "{} homes of 2,000 clients", homes.len());
}

#[test]
fn the_fixed_hashes_stay_what_they_are() {
    // Hosts of different releases must agree: a change of these moves every client.
    let hash = |client: &str| client_hash(client.parse().expect("an address"));
    assert_eq!(hash("192.0.2.1"), 10_801_868_193_361_724_956, "splitmix64 of the address");
    assert_eq!(hash("2001:db8::1"), 5_613_903_895_206_896_597);
    let port = sample::ports(50, Balance::Maglev);
    let digest = (0..1_000).fold(0, |digest: u64, i| {
        let SocketAddr::V4(home) = endpoint(&port, client(i), &Listed::default()) else { return 0 };
        selection::fixed_hash(&(digest ^ u64::from(home.ip().to_bits())).to_le_bytes())
    });
    assert_eq!(digest, 6_369_160_600_402_182_376);
}
