//! Takes the addresses: for each one listener a worker, or what an earlier process had. In: addresses. Out: sockets that
//! listen, or an error that says whose port it is. Never accepts.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::{Bound, Entrance, Error, Settings};
use crate::handover::{Inherited, Role};

/// Handshakes that wait in one listener's queue; the system caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A side that has been silent for this long is asked whether it is still there…
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// …again after this long without an answer…
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// …and given up after so many. An idle connection whose ends answer is kept for ever.
const KEEPALIVE_PROBES: u32 = 8;

/// How both sides of a connection are kept alive. Accepted sockets inherit it from their listener.
pub(super) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES)
}

/// See [`super::bind`].
pub(super) fn bind(
    entrances: &[Entrance],
    mut settings: Settings,
    inherited: &mut Inherited,
) -> Result<Bound, Error> {
    settings.workers = settings.workers.max(1);
    let mut bound = Bound {
        entrances: Vec::with_capacity(entrances.len()),
        sockets: (0..settings.workers).map(|_| Vec::with_capacity(entrances.len())).collect(),
        settings,
    };
    for entrance in entrances {
        let workers = bound.sockets.len();
        let inherited = inherited.claim(Role::Tcp, entrance.address());
        let (entrance, sockets) = open(entrance, workers, inherited)?;
        // More sockets than workers, from a process that had more: a worker takes several.
        for (n, socket) in sockets.into_iter().enumerate() {
            bound.sockets[n % workers].push((bound.entrances.len(), socket));
        }
        bound.entrances.push(entrance);
    }
    Ok(bound)
}

/// At least `workers` sockets that listen at `entrance`, `sockets` among them; and where that is.
pub(super) fn open(
    entrance: &Entrance,
    workers: usize,
    mut sockets: Vec<TcpListener>,
) -> Result<(Entrance, Vec<TcpListener>), Error> {
    let failed = |source: io::Error| explain(entrance, source);
    if sockets.is_empty() {
        sockets.push(take(entrance.address()).map_err(failed)?);
    }
    let address = sockets[0].local_addr().map_err(failed)?;
    while sockets.len() < workers {
        sockets.push(join(address).map_err(failed)?);
    }
    if let Entrance::Capture(_) = entrance {
        for socket in &sockets {
            socket2::SockRef::from(socket).set_ip_transparent_v4(true).map_err(failed)?;
        }
    }
    Ok((entrance.at(address), sockets))
}

/// The first listener on `address`. `SO_REUSEPORT` would let it in beside another program of the same user that
/// has it too, and half of the connections would go there; so the port is taken without it, and shared with
/// further listeners of our own afterwards.
fn take(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = fresh(address)?;
    socket.bind(&address.into())?;
    socket.set_reuse_port(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A further listener on an `address` that we have.
fn join(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = fresh(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn fresh(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // One listener, one family: the family decides which of a Service's two ports is meant.
        socket.set_only_v6(true)?;
    }
    // Connections of an earlier process that are still in TIME_WAIT do not keep us out; a listener does.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit these: two system calls fewer for each connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    Ok(socket)
}

fn explain(entrance: &Entrance, source: io::Error) -> Error {
    let (address, whom) = (entrance.address(), entrance.to_string().into_boxed_str());
    let hint = match source.kind() {
        io::ErrorKind::AddrInUse => return Error::Taken { address, whom },
        io::ErrorKind::PermissionDenied if matches!(entrance, Entrance::Capture(_)) => {
            "capturing needs CAP_NET_RAW: add NET_RAW to the container's capabilities, or use --listen alone"
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address: see `ip address`",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE or net.ipv4.ip_unprivileged_port_start: take a higher one"
        }
        _ => "see the limits of this process and the kernel's log",
    };
    Error::Bind { address, whom, source, hint }
}
