//! `--dns`: answers questions of DNS by the table, and passes the others on. In: datagrams and streams. Out: answers.
//! Never says that a name does not exist unless the table has all there are, and never keeps a client waiting for the
//! table: before the first one, everything is passed on.
//!
//! ```text
//! client ──query──▶ answer (names of the table) ──▶ client
//!                     └─ not ours ─▶ cache ─▶ forward ──▶ the cluster's DNS
//! ```
//! All of it is one thread, which moves no connections. Garbage is dropped or refused without a trace; questions that
//! are passed on are so many at once, connections too, and what is kept has so many bytes.

mod answer;
mod cache;
mod counts;
mod forward;
mod message;
mod resolv;
mod resolver;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, Record};
use selection::ServiceName;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use watcher::{Names, NamesReader, Watch};

pub use answer::{ALIASES_MOST, Answer, End, Wrong, Zone, answer, external_name};
pub use counts::{Counts, Failure, From};
pub use resolv::PORT;
pub use resolver::{Lookups, Resolved, Resolver, Unresolved};

use cache::{Cache, Key};
use forward::{Forward, Over};
use message::{Contents, PAYLOAD, Request, Unanswered, refusal};

/// Queries are short; what is longer than this is none.
const QUERY: usize = 4096;
/// Streams at once; one more is closed.
const STREAMS: usize = 256;
/// How long a stream may wait for its next query, or for its client to take an answer.
const STREAM_WAITS: Duration = Duration::from_secs(10);
/// Wrong external names that are remembered as told, so that each is told once.
const TOLD_MOST: usize = 256;
/// Who leaves its address to a successor goes when there was no question for this long.
const QUIET: Duration = Duration::from_millis(100);
/// How often the source is asked whether it is in step.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Where this machine says whom to ask.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// How to answer.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where.
    pub address: SocketAddr,
    /// Whom to ask for what the table does not know; as `/etc/resolv.conf` says if empty.
    pub forward: Vec<SocketAddr>,
    /// The cluster's zone.
    pub zone: Zone,
}

/// Why there is no DNS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error(
        "cannot answer DNS on {0}: {1}; choose another address or port (below 1024 it may take CAP_NET_BIND_SERVICE)"
    )]
    Bind(SocketAddr, io::Error),
    /// There is nobody else.
    #[error(
        "--dns {0} has nobody to ask for other names: {RESOLV_CONF} names no other server; say --dns-forward with \
         the address of the cluster's DNS"
    )]
    NobodyToAsk(SocketAddr),
}

/// The sockets.
#[derive(Debug)]
pub struct Listener {
    datagrams: std::net::UdpSocket,
    streams: std::net::TcpListener,
}

/// What answers. Owning one means to hold what was answered lately.
#[derive(Debug)]
pub struct Dns {
    zone: Zone,
    /// What the source does not have does not exist, as long as it is in step.
    is_authority: bool,
    is_in_step: AtomicBool,
    forward: Forward,
    cache: Mutex<Cache>,
    turn: AtomicUsize,
    streams: Semaphore,
    counts: Arc<Counts>,
    told: Mutex<HashSet<(ServiceName, Wrong)>>,
}

/// What becomes of a query.
enum Step {
    Reply(Vec<u8>),
    Silence,
    /// Somebody else has to be asked.
    Ask(Box<Pending>),
}

/// A question that somebody else has to answer.
struct Pending {
    request: Request,
    aliases: Vec<Record>,
    /// What the aliases end with; the question itself if there are none.
    name: Option<Name>,
}

impl Step {
    fn ask(request: Request, aliases: Vec<Record>, name: Option<Name>) -> Self {
        Self::Ask(Box::new(Pending { request, aliases, name }))
    }
}

/// Listens at `address`, for datagrams and streams; `share` lets a successor listen there too.
///
/// # Errors
/// If it cannot.
pub fn bind(address: SocketAddr, share: bool) -> Result<Listener, Error> {
    let bound = |address: SocketAddr, kind, protocol| {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_port(share)?;
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&address.into())?;
        Ok::<_, io::Error>(socket)
    };
    let both = || {
        let datagrams: std::net::UdpSocket = bound(address, Type::DGRAM, Protocol::UDP)?.into();
        let streams = bound(datagrams.local_addr()?, Type::STREAM, Protocol::TCP)?;
        streams.listen(1024)?;
        Ok::<_, io::Error>(Listener { datagrams, streams: streams.into() })
    };
    // With port 0 the port that is free for datagrams may be taken for streams.
    let tries = if address.port() == 0 { 16 } else { 1 };
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..tries {
        match both() {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(Error::Bind(address, last))
}

impl Listener {
    /// Where it listens.
    ///
    /// # Errors
    /// Never, while the sockets are open.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.datagrams.local_addr()
    }
}

