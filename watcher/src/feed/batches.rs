//! What the readers of a feed are told, made once for all who are told the same. In: a store that changes. Out: snapshots
//! and transactions, to those whom they concern. Never waits for a reader: one that falls behind by more than [`BEHIND`]
//! gets a new snapshot.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use tokio::sync::mpsc;

use super::facts::difference;
use super::readers::{Id, Readers};
use super::transaction::Transaction;
use super::{Changes, Names, Request, Subscription, snapshot};
use crate::store::Store;

/// Transactions that a reader may be behind. Who is told the same shares them.
const BEHIND: usize = 64;

/// The side of the store. There is one, and only while somebody reads.
#[derive(Debug)]
pub(crate) struct Batches {
    epoch: u64,
    version: u64,
    readers: Readers,
    seated: HashMap<Id, Seated, foldhash::fast::RandomState>,
    /// Who comes next.
    next: Id,
    /// Who is gone.
    left: mpsc::UnboundedReceiver<Id>,
    leave: mpsc::UnboundedSender<Id>,
    /// The last snapshot of everything, while a reader has it.
    whole: (u64, Weak<Vec<Bytes>>),
}

/// A reader that is told of changes.
#[derive(Debug)]
struct Seated {
    subscription: Subscription,
    told: mpsc::Sender<Arc<Transaction>>,
}

/// The beginning of what a reader is told.
#[derive(Debug)]
pub(crate) struct Opening {
    /// What was asked for, in memory that is shared with others.
    pub(super) request: Request,
    pub(super) frames: Arc<Vec<Bytes>>,
    pub(super) version: u64,
    pub(super) seat: Seat,
}

/// A reader's side. Owning one means to be told of changes until it falls behind.
#[derive(Debug)]
pub(super) struct Seat {
    id: Id,
    told: mpsc::Receiver<Arc<Transaction>>,
    leave: mpsc::UnboundedSender<Id>,
}

impl Batches {
    /// Begins to remember what changes in `store`.
    pub(crate) fn new(store: &mut Store) -> Self {
        store.record();
        let epoch = RandomState::new().hash_one("epoch");
        let (leave, left) = mpsc::unbounded_channel();
        Self {
            epoch,
            version: 1,
            readers: Readers::default(),
            seated: HashMap::default(),
            next: 0,
            left,
            leave,
            whole: (0, Weak::new()),
        }
    }

    /// Tells what changed since the last time.
    pub(crate) fn tell(&mut self, store: &mut Store, age: Option<Duration>) {
        let changes = Changes::take(store);
        if changes.is_empty() {
            return;
        }
        self.version += 1;
        self.clear_away();
        for (places, ids) in self.readers.concerned(changes.services()) {
            let transaction = Arc::new(changes.transaction(&places, self.version, age));
            for id in ids {
                let Some(seated) = self.seated.get(&id) else { continue };
                if let Err(mpsc::error::TrySendError::Full(_)) =
                    seated.told.try_send(Arc::clone(&transaction))
                {
                    // It notices, and asks for another snapshot.
                    self.dismiss(id);
                }
            }
        }
    }

    /// A snapshot, and what comes after it. The changes until here are to be told before.
    pub(crate) fn open(&mut self, store: &Store, request: &Request, age: Option<Duration>) -> Opening {
        self.clear_away();
        let subscription = request.resolve(store.table());
        let version = self.version;
        let take = || {
            let frames = snapshot(store, &subscription, self.epoch, version, age);
            Arc::new(frames.into_iter().map(Bytes::from).collect())
        };
        let is_whole = subscription == Subscription::All;
        let known = (is_whole && self.whole.0 == version).then(|| self.whole.1.upgrade());
        let frames: Arc<Vec<Bytes>> = known.flatten().unwrap_or_else(take);
        if is_whole {
            self.whole = (version, Arc::downgrade(&frames));
        }
        let id = self.next;
        self.next += 1;
        let subscription = self.enter(store, id, &subscription);
        let request = shared(request, &subscription);
        let (told, telling) = mpsc::channel(BEHIND);
        self.seated.insert(id, Seated { subscription, told });
        let seat = Seat { id, told: telling, leave: self.leave.clone() };
        Opening { request, frames, version, seat }
    }

    /// A reader wants something else from here on. It is told of what is new to it, and that what it wants no longer is
    /// gone; nothing if it has fallen behind, as it asks for a snapshot then.
    pub(crate) fn amend(&mut self, store: &Store, id: Id, request: &Request, age: Option<Duration>) {
        self.clear_away();
        let Some(Seated { subscription: old, told }) = self.seated.remove(&id) else { return };
        self.readers.leave(id, &old);
        let new = request.resolve(store.table());
        let transaction = difference(store, &old, &new, self.version, age);
        let subscription = self.enter(store, id, &new);
        let transaction = transaction.answering(shared(request, &subscription));
        let is_told = told.try_send(Arc::new(transaction)).is_ok();
        self.seated.insert(id, Seated { subscription, told });
        if !is_told {
            self.dismiss(id);
        }
    }

    fn enter(&mut self, store: &Store, id: Id, subscription: &Subscription) -> Subscription {
        self.readers.enter(id, subscription, |name| store.entry(name).map(|(name, _)| name))
    }

    /// Forgets those who are gone.
    fn clear_away(&mut self) {
        while let Ok(id) = self.left.try_recv() {
            self.dismiss(id);
        }
    }

    fn dismiss(&mut self, id: Id) {
        if let Some(seated) = self.seated.remove(&id) {
            self.readers.leave(id, &seated.subscription);
        }
    }
}

/// `request` with the names of what it was resolved to.
fn shared(request: &Request, subscription: &Subscription) -> Request {
    let Subscription::Some { services: known, .. } = subscription else { return request.clone() };
    let mut request = request.clone();
    if request.places.is_empty() {
        request.subscription = subscription.clone();
    } else if let Subscription::Some { services, .. } = &mut request.subscription {
        let known = |name| known.binary_search(name).ok().and_then(|at| known.get(at));
        *services = services.iter().filter_map(known).cloned().collect::<Names<_>>();
    }
    request
}

impl Seat {
    /// Which it is.
    pub(super) fn id(&self) -> Id {
        self.id
    }

    /// What is to be told next; `None` if this reader has fallen behind, or nobody tells any more. May be dropped and
    /// called again.
    pub(super) async fn next(&mut self) -> Option<Arc<Transaction>> {
        // What waits for a reader that has fallen behind is of no use to it.
        if self.told.is_closed() { None } else { self.told.recv().await }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Nobody may be there any more who would want to know.
        let _ = self.leave.send(self.id);
    }
}
