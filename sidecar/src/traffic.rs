//! What the data plane counts, per Service port: connections, bytes, and why connects failed.
//! In: the data threads, each into counters of its own, so that no two share a cache line. Out:
//! [`Traffic::snapshot`], the sums, for whoever shows them. Never knows a metrics library.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

pub use selection::Failure;
use selection::{ServiceName, Symbol};

/// The counters of one process. Owning one (through its `Arc`) means to read what every data thread counted,
/// also after the thread ended.
#[derive(Debug, Default)]
pub struct Traffic {
    ports: Mutex<BTreeMap<Label, Vec<Arc<Counters>>>>,
}

/// Under which name something is counted. As many as there are listeners and captured Service ports, never as
/// many as clients or endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    /// The Service; `None` for captured connections to addresses that are no Service's, which go their ordinary
    /// way.
    pub service: Option<ServiceName>,
    /// Its port as whoever opened the way in names it: by name or by number.
    pub port: Symbol,
}

impl Label {
    /// The Service's name, empty if there is none.
    pub fn service(&self) -> String {
        self.service.as_ref().map(ServiceName::to_string).unwrap_or_default()
    }
}

/// What one data thread counted of one Service port. All grow only.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    opened: AtomicU64,
    closed: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    retries: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
    unsynced: AtomicU64,
    exhausted: AtomicU64,
    limited: AtomicU64,
    failures: [AtomicU64; Failure::ALL.len()],
}

/// The sums of one Service port at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections taken from clients.
    pub opened: u64,
    /// Those of them that ended, in whatever way.
    pub closed: u64,
    /// Bytes from clients to endpoints, headers of the PROXY protocol among them.
    pub received: u64,
    /// Bytes from endpoints to clients.
    pub sent: u64,
    /// Connects to another endpoint after one failed.
    pub retries: u64,
    /// Connections reset because nobody can serve: no such Service or port, no endpoint, or every one tried.
    pub refused: u64,
    /// Connections reset because nobody may serve: endpoints exist, but not for this client here.
    pub dropped: u64,
    /// Connections reset because no table came in time.
    pub unsynced: u64,
    /// Times that a connection could not be taken because this process had no descriptors or memory left.
    pub exhausted: u64,
    /// Connections reset because there were as many as may be, or as there are descriptors or memory for.
    pub limited: u64,
    /// Connects that failed, by [`Failure::ALL`].
    pub failures: [u64; Failure::ALL.len()],
}

impl Traffic {
    /// Fresh counters for `label`; what they count is added to what others count under it. A data thread asks
    /// once for each label and keeps them.
    pub fn counters(&self, label: &Label) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.entry(label.clone()).or_default().push(Arc::clone(&counters));
        counters
    }

    /// The sums of every label, in order.
    pub fn snapshot(&self) -> Vec<(Label, Counts)> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.iter().map(|(label, all)| (label.clone(), Counts::sum(all))).collect()
    }

    /// Connections that are open, of every label.
    pub fn active(&self) -> u64 {
        self.snapshot().iter().map(|(_, counts)| counts.active()).sum()
    }

    /// Times that a connection could not be taken for want of descriptors, of every label.
    pub fn exhausted(&self) -> u64 {
        self.snapshot().iter().map(|(_, counts)| counts.exhausted).sum()
    }
}

impl Counters {
    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    pub(crate) fn closed(&self) {
        self.closed.fetch_add(1, Relaxed);
    }

    pub(crate) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    pub(crate) fn unsynced(&self) {
        self.unsynced.fetch_add(1, Relaxed);
    }

    pub(crate) fn exhausted(&self) {
        self.exhausted.fetch_add(1, Relaxed);
    }

    pub(crate) fn limited(&self) {
        self.limited.fetch_add(1, Relaxed);
    }

    pub(crate) fn failed(&self, failure: Failure) {
        self.failures[failure as usize].fetch_add(1, Relaxed);
    }
}

impl Counts {
    /// Connections that are open.
    pub fn active(&self) -> u64 {
        self.opened.saturating_sub(self.closed)
    }

    /// Connects that failed for this reason.
    pub fn failures(&self, failure: Failure) -> u64 {
        self.failures[failure as usize]
    }

    fn sum(all: &[Arc<Counters>]) -> Self {
        let of = |read: fn(&Counters) -> &AtomicU64| all.iter().map(|c| read(c).load(Relaxed)).sum();
        // Closed before opened: a connection that comes and goes in between must not make active negative.
        let closed = of(|c| &c.closed);
        Self {
            closed,
            opened: of(|c| &c.opened),
            received: of(|c| &c.received),
            sent: of(|c| &c.sent),
            retries: of(|c| &c.retries),
            refused: of(|c| &c.refused),
            dropped: of(|c| &c.dropped),
            unsynced: of(|c| &c.unsynced),
            exhausted: of(|c| &c.exhausted),
            limited: of(|c| &c.limited),
            failures: Failure::ALL
                .map(|why| all.iter().map(|c| c.failures[why as usize].load(Relaxed)).sum()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_one_label_add_up_and_stay_after_their_thread_has_gone() {
        let traffic = Traffic::default();
        let web = Label { service: Some(ServiceName::new("shop", "web")), port: "80".into() };
        let db = Label { service: Some(ServiceName::new("shop", "db")), port: "pg".into() };
        let first = traffic.counters(&web);
        let second = traffic.counters(&web);
        traffic.counters(&db).dropped();
        first.opened();
        first.opened();
        second.opened();
        second.closed();
        first.received(3);
        second.received(4);
        first.failed(Failure::Ports);
        second.failed(Failure::Ports);
        drop((first, second));
        let snapshot = traffic.snapshot();
        assert_eq!(snapshot.iter().map(|(label, _)| label).collect::<Vec<_>>(), [&db, &web]);
        let counts = &snapshot[1].1;
        assert_eq!((counts.opened, counts.closed, counts.active(), counts.received), (3, 1, 2, 7));
        assert_eq!(counts.failures(Failure::Ports), 2);
        assert_eq!(counts.failures.iter().sum::<u64>(), 2);
        assert_eq!((snapshot[0].1.dropped, traffic.active()), (1, 2));
    }
}
