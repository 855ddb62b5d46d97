//! The Service ports of a listener whose Service has no address, and so no place in a table: a headless Service, an
//! external name. In: what the control plane found out. Out: ports to pick from, as a table's. Never finds out anything.
//!
//! A table says first whether it has a listener's port, so that Services with an address never come here. A connection
//! that finds none waits until the control plane has seen that same table: a Service that changes its type is never
//! between two chairs.

use std::sync::Arc;

use selection::{Family, Millis, ServicePort, Table};
use tokio::sync::watch;

use super::Listen;

/// Where a listener finds ports that no table has.
#[derive(Clone, Debug, Default)]
pub struct StandIn(Option<watch::Receiver<Found>>);

/// What stands in at one moment.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The version of the last table that was looked at.
    pub table: u64,
    /// It is still being found out; who connects waits.
    pub is_pending: bool,
    /// One of each family: of a name, both are tried in turn. None: nobody can serve.
    pub ports: Arc<[Arc<ServicePort>]>,
}

impl StandIn {
    /// One that is told by the sender. [`StandIn::default`] never stands in.
    pub fn new() -> (watch::Sender<Found>, Self) {
        let (tell, told) = watch::channel(Found::default());
        (tell, Self(Some(told)))
    }

    /// The ports behind `listen`: the table's, or what stands in.
    pub fn ports(&self, listen: &Listen, table: &Table) -> Arc<[Arc<ServicePort>]> {
        match table.port(&listen.service, &listen.port, Family::of(&listen.address.ip())) {
            Some(port) => [Arc::clone(port)].into(),
            None => self.found(),
        }
    }

    /// What stands in.
    pub(super) fn found(&self) -> Arc<[Arc<ServicePort>]> {
        self.0.as_ref().map(|told| Arc::clone(&told.borrow().ports)).unwrap_or_default()
    }

    /// Returns once it is known what stands in, as of table number `version`.
    pub(super) async fn settles(&self, version: u64) {
        let Some(told) = &self.0 else { return };
        // Fails if nobody finds out any more; what was found last serves on.
        let _ = told.clone().wait_for(|found| found.table >= version && !found.is_pending).await;
    }
}

/// `ports` in the order in which a connection that has made `tries` tries takes them: in the manner of RFC 8305, IPv6
/// first, then the families in turn. A family of which everything is put aside waits.
pub(super) fn in_turn(
    ports: &[Arc<ServicePort>],
    tries: usize,
    now: Millis,
) -> impl Iterator<Item = &Arc<ServicePort>> {
    let is_aside = |port: &ServicePort| port.endpoints.iter().all(|e| e.tally.aside_until() > now);
    let mut order: Vec<_> = ports.iter().collect();
    order.sort_by_key(|port| (is_aside(port), port.id.family == Family::V4));
    if !order.is_empty() {
        let first = tries % order.len();
        order.rotate_left(first);
    }
    order.into_iter()
}
