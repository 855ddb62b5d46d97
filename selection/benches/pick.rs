//! What a pick, a lookup and a build cost, against their bounds. Prints a table and fails if a bound is missed:
//! `cargo bench -p selection`. Each figure is the quietest of many rounds on one thread,
//! with the median beside it: other programs only add to it.
#![allow(clippy::expect_used, clippy::panic, reason = "a bench says what it expected")]

#[path = "../tests/sample/mod.rs"]
mod sample;

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use selection::{
    Balance, Change, Destination, Draw, Fact, Flow, Here, Hints, Protocol, Question, Service, ServicePort,
    Slice, Table, Tallies, Tried, build, pick,
};

/// Bytes in use, and allocations made so far.
struct Counting;
static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MADE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting neither allocates nor panics.
#[allow(unsafe_code, reason = "a global allocator cannot be written without")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Relaxed);
        MADE.fetch_add(1, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const ROUNDS: usize = 50;

/// The time of one call, in seconds.
#[derive(Clone, Copy)]
struct Time {
    /// In the quietest round: what the work itself takes.
    least: f64,
    /// In the round in the middle: what it takes beside whatever else this machine does.
    median: f64,
}

/// The time of one of `times` calls of `act`, which is told how many came before in its round.
fn time(times: u32, mut act: impl FnMut(u32)) -> Time {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            (0..times).for_each(&mut act);
            begin.elapsed().as_secs_f64() / f64::from(times)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    Time { least: rounds[0], median: rounds[ROUNDS / 2] }
}

/// The lines printed, and whether every bound held.
struct Report {
    all_held: bool,
}

impl Report {
    fn time(&mut self, figure: &str, time: Time, bound: Option<f64>, unit: &str) {
        let scale = if unit == "ns" { 1e9 } else { 1e6 };
        self.line(figure, time.least * scale, &format!("{:.1}", time.median * scale), bound, unit);
    }

    fn line(&mut self, figure: &str, value: f64, median: &str, bound: Option<f64>, unit: &str) {
        let held = bound.is_none_or(|bound| value <= bound);
        self.all_held &= held;
        let bound = bound.map_or(String::from("-"), |bound| format!("{bound}"));
        let ok = if held { "ok" } else { "MISSED" };
        println!("{figure:<60} {value:>9.1} {median:>9} {bound:>7} {unit:<3} {ok}");
    }
}

const BALANCES: [Balance; 4] =
    [Balance::LeastConnections, Balance::Random, Balance::RoundRobin, Balance::Maglev];

fn main() -> ExitCode {
    let mut report = Report { all_held: true };
    println!("{:<60} {:>9} {:>9} {:>7}", "figure", "quietest", "median", "bound");
    picks(&mut report);
    lookups(&mut report);
    maglev(&mut report);
    builds(&mut report);
    if report.all_held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Flows and draws made beforehand, so that only the pick is measured.
fn questions(tried: &Tried) -> Vec<Question<'_>> {
    (0..4096).map(|i| sample::question(sample::flow(i), u64::from(i), tried)).collect()
}

fn picks(report: &mut Report) {
    let tried = Tried::default();
    let asked = questions(&tried);
    let ask = |port: &ServicePort, i: u32| {
        black_box(pick(port, &asked[i as usize % 4096], &Tallies));
    };
    for balance in BALANCES {
        let port = sample::ports(1_000, balance);
        let figure = format!("pick of 1,000 endpoints, {}", balance.name());
        report.time(&figure, time(20_000, |i| ask(&port, i)), Some(25.0), "ns");
        let made = MADE.load(Relaxed);
        (0..20_000).for_each(|i| ask(&port, i));
        report.line("  allocations in 20,000", (MADE.load(Relaxed) - made) as f64, "", Some(0.0), "");
    }
    let port = sample::ports(1_000, Balance::Maglev);
    let mut two = Tried::default();
    let next = |tried: &Tried| sample::chosen(pick(&port, &questions(tried)[7], &Tallies)).0.address;
    (0..2).for_each(|_| two.add(next(&two)));
    let asked = questions(&two)[7];
    let third = |_| {
        black_box(pick(&port, &asked, &Tallies));
    };
    report.time("pick of 1,000 endpoints, maglev, the client's third", time(20_000, third), Some(75.0), "ns");
    for (share, words) in [(100, "1 in 100"), (2, "half")] {
        let port = sample::ports(1_000, Balance::LeastConnections);
        port.endpoints.iter().step_by(share).for_each(|e| assert!(e.tally.failed(0, 0)));
        let figure = format!("pick of 1,000 endpoints, least-connections, {words} aside");
        report.time(&figure, time(2_000, |i| ask(&port, i)), None, "ns");
    }
    let flow = sample::flow(7);
    let draw = |i| {
        black_box(Draw::new(black_box(&sample::SEED), black_box(&flow), u64::from(i)));
    };
    report.time("a draw", time(20_000, draw), None, "ns");
    let port = sample::ports(10, Balance::Random);
    let turn = |_| {
        black_box(port.next_turn());
    };
    report.time("a turn", time(20_000, turn), None, "ns");
}

fn cluster_ip(i: u32) -> [u8; 4] {
    (0x0a60_0000 + i).to_be_bytes()
}

fn lookups(report: &mut Report) {
    const SERVICES: u32 = 10_000;
    let change = |i: u32| {
        let service = sample::service(&format!("web-{i}"), cluster_ip(i), Balance::LeastConnections);
        let pod = |pod| sample::fact(IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + i * 10 + pod)));
        let slice = sample::slice("web-1", (0..10).map(pod));
        let ports = build(&service, &[&slice], &Here::default(), &[]);
        Change { service: service.name, ports }
    };
    let before = IN_USE.load(Relaxed);
    let changes: Vec<Change> = (0..SERVICES).map(change).collect();
    let table = Table::default().with(&changes);
    let size = IN_USE.load(Relaxed) - before;

    // An order that no prefetcher knows.
    let order: Vec<Destination> = (0..SERVICES)
        .map(|i| {
            let at = i.wrapping_mul(7_919) % SERVICES;
            Destination { ip: IpAddr::from(cluster_ip(at)), port: 80, protocol: Protocol::Tcp }
        })
        .collect();
    let at = |i: u32| table.at(&order[(i % SERVICES) as usize]).expect("a Service");
    let lookup = |i| {
        black_box(at(i));
    };
    report.time("lookup in 10,000 random Services", time(SERVICES, lookup), None, "ns");
    let tried = Tried::default();
    // The question is put together where it is asked, as hosts do.
    let drawn: Vec<(Flow, Draw)> = questions(&tried).iter().map(|asked| (asked.flow, asked.draw)).collect();
    let lookup_and_pick = |i| {
        let (path, port) = at(i);
        let (flow, draw) = drawn[i as usize % 4096];
        let question = Question { path, flow, draw, now: 1, pin: None, tried: &tried };
        black_box(pick(port, &question, &Tallies));
    };
    report.time(
        "lookup and pick over 10,000 random Services",
        time(SERVICES, lookup_and_pick),
        Some(150.0),
        "ns",
    );
    // What fits into the cache, to tell the work from the waiting for memory.
    for few in [1, 500, 2_000] {
        let few_of_them = |i| lookup_and_pick(i % few);
        report.time(&format!("  over {few} of them"), time(SERVICES, few_of_them), None, "ns");
    }
    // A pick goes from the table's entry to the port, to two endpoints at once and to their tallies: it waits for four
    // loads, one after the other. What such a load takes here: from one of the six lines of each Service, strewn over
    // as much memory as the table has, and each known only when the one before has come. No floor:
    // what one pick waits for overlaps with the next pick, in the bench more than in a host.
    let memory: Vec<u64> = (0..size as u64 / 8).map(|i| i % 2).collect();
    let mut found = 0;
    let load = |i: u32| {
        let line = u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        found = memory[(line + found) as usize % memory.len()];
    };
    let figure = format!("  a load that waits for another, over {:.0} MB", size as f64 / 1e6);
    report.time(&figure, time(6 * SERVICES, load), None, "ns");
    assert!(found < 2);
    let with_draw = |i| {
        let (path, port) = at(i);
        let flow: Flow = sample::flow(i);
        let draw = Draw::new(&sample::SEED, &flow, port.next_turn());
        let question = Question { path, flow, draw, now: 1, pin: None, tried: &tried };
        black_box(pick(port, &question, &Tallies));
    };
    report.time("  with the turn and the draw", time(SERVICES, with_draw), None, "ns");

    let publish = |i| {
        let change = &changes[(i * 37 % SERVICES) as usize];
        let ports = change.ports.iter().map(|port| Arc::new(copy(port))).collect();
        black_box(table.with(&[Change { service: change.service.clone(), ports }]));
    };
    report.time("one Service changed in a table of 10,000", time(200, publish), None, "µs");
    let from_nothing = |_| {
        black_box(Table::default().with(&changes));
    };
    report.time("a table of 10,000 built Services from nothing", time(1, from_nothing), None, "µs");
}

