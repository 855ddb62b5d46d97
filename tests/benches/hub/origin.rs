//! Whom the hub has everything from: a feed of a large cluster in which endpoints change at a rate.
//!
//! In: how many are to change. Out: frames as any Remora tells them, and when each change was told. It has one reader at a
//! time, the hub, and never tells a change later than it notes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use selection::{Balance, Fact, Family, Kind, Pod, Port, Protocol, Service, ServiceName, Slice, SlicePort};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use watcher::feed::{Encoder, HEARTBEAT, PROTOCOL, framed, heartbeat};

use crate::{ENDPOINTS, RATE, SERVICES};

/// The address of the endpoint that the first change brings; the next one has the next.
const FIRST: u32 = 0x0a00_0000;
/// When each change was told, in their order.
pub(crate) type Sent = Arc<Mutex<Vec<Instant>>>;

/// Owning one means that a thread tells what there is, until the process ends.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    pub(crate) sent: Sent,
    wanted: mpsc::UnboundedSender<usize>,
}

impl Origin {
    pub(crate) fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("a socket");
        let (sent, (wanted, asked)) = (Sent::default(), mpsc::unbounded_channel());
        let telling = Telling { cluster: Cluster::new(), sent: Arc::clone(&sent), asked };
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(telling.run(listener));
        });
        Self { address, sent, wanted }
    }

    /// So many more endpoints change, from here on.
    pub(crate) fn change(&self, count: usize) {
        self.wanted.send(count).expect("the thread that tells");
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
    asked: mpsc::UnboundedReceiver<usize>,
}

impl Telling {
    async fn run(mut self, listener: std::net::TcpListener) {
        let listener = TcpListener::from_std(listener).expect("a socket");
        let (calls, mut called) = mpsc::channel(1);
        tokio::spawn(serve(listener, calls));
        let mut hub: Option<TcpStream> = None;
        let mut wanted = 0;
        let mut beats = interval(HEARTBEAT / 2);
        let mut ticks = interval(Duration::from_secs(1) / RATE);
        // Late ones are made up for: the rate is one over the whole time.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            let frames = tokio::select! {
                Some(call) = called.recv() => {
                    hub = Some(call);
                    self.cluster.snapshot()
                }
                Some(count) = self.asked.recv() => {
                    if wanted == 0 {
                        ticks.reset();
                    }
                    wanted += count;
                    continue;
                }
                _ = ticks.tick(), if wanted > 0 => {
                    wanted -= 1;
                    let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
                    sent.push(Instant::now());
                    self.cluster.change(sent.len() - 1)
                }
                _ = beats.tick() => vec![heartbeat(Some(Duration::ZERO))],
            };
            let Some(call) = &mut hub else { continue };
            let bytes: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
            // One that is gone comes back.
            let _ = call.write_all(&bytes).await;
        }
    }
}

/// Takes calls. Whatever they ask for, they are told everything.
async fn serve(listener: TcpListener, calls: mpsc::Sender<TcpStream>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        stream.set_nodelay(true).expect("a socket");
        let mut asked = Vec::new();
        while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
            assert!(stream.read_buf(&mut asked).await.expect("a request") > 0, "{asked:?}");
        }
        let head =
            format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("the hub");
        calls.send(stream).await.expect("the thread that tells");
    }
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
