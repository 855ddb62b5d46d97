//! Changes, written once for readers of several versions. In: what an encoder wrote, but for what depends on the reader.
//! Out: frames. Never writes more anew for a reader than the first frame.

use std::sync::OnceLock;

use bytes::Bytes;

use super::Request;
use super::encoder::{answer, changes_head};
use super::seal::sealed;

/// What some readers are told at once.
#[derive(Debug)]
pub(super) struct Transaction {
    /// The version that it makes.
    pub(super) version: u64,
    /// What it answers, with names in memory that is shared with others; nothing where only facts have changed.
    pub(super) answers: Option<Request>,
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
        let rest = frames.map(sealed).map(Bytes::from).collect();
        Self { version, answers: None, first, rest, told: OnceLock::new() }
    }

    /// The same as the answer to `request`.
    pub(super) fn answering(self, request: Request) -> Self {
        Self { answers: Some(request), ..self }
    }

    /// The frames for a reader at version `from`.
    pub(super) fn frames(&self, from: u64) -> impl Iterator<Item = Bytes> + '_ {
        let write = || (from, Bytes::from(sealed([&changes_head(from), &self.first[..]].concat())));
        let (at, told) = self.told.get_or_init(write);
        let first = if *at == from { told.clone() } else { write().1 };
        let number = self.answers.as_ref().map_or(0, |request| request.number);
        let answer = (number > 0).then(|| answer(number).into());
        answer.into_iter().chain([first]).chain(self.rest.iter().cloned())
    }
}
