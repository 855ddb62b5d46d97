//! One side of a relayed connection: a socket that is tried first and waited for second. In: bytes to send, or
//! room for bytes. Out: how many, or that it must be waited for. Never blocks, never buffers.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt};
use selection::Family;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::listener::keepalive;

/// A socket that is *reset* when it is dropped, unless [`Socket::close_in_order`] was called: whatever ends a
/// connection before both its ends were passed on, neither side takes what it got for all that was meant.
#[derive(Debug)]
pub(super) struct Socket {
    hold: Hold,
    /// Dropping it is an ordinary close.
    in_order: bool,
    /// A read may find something.
    readable: bool,
    /// The other end closed both ways in order; there is nothing left to watch for.
    hung_up: bool,
}

/// ```text
/// Free ──watch──▶ Watched        the reactor reports changes only, so that everything is tried until it
///   └─────────────▶ Lost         would block before it is waited for
/// ```
#[derive(Debug)]
enum Hold {
    Free(OwnedFd),
    Watched(TcpStream),
    Lost,
}

/// A socket that is not connected yet. Owning one means to have the descriptor for the endpoint's side.
#[derive(Debug)]
pub(super) struct Spare {
    fd: OwnedFd,
    family: Family,
}

impl Spare {
    /// A fresh socket of `family`; `MFILE` also if only descriptors from `end` on are left: the system gives the
    /// lowest, and those are others'.
    pub(super) fn new(family: Family, end: RawFd) -> Result<Self, Errno> {
        let domain = if family == Family::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = rustix::net::socket_with(domain, SocketType::STREAM, flags, None)?;
        if fd.as_raw_fd() >= end {
            return Err(Errno::MFILE);
        }
        sockopt::set_tcp_nodelay(&fd, true)?;
        Ok(Self { fd, family })
    }
}

/// Whether one more connection could begin now.
pub(super) fn has_room(end: RawFd) -> bool {
    let spare = || Spare::new(Family::V4, end);
    spare().is_ok_and(|_client| spare().is_ok())
}

impl Socket {
    /// A connected or accepted socket, which does not block.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { hold: Hold::Free(fd), in_order: false, readable: false, hung_up: false }
    }

    /// A socket on its way to `address`, `spare` if that is of the family; whether it got there, the first
    /// byte or the first wait tells.
    pub(super) fn connecting(address: SocketAddr, spare: Option<Spare>, end: RawFd) -> Result<Self, Errno> {
        let family = Family::of(&address.ip());
        let Spare { fd, .. } = match spare.filter(|spare| spare.family == family) {
            Some(spare) => spare,
            None => Spare::new(family, end)?,
        };
        match rustix::net::connect(&fd, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(Self::new(fd)),
            Err(errno) => Err(errno),
        }
    }

    /// Has the thread's reactor watch it. What has arrived by then is reported as a change.
    pub(super) fn watch(&mut self) -> io::Result<()> {
        if let Hold::Free(fd) = std::mem::replace(&mut self.hold, Hold::Lost) {
            self.hold = Hold::Watched(TcpStream::from_std(fd.into())?);
        }
        Ok(())
    }

    /// The descriptor; `BADF` once it is lost.
    pub(super) fn fd(&self) -> Result<BorrowedFd<'_>, Errno> {
        match &self.hold {
            Hold::Free(fd) => Ok(fd.as_fd()),
            Hold::Watched(stream) => Ok(stream.as_fd()),
            Hold::Lost => Err(Errno::BADF),
        }
    }

    /// The address of this end: for a captured connection, what its client dialled.
    pub(super) fn own_address(&self) -> Result<SocketAddr, Errno> {
        SocketAddr::try_from(rustix::net::getsockname(self.fd()?)?)
    }

    /// Has the system ask a silent other end whether it is still there.
    pub(super) fn keep_alive(&self) {
        if let Ok(fd) = self.fd() {
            // A refusal costs a connection nothing but this.
            drop(socket2::SockRef::from(&fd).set_tcp_keepalive(&keepalive()));
        }
    }

    /// Some of what has arrived; `Ok(0)` at its end. `WOULDBLOCK`: nothing has.
    pub(super) fn receive(&self, room: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match rustix::net::recv(self.fd()?, &mut *room, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                result => return result.map(|(n, _)| n),
            }
        }
    }

    /// Sends as much of `bytes` as there is room for. `WOULDBLOCK`: none, or not connected yet.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        loop {
            match rustix::net::send(self.fd()?, bytes, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Tells the other end that no more bytes will come.
    pub(super) fn end(&self) -> Result<(), Errno> {
        rustix::net::shutdown(self.fd()?, Shutdown::Write)
    }

    /// The error that waits on the socket, if any; asking takes it.
    pub(super) fn error(&self) -> Option<Errno> {
        self.fd().and_then(sockopt::socket_error).and_then(|result| result).err()
    }

    /// Both ends were passed on: dropping it is an ordinary close.
    pub(super) fn close_in_order(&mut self) {
        self.in_order = true;
    }

    /// A read may find something, for all that is known.
    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    /// What a read found, or an error elsewhere, tells whether the next one may find something.
    pub(super) fn set_readable(&mut self, readable: bool) {
        self.readable = readable;
    }

    /// Returns once a connect under way was decided, for good or ill; [`Self::error`] tells.
    pub(super) async fn decided(&self) {
        if let Hold::Watched(stream) = &self.hold {
            // The reactor ends with the thread only.
            drop(stream.writable().await);
        }
    }

    /// Ready if a read may find something, its end and a reset included.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.readable {
            if let Hold::Watched(stream) = &self.hold {
                drop(ready!(stream.poll_read_ready(cx)));
                forget(stream, Interest::READABLE);
            }
            self.readable = true;
        }
        Poll::Ready(())
    }

    /// Ready if a write that would have blocked may go on, or fail.
    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        if let Hold::Watched(stream) = &self.hold {
            drop(ready!(stream.poll_write_ready(cx)));
            forget(stream, Interest::WRITABLE);
        }
        Poll::Ready(())
    }

    /// Ready if the connection was reset; for a side that is neither read from nor written to, where nothing
    /// else would tell.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Hold::Watched(stream) = &self.hold else { return Poll::Ready(()) };
        if self.hung_up {
            return Poll::Pending;
        }
        drop(ready!(stream.poll_write_ready(cx)));
        // Either there is room to write, which nobody asked for, and it is forgotten; or the connection is
        // closed both ways, which stays.
        forget(stream, Interest::WRITABLE);
        drop(ready!(stream.poll_write_ready(cx)));
        if self.error().is_some() {
            return Poll::Ready(());
        }
        self.hung_up = true;
        Poll::Pending
    }
}

/// Has the reactor's memory of a change cleared, so that the next poll waits for another one. Sound only because
/// what the change was about is tried, until it would block, before that poll.
fn forget(stream: &TcpStream, interest: Interest) {
    drop(stream.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into())));
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.in_order
            && let Ok(fd) = self.fd()
        {
            // Fails only where there is no connection to reset.
            let _ = sockopt::set_socket_linger(fd, Some(Duration::ZERO));
        }
    }
}
