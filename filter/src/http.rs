//! The plugin `http`: names the endpoints of each request in headers of its own, which a filter behind it takes away
//! again (see `envoy/http.yaml`), or in one header for the clusters of a mesh (see `envoy/istio.yaml`). In: the authority,
//! or the configured Service. Out: the headers, or a 503. Never sees a body.

use std::rc::Rc;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{Action, LogLevel, MapType};
use selection::Path;

use crate::address::Written;
use crate::authority;
use crate::configuration::Fallback;
use crate::counts::Count;
use crate::host::{Ends, client, log, now, settle, vm};
use crate::root::Plan;
use crate::vm::{ATTEMPTS, Attempt, Found, Unserved};

/// The endpoint of the first attempt, of the second, of the third. What a client sends under these names is gone.
const HEADERS: [&str; ATTEMPTS] = ["x-remora-endpoint-1", "x-remora-endpoint-2", "x-remora-endpoint-3"];
/// All of them, for the policy `override_host`: it takes the next one for each attempt.
const LIST: &str = "x-remora-endpoints";

/// One request.
pub(crate) struct Request {
    plan: Rc<Plan>,
    attempt: Option<Attempt>,
    is_counted: bool,
}

/// Where it goes.
#[allow(clippy::large_enum_variant, reason = "one lives for one call; a box would be an allocation each")]
enum Way {
    Endpoints(Attempt),
    /// To the fallback, else it is answered by this.
    Fallback(&'static str),
    Nowhere(&'static str),
}

impl Request {
    pub(crate) fn new(plan: Rc<Plan>) -> Self {
        Self { plan, attempt: None, is_counted: false }
    }

    /// Its headers are there.
    pub(crate) fn begin(&mut self) -> Action {
        vm(|vm| vm.counts.add(Count::RequestsOpened));
        self.is_counted = true;
        let plan = &*self.plan;
        match Self::find(plan) {
            Way::Endpoints(attempt) => {
                set_headers(plan, attempt.endpoints());
                self.attempt = Some(attempt);
                Action::Continue
            }
            Way::Fallback(_) if plan.configuration.fallback == Fallback::Route => {
                vm(|vm| vm.counts.add(Count::RequestsPassed));
                set_headers(plan, [None; ATTEMPTS]);
                Action::Continue
            }
            Way::Fallback(why) | Way::Nowhere(why) => {
                log(LogLevel::Debug, why.trim_end());
                Self::answer(why)
            }
        }
    }

    /// It is over.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.is_counted) {
            vm(|vm| vm.counts.add(Count::RequestsClosed));
        }
        if let Some(attempt) = self.attempt.take() {
            let ends = if self.plan.configuration.override_host { Ends::Proposed } else { Ends::Request };
            settle(attempt, ends);
        }
    }

    fn find(plan: &Plan) -> Way {
        let found = match &plan.wanted {
            Some(wanted) => {
                vm(|vm| vm.find_known(&mut plan.known.borrow_mut(), b"", || Some(wanted.clone())))
            }
            None => Self::authority().map_or(Found::Unknown, |text| {
                let read = || {
                    let (text, configuration) = (std::str::from_utf8(&text).ok()?, &plan.configuration);
                    authority::read(text, &configuration.cluster_domain, configuration.namespace.as_deref())
                };
                vm(|vm| vm.find_known(&mut plan.known.borrow_mut(), &text, read))
            }),
        };
        let (path, port) = match found {
            Found::Port(path, port) => (path, port),
            Found::Unknown => {
                return Way::Fallback("remora: the request is for no Service that is known here\n");
            }
            Found::NoTable => return Way::Fallback("remora: no Service is known yet\n"),
        };
        let Some(client) = client(&port, path) else {
            return Way::Nowhere("remora: the client has no IP address\n");
        };
        let now = now();
        let timeout = plan.configuration.connect_timeout;
        match vm(|vm| vm.choose(&port, path, client, ATTEMPTS, timeout, now)) {
            Ok(attempt) => Way::Endpoints(attempt),
            Err(Unserved::NoEndpoint) => Way::Nowhere("remora: no endpoint of the Service can serve\n"),
            Err(Unserved::Policy) if path == Path::LoadBalancer => {
                Way::Nowhere("remora: no endpoint of the Service may serve this client here\n")
            }
            Err(Unserved::Policy) => Way::Nowhere("remora: no endpoint of the Service may serve here\n"),
        }
    }

    fn authority() -> Option<Vec<u8>> {
        hostcalls::get_map_value_bytes(MapType::HttpRequestHeaders, ":authority").ok().flatten()
    }

    fn answer(body: &str) -> Action {
        vm(|vm| vm.counts.add(Count::RequestsUnserved));
        let _ =
            hostcalls::send_http_response(503, vec![("content-type", "text/plain")], Some(body.as_bytes()));
        Action::Pause
    }
}

/// Writes the headers, those without an endpoint too: whatever a client sent is gone.
fn set_headers(plan: &Plan, endpoints: [Option<std::net::SocketAddr>; ATTEMPTS]) {
    let set = |header, value| {
        let _ = hostcalls::set_map_value_bytes(MapType::HttpRequestHeaders, header, value);
    };
    let written = endpoints.map(|endpoint| endpoint.map(Written::new));
    if plan.configuration.override_host {
        let mut list = Vec::with_capacity(64);
        for endpoint in written.iter().flatten() {
            if !list.is_empty() {
                list.push(b',');
            }
            list.extend_from_slice(endpoint.bytes());
        }
        set(LIST, (!list.is_empty()).then_some(&*list));
        return;
    }
    for (header, endpoint) in HEADERS.iter().zip(&written) {
        set(header, endpoint.as_ref().map(Written::bytes));
    }
}