/// Another value of the same port.
fn copy(port: &ServicePort) -> ServicePort {
    let mut service = sample::service(&port.id.service.name, [0; 4], port.balance);
    service.cluster_ips = port.cluster_ip.into_iter().collect();
    let built = build(&service, &[], &Here::default(), &[]).remove(0);
    Arc::into_inner(built).expect("nobody else has it")
}

fn maglev(report: &mut Report) {
    let with = |n, balance| {
        let service = sample::service("web", [10, 96, 0, 1], balance);
        let slice = sample::slice("web-1", (0..n).map(|i| sample::fact(sample::ip(i))));
        move || build(&service, &[&slice], &Here::default(), &[])
    };
    for n in [2, 50, 1_000] {
        let fresh = with(n, Balance::Maglev);
        let fill = time(1, |_| drop(black_box(fresh())));
        report.time(&format!("build with a new Maglev table for {n} endpoints"), fill, Some(5_000.0), "µs");
    }
    let size = |balance| {
        let fresh = with(50, balance);
        let before = IN_USE.load(Relaxed);
        let built = fresh();
        (IN_USE.load(Relaxed) - before, built).0
    };
    let kilobytes = (size(Balance::Maglev) - size(Balance::Random)) as f64 / 1024.0;
    report.line("  memory of the table", kilobytes, "", Some(129.0), "KB");
}

