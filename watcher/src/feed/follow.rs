//! Another Remora as a source. In: where its feed is, and what of it is followed. Out: events, as of any source. The
//! frames come as the body of one HTTP answer, by TLS from another machine. Never lets go of what was good: a server that is gone, starts again or
//! sends what is no frame leaves everything as it was, until a snapshot is complete.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::Error as TlsError;
use tokio_rustls::rustls::pki_types::ServerName;
use tracing::{debug, info, warn};

use super::{Address, Decoder, Error, SILENCE, Splitter};
use crate::Scope;
use crate::store::{Event, Loss};
use crate::watch::Events;

/// A connection is made, and an answer begins, within this time.
const ANSWER: Duration = Duration::from_secs(5);
/// The pause after a first failure; doubled with each further one, and always jittered.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// How often it is looked whether there is a new token. A kubelet renews one long before it expires.
const TOKEN_EVERY: Duration = Duration::from_secs(60);
/// Of why it was refused, so many bytes are shown.
const REASON: usize = 1024;
/// How fine jitter is.
const DRAWS: u32 = 1 << 10;

/// Why a stream ended.
struct Failure {
    loss: Loss,
    message: String,
}

impl Failure {
    fn new(loss: Loss, message: impl ToString) -> Self {
        Self { loss, message: message.to_string() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(if error == Error::Gap { Loss::Expired } else { Loss::Malformed }, error)
    }
}

/// Follows the feed at `address` for ever.
pub(crate) async fn follow(address: Address, scope: Scope, events: Events) {
    let streams = scope.streams();
    let (random, mut failures, mut told) = (RandomState::new(), 0_u32, None);
    loop {
        let mut is_read = false;
        let failure = match read(&address, &scope, &events, &mut is_read, &mut told).await {
            // Nothing is lost meanwhile.
            Ok(Renewed) => continue,
            Err(failure) => failure,
        };
        failures = if is_read { 0 } else { failures };
        let (server, error, reason) = (&address, &failure.message, failure.loss.label());
        if told.replace(failure.loss) == Some(failure.loss) {
            debug!(%server, error, "still broken");
        } else {
            warn!(%server, error, reason, "the feed is lost, what is known serves on; trying on");
        }
        for stream in &streams {
            events.send(Event::Lost(stream.clone(), failure.loss)).await;
        }
        let longest = PAUSE.saturating_mul(1 << failures.min(16)).min(PAUSE_LONGEST);
        let draw = (random.hash_one((failures, Instant::now())) % u64::from(DRAWS)) as u32;
        failures = failures.saturating_add(1);
        sleep(longest / 2 + longest / 2 * draw / DRAWS).await;
    }
}

/// There is a new token, by which the feed is to be asked for again.
struct Renewed;

/// Reads one stream to its end, which is a failure. `is_read`: a transaction was complete.
async fn read(
    address: &Address,
    scope: &Scope,
    events: &Events,
    is_read: &mut bool,
    told: &mut Option<Loss>,
) -> Result<Renewed, Failure> {
    let token = token(address)?;
    let mut body = open(address, scope, token.as_deref()).await?;
    let mut looked = Instant::now();
    let streams = scope.streams();
    let (mut splitter, mut decoder) = (Splitter::default(), Decoder::new(streams.clone()));
    let mut batch = Vec::new();
    loop {
        let silent = |_| Failure::new(Loss::Silent, format!("nothing heard for {} s", SILENCE.as_secs()));
        let part = timeout(SILENCE, body.frame()).await.map_err(silent)?;
        let part = part.ok_or_else(|| Failure::new(Loss::Unreachable, "the server ended the stream"))?;
        let part = part.map_err(|error| Failure::new(Loss::Unreachable, error))?;
        if token.is_some() && looked.elapsed() >= TOKEN_EVERY {
            looked = Instant::now();
            // One that cannot be read is half written; the old one is good for a while.
            if self::token(address).is_ok_and(|new| new != token) {
                return Ok(Renewed);
            }
        }
        splitter.push(part.data_ref().unwrap_or(&Bytes::new()));
        while let Some(frame) = splitter.frame()? {
            let progress = decoder.frame(frame, &mut |event| batch.push(event));
            for event in batch.drain(..) {
                events.send(event).await;
            }
            let progress = progress?;
            if progress.complete && !*is_read {
                *is_read = true;
                match told.take() {
                    None => info!(server = %address, "following a feed"),
                    Some(_) => info!(server = %address, "the feed is there again"),
                }
            }
            // Nothing is in step while a snapshot is on its way.
            let at = progress.age.filter(|_| *is_read).and_then(|age| Instant::now().checked_sub(age));
            for stream in streams.iter().filter(|_| at.is_some()) {
                events.send_at(at.unwrap_or_else(Instant::now), Event::InStep(stream.clone())).await;
            }
        }
    }
}

/// The token that is shown at this address.
fn token(address: &Address) -> Result<Option<String>, Failure> {
    match address {
        Address::Tls { trust, .. } => trust.token().map_err(|why| Failure::new(Loss::Unauthorized, why)),
        Address::Tcp(_) | Address::Unix(_) => Ok(None),
    }
}

/// Asks for the feed.
async fn open(address: &Address, scope: &Scope, token: Option<&str>) -> Result<Incoming, Failure> {
    let unreachable = |error: std::io::Error| Failure::new(Loss::Unreachable, error);
    let late = |_| Failure::new(Loss::Silent, format!("no answer within {} s", ANSWER.as_secs()));
    let asked = async {
        match address {
            Address::Tcp(tcp) => ask(TcpStream::connect(tcp).await.map_err(unreachable)?, scope, token).await,
            Address::Unix(path) => {
                ask(UnixStream::connect(path).await.map_err(unreachable)?, scope, token).await
            }
            Address::Tls { host, port, trust } => {
                let connector = trust.connector().map_err(|why| Failure::new(Loss::Unauthorized, why))?;
                let name = ServerName::try_from(host.clone());
                let name = name.map_err(|error| Failure::new(Loss::Failed, error))?;
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
                let untrusted = |error: std::io::Error| match error
                    .get_ref()
                    .map(|inner| inner.is::<TlsError>())
                {
                    Some(true) => Failure::new(
                        Loss::Unauthorized,
                        format!(
                            "{error}; see that --feed-ca names who vouches for that server, and for this name"
                        ),
                    ),
                    _ => unreachable(error),
                };
                let stream = connector.connect(name, stream).await.map_err(untrusted)?;
                ask(stream, scope, token).await
            }
        }
    };
    timeout(ANSWER, asked).await.map_err(late)?
}

async fn ask<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    scope: &Scope,
    token: Option<&str>,
) -> Result<Incoming, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(Loss::Failed, error.to_string());
    let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|error| failed(&error))?;
    // Ends when the body is dropped.
    tokio::spawn(connection);
    let request = Request::get(path(scope)).header(header::HOST, "localhost");
    let request = match token {
        Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
        None => request,
    };
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(&error))?;
    let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
    match response.status() {
        StatusCode::OK => Ok(response.into_body()),
        StatusCode::UNAUTHORIZED => {
            let said = Limited::new(response.into_body(), REASON).collect().await;
            let said = said.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned());
            Err(Failure::new(Loss::Unauthorized, format!("the server says: {}", said.unwrap_or_default())))
        }
        status => Err(Failure::new(Loss::Failed, format!("the server answers {status}"))),
    }
}

/// What is asked for: `/v1/feed?namespace=NAMESPACE&service=NAMESPACE/NAME`. Names need no escaping: the API has none
/// that do.
fn path(scope: &Scope) -> String {
    let words: Vec<String> = match scope {
        Scope::All => Vec::new(),
        Scope::Namespaces(namespaces) => namespaces.iter().map(|name| format!("namespace={name}")).collect(),
        Scope::Services(services) => services.iter().map(|name| format!("service={name}")).collect(),
    };
    if words.is_empty() { "/v1/feed".to_owned() } else { format!("/v1/feed?{}", words.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use selection::ServiceName;

    #[test]
    fn a_scope_is_asked_for_by_words() {
        assert_eq!(path(&Scope::All), "/v1/feed");
        assert_eq!(
            path(&Scope::Namespaces(vec!["a".into(), "b".into()])),
            "/v1/feed?namespace=a&namespace=b"
        );
        assert_eq!(path(&Scope::Services(vec![ServiceName::new("a", "b")])), "/v1/feed?service=a/b");
    }
}
