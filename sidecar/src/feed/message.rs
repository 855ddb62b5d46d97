//! What a reader says on a gRPC stream, and how a call ends. In: the body of a call. Out: requests. Never keeps more
//! than one message, and what came with it.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use watcher::feed::{Request, Splitter};

use super::Ending;

/// How a gRPC call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status {
    code: &'static str,
    message: &'static str,
}

impl Status {
    pub(super) const OK: Self = Self { code: "0", message: "" };
    pub(super) const MALFORMED: Self = Self { code: "3", message: "this is no subscription" };
    pub(super) const LATE: Self = Self { code: "4", message: "no subscription came" };
    pub(super) const EXHAUSTED: Self = Self { code: "8", message: "as many readers as are served are here" };
    pub(super) const UNIMPLEMENTED: Self = Self { code: "12", message: "only remora.Feed/Watch is here" };
    pub(super) const UNAUTHENTICATED: Self =
        Self { code: "16", message: "show a token of a ServiceAccount that is good here" };
    pub(super) const UNAVAILABLE: Self =
        Self { code: "14", message: "the server ends, or does not reach its API server" };

    pub(super) fn headers(self) -> impl Iterator<Item = Ending> {
        let named = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        [named("grpc-status", self.code), named("grpc-message", self.message)].into_iter()
    }
}

/// What a reader says.
pub(super) struct Messages {
    body: Incoming,
    splitter: Splitter,
}

impl Messages {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, splitter: Splitter::of_messages() }
    }

    /// The next request; `None` if there is none to come. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<Option<Request>, Status> {
        loop {
            if let Some(message) = self.splitter.frame().map_err(|_| Status::MALFORMED)? {
                return Request::decode(message).map(Some).map_err(|_| Status::MALFORMED);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(part)) => self.splitter.push(part.data_ref().unwrap_or(&Bytes::new())),
                Some(Err(_)) => return Err(Status::MALFORMED),
            }
        }
    }
}
