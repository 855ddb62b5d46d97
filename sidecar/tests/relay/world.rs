//! One data plane, its table and endpoints on loopback, for one test. Owning one means that it serves.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use selection::{
    Balance, Change, Fact, Family, Here, Kind, Port, Protocol, Service, ServiceName, Slice, SlicePort,
};
use sidecar::handover::Inherited;
use sidecar::tcp::{self, Drained, Entrance, Listen, NodePort, Opened, Opener, Running, Settings, StandIn};
use sidecar::traffic::{Counts, Traffic};
use socket2::{Domain, Socket, Type};
use watcher::Tables;

/// Longer than anything that is waited for takes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// See the module.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) tables: Tables,
    pub(crate) traffic: Arc<Traffic>,
    running: Running,
}

impl World {
    /// A data plane with the default settings, over `endpoints`.
    pub(crate) fn new(endpoints: &[SocketAddr]) -> Self {
        Self::with(Settings::default(), service(), endpoints)
    }

    /// A data plane with these `settings`, for this `service`.
    pub(crate) fn with(settings: Settings, service: Service, endpoints: &[SocketAddr]) -> Self {
        let world = Self::unsynced(settings, Ipv4Addr::LOCALHOST.into());
        world.publish(&service, endpoints);
        world
    }

    /// A data plane at `ip` without a table.
    pub(crate) fn unsynced(settings: Settings, ip: IpAddr) -> Self {
        let listen = Listen {
            address: SocketAddr::new(ip, 0),
            service: ServiceName::new("shop", "web"),
            port: "80".into(),
        };
        let (tables, traffic) = (Tables::default(), Arc::new(Traffic::default()));
        let running =
            tcp::bind(&[Entrance::Listen(listen, StandIn::default())], settings, &mut Inherited::default())
                .unwrap()
                .run(&tables, &traffic)
                .unwrap();
        Self { address: running.addresses()[0], tables, traffic, running }
    }

    /// Opens a way in for a node port, at a free port of `ip`, which becomes the node port of the Service; these clients
    /// are inside.
    pub(crate) fn open_node_port(&self, ip: IpAddr, inside: &[&str]) -> (SocketAddr, Opened) {
        let address = free(ip);
        let inside = inside.iter().map(|range| range.parse().unwrap()).collect();
        let node = NodePort { address, inside };
        (address, self.running.opener().open(&Entrance::Node(node)).unwrap())
    }

    /// Who opens further ways in.
    pub(crate) fn opener(&self) -> Opener {
        self.running.opener()
    }

    /// Makes `endpoints` those of `service`, as a new table.
    pub(crate) fn publish(&self, service: &Service, endpoints: &[SocketAddr]) {
        let slices: Vec<Slice> = endpoints.iter().map(slice).collect();
        let slices: Vec<&Slice> = slices.iter().collect();
        let table = self.tables.load();
        let ports = selection::build(service, &slices, &Here::default(), table.ports(&service.name));
        self.tables.publish(table.with(&[Change { service: service.name.clone(), ports }]));
    }

    /// A client's connection.
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        patient(&stream);
        stream
    }

    /// The counts of the Service.
    pub(crate) fn counts(&self) -> Counts {
        self.traffic.snapshot().into_iter().map(|(_, counts)| counts).next().unwrap_or_default()
    }

    /// Waits until the counts are as wished.
    pub(crate) fn reaches(&self, what: &str, wished: impl Fn(&Counts) -> bool) {
        eventually(what, || {
            let counts = self.counts();
            if wished(&counts) { Ok(()) } else { Err(format!("{counts:?}")) }
        });
    }

    /// Connections that the tallies of `endpoint` hold.
    pub(crate) fn tally(&self, endpoint: SocketAddr) -> u32 {
        let table = self.tables.load();
        let endpoints = table.all().flat_map(|port| port.endpoints.iter());
        endpoints.filter(|e| e.address == endpoint).map(|e| e.tally.active()).sum()
    }

    /// Drains the data plane.
    pub(crate) fn drain(self, timeout: Duration) -> Drained {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { self.running.drain(tokio::time::sleep(timeout)).await })
    }
}

