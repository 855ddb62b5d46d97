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
use selection::{Destination, Family, Path, PortId, Protocol, ServicePort, Table};
use tokio::io::unix::AsyncFd;

use super::Entrance;
use super::socket::Socket;
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
    means: Means,
    /// When it was last said that descriptors are lacking.
    warned: Cell<Option<Instant>>,
}

/// What whoever comes in wants.
#[derive(Debug)]
enum Means {
    /// The Service of the ledger.
    Service,
    /// Whatever address they dialled.
    Dialled(Captures),
    /// Whoever has this port of the node; these clients are of the cluster.
    Node(u16, Arc<[IpNet]>),
}

#[derive(Debug)]
struct Captures {
    /// The listener's own address, which nobody has reason to dial.
    own: SocketAddr,
    traffic: Arc<Traffic>,
    /// As many as there are Service ports that were dialled.
    ledgers: RefCell<HashMap<PortId, Rc<Ledger>>>,
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
    pub(super) fn new(entrance: &Entrance, traffic: &Arc<Traffic>) -> Self {
        let (service, port, means) = match entrance {
            Entrance::Listen(listen) => {
                (Some(listen.service.clone()), listen.port.as_str().into(), Means::Service)
            }
            Entrance::Capture(own) => {
                let (traffic, ledgers) = (Arc::clone(traffic), RefCell::default());
                (None, "".into(), Means::Dialled(Captures { own: *own, traffic, ledgers }))
            }
            Entrance::Node(node) => {
                let means = Means::Node(node.address.port(), Arc::clone(&node.inside));
                (Some(node.service.clone()), node.port.clone(), means)
            }
        };
        let ledger = Ledger::new(Label { service, port }, traffic);
        Self { family: Family::of(&entrance.address().ip()), ledger, means, warned: Cell::new(None) }
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
            Means::Service | Means::Node(..) => Ok(Wanted::Service),
            Means::Dialled(_) => client.own_address().map(Wanted::Address),
        }
    }

    /// `client` is a Pod or node of the cluster, as whoever is captured or dials a listener of ours is taken to be.
    pub(super) fn is_inside(&self, client: IpAddr) -> bool {
        match &self.means {
            Means::Service | Means::Dialled(_) => true,
            Means::Node(_, inside) => inside.iter().any(|range| range.contains(&client)),
        }
    }

    /// What `table` says of a connection to `wanted`.
    pub(super) fn find<'t>(&self, wanted: Wanted, table: &'t Table) -> Found<'t> {
        match (wanted, &self.ledger.label.service, &self.means) {
            (_, _, Means::Node(number, _)) => {
                let node = Destination::node(self.family, *number, Protocol::Tcp);
                table.at(&node).map_or(Found::Nothing, |(path, port)| Found::Port(path, port))
            }
            (Wanted::Address(address), _, Means::Dialled(captures)) => {
                match table.at(&Destination::new(address, Protocol::Tcp)) {
                    Some((path, port)) => Found::Port(path, port),
                    // Relaying to itself would never end.
                    None if address == captures.own => Found::Nothing,
                    None => Found::Pass(address),
                }
            }
            (_, Some(service), _) => match table.port(service, &self.ledger.label.port, self.family) {
                Some(port) => Found::Port(Path::ClusterIp, port),
                None => Found::Nothing,
            },
            _ => Found::Nothing,
        }
    }

    /// Where a connection to `wanted` is counted. Only for captured ones does that take a look at `table`.
    pub(super) fn ledger(&self, wanted: Wanted, table: &Table) -> Rc<Ledger> {
        let Means::Dialled(captures) = &self.means else { return Rc::clone(&self.ledger) };
        let Found::Port(_, port) = self.find(wanted, table) else { return Rc::clone(&self.ledger) };
        let mut ledgers = captures.ledgers.borrow_mut();
        if let Some(ledger) = ledgers.get(&port.id) {
            return Rc::clone(ledger);
        }
        let name = if port.id.port.is_empty() {
            port.port.to_string().as_str().into()
        } else {
            port.id.port.clone()
        };
        let label = Label { service: Some(port.id.service.clone()), port: name };
        let ledger = Ledger::new(label, &captures.traffic);
        ledgers.insert(port.id.clone(), Rc::clone(&ledger));
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
