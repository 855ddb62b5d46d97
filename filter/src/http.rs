//! The plugin `http`: names the endpoints of each request in headers of its own, which a filter behind it takes away
//! again (see `envoy/http.yaml`), or in one header for the clusters of a mesh (see `envoy/istio.yaml`). In: the authority,
//! or the configured Service. Out: the headers, or a 503. Never sees a body.

use std::rc::Rc;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, LogLevel, MapType};
use selection::Path;

use crate::authority;
use crate::configuration::Fallback;
use crate::counts::Count;
use crate::host::{address, log, now, settle, vm};
use crate::root::Plan;
use crate::vm::{ATTEMPTS, Attempt, Found, Unserved};

/// The endpoint of the first attempt, of the second, of the third. What a client sends under these names is gone.
const HEADERS: [&str; ATTEMPTS] = ["x-remora-endpoint-1", "x-remora-endpoint-2", "x-remora-endpoint-3"];
/// All of them, for the policy `override_host`: it takes the next one for each attempt.
const LIST: &str = "x-remora-endpoints";

/// One request.
pub(crate) struct Request {
    plan: Option<Rc<Plan>>,
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
    pub(crate) fn new(plan: Option<Rc<Plan>>) -> Self {
        Self { plan, attempt: None, is_counted: false }
    }

    fn find(plan: &Plan) -> Way {
        let found = match &plan.wanted {
            Some(wanted) => vm(|vm| vm.find(wanted)),
            None => Self::authority()
                .and_then(|text| {
                    let namespace = plan.configuration.namespace.as_deref();
                    authority::read(&text, &plan.configuration.cluster_domain, namespace)
                })
                .map_or(Found::Unknown, |wanted| vm(|vm| vm.find(&wanted))),
        };
        let (path, port) = match found {
            Found::Port(path, port) => (path, port),
            Found::Unknown => {
                return Way::Fallback("remora: the request is for no Service that is known here\n");
            }
            Found::NoTable => return Way::Fallback("remora: no Service is known yet\n"),
        };
        // Only some choices and load balancers' source ranges look at the client, but each may.
        let Some(client) = address(&["source", "address"]) else {
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

    fn authority() -> Option<String> {
        let bytes =
            hostcalls::get_map_value_bytes(MapType::HttpRequestHeaders, ":authority").ok().flatten()?;
        String::from_utf8(bytes).ok()
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
    if plan.configuration.override_host {
        let mut list = String::new();
        for endpoint in endpoints.iter().flatten() {
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(&endpoint.to_string());
        }
        let list = Some(&*list).filter(|list| !list.is_empty());
        let _ = hostcalls::set_map_value(MapType::HttpRequestHeaders, LIST, list);
        return;
    }
    for (header, endpoint) in HEADERS.iter().zip(endpoints) {
        let text = endpoint.map(|endpoint| endpoint.to_string());
        let _ = hostcalls::set_map_value(MapType::HttpRequestHeaders, header, text.as_deref());
    }
}

impl Context for Request {}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        vm(|vm| vm.counts.add(Count::RequestsOpened));
        self.is_counted = true;
        let Some(plan) = self.plan.as_deref() else {
            return Self::answer("remora: the plugin has no configuration\n");
        };
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

    fn on_log(&mut self) {
        if std::mem::take(&mut self.is_counted) {
            vm(|vm| vm.counts.add(Count::RequestsClosed));
        }
        if let Some(attempt) = self.attempt.take() {
            settle(attempt, self.plan.as_ref().is_some_and(|plan| plan.configuration.override_host));
        }
    }
}
