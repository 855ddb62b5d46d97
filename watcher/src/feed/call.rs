//! One call of another Remora's feed, `remora.Feed/Watch` by gRPC. In: where it is, what is asked for, a token. Out: the
//! body that frames come in. Never tries twice.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use hyper::{HeaderMap, Request as HttpRequest, Response, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::rustls::Error as TlsError;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{Address, LARGEST, Request, framed};
use crate::store::Loss;

/// A connection is made, and an answer begins, within this time.
const ANSWER: Duration = Duration::from_secs(5);
/// What may come before it is read: a frame of the largest kind, and what follows it.
const WINDOW: u32 = LARGEST as u32;
/// Requests that wait for the connection to take them.
const WAITING: usize = 1;
/// How gRPC says that all is well, and that a token is no good.
const OK: &str = "0";
const UNAUTHENTICATED: &str = "16";

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
    requests: Sender<Bytes>,
    /// Where messages come in.
    pub(super) body: Incoming,
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

    /// Asks for something else from here on.
    pub(super) async fn say(&mut self, request: &Request) -> Result<(), Failure> {
        let bytes = framed(&request.encode()).into();
        self.requests.send_data(bytes).await.map_err(|_| ended(None))
    }
}

/// Why a call ended that did not begin badly.
pub(super) fn ended(trailers: Option<&HeaderMap>) -> Failure {
    trailers
        .and_then(refusal)
        .unwrap_or_else(|| Failure::new(Loss::Unreachable, "the server ended the stream"))
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
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let connected = builder.handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|error| failed(&error))?;
    // Ends with the call.
    tokio::spawn(connection);
    let (mut requests, body) = Channel::<Bytes>::new(WAITING);
    let message = framed(&request.encode()).into();
    requests.send_data(message).await.map_err(|_| ended(None))?;
    let head = HttpRequest::post("http://localhost/remora.Feed/Watch")
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers");
    let head = match token {
        Some(token) => head.header(header::AUTHORIZATION, format!("Bearer {token}")),
        None => head,
    };
    let head = head.body(body).map_err(|error| failed(&error))?;
    let response = sender.send_request(head).await.map_err(|error| failed(&error))?;
    judge(&response)?;
    Ok(Call { requests, body: response.into_body() })
}

/// The first words of an answer.
fn judge(response: &Response<Incoming>) -> Result<(), Failure> {
    if response.status() != StatusCode::OK {
        return Err(failed(&format!("the server answers {}", response.status())));
    }
    refusal(response.headers()).map_or(Ok(()), Err)
}

/// What headers or trailers say, if it is that a call failed.
fn refusal(headers: &HeaderMap) -> Option<Failure> {
    let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let status = text("grpc-status").filter(|status| status != OK)?;
    let loss = if status == UNAUTHENTICATED { Loss::Unauthorized } else { Loss::Failed };
    let said = text("grpc-message").unwrap_or_else(|| format!("gRPC status {status}"));
    Some(Failure::new(loss, format!("the server says: {said}")))
}
