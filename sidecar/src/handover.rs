//! One process takes over from another without a client noticing: the listening sockets themselves change hands,
//! with every connection that waits in them. In: a path that both know. Out: sockets. Never ends a process; the
//! one that is succeeded is told, and drains.
//!
//! ```text
//!  earlier process (offers)                      successor (inherits)
//!                          ◀── connect ───
//!    "tcp 127.0.0.1:8080" + descriptor ──▶       one packet a socket
//!                                "end" ──▶
//!                                                first table, then it takes connections, as the other still does
//!                           ◀── "serves" ──
//!    takes no more, drains, ends                 offers at the same path
//! ```
//! A successor that ends before it said `serves` has changed nothing. Packets of an unknown kind are passed over,
//! so that processes of different age understand each other. Pingora's own hand-over was not enough: it panics at
//! the 33rd descriptor, lets every user in, and does not wait until anybody serves.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};

/// Between two packets of a process that is alive.
const PATIENCE: Duration = Duration::from_secs(10);
/// A packet is a word and an address.
const PACKET: usize = 128;
const END: &str = "end";
const SERVES: &str = "serves";

/// What a listening socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Connections to a Service.
    Tcp,
    /// `--health` or `--admin`.
    Http,
}

/// A listening socket, what it is for and where it listens.
pub type Held = (Role, SocketAddr, TcpListener);

/// What an earlier process handed over. Dropping it before [`Self::serves`] leaves everything to that process.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<Held>,
    earlier: Option<OwnedFd>,
}

/// Sockets offered to a successor.
#[derive(Clone, Debug)]
pub struct Offer(Arc<Offered>);

#[derive(Debug)]
struct Offered {
    path: PathBuf,
    /// `None` once they are withdrawn.
    sockets: Mutex<Option<Vec<Held>>>,
}

/// Why nothing can be handed over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is somebody else's.
    #[error("cannot use --handover {0}: it is there and no socket; choose a path of its own")]
    Occupied(PathBuf),
    /// The earlier process did not hand over.
    #[error(
        "cannot take over from the process at --handover {0}: {1}; stop it, or an earlier attempt to succeed it, then start this one again"
    )]
    Inherit(PathBuf, io::Error),
    /// The path cannot be had.
    #[error(
        "cannot offer sockets at --handover {0}: {1}; choose a path in a folder that this user may write"
    )]
    Offer(PathBuf, io::Error),
}

impl Role {
    fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
        }
    }
}

impl Inherited {
    /// Takes the sockets of the process that offers them at `path`; nothing if none does.
    ///
    /// # Errors
    /// If `path` is no socket, or that process stops halfway.
    pub fn take(path: &Path) -> Result<Self, Error> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(Error::Occupied(path.to_owned())),
            Ok(_) => {}
            Err(_) => return Ok(Self::default()),
        }
        Self::receive(path).map_err(|error| Error::Inherit(path.to_owned(), error))
    }

    fn receive(path: &Path) -> io::Result<Self> {
        let earlier = socket()?;
        sockopt::set_socket_timeout(&earlier, sockopt::Timeout::Recv, Some(PATIENCE))?;
        match net::connect(&earlier, &SocketAddrUnix::new(path)?) {
            Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => return Ok(Self::default()),
            result => result?,
        }
        let mut sockets = Vec::new();
        loop {
            let (text, descriptor) = receive(&earlier)?;
            if text == END {
                return Ok(Self { sockets, earlier: Some(earlier) });
            }
            if text.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let known = text.split_once(' ').and_then(|(role, address)| {
                let role = [Role::Tcp, Role::Http].into_iter().find(|known| known.label() == role)?;
                Some((role, address.parse().ok()?, TcpListener::from(descriptor?)))
            });
            sockets.extend(known);
        }
    }

    /// Whether an earlier process serves until [`Self::serves`] is called.
    pub fn is_from_somebody(&self) -> bool {
        self.earlier.is_some()
    }

    /// The sockets for this role and address.
    pub fn claim(&mut self, role: Role, address: SocketAddr) -> Vec<TcpListener> {
        let claimed = self.sockets.extract_if(.., |(r, a, _)| *r == role && *a == address);
        claimed.map(|(.., socket)| socket).collect()
    }

    /// Tells the earlier process that its work is done; what was not claimed is closed.
    pub fn serves(self) {
        for (_, address, _) in &self.sockets {
            tracing::info!(%address, "the earlier process listened here, and this one does not");
        }
        if let Some(earlier) = self.earlier
            && let Err(error) = net::send(&earlier, SERVES.as_bytes(), SendFlags::NOSIGNAL)
        {
            tracing::warn!(%error, "the earlier process ended before it could be told that this one serves");
        }
    }
}

