//! Durations counted in fixed buckets. Never computes a quantile: whoever reads the counts does.

use std::time::Duration;

/// Upper bounds of the buckets, in seconds: kube-proxy's of `network_programming_duration_seconds`, with finer
/// ones below. What exceeds the last is in the sum and the count alone.
pub const BOUNDS: [f64; 87] = bounds();

const fn bounds() -> [f64; 87] {
    let below = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5];
    let mut bounds = [0.0; 87];
    let mut at = 0;
    while at < below.len() {
        bounds[at] = below[at];
        at += 1;
    }
    let mut second = 1u16;
    while second <= 300 {
        bounds[at] = second as f64;
        at += 1;
        second += match second {
            ..60 => 1,
            60..115 => 5,
            115 => 5,
            _ => 30,
        };
    }
    assert!(at == bounds.len());
    bounds
}

/// How often something took how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// One count for each of [`BOUNDS`], not cumulative: durations up to it and above the one before.
    pub counts: [u64; BOUNDS.len()],
    /// All durations together.
    pub sum: Duration,
    /// How many durations.
    pub count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BOUNDS.len()], sum: Duration::ZERO, count: 0 }
    }
}

impl Histogram {
    /// Counts `duration` once.
    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some(count) = self.counts.get_mut(BOUNDS.partition_point(|bound| *bound < seconds)) {
            *count += 1;
        }
        self.sum = self.sum.saturating_add(duration);
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_those_of_kube_proxy_with_finer_ones_below() {
        let mut expected = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5];
        expected.extend((1..60).map(f64::from));
        expected.extend((60..=115).step_by(5).map(f64::from));
        expected.extend((120..=300).step_by(30).map(f64::from));
        assert_eq!(BOUNDS[..], expected[..]);
    }

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_reaches_it() {
        let mut histogram = Histogram::default();
        for millis in [0, 1, 2, 250, 251, 300_000, 300_001] {
            histogram.observe(Duration::from_millis(millis));
        }
        let at = |bound: f64| histogram.counts[BOUNDS.iter().position(|b| *b == bound).unwrap()];
        assert_eq!((at(0.001), at(0.0025), at(0.25), at(0.5), at(300.0)), (2, 1, 1, 1, 1));
        assert_eq!(histogram.count, 7);
    }
}
