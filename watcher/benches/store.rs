//! What a store costs: building a table from nothing, one endpoint's change, memory. Prints each figure beside its
//! bound, and fails where a bound is not kept. Two sizes side by side show what grows with the cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench fails by panicking")]

mod cluster;

use std::hint::black_box;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use cluster::{ALLOCATED, LARGE, SLICE, SMALL, cpu, resident, service, slice};
use selection::{Here, Table};
use watcher::store::{Event, Kind, Store, Stream};

/// Changes that are timed; the median counts.
const CHANGES: usize = 400;

/// The figures of one size.
struct Figures {
    build: Duration,
    allocated: usize,
    resident: usize,
    small: Spread,
    large: Spread,
}

#[derive(Clone, Copy)]
struct Spread {
    median: Duration,
    p99: Duration,
}

fn main() {
    let sizes = [1_000, 10_000];
    // Each in a process of its own, so that memory is its own.
    if let Some(services) = std::env::args().skip(1).find_map(|argument| argument.parse().ok()) {
        print_figures(&measure(services));
        return;
    }
    let columns: Vec<Vec<f64>> = sizes.iter().map(|services| child(*services)).collect();
    println!(
        "store and table, {SMALL} endpoints a Service, hints for zones, names of Pods; CPU of one thread"
    );
    println!("{:<58}{:>14}{:>14}{:>10}", "", "1,000 Services", "10,000", "bound");
    let rows = [
        ("everything built from nothing, ms", 1_000.0),
        ("allocated by store and table, MB", 60.0),
        ("resident, more than before, MB", 60.0),
        ("one endpoint of 10 changes, in the table, µs, median", 50.0),
        ("  99th percentile, µs", f64::INFINITY),
        ("one endpoint of 5,000 changes, in the table, µs, median", 1_000.0),
        ("  99th percentile, µs", f64::INFINITY),
    ];
    let mut is_kept = true;
    for (i, (what, bound)) in rows.into_iter().enumerate() {
        let [small, large] = [columns[0][i], columns[1][i]];
        let is_over = small > bound || large > bound;
        is_kept &= !is_over;
        let shown = if bound.is_finite() { format!("{bound}") } else { String::new() };
        println!(
            "{what:<58}{small:>14.1}{large:>14.1}{shown:>10}{}",
            if is_over { "  NOT KEPT" } else { "" }
        );
    }
    if !is_kept {
        std::process::exit(1);
    }
}

/// The figures of a process that measures `services`.
fn child(services: usize) -> Vec<f64> {
    let program = std::env::current_exe().expect("this program has a path");
    let output = std::process::Command::new(program).arg(services.to_string()).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.split_whitespace().map(|figure| figure.parse().expect("a figure")).collect()
}

fn print_figures(figures: &Figures) {
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    let mega = |bytes: usize| bytes as f64 / 1e6;
    println!(
        "{} {} {} {} {} {} {}",
        micros(figures.build) / 1e3,
        mega(figures.allocated),
        mega(figures.resident),
        micros(figures.small.median),
        micros(figures.small.p99),
        micros(figures.large.median),
        micros(figures.large.p99),
    );
}

fn measure(services: usize) -> Figures {
    // No zone of our own, so that every endpoint serves and hints only take room.
    let here = Here { node: Some("node-1".into()), zone: None };
    let (resident, allocated) = (resident(), ALLOCATED.load(Relaxed));
    let mut store = Store::new(here);
    let streams = [Stream::all(Kind::Services), Stream::all(Kind::Slices)];
    let mut build = Duration::ZERO;
    let begun = cpu();
    streams.iter().for_each(|stream| store.apply(Event::ListBegins(stream.clone())));
    build += cpu() - begun;
    for i in 0..services {
        // Made as they come from the API, one after the other; only what the store does counts.
        let (service, slice) = (service(i), slice(i, 0, SMALL, None));
        let begun = cpu();
        store.apply(service);
        store.apply(slice);
        build += cpu() - begun;
    }
    let begun = cpu();
    streams.into_iter().for_each(|stream| store.apply(Event::ListEnds(stream)));
    let table = store.publish().expect("everything is listed");
    build += cpu() - begun;
    assert_eq!(table.all().count(), services);
    let allocated = ALLOCATED.load(Relaxed) - allocated;
    let resident = cluster::resident().saturating_sub(resident);
    let large = large(&mut store);
    let small = spread((0..CHANGES).map(|n| {
        let i = n * 7919 % services;
        change(&mut store, slice(i, 0, SMALL, Some(n % SMALL)))
    }));
    black_box(&table);
    Figures { build, allocated, resident, small, large }
}

/// Adds the large Service and changes one endpoint of it after the other.
fn large(store: &mut Store) -> Spread {
    let i = 1_000_000;
    store.apply(service(i));
    for n in 0..LARGE / SLICE {
        store.apply(slice(i, n, SLICE, None));
    }
    store.publish().expect("a new Service");
    spread((0..CHANGES).map(|n| change(store, slice(i, n % (LARGE / SLICE), SLICE, Some(n % SLICE)))))
}

/// The time that `event` takes to be in a table.
fn change(store: &mut Store, event: Event) -> Duration {
    let begun = cpu();
    store.apply(event);
    let table: Option<Table> = store.publish();
    let took = cpu() - begun;
    assert!(table.is_some(), "the change is one");
    took
}

fn spread(durations: impl Iterator<Item = Duration>) -> Spread {
    let mut all: Vec<_> = durations.collect();
    all.sort_unstable();
    Spread { median: all[all.len() / 2], p99: all[all.len() * 99 / 100] }
}
