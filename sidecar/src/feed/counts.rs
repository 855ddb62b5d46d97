//! What was told to readers of the feed, counted. Only ever grows, but for how many read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Refused;

/// The running counts of a feed.
#[derive(Debug, Default)]
pub struct Counts {
    readers: AtomicU64,
    frames: AtomicU64,
    bytes: AtomicU64,
    snapshots: AtomicU64,
    resets: [AtomicU64; Reset::ALL.len()],
    refused: [AtomicU64; Refused::ALL.len()],
}

/// Why a reader was not told on as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// It missed changes, and is told everything again.
    FellBehind,
    /// It took nothing for too long, and was let go.
    Stalled,
    /// It said what is no subscription, and was let go.
    Malformed,
    /// There were too many, and it was turned away.
    Limit,
    /// It did not show in time who it is, and was let go.
    Stranger,
}

impl Reset {
    /// Every reason.
    pub const ALL: [Self; 5] =
        [Self::FellBehind, Self::Stalled, Self::Malformed, Self::Limit, Self::Stranger];

    /// A stable word, also the metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::FellBehind => "fell-behind",
            Self::Stalled => "stalled",
            Self::Malformed => "malformed",
            Self::Limit => "limit",
            Self::Stranger => "stranger",
        }
    }
}

/// A reader that is counted as long as this lives.
#[derive(Debug)]
pub(super) struct Reader(Arc<Counts>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Relaxed);
    }
}

impl Counts {
    /// Readers at the moment.
    pub fn readers(&self) -> u64 {
        self.readers.load(Relaxed)
    }

    /// Frames told.
    pub fn frames(&self) -> u64 {
        self.frames.load(Relaxed)
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Snapshots begun.
    pub fn snapshots(&self) -> u64 {
        self.snapshots.load(Relaxed)
    }

    /// Resets by reason.
    pub fn resets(&self) -> impl Iterator<Item = (Reset, u64)> + '_ {
        Reset::ALL.into_iter().map(|why| (why, self.resets[why as usize].load(Relaxed)))
    }

    /// Requests that were refused, by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (Refused, u64)> + '_ {
        Refused::ALL.into_iter().map(|why| (why, self.refused[why as usize].load(Relaxed)))
    }

    pub(super) fn refused(&self, why: Refused) {
        self.refused[why as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn reader(self: &Arc<Self>) -> Reader {
        self.readers.fetch_add(1, Relaxed);
        Reader(Arc::clone(self))
    }

    pub(super) fn frame(&self, bytes: usize) {
        self.frames.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn snapshot(&self) {
        self.snapshots.fetch_add(1, Relaxed);
    }

    pub(super) fn reset(&self, why: Reset) {
        self.resets[why as usize].fetch_add(1, Relaxed);
    }
}
