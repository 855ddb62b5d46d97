//! What a store has seen, counted. Only ever grows.

use super::{Kind, Loss};

/// The types of events that are counted: what a change of an object was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not known before.
    Added,
    /// It looks different from before.
    Changed,
    /// It is gone.
    Gone,
    /// It looks as before.
    Same,
}

impl Change {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::Added, Self::Changed, Self::Gone, Self::Same];

    /// A stable word, also the metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Gone => "gone",
            Self::Same => "same",
        }
    }
}

/// The running counts of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    events: [[u64; Change::ALL.len()]; Kind::ALL.len()],
    missed: [u64; Kind::ALL.len()],
    losses: [u64; Loss::ALL.len()],
}

impl Counts {
    /// Changes of objects by kind and type.
    pub fn events(&self) -> impl Iterator<Item = (Kind, Change, u64)> + '_ {
        let of = |kind: Kind| {
            Change::ALL.map(|change| (kind, change, self.events[kind as usize][change as usize]))
        };
        Kind::ALL.into_iter().flat_map(of)
    }

    /// Differences that a further list of a stream brought to light, by kind: no event had told of them.
    pub fn missed(&self) -> impl Iterator<Item = (Kind, u64)> + '_ {
        Kind::ALL.into_iter().map(|kind| (kind, self.missed[kind as usize]))
    }

    /// How often a stream was lost, by reason; each attempt that fails counts.
    pub fn losses(&self) -> impl Iterator<Item = (Loss, u64)> + '_ {
        Loss::ALL.into_iter().map(|loss| (loss, self.losses[loss as usize]))
    }

    pub(super) fn event(&mut self, kind: Kind, change: Change) {
        self.events[kind as usize][change as usize] += 1;
    }

    pub(super) fn miss(&mut self, kind: Kind) {
        self.missed[kind as usize] += 1;
    }

    pub(super) fn lose(&mut self, loss: Loss) {
        self.losses[loss as usize] += 1;
    }
}
