//! A plugin's root context: reads its configuration, keeps the stream of the feed open, makes contexts for connections
//! and requests. One per plugin and VM; whichever comes first opens the stream for all. Never picks.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, RootContext};
use proxy_wasm::types::{BufferType, LogLevel};
use selection::{Here, Millis, Path, ServicePort, Symbol};

use crate::authority::Wanted;
use crate::configuration::{Configuration, Plugin};
use crate::counts::Count;
use crate::host::{log, now, tell_metrics, text, vm};
use crate::known::Known;
use crate::stream;
use crate::vm::Found;

/// How often a root context looks whether something is due.
const TICK: Duration = Duration::from_millis(200);
/// Of a gRPC stream: who asks has shown nothing that is good, or it is good no longer.
const UNAUTHENTICATED: u32 = 16;
/// Ticks between two times that Envoy is told what was counted.
const TELL: u32 = 5;

/// The root context of the plugin that Envoy makes one for.
pub(crate) fn context(id: u32) -> Box<dyn RootContext> {
    #[cfg(feature = "cases")]
    if text(&["plugin_root_id"]).as_deref() == Some("cases") {
        return Box::new(crate::cases::Examiner);
    }
    Box::new(Root::new(id))
}

/// The root context of one plugin in one VM.
pub(crate) struct Root {
    id: u32,
    plan: Option<Rc<Plan>>,
    ticks: u32,
    /// The configured Service was in the table when it was looked for last.
    is_known: bool,
}

/// What the contexts of one plugin share.
pub(crate) struct Plan {
    pub(crate) configuration: Configuration,
    /// Whom everything is for, if the configuration says so.
    pub(crate) wanted: Option<Wanted>,
    /// Whom authorities stood for.
    pub(crate) known: RefCell<Known<(Path, Arc<ServicePort>)>>,
}

impl Root {
    pub(crate) fn new(id: u32) -> Self {
        Self { id, plan: None, ticks: 0, is_known: true }
    }

    fn configure(&mut self) -> Result<(), String> {
        let plugin = match text(&["plugin_root_id"]).as_deref() {
            Some("network") => Plugin::Network,
            Some("http") => Plugin::Http,
            other => {
                return Err(format!(
                    "the root_id of the plugin is wrong: it is {}, expected network or http",
                    other.unwrap_or("empty")
                ));
            }
        };
        let json = hostcalls::get_buffer(BufferType::PluginConfiguration, 0, usize::MAX).ok().flatten();
        let configuration = Configuration::read(&json.unwrap_or_default(), plugin)?;
        let locality = |field| text(&["xds", "node", "locality", field]);
        let symbol = |text: Option<String>| text.map(Symbol::from);
        let here = Here {
            node: symbol(configuration.node.clone().or_else(|| locality("sub_zone"))),
            zone: symbol(configuration.zone.clone().or_else(|| locality("zone"))),
        };
        vm(|vm| vm.join(self.id, &configuration.feed, &here, configuration.subscription()))?;
        let plan = Rc::new(Plan { wanted: configuration.wanted(), configuration, known: RefCell::default() });
        stream::configured(self.id, plugin, &plan);
        self.plan = Some(plan);
        Ok(())
    }

    /// Opens the stream if it is time to.
    fn open_if_due(&self) {
        let now = now();
        let Some((cluster, subscription)) = vm(|vm| {
            let (cluster, subscription) = vm.feed().filter(|_| vm.link.is_due(now))?;
            Some((cluster.to_owned(), subscription))
        }) else {
            return;
        };
        let opened = hostcalls::open_grpc_stream(&cluster, "remora.Feed", "Watch", Vec::new());
        let sent = opened.and_then(|token| {
            hostcalls::send_grpc_stream_message(token, Some(&subscription.encode()), false).map(|()| token)
        });
        match sent {
            Ok(token) => vm(|vm| vm.link.opened(token, self.id, now)),
            Err(_) => self.lost(&format!(
                "Envoy cannot open it; is there a cluster {cluster}, and the file of a token that it shows?"
            )),
        }
    }

