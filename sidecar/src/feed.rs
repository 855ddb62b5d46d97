//! Serves the feed: to other Remoras, on connections that are nothing else ([`PROTOCOL`]), to Envoys as a gRPC stream
//! (`remora.Feed/Watch`), to anybody as the body of `GET /v1/feed` (`namespace=NAMESPACE`, `service=NAMESPACE/NAME`, each
//! as often as one likes; everything without). In: a watch. Out: frames. To other machines by TLS, and to who shows a token ([`Tokens`]). Whoever
//! reads slowly costs little, and nobody else anything. Beside it, the files that read it ([`Assets`]).

mod assets;
mod carrier;
mod counts;
mod lent;
mod message;
mod place;
mod query;
mod stranger;
mod tokens;
mod zones;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderName, HeaderValue, UPGRADE, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use selection::Here;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use watcher::Watch;
use watcher::feed::{self, PROTOCOL, Request as Wanted, Subscription, Teller, Told};

use crate::http;

use assets::Asset;
pub use assets::Assets;
use carrier::{Call, Carrier, End, Plain, Talk};
pub use counts::{Counts, Reset};
use lent::lend;
use message::{Messages, Status};
pub use place::{Error, Listener, bind};
use query::{INDEX, subscription};
use stranger::{Stranger, Strangers};
use tokens::Bearer;
pub use tokens::{Refused, Tokens};
pub use zones::Zones;

/// Readers at once; one more is turned away.
const READERS: usize = 16 << 10;
/// Connections at once, of which each may carry several readers; more wait in the kernel.
const CONNECTIONS: usize = 16 << 10;
/// Readers on one connection.
const STREAMS: u32 = 256;
/// For the request's line and headers.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// For a handshake.
const SHAKES_WITHIN: Duration = Duration::from_secs(5);
/// A reader on a gRPC stream says within this time what it wants.
const SAYS_WITHIN: Duration = Duration::from_secs(30);
/// A reader that takes nothing for so long is let go.
const TAKES_WITHIN: Duration = Duration::from_secs(60);
/// An idle HTTP/2 connection is tried this often.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Frames that wait for the connection to take them.
const WAITING: usize = 2;

/// Bytes that wait to be sent on an HTTP/1.1 connection, whose reader may be slow.
const BUFFER: usize = 64 << 10;

/// The path of the gRPC method.
const WATCH: &str = "/remora.Feed/Watch";

/// Who is let in from other machines.
#[derive(Clone)]
pub struct Door {
    /// What they see.
    pub tls: TlsAcceptor,
    /// Who judges what they show.
    pub tokens: Arc<Tokens>,
    /// Who knows where they are.
    pub zones: Arc<Zones>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Door").field(&self.tokens).finish()
    }
}

/// Who serves the feed.
#[derive(Clone, Debug)]
pub struct Feed {
    watch: Watch,
    /// Of what comes by TCP, if there is one.
    door: Option<Door>,
    assets: Option<Assets>,
    counts: Arc<Counts>,
    readers: Arc<Semaphore>,
}

/// How a reader is told.
enum How {
    /// What it asked for, in the answer to a request of this version.
    Plain(Version, Subscription),
    /// What it says, now and later.
    Talk,
}

type Body = Either<Full<Bytes>, Channel<Bytes>>;

/// What is known of a reader.
#[derive(Clone, Debug, Default)]
struct Guest {
    /// Until when it may read; for ever, without a door.
    until: Option<Instant>,
    /// Where it is, if its token says.
    here: Here,
}

/// A reader whose connection carries nothing but the feed from here on.
struct Asked {
    how: How,
    guest: Guest,
    /// Its place among the readers.
    place: OwnedSemaphorePermit,
}

impl Feed {
    /// Serves what `watch` knows, and files, if there are any to serve.
    pub fn new(watch: Watch, assets: Option<Assets>) -> Self {
        let readers = Arc::new(Semaphore::new(READERS));
        Self { watch, door: None, assets, counts: Arc::default(), readers }
    }

