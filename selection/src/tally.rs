//! What an instance knows of an endpoint from its own connections: how many are active, and whether it is put
//! aside after failures. Shared by every table that has the endpoint; times are given, never read.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::{Endpoint, Millis};

/// After its first failure an endpoint is put aside for this long; each further failure doubles it.
pub const ASIDE_FIRST: Millis = 1_000;
/// An endpoint is never put aside for longer than this at a time.
pub const ASIDE_LONGEST: Millis = 60_000;

/// The running account of one endpoint. Owning one (through its `Arc`) keeps it alive after the endpoint is
/// gone, so that a connection can still count itself out.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections that are being made or are open.
    active: AtomicU32,
    /// Failed connects in a row.
    failures: AtomicU32,
    /// When the newest of them was counted.
    failed_at: AtomicU64,
    /// Put aside before this time.
    aside_until: AtomicU64,
}

impl Tally {
    /// A connection to the endpoint begins. The caller owes one [`Self::close`].
    pub fn open(&self) {
        self.active.fetch_add(1, Relaxed);
    }

    /// A connection ended, or was never made.
    pub fn close(&self) {
        self.active.fetch_sub(1, Relaxed);
    }

    /// Connections that are being made or are open.
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// Failed connects in a row; 0 once one succeeds.
    pub fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    /// The endpoint is put aside before this time; 0 if it is not.
    pub fn aside_until(&self) -> Millis {
        self.aside_until.load(Relaxed)
    }

    /// A connect begins at `now`. If the endpoint failed before, this one is its trial: until `deadline` the
    /// others keep away, so that an endpoint that swallows packets holds one client, not all.
    pub fn attempt(&self, now: Millis, deadline: Millis) {
        if self.failures() > 0 && self.aside_until() <= now {
            self.aside_until.fetch_max(deadline, Relaxed);
        }
    }

    /// A connect that began at `began` was refused or timed out at `now`: the endpoint is put aside, each time
    /// for longer. Connects that began before the last failure was counted tell nothing new.
    /// Returns whether it counted.
    pub fn failed(&self, began: Millis, now: Millis) -> bool {
        let failures = self.failures();
        if failures > 0 && began <= self.failed_at.load(Relaxed) {
            return false;
        }
        self.failures.store(failures.saturating_add(1), Relaxed);
        self.failed_at.store(now, Relaxed);
        // A shift by 32 is past the longest by far, and loses no bits.
        let aside = (ASIDE_FIRST << failures.min(32)).min(ASIDE_LONGEST);
        self.aside_until.store(now.saturating_add(aside), Relaxed);
        true
    }

    /// A connect succeeded: nothing is held against the endpoint.
    pub fn succeeded(&self) {
        if self.failures() > 0 {
            self.failures.store(0, Relaxed);
            self.aside_until.store(0, Relaxed);
        }
    }
}

/// What a pick asks about an endpoint. Hosts answer from tallies ([`Tallies`]), tests from a slice.
pub trait Health {
    /// Active connections of `endpoint`, which stands at `index` of its port.
    fn load(&self, index: usize, endpoint: &Endpoint) -> u32;
    /// `endpoint` failed and is put aside at `now`. That at most half are put aside is the pick's rule.
    fn aside(&self, index: usize, endpoint: &Endpoint, now: Millis) -> bool;
}

/// [`Health`] as the endpoints' own tallies tell it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tallies;

impl Health for Tallies {
    fn load(&self, _: usize, endpoint: &Endpoint) -> u32 {
        endpoint.tally.active()
    }

    fn aside(&self, _: usize, endpoint: &Endpoint, now: Millis) -> bool {
        now < endpoint.tally.aside_until()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_goes_on_failing_is_put_aside_for_a_doubling_while_up_to_a_minute() {
        let tally = Tally::default();
        let mut now = 10_000;
        for expected in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            assert!(tally.failed(now, now + 1));
            assert_eq!(tally.aside_until(), now + 1 + expected);
            now = tally.aside_until();
        }
        for _ in 0..100 {
            now += 100_000;
            assert!(tally.failed(now, now), "many failures stay countable");
            assert_eq!(tally.aside_until(), now + ASIDE_LONGEST);
        }
        assert!(tally.failed(Millis::MAX - 1, Millis::MAX), "the end of time is only a number");
        assert_eq!(tally.aside_until(), Millis::MAX);
        tally.succeeded();
        assert_eq!((tally.aside_until(), tally.failures()), (0, 0));
    }

    #[test]
    fn connects_that_began_before_the_last_failure_do_not_count_again() {
        let tally = Tally::default();
        assert!(tally.failed(100, 200));
        assert!(!tally.failed(150, 201));
        assert!(!tally.failed(200, 300));
        assert_eq!(tally.aside_until(), 1_200);
        assert!(tally.failed(1_200, 1_300));
        assert_eq!(tally.aside_until(), 3_300);
    }

    #[test]
    fn the_trial_of_a_failed_endpoint_keeps_others_away_until_it_is_decided() {
        let tally = Tally::default();
        tally.attempt(0, 5_000);
        assert_eq!(tally.aside_until(), 0, "a sound endpoint needs no trial");
        tally.failed(0, 0);
        tally.attempt(1_000, 6_000);
        assert_eq!(tally.aside_until(), 6_000);
        tally.succeeded();
        assert_eq!(tally.aside_until(), 0);
    }
}
