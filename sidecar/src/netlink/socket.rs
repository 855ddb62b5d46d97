//! The conversation with the kernel over a netlink socket. In: messages. Out: whether they were done, and what is there.
//! Never waits for anything but the kernel, which answers before a send returns.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

use super::message::{Answer, Message, answers};

/// Room for what the kernel sends at once.
const ROOM: usize = 256 * 1024;

/// Owning one means being able to ask one family of netlink in this network namespace.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

/// A request that the kernel refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Which of the messages, counted from 0; `None` for a dump, or if not even the sending worked.
    pub(crate) message: Option<usize>,
    /// Why.
    pub(crate) errno: Errno,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { message: None, errno }
    }
}

impl Socket {
    /// For nftables.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(Some(NETFILTER))
    }

    /// For routes, rules and addresses.
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(None)
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        // As far as the system's limits go; what is sent at once is kept far below the default.
        let _ = set_socket_send_buffer_size(&socket, ROOM);
        let _ = set_socket_recv_buffer_size(&socket, ROOM);
        Ok(Self(socket))
    }

    /// Sends messages in one piece; returns when all were done. Of a batch, all were or none.
    ///
    /// # Errors
    /// The first message that was refused.
    pub(crate) fn send(&self, messages: &[Message]) -> Result<(), Refusal> {
        let mut bytes = Vec::new();
        for (number, message) in messages.iter().enumerate() {
            message.encode(number as u32, &mut bytes);
        }
        self.write(&bytes)?;
        let mut room = vec![0; ROOM];
        let mut done = false;
        loop {
            match receive(&self.0, &mut room, RecvFlags::DONTWAIT) {
                Err(Errno::WOULDBLOCK) if done => return Ok(()),
                // No answer at all: the kernel ends a batch at its first word if it does not know nftables.
                Err(Errno::WOULDBLOCK) => return Err(Errno::OPNOTSUPP.into()),
                Err(errno) => return Err(errno.into()),
                Ok(length) => {
                    for answer in answers(&room[..length]) {
                        if let Answer::Result { sequence, errno } = answer {
                            if errno != 0 {
                                let message = Some(sequence as usize);
                                return Err(Refusal { message, errno: Errno::from_raw_os_error(errno) });
                            }
                            done = true;
                        }
                    }
                }
            }
        }
    }

    /// Asks for everything of a kind; `each` gets the type of each item and its bytes.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn dump(&self, request: &Message, mut each: impl FnMut(u16, &[u8])) -> Result<(), Refusal> {
        let mut bytes = Vec::new();
        request.encode(0, &mut bytes);
        self.write(&bytes)?;
        let mut room = vec![0; ROOM];
        loop {
            let length = receive(&self.0, &mut room, RecvFlags::empty())?;
            for answer in answers(&room[..length]) {
                match answer {
                    Answer::Item(kind, body) => each(kind, body),
                    Answer::Done(0) | Answer::Result { errno: 0, .. } => return Ok(()),
                    Answer::Done(errno) | Answer::Result { errno, .. } => {
                        return Err(Errno::from_raw_os_error(errno).into());
                    }
                }
            }
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Errno> {
        let kernel = SocketAddrNetlink::new(0, 0);
        loop {
            match sendto(&self.0, bytes, SendFlags::NOSIGNAL, &kernel) {
                Err(Errno::INTR) => {}
                result => return result.map(drop),
            }
        }
    }
}

fn receive(socket: &OwnedFd, room: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
    loop {
        match recv(socket, &mut *room, flags) {
            Err(Errno::INTR) => {}
            result => return result.map(|(length, _)| length),
        }
    }
}