/// An address at `ip` whose port nobody has.
fn free(ip: IpAddr) -> SocketAddr {
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

/// Waits for `check`, and shows the last state that it saw if that takes too long.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + DEADLINE;
    while let Err(state) = check() {
        assert!(Instant::now() < deadline, "{what}: {state}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A read or write that takes too long fails its test, it does not hang it.
pub(crate) fn patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
}

/// The Service of every test: `shop/web`, port 80, both families.
pub(crate) fn service() -> Service {
    Service {
        name: ServiceName::new("shop", "web"),
        kind: Kind::ClusterIp,
        cluster_ips: Box::new([
            IpAddr::from([10, 96, 0, 1]),
            IpAddr::from(Ipv6Addr::from_bits(0xfd00 << 112 | 1)),
        ]),
        ports: Box::new([Port { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }]),
        external_ips: Box::default(),
        load_balancer_vips: Box::default(),
        source_ranges: Box::default(),
        internal_local: false,
        external_local: false,
        affinity_seconds: None,
        health_check_node_port: 0,
        has_selector: true,
        proxy_protocol: false,
        proxy_name: None,
        balance: Balance::RoundRobin,
    }
}

/// A slice for each endpoint, so that each has a port of its own.
fn slice(endpoint: &SocketAddr) -> Slice {
    Slice {
        name: format!("web-{endpoint}").into(),
        family: Some(Family::of(&endpoint.ip())),
        headless: false,
        ports: Box::new([SlicePort {
            name: Some("http".into()),
            protocol: Protocol::Tcp,
            port: endpoint.port(),
        }]),
        endpoints: Box::new([Fact {
            ip: endpoint.ip(),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            zone: None,
            hints: None,
            pod: None,
        }]),
        triggered: None,
    }
}

/// A listener of a test's endpoint.
pub(crate) fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// The next connection at `listener`.
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    patient(&stream);
    stream
}

/// An endpoint that serves every connection with `serve`, in threads that end with it.
pub(crate) fn endpoint(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    endpoint_of(listener(), serve)
}

fn endpoint_of(
    (listener, address): (TcpListener, SocketAddr),
    serve: impl Fn(TcpStream) + Clone + Send + 'static,
) -> SocketAddr {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), serve.clone());
            patient(&stream);
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// An endpoint that says its name, then echoes.
pub(crate) fn named(name: u8) -> SocketAddr {
    endpoint(greet(name))
}

/// The same at `::1`.
pub(crate) fn named_v6(name: u8) -> SocketAddr {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let address = listener.local_addr().unwrap();
    endpoint_of((listener, address), greet(name))
}

fn greet(name: u8) -> impl Fn(TcpStream) + Clone {
    move |mut stream| {
        let mut bytes = [0; 1024];
        if stream.write_all(&[name]).is_err() {
            return;
        }
        while let Ok(n) = stream.read(&mut bytes) {
            if n == 0 || stream.write_all(&bytes[..n]).is_err() {
                return;
            }
        }
    }
}

/// An address that refuses: its port is held, and nobody listens.
pub(crate) fn refusing() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// An address that swallows packets: its queue of handshakes is full.
pub(crate) fn blackhole() -> (Vec<TcpStream>, Socket, SocketAddr) {
    let (socket, address) = refusing();
    socket.listen(0).unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    (waiting, socket, address)
}

/// Has `stream` reset when it is dropped.
pub(crate) fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// The stream was reset, perhaps after some bytes.
pub(crate) fn assert_reset(stream: &mut TcpStream) {
    let result = io::copy(stream, &mut io::sink());
    assert_eq!(result.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
}

/// Reads one byte: the name of a [`named`] endpoint.
pub(crate) fn name(stream: &mut TcpStream) -> u8 {
    let mut name = [0];
    stream.read_exact(&mut name).unwrap();
    name[0]
}