/// The slices of `n` endpoints, 100 in each, with zones, nodes and hints as controllers write them.
fn slices(n: usize) -> Vec<Slice> {
    let symbols: Vec<Arc<str>> = (0..100).map(|i| format!("node-{i}").into()).collect();
    let zones: [Arc<str>; 3] = ["a".into(), "b".into(), "c".into()];
    let fact = |i: usize| Fact {
        node: Some(symbols[i % 100].clone()),
        zone: Some(zones[i % 3].clone()),
        hints: Some(Box::new(Hints { zones: [zones[i % 3].clone()].into(), nodes: [].into() })),
        ..sample::fact(sample::ip(i))
    };
    let of = |begin: usize| sample::slice(&format!("web-{begin:05}"), (begin..n.min(begin + 100)).map(fact));
    (0..n).step_by(100).map(of).collect()
}

fn builds(report: &mut Report) {
    let here = Here { node: Some("node-7".into()), zone: Some("a".into()) };
    for (n, bound) in [(10, 50.0), (5_000, 1_000.0)] {
        for balance in [Balance::LeastConnections, Balance::Maglev] {
            let service: Service = sample::service("web", [10, 96, 0, 1], balance);
            let mut slices = slices(n);
            let all = |slices: &[Slice], old: &[Arc<ServicePort>]| {
                build(&service, &slices.iter().collect::<Vec<_>>(), &here, old)
            };
            let mut old = all(&slices, &[]);
            let changed = time(4, |i| {
                // One that is in our zone and so is used.
                let endpoint = &mut slices[0].endpoints[3];
                endpoint.ready = i % 2 == 1;
                endpoint.terminating = i % 2 == 0;
                let new = all(&slices, &old);
                assert!(!Arc::ptr_eq(&new[0], &old[0]));
                old = new;
            });
            let bound = (balance != Balance::Maglev).then_some(bound);
            let figure = format!("build, one of {n} endpoints changed, {}", balance.name());
            report.time(&figure, changed, bound, "µs");
            let unchanged = time(4, |_| {
                let new = all(&slices, &old);
                assert!(Arc::ptr_eq(&new[0], &old[0]));
            });
            report.time("  nothing changed", unchanged, bound, "µs");
        }
    }
}
