//! Waiting for a condition, which is the only kind of waiting that the tests know.
//!
//! In: a deadline, what is waited for, and how to look. Out: what was looked for, or a panic that
//! tells the last state seen. It never returns without the condition.

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
