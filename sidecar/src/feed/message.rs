//! The messages of a gRPC stream: each follows one byte, which is 0 as nothing is compressed, and its length, four
//! bytes, the highest first. In: the body of a request. Out: subscriptions. Never keeps more than one message, and what
//! came with it.

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use watcher::feed::{LARGEST, Subscription};

use super::Ending;

const PREFIX: usize = 5;

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

/// `frame` as a message.
pub(super) fn framed(frame: &[u8]) -> Vec<u8> {
    [&[0], &watcher::feed::prefix(frame)[..], frame].concat()
}

/// What a reader says.
pub(super) struct Messages {
    body: Incoming,
    bytes: BytesMut,
}

impl Messages {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, bytes: BytesMut::new() }
    }

    /// The next subscription; `None` if there is none to come. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<Option<Subscription>, Status> {
        loop {
            if let Some(message) = cut(&mut self.bytes)? {
                return Subscription::decode(&message).map(Some).map_err(|_| Status::MALFORMED);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(part)) => self.bytes.extend_from_slice(part.data_ref().unwrap_or(&Bytes::new())),
                Some(Err(_)) => return Err(Status::MALFORMED),
            }
        }
    }
}

/// The first message, if it is there as a whole.
fn cut(bytes: &mut BytesMut) -> Result<Option<Bytes>, Status> {
    let Some((&[compressed, a, b, c, d], rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if compressed != 0 || length > LARGEST {
        return Err(Status::MALFORMED);
    }
    if rest.len() < length {
        return Ok(None);
    }
    bytes.advance(PREFIX);
    Ok(Some(bytes.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_whole_and_none_that_is_too_large() {
        let mut bytes = BytesMut::from(&[framed(b"ab"), framed(b""), framed(b"c")].concat()[..]);
        let last = bytes.split_off(bytes.len() - 1);
        assert_eq!(cut(&mut bytes), Ok(Some(Bytes::from_static(b"ab"))));
        assert_eq!(cut(&mut bytes), Ok(Some(Bytes::new())));
        assert_eq!(cut(&mut bytes), Ok(None));
        bytes.unsplit(last);
        assert_eq!(cut(&mut bytes), Ok(Some(Bytes::from_static(b"c"))));
        for wrong in [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]] {
            assert_eq!(cut(&mut BytesMut::from(&wrong[..])), Err(Status::MALFORMED));
        }
    }
}
