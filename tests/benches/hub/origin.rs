//! Whom the hub has everything from: a feed of a large cluster in which endpoints change at a rate.
//!
//! In: how many are to change. Out: frames as any Remora tells them, and when each change was told. It has one reader at a
//! time, the hub, and never tells a change later than it notes.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use selection::{Balance, Fact, Family, Kind, Pod, Port, Protocol, Service, ServiceName, Slice, SlicePort};
use watcher::feed::{Encoder, HEARTBEAT, heartbeat, prefix};

use crate::{ENDPOINTS, RATE, SERVICES};

/// The address of the endpoint that the first change brings; the next one has the next.
const FIRST: u32 = 0x0a00_0000;
/// How fine the rate is.
const TICK: Duration = Duration::from_millis(5);

/// When each change was told, in their order.
pub(crate) type Sent = Arc<Mutex<Vec<Instant>>>;

/// Owning one means that a thread tells what there is, until the process ends.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    pub(crate) sent: Sent,
    wanted: Arc<AtomicUsize>,
}

impl Origin {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("a socket");
        let (sent, wanted) = (Sent::default(), Arc::<AtomicUsize>::default());
        let mut telling =
            Telling { cluster: Cluster::new(), sent: Arc::clone(&sent), wanted: Arc::clone(&wanted) };
        std::thread::spawn(move || telling.run(&listener));
        Self { address, sent, wanted }
    }

    /// So many more endpoints change, from here on.
    pub(crate) fn change(&self, count: usize) {
        self.wanted.fetch_add(count, Relaxed);
    }
}

/// Which change brought the endpoint of this address.
pub(crate) fn change_of(ip: IpAddr) -> Option<usize> {
    let IpAddr::V4(ip) = ip else { return None };
    u32::from(ip).checked_sub(FIRST).and_then(|n| usize::try_from(n).ok())
}

pub(crate) fn name(service: usize) -> ServiceName {
    ServiceName::new(format!("namespace-{}", service % 100), format!("service-{service}"))
}

struct Telling {
    cluster: Cluster,
    sent: Sent,
    wanted: Arc<AtomicUsize>,
}

impl Telling {
    fn run(&mut self, listener: &TcpListener) {
        let mut hub: Option<TcpStream> = None;
        let mut due: VecDeque<Instant> = VecDeque::new();
        let mut beat = Instant::now();
        loop {
            if let Ok((stream, _)) = listener.accept() {
                hub = self.begin(stream);
            }
            let wanted = self.wanted.swap(0, Relaxed);
            let from = due.back().copied().unwrap_or_else(Instant::now);
            due.extend(
                (1..=u32::try_from(wanted).expect("few")).map(|n| from + Duration::from_secs(1) / RATE * n),
            );
            let mut frames = Vec::new();
            while due.front().is_some_and(|at| *at <= Instant::now()) {
                due.pop_front();
                let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
                frames.extend(self.cluster.change(sent.len()));
                sent.push(Instant::now());
            }
            if frames.is_empty() && beat.elapsed() > HEARTBEAT / 2 {
                frames.push(heartbeat(Some(Duration::ZERO)));
            }
            if !frames.is_empty() {
                beat = Instant::now();
                // One that is gone comes back.
                hub = hub.and_then(|mut hub| tell(&mut hub, &frames).ok().map(|()| hub));
            }
            std::thread::sleep(TICK);
        }
    }

    /// The snapshot, to who asks for it.
    fn begin(&self, mut hub: TcpStream) -> Option<TcpStream> {
        hub.set_nonblocking(false).ok()?;
        hub.set_nodelay(true).ok()?;
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            let mut part = [0; 1024];
            match hub.read(&mut part).ok()? {
                0 => return None,
                count => asked.extend_from_slice(&part[..count]),
            }
        }
        hub.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
        tell(&mut hub, &self.cluster.snapshot()).ok()?;
        Some(hub)
    }
}

fn tell(hub: &mut TcpStream, frames: &[Vec<u8>]) -> std::io::Result<()> {
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| [&prefix(frame)[..], frame].concat()).collect();
    hub.write_all(&bytes)
}

struct Cluster {
    services: Vec<(Service, Slice)>,
    version: u64,
}

impl Cluster {
    fn new() -> Self {
        Self { services: (0..SERVICES).map(|n| (service(n), slice(n))).collect(), version: 1 }
    }

    fn snapshot(&self) -> Vec<Vec<u8>> {
        let mut encoder = Encoder::snapshot(1);
        for (number, (service, slice)) in self.services.iter().enumerate() {
            encoder.service(service);
            encoder.slice(number as u64, &service.name, slice);
        }
        encoder.complete(self.version, Some(Duration::ZERO))
    }

    /// An endpoint of some Service is another Pod at another address.
    fn change(&mut self, change: usize) -> Vec<Vec<u8>> {
        let number = change * 7_919 % SERVICES;
        let (service, slice) = &mut self.services[number];
        let before = slice.clone();
        let pod = format!("service-{number}-7d9c6f7b5c-{change:05}");
        let endpoint = &mut slice.endpoints[change % ENDPOINTS];
        endpoint.ip = Ipv4Addr::from(FIRST + u32::try_from(change).expect("few")).into();
        endpoint.pod = Some(Pod { id: Pod::id_of(&pod), name: pod.into() });
        slice.triggered = Some(1_790_000_000_000 + change as u64);
        let mut encoder = Encoder::changes(self.version);
        self.version += 1;
        encoder.slice_changed(number as u64, &service.name, &before, slice);
        encoder.complete(self.version, Some(Duration::ZERO))
    }
}

fn service(number: usize) -> Service {
    Service {
        name: name(number),
        kind: Kind::ClusterIp,
        cluster_ips: [Ipv4Addr::from(0x0a60_0000 + u32::try_from(number).expect("few")).into()].into(),
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
        proxy_protocol: false,
        balance: Balance::default(),
    }
}

/// Names and places as a Deployment's Pods have them.
fn slice(number: usize) -> Slice {
    let fact = |n: usize| {
        let place = (number * ENDPOINTS + n) * 31 % 5_000;
        let pod = format!("service-{number}-7d9c6f7b5c-{n:05}");
        Fact {
            ip: Ipv4Addr::from(0x6440_0000 + u32::try_from(number * ENDPOINTS + n).expect("few")).into(),
            ready: true,
            serving: true,
            terminating: false,
            node: Some(format!("node-{place}").into()),
            zone: Some(format!("zone-{}", place % 3).into()),
            hints: None,
            pod: Some(Pod { id: Pod::id_of(&pod), name: pod.into() }),
        }
    };
    Slice {
        name: format!("service-{number}-x7k2p").into(),
        family: Some(Family::V4),
        headless: false,
        ports: [SlicePort { name: Some("http".into()), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: (0..ENDPOINTS).map(fact).collect(),
        triggered: None,
    }
}
