//! A small HTTP/1.1 server for answers that are ready at once. In: a listener and whoever answers. Out: answers.
//! Whoever connects gets little: one request a connection, of bounded size and time, and only so many at once.
//! Never reads a body.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::handover::{Inherited, Role};

/// Connections at once; more wait in the kernel.
const CONNECTIONS: usize = 64;
/// For the request's line and headers.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// For everything, the client's reading included.
const DONE_WITHIN: Duration = Duration::from_secs(30);
/// For the request's line and headers together, in bytes.
const HEADERS_MOST: usize = 16 * 1024;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The path, such as `/v1/status`.
    pub path: String,
    /// What follows the question mark, undecoded.
    pub query: String,
    /// The header `Host`, empty if there is none.
    pub host: String,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: StatusCode,
    /// The media type of the body.
    pub media: &'static str,
    /// The body.
    pub body: String,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
}

/// Plain text, as people read it.
pub const TEXT: &str = "text/plain; charset=utf-8";
/// JSON.
pub const JSON: &str = "application/json";

impl Answer {
    /// A body of plain text, ended by a line feed.
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        let mut body = body.into();
        if !body.ends_with('\n') {
            body.push('\n');
        }
        Self { status, media: TEXT, body, headers: not_to_be_kept() }
    }

    /// A body of JSON.
    pub fn json(body: String) -> Self {
        Self { status: StatusCode::OK, media: JSON, body, headers: not_to_be_kept() }
    }
}

fn not_to_be_kept() -> Vec<(&'static str, String)> {
    vec![("Cache-Control", "no-store".to_owned())]
}

/// Who answers.
pub trait Answers: Send + Sync + 'static {
    /// Every method is taken for a GET.
    const ANY_METHOD: bool = false;

    /// The answer to `asked`.
    fn answer(&self, asked: Asked) -> impl Future<Output = Answer> + Send;
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} for --{flag}: {source}; stop whoever uses it, or choose another address with --{flag}"
)]
pub struct Error {
    flag: &'static str,
    address: SocketAddr,
    /// What the system said.
    pub source: std::io::Error,
}

/// Takes `address`, so that nobody else can, for what the flag `flag` serves; from an earlier process, if that
/// handed it over.
///
/// # Errors
/// If the address cannot be had.
pub fn bind(
    flag: &'static str,
    address: SocketAddr,
    inherited: &mut Inherited,
) -> Result<std::net::TcpListener, Error> {
    if let Some(listener) = inherited.claim(Role::Http, address).pop() {
        return Ok(listener);
    }
    let bound = std::net::TcpListener::bind(address).or_else(|error| {
        // A machine without IPv6 has no "every address" but that of IPv4.
        let has_no_ipv6 = error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
        if has_no_ipv6 && address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            return std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port()));
        }
        Err(error)
    });
    let bound = bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    bound.map_err(|source| Error { flag, address, source })
}

/// Answers until the future is dropped.
pub async fn serve(
    listener: std::net::TcpListener,
    answers: Arc<impl Answers>,
) -> std::io::Result<Infallible> {
    let listener = TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { continue };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answers = Arc::clone(&answers);
        tokio::spawn(async move {
            // Whatever goes wrong is the client's to see.
            let _ = tokio::time::timeout(DONE_WITHIN, converse(stream, answers)).await;
            drop(place);
        });
    }
}

async fn converse(stream: TcpStream, answers: Arc<impl Answers>) {
    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| {
        let answers = Arc::clone(&answers);
        async move { Ok::<_, Infallible>(respond(request, &*answers).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(HEADERS_MOST)
        .keep_alive(false)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a client of the health or admin address went wrong");
    }
}

async fn respond<A: Answers>(request: Request<hyper::body::Incoming>, answers: &A) -> Response<Full<Bytes>> {
    if !A::ANY_METHOD && request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response =
            response(Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is understood here"));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let host = request.headers().get(hyper::header::HOST).and_then(|host| host.to_str().ok());
    let asked = Asked {
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        host: host.unwrap_or_default().to_owned(),
    };
    response(answers.answer(asked).await)
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.media));
    for (name, value) in answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
    response
}

/// Whether `host` is what a program on this machine asks by. A web page that points its own name to 127.0.0.1
/// (DNS rebinding) asks by that name.
pub fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.is_empty() || name == "localhost" || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_of_this_machine_is_answered() {
        for host in
            ["", "127.0.0.1:64103", "localhost:64103", "localhost", "[::1]:64103", "[::1]", "10.0.0.1"]
        {
            assert!(is_local(host), "{host:?}");
        }
        for host in ["evil.example", "evil.example:64103", "127.0.0.1.evil.example:80", "localhost.evil:1"] {
            assert!(!is_local(host), "{host:?}");
        }
    }
}
