//! Waiting for a condition, which is the only kind of waiting that the tests know.
//!
//! In: a deadline, what is waited for, and how to look. Out: what was looked for, or a panic that
//! tells the last state seen. It never returns without the condition.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks. Looking costs a request or a process, so not much shorter.
const PAUSE: Duration = Duration::from_millis(25);

/// Looks until `state` gives `Ok`, and returns it; an `Err` describes the state seen so far.
///
/// # Panics
/// When `deadline` has passed, with `what` and the last state seen. A look that hangs counts as one
/// that failed: an API server that was stopped answers nobody.
#[track_caller]
pub fn wait_until<T>(
    deadline: Duration,
    what: &str,
    mut state: impl AsyncFnMut() -> Result<T, String>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        let mut last = String::from("nothing yet");
        loop {
            let Some(left) = deadline.checked_sub(started.elapsed()) else {
                panic!("{caller}: not within {deadline:?}: {what}\n  last state seen: {last}");
            };
            match tokio::time::timeout(left, state()).await {
                Ok(Ok(found)) => return found,
                Ok(Err(seen)) => last = seen,
                Err(_) => last = format!("{last} (and the look after that got no answer)"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A clock that stands still while the machine does, for promises that are times of the kernel's. Owning one means that
/// it runs.
pub struct Calm(Arc<AtomicU64>);

impl Calm {
    /// How fine it is.
    const TICK: Duration = Duration::from_millis(10);
    /// A tick that takes longer was a stop.
    const LATE: Duration = Duration::from_millis(50);

    /// Starts one.
    pub fn start() -> Calm {
        let ran = Arc::<AtomicU64>::default();
        let weak = Arc::downgrade(&ran);
        thread::spawn(move || {
            while let Some(ran) = weak.upgrade() {
                let tick = Instant::now();
                thread::sleep(Calm::TICK);
                let took = tick.elapsed().min(Calm::LATE);
                ran.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
            }
        });
        Calm(ran)
    }

    /// For how long it has run.
    pub fn elapsed(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }
}
