//! What allocates and what does not, by a global allocator that counts for each thread.
#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]

mod sample;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;

use sample::Listed;
use selection::{
    Balance, Change, Destination, Draw, Health, Here, Pin, Protocol, Question, Table, Tallies, Tried, build,
    pick,
};

struct Counting;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; counting neither allocates nor panics, and a
// thread that is past its destructors counts nothing.
#[allow(unsafe_code, reason = "a global allocator cannot be written without")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + layout.size()));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The bytes that `act` allocates on this thread.
fn allocated<R>(act: impl FnOnce() -> R) -> (usize, R) {
    let before = BYTES.get();
    let result = act();
    (BYTES.get() - before, result)
}

fn picks(port: &selection::ServicePort, health: &impl Health, tried: &Tried, pin: Option<Pin>) -> usize {
    (0..2_000)
        .filter(|i| {
            let flow = sample::flow(*i);
            let draw = Draw::new(&sample::SEED, &flow, port.next_turn());
            let question = Question { pin, draw, ..sample::question(flow, 0, tried) };
            matches!(pick(port, &question, health), selection::Verdict::Endpoint(..))
        })
        .count()
}

#[test]
fn a_lookup_and_a_pick_allocate_nothing_whatever_is_aside_tried_or_pinned() {
    let (counted, _) = allocated(|| std::hint::black_box(vec![0u8; 100]));
    assert_eq!(counted, 100, "the allocator counts");
    for balance in [Balance::LeastConnections, Balance::Random, Balance::RoundRobin, Balance::Maglev] {
        let mut service = sample::service("web", [10, 96, 0, 1], balance);
        service.affinity_seconds = Some(10);
        let port = sample::of_facts(&service, (0..1_000).map(|i| sample::fact(sample::ip(i))));
        let change = Change { service: service.name.clone(), ports: vec![port] };
        let table = Table::default().with(&[change]);
        let destination = Destination::new("10.96.0.1:80".parse().expect("an address"), Protocol::Tcp);
        let mut tried = Tried::default();
        tried.add(SocketAddr::new(sample::ip(3), 8080));
        let pin = Pin { address: SocketAddr::new(sample::ip(9), 8080), pod: 1, used: 0, seconds: 10 };
        let some =
            |share: usize| Listed { loads: Vec::new(), aside: (0..1_000).map(|i| i % share == 0).collect() };
        let (three, one) = (some(3), some(1));
        let (bytes, picked) = allocated(|| {
            let (_, port) = table.at(&destination).expect("a port");
            picks(port, &Tallies, &Tried::default(), None)
                + picks(port, &three, &tried, None)
                + picks(port, &one, &tried, Some(pin))
        });
        assert_eq!((bytes, picked), (0, 6_000), "{balance:?}");
    }
}

#[test]
fn a_change_that_leaves_the_pool_alone_fills_no_new_maglev_table() {
    let mut service = sample::service("web", [10, 96, 0, 1], Balance::Maglev);
    let slice = sample::slice("web-1", (0..50).map(|i| sample::fact(sample::ip(i))));
    let (filled, first) = allocated(|| build(&service, &[&slice], &Here::default(), &[]));
    service.affinity_seconds = Some(10);
    let (changed, second) = allocated(|| build(&service, &[&slice], &Here::default(), &first));
    assert!(!std::sync::Arc::ptr_eq(&first[0], &second[0]), "the port did change");
    println!("with a table filled: {filled} bytes; without: {changed}");
    assert!(filled > 2 * selection::MAGLEV_ENTRIES, "{filled}");
    assert!(changed < selection::MAGLEV_ENTRIES / 2, "{changed}");
    service.balance = Balance::Random;
    let (other, third) = allocated(|| build(&service, &[&slice], &Here::default(), &second));
    assert!(other < selection::MAGLEV_ENTRIES / 2, "no table for a Service that asks for none: {other}");
    service.balance = Balance::Maglev;
    let (back, _) = allocated(|| build(&service, &[&slice], &Here::default(), &third));
    assert!(back > 2 * selection::MAGLEV_ENTRIES, "{back}");
}
