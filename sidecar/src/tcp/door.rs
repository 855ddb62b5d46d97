//! Where connections come in, and how the Service port that each of them means is found. In: a listener. Out:
//! accepted sockets, and where their clients wanted to go. Never picks an endpoint.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use selection::{Destination, Family, Path, PortId, Protocol, ServiceName, ServicePort, Symbol, Table};
use tokio::io::unix::AsyncFd;

use super::socket::Socket;
use super::{Entrance, StandIn};
use crate::traffic::{Counters, Label, Traffic};

/// How often at most a door says that descriptors are lacking.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// One listener of one data thread. Owning one means that clients can connect.
#[derive(Debug)]
pub(super) struct Door {
    /// The family of its address, in which a Service is served if the Service has it.
    pub(super) family: Family,
    /// Of what has no Service port: connections that could not be taken, captured ones that pass.
    pub(super) ledger: Rc<Ledger>,
    /// Where connections are counted whose Service port the table tells.
    ledgers: Rc<Ledgers>,
    means: Means,
    /// When it was last said that descriptors are lacking.
    warned: Cell<Option<Instant>>,
}

/// What whoever comes in wants.
#[derive(Debug)]
enum Means {
    /// This port of this Service; what stands in for it while the table has none.
    Service(ServiceName, Symbol, StandIn),
    /// Whatever address they dialled; this is the listener's own, which nobody has reason to dial.
    Dialled(SocketAddr),
    /// Whoever has this port of the node; these clients are of the cluster.
    Node(u16, Arc<[IpNet]>),
    /// Whoever has this address.
    Address(Destination),
}

/// Where one thread counts, as many as there are Service ports that its clients got to. Doors come and go, this stays.
#[derive(Debug)]
pub(super) struct Ledgers {
    traffic: Arc<Traffic>,
    /// Of what has no Service port.
    others: RefCell<Option<Rc<Ledger>>>,
    ports: RefCell<HashMap<PortId, Rc<Ledger>>>,
}

/// Where the connections of one Service port are counted by one thread.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Under which name.
    pub(super) label: Label,
    /// This thread's counters of it.
    pub(super) counters: Arc<Counters>,
}

/// Where a connection is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// To the Service of the door.
    Service,
    /// To this address.
    Address(SocketAddr),
}

/// What the table says of a connection.
pub(super) enum Found<'t> {
    /// It is for this Service port, dialled as this.
    Port(Path, &'t Arc<ServicePort>),
    /// It is not ours: it goes to the address that its client dialled.
    Pass(SocketAddr),
    /// Nobody can serve it.
    Nothing,
}

/// What came of trying to take a connection.
pub(super) enum Taken {
    /// One, from this client.
    Connection(Socket, SocketAddr),
    /// None waits.
    Nobody,
    /// One waits, and this process or machine has no descriptor or memory for it.
    Exhausted(Errno),
}

impl Door {
    /// The door at `entrance`.
    pub(super) fn new(entrance: &Entrance, ledgers: &Rc<Ledgers>) -> Self {
        let (ledger, means) = match entrance {
            Entrance::Listen(listen, stand_in) => {
                let (service, port) = (listen.service.clone(), Symbol::from(&*listen.port));
                let label = Label { service: Some(service.clone()), port: port.clone() };
                (Ledger::new(label, &ledgers.traffic), Means::Service(service, port, stand_in.clone()))
            }
            Entrance::Capture(own) => (ledgers.others(), Means::Dialled(*own)),
            Entrance::Balancer(address) => {
                (ledgers.others(), Means::Address(Destination::new(*address, Protocol::Tcp)))
            }
            Entrance::Node(node) => {
                (ledgers.others(), Means::Node(node.address.port(), Arc::clone(&node.inside)))
            }
        };
        let family = Family::of(&entrance.address().ip());
        Self { family, ledger, ledgers: Rc::clone(ledgers), means, warned: Cell::new(None) }
    }

