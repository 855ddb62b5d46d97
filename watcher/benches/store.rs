//! What a store costs: building a table from nothing, one endpoint's change, memory. Prints each figure beside its
//! bound, and fails where a bound is not kept. Two sizes side by side show what grows with the cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use selection::{
    Balance, Fact, Family, Here, Hints, Pod, Port, Protocol, Service, ServiceName, Slice, SlicePort, Table,
};
use watcher::store::{Event, Item, Kind, Store, Stream};

/// Counts the bytes that are allocated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

#[allow(unsafe_code, reason = "an allocator is unsafe by its trait; this one hands every call on unchanged")]
// SAFETY: every call goes to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

/// Endpoints of an ordinary Service, in one slice.
const SMALL: usize = 10;
/// Endpoints of the large Service, and of each of its slices.
const LARGE: usize = 5_000;
const SLICE: usize = 100;
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
    let resident = self::resident().saturating_sub(resident);
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

fn service(i: usize) -> Event {
    let ip = 0x0a60_0000 + u32::try_from(i).expect("small");
    Event::Applied(Item::Service(Box::new(Service {
        name: name(i),
        kind: selection::Kind::ClusterIp,
        cluster_ips: [std::net::Ipv4Addr::from(ip).into()].into(),
        ports: [Port { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }].into(),
        external_ips: [].into(),
        load_balancer_vips: [].into(),
        source_ranges: [].into(),
        internal_local: false,
        external_local: false,
        affinity_seconds: None,
        health_check_node_port: 0,
        has_selector: true,
        proxy_name: None,
        balance: Balance::default(),
    })))
}

/// The `n`th slice of a Service; the endpoint `flipped` is another than before at each call.
fn slice(i: usize, n: usize, endpoints: usize, flipped: Option<usize>) -> Event {
    static TURN: AtomicUsize = AtomicUsize::new(1);
    let service = name(i);
    let fact = |e: usize| {
        let number = (i * SMALL + n * SLICE + e) % 0x00ff_ffff;
        let place = number * 31 % 5_000;
        let zone = format!("zone-{}", place % 3);
        let turn = if flipped == Some(e) { TURN.fetch_add(1, Relaxed) } else { 0 };
        let pod = format!("{}-7d9c6f7b5c-{turn:x}{e:04}", service.name);
        Fact {
            ip: std::net::Ipv4Addr::from(0x6440_0000 + u32::try_from(number).expect("small")).into(),
            ready: true,
            serving: true,
            terminating: false,
            node: Some(format!("node-{place}").into()),
            zone: Some(zone.as_str().into()),
            hints: Some(Box::new(Hints { zones: [zone.into()].into(), nodes: [].into() })),
            pod: Some(Pod { id: Pod::id_of(&pod), name: pod.into() }),
        }
    };
    let slice = Slice {
        name: format!("{}-{n:05}", service.name).into(),
        family: Some(Family::V4),
        headless: false,
        ports: [SlicePort { name: Some("http".into()), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: (0..endpoints).map(fact).collect(),
        triggered: None,
    };
    Event::Applied(Item::Slice {
        namespace: service.namespace,
        service: Some(service.name),
        slice: Box::new(slice),
    })
}

fn name(i: usize) -> ServiceName {
    ServiceName::new(format!("namespace-{}", i % 100), format!("service-{i}"))
}

/// The CPU time of this thread.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).expect("positive"), u32::try_from(time.tv_nsec).expect("small"))
}

/// The memory of this process that is resident, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize =
        statm.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("a number of pages");
    pages * rustix::param::page_size()
}
