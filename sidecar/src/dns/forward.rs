//! Asks the cluster's DNS what the table does not know. In: a query as its client wrote it. Out: the answer as the
//! server wrote it, under the client's number. Bounded: so many questions under way, each for so long.
//!
//! Each question has a socket, and so a port, and a number of its own, so that nobody who cannot read along can
//! answer in the server's name. A server that fails is asked after the others for a while.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::counts::{Counts, Failure};
use super::message::{HEADER, question};

/// How long one server may take: resolvers of C wait five seconds in all.
const EACH: Duration = Duration::from_secs(1);
/// Questions to servers before giving up.
const TRIES: usize = 4;
/// How long a server that failed is asked last.
const ASIDE: Duration = Duration::from_secs(5);
/// Questions under way at once.
const AT_ONCE: usize = 512;
/// The longest datagram that is waited for.
const DATAGRAM: usize = 4096;

/// Over what a question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// Datagrams.
    Udp,
    /// A stream, for what no datagram holds.
    Tcp,
}

/// The servers that are asked.
#[derive(Debug)]
pub(super) struct Forward {
    servers: Box<[Server]>,
    slots: Semaphore,
    origin: Instant,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    /// Until when it is asked last, in milliseconds since the origin.
    aside: AtomicU64,
}

impl Forward {
    /// Asks `servers`, the first one first.
    pub(super) fn new(servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        let server = |address| Server { address, aside: AtomicU64::new(0) };
        let servers = servers.into_iter().map(server).collect();
        Self { servers, slots: Semaphore::new(AT_ONCE), origin: Instant::now() }
    }

    /// The answer to `query`, a whole message.
    ///
    /// # Errors
    /// Why nobody gave one.
    pub(super) async fn ask(&self, query: &[u8], over: Over, counts: &Counts) -> Result<Vec<u8>, Failure> {
        let Ok(_slot) = self.slots.try_acquire() else {
            counts.fail(Failure::Limit);
            return Err(Failure::Limit);
        };
        let order = self.order();
        let (mut last, mut poor) = (Failure::Unreachable, None);
        for (number, server) in order.iter().cycle().take(TRIES.max(order.len())).enumerate() {
            match timeout(EACH, server.ask(query, over)).await.unwrap_or(Err(Failure::Timeout)) {
                Ok(answer) => {
                    server.aside.store(0, Relaxed);
                    if !is_poor(&answer) || number + 1 >= order.len() {
                        return Ok(answer);
                    }
                    // Another server may know better.
                    poor = Some(answer);
                }
                Err(why) => {
                    counts.fail(why);
                    server.aside.store(self.now() + ASIDE.as_millis() as u64, Relaxed);
                    last = why;
                    if poor.is_some() && number + 1 >= order.len() {
                        break;
                    }
                }
            }
        }
        poor.ok_or(last)
    }

    /// The servers, those that failed lately last.
    fn order(&self) -> Vec<&Server> {
        let now = self.now();
        let mut order: Vec<_> = self.servers.iter().collect();
        order.sort_by_key(|server| server.aside.load(Relaxed) > now);
        order
    }

    fn now(&self) -> u64 {
        self.origin.elapsed().as_millis() as u64
    }
}

/// The server could not say.
fn is_poor(answer: &[u8]) -> bool {
    let poor = [ResponseCode::ServFail, ResponseCode::NotImp, ResponseCode::Refused];
    answer.get(3).is_some_and(|byte| poor.iter().any(|code| code.low() == byte & 0x0f))
}

impl Server {
    async fn ask(&self, query: &[u8], over: Over) -> Result<Vec<u8>, Failure> {
        let unreachable = |_: io::Error| Failure::Unreachable;
        let mut asked = query.to_vec();
        let number = number().map_err(unreachable)?;
        let (Some(own), Some(place)) = (query.get(..2), asked.get_mut(..2)) else {
            return Err(Failure::Unreachable);
        };
        place.copy_from_slice(&number);
        let answer = match over {
            Over::Udp => self.by_datagram(&asked).await,
            Over::Tcp => self.by_stream(&asked).await,
        };
        let mut answer = answer.map_err(unreachable)?;
        answer.iter_mut().zip(own).for_each(|(to, own)| *to = *own);
        Ok(answer)
    }

    async fn by_datagram(&self, asked: &[u8]) -> io::Result<Vec<u8>> {
        let any = match self.address.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(self.address).await?;
        socket.send(asked).await?;
        let mut answer = vec![0; DATAGRAM];
        loop {
            let length = socket.recv(&mut answer).await?;
            // What is none is not taken for one, and the right one may still come.
            if is_answer(&answer[..length], asked) {
                answer.truncate(length);
                return Ok(answer);
            }
        }
    }

    async fn by_stream(&self, asked: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.address).await?;
        let length = u16::try_from(asked.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        stream.write_all(&[&length.to_be_bytes(), asked].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        if is_answer(&answer, asked) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// `answer` answers what was asked, in whatever letters.
fn is_answer(answer: &[u8], asked: &[u8]) -> bool {
    if answer.get(..2) != asked.get(..2) || answer.get(2).is_none_or(|byte| byte & 0x80 == 0) {
        return false;
    }
    let is_same = |(a, b): (&[u8], &[u8])| a.eq_ignore_ascii_case(b);
    // A server that does not understand the question may leave it out.
    answer.len() == HEADER || question(answer).zip(question(asked)).is_some_and(is_same)
}

fn number() -> io::Result<[u8; 2]> {
    let mut bytes = [0; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    fn message(kind: MessageType, id: u16, name: &str) -> Vec<u8> {
        let mut message = Message::new(id, kind, OpCode::Query);
        message.queries.push(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    #[test]
    fn only_the_answer_to_what_was_asked_is_taken() {
        let asked = message(MessageType::Query, 7, "www.example.");
        assert!(is_answer(&message(MessageType::Response, 7, "WWW.example."), &asked));
        assert!(!is_answer(&message(MessageType::Response, 8, "www.example."), &asked));
        assert!(!is_answer(&message(MessageType::Query, 7, "www.example."), &asked));
        assert!(!is_answer(&message(MessageType::Response, 7, "other.example."), &asked));
        assert!(!is_answer(&asked[..2], &asked));
    }

    #[test]
    fn a_server_that_failed_is_asked_last_for_a_while() {
        let addresses: [SocketAddr; 2] = ["127.0.0.1:1", "127.0.0.1:2"].map(|a| a.parse().unwrap());
        let forward = Forward::new(addresses);
        let first = || forward.order()[0].address;
        assert_eq!(first(), addresses[0]);
        forward.servers[0].aside.store(forward.now() + 1_000, Relaxed);
        assert_eq!(first(), addresses[1]);
        forward.servers[1].aside.store(forward.now() + 1_000, Relaxed);
        assert_eq!(first(), addresses[0], "all failed: the order is as it was given");
    }
}
