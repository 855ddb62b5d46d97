//! How connections spread, in numbers: uniform where chance rules, exactly even in turns, close together with
//! least-connections; and the same with endpoints put aside.
#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]

mod sample;

use sample::Listed;
use selection::{Balance, Health, ServicePort, Tried, pick};

/// The bound that chi-square with `freedom` degrees exceeds once in a million runs: Wilson and Hilferty's
/// approximation. Draws are fixed here, so that a run passes always or never.
fn once_in_a_million(freedom: usize) -> f64 {
    let k = freedom as f64;
    let term = 2.0 / (9.0 * k);
    k * (1.0 - term + 4.753 * term.sqrt()).powi(3)
}

/// How often each endpoint is picked in `picks` picks by as many flows.
fn counts(port: &ServicePort, health: &impl Health, picks: u32) -> Vec<u64> {
    let tried = Tried::default();
    let mut counts = vec![0; port.endpoints.len()];
    for i in 0..picks {
        let question = sample::question(sample::flow(i), u64::from(i), &tried);
        let (endpoint, _) = sample::chosen(pick(port, &question, health));
        counts
            [port.endpoints.binary_search_by_key(&endpoint.address, |e| e.address).expect("of the port")] +=
            1;
    }
    counts
}

/// The first `aside` of `n` endpoints, spread over the list by an odd stride.
fn listed(n: usize, aside: usize) -> Listed {
    let mut list = vec![false; n];
    let stride = (1..n).find(|s| gcd(*s, n) == 1 && *s > n / 3).unwrap_or(1);
    (0..aside).for_each(|i| list[i * stride % n] = true);
    assert_eq!(list.iter().filter(|aside| **aside).count(), aside);
    Listed { aside: list, loads: Vec::new() }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The positions that stay candidates under the rule of the half.
fn candidates(health: &Listed) -> Vec<usize> {
    let n = health.aside.len();
    let aside = health.aside.iter().filter(|aside| **aside).count();
    (0..n).filter(|i| aside > n / 2 || !health.aside[*i]).collect()
}

/// For pools of 2 to 50 and several numbers aside: chi-square of the counts, at most at its bound.
fn assert_uniform(balance: Balance, with_panic: bool) {
    let mut worst = (0.0, String::new());
    for n in 2..=50 {
        let port = sample::ports(n, balance);
        let mut numbers = vec![0, 1, n / 4, n / 2];
        if with_panic {
            numbers.extend([n / 2 + 1, n]);
        }
        for aside in numbers {
            let health = listed(n, aside);
            let among = candidates(&health);
            let mean = 300.0;
            let counts = counts(&port, &health, 300 * among.len() as u32);
            assert_eq!(
                among.iter().map(|i| counts[*i]).sum::<u64>(),
                counts.iter().sum::<u64>(),
                "only candidates of {n} with {aside} aside"
            );
            let chi: f64 = among.iter().map(|i| (counts[*i] as f64 - mean).powi(2) / mean).sum();
            let share = if among.len() == 1 { 0.0 } else { chi / once_in_a_million(among.len() - 1) };
            assert!(
                share <= 1.0,
                "{balance:?}: {n} endpoints, {aside} aside: chi-square {chi:.1}, {counts:?}"
            );
            if share > worst.0 {
                worst = (share, format!("{n} endpoints, {aside} aside, chi-square {chi:.1}"));
            }
        }
    }
    println!("{balance:?}: at most {:.2} of the bound, at {}", worst.0, worst.1);
}

#[test]
fn random_is_uniform_over_pools_of_2_to_50_whoever_is_aside() {
    assert_uniform(Balance::Random, true);
}

#[test]
fn least_connections_is_uniform_among_the_equally_loaded_whoever_is_aside() {
    assert_uniform(Balance::LeastConnections, false);
}

#[test]
fn round_robin_is_exactly_even_whoever_is_aside() {
    for n in 2..=50 {
        let port = sample::ports(n, Balance::RoundRobin);
        for aside in [0, 1, n / 4, n / 2, n / 2 + 1, n] {
            let health = listed(n, aside);
            let among = candidates(&health);
            // In n turns of the pool times the candidates, each of those gets n: one a round of its own, and
            // every share of those who are left out.
            let counts = counts(&port, &health, (n * among.len()) as u32);
            for i in 0..n {
                let due = if among.contains(&i) { n as u64 } else { 0 };
                assert_eq!(counts[i], due, "{n} endpoints, {aside} aside: {counts:?}");
            }
        }
        let once = counts(&port, &Listed::default(), n as u32);
        assert!(once.iter().all(|count| *count == 1), "once each in {n} turns: {once:?}");
    }
}

#[test]
fn endpoints_that_were_tried_leave_the_rest_uniform() {
    for balance in [Balance::Random, Balance::LeastConnections, Balance::RoundRobin] {
        for n in [3, 10, 50] {
            let port = sample::ports(n, balance);
            let mut tried = Tried::default();
            tried.add(port.endpoints[0].address);
            tried.add(port.endpoints[n / 2].address);
            let left = n - 2;
            let mut counts = vec![0.0f64; n];
            for i in 0..(300 * left) as u32 {
                let question = sample::question(sample::flow(i), u64::from(i), &tried);
                let (endpoint, _) = sample::chosen(pick(&port, &question, &Listed::default()));
                let at = port.endpoints.iter().position(|e| e.address == endpoint.address);
                counts[at.expect("of the port")] += 1.0;
            }
            assert_eq!((counts[0], counts[n / 2]), (0.0, 0.0), "not once more");
            let others = (0..n).filter(|i| *i != 0 && *i != n / 2);
            let chi: f64 = others.map(|i| (counts[i] - 300.0).powi(2) / 300.0).sum();
            assert!(
                chi <= once_in_a_million(left.max(2) - 1),
                "{balance:?}, {n} endpoints: {chi:.1}, {counts:?}"
            );
        }
    }
}

/// Opens `connections` that never end, and returns how far the most loaded is above the mean.
fn excess(port: &ServicePort, aside: Vec<bool>, connections: u32) -> f64 {
    let tried = Tried::default();
    let n = port.endpoints.len();
    let mut health = Listed { loads: vec![0; n], aside };
    for i in 0..connections {
        let question = sample::question(sample::flow(i), u64::from(i), &tried);
        let (endpoint, _) = sample::chosen(pick(port, &question, &health));
        let at = port.endpoints.iter().position(|e| e.address == endpoint.address).expect("of the port");
        health.loads[at] += 1;
    }
    let most = health.loads.iter().max().copied().unwrap_or(0);
    let among = candidates(&health);
    f64::from(most) - f64::from(connections) / among.len() as f64
}

#[test]
fn least_connections_keeps_the_most_loaded_within_4_of_the_mean_where_random_is_far_off() {
    let mut most: f64 = 0.0;
    for n in 2..=50 {
        let port = sample::ports(n, Balance::LeastConnections);
        for aside in [0, n / 4, n / 2] {
            let excess = excess(&port, listed(n, aside).aside, 200 * n as u32);
            assert!(excess <= 4.0, "{n} endpoints, {aside} aside: {excess:.1} above the mean");
            most = most.max(excess);
        }
    }
    let random = excess(&sample::ports(50, Balance::Random), vec![false; 50], 200 * 50);
    println!("least-connections: at most {most:.1} above the mean; random: {random:.1}");
    assert!(random > 2.0 * most, "random {random:.1}, least-connections {most:.1}");
}

#[test]
fn one_client_that_connects_again_and_again_is_spread_by_the_turn() {
    let port = sample::ports(10, Balance::Random);
    let tried = Tried::default();
    let mut counts = [0.0f64; 10];
    for _ in 0..10_000 {
        let question = sample::question(sample::flow(7), port.next_turn(), &tried);
        let (endpoint, _) = sample::chosen(pick(&port, &question, &Listed::default()));
        counts[port.endpoints.iter().position(|e| e.address == endpoint.address).expect("of the port")] +=
            1.0;
    }
    let chi: f64 = counts.iter().map(|count| (count - 1_000.0).powi(2) / 1_000.0).sum();
    assert!(chi <= once_in_a_million(9), "{chi:.1}, {counts:?}");
}
