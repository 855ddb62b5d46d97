//! The TCP data plane: takes connections to Services, and relays each to the endpoint that the table and the
//! pick give. In: listeners, tables. Out: bytes, counts. Never reads Kubernetes, never parses what it relays.
//!
//! ```text
//! bind ──▶ Bound ──run──▶ Running ──drain──▶ Drained
//!                          │ one thread a worker, each with a listener of its own on the same address
//!                          └─ accept ─▶ dial (pick, connect, retry) ─▶ relay ─▶ end
//! ```
//! A connection stays on the thread that took it. Between two threads nothing is shared but the table, the
//! endpoints' tallies and the pins of clients with session affinity.

mod account;
mod announcement;
mod bulk;
mod dial;
mod door;
mod guard;
mod listener;
mod pins;
mod pipes;
mod relay;
mod socket;
mod stand_in;
mod worker;

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use selection::{Seed, ServiceName};
use tokio::sync::{mpsc, oneshot, watch};
use watcher::Tables;

use self::pins::Pins;
pub use self::stand_in::{Found, StandIn};
use self::worker::{Opening, Plan, Stage};
use crate::asking::Asking;
use crate::handover::{Held, Inherited, Role};
use crate::traffic::Traffic;

/// One way in: an address of this machine that stands for a Service port, by its `ClusterIP` path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where to listen; port 0 takes a free one. Its family is the one that the Service is served in, if the
    /// Service has it.
    pub address: SocketAddr,
    /// The Service.
    pub service: ServiceName,
    /// Its port, by name or by number.
    pub port: String,
}

/// Where connections come in.
#[derive(Clone, Debug)]
pub enum Entrance {
    /// They are made to an address that stands for one Service port, which may be found beside the table.
    Listen(Listen, StandIn),
    /// They are made to any Service's address, and the rules of `remora capture` bring them here, to this address:
    /// what the client dialled is the accepted socket's own address.
    Capture(SocketAddr),
    /// They are made to a port of this node that stands for a Service port.
    Node(NodePort),
    /// They are made to an address of this machine that is a Service's in the table, and stay so.
    Balancer(SocketAddr),
}

/// A node port at one address of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePort {
    /// The address. Whose it is, the table knows by its port.
    pub address: SocketAddr,
    /// Clients that are of the cluster, this node among them.
    pub inside: Arc<[IpNet]>,
}

/// A way in that was opened while connections are served. Dropping it closes it: who waits there is still served, and
/// connections that are open stay so.
#[derive(Debug)]
pub struct Opened {
    /// Those that are not closed yet; the data threads have them.
    sockets: Vec<Weak<std::net::TcpListener>>,
    _open: watch::Sender<()>,
}

/// How to serve connections. `Default` has the documented defaults, and a seed that anyone can guess.
#[derive(Clone)]
pub struct Settings {
    /// How long one connect may take; also how long a connection waits for the first table. Default 5 s.
    pub connect_timeout: Duration,
    /// How old a connection must be for its endpoint to be asked, when it is silent, whether it is still there
    /// (TCP keep-alive). Most connections end before, and are spared four system calls. Default 20 s.
    pub keep_alive_after: Duration,
    /// Connections at once, of all workers together; one more is reset. Default: as many as there are descriptors.
    pub max_connections: usize,
    /// Descriptors with this number or a higher one are left to others: whoever asks how this process is must get an
    /// answer also when connections have used up the rest. Default: none.
    pub descriptors_end: RawFd,
    /// How many bytes each direction of a connection may hold, and how many one read may find. Default 64 KiB.
    pub buffer_size: usize,
    /// How many endpoints a connection tries, at most [`selection::Tried::MOST`]. Default 3.
    pub attempts: usize,
    /// Data threads; default one a core.
    pub workers: usize,
    /// The secret that draws are made from.
    pub seed: Seed,
    /// The origin of the times in tallies and pins: whoever asks a tally whether its endpoint is put aside
    /// counts milliseconds from the same one.
    pub origin: Instant,
    /// Write one line of target `access` for each closed connection. Default false.
    pub log_connections: bool,
    /// Who finds out whose an address is that the table does not know. Default: nobody, such connections pass.
    pub asking: Option<Asking>,
}