    /// The stream has ended as it should not have.
    fn lost(&self, why: &str) {
        let wait = again_later(true);
        log(
            LogLevel::Warn,
            &format!(
                "remora: the stream of the feed is lost: {why}; the table that is known serves on, next try in {wait} ms"
            ),
        );
    }

    /// A hub lets nobody read on with a token that has expired. Envoy has the next one by then, and the stream that is
    /// opened soon shows it: nothing that is wrong, hence not counted as such.
    fn expired(&self) {
        again_later(false);
        log(LogLevel::Info, "remora: the token of the stream of the feed has expired; opening another one");
    }

    /// Looks after the stream that this root context owns.
    fn tend(&self) {
        let Some(token) = vm(|vm| vm.link.token_of(self.id)) else { return };
        let now = now();
        if vm(|vm| vm.link.is_silent(now)) {
            let _ = hostcalls::cancel_grpc_stream(token);
            self.lost("nothing came for too long");
        } else if vm(|vm| vm.link.take_stale())
            && let Some(subscription) = vm(|vm| vm.feed().map(|(_, subscription)| subscription))
        {
            // Envoy forgets a stream that has ended, and says so soon.
            let _ = hostcalls::send_grpc_stream_message(token, Some(&subscription.encode()), false);
        }
    }

    /// Says once that the configured Service is not there, and once that it is there again.
    fn look_for_service(&mut self) {
        let Some(wanted) = self.plan.as_ref().and_then(|plan| plan.wanted.as_ref()) else { return };
        let is_known = match vm(|vm| vm.find(wanted)) {
            Found::Port(..) => true,
            Found::Unknown => false,
            Found::NoTable => return,
        };
        if is_known != self.is_known
            && let Wanted::Service(service, port) = wanted
        {
            let line = if is_known {
                format!("remora: the Service {service} has its port {port} now")
            } else {
                format!(
                    "remora: there is no Service {service} with a port {port}: the field service of the configuration \
                     is wrong, or the Service does not exist yet"
                )
            };
            log(if is_known { LogLevel::Info } else { LogLevel::Warn }, &line);
        }
        self.is_known = is_known;
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        stream::gone(self.id);
        vm(|vm| vm.leave(self.id));
    }
}

/// The stream is over, and another one is to be opened: in how many milliseconds.
fn again_later(is_error: bool) -> Millis {
    let now = now();
    vm(|vm| {
        if is_error {
            vm.counts.add(Count::FeedErrors);
        }
        let chance = vm.chance(now);
        vm.link.lost(now, chance)
    })
}

impl Context for Root {
    fn on_grpc_stream_message(&mut self, token: u32, size: usize) {
        let now = now();
        if !vm(|vm| vm.link.heard(token, now)) {
            return;
        }
        let frame = hostcalls::get_buffer(BufferType::GrpcReceiveBuffer, 0, size).ok().flatten();
        match vm(|vm| vm.frame(&frame.unwrap_or_default(), now)) {
            Ok(progress) if progress.complete => self.look_for_service(),
            Ok(_) => {}
            Err(error) => {
                let _ = hostcalls::cancel_grpc_stream(token);
                self.lost(&error.to_string());
            }
        }
    }

    fn on_grpc_stream_close(&mut self, token: u32, status: u32) {
        let (ours, was_of_use) = vm(|vm| (vm.link.token_of(self.id), vm.link.was_of_use()));
        if ours != Some(token) {
            return;
        }
        match status {
            UNAUTHENTICATED if was_of_use => self.expired(),
            UNAUTHENTICATED => self.lost(
                "the hub takes no token of this Envoy; see that the cluster of the feed shows one, for the audience of \
                 the hubs",
            ),
            _ => self.lost(&format!("it ended with gRPC status {status}")),
        }
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        if let Err(error) = self.configure() {
            log(LogLevel::Critical, &format!("remora: {error}"));
            return false;
        }
        let _ = hostcalls::set_tick_period(TICK);
        self.open_if_due();
        true
    }

    fn on_tick(&mut self) {
        if self.plan.is_none() {
            return;
        }
        self.tend();
        self.open_if_due();
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(TELL) {
            let now = now();
            vm(|vm| vm.decide_trials(now));
            tell_metrics();
            self.look_for_service();
        }
    }
}
