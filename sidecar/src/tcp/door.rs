//! Where connections come in, and how the Service port that each of them means is found. In: a listener. Out:
//! accepted sockets. Never picks an endpoint.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::SocketFlags;
use selection::{Family, Path, ServicePort, Table};
use tokio::io::unix::AsyncFd;

use super::Listen;
use super::socket::Socket;
use crate::traffic::{Counters, Label, Traffic};

/// One listener of one data thread. Owning one means that clients can connect.
#[derive(Debug)]
pub(super) struct Door {
    /// Under which its connections are counted.
    pub(super) label: Label,
    /// This thread's counters of it.
    pub(super) counters: Arc<Counters>,
    /// The family that its Service is served in, if the Service has it.
    pub(super) family: Family,
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
    /// The door to what `listen` names.
    pub(super) fn new(listen: &Listen, traffic: &Traffic) -> Self {
        let label = Label { service: listen.service.clone(), port: listen.port.as_str().into() };
        let counters = traffic.counters(&label);
        Self { label, counters, family: Family::of(&listen.address.ip()) }
    }

    /// The Service port that a connection here means, and by which path; `None` if the table has no such.
    pub(super) fn port<'t>(&self, table: &'t Table) -> Option<(Path, &'t Arc<ServicePort>)> {
        let port = table.port(&self.label.service, &self.label.port, self.family)?;
        Some((Path::ClusterIp, port))
    }
}

/// A listener that its thread's reactor watches.
pub(super) type Watched = AsyncFd<TcpListener>;

/// Has the reactor watch `listener`. Tokio's own listener would register each socket that it accepts at once.
pub(super) fn watch(listener: TcpListener) -> io::Result<Watched> {
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
