//! Ten thousand readers, on one thread.
//!
//! In: the hub's address, and when each change was told. Out: how many have a snapshot, and what changes took to reach
//! them. Each has a connection and a decoder of its own, as a sidecar has, but no table; what is no frame, or does not
//! follow the one before, ends the bench.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use watcher::feed::{Decoder, PROTOCOL, Splitter, Subscription, framed};
use watcher::store::{Event, Kind, Piece, Stream};

use crate::origin::{Sent, change_of, name};
use crate::{EACH, FEED, READERS, SERVICES};

/// The pauses of a reader that finds no hub, as a sidecar makes them.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(10);

/// Owning one means that they read, until the process ends.
pub(crate) struct Readers(Arc<Shared>);

/// What was seen since the last look.
#[derive(Default)]
pub(crate) struct Seen {
    /// From telling the hub to a reader's knowing.
    pub(crate) times: Vec<Duration>,
    /// Bytes of the messages that had a change.
    pub(crate) bytes: usize,
    /// The most for one change.
    pub(crate) most: usize,
}

#[derive(Default)]
struct Shared {
    /// Complete snapshots, by how many a reader had before.
    synced: [AtomicUsize; 8],
    frames: AtomicUsize,
    known: AtomicUsize,
    seen: Mutex<Seen>,
    sent: Sent,
}

impl Readers {
    pub(crate) fn start(sent: Sent) -> Self {
        let shared = Arc::new(Shared { sent, ..Shared::default() });
        let reading = Arc::clone(&shared);
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                for number in 0..READERS {
                    tokio::spawn(Reader::new(number, Arc::clone(&reading)).run());
                }
                std::future::pending::<()>().await;
            });
        });
        Self(shared)
    }

    /// How many have had so many snapshots, each from another hub.
    pub(crate) fn synced(&self, round: usize) -> usize {
        self.0.synced[round - 1].load(Relaxed)
    }

    /// Frames that came, whatever they had.
    pub(crate) fn frames(&self) -> usize {
        self.0.frames.load(Relaxed)
    }

    /// Changes that came, each counted for each who knows it.
    pub(crate) fn known(&self) -> usize {
        self.0.known.load(Relaxed)
    }

    /// What was seen since the last time.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut self.0.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Reader {
    number: usize,
    /// What it subscribes to, as a message.
    request: Vec<u8>,
    shared: Arc<Shared>,
    /// Snapshots that it had.
    rounds: usize,
}

impl Reader {
    fn new(number: usize, shared: Arc<Shared>) -> Self {
        let services = (0..EACH).map(|n| name((number + n * 199) % SERVICES));
        let request = framed(&Subscription::services(services).encode());
        Self { number, request, shared, rounds: 0 }
    }

    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let rounds = self.rounds;
            // However it ended.
            let _ = self.read().await;
            failures = if self.rounds > rounds { 0 } else { failures + 1 };
            let longest = PAUSE.saturating_mul(1 << failures.min(16)).min(PAUSE_LONGEST);
            let share = (self.number * 7_919 + failures * 104_729) % 1_000;
            tokio::time::sleep(longest / 2 + longest / 2 * u32::try_from(share).expect("small") / 1_000)
                .await;
        }
    }

    /// One stream, to its end.
    async fn read(&mut self) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(FEED).await?;
        let head = format!(
            "GET /v1/feed HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await?);
        }
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        stream.write_all(&self.request).await?;
        let mut decoder = Decoder::new(vec![Stream::all(Kind::Services), Stream::all(Kind::Slices)]).lean();
        let mut splitter = Splitter::of_messages();
        // How many bytes came since the last frame.
        let mut bytes = 0;
        let mut is_synced = false;
        loop {
            stream.readable().await?;
            // Not kept while nothing comes.
            let mut part = [0; 16 << 10];
            let count = match stream.try_read(&mut part) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            bytes += count;
            splitter.push(&part[..count]);
            while let Some(frame) = splitter.frame().expect("a stream of frames") {
                let mut changes = Vec::new();
                let progress = decoder.frame(frame, &mut |event| {
                    let Event::Patched { pieces, .. } = event else { return };
                    changes.extend(pieces.into_iter().filter_map(|piece| match piece {
                        Piece::New(fact) => change_of(fact.ip),
                        Piece::Kept { .. } => None,
                    }));
                });
                let progress = progress.expect("a frame that follows the one before");
                self.shared.frames.fetch_add(1, Relaxed);
                if progress.complete && !is_synced {
                    is_synced = true;
                    self.shared.synced[self.rounds].fetch_add(1, Relaxed);
                    self.rounds += 1;
                } else if !changes.is_empty() {
                    self.note(&changes, bytes);
                }
                bytes = 0;
            }
        }
    }

    fn note(&self, changes: &[usize], bytes: usize) {
        let now = Instant::now();
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = self.shared.sent.lock().unwrap_or_else(PoisonError::into_inner);
        seen.times.extend(changes.iter().filter_map(|change| Some(now - *sent.get(*change)?)));
        seen.bytes += bytes;
        seen.most = seen.most.max(bytes / changes.len());
        self.shared.known.fetch_add(changes.len(), Relaxed);
    }
}