    /// There is no descriptor or memory for a connection: counts it, and says so from time to time.
    pub(super) fn exhausted(&self, errno: Errno) {
        self.ledger.counters.exhausted();
        if self.warned.get().is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned.set(Some(Instant::now()));
            tracing::warn!(
                service = self.ledger.label.service(),
                error = %errno,
                "cannot take connections: they are refused until others end; raise the limit on open files",
            );
        }
    }

    /// Where a connection that was taken here is to go.
    pub(super) fn wanted(&self, client: &Socket) -> Result<Wanted, Errno> {
        match self.means {
            Means::Service(..) | Means::Node(..) | Means::Address(_) => Ok(Wanted::Service),
            Means::Dialled(_) => client.own_address().map(Wanted::Address),
        }
    }

    /// `client` is a Pod or node of the cluster, as whoever is captured or dials a listener of ours is taken to be.
    pub(super) fn is_inside(&self, client: IpAddr) -> bool {
        match &self.means {
            Means::Service(..) | Means::Dialled(_) => true,
            Means::Node(_, inside) => inside.iter().any(|range| range.contains(&client)),
            Means::Address(_) => false,
        }
    }

    /// What `table` says of a connection to `wanted`.
    pub(super) fn find<'t>(&self, wanted: Wanted, table: &'t Table) -> Found<'t> {
        let found = match (&self.means, wanted) {
            (Means::Service(service, port, _), _) => {
                table.port(service, port, self.family).map(|port| (Path::ClusterIp, port))
            }
            (Means::Node(number, _), _) => table.at(&Destination::node(self.family, *number, Protocol::Tcp)),
            (Means::Address(address), _) => table.at(address),
            (Means::Dialled(own), Wanted::Address(address)) => {
                match table.at(&Destination::new(address, Protocol::Tcp)) {
                    // Relaying to itself would never end.
                    None if address != *own => return Found::Pass(address),
                    found => found,
                }
            }
            (Means::Dialled(_), Wanted::Service) => None,
        };
        found.map_or(Found::Nothing, |(path, port)| Found::Port(path, port))
    }

    /// What serves its connections while the table does not.
    pub(super) fn stand_in(&self) -> Option<&StandIn> {
        match &self.means {
            Means::Service(_, _, stand_in) => Some(stand_in),
            Means::Dialled(_) | Means::Node(..) | Means::Address(_) => None,
        }
    }

    /// Where a connection to `wanted` is counted. Only where the address decides does that take a look at `table`.
    pub(super) fn ledger(&self, wanted: Wanted, table: &Table) -> Rc<Ledger> {
        match self.means {
            Means::Dialled(_) | Means::Node(..) | Means::Address(_) => match self.find(wanted, table) {
                Found::Port(_, port) => self.ledgers.of(port),
                Found::Pass(_) | Found::Nothing => Rc::clone(&self.ledger),
            },
            Means::Service(..) => Rc::clone(&self.ledger),
        }
    }
}

impl Ledgers {
    pub(super) fn new(traffic: &Arc<Traffic>) -> Self {
        Self { traffic: Arc::clone(traffic), others: RefCell::default(), ports: RefCell::default() }
    }

    /// The one of what has no Service port.
    fn others(&self) -> Rc<Ledger> {
        let new = || Ledger::new(Label { service: None, port: "".into() }, &self.traffic);
        Rc::clone(self.others.borrow_mut().get_or_insert_with(new))
    }

    /// The one of `port`.
    fn of(&self, port: &ServicePort) -> Rc<Ledger> {
        let mut ports = self.ports.borrow_mut();
        if let Some(ledger) = ports.get(&port.id) {
            return Rc::clone(ledger);
        }
        let name = if port.id.port.is_empty() { port.port.to_string().into() } else { port.id.port.clone() };
        let label = Label { service: Some(port.id.service.clone()), port: name };
        let ledger = Ledger::new(label, &self.traffic);
        ports.insert(port.id.clone(), Rc::clone(&ledger));
        ledger
    }
}

impl Ledger {
    fn new(label: Label, traffic: &Traffic) -> Rc<Self> {
        let counters = traffic.counters(&label);
        Rc::new(Self { label, counters })
    }
}

/// A listener that its thread's reactor watches.
pub(super) type Watched = AsyncFd<Arc<TcpListener>>;

/// Has the reactor watch `listener`. Tokio's own listener would register each socket that it accepts at once.
pub(super) fn watch(listener: Arc<TcpListener>) -> io::Result<Watched> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, and asks for what a listener does: keep its descriptor"
    )]
    AsyncFd::new(listener)
}

/// The next connection that waits at `listener`.
pub(super) fn accept(listener: &Watched) -> Taken {
    loop {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match rustix::net::acceptfrom_with(listener.get_ref(), flags) {
            Ok((socket, Some(client))) => {
                if let Ok(client) = SocketAddr::try_from(client) {
                    return Taken::Connection(Socket::new(socket), client);
                }
            }
            Err(Errno::WOULDBLOCK) => return Taken::Nobody,
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                return Taken::Exhausted(errno);
            }
            // The client left while it waited, or the network had an error for it: accept(2) hands those on.
            Ok((_, None)) | Err(_) => {}
        }
    }
}
