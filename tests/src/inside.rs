//! Sockets of some user in some host, used by the test itself.
//!
//! In: a host, a user, how to make a socket. Out: the socket, which stays in that host and that user's wherever it is
//! used from. A thread makes it, since network namespace and user belong to threads. The test's own thread never leaves
//! its place.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use rustix::process::Uid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_res_uid};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::Host;

/// The user of the tests themselves.
pub const ROOT: u32 = 0;

/// What is answered at all is answered within this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `make` in a host, as a user.
///
/// # Panics
/// When this process may not become that user: in a user namespace of one user there is no other.
pub fn within<T: Send + 'static>(host: &Host, user: u32, make: impl FnOnce() -> T + Send + 'static) -> T {
    let name = host.name().to_owned();
    let made = thread::spawn(move || {
        let network = File::open(format!("/run/netns/{name}")).expect("a host's network");
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("into the host");
        if user != ROOT {
            let uid = Uid::from_raw(user);
            set_thread_res_uid(uid, uid, uid).unwrap_or_else(|error| {
                panic!("cannot become user {user}: {error}; run this test as root, who has other users")
            });
        }
        make()
    });
    made.join().expect("what runs in the host does not panic")
}

/// A client's connection, which was greeted.
#[derive(Debug)]
pub struct Client {
    /// Who answered: the first line.
    pub who: String,
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects from a host and is greeted.
    ///
    /// # Errors
    /// The connect's, or that nobody greets in time.
    pub async fn open(host: &Host, user: u32, to: SocketAddr) -> io::Result<Client> {
        let stream = connect(host, user, to).await?;
        let mut stream = BufReader::new(stream);
        let mut who = String::new();
        timeout(PATIENCE, stream.read_line(&mut who)).await??;
        Ok(Client { who: who.trim_end().to_owned(), stream })
    }

    /// Sends a few bytes and gets them back.
    ///
    /// # Errors
    /// If they do not come back in time.
    pub async fn echo(&mut self) -> io::Result<()> {
        let mut back = [0; 4];
        self.stream.write_all(b"ping").await?;
        timeout(PATIENCE, self.stream.read_exact(&mut back)).await??;
        if &back == b"ping" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// Says its last, and reads the other's.
    ///
    /// # Errors
    /// If that does not come in time, or is no end in good order.
    pub async fn end(mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        let mut rest = Vec::new();
        timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await??;
        if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// The connection itself.
    pub fn into_stream(self) -> TcpStream {
        self.stream.into_inner()
    }
}

/// Connects from a host.
///
/// # Errors
/// The connect's, or that it takes too long.
pub async fn connect(host: &Host, user: u32, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = within(host, user, move || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        io::Result::Ok(socket)
    })?;
    let socket = TcpSocket::from_std_stream(socket.into());
    match timeout(PATIENCE, socket.connect(to)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Sends a datagram with these six bits (DSCP) from a host.
///
/// # Errors
/// What the system says to it.
pub fn send(host: &Host, user: u32, to: SocketAddr, dscp: u8) -> io::Result<()> {
    udp(host, user, to.ip(), dscp)?.send_to(b"", to).map(drop)
}

/// A UDP socket in a host, whose datagrams have these six bits.
///
/// # Errors
/// If there is none.
pub fn udp(host: &Host, user: u32, family_of: IpAddr, dscp: u8) -> io::Result<UdpSocket> {
    within(host, user, move || {
        let is_v4 = family_of.is_ipv4();
        let socket = UdpSocket::bind(if is_v4 { "0.0.0.0:0" } else { "[::]:0" })?;
        let options = Socket::from(socket);
        let class = u32::from(dscp) << 2;
        if is_v4 { options.set_tos_v4(class) } else { options.set_tclass_v6(class) }?;
        Ok(options.into())
    })
}