/// Listeners that hold their addresses; clients that connect wait. Owning one means that nobody else gets them.
pub struct Bound {
    entrances: Vec<Entrance>,
    /// Per worker, its listeners, each with its place in `entrances`.
    sockets: Vec<Vec<(usize, std::net::TcpListener)>>,
    settings: Settings,
}

/// Data threads that serve. Dropping one resets every connection.
#[derive(Debug)]
pub struct Running {
    addresses: Vec<SocketAddr>,
    traffic: Arc<Traffic>,
    stage: watch::Sender<Stage>,
    opener: Opener,
    /// Per data thread, how many connections it had to reset, once it has ended.
    ended: Vec<oneshot::Receiver<usize>>,
}

/// Opens further ways in, as long as the data threads serve.
#[derive(Clone, Debug)]
pub struct Opener(Vec<mpsc::UnboundedSender<Opening>>);

/// What became of the connections that were open when a drain began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Still open at the timeout, and reset.
    pub reset: usize,
}

/// Why there is no data plane.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Somebody else has the address.
    #[error(
        "cannot listen on {address} for {whom}: another program holds this port; stop it (`ss -ltnp` \
             names it) or listen on another one"
    )]
    Taken {
        /// The address asked for.
        address: SocketAddr,
        /// For whom.
        whom: Box<str>,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {address} for {whom}: {source}; {hint}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// For whom.
        whom: Box<str>,
        /// What the system said.
        source: std::io::Error,
        /// The next step.
        hint: &'static str,
    },
    /// A data thread cannot start.
    #[error("cannot start a data thread: {0}; raise the limits on threads and open files")]
    Thread(#[from] std::io::Error),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keep_alive_after: Duration::from_secs(20),
            max_connections: usize::MAX,
            descriptors_end: RawFd::MAX,
            buffer_size: 64 * 1024,
            attempts: 3,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            seed: Seed(0, 0),
            origin: Instant::now(),
            log_connections: false,
            asking: None,
        }
    }
}

/// Takes the address of every one of `entrances`, for each worker, so that a client can connect from here on; it
/// is served once [`Bound::run`] was called. Sockets that an earlier process listens on there are taken from
/// `inherited`, all of them: clients wait in each.
///
/// # Errors
/// The first address that cannot be had, and what to do about it.
pub fn bind(entrances: &[Entrance], settings: Settings, inherited: &mut Inherited) -> Result<Bound, Error> {
    listener::bind(entrances, settings, inherited)
}

/// Whether there are descriptors for one more connection, with [`Settings::descriptors_end`].
pub fn has_room(descriptors_end: RawFd) -> bool {
    socket::has_room(descriptors_end)
}

impl Entrance {
    /// Where the listening socket is.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Listen(listen, _) => listen.address,
            Self::Capture(address) | Self::Balancer(address) => *address,
            Self::Node(node) => node.address,
        }
    }

    fn at(&self, address: SocketAddr) -> Self {
        match self {
            Self::Listen(listen, stand_in) => {
                Self::Listen(Listen { address, ..listen.clone() }, stand_in.clone())
            }
            Self::Capture(_) => Self::Capture(address),
            Self::Balancer(_) => Self::Balancer(address),
            Self::Node(node) => Self::Node(NodePort { address, ..node.clone() }),
        }
    }
}

impl std::fmt::Display for Entrance {
    /// For whom, as an error says it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Listen(listen, _) => listen.service.fmt(f),
            Self::Capture(_) => f.write_str("--capture"),
            Self::Node(_) => f.write_str("a node port"),
            Self::Balancer(_) => f.write_str("a load balancer"),
        }
    }
}