impl Dns {
    /// Answers by `settings`. `is_authority`: once the source is read as a whole, what it does not have does not exist.
    ///
    /// # Errors
    /// If there is nobody to ask for other names.
    pub fn new(settings: Settings, is_authority: bool) -> Result<Self, Error> {
        let Settings { address, forward, zone } = settings;
        let mut servers = forward;
        if servers.is_empty() {
            servers = resolv::servers(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default());
        }
        // In a Pod whose resolver we are, the file names this very address.
        servers.retain(|server| *server != address);
        if servers.is_empty() {
            return Err(Error::NobodyToAsk(address));
        }
        Ok(Self {
            zone,
            is_authority,
            is_in_step: AtomicBool::new(false),
            forward: Forward::new(servers),
            cache: Mutex::default(),
            turn: AtomicUsize::new(0),
            streams: Semaphore::new(STREAMS),
            counts: Arc::default(),
            told: Mutex::default(),
        })
    }

    /// What it did.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Answers until the runtime ends, or until `leaves` says that somebody else is at the same address: then what has
    /// come is answered, and nothing more comes.
    ///
    /// # Errors
    /// If the sockets are no good.
    pub async fn serve(
        self: Arc<Self>,
        listener: Listener,
        watch: Watch,
        leaves: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let datagrams = Arc::new(UdpSocket::from_std(listener.datagrams)?);
        let streams = TcpListener::from_std(listener.streams)?;
        let Some(names) = watch.names().await else { return Ok(()) };
        let accepts = tokio::spawn(Arc::clone(&self).accept(streams, names.reader()));
        tokio::select! {
            () = self.look(&watch) => Ok(()),
            () = Arc::clone(&self).receive(datagrams, names.reader(), leaves) => {
                accepts.abort();
                Ok(())
            }
        }
    }

