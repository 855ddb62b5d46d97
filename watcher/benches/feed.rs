//! What the feed costs a reader such as an Envoy's worker: each frame of a snapshot of a large cluster, the same again
//! after a server started anew, one endpoint's change, memory. Prints each figure beside its bound, and fails where a
//! bound is not kept. The unit is CPU time of one thread.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench fails by panicking")]
#![allow(dead_code, reason = "the other bench needs more of the cluster")]

mod cluster;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use cluster::{ALLOCATED, LARGE, SLICE, SMALL, cpu, service, slice};
use selection::Here;
use watcher::feed::{Changes, Mirror, Subscription, snapshot};
use watcher::store::{Event, Kind, Store, Stream};

const SERVICES: usize = 10_000;
/// Changes that are timed; the median counts.
const CHANGES: usize = 400;

fn main() {
    let here = || Here { node: Some("node-1".into()), zone: Some("zone-1".into()) };
    let mut store = Store::new(here());
    let streams = [Stream::all(Kind::Services), Stream::all(Kind::Slices)];
    streams.iter().for_each(|stream| store.apply(Event::ListBegins(stream.clone())));
    for i in 0..SERVICES {
        store.apply(service(i));
        store.apply(slice(i, 0, SMALL, None));
    }
    streams.into_iter().for_each(|stream| store.apply(Event::ListEnds(stream)));
    store.record();
    let begun = cpu();
    let frames = snapshot(&store, &Subscription::All, 1, 1, None);
    let encoded = cpu() - begun;
    let bytes: usize = frames.iter().map(Vec::len).sum();

    let before = ALLOCATED.load(Relaxed);
    let mut mirror = Mirror::new(here());
    let first = told(&mut mirror, &frames);
    let memory = ALLOCATED.load(Relaxed) - before;
    assert_eq!(mirror.table().all().count(), SERVICES);
    let again = told(&mut mirror, &snapshot(&store, &Subscription::All, 2, 1, None));

    // A Service of thousands of endpoints, and those of others, change one endpoint after the other.
    let large = SERVICES * 100;
    store.apply(service(large));
    (0..LARGE / SLICE).for_each(|n| store.apply(slice(large, n, SLICE, None)));
    let mut version = 2;
    let frames = Changes::take(&mut store).encode(&Subscription::All, 1, version, None);
    told(&mut mirror, &frames);
    let mut change = |event: Event| {
        store.apply(event);
        version += 1;
        let frames =
            Changes::take(&mut store).encode(&Subscription::All, version - 1, version, Some(Duration::ZERO));
        assert_eq!(frames.len(), 1);
        (frames[0].len(), told(&mut mirror, &frames)[0])
    };
    let small: Vec<_> =
        (0..CHANGES).map(|n| change(slice(n * 7919 % SERVICES, 0, SMALL, Some(n % SMALL)))).collect();
    let large: Vec<_> =
        (0..CHANGES).map(|n| change(slice(large, n % (LARGE / SLICE), SLICE, Some(n % SLICE)))).collect();

    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    let at = |durations: &[Duration], part: usize| {
        let mut sorted = durations.to_vec();
        sorted.sort_unstable();
        micros(sorted[(sorted.len() * part / 100).min(sorted.len() - 1)])
    };
    let of = |changes: &[(usize, Duration)]| changes.iter().map(|(_, took)| *took).collect::<Vec<_>>();
    println!(
        "feed of {SERVICES} Services, {} endpoints: {} frames, {:.1} MB, {:.0} bytes an endpoint; written in {:.0} ms",
        SERVICES * SMALL,
        first.len(),
        bytes as f64 / 1e6,
        bytes as f64 / (SERVICES * SMALL) as f64,
        micros(encoded) / 1e3,
    );
    println!("{:<58}{:>14}{:>10}", "", "", "bound");
    let rows = [
        ("a frame of the first snapshot, µs, median", at(&first, 50), 1_000.0),
        ("  90th percentile, µs", at(&first, 90), 1_000.0),
        ("  the longest, µs", at(&first, 100), f64::INFINITY),
        ("  the last, which makes the table, µs", micros(first[first.len() - 1]), f64::INFINITY),
        ("a frame of a snapshot that changes nothing, µs, median", at(&again, 50), 1_000.0),
        ("  the longest, µs", at(&again, 100), f64::INFINITY),
        ("one endpoint of 10 changes, bytes", small.iter().map(|c| c.0).max().unwrap_or(0) as f64, 200.0),
        ("  µs, median", at(&of(&small), 50), 100.0),
        ("one endpoint of 5,000 changes, bytes", large.iter().map(|c| c.0).max().unwrap_or(0) as f64, 200.0),
        ("  µs, median", at(&of(&large), 50), 1_000.0),
        ("allocated by the mirror, MB", memory as f64 / 1e6, 60.0),
    ];
    let mut is_kept = true;
    for (what, figure, bound) in rows {
        let is_over = figure > bound;
        is_kept &= !is_over;
        let shown = if bound.is_finite() { format!("{bound}") } else { String::new() };
        println!("{what:<58}{figure:>14.1}{shown:>10}{}", if is_over { "  NOT KEPT" } else { "" });
    }
    if !is_kept {
        std::process::exit(1);
    }
}

/// The time that each frame takes.
fn told(mirror: &mut Mirror, frames: &[Vec<u8>]) -> Vec<Duration> {
    let mut durations = Vec::with_capacity(frames.len());
    for frame in frames {
        let begun = cpu();
        mirror.frame(frame).expect("it is a frame");
        durations.push(cpu() - begun);
    }
    durations
}
