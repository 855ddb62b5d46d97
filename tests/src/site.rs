//! A web site for a browser: serves files and the body of another server's answer, and takes what its pages report.
//!
//! In: files by their paths. Out: reports, in the order in which they come. A page that fails reports that, too.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Where pages report: `POST /report/WORD`.
const REPORT: &str = "/report/";

/// The files of a site, by their paths.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Owning one means that it is served.
pub struct Site {
    /// Where.
    pub address: SocketAddr,
    reports: mpsc::UnboundedReceiver<(String, Bytes)>,
    task: JoinHandle<()>,
}

/// What the site has.
struct Pages {
    files: Files,
    /// A path whose answer is another server's.
    passed: Option<(&'static str, SocketAddr)>,
    report: mpsc::UnboundedSender<(String, Bytes)>,
}

type Body = BoxBody<Bytes, hyper::Error>;

impl Site {
    /// Starts one on loopback; what is asked under the path of `passed` is asked of the server there, as a page may ask
    /// nobody but the server that it came from.
    ///
    /// # Panics
    /// When there is no port for it.
    pub async fn start(files: Files, passed: Option<(&'static str, SocketAddr)>) -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
        let address = listener.local_addr().expect("the address of a listener");
        let (report, reports) = mpsc::unbounded_channel();
        let pages = Arc::new(Pages { files, passed, report });
        let task = tokio::spawn(async move {
            // Its connections end with it.
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let pages = Arc::clone(&pages);
                open.spawn(async move {
                    let service = service_fn(move |request| {
                        let pages = Arc::clone(&pages);
                        async move { Ok::<_, Infallible>(pages.answer(request).await) }
                    });
                    // A browser may leave as it likes.
                    let serve = auto::Builder::new(TokioExecutor::new());
                    let _ = serve.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Site { address, reports, task }
    }

    /// The next report: its word and what it says. An `Err` says that none came in time, or that the page failed.
    pub async fn report(&mut self, deadline: Duration) -> Result<(String, Bytes), String> {
        match tokio::time::timeout(deadline, self.reports.recv()).await {
            Ok(Some((word, text))) if word == "failed" => {
                Err(format!("the page failed: {}", String::from_utf8_lossy(&text)))
            }
            Ok(Some(report)) => Ok(report),
            Ok(None) => Err("the site is gone".to_owned()),
            Err(_) => Err(format!("the page reported nothing within {deadline:?}")),
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pages {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if request.method() == Method::POST
            && let Some(word) = path.strip_prefix(REPORT)
        {
            return match request.into_body().collect().await {
                Ok(body) => {
                    // Nobody may be waiting any more.
                    let _ = self.report.send((word.to_owned(), body.to_bytes()));
                    answer(StatusCode::OK, "text/plain", Vec::new())
                }
                Err(error) => answer(StatusCode::BAD_REQUEST, "text/plain", error.to_string().into()),
            };
        }
        if let Some((passed, server)) = self.passed
            && passed == path
        {
            return pass(server, passed)
                .await
                .unwrap_or_else(|why| answer(StatusCode::BAD_GATEWAY, "text/plain", why.into()));
        }
        match self.files.get(&path) {
            Some(file) => answer(StatusCode::OK, media(&path), file.clone()),
            None => answer(StatusCode::NOT_FOUND, "text/plain", Vec::new()),
        }
    }
}

/// What `server` answers, as it comes.
async fn pass(server: SocketAddr, path: &str) -> Result<Response<Body>, String> {
    let text = |error: &dyn std::fmt::Display| format!("{server}{path}: {error}");
    let stream = TcpStream::connect(server).await.map_err(|error| text(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", server.to_string()).body(Full::<Bytes>::default());
    let request = request.map_err(|error| text(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| text(&error))?;
    Ok(answer.map(BodyExt::boxed))
}

fn answer(status: StatusCode, media: &str, body: Vec<u8>) -> Response<Body> {
    let body = Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {}).boxed();
    let answer = Response::builder().status(status).header("content-type", media);
    answer.header("cache-control", "no-store").body(body).expect("a status and a media type")
}

fn media(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("html", |(_, ending)| ending) {
        "js" => "text/javascript",
        "wasm" => "application/wasm",
        "json" => "application/json",
        "html" => "text/html; charset=utf-8",
        _ => "application/octet-stream",
    }
}
