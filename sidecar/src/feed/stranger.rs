//! Connections on which nobody has shown a good token yet. In: one, and when it has. Out: when it is let go. Never has
//! more of them than a few, so that they neither take the readers' places nor cost what readers may cost; and while that
//! many are here, one that does nothing makes room for others soon.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};

/// At once; more wait in the kernel. Each has the buffers of a handshake and a server of HTTP, for some milliseconds if it
/// is a reader.
const AT_ONCE: usize = 256;
/// One is let go after this time.
const SHOWS_WITHIN: Duration = Duration::from_secs(30);
/// After this time already while there is no place for others.
const MAKES_ROOM: Duration = Duration::from_secs(2);

/// The places of strangers.
#[derive(Clone, Debug)]
pub(super) struct Strangers(Arc<Semaphore>);

/// A connection that has such a place until it is known.
#[derive(Debug)]
pub(super) struct Stranger {
    came: Instant,
    all: Strangers,
    /// None as soon as it is known.
    place: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Default for Strangers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Strangers {
    /// A place for the next one, once there is one.
    pub(super) async fn place(&self) -> Stranger {
        // Nobody closes it.
        let place = Arc::clone(&self.0).acquire_owned().await.ok();
        Stranger { came: Instant::now(), all: self.clone(), place: Mutex::new(place) }
    }

    fn are_crowded(&self) -> bool {
        self.0.available_permits() == 0
    }
}

impl Stranger {
    /// It takes its time from here on.
    pub(super) fn arrives(&mut self) {
        self.came = Instant::now();
    }

    /// It has shown who it is, and leaves its place to others.
    pub(super) fn is_known(&self) {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Returns when it has been here for too long without showing who it is.
    pub(super) async fn outstays(&self) {
        loop {
            sleep(MAKES_ROOM).await;
            if self.place.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
                return std::future::pending().await;
            }
            if self.came.elapsed() >= SHOWS_WITHIN || self.all.are_crowded() {
                return;
            }
        }
    }
}
