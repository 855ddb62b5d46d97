//! Tiny HTTP servers and clients, HTTP/1.1 and HTTP/2, that tell what they see.
//!
//! In: addresses. Out: who answered a request, and what reached it. It never retries and never follows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

/// A server. Owning one means that it serves; dropping it ends it and all its connections.
pub struct Server {
    /// Where it listens, which is also its name.
    pub address: SocketAddr,
    requests: Arc<AtomicU64>,
    answers: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body: of a [`Server`], its address and the headers that reached it, each on a line.
    pub body: String,
}

impl Answer {
    /// Who answered, by the first line.
    pub fn who(&self) -> &str {
        self.body.lines().next().unwrap_or_default()
    }
}

impl Server {
    /// Starts one. It answers every request with its address and the headers that it saw, `/slow/MILLISECONDS` after so
    /// long.
    ///
    /// # Panics
    /// When the address is taken.
    pub async fn start(address: &str) -> Server {
        let listener = TcpListener::bind(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
        let address = listener.local_addr().expect("the address of a listener");
        let requests = Arc::new(AtomicU64::new(0));
        let answers = Arc::new(AtomicU64::new(0));
        let counted = (requests.clone(), answers.clone());
        let task = tokio::spawn(async move {
            // Its connections end with it.
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let counted = counted.clone();
                open.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (requests, answers) = counted.clone();
                        requests.fetch_add(1, Ordering::Relaxed);
                        async move {
                            let answer = answer(address, request).await;
                            answers.fetch_add(1, Ordering::Relaxed);
                            answer
                        }
                    });
                    let serve = auto::Builder::new(TokioExecutor::new());
                    // A client may leave as it likes.
                    let _ = serve.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Server { address, requests, answers, task }
    }

    /// How many requests have reached it.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How many of them it has not answered.
    pub fn unanswered(&self) -> u64 {
        self.requests() - self.answers.load(Ordering::Relaxed)
    }

    /// Ends it and all its connections, and waits until its address is free: how many requests it had not answered.
    pub async fn end(mut self) -> u64 {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.unanswered()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    address: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let wait = request.uri().path().strip_prefix("/slow/").and_then(|wait| wait.parse().ok());
    if let Some(wait) = wait {
        // What the client asked for, not a synchronisation.
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
    let mut body = format!("{address}\n");
    for (name, value) in request.headers() {
        body += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    Ok(Response::new(Full::new(Bytes::from(body))))
}

/// A client with one connection that it keeps.
pub enum Client {
    /// HTTP/1.1.
    One(http1::SendRequest<Empty<Bytes>>),
    /// HTTP/2.
    Two(http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    /// Connects by HTTP/1.1.
    pub async fn one(to: SocketAddr) -> Result<Client, String> {
        Self::one_from("0.0.0.0:0".parse().expect("an address"), to).await
    }

    /// As [`Client::one`], from an address of one's own.
    pub async fn one_from(from: SocketAddr, to: SocketAddr) -> Result<Client, String> {
        let (sender, connection) =
            http1::handshake(TokioIo::new(connect(from, to).await?)).await.map_err(text)?;
        tokio::spawn(connection);
        Ok(Client::One(sender))
    }

    /// Connects by HTTP/2, which the server knows without being asked.
    pub async fn two(to: SocketAddr) -> Result<Client, String> {
        let stream = connect("0.0.0.0:0".parse().expect("an address"), to).await?;
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(text)?;
        tokio::spawn(connection);
        Ok(Client::Two(sender))
    }

    /// One request for a path at an authority, with some headers more.
    pub async fn get(
        &mut self,
        authority: &str,
        path: &str,
        more: &[(&str, &str)],
    ) -> Result<Answer, String> {
        let mut request = Request::get(match self {
            Client::One(_) => path.to_owned(),
            Client::Two(_) => format!("http://{authority}{path}"),
        });
        if matches!(self, Client::One(_)) {
            request = request.header("host", authority);
        }
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::new()).map_err(text)?;
        let answer = match self {
            Client::One(sender) => {
                sender.ready().await.map_err(text)?;
                sender.send_request(request).await
            }
            Client::Two(sender) => {
                sender.ready().await.map_err(text)?;
                sender.send_request(request).await
            }
        };
        let answer = answer.map_err(text)?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(text)?.to_bytes();
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    }
}

/// A client of HTTP/1.1 that posts, on one connection that it keeps.
pub struct Poster(http1::SendRequest<Full<Bytes>>);

impl Poster {
    /// Connects.
    pub async fn connect(to: SocketAddr) -> Result<Poster, String> {
        let stream = connect("0.0.0.0:0".parse().expect("an address"), to).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
        tokio::spawn(connection);
        Ok(Poster(sender))
    }

    /// Posts these bytes: the status of the answer, and its bytes.
    pub async fn post(&mut self, path: &str, body: Vec<u8>) -> Result<(u16, Bytes), String> {
        let request = Request::post(path).header("host", "tests").body(Full::from(body)).map_err(text)?;
        self.0.ready().await.map_err(text)?;
        let answer = self.0.send_request(request).await.map_err(text)?;
        let status = answer.status().as_u16();
        Ok((status, answer.into_body().collect().await.map_err(text)?.to_bytes()))
    }
}

async fn connect(from: SocketAddr, to: SocketAddr) -> Result<tokio::net::TcpStream, String> {
    let socket = if to.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }.map_err(text)?;
    // An unspecified address of one family is none of the other's.
    if from.is_ipv6() == to.is_ipv6() {
        socket.bind(from).map_err(text)?;
    }
    socket.connect(to).await.map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
