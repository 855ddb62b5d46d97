//! Asks nodes whether connections may go to them. In: places. Out: yes or no, once it is certain. Never waits for one node
//! with another.
//!
//! ```text
//!             200 ┌───────────────┐ no answer in time, or another
//!      healthy ◀──┤ once a second ├──▶ asked again soon ──▶ the second time: unhealthy
//!                 └───────────────┘
//! ```

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// A node is asked this often.
const EVERY: Duration = Duration::from_secs(1);
/// An answer takes no longer; with [`AGAIN`] and a second failure, a node that has died is left within 3 s.
const ANSWER: Duration = Duration::from_millis(700);
/// After a failure it is asked again after this time.
const AGAIN: Duration = Duration::from_millis(200);
/// So many failures put a node out.
const FAILURES: u32 = 2;

/// The places that are asked. Dropping it ends that.
pub(super) struct Probes {
    asked: HashMap<SocketAddr, AbortHandle>,
    answers: mpsc::Sender<(SocketAddr, bool)>,
}

impl Probes {
    pub(super) fn new(answers: mpsc::Sender<(SocketAddr, bool)>) -> Self {
        Self { asked: HashMap::new(), answers }
    }

    /// Asks these from here on, and no others.
    pub(super) fn follow(&mut self, places: &BTreeSet<SocketAddr>) {
        self.asked.retain(|place, task| {
            let is_wanted = places.contains(place);
            if !is_wanted {
                task.abort();
            }
            is_wanted
        });
        for place in places {
            let answers = self.answers.clone();
            self.asked.entry(*place).or_insert_with(|| tokio::spawn(ask(*place, answers)).abort_handle());
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.asked.values().for_each(AbortHandle::abort);
    }
}

/// Asks one place for ever; tells each change.
async fn ask(place: SocketAddr, answers: mpsc::Sender<(SocketAddr, bool)>) {
    let mut told = None;
    let mut failures = 0;
    loop {
        let is_healthy = matches!(timeout(ANSWER, once(place)).await, Ok(Some(StatusCode::OK)));
        failures = if is_healthy { 0 } else { failures + 1 };
        let is_certain = is_healthy || failures >= FAILURES;
        if is_certain && told != Some(is_healthy) {
            told = Some(is_healthy);
            if answers.send((place, is_healthy)).await.is_err() {
                return;
            }
        }
        sleep(if is_certain { EVERY } else { AGAIN }).await;
    }
}

async fn once(place: SocketAddr) -> Option<StatusCode> {
    let stream = TcpStream::connect(place).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::get("/healthz").header("host", place.to_string()).header("connection", "close");
    let answer = sender.send_request(request.body(Empty::<Bytes>::new()).ok()?);
    let mut status = pin!(async { answer.await.ok().map(|answer| answer.status()) });
    // The connection is moved along as long as the answer is waited for; one that has ended may have brought it.
    tokio::select! {
        status = &mut status => status,
        _ = connection => status.await,
    }
}
