//! One stream of another Remora's feed. In: where it is, what is asked for, a token. Out: frames. Never tries twice.
//!
//! The connection becomes a stream of messages both ways ([`PROTOCOL`]). A server that is older answers with a body, which
//! has what the query of the request names, and hears of nothing else.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper::{Request as HttpRequest, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::rustls::Error as TlsError;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{Address, PROTOCOL, Request, Splitter, Subscription, framed};
use crate::store::Loss;

/// A connection is made, and an answer begins, within this time.
const ANSWER: Duration = Duration::from_secs(5);
/// A server takes a request within this time.
const TAKES: Duration = Duration::from_secs(5);
/// What is read at once.
const PART: usize = 8 << 10;
/// Of why it was refused, so many bytes are shown.
const REASON: usize = 1024;
/// A query is no longer: not every server would take it.
const QUERY: usize = 8 << 10;

/// Why there is no feed.
pub(super) struct Failure {
    pub(super) loss: Loss,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(loss: Loss, message: impl ToString) -> Self {
        Self { loss, message: message.to_string() }
    }
}

/// A call that was answered. Dropping it ends it.
pub(super) struct Call {
    carrier: Carrier,
    splitter: Splitter,
}

enum Carrier {
    Messages(TokioIo<Upgraded>),
    /// Of an older server.
    Body(Incoming),
}

impl Call {
    /// Asks for `request` at `address`.
    pub(super) async fn open(
        address: &Address,
        request: &Request,
        token: Option<&str>,
    ) -> Result<Self, Failure> {
        let late = |_| Failure::new(Loss::Silent, format!("no answer within {} s", ANSWER.as_secs()));
        let asked = async {
            match address {
                Address::Tcp(tcp) => {
                    ask(TcpStream::connect(tcp).await.map_err(unreachable)?, request, token).await
                }
                Address::Unix(path) => {
                    ask(UnixStream::connect(path).await.map_err(unreachable)?, request, token).await
                }
                Address::Tls { host, port, trust } => {
                    let connector = trust.connector().map_err(|why| Failure::new(Loss::Unauthorized, why))?;
                    let name = ServerName::try_from(host.clone());
                    let name = name.map_err(|error| Failure::new(Loss::Failed, error))?;
                    let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
                    ask(connector.connect(name, stream).await.map_err(untrusted)?, request, token).await
                }
            }
        };
        timeout(ANSWER, asked).await.map_err(late)?
    }

    /// It has whatever it will have of its own accord, and nothing else can be asked for.
    pub(super) fn is_deaf(&self) -> bool {
        matches!(self.carrier, Carrier::Body(_))
    }

    /// Asks for something else from here on.
    pub(super) async fn say(&mut self, request: &Request) -> Result<(), Failure> {
        let Carrier::Messages(stream) = &mut self.carrier else { return Ok(()) };
        let said = async {
            stream.write_all(&framed(&request.encode())).await?;
            stream.flush().await
        };
        let late = |_| Failure::new(Loss::Silent, format!("it takes nothing for {} s", TAKES.as_secs()));
        timeout(TAKES, said).await.map_err(late)?.map_err(unreachable)
    }

    /// Waits until more of it has come. May be dropped and called again.
    pub(super) async fn more(&mut self) -> Result<(), Failure> {
        let ended = || Failure::new(Loss::Unreachable, "the server ended the stream");
        match &mut self.carrier {
            Carrier::Messages(stream) => {
                let mut part = Vec::with_capacity(PART);
                match stream.read_buf(&mut part).await.map_err(unreachable)? {
                    0 => return Err(ended()),
                    _ => self.splitter.push(&part),
                }
            }
            Carrier::Body(body) => {
                let part = body.frame().await.ok_or_else(ended)?;
                let part = part.map_err(|error| Failure::new(Loss::Unreachable, error))?;
                self.splitter.push(part.data_ref().unwrap_or(&Bytes::new()));
            }
        }
        Ok(())
    }

    /// The next frame of what has come, if it is there as a whole.
    pub(super) fn frame(&mut self) -> Result<Option<&[u8]>, super::Error> {
        self.splitter.frame()
    }
}

fn unreachable(error: io::Error) -> Failure {
    Failure::new(Loss::Unreachable, error)
}

fn untrusted(error: io::Error) -> Failure {
    match error.get_ref().map(|inner| inner.is::<TlsError>()) {
        Some(true) => Failure::new(
            Loss::Unauthorized,
            format!("{error}; see that --feed-ca names who vouches for that server, and for this name"),
        ),
        _ => unreachable(error),
    }
}

fn failed(error: &dyn Display) -> Failure {
    Failure::new(Loss::Failed, error.to_string())
}

async fn ask<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    request: &Request,
    token: Option<&str>,
) -> Result<Call, Failure> {
    let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|error| failed(&error))?;
    // Ends with the answer, or when that is dropped.
    tokio::spawn(connection.with_upgrades());
    let head = HttpRequest::get(path(request))
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, PROTOCOL);
    let head = match token {
        Some(token) => head.header(header::AUTHORIZATION, format!("Bearer {token}")),
        None => head,
    };
    let head = head.body(Empty::<Bytes>::new()).map_err(|error| failed(&error))?;
    let response = sender.send_request(head).await.map_err(|error| failed(&error))?;
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => {
            let upgraded = hyper::upgrade::on(response).await.map_err(|error| failed(&error))?;
            let carrier = Carrier::Messages(TokioIo::new(upgraded));
            let mut call = Call { carrier, splitter: Splitter::of_messages() };
            call.say(request).await?;
            Ok(call)
        }
        StatusCode::OK => {
            Ok(Call { carrier: Carrier::Body(response.into_body()), splitter: Splitter::default() })
        }
        status @ (StatusCode::UNAUTHORIZED | StatusCode::SERVICE_UNAVAILABLE) => {
            let said = Limited::new(response.into_body(), REASON).collect().await;
            let said = said.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned());
            let is_refused = status == StatusCode::UNAUTHORIZED;
            let loss = if is_refused { Loss::Unauthorized } else { Loss::Failed };
            Err(Failure::new(loss, format!("the server says: {}", said.unwrap_or_default())))
        }
        status => Err(failed(&format!("the server answers {status}"))),
    }
}

/// What is asked for, with what an older server is to tell: everything to who may ask for more. Names need no escaping:
/// the API has none that do.
fn path(request: &Request) -> String {
    let words: Vec<String> = match &request.subscription {
        Subscription::Some { namespaces, services } if request.number == 0 => {
            let namespaces = namespaces.iter().map(|name| format!("namespace={name}"));
            namespaces.chain(services.iter().map(|name| format!("service={name}"))).collect()
        }
        _ => Vec::new(),
    };
    let query = words.join("&");
    if query.is_empty() || query.len() > QUERY { "/v1/feed".to_owned() } else { format!("/v1/feed?{query}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use selection::ServiceName;

    #[test]
    fn an_older_server_is_asked_by_words_and_for_everything_if_more_may_be_wanted() {
        let services = |count: usize| {
            Subscription::services((0..count).map(|n| ServiceName::new("a", format!("service-{n}"))))
        };
        assert_eq!(path(&Subscription::All.into()), "/v1/feed");
        let namespaces = Subscription::namespaces(["a".into(), "b".into()]);
        assert_eq!(path(&namespaces.into()), "/v1/feed?namespace=a&namespace=b");
        assert_eq!(path(&services(1).into()), "/v1/feed?service=a/service-0");
        assert_eq!(path(&services(1_000).into()), "/v1/feed");
        assert_eq!(path(&Request { number: 1, ..services(1).into() }), "/v1/feed");
    }
}
