//! Envoy as the plugins see it: a few of its calls, with their traps. The SDK panics at an answer that it does not
//! expect, which ends the VM; what is called here is called so that it cannot give one.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{LogLevel, MetricType};
use selection::{Millis, Path, Seed, ServicePort};

use crate::counts::Count;
use crate::outcome::{self, Outcome, Reached};
use crate::vm::{Attempt, PutAside, Vm};

thread_local! {
    /// It is there as long as the module.
    static VM: &'static RefCell<Vm> = Box::leak(Box::new(RefCell::new(Vm::new(secret()))));
    static METRICS: Metrics = Metrics::define();
    static ORIGIN: Instant = Instant::now();
}

/// Works on the state that all plugins of this VM share. No call of Envoy that calls back may be made inside.
pub(crate) fn vm<T>(work: impl FnOnce(&mut Vm) -> T) -> T {
    work(&mut cell().borrow_mut())
}

/// Once, not wherever it is worked on: there are dozens of places, and each would have how it is made.
#[inline(never)]
fn cell() -> &'static RefCell<Vm> {
    VM.with(|vm| *vm)
}

/// The time of tallies and pins, which never goes back.
pub(crate) fn now() -> Millis {
    let elapsed = ORIGIN.with(Instant::elapsed);
    // `as_millis` calculates in 128 bits, which is slow here.
    elapsed.as_secs() * 1_000 + Millis::from(elapsed.subsec_millis())
}

/// The standard library seeds its maps from the system's randomness, and hashes nothing to what depends on nothing else.
fn secret() -> Seed {
    let number = || RandomState::new().hash_one(0);
    Seed(number(), number())
}

/// One line in Envoy's log.
pub(crate) fn log(level: LogLevel, line: &str) {
    // Envoy takes every line, or the level is off.
    let _ = hostcalls::log(level, line);
}

/// A property as text.
pub(crate) fn text(path: &[&str]) -> Option<String> {
    String::from_utf8(property(path)?).ok().filter(|text| !text.is_empty())
}

/// A property that is an address.
pub(crate) fn address(path: &[&str]) -> Option<SocketAddr> {
    text(path)?.parse().ok()
}

/// Who connects to `port` as `path`, if that matters there: what every client may have is chosen by chance alone.
pub(crate) fn client(port: &ServicePort, path: Path) -> Option<SocketAddr> {
    const ANYBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    if port.looks_at_client(path) { address(&["source", "address"]) } else { Some(ANYBODY) }
}

fn number(path: &[&str]) -> u64 {
    property(path).as_deref().and_then(outcome::number).unwrap_or(0)
}

fn property(path: &[&str]) -> Option<Vec<u8>> {
    hostcalls::get_property(path.to_vec()).ok().flatten()
}

/// Sets a text in the filter state of the connection. Envoy's foreign function takes Protocol Buffers: 1 path,
/// 2 value, 3 span (2: the connection).
pub(crate) fn set_filter_state(path: &str, value: &[u8]) -> bool {
    let mut message = Vec::with_capacity(path.len() + value.len() + 8);
    for (field, text) in [(0x0a, path.as_bytes()), (0x12, value)] {
        message.push(field);
        let mut length = text.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(text);
    }
    message.extend([0x18, 2]);
    hostcalls::call_foreign_function("set_envoy_filter_state", Some(&message)).is_ok()
}

/// What has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// A connection, which has one endpoint only.
    Connection,
    /// A request, which went where it was told.
    Request,
    /// A request that may have gone elsewhere than it was told: that was only a proposal.
    Proposed,
}

/// Reads how `attempt` went, tells the tallies, and says whom that puts aside. A question to Envoy costs more than a
/// choice, so what changes nothing is not asked.
pub(crate) fn settle(attempt: Attempt, ends: Ends) {
    let tried =
        if ends == Ends::Connection { 1 } else { number(&["upstream", "request_attempt_count"]) as usize };
    // Routes to Remora's clusters try again what failed, so that a request which was tried once did not fail.
    if ends == Ends::Request && tried <= 1 && !attempt.is_trial() {
        return;
    }
    let has_failed = number(&["response", "flags"]) & outcome::CONNECT_FAILED != 0;
    if !has_failed && tried <= 1 && !attempt.is_trial() {
        return;
    }
    let failure = has_failed.then(|| {
        let reason = text(&["upstream", "transport_failure_reason"]);
        outcome::failure(reason.as_deref().unwrap_or_default())
    });
    let connected =
        !has_failed && property(&["upstream", "local_address"]).is_some_and(|address| !address.is_empty());
    let now = now();
    let reached = match ends {
        Ends::Proposed => Reached::At(address(&["upstream", "address"])),
        _ => Reached::AsChosen,
    };
    let outcome = Outcome { tried, failure, connected, reached };
    for PutAside { port, endpoint, failures } in vm(|vm| vm.settle(attempt, &outcome, now)) {
        log(
            LogLevel::Info,
            &format!(
                "remora: endpoint put aside service={} port={} endpoint={endpoint} failures={failures}",
                port.service, port.port
            ),
        );
    }
}

/// Tells Envoy what was counted since the last time, and how old the table is.
pub(crate) fn tell_metrics() {
    let now = now();
    let (counts, age, version, services) = vm(|vm| {
        let mirror = vm.mirror();
        let version = mirror.map_or(0, |mirror| mirror.table().version());
        let services = mirror.map_or(0, |mirror| mirror.services() as u64);
        (vm.counts.take(), vm.age(now), version, services)
    });
    METRICS.with(|metrics| {
        for (at, added) in counts {
            if let Some(id) = metrics.counters[at] {
                let _ = hostcalls::increment_metric(id, added as i64);
            }
        }
        let gauges = [age.map(|age| age / 1000), Some(version), Some(services)];
        for (id, value) in metrics.gauges.iter().zip(gauges) {
            if let (Some(id), Some(value)) = (id, value) {
                let _ = hostcalls::record_metric(*id, value);
            }
        }
    });
}

struct Metrics {
    counters: [Option<u32>; Count::ALL.len()],
    gauges: [Option<u32>; 3],
}

impl Metrics {
    fn define() -> Self {
        let define = |kind, name| hostcalls::define_metric(kind, name).ok();
        Self {
            counters: Count::ALL.map(|(_, name)| define(MetricType::Counter, name)),
            gauges: ["remora_table_age_seconds", "remora_table_version", "remora_services"]
                .map(|name| define(MetricType::Gauge, name)),
        }
    }
}
