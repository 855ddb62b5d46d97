//! A large cluster for benches, told as events, and what it costs: bytes allocated, CPU time of a thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use selection::{Balance, Fact, Family, Hints, Pod, Port, Protocol, Service, ServiceName, Slice, SlicePort};
use watcher::store::{Event, Item};

/// Counts the bytes that are allocated.
struct Counting;

pub(crate) static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

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
pub(crate) const SMALL: usize = 10;
/// Endpoints of the large Service, and of each of its slices.
pub(crate) const LARGE: usize = 5_000;
pub(crate) const SLICE: usize = 100;
pub(crate) fn service(i: usize) -> Event {
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
        proxy_protocol: false,
        proxy_name: None,
        balance: Balance::default(),
    })))
}

/// The `n`th slice of a Service; the endpoint `flipped` is another than before at each call.
pub(crate) fn slice(i: usize, n: usize, endpoints: usize, flipped: Option<usize>) -> Event {
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
        hosts: Vec::new(),
    })
}

pub(crate) fn name(i: usize) -> ServiceName {
    ServiceName::new(format!("namespace-{}", i % 100), format!("service-{i}"))
}

/// The CPU time of this thread.
pub(crate) fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).expect("positive"), u32::try_from(time.tv_nsec).expect("small"))
}

/// The memory of this process that is resident, in bytes.
pub(crate) fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize =
        statm.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("a number of pages");
    pages * rustix::param::page_size()
}
