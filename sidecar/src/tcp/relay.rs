//! Moves bytes between a client and an endpoint until both have ended or one breaks. In: two sockets. Out: how
//! it ended. Never reads more than the other side takes, never looks at a byte, never times anything out.
//!
//! Each direction is a [`Way`]:
//! ```text
//!          read 0, passed on as FIN
//!   Open ───────────────────────────▶ Ended        both Ended: closed in order
//!    │
//!    │ the receiver was reset
//!    └───────────────────────────────▶ Cut          what the receiver had sent before goes on, as far as
//!                                                   there is room for it; then the sender is reset
//! ```
//! A reset seen by a read ends everything at once; dropping the sockets resets them.

use std::task::{Context, Poll};

use rustix::io::Errno;

use super::bulk::Bulk;
use super::pipes::{Pipe, Pipes};
use super::socket::Socket;
use crate::traffic::Counters;

/// One connection moves so much before its thread looks at the others.
const TURN: usize = 1024 * 1024;

/// A client and an endpoint, connected. Dropping it before it ended resets both.
#[derive(Debug)]
pub(super) struct Relay {
    client: Socket,
    endpoint: Socket,
    up: Way,
    down: Way,
}

/// What every relay of one data thread uses in turn.
#[derive(Debug)]
pub(super) struct Tools {
    /// One serves every connection of a thread: it holds bytes within one call only.
    pub(super) buffer: Box<[u8]>,
    /// For bulky directions.
    pub(super) pipes: Pipes,
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides ended and got all that the other sent.
    Closed,
    /// The client reset the connection, or was lost.
    ClientReset,
    /// The endpoint reset the connection, or was lost.
    EndpointReset,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    state: State,
    bulk: Bulk,
    /// Read, and not taken by the receiver yet. Empty without memory while the receiver keeps up.
    pending: Vec<u8>,
    /// Of [`Self::pending`], how many bytes the receiver has taken.
    taken: usize,
    /// A pipe with bytes in it that the receiver has not taken yet.
    pipe: Option<Pipe>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    Ended,
    Cut,
}

/// What a way waits for, or how it left [`State::Open`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Bytes from the sender; its reset is among what wakes.
    Sender,
    /// Room at the receiver; its reset is among what wakes.
    Receiver,
    /// Its next turn.
    Turn,
    /// Nothing: it has ended, or is cut.
    Nothing,
    /// The sender was reset.
    SenderReset,
}

impl Tools {
    /// What one data thread needs; `room` is what one read may find.
    pub(super) fn new(room: usize) -> Self {
        Self { buffer: vec![0; room].into(), pipes: Pipes::default() }
    }
}

impl Relay {
    /// A relay between `client` and `endpoint` that begins with `pending`, read from the client and not sent.
    pub(super) fn new(client: Socket, endpoint: Socket, pending: Vec<u8>) -> Self {
        Self { client, endpoint, up: Way { pending, ..Way::default() }, down: Way::default() }
    }

    /// Has the system ask an endpoint that is silent whether it is still there; the client's side inherited that
    /// from its listener.
    pub(super) fn keep_alive(&self) {
        self.endpoint.keep_alive();
    }

