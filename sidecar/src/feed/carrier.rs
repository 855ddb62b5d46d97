//! What carries frames to one reader, and what it says back. In: frames. Out: bytes on a connection. Never keeps a frame
//! longer than the connection needs to take it.
//!
//! | carrier | a frame there | what the reader says |
//! |--|--|--|
//! | [`Call`] | a message of a gRPC stream | requests |
//! | [`Body`] | behind its length, in a body of HTTP/2 | nothing |
//! | [`Plain`] | behind its length, on a connection of HTTP/1.1 that has nothing else any more | nothing |
//! | [`Talk`] | a message, on a connection that has become a stream of them both ways ([`feed::PROTOCOL`]) | requests |
//!
//! Most readers are sidecars, and of the last kind, each with a connection of its own: there is no server of HTTP any more,
//! whose buffers would be most of what a reader costs.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};

use bytes::{Buf, Bytes};
use http_body_util::channel::Sender;
use hyper::{HeaderMap, Version};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use watcher::feed::{self, Request, Splitter};

use super::message::{Messages, Status};

/// What is read at once of what a reader says.
const PART: usize = 2048;

/// How it ends with a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It has gone, or is let go: there is nobody to say something to.
    Gone,
    /// It is told why.
    With(Status),
}

/// Carries frames to one reader.
pub(super) trait Carrier {
    /// Bytes that a frame has more.
    const PREFIX: usize;

    /// Returns when the connection has taken the frame.
    async fn send(&mut self, frame: Bytes) -> Result<(), End>;

    /// What else the reader wants from here on. Waits for ever while it says nothing; may be dropped and called again.
    async fn heard(&mut self) -> Result<Request, End>;

    /// Tells why it ends.
    async fn end(self, status: Status);
}

/// The stream of a gRPC call.
pub(super) struct Call {
    pub(super) body: Sender<Bytes>,
    /// None when the reader has no more to say.
    pub(super) messages: Option<Messages>,
}

impl Carrier for Call {
    const PREFIX: usize = feed::PREFIX + 1;

    async fn send(&mut self, frame: Bytes) -> Result<(), End> {
        self.body.send_data(feed::framed(&frame).into()).await.map_err(|_| End::Gone)
    }

    async fn heard(&mut self) -> Result<Request, End> {
        match &mut self.messages {
            None => std::future::pending().await,
            Some(messages) => match messages.next().await {
                Ok(Some(request)) => Ok(request),
                // It may read on.
                Ok(None) => {
                    self.messages = None;
                    std::future::pending().await
                }
                Err(status) => Err(End::With(status)),
            },
        }
    }

    async fn end(mut self, status: Status) {
        let _ = self.body.send_trailers(status.headers().collect::<HeaderMap>()).await;
    }
}

/// The body of an answer by HTTP/2.
pub(super) struct Body(pub(super) Sender<Bytes>);

impl Carrier for Body {
    const PREFIX: usize = feed::PREFIX;

    async fn send(&mut self, frame: Bytes) -> Result<(), End> {
        let bytes = [&feed::prefix(&frame)[..], &frame].concat();
        self.0.send_data(bytes.into()).await.map_err(|_| End::Gone)
    }

    async fn heard(&mut self) -> Result<Request, End> {
        std::future::pending().await
    }

    async fn end(self, _: Status) {}
}

/// A connection that carries frames and nothing else, to its end.
pub(super) struct Plain<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> Plain<S> {
    /// Begins the answer to a request of `version`, whose body ends with the connection.
    pub(super) async fn begin(mut stream: S, version: Version) -> io::Result<Self> {
        let date =
            jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&jiff::Timestamp::now());
        let date = date.map_err(io::Error::other)?;
        let head = format!(
            "{version:?} 200 OK\r\ncontent-type: application/octet-stream\r\ncache-control: no-store\r\n\
             connection: close\r\ndate: {date}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        stream.flush().await?;
        Ok(Self(stream))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Carrier for Plain<S> {
    const PREFIX: usize = feed::PREFIX;

    async fn send(&mut self, frame: Bytes) -> Result<(), End> {
        write(&mut self.0, &feed::prefix(&frame), frame).await
    }

    async fn heard(&mut self) -> Result<Request, End> {
        loop {
            // Nobody has asked for it.
            read(&mut self.0, |_| ()).await?;
        }
    }

    async fn end(mut self, _: Status) {
        let _ = self.0.shutdown().await;
    }
}

/// A connection that carries messages both ways, and nothing else, to its end.
pub(super) struct Talk<S> {
    stream: S,
    said: Splitter,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    /// Begins it, which a request of HTTP/1.1 has asked for.
    pub(super) async fn begin(mut stream: S) -> io::Result<Self> {
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {}\r\n\r\n",
            feed::PROTOCOL
        );
        stream.write_all(head.as_bytes()).await?;
        stream.flush().await?;
        Ok(Self { stream, said: Splitter::of_messages() })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Carrier for Talk<S> {
    const PREFIX: usize = 1 + feed::PREFIX;

    async fn send(&mut self, frame: Bytes) -> Result<(), End> {
        let [a, b, c, d] = feed::prefix(&frame);
        write(&mut self.stream, &[0, a, b, c, d], frame).await
    }

    async fn heard(&mut self) -> Result<Request, End> {
        loop {
            let malformed = |_| End::With(Status::MALFORMED);
            if let Some(message) = self.said.frame().map_err(malformed)? {
                return Request::decode(message).map_err(malformed);
            }
            read(&mut self.stream, |bytes| self.said.push(bytes)).await?;
        }
    }

    async fn end(mut self, _: Status) {
        let _ = self.stream.shutdown().await;
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), prefix: &[u8], frame: Bytes) -> Result<(), End> {
    stream.write_all_buf(&mut Buf::chain(prefix, frame)).await.map_err(|_| End::Gone)?;
    // By TLS, what is written may be waiting.
    stream.flush().await.map_err(|_| End::Gone)
}

/// Gives `take` what a reader has said next. The buffer is there only while something is read: a reader that says nothing
/// needs none.
async fn read(stream: &mut (impl AsyncRead + Unpin), mut take: impl FnMut(&[u8])) -> Result<(), End> {
    poll_fn(|cx| {
        let mut part = [MaybeUninit::uninit(); PART];
        let mut part = ReadBuf::uninit(&mut part);
        match ready!(Pin::new(&mut *stream).poll_read(cx, &mut part)) {
            Ok(()) if !part.filled().is_empty() => {
                take(part.filled());
                Poll::Ready(Ok(()))
            }
            _ => Poll::Ready(Err(End::Gone)),
        }
    })
    .await
}
