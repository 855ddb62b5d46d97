//! The plugin `network`: tells `tcp_proxy` behind it where a connection goes, through filter state, before it connects.
//! In: the address that the client dialled, or the configured Service. Out: an endpoint for the cluster of type
//! ORIGINAL_DST, or the fallback's cluster, or the end. Never sees a byte of it.

use std::rc::Rc;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{Action, LogLevel};

use crate::address::Written;
use crate::authority::Wanted;
use crate::configuration::Fallback;
use crate::counts::Count;
use crate::host::{self, Ends, client, log, now, set_filter_state, settle, vm};
use crate::root::Plan;
use crate::vm::{Attempt, Found};

/// What a cluster of type ORIGINAL_DST takes for the address that was dialled.
const ENDPOINT: &str = "envoy.network.transport_socket.original_dst_address";
/// What `tcp_proxy` takes for its cluster.
const CLUSTER: &str = "envoy.tcp_proxy.cluster";

/// One connection.
pub(crate) struct Connection {
    plan: Rc<Plan>,
    attempt: Option<Attempt>,
    is_counted: bool,
}

/// Where it goes.
#[allow(clippy::large_enum_variant, reason = "one lives for one call; a box would be an allocation each")]
enum Way {
    Endpoint(Attempt),
    Fallback,
    Nowhere,
}

impl Connection {
    pub(crate) fn new(plan: Rc<Plan>) -> Self {
        Self { plan, attempt: None, is_counted: false }
    }

    /// It was made.
    pub(crate) fn begin(&mut self) -> Action {
        vm(|vm| vm.counts.add(Count::ConnectionsOpened));
        self.is_counted = true;
        let goes = match (Self::find(&self.plan), &self.plan.configuration.fallback) {
            (Way::Endpoint(attempt), _) => {
                let [endpoint, ..] = attempt.endpoints();
                self.attempt = Some(attempt);
                endpoint.is_some_and(|endpoint| set_filter_state(ENDPOINT, Written::new(endpoint).bytes()))
            }
            (Way::Fallback, Fallback::Cluster(cluster)) => {
                vm(|vm| vm.counts.add(Count::ConnectionsPassed));
                set_filter_state(CLUSTER, cluster.as_bytes())
            }
            _ => false,
        };
        if goes {
            return Action::Continue;
        }
        vm(|vm| vm.counts.add(Count::ConnectionsUnserved));
        log(LogLevel::Debug, "remora: no endpoint can serve a connection, it is closed");
        let _ = hostcalls::close_downstream();
        Action::Pause
    }

    /// It ended.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.is_counted) {
            vm(|vm| vm.counts.add(Count::ConnectionsClosed));
        }
        if let Some(attempt) = self.attempt.take() {
            settle(attempt, Ends::Connection);
        }
    }

    fn find(plan: &Plan) -> Way {
        let found = match &plan.wanted {
            Some(wanted) => {
                vm(|vm| vm.find_known(&mut plan.known.borrow_mut(), b"", || Some(wanted.clone())))
            }
            None => host::address(&["destination", "address"])
                .map_or(Found::Unknown, |dialled| vm(|vm| vm.find(&Wanted::Address(dialled)))),
        };
        let Found::Port(path, port) = found else { return Way::Fallback };
        let Some(client) = client(&port, path) else { return Way::Nowhere };
        let now = now();
        vm(|vm| vm.choose(&port, path, client, 1, plan.configuration.connect_timeout, now))
            .map_or(Way::Nowhere, Way::Endpoint)
    }
}