impl Offer {
    /// Offers `sockets` at `path` to whoever comes with the same user id, or root's; `taken` is called once somebody
    /// has taken them and serves.
    ///
    /// # Errors
    /// If the path cannot be had.
    pub fn new(
        path: &Path,
        sockets: Vec<Held>,
        taken: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::Offer(path.to_owned(), error);
        let listener = listen(path).map_err(failed)?;
        let offer = Self(Arc::new(Offered { path: path.to_owned(), sockets: Mutex::new(Some(sockets)) }));
        let offered = Arc::clone(&offer.0);
        let thread = std::thread::Builder::new().name("handover".to_owned());
        thread
            .spawn(move || match offered.until_taken(&listener) {
                Ok(()) => taken(),
                Err(error) => tracing::warn!(%error, "no process can take over from this one"),
            })
            .map_err(failed)?;
        Ok(offer)
    }

    /// Closes what is offered, which would keep its addresses open, and frees the path unless a successor has it.
    pub fn withdraw(&self) {
        if self.0.lock().take().is_some() {
            // Gone already is as good.
            let _ = std::fs::remove_file(&self.0.path);
        }
    }
}

impl Offered {
    fn until_taken(&self, listener: &OwnedFd) -> io::Result<()> {
        loop {
            let successor = net::accept_with(listener, SocketFlags::CLOEXEC)?;
            let user = sockopt::socket_peercred(&successor)?.uid;
            if !user.is_root() && user != rustix::process::geteuid() {
                tracing::warn!(
                    user = user.as_raw(),
                    "another user asked for the sockets of this process, and got none"
                );
                continue;
            }
            match self.hand_over(&successor) {
                Ok(true) => return Ok(()),
                Ok(false) => tracing::warn!("a successor ended before it served; this process goes on"),
                Err(error) => tracing::warn!(%error, "cannot hand over to a successor; this process goes on"),
            }
        }
    }

    /// Whether the successor serves. It may take its time to; its end is noticed.
    fn hand_over(&self, successor: &OwnedFd) -> io::Result<bool> {
        for (role, address, socket) in self.lock().iter().flatten() {
            send(successor, &format!("{} {address}", role.label()), socket)?;
        }
        net::send(successor, END.as_bytes(), SendFlags::NOSIGNAL)?;
        if receive(successor)?.0 != SERVES {
            return Ok(false);
        }
        // The path is the successor's from here on.
        self.lock().take();
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Held>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn socket() -> io::Result<OwnedFd> {
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Listens at `path`, in the place of whatever socket is there. Nobody can connect before the mode is set.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let listener = socket()?;
    net::bind(&listener, &SocketAddrUnix::new(&*fresh)?)?;
    let moved = std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| Ok(net::listen(&listener, 8)?))
        .and_then(|()| std::fs::rename(&fresh, path));
    if moved.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    moved.map(|()| listener)
}

fn send(to: &OwnedFd, text: &str, descriptor: &TcpListener) -> io::Result<()> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    net::sendmsg(to, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// One packet, empty if the other end is gone, and the descriptor that came with it.
fn receive(from: &OwnedFd) -> io::Result<(String, Option<OwnedFd>)> {
    let mut bytes = [0; PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match net::recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?,
        }
    };
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((String::from_utf8_lossy(&bytes[..received.bytes]).into_owned(), descriptor))
}
