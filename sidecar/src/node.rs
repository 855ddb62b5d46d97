//! `remora node`: the node ports of every Service at this node's addresses, and the health checks that load balancers
//! ask. In: tables. Out: listeners that come and go with them. Never moves a byte: the data threads do.
//!
//! ```text
//!  tables ──what differs──▶ Ports ──open, guard, close──▶ data threads
//!                       └─▶ Checks ──answers 200 or 503──▶ load balancers
//! ```
//! A port that nobody can serve has no listener, so that the system refuses whoever dials it.

mod addresses;
mod checks;
mod ports;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use selection::Table;
use tokio::time::sleep;
use watcher::Tables;
use watcher::kubernetes::Notices;

pub use addresses::{Error, Which};

use crate::config::NodePorts;
use crate::health::Draining;
use crate::tcp::Opener;
use checks::Checks;
use ports::Ports;

/// A port that another program has is asked for again this often.
const RETRY: Duration = Duration::from_secs(5);
/// A listener of ours that nobody needs any more has closed by then, on a busy machine.
const CLOSING: Duration = Duration::from_secs(1);

/// What a node's ports are doing.
#[derive(Debug, Default)]
pub struct Counts {
    /// Listeners, a port in a family at one address each.
    pub open: AtomicUsize,
    /// Those of them that answer only clients inside of the cluster.
    pub guarded: AtomicUsize,
    /// Listeners that cannot be had; somebody else has the port.
    pub lacking: AtomicUsize,
    /// Health checks that are answered.
    pub checks: AtomicUsize,
    /// Those that cannot be had.
    pub checks_lacking: AtomicUsize,
}

/// A port that somebody has: perhaps a listener of ours that closes, else another program.
#[derive(Clone, Debug)]
struct Lacking {
    since: Instant,
    is_told: bool,
}

impl Default for Lacking {
    fn default() -> Self {
        Self { since: Instant::now(), is_told: false }
    }
}

impl Lacking {
    /// It cannot be had still; whether that is to be told now, which it is once.
    fn is_to_be_told(&mut self) -> bool {
        let is_due = !self.is_told && self.since.elapsed() >= CLOSING;
        self.is_told |= is_due;
        is_due
    }

    /// People know.
    fn is_told(&self) -> bool {
        self.is_told
    }

    /// When to ask again.
    fn retry_after(&self) -> Duration {
        if self.is_told { RETRY } else { CLOSING / 20 }
    }
}

/// Node ports to be served.
#[derive(Debug)]
pub struct Node {
    at: Vec<IpAddr>,
    inside: Arc<[IpNet]>,
    counts: Arc<Counts>,
}

impl Node {
    /// Finds the addresses at which `config` wants node ports.
    ///
    /// # Errors
    /// If this machine has none.
    pub fn new(config: &NodePorts) -> Result<Self, Error> {
        let own = addresses::own()?;
        let primary = if config.node_ips.is_empty() { addresses::primary() } else { config.node_ips.clone() };
        let at = config.at.among(&primary, &own)?;
        let inside = own.into_iter().map(IpNet::from).chain(config.pods.iter().copied()).collect();
        Ok(Self { at, inside, counts: Arc::default() })
    }

    /// Where node ports are served.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.at
    }

    /// What its ports are doing.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Keeps the listeners in step with `tables`, for ever, and tells `notices` what cannot be had.
    pub async fn serve(self, tables: Tables, opener: Opener, draining: Draining, notices: Option<Notices>) {
        let mut ports = Ports::new(self.at.clone(), self.inside, opener, notices.clone());
        let mut checks = Checks::new(self.at, draining, notices);
        let mut known = Arc::new(Table::default());
        loop {
            let retry_after = [ports.retry_after(), checks.retry_after()].into_iter().flatten().min();
            tokio::select! {
                table = tables.reaches(|table| table.version() > known.version()) => {
                    ports.follow(&known, &table).await;
                    checks.follow(&known, &table);
                    known = table;
                }
                () = sleep(retry_after.unwrap_or_default()), if retry_after.is_some() => {
                    ports.retry(&known);
                    checks.retry();
                }
            }
            self.counts.open.store(ports.open(), Relaxed);
            self.counts.guarded.store(ports.guarded(), Relaxed);
            self.counts.lacking.store(ports.lacking(), Relaxed);
            self.counts.checks.store(checks.open(), Relaxed);
            self.counts.checks_lacking.store(checks.lacking(), Relaxed);
        }
    }
}
