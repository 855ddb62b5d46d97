//! Changes, written once for readers of several versions. In: what an encoder wrote, but for what depends on the reader.
//! Out: frames. Never writes more anew for a reader than the first frame.

use std::sync::OnceLock;

use bytes::Bytes;

use super::encoder::changes_head;
use super::seal::sealed;

/// What some readers are told at once.
#[derive(Debug)]
pub(super) struct Transaction {
    /// The version that it makes.
    pub(super) version: u64,
    /// The first frame, without its first field, which is the version of the reader, and its last.
    first: Vec<u8>,
    rest: Vec<Bytes>,
    /// The first frame as the first reader got it, and at which version that was: those who read the same were mostly
    /// told the same before.
    told: OnceLock<(u64, Bytes)>,
}

impl Transaction {
    /// What makes `version` of whatever the reader has: frames without their last fields, and the first one without its
    /// first.
    pub(super) fn new(frames: Vec<Vec<u8>>, version: u64) -> Self {
        let mut frames = frames.into_iter();
        let first = frames.next().unwrap_or_default();
        Self { version, first, rest: frames.map(sealed).map(Bytes::from).collect(), told: OnceLock::new() }
    }

    /// The frames for a reader at version `from`.
    pub(super) fn frames(&self, from: u64) -> impl Iterator<Item = Bytes> + '_ {
        let write = || (from, Bytes::from(sealed([&changes_head(from), &self.first[..]].concat())));
        let (at, told) = self.told.get_or_init(write);
        let first = if *at == from { told.clone() } else { write().1 };
        std::iter::once(first).chain(self.rest.iter().cloned())
    }
}
