//! `remora hub --webhook`: answers the API server, by TLS, what each new Pod gets. In: connections. Out: answers. Whatever is
//! wrong here, a Pod is made: every answer says yes, and the API server is told to do without one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use watcher::kubernetes::{Namespaces, Notices};

use crate::certificate::Certificate;

use super::pod::{Around, Settings};
use super::review::review;

/// Where the API server asks.
const PATH: &str = "/inject";
/// An AdmissionReview may be so long; objects of the API server are at most 3 MiB.
const REVIEW_MOST: usize = 8 << 20;
/// Connections at once: each API server keeps one or a few.
const CONNECTIONS: usize = 256;
/// For a handshake, and for the head of a request.
const WITHIN: Duration = Duration::from_secs(5);
/// What a namespace demands of its Pods.
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// Pods that were asked about, by outcome.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<&'static str, u64>>);

impl Counts {
    fn count(&self, outcome: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome).or_default() += 1;
    }

    /// Each outcome with its number.
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(outcome, number)| (*outcome, *number)).collect()
    }
}

/// What answers.
#[derive(Debug)]
pub struct Webhook {
    /// The newest are used.
    settings: watch::Receiver<Settings>,
    /// How namespaces are labelled; without an API server nobody knows, and nothing is demanded.
    namespaces: Option<Namespaces>,
    /// Sidecars that read this process's feed trust who vouches for it.
    certificate: Arc<Certificate>,
    /// Where it is told which Pods are made without a sidecar, if anybody can hear of it.
    notices: Option<Notices>,
    counts: Arc<Counts>,
}

impl Webhook {
    /// One that gives Pods what `settings` say, if `namespaces` allow it. Where they name nobody who vouches for the
    /// sidecars' hub, it is whoever vouches for `certificate`.
    pub fn new(
        settings: watch::Receiver<Settings>,
        namespaces: Option<Namespaces>,
        certificate: Arc<Certificate>,
    ) -> Self {
        Self { settings, namespaces, certificate, notices: None, counts: Arc::default() }
    }

    /// Has `notices` told of Pods that get nothing.
    pub fn telling(mut self, notices: Option<Notices>) -> Self {
        self.notices = notices;
        self
    }

    /// What it did.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Answers by `tls` until the future is dropped.
    ///
    /// # Errors
    /// If the runtime has no place for the listener.
    pub async fn serve(self, listener: TcpListener, tls: TlsAcceptor) -> std::io::Result<Infallible> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let webhook = Arc::new(self);
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { continue };
            let Ok((stream, _)) = listener.accept().await else {
                // No descriptors, mostly: those that end make room.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            // An answer is several writes, of which none waits for the acknowledgement of the one before: that costs 40 ms.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a client of the webhook went away");
                continue;
            }
            let (tls, webhook) = (tls.clone(), Arc::clone(&webhook));
            tokio::spawn(async move {
                if let Ok(Ok(stream)) = timeout(WITHIN, tls.accept(stream)).await {
                    webhook.converse(TokioIo::new(stream)).await;
                }
                drop(place);
            });
        }
    }

    async fn converse(
        self: Arc<Self>,
        stream: impl hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    ) {
        let service = hyper::service::service_fn(|request| {
            let webhook = Arc::clone(&self);
            async move { Ok::<_, Infallible>(webhook.respond(request).await) }
        });
        let mut server = Builder::new(TokioExecutor::new());
        server.http1().timer(TokioTimer::new()).header_read_timeout(WITHIN);
        server.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(60)));
        if let Err(error) = server.serve_connection(stream, service).await {
            tracing::debug!(%error, "a client of the webhook went wrong");
        }
    }

    async fn respond(&self, request: Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
        let said = |status, text: String| {
            let mut response = Response::new(Full::from(text));
            *response.status_mut() = status;
            response
        };
        if request.uri().path() != PATH || request.method() != Method::POST {
            return said(StatusCode::NOT_FOUND, format!("only POST {PATH} is understood here\n"));
        }
        let Ok(body) = Limited::new(request.into_body(), REVIEW_MOST).collect().await else {
            self.counts.count("malformed");
            return said(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("more than {REVIEW_MOST} bytes, or cut off\n"),
            );
        };
        let mut settings = self.settings.borrow().clone();
        settings.feed_ca = settings.feed_ca.or_else(|| self.certificate.authority());
        match review(&body.to_bytes(), &settings, |namespace| self.around(namespace)) {
            Ok(reviewed) => {
                self.counts.count(reviewed.outcome);
                if let Some((notices, notice)) = self.notices.as_ref().zip(reviewed.notice) {
                    notices.tell(notice);
                }
                let mut response = Response::new(Full::from(reviewed.answer));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(error) => {
                self.counts.count("malformed");
                said(StatusCode::BAD_REQUEST, format!("{error}\n"))
            }
        }
    }

    fn around(&self, namespace: &str) -> Option<Around> {
        let Some(namespaces) = &self.namespaces else { return Some(Around::default()) };
        namespaces.label(namespace, ENFORCE).map(|pod_security| Around { pod_security })
    }
}
