//! The account of one connection: counted from when it was taken to when it ended, whatever ends it, and told
//! in one line if that is wished. In: what happens to the connection. Out: counts, a log line. Never moves a
//! byte.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use selection::Tally;

use super::door::{Door, Ledger, Wanted};
use super::relay;
use super::worker::Worker;
use crate::traffic::Failure;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was relayed.
    Relayed(relay::End),
    /// The client left before an endpoint had been reached.
    ClientGone,
    /// Nobody can serve it.
    Refused,
    /// Nobody may serve it.
    Dropped,
    /// No table came in time.
    Unsynced,
    /// No endpoint that was tried could be reached; the last failure.
    Failed(Failure),
    /// It was still open when the data plane stopped.
    Stopped,
}

impl End {
    /// The end in one word, for the log. Stable.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Relayed(relay::End::Closed) => "closed",
            Self::Relayed(relay::End::ClientReset) => "client-reset",
            Self::Relayed(relay::End::EndpointReset) => "endpoint-reset",
            Self::ClientGone => "client-gone",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
            Self::Unsynced => "unsynced",
            Self::Failed(failure) => failure.label(),
            Self::Stopped => "stopped",
        }
    }
}

/// One connection's account. Dropping it closes it.
pub(super) struct Account {
    pub(super) worker: Rc<Worker>,
    pub(super) door: Rc<Door>,
    /// Where it is counted.
    pub(super) ledger: Rc<Ledger>,
    /// Where it is to go.
    pub(super) wanted: Wanted,
    /// Who connected.
    pub(super) client: SocketAddr,
    /// The endpoint that it was last sent to, and its place in that endpoint's tally.
    pub(super) endpoint: Option<(SocketAddr, Place)>,
    /// Endpoints tried.
    pub(super) attempts: u8,
    /// How it ended; [`End::Stopped`] until it has.
    pub(super) end: End,
    pub(super) received: u64,
    pub(super) sent: u64,
    since: Instant,
}

impl Account {
    /// Opens the account of a connection that `client` made at `door`, to get to `wanted`.
    pub(super) fn open(worker: &Rc<Worker>, door: &Rc<Door>, client: SocketAddr, wanted: Wanted) -> Self {
        let ledger = door.ledger(wanted, worker.reader.borrow_mut().table());
        ledger.counters.opened();
        worker.came();
        Self {
            worker: Rc::clone(worker),
            door: Rc::clone(door),
            ledger,
            wanted,
            client,
            endpoint: None,
            attempts: 0,
            end: End::Stopped,
            received: 0,
            sent: 0,
            since: Instant::now(),
        }
    }

    fn tell(&self) {
        let label = &self.ledger.label;
        tracing::info!(
            target: "access",
            service = label.service(),
            port = %label.port,
            client = %self.client,
            endpoint = self.endpoint.as_ref().map(|(address, _)| tracing::field::display(*address)),
            received = self.received,
            sent = self.sent,
            seconds = self.since.elapsed().as_secs_f64(),
            attempts = self.attempts,
            end = self.end.label(),
        );
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let counters = &self.ledger.counters;
        match self.end {
            End::Refused | End::Failed(_) => counters.refused(),
            End::Dropped => counters.dropped(),
            End::Unsynced => counters.unsynced(),
            End::Relayed(_) | End::ClientGone | End::Stopped => {}
        }
        if self.worker.settings.log_connections {
            self.tell();
        }
        // Who sees the count finds the place free.
        self.worker.left();
        counters.closed();
    }
}

/// A connection's place in the tally of its endpoint, given up when dropped. Keeps the tally alive, so that a
/// connection counts itself out also when no table has the endpoint any more.
#[derive(Debug)]
pub(super) struct Place(pub(super) Arc<Tally>);

impl Place {
    /// Counts a connection in.
    pub(super) fn take(tally: &Arc<Tally>) -> Self {
        tally.open();
        Self(Arc::clone(tally))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.close();
    }
}
