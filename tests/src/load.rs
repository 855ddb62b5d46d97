//! Clients that never retry: new connections at a steady rate, each checked to its end.
//!
//! In: an address and a rate. Out: for every connection who answered it, or how it failed. A client
//! waits to be greeted (the server speaks first), sends a byte, gets it back, ends its side and reads
//! the other's end. It never tries again, and never takes a failure for an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{SOON, wait_until};

/// A connection that takes longer from first to last has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The rate is kept in portions, one a tick.
const TICK: Duration = Duration::from_millis(10);

/// Owning one means that connections are being made, from a thread of its own.
pub struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
    thread: Option<JoinHandle<Report>>,
}

/// How far the connections are, each a count since the start.
#[derive(Default)]
struct Seen {
    begun: AtomicU64,
    /// Ended, in whatever order.
    done: AtomicU64,
    /// So many of the first have all ended.
    through: AtomicU64,
}

/// What became of the connections.
#[derive(Debug, Default)]
pub struct Report {
    /// Answered connections, by who answered.
    pub answered: BTreeMap<String, u64>,
    /// Failed connections.
    pub failures: Vec<Failure>,
    /// How long connections were made.
    pub lasted: Duration,
    /// Time from first to last of each answered connection, sorted.
    pub durations: Vec<Duration>,
}

/// A connection that was not answered as it should be.
#[derive(Debug)]
pub struct Failure {
    /// When it began.
    pub begun: Instant,
    /// When it began since the start, and why it failed.
    pub why: String,
}

impl Load {
    /// Starts making `rate` connections a second to `address`.
    pub fn start(address: SocketAddr, rate: u32) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::<Seen>::default();
        let (stop_, seen_) = (stop.clone(), seen.clone());
        let thread = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(drive(address, rate, &stop_, &seen_))
        });
        Load { stop, seen, thread: Some(thread) }
    }

    /// How many connections have ended so far, well or not.
    pub fn done(&self) -> u64 {
        self.seen.done.load(Ordering::Relaxed)
    }

    /// How many connections have begun so far.
    pub fn begun(&self) -> u64 {
        self.seen.begun.load(Ordering::Relaxed)
    }

    /// Waits until all connections that are open have ended; others begin meanwhile.
    pub async fn wait_through(&self) {
        let begun = self.begun();
        wait_until(SOON, "the open connections end", async || {
            match self.seen.through.load(Ordering::Relaxed) {
                through if through >= begun => Ok(()),
                through => Err(format!("{through} of {begun}")),
            }
        })
        .await;
    }

    /// Makes no more connections, waits for the open ones, and tells.
    pub fn stop(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("stopped once").join().expect("the clients' thread")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Report {
    /// How many connections were answered.
    pub fn total(&self) -> u64 {
        self.answered.values().sum()
    }

    /// Connections a second, over the whole time.
    pub fn rate(&self) -> f64 {
        (self.total() + self.failures.len() as u64) as f64 / self.lasted.as_secs_f64()
    }

    /// The time within which this share of the answered connections was done.
    pub fn within(&self, share: f64) -> Duration {
        let last = self.durations.len().saturating_sub(1);
        self.durations.get((last as f64 * share) as usize).copied().unwrap_or_default()
    }

    /// Panics if a connection failed, with the first few reasons.
    pub fn assert_none_failed(&self) {
        self.assert_none(|_| true);
    }

    /// Panics if one failed that began after this.
    pub fn assert_none_failed_after(&self, instant: Instant) {
        self.assert_none(|failure| failure.begun > instant);
    }

    fn assert_none(&self, counts: impl Fn(&Failure) -> bool) {
        let failed: Vec<_> =
            self.failures.iter().filter(|failure| counts(failure)).map(|failure| &*failure.why).collect();
        let few = &failed[..failed.len().min(5)];
        assert!(
            few.is_empty(),
            "{} connections failed ({} did not), the first:\n  {}",
            failed.len(),
            self.total(),
            few.join("\n  ")
        );
    }
}

/// One connection from first to last: the name of who answered.
pub async fn connect(address: SocketAddr) -> io::Result<String> {
    match timeout(PATIENCE, converse(address)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("not done after {PATIENCE:?}"))),
    }
}

async fn drive(address: SocketAddr, rate: u32, stop: &AtomicBool, seen: &Seen) -> Report {
    let started = Instant::now();
    let mut report = Report::default();
    let mut open = JoinSet::new();
    let mut ticks = interval(TICK);
    // Late ticks are made up for: the rate is one over the whole time.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut last, mut numbers) = (0, BTreeSet::new());
    let mut note = |(begun, ended): (Instant, io::Result<String>)| {
        seen.done.fetch_add(1, Ordering::Relaxed);
        match ended {
            Ok(name) => {
                *report.answered.entry(name).or_default() += 1;
                report.durations.push(begun.elapsed());
            }
            Err(error) => {
                let why = format!("{:.3} s: {error}", (begun - started).as_secs_f64());
                report.failures.push(Failure { begun, why });
            }
        }
    };
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while last < due {
            last += 1;
            let number = last;
            numbers.insert(number);
            seen.begun.store(number, Ordering::Relaxed);
            open.spawn(async move { (number, (Instant::now(), connect(address).await)) });
        }
        while let Some(ended) = open.try_join_next() {
            let (number, ended) = ended.expect("a client does not panic");
            numbers.remove(&number);
            note(ended);
        }
        let through = numbers.first().map_or(last, |oldest| oldest - 1);
        seen.through.store(through, Ordering::Relaxed);
    }
    let lasted = started.elapsed();
    while let Some(ended) = open.join_next().await {
        note(ended.expect("a client does not panic").1);
    }
    report.lasted = lasted;
    report.durations.sort();
    report
}

async fn converse(address: SocketAddr) -> io::Result<String> {
    let told =
        |step: &'static str| move |error: io::Error| io::Error::new(error.kind(), format!("{step}: {error}"));
    let mut stream = BufReader::new(TcpStream::connect(address).await.map_err(told("connect"))?);
    let mut name = String::new();
    stream.read_line(&mut name).await.map_err(told("read the greeting"))?;
    if !name.ends_with('\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "ended before the greeting"));
    }
    stream.write_all(b"!").await.map_err(told("send"))?;
    let echo = stream.read_u8().await.map_err(told("read the echo"))?;
    stream.shutdown().await.map_err(told("end"))?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.map_err(told("read the end"))?;
    if echo != b'!' || !rest.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("echoed {echo} and {rest:?}")));
    }
    Ok(name.trim_end().to_owned())
}
