//! How a source and its table are doing: what metrics and status pages show. A snapshot; never changes under its
//! reader.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use selection::Here;

use crate::Histogram;
use crate::store::{Change, Counts, Kind, Loss, Stream};

/// How a watch is doing at one moment.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// A first table was published.
    pub synced: bool,
    /// The time since the table was last known to be in step with the source: Kubernetes has sent something on
    /// every stream, files are being watched. `None` before the first time.
    pub age: Option<Duration>,
    /// The version of the table.
    pub version: u64,
    /// Where this process runs, as it was told, or as its source knows.
    pub here: Here,
    /// How many Services are known, those that are skipped included.
    pub services: usize,
    /// How many EndpointSlices are known.
    pub slices: usize,
    /// Our own Node, as far as it is followed, is deleted or about to be: load balancers are to leave it.
    pub is_node_ineligible: bool,
    /// Streams that are broken at the moment, each with the reason.
    pub broken: Vec<(Stream, Loss)>,
    /// Changes of objects and broken streams.
    pub counts: Counts,
    /// What could not be understood and was left out, by kind of object and reason.
    pub skipped: Vec<(Kind, &'static str, u64)>,
    /// From the receipt of an event to the table that has it.
    pub received_to_table: Histogram,
    /// From the moment that somebody triggered the change of a slice (the annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`) to the table that has it. Only changes triggered after
    /// the start count.
    pub triggered_to_table: Histogram,
}

impl Status {
    /// Changes of objects by kind and type, as metric labels.
    pub fn events(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
        self.counts
            .events()
            .map(|(kind, change, count): (Kind, Change, u64)| (kind.label(), change.label(), count))
    }

    /// How often a stream was lost, by reason, as metric labels.
    pub fn losses(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counts.losses().map(|(loss, count)| (loss.label(), count))
    }

    /// Missed events that a further list healed, by kind, as metric labels.
    pub fn missed(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counts.missed().map(|(kind, count)| (kind.label(), count))
    }
}

/// When each stream was last in step.
#[derive(Debug, Default)]
pub(crate) struct Steps(HashMap<Stream, Step>);

#[derive(Clone, Copy, Debug, Default)]
struct Step {
    at: Option<Instant>,
    broken: Option<Loss>,
}

impl Steps {
    pub(crate) fn follow(&mut self, stream: &Stream) {
        self.0.entry(stream.clone()).or_default();
    }

    pub(crate) fn in_step(&mut self, stream: &Stream, at: Instant) {
        self.0.insert(stream.clone(), Step { at: Some(at), broken: None });
    }

    pub(crate) fn lost(&mut self, stream: &Stream, loss: Loss) {
        self.0.entry(stream.clone()).or_default().broken = Some(loss);
    }

    /// When the last of the streams was in step; the Node's, which tells of one label, does not count.
    pub(crate) fn last(&self) -> Option<Instant> {
        let steps = || self.0.iter().filter(|(stream, _)| stream.kind != Kind::Node);
        let all = steps().all(|(_, step)| step.at.is_some());
        steps().filter_map(|(_, step)| step.at).min().filter(|_| all)
    }

    pub(crate) fn broken(&self) -> Vec<(Stream, Loss)> {
        let of = |(stream, step): (&Stream, &Step)| step.broken.map(|loss| (stream.clone(), loss));
        self.0.iter().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_that_of_the_stream_that_is_furthest_behind() {
        let (services, slices) = (Stream::all(Kind::Services), Stream::all(Kind::Slices));
        let mut steps = Steps::default();
        let start = Instant::now();
        steps.follow(&services);
        steps.follow(&slices);
        steps.follow(&Stream::all(Kind::Node));
        steps.in_step(&services, start + Duration::from_secs(1));
        assert_eq!(steps.last(), None, "the slices were never in step");
        steps.in_step(&slices, start + Duration::from_secs(3));
        assert_eq!(steps.last(), Some(start + Duration::from_secs(1)));
        steps.lost(&slices, Loss::Silent);
        assert_eq!(steps.broken(), [(slices.clone(), Loss::Silent)]);
        steps.in_step(&slices, start + Duration::from_secs(4));
        assert_eq!(steps.broken(), []);
    }
}