    /// A source that is broken may not have heard of a Service.
    async fn look(&self, watch: &Watch) {
        loop {
            let status = watch.status();
            self.is_in_step.store(status.synced && status.broken.is_empty(), Relaxed);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn receive(
        self: Arc<Self>,
        socket: Arc<UdpSocket>,
        mut names: NamesReader,
        leaves: impl Future<Output = ()>,
    ) {
        let mut query = vec![0; QUERY];
        let (mut leaves, mut has_left) = (std::pin::pin!(leaves), false);
        loop {
            let received = tokio::select! {
                biased;
                received = socket.recv_from(&mut query) => received,
                () = &mut leaves, if !has_left => {
                    leave(&socket);
                    has_left = true;
                    continue;
                }
                // Those that wait for somebody else's answer have the socket too.
                () = tokio::time::sleep(QUIET), if has_left => match Arc::strong_count(&socket) {
                    1 => return,
                    _ => continue,
                },
            };
            // The kernel tells here that an earlier answer could not be delivered, or that it is short of memory.
            let Ok((length, client)) = received else { continue };
            let query = &query[..length];
            match self.step(query, names.names(), Over::Udp) {
                Step::Silence => {}
                Step::Reply(answer) => drop(socket.send_to(&answer, client).await),
                Step::Ask(pending) => {
                    let (dns, socket, query) = (Arc::clone(&self), Arc::clone(&socket), query.to_vec());
                    tokio::spawn(async move {
                        let answer = dns.ask(*pending, &query, Over::Udp).await;
                        // Whoever asked may have gone.
                        let _ = socket.send_to(&answer, client).await;
                    });
                }
            }
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, names: NamesReader) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // No descriptors, mostly: those that end make room.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (dns, names) = (Arc::clone(&self), names.clone());
            tokio::spawn(async move {
                if let Ok(_slot) = dns.streams.try_acquire() {
                    // However a stream ends, there is nobody to tell.
                    let _ = dns.stream(stream, names).await;
                }
            });
        }
    }

    /// Answers the queries of one stream, one after the other.
    async fn stream(&self, mut stream: TcpStream, mut names: NamesReader) -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let read = async {
                let length = usize::from(stream.read_u16().await?);
                let mut query = vec![0; length.min(QUERY)];
                stream.read_exact(&mut query).await?;
                Ok::<_, io::Error>(if length > QUERY { Vec::new() } else { query })
            };
            let query = timeout(STREAM_WAITS, read).await??;
            let step = self.step(&query, names.names(), Over::Tcp);
            let answer = match step {
                Step::Silence => return Ok(()),
                Step::Reply(answer) => answer,
                Step::Ask(pending) => self.ask(*pending, &query, Over::Tcp).await,
            };
            let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
            let message = [&length.to_be_bytes(), &answer[..]].concat();
            timeout(STREAM_WAITS, stream.write_all(&message)).await??;
        }
    }

    /// What the table says to `query`.
    fn step(&self, query: &[u8], names: &Names, over: Over) -> Step {
        let request = match Request::read(query) {
            Ok(request) => request,
            Err(Unanswered::Garbage) => {
                self.counts.drop_one();
                return Step::Silence;
            }
            Err(Unanswered::Refused(metadata, code)) => {
                self.counts.answer(From::Nobody, code);
                return Step::Reply(refusal(metadata, code));
            }
        };
        if request.is_beyond_us() {
            self.counts.answer(From::Nobody, ResponseCode::BADVERS);
            return Step::Reply(request.outcome(ResponseCode::BADVERS));
        }
        if !request.is_internet() {
            return Step::ask(request, Vec::new(), None);
        }
        let may_deny = self.is_authority && self.is_in_step.load(Relaxed);
        let turn = self.turn.fetch_add(1, Relaxed);
        let asked = (request.query.name(), request.query.query_type());
        let Answer { records, additionals, end } =
            answer(names, &self.zone, asked.0, asked.1, may_deny, turn);
        let code = match end {
            End::Found | End::NoData => ResponseCode::NoError,
            End::NoName => ResponseCode::NXDomain,
            End::Elsewhere(_) if records.is_empty() => return Step::ask(request, records, None),
            End::Elsewhere(name) => return Step::ask(request, records, Some(name)),
            End::Wrong(service, why) => {
                self.wrong(service, why);
                self.counts.answer(From::Table, ResponseCode::ServFail);
                return Step::Reply(request.outcome(ResponseCode::ServFail));
            }
        };
        self.counts.answer(From::Table, code);
        let is_negative = end != End::Found;
        let authorities = self.zone.authority(names.version()).filter(|_| is_negative).into_iter().collect();
        let contents = Contents { code, is_ours: true, answers: records, authorities, additionals };
        Step::Reply(request.answer(contents, limit(&request, over)))
    }

    /// The answer of somebody else.
    async fn ask(&self, pending: Pending, query: &[u8], over: Over) -> Vec<u8> {
        let Pending { request, aliases, name } = pending;
        let request = &request;
        let answer = match name {
            None => self.fetch(request, query, over).await,
            Some(name) => self.chase(request, aliases, name, over).await,
        };
        answer.unwrap_or_else(|_| {
            self.counts.answer(From::Nobody, ResponseCode::ServFail);
            request.outcome(ResponseCode::ServFail)
        })
    }

    /// The answer to `query` of somebody else, lately or at this moment.
    async fn fetch(&self, request: &Request, query: &[u8], over: Over) -> Result<Vec<u8>, Failure> {
        // What a stream asks for was mostly too long for a datagram, and so for the cache.
        let key = Key::of(request, query).filter(|_| over == Over::Udp);
        let kept = key.as_ref().and_then(|key| lock(&self.cache).get(key, request, query, Instant::now()));
        let (answer, from) = match kept {
            Some(answer) => (answer, From::Cache),
            None => {
                let answer = self.forward.ask(query, over, &self.counts).await?;
                if let Some(key) = key {
                    lock(&self.cache).put(key, &answer, Instant::now());
                }
                (answer, From::Forward)
            }
        };
        let code = answer.get(3).map_or(0, |byte| byte & 0x0f);
        self.counts.answer(from, ResponseCode::from_low(code));
        Ok(answer)
    }

    /// The answer that begins with `aliases` and ends with what somebody else says of `name`.
    async fn chase(
        &self,
        request: &Request,
        aliases: Vec<Record>,
        name: Name,
        over: Over,
    ) -> Result<Vec<u8>, Failure> {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = request.metadata.checking_disabled;
        message.queries.push(Query::query(name, request.query.query_type()));
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        message.edns = Some(edns);
        let query = message.to_vec().map_err(|_| Failure::Unreachable)?;
        let asked = Request::read(&query).map_err(|_| Failure::Unreachable)?;
        let read = |answer: Vec<u8>| Message::from_vec(&answer).map_err(|_| Failure::Unreachable);
        let mut answer = read(self.fetch(&asked, &query, Over::Udp).await?)?;
        if answer.metadata.truncation {
            answer = read(self.fetch(&asked, &query, Over::Tcp).await?)?;
        }
        let contents = Contents {
            code: answer.metadata.response_code,
            is_ours: false,
            answers: aliases.into_iter().chain(answer.answers).collect(),
            authorities: answer.authorities,
            additionals: Vec::new(),
        };
        Ok(request.answer(contents, limit(request, over)))
    }

    /// Tells of an external name that leads nowhere, once.
    fn wrong(&self, service: ServiceName, why: Wrong) {
        self.counts.wrong_name(why);
        let mut told = lock(&self.told);
        if told.len() >= TOLD_MOST {
            told.clear();
        }
        if told.insert((service.clone(), why)) {
            tracing::warn!(reason = why.label(), "the external name of Service {service} {}", why.advice());
        }
    }
}

/// Has the kernel give the questions that come from here on to whoever else listens there; those that have come are
/// still to be read. A socket that is connected gets only what its other end sends, and nobody sends from our own address.
fn leave(socket: &UdpSocket) {
    let own = socket.local_addr();
    let connected = own.and_then(|own| socket2::SockRef::from(socket).connect(&own.into()));
    if let Err(error) = &connected {
        tracing::warn!(%error, "cannot leave the address of --dns to a successor; a question may be lost at the end");
    }
}

/// The longest answer that `request` takes.
fn limit(request: &Request, over: Over) -> usize {
    match over {
        Over::Udp => request.payload().min(PAYLOAD).into(),
        Over::Tcp => u16::MAX.into(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
