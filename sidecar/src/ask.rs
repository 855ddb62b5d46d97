//! Asks the running sidecar on its admin address. In: a path. Out: the body, or one sentence.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::arguments::OutputFormat;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(20);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error(
        "no sidecar answers on {0}: {kind}; start one with --admin, name its address with --admin, or look at a \
         source with --source",
        kind = .1.kind()
    )]
    Nobody(SocketAddr, std::io::Error),
    /// Somebody listens, but does not answer.
    #[error("what listens on {0} gives no answer: {1}; name the address of a sidecar with --admin")]
    Silent(SocketAddr, String),
    /// The sidecar says why not.
    #[error("{0}")]
    Answered(String),
}

/// Asks `admin` for `path` with `query`.
///
/// # Errors
/// If it does not answer, or with a refusal.
pub async fn ask(
    admin: SocketAddr,
    path: &str,
    query: &[(&str, &str)],
    output: OutputFormat,
) -> Result<String, Error> {
    match tokio::time::timeout(WITHIN, exchange(admin, path, query, output)).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::Silent(admin, format!("nothing came within {} s", WITHIN.as_secs()))),
    }
}

async fn exchange(
    admin: SocketAddr,
    path: &str,
    query: &[(&str, &str)],
    output: OutputFormat,
) -> Result<String, Error> {
    let silent = |error: &dyn std::fmt::Display| Error::Silent(admin, error.to_string());
    let mut words = form_urlencoded::Serializer::new(String::new());
    words
        .extend_pairs(query)
        .append_pair("output", if output == OutputFormat::Json { "json" } else { "text" });
    let stream = TcpStream::connect(admin).await.map_err(|error| Error::Nobody(admin, error))?;
    let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|error| silent(&error))?;
    tokio::spawn(connection);
    let request = Request::get(format!("{path}?{}", words.finish()))
        .header(hyper::header::HOST, admin.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|error| silent(&error))?;
    let response = sender.send_request(request).await.map_err(|error| silent(&error))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| silent(&error))?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    if status == StatusCode::OK { Ok(body) } else { Err(Error::Answered(body.trim().to_owned())) }
}