impl Bound {
    /// Where each of the entrances is, in their order.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.entrances.iter().map(Entrance::address).collect()
    }

    /// The sockets once more, for a successor of this process.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub fn held(&self) -> std::io::Result<Vec<Held>> {
        let sockets = self.sockets.iter().flatten();
        sockets
            .map(|(at, socket)| Ok((Role::Tcp, self.entrances[*at].address(), socket.try_clone()?)))
            .collect()
    }

    /// Starts the data threads. They need no runtime around them.
    ///
    /// # Errors
    /// A thread or its runtime cannot be made.
    pub fn run(self, tables: &Tables, traffic: &Arc<Traffic>) -> Result<Running, Error> {
        let addresses = self.addresses();
        let pins = Arc::new(Pins::new(self.settings.seed));
        let open = Arc::new(AtomicUsize::new(0));
        let (stage, _) = watch::channel(Stage::Serving);
        let mut ended = Vec::with_capacity(self.sockets.len());
        let mut openers = Vec::with_capacity(self.sockets.len());
        for (n, sockets) in self.sockets.into_iter().enumerate() {
            let (opener, openings) = mpsc::unbounded_channel();
            openers.push(opener);
            let plan = Plan {
                settings: self.settings.clone(),
                listeners: sockets
                    .into_iter()
                    .map(|(at, socket)| (self.entrances[at].clone(), socket))
                    .collect(),
                openings,
                tables: tables.clone(),
                pins: Arc::clone(&pins),
                open: Arc::clone(&open),
                traffic: Arc::clone(traffic),
                stage: stage.subscribe(),
            };
            let (end, receiver) = oneshot::channel();
            let (start, started) = std::sync::mpsc::channel();
            std::thread::Builder::new().name(format!("data-{n}")).spawn(move || {
                // Somebody waits for the start, perhaps nobody for the end.
                match worker::run(plan, || drop(start.send(Ok(())))) {
                    Ok(reset) => drop(end.send(reset)),
                    Err(error) => drop(start.send(Err(error))),
                }
            })?;
            started.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()))?;
            ended.push(receiver);
        }
        let opener = Opener(openers);
        Ok(Running { addresses, traffic: Arc::clone(traffic), stage, opener, ended })
    }
}

impl Opener {
    /// Takes connections at `entrance` from here on.
    ///
    /// # Errors
    /// If the address cannot be had, and what to do about it.
    pub fn open(&self, entrance: &Entrance) -> Result<Opened, Error> {
        let (entrance, sockets) = listener::open(entrance, self.0.len(), Vec::new())?;
        let (open, is_open) = watch::channel(());
        let mut opened = Opened { sockets: Vec::with_capacity(sockets.len()), _open: open };
        for (worker, listener) in self.0.iter().zip(sockets) {
            let listener = Arc::new(listener);
            opened.sockets.push(Arc::downgrade(&listener));
            // A thread that drains takes no more connections, and closes it at once.
            let _ = worker.send(Opening { entrance: entrance.clone(), listener, open: is_open.clone() });
        }
        Ok(opened)
    }
}

impl Opened {
    /// Has the kernel pass over the connections of whoever is not in `ranges`, as if nobody were there to answer them;
    /// `None` takes all.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn admit(&self, ranges: Option<&[IpNet]>) -> std::io::Result<()> {
        let mut sockets = self.sockets.iter().filter_map(Weak::upgrade);
        sockets.try_for_each(|socket| guard::admit(&socket, ranges))
    }
}

impl Running {
    /// Where each of the entrances is, in their order.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Who opens further ways in.
    pub fn opener(&self) -> Opener {
        self.opener.clone()
    }

    /// Connections that are open.
    pub fn active(&self) -> u64 {
        self.traffic.active()
    }

    /// Takes what clients have already connected, stops listening, waits until every connection has ended by
    /// itself or `patience` has ended, and resets what is left. Runs in any runtime.
    pub async fn drain(mut self, patience: impl Future) -> Drained {
        self.stage.send_replace(Stage::Draining);
        let mut reset = 0;
        let all = async {
            for ended in &mut self.ended {
                // A thread that broke has nothing left to reset.
                reset += ended.await.unwrap_or(0);
            }
        };
        let is_over = tokio::select! {
            () = all => true,
            _ = patience => false,
        };
        if !is_over {
            self.stage.send_replace(Stage::Stopped);
            for ended in self.ended.iter_mut().filter(|ended| !ended.is_terminated()) {
                reset += ended.await.unwrap_or(0);
            }
        }
        Drained { reset }
    }
}
