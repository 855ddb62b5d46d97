//! The plugin `network`: tells `tcp_proxy` behind it where a connection goes, through filter state, before it connects.
//! In: the address that the client dialled, or the configured Service. Out: an endpoint for the cluster of type
//! ORIGINAL_DST, or the fallback's cluster, or the end. Never sees a byte of it.

use std::rc::Rc;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, StreamContext};
use proxy_wasm::types::{Action, LogLevel};

use crate::authority::Wanted;
use crate::configuration::Fallback;
use crate::counts::Count;
use crate::host::{address, log, now, set_filter_state, settle, vm};
use crate::root::Plan;
use crate::vm::{Attempt, Found};

/// What a cluster of type ORIGINAL_DST takes for the address that was dialled.
const ENDPOINT: &str = "envoy.network.transport_socket.original_dst_address";
/// What `tcp_proxy` takes for its cluster.
const CLUSTER: &str = "envoy.tcp_proxy.cluster";

/// One connection.
pub(crate) struct Connection {
    plan: Option<Rc<Plan>>,
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
    pub(crate) fn new(plan: Option<Rc<Plan>>) -> Self {
        Self { plan, attempt: None, is_counted: false }
    }

    fn find(plan: &Plan) -> Way {
        let found = match &plan.wanted {
            Some(wanted) => vm(|vm| vm.find(wanted)),
            None => address(&["destination", "address"])
                .map_or(Found::Unknown, |dialled| vm(|vm| vm.find(&Wanted::Address(dialled)))),
        };
        let Found::Port(path, port) = found else { return Way::Fallback };
        let Some(client) = address(&["source", "address"]) else { return Way::Nowhere };
        let now = now();
        vm(|vm| vm.choose(&port, path, client, 1, plan.configuration.connect_timeout, now))
            .map_or(Way::Nowhere, Way::Endpoint)
    }
}

impl Context for Connection {}

impl StreamContext for Connection {
    fn on_new_connection(&mut self) -> Action {
        vm(|vm| vm.counts.add(Count::ConnectionsOpened));
        self.is_counted = true;
        let way = self.plan.as_deref().map_or(Way::Nowhere, Self::find);
        let goes = match (way, self.plan.as_deref().map(|plan| &plan.configuration.fallback)) {
            (Way::Endpoint(attempt), _) => {
                let [endpoint, ..] = attempt.endpoints();
                self.attempt = Some(attempt);
                endpoint.is_some_and(|endpoint| set_filter_state(ENDPOINT, &endpoint.to_string()))
            }
            (Way::Fallback, Some(Fallback::Cluster(cluster))) => {
                vm(|vm| vm.counts.add(Count::ConnectionsPassed));
                set_filter_state(CLUSTER, cluster)
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

    fn on_log(&mut self) {
        if std::mem::take(&mut self.is_counted) {
            vm(|vm| vm.counts.add(Count::ConnectionsClosed));
        }
        if let Some(attempt) = self.attempt.take() {
            settle(attempt, false);
        }
    }
}
