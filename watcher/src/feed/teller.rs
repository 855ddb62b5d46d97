//! Tells one reader. In: what it subscribes to. Out: frame after frame. Never keeps more for a slow reader than a
//! snapshot: what it missed meanwhile it gets as another one.
//!
//! ```text
//!              ┌─────────── fell behind · subscribes to something else ──────────┐
//!              ▼                                                                 │
//! asking ──opened──▶ telling the snapshot ──▶ telling batches, and every HEARTBEAT that we live
//! ```

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::{broadcast, oneshot};
use tokio::time::{Instant, sleep_until};

use super::batches::{Batch, Opening};
use super::{HEARTBEAT, Subscription, heartbeat};
use crate::Watch;

use std::sync::Arc;

/// Who tells one reader. Owning one costs its source nothing while nothing changes.
#[derive(Debug)]
pub struct Teller {
    watch: Watch,
    subscription: Subscription,
    state: State,
    /// Frames that are due.
    due: VecDeque<Bytes>,
    beat: Instant,
}

#[derive(Debug)]
enum State {
    /// A snapshot is to be asked for.
    New,
    Asking(oneshot::Receiver<Opening>),
    Following {
        version: u64,
        batches: broadcast::Receiver<Arc<Batch>>,
    },
}

/// What a reader is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A frame.
    Frame(Bytes),
    /// The first frame of a snapshot.
    Snapshot(Bytes),
    /// The reader was too slow, and is told everything again. Nothing to send.
    FellBehind,
}

impl Teller {
    /// Tells what `watch` knows and `subscription` covers.
    pub fn new(watch: Watch, subscription: Subscription) -> Self {
        let beat = Instant::now() + HEARTBEAT;
        Self { watch, subscription, state: State::New, due: VecDeque::new(), beat }
    }

    /// From here on tells what `subscription` covers. What is on its way of the earlier one is not told any more.
    pub fn subscribe(&mut self, subscription: Subscription) {
        if subscription != self.subscription {
            self.subscription = subscription;
            self.state = State::New;
            self.due.clear();
        }
    }

    /// The next thing to tell; `None` if there is nobody who knows any more. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Told> {
        if let Some(frame) = self.due.pop_front() {
            return Some(self.frame(frame));
        }
        loop {
            match &mut self.state {
                State::New => {
                    self.state = State::Asking(self.watch.open_feed(self.subscription.clone()).await?)
                }
                // A source without a first table lets us wait.
                State::Asking(answer) => tokio::select! {
                    opening = answer => {
                        let Opening { frames, version, batches } = opening.ok()?;
                        self.state = State::Following { version, batches };
                        self.due = frames.iter().cloned().collect();
                        let first = self.due.pop_front()?;
                        self.beat = Instant::now() + HEARTBEAT;
                        return Some(Told::Snapshot(first));
                    }
                    () = sleep_until(self.beat) => return Some(self.live()),
                },
                State::Following { version, batches } => tokio::select! {
                    batch = batches.recv() => match batch {
                        Ok(batch) => {
                            self.due = batch.encode(&self.subscription, *version).into();
                            if let Some(first) = self.due.pop_front() {
                                *version = batch.version;
                                return Some(self.frame(first));
                            }
                        }
                        Err(broadcast::error::RecvError::Lagged(_)) => {
                            self.state = State::New;
                            return Some(Told::FellBehind);
                        }
                        Err(broadcast::error::RecvError::Closed) => return None,
                    },
                    () = sleep_until(self.beat) => return Some(self.live()),
                },
            }
        }
    }

    fn frame(&mut self, frame: Bytes) -> Told {
        self.beat = Instant::now() + HEARTBEAT;
        Told::Frame(frame)
    }

    fn live(&mut self) -> Told {
        let age = self.watch.age();
        self.frame(heartbeat(age).into())
    }
}