    /// Moves what can be moved. Ready once the relay has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, tools: &mut Tools, counters: &Counters) -> Poll<End> {
        use Progress::{Nothing, Receiver, Sender, SenderReset};
        let Self { client, endpoint, up, down } = self;
        loop {
            let last = down.state != State::Open;
            let upward = up.advance(client, endpoint, cx, tools, last, |bytes| counters.received(bytes));
            let last = up.state != State::Open;
            let downward = down.advance(endpoint, client, cx, tools, last, |bytes| counters.sent(bytes));

            match (up.state, down.state) {
                _ if upward == SenderReset => return Poll::Ready(End::ClientReset),
                _ if downward == SenderReset => return Poll::Ready(End::EndpointReset),
                (State::Ended, State::Ended) => {
                    client.close_in_order();
                    endpoint.close_in_order();
                    return Poll::Ready(End::Closed);
                }
                (State::Cut, other) if other != State::Open || downward == Receiver => {
                    return Poll::Ready(End::EndpointReset);
                }
                (other, State::Cut) if other != State::Open || upward == Receiver => {
                    return Poll::Ready(End::ClientReset);
                }
                // The downward way was cut after the upward one had gone to wait: what the client sent before
                // its reset is looked for at once, the change has been reported.
                (_, State::Cut) if upward == Sender && client.is_readable() => {}
                _ => {
                    // Who is neither read from nor written to is watched for a reset alone.
                    let idle =
                        |from, to| matches!(from, Receiver | Nothing) && matches!(to, Sender | Nothing);
                    if idle(upward, downward) && client.poll_reset(cx).is_ready() {
                        return Poll::Ready(End::ClientReset);
                    }
                    if idle(downward, upward) && endpoint.poll_reset(cx).is_ready() {
                        return Poll::Ready(End::EndpointReset);
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

impl Way {
    /// Moves bytes from `from` to `to` until something must be waited for. `last`: the other way is open no
    /// longer, so that closing, or resetting, tells the end of this one.
    fn advance(
        &mut self,
        from: &mut Socket,
        to: &mut Socket,
        cx: &mut Context<'_>,
        tools: &mut Tools,
        last: bool,
        count: impl Fn(u64),
    ) -> Progress {
        if self.state != State::Open {
            return Progress::Nothing;
        }
        let mut moved = 0;
        loop {
            // What was read first.
            match self.flush(to) {
                Ok(0) => {}
                Ok(bytes) => {
                    count(bytes as u64);
                    moved += bytes;
                }
                Err(Errno::WOULDBLOCK) => {
                    if to.poll_writable(cx).is_pending() {
                        return Progress::Receiver;
                    }
                    continue;
                }
                Err(_) => return self.cut(to),
            }
            if self.holds() {
                continue;
            }
            if moved >= TURN {
                self.settle(tools);
                cx.waker().wake_by_ref();
                return Progress::Turn;
            }
            if from.poll_readable(cx).is_pending() {
                self.settle(tools);
                return Progress::Sender;
            }
            match self.fetch(from, to, tools) {
                Ok(Fetched::Moved(bytes)) => {
                    count(bytes as u64);
                    moved += bytes;
                }
                Ok(Fetched::Held) => {}
                Ok(Fetched::End) => {
                    self.settle(tools);
                    self.state = State::Ended;
                    if !last && to.end().is_err() {
                        return self.cut(to);
                    }
                    return Progress::Nothing;
                }
                Err(Broken::Sender(Errno::WOULDBLOCK)) => from.set_readable(false),
                Err(Broken::Sender(_)) => return Progress::SenderReset,
                Err(Broken::Receiver) => return self.cut(to),
            }
        }
    }

    /// Sends some of what is held; `Ok(0)` if nothing is.
    fn flush(&mut self, to: &Socket) -> Result<usize, Errno> {
        if let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() > 0) {
            return pipe.drain(to.fd()?);
        }
        if self.pending.is_empty() {
            return Ok(0);
        }
        let bytes = to.send(&self.pending[self.taken..])?;
        self.taken += bytes;
        if self.taken == self.pending.len() {
            self.keep(&[]);
        }
        Ok(bytes)
    }

    fn holds(&self) -> bool {
        !self.pending.is_empty() || self.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0)
    }

    /// One read, and the write that goes with it.
    fn fetch(&mut self, from: &mut Socket, to: &Socket, tools: &mut Tools) -> Result<Fetched, Broken> {
        if self.bulk.is_bulky() {
            if self.pipe.is_none() {
                self.pipe = tools.pipes.take();
            }
            if let Some(pipe) = &mut self.pipe {
                let bytes = from.fd().and_then(|fd| pipe.fill(fd)).map_err(Broken::Sender)?;
                self.bulk.read(bytes);
                return Ok(if bytes == 0 { Fetched::End } else { Fetched::Held });
            }
        }
        let buffer = &mut tools.buffer;
        let bytes = from.receive(buffer).map_err(Broken::Sender)?;
        if bytes == 0 {
            return Ok(Fetched::End);
        }
        // Less than there was room for: that was all. What comes later is a change that will be reported.
        from.set_readable(bytes == buffer.len());
        self.bulk.read(bytes);
        match to.send(&buffer[..bytes]) {
            Ok(taken) => {
                self.keep(&buffer[taken..bytes]);
                Ok(Fetched::Moved(taken))
            }
            Err(Errno::WOULDBLOCK) => {
                self.keep(&buffer[..bytes]);
                Ok(Fetched::Held)
            }
            Err(_) => Err(Broken::Receiver),
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.pending = bytes.to_vec();
        self.taken = 0;
    }

    /// Nothing is held: the pipe goes back to those who move bytes.
    fn settle(&mut self, tools: &mut Tools) {
        if let Some(pipe) = self.pipe.take() {
            tools.pipes.put(pipe);
        }
    }

    /// `to` was reset. What it sent before is still to be read; the error has been told, so that a read will
    /// end in an ordinary way and must not be taken for it.
    fn cut(&mut self, to: &mut Socket) -> Progress {
        self.state = State::Cut;
        self.pending = Vec::new();
        self.pipe = None;
        to.set_readable(true);
        Progress::Nothing
    }
}

/// What a read came to.
enum Fetched {
    /// So many bytes went all the way.
    Moved(usize),
    /// Bytes are held.
    Held,
    /// There are no more.
    End,
}

/// Which side broke.
enum Broken {
    Sender(Errno),
    Receiver,
}