    /// The same, to be served by TCP to whoever comes through `door`.
    pub fn behind(self, door: Option<Door>) -> Self {
        Self { door, ..self }
    }

    /// What was told to how many.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Serves until the future is dropped.
    ///
    /// # Errors
    /// If the runtime has no place for the listener.
    pub async fn serve(self, listener: Listener) -> std::io::Result<Infallible> {
        let listener = listener.listen()?;
        let (places, strangers) = (Arc::new(Semaphore::new(CONNECTIONS)), Strangers::default());
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { continue };
            let mut stranger = strangers.place().await;
            match listener.accept().await {
                Ok(place::Stream::Tcp(stream)) => {
                    // A change is one small packet, and shall not wait for another.
                    let _ = stream.set_nodelay(true);
                    stranger.arrives();
                    tokio::spawn(self.clone().admit(stream, stranger, place));
                }
                Ok(place::Stream::Unix(stream)) => {
                    let feed = Self { door: None, ..self.clone() };
                    stranger.arrives();
                    tokio::spawn(feed.converse(stream, stranger, place));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take a reader of the feed; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Lets in what came by TCP.
    async fn admit(self, stream: tokio::net::TcpStream, stranger: Stranger, place: OwnedSemaphorePermit) {
        let Some(door) = self.door.clone() else { return self.converse(stream, stranger, place).await };
        let shaken = Box::pin(timeout(SHAKES_WITHIN, door.tls.accept(stream)));
        let shaken = tokio::select! {
            shaken = shaken => shaken,
            () = stranger.outstays() => return self.counts.reset(Reset::Stranger),
        };
        match shaken {
            // On the heap: what a task has on its stack, each function that it is handed on to has again.
            Ok(Ok(stream)) => self.converse(Box::new(stream), stranger, place).await,
            Ok(Err(error)) => tracing::debug!(%error, "a handshake of the feed went wrong"),
            Err(_) => {}
        }
    }

    async fn converse(
        self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        stranger: Stranger,
        place: OwnedSemaphorePermit,
    ) {
        let (owner, lent) = lend(stream);
        // On the heap while it lasts: what is left of it afterwards is what a reader costs.
        let asked = Box::pin(self.clone().serve_http(lent, stranger)).await;
        if let Some(Asked { how, guest, place: _reader }) = asked
            && let Some(stream) = owner.take_back()
        {
            self.carry(stream, how, guest).await;
        }
        drop(place);
    }

    /// Tells a reader whose connection carries nothing else.
    async fn carry(&self, stream: impl AsyncRead + AsyncWrite + Unpin, how: How, guest: Guest) {
        match how {
            How::Plain(version, subscription) => {
                if let Ok(Ok(plain)) = timeout(TAKES_WITHIN, Plain::begin(stream, version)).await {
                    self.tell(plain, subscription, guest).await;
                }
            }
            How::Talk => {
                let Ok(Ok(mut talk)) = timeout(TAKES_WITHIN, Talk::begin(stream)).await else { return };
                match timeout(SAYS_WITHIN, talk.heard()).await {
                    Ok(Ok(wanted)) => self.tell(talk, wanted, guest).await,
                    Ok(Err(End::With(status))) => self.end(talk, status).await,
                    Ok(Err(End::Gone)) | Err(_) => {}
                }
            }
        }
    }

    /// Serves HTTP until the connection ends, or has asked for the feed in such a way that it is of no more use for HTTP.
    async fn serve_http(
        self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        stranger: Stranger,
    ) -> Option<Asked> {
        let stranger = Arc::new(stranger);
        let (counts, met) = (self.counts(), Arc::clone(&stranger));
        let (ask, mut asked) = mpsc::channel(1);
        let service = hyper::service::service_fn(move |request| {
            let (feed, stranger, ask) = (self.clone(), Arc::clone(&met), ask.clone());
            async move { Ok::<_, Infallible>(feed.answer(request, &stranger, &ask).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_WITHIN)
            .keep_alive(false)
            .max_buf_size(BUFFER);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY)
            .max_concurrent_streams(STREAMS);
        tokio::select! {
            Some(asked) = asked.recv() => Some(asked),
            served = builder.serve_connection(TokioIo::new(stream), service) => {
                if let Err(error) = served {
                    tracing::debug!(error, "a reader of the feed went wrong");
                }
                None
            }
            () = stranger.outstays() => {
                counts.reset(Reset::Stranger);
                None
            }
        }
    }

    /// Answers soon; what is streamed comes from a task of its own, or from who hears what is asked by `ask`.
    async fn answer(
        self,
        request: Request<Incoming>,
        stranger: &Stranger,
        ask: &mpsc::Sender<Asked>,
    ) -> Response<Body> {
        if self.door.is_none() {
            // Who reaches it may read it.
            stranger.is_known();
        }
        if is_grpc(&request) {
            return match self.judge(&request, stranger).await {
                Ok(guest) => self.stream(request, guest),
                Err(Refused::Unknown) => ends(Status::UNAVAILABLE),
                Err(_) => ends(Status::UNAUTHENTICATED),
            };
        }
        // Under any host name, as an Envoy's configuration may call this process as it likes: they are no secret.
        if let Some(asset) = Asset::at(request.uri().path()) {
            return match &self.assets {
                Some(assets) => assets.answer(asset, &request).await,
                None => assets::none(),
            };
        }
        // HTTP/1.1 names the host in a header, HTTP/2 in the request's address.
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| request.uri().authority().map(|authority| authority.as_str()));
        // A browser that was led here has no token.
        if self.door.is_none() && !http::is_local(host.unwrap_or_default()) {
            return text(StatusCode::FORBIDDEN, "a browser asked under a foreign host name; ask by address");
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/v1/feed") => {}
            (_, "/v1/feed") => return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is understood here"),
            _ => return text(StatusCode::NOT_FOUND, INDEX),
        }
        let guest = match self.judge(&request, stranger).await {
            Ok(guest) => guest,
            Err(refused) => return refusal(refused),
        };
        let is_talk = request.headers().get(UPGRADE).is_some_and(|to| to.as_bytes() == PROTOCOL.as_bytes());
        let subscription = match subscription(request.uri().query().unwrap_or_default()) {
            Ok(subscription) => subscription,
            Err(wrong) => return text(StatusCode::BAD_REQUEST, &wrong),
        };
        let Ok(reader) = Arc::clone(&self.readers).try_acquire_owned() else {
            self.counts.reset(Reset::Limit);
            return text(StatusCode::SERVICE_UNAVAILABLE, "as many readers as this process serves are here");
        };
        let version = request.version();
        if version != Version::HTTP_2 {
            let how = if is_talk { How::Talk } else { How::Plain(version, subscription) };
            let _ = ask.send(Asked { how, guest, place: reader }).await;
            // Whoever hears it lets go of this.
            return std::future::pending().await;
        }
        let (body, channel) = Channel::new(WAITING);
        tokio::spawn(async move {
            self.tell(carrier::Body(body), subscription, guest).await;
            drop(reader);
        });
        let mut response = Response::new(Either::Right(channel));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// Who asks.
    async fn judge(&self, request: &Request<Incoming>, stranger: &Stranger) -> Result<Guest, Refused> {
        let Some(door) = &self.door else { return Ok(Guest::default()) };
        match door.tokens.judge(request.headers().get(AUTHORIZATION)).await {
            Ok(Bearer { until, node }) => {
                stranger.is_known();
                let zone = match &node {
                    Some(node) => door.zones.of(node).await,
                    None => None,
                };
                // By a clock that nobody sets.
                let until = Instant::now() + until.duration_since(SystemTime::now()).unwrap_or_default();
                Ok(Guest { until: Some(until), here: Here { node, zone } })
            }
            Err(refused) => {
                self.counts.refused(refused);
                Err(refused)
            }
        }
    }

    fn stream(self, request: Request<Incoming>, guest: Guest) -> Response<Body> {
        if request.uri().path() != WATCH {
            return ends(Status::UNIMPLEMENTED);
        }
        let Ok(reader) = Arc::clone(&self.readers).try_acquire_owned() else {
            self.counts.reset(Reset::Limit);
            return ends(Status::EXHAUSTED);
        };
        let (body, channel) = Channel::new(WAITING);
        let mut messages = Messages::new(request.into_body());
        tokio::spawn(async move {
            let first = timeout(SAYS_WITHIN, messages.next()).await;
            let call = Call { body, messages: Some(messages) };
            match first {
                Ok(Ok(Some(wanted))) => self.tell(call, wanted, guest).await,
                Ok(Ok(None)) => call.end(Status::OK).await,
                Ok(Err(status)) => self.end(call, status).await,
                Err(_) => call.end(Status::LATE).await,
            }
            drop(reader);
        });
        grpc(Either::Right(channel))
    }

    /// Tells one reader until it is gone, or one of us has had enough.
    async fn tell<C: Carrier>(&self, mut carrier: C, wanted: impl Into<Wanted>, guest: Guest) {
        let _counted = self.counts.reader();
        let mut teller = Teller::new(self.watch.clone(), wanted);
        match self.tell_on(&mut carrier, &mut teller, guest).await {
            End::Gone => {}
            End::With(status) => self.end(carrier, status).await,
        }
    }

    async fn end(&self, carrier: impl Carrier, status: Status) {
        if status == Status::MALFORMED {
            self.counts.reset(Reset::Malformed);
        }
        // Who takes nothing is not waited for.
        let _ = timeout(TAKES_WITHIN, carrier.end(status)).await;
    }

    async fn tell_on<C: Carrier>(&self, carrier: &mut C, teller: &mut Teller, guest: Guest) -> End {
        let Guest { until, here } = guest;
        let mut place = (here != Here::default()).then(|| Told::Frame(feed::here(&here).into()));
        loop {
            let told = match place.take() {
                Some(place) => Some(place),
                None => tokio::select! {
                    told = teller.next() => told,
                    heard = carrier.heard() => match heard {
                        Ok(wanted) => {
                            teller.subscribe(wanted);
                            continue;
                        }
                        Err(end) => return end,
                    },
                    () = end(until) => return End::With(Status::UNAUTHENTICATED),
                },
            };
            let frame = match told {
                Some(Told::Frame(frame)) => frame,
                Some(Told::Snapshot(frame)) => {
                    self.counts.snapshot();
                    frame
                }
                Some(Told::FellBehind) => {
                    self.counts.reset(Reset::FellBehind);
                    continue;
                }
                None => return End::With(Status::UNAVAILABLE),
            };
            self.counts.frame(C::PREFIX + frame.len());
            match timeout(TAKES_WITHIN, carrier.send(frame)).await {
                Ok(Ok(())) => {}
                Ok(Err(end)) => return end,
                Err(_) => {
                    self.counts.reset(Reset::Stalled);
                    return End::Gone;
                }
            }
        }
    }
}

/// Ends then; never, if there is no such time.
async fn end(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// A gRPC call. Browsers cannot make one of themselves: they do not speak HTTP/2 without TLS.
fn is_grpc(request: &Request<Incoming>) -> bool {
    let media = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    request.version() == Version::HTTP_2
        && request.method() == Method::POST
        && media.starts_with(b"application/grpc")
}

fn grpc(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// An answer to who shows no token that is good here (RFC 6750).
fn refusal(refused: Refused) -> Response<Body> {
    let challenge = match refused {
        Refused::Unknown => return text(StatusCode::SERVICE_UNAVAILABLE, &refused.to_string()),
        Refused::Missing => "Bearer",
        _ => "Bearer error=\"invalid_token\"",
    };
    let mut response = text(StatusCode::UNAUTHORIZED, &refused.to_string());
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

/// An answer to a gRPC call that is its end.
fn ends(status: Status) -> Response<Body> {
    let mut response = grpc(Either::Left(Full::default()));
    response.headers_mut().extend(status.headers());
    response
}

fn text(status: StatusCode, sentence: &str) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::from(format!("{sentence}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(http::TEXT));
    response
}

/// The headers that end a gRPC call.
type Ending = (HeaderName, HeaderValue);
