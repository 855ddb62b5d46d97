//! What the readers of a feed are told, made once for all of them. In: a store that changes. Out: snapshots and batches.
//! Never waits for a reader: one that falls behind by more than [`BATCHES`] gets a new snapshot.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::broadcast;

use super::{Changes, Request, Subscription, snapshot};
use crate::store::Store;

/// Batches that a reader may be behind. They are kept once, not for each reader.
const BATCHES: usize = 64;

/// The side of the store. There is one, and only while somebody reads.
#[derive(Debug)]
pub(crate) struct Batches {
    epoch: u64,
    version: u64,
    told: broadcast::Sender<Arc<Batch>>,
    /// The last snapshot of everything, while a reader has it.
    whole: (u64, Weak<Vec<Bytes>>),
}

/// What changed at once.
#[derive(Debug)]
pub(super) struct Batch {
    changes: Changes,
    pub(super) version: u64,
    age: Option<Duration>,
    /// For those who read everything.
    whole: OnceLock<Vec<Bytes>>,
}

/// The beginning of what a reader is told.
#[derive(Debug)]
pub(crate) struct Opening {
    /// What was asked for, by name.
    pub(super) subscription: Subscription,
    pub(super) frames: Arc<Vec<Bytes>>,
    pub(super) version: u64,
    pub(super) batches: broadcast::Receiver<Arc<Batch>>,
}

impl Batches {
    /// Begins to remember what changes in `store`.
    pub(crate) fn new(store: &mut Store) -> Self {
        store.record();
        let epoch = RandomState::new().hash_one("epoch");
        Self { epoch, version: 1, told: broadcast::Sender::new(BATCHES), whole: (0, Weak::new()) }
    }

    /// Tells what changed since the last time.
    pub(crate) fn tell(&mut self, store: &mut Store, age: Option<Duration>) {
        let changes = Changes::take(store);
        if changes.is_empty() {
            return;
        }
        self.version += 1;
        let batch = Batch { changes, version: self.version, age, whole: OnceLock::new() };
        // Nobody may be reading at the moment.
        let _ = self.told.send(Arc::new(batch));
    }

    /// A snapshot, and what comes after it. The changes until here are to be told before.
    pub(crate) fn open(&mut self, store: &Store, request: &Request, age: Option<Duration>) -> Opening {
        let subscription = request.resolve(store.table());
        let batches = self.told.subscribe();
        let version = self.version;
        let take = || frames(snapshot(store, &subscription, self.epoch, version, age));
        let known =
            (subscription == Subscription::All && self.whole.0 == version).then(|| self.whole.1.upgrade());
        let frames = known.flatten().unwrap_or_else(|| Arc::new(take()));
        if subscription == Subscription::All {
            self.whole = (version, Arc::downgrade(&frames));
        }
        Opening { subscription, frames, version, batches }
    }
}

impl Batch {
    /// The frames for a reader of `subscription` who is at version `from`; none if nothing of it concerns that reader.
    pub(super) fn encode(&self, subscription: &Subscription, from: u64) -> Vec<Bytes> {
        let encode = || frames(self.changes.encode(subscription, from, self.version, self.age));
        // Who reads everything was told every version.
        if *subscription == Subscription::All && from + 1 == self.version {
            self.whole.get_or_init(encode).clone()
        } else {
            encode()
        }
    }
}

fn frames(frames: Vec<Vec<u8>>) -> Vec<Bytes> {
    frames.into_iter().map(Bytes::from).collect()
}
