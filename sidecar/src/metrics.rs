//! What Prometheus reads. In: the counts of the data plane, the watch and the kernel, at the moment of a scrape.
//! Out: OpenMetrics text. Holds no number of its own, and never a label that grows with clients or endpoints.
//!
//! Names: base units, `_total` for what only grows, `service` and `port` as the listener names them.

mod process;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use selection::{ServicePort, Tallies};
use watcher::{BOUNDS, Histogram, Status, Watch};

use crate::asking::Outcome;
use crate::signals::Capturing;
use crate::tcp::{Listen, StandIn};
use crate::traffic::{Counts, Failure, Label, Traffic};
use crate::{asking, balancer, dns, feed, inject, node};
use process::Process;

/// The media type of what [`Metrics::text`] gives.
pub const MEDIA: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that is measured. Owning one keeps what it reads alive.
#[derive(Debug)]
pub struct Metrics(Readings);

impl Metrics {
    /// Reads from these; `origin` is where the times in tallies begin.
    pub fn new(
        watch: Watch,
        traffic: Arc<Traffic>,
        listens: Vec<(Listen, StandIn)>,
        origin: Instant,
    ) -> Self {
        Self(Readings {
            watch,
            traffic,
            listens,
            origin,
            capturing: None,
            feed: None,
            dns: None,
            node: None,
            resolver: None,
            admissions: None,
            balancer: None,
            demand: None,
        })
    }

    /// The same, with whether connections are captured.
    pub fn with(mut self, capturing: Capturing) -> Self {
        self.0.capturing = Some(capturing);
        self
    }

    /// The same, with what the readers of the feed were told.
    pub fn with_feed(mut self, feed: Arc<feed::Counts>) -> Self {
        self.0.feed = Some(feed);
        self
    }

    /// The same, with what the ports of this node are doing.
    pub fn with_node(mut self, node: Arc<node::Counts>) -> Self {
        self.0.node = Some(node);
        self
    }

    /// The same, with which Pods the webhook was asked about.
    pub fn with_admissions(mut self, admissions: Arc<inject::Counts>) -> Self {
        self.0.admissions = Some(admissions);
        self
    }

    /// The same, with what the load balancer does, and whether it is the one that serves.
    pub fn with_balancer(
        mut self,
        counts: Arc<balancer::Counts>,
        leads: tokio::sync::watch::Receiver<bool>,
    ) -> Self {
        self.0.balancer = Some((counts, leads));
        self
    }

    /// The same, with whose addresses were asked for.
    pub fn with_demand(mut self, demand: Arc<asking::Counts>) -> Self {
        self.0.demand = Some(demand);
        self
    }

    /// The same, with what the DNS answered.
    pub fn with_dns(mut self, dns: Arc<dns::Counts>) -> Self {
        self.0.dns = Some(dns);
        self
    }

    /// The same, with how lookups of external names ended.
    pub fn with_resolver(mut self, resolver: Arc<dns::Resolver>) -> Self {
        self.0.resolver = Some(resolver);
        self
    }

    /// One scrape.
    ///
    /// # Errors
    /// Never, as long as text fits into memory.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let (mut text, mut registry) = (String::new(), Registry::default());
        registry.register_collector(Box::new(self.0.clone()));
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

#[derive(Clone, Debug)]
struct Readings {
    watch: Watch,
    traffic: Arc<Traffic>,
    listens: Vec<(Listen, StandIn)>,
    origin: Instant,
    capturing: Option<Capturing>,
    feed: Option<Arc<feed::Counts>>,
    node: Option<Arc<node::Counts>>,
    balancer: Option<(Arc<balancer::Counts>, tokio::sync::watch::Receiver<bool>)>,
    demand: Option<Arc<asking::Counts>>,
    dns: Option<Arc<dns::Counts>>,
    admissions: Option<Arc<inject::Counts>>,
    resolver: Option<Arc<dns::Resolver>>,
}

impl Collector for Readings {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let build = [("version", env!("CARGO_PKG_VERSION"))];
        page.gauges("remora_build_info", "The program, value 1", [(build, 1u64)])?;
        connections(&mut page, &self.traffic.snapshot())?;
        self.endpoints(&mut page)?;
        if let Some(capturing) = &self.capturing {
            let families = capturing.families();
            page.gauges(
                "remora_capture_alive",
                "1 if new connections to Services come here, 0 if they go their ordinary way",
                families.map(|(family, alive)| ([("family", family.to_string())], u64::from(alive))),
            )?;
            page.gauges(
                "remora_capture_ports",
                "Addresses and ports of Services, by what the rules are told to do with new connections to them",
                capturing.places().map(|(verdict, count)| ([("verdict", verdict)], count)),
            )?;
        }
        source(&mut page, &self.watch.status())?;
        self.node.iter().try_for_each(|counts| node_ports(&mut page, counts))?;
        self.balancer.iter().try_for_each(|(counts, leads)| balancing(&mut page, counts, *leads.borrow()))?;
        self.demand.iter().try_for_each(|counts| asked(&mut page, counts))?;
        self.feed.iter().try_for_each(|counts| told(&mut page, counts))?;
        self.dns.iter().try_for_each(|counts| names(&mut page, counts))?;
        self.admissions.iter().try_for_each(|counts| admissions(&mut page, counts))?;
        if let Some(resolver) = &self.resolver {
            page.counters(
                "remora_external_name_lookups",
                "Lookups of external names that listeners dial, by outcome",
                resolver.lookups().by_outcome().map(|(outcome, count)| ([("outcome", outcome)], count)),
            )?;
        }
        process_of(&mut page, Process::read())
    }
}

impl Readings {
    /// The endpoints of what is listened for.
    fn endpoints(&self, page: &mut Page<'_>) -> fmt::Result {
        let table = self.watch.tables.load();
        let now = self.origin.elapsed().as_millis() as u64;
        let mut endpoints = Vec::new();
        let mut aside = Vec::new();
        let mut seen = Vec::new();
        let found = self.listens.iter().flat_map(|(listen, stand_in)| {
            stand_in.ports(listen, &table).iter().map(|port| (listen, Arc::clone(port))).collect::<Vec<_>>()
        });
        for (listen, port) in found {
            let port = &*port;
            let key = (&listen.service, &listen.port, port.id.family);
            if seen.contains(&key) {
                continue;
            }
            seen.push(key);
            let labels = || {
                [
                    ("service", listen.service.to_string()),
                    ("port", listen.port.clone()),
                    ("family", port.id.family.to_string()),
                ]
            };
            let pool = internal_pool(port);
            endpoints.push((labels(), pool.members.len()));
            aside.push((labels(), selection::put_aside(port, pool, &Tallies, now)));
        }
        page.gauges("remora_endpoints", "Endpoints that may take connections of the listener", endpoints)?;
        page.gauges(
            "remora_endpoints_put_aside",
            "Those of them that failed and are avoided for a while",
            aside,
        )
    }
}

/// The endpoints that a listener chooses among: those of the `ClusterIP` path.
fn internal_pool(port: &ServicePort) -> &selection::Pool {
    if port.internal_local { &port.local } else { &port.cluster }
}

fn connections(page: &mut Page<'_>, ports: &[(Label, Counts)]) -> fmt::Result {
    let each = |read: fn(&Counts) -> u64| ports.iter().map(move |(label, counts)| (of(label), read(counts)));
    page.counters("remora_connections_opened", "Connections taken from clients", each(|c| c.opened))?;
    page.counters("remora_connections_closed", "Connections that ended", each(|c| c.closed))?;
    page.gauges("remora_connections_active", "Connections that are open", each(Counts::active))?;
    let bytes = ports.iter().flat_map(|(label, counts)| {
        let [service, port] = of(label);
        [("to-endpoint", counts.received), ("to-client", counts.sent)].map(|(direction, bytes)| {
            ([service.clone(), port.clone(), ("direction", direction.into())], bytes)
        })
    });
    page.counters("remora_relayed_bytes", "Bytes relayed, by direction", bytes)?;
    let failures = ports.iter().flat_map(|(label, counts)| {
        let [service, port] = of(label);
        Failure::ALL.map(|why| {
            ([service.clone(), port.clone(), ("reason", why.label().to_owned())], counts.failures(why))
        })
    });
    page.counters("remora_connect_failures", "Connects to endpoints that failed, by reason", failures)?;
    page.counters("remora_retries", "Connects to another endpoint after one failed", each(|c| c.retries))?;
    let resets = ports.iter().flat_map(|(label, counts)| {
        let [service, port] = of(label);
        let reasons = [
            ("no-endpoint", counts.refused),
            ("policy", counts.dropped),
            ("no-table", counts.unsynced),
            ("limit", counts.limited),
        ];
        reasons.map(|(reason, count)| ([service.clone(), port.clone(), ("reason", reason.into())], count))
    });
    page.counters(
        "remora_connections_unserved",
        "Connections reset because no endpoint could serve, none may serve this client here, no table came, or \
         there were as many as --max-connections or the descriptors allow",
        resets,
    )?;
    page.counters(
        "remora_accept_failures",
        "Times that there were no descriptors or no memory for a connection",
        each(|c| c.exhausted),
    )
}

fn of(label: &Label) -> [(&'static str, String); 2] {
    [("service", label.service()), ("port", label.port.to_string())]
}

fn source(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    page.gauge("remora_table_version", "Tables published so far; 0 before the first", status.version)?;
    let age = status.age.map(|age| age.as_secs_f64());
    page.gauge_if(
        "remora_table_age_seconds",
        "Time since the table was last known to be in step with its source",
        age,
    )?;
    page.gauge("remora_services", "Services known", status.services)?;
    page.gauge("remora_endpoint_slices", "EndpointSlices known", status.slices)?;
    let events = status.events().map(|(kind, change, count)| ([("kind", kind), ("type", change)], count));
    page.counters("remora_source_events", "Changes of objects told by the source", events)?;
    let missed = status.missed().map(|(kind, count)| ([("kind", kind)], count));
    page.counters(
        "remora_source_missed_events",
        "Changes that no event told, found by a later list",
        missed,
    )?;
    let errors = status.losses().map(|(reason, count)| ([("reason", reason)], count));
    page.counters("remora_source_errors", "Times that following the source broke, by reason", errors)?;
    page.gauge("remora_source_streams_broken", "Streams of the source that are broken", status.broken.len())?;
    let skipped = status.skipped.iter();
    let skipped = skipped.map(|(kind, reason, count)| ([("kind", kind.label()), ("reason", reason)], *count));
    page.counters("remora_source_objects_skipped", "Objects not understood and left out", skipped)?;
    page.histogram(
        "remora_received_to_table_seconds",
        "Time from the receipt of an event to the table that has it",
        &status.received_to_table,
    )?;
    page.histogram(
        "remora_triggered_to_table_seconds",
        "Time from the trigger of an endpoint's change (endpoints.kubernetes.io/last-change-trigger-time) to the \
         table that has it",
        &status.triggered_to_table,
    )
}

/// The node ports and health checks of this node.
fn node_ports(page: &mut Page<'_>, counts: &node::Counts) -> fmt::Result {
    let read =
        |count: &std::sync::atomic::AtomicUsize| count.load(std::sync::atomic::Ordering::Relaxed) as u64;
    let (open, guarded) = (read(&counts.open), read(&counts.guarded));
    let ports =
        [("open", open - guarded.min(open)), ("guarded", guarded), ("lacking", read(&counts.lacking))];
    page.gauges(
        "remora_node_ports",
        "Node ports at an address of this node: served to all, only to clients inside, or held by another program",
        ports.map(|(state, count)| ([("state", state)], count)),
    )?;
    let checks = [("open", read(&counts.checks)), ("lacking", read(&counts.checks_lacking))];
    page.gauges(
        "remora_node_health_checks",
        "Health checks of load balancers at an address of this node, answered or held by another program",
        checks.map(|(state, count)| ([("state", state)], count)),
    )
}

fn asked(page: &mut Page<'_>, counts: &asking::Counts) -> fmt::Result {
    page.counters(
        "remora_demand_questions",
        "Connections to addresses that no table knew, by what the feed said of them",
        Outcome::ALL.map(|outcome| ([("outcome", outcome.label())], counts.of(outcome))),
    )
}

fn balancing(page: &mut Page<'_>, counts: &balancer::Counts, leads: bool) -> fmt::Result {
    let read =
        |count: &std::sync::atomic::AtomicUsize| count.load(std::sync::atomic::Ordering::Relaxed) as u64;
    page.gauge("remora_balancer_leads", "1 if this process serves, 0 if another one does", u64::from(leads))?;
    let addresses = [("held", read(&counts.addresses)), ("lacking", read(&counts.addresses_lacking))];
    page.gauges(
        "remora_balancer_addresses",
        "Addresses of Services, on the interface or refused by the kernel",
        addresses.map(|(state, count)| ([("state", state)], count)),
    )?;
    let ports = [("open", read(&counts.open)), ("lacking", read(&counts.lacking))];
    page.gauges(
        "remora_balancer_ports",
        "Ports at addresses of Services, served or not to be had",
        ports.map(|(state, count)| ([("state", state)], count)),
    )
}

fn told(page: &mut Page<'_>, counts: &feed::Counts) -> fmt::Result {
    page.gauge("remora_feed_readers", "Readers of the feed", counts.readers())?;
    page.counter_if("remora_feed_frames", "Frames told to readers", Some(counts.frames()))?;
    page.counter_if("remora_feed_bytes", "Bytes told to readers", Some(counts.bytes()))?;
    page.counter_if("remora_feed_snapshots", "Snapshots told to readers", Some(counts.snapshots()))?;
    page.counters(
        "remora_feed_resets",
        "Readers that were not told on: they fell behind, took nothing, sent no subscription or were too many",
        counts.resets().map(|(why, count)| ([("reason", why.label())], count)),
    )?;
    page.counters(
        "remora_feed_refused",
        "Requests for the feed that were refused for their token",
        counts.refusals().map(|(why, count)| ([("reason", why.label())], count)),
    )
}

fn admissions(page: &mut Page<'_>, counts: &inject::Counts) -> fmt::Result {
    page.counters(
        "remora_admissions",
        "Pods that the webhook was asked about: injected, or why not",
        counts.read().into_iter().map(|(outcome, count)| ([("outcome", outcome)], count)),
    )
}

fn names(page: &mut Page<'_>, counts: &dns::Counts) -> fmt::Result {
    page.counters(
        "remora_dns_answers",
        "Answers of the DNS, by who knew them and their outcome",
        counts.answers().map(|(from, code, count)| ([("from", from.label()), ("rcode", code)], count)),
    )?;
    page.counter_if(
        "remora_dns_dropped",
        "Messages that were no queries and got no answer",
        Some(counts.dropped()),
    )?;
    page.counters(
        "remora_dns_forward_failures",
        "Questions to other servers that failed, by reason",
        counts.failures().map(|(why, count)| ([("reason", why.label())], count)),
    )?;
    page.counters(
        "remora_dns_external_names_wrong",
        "Questions for external names that lead nowhere, by reason",
        counts.wrong().map(|(why, count)| ([("reason", why.label())], count)),
    )
}

fn process_of(page: &mut Page<'_>, process: Process) -> fmt::Result {
    page.counter_if("process_cpu_seconds", "CPU time, user and system", process.cpu_seconds)?;
    page.gauge_if("process_open_fds", "Open descriptors", process.open_fds)?;
    page.gauge_if("process_max_fds", "Descriptors that may be open", process.max_fds)?;
    page.gauge_if("process_resident_memory_bytes", "Memory in RAM", process.resident_bytes)?;
    page.gauge_if("process_virtual_memory_bytes", "Address space", process.virtual_bytes)?;
    page.gauge_if("process_threads", "Threads", process.threads)?;
    page.gauge_if("process_start_time_seconds", "Start of the process since 1970", process.started)
}

/// The page that a scrape gets, metric by metric.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn gauge_if(&mut self, name: &str, help: &str, value: Option<impl EncodeGaugeValue>) -> fmt::Result {
        value.map_or(Ok(()), |value| self.gauge(name, help, value))
    }

    fn counter_if(&mut self, name: &str, help: &str, value: Option<impl EncodeCounterValue>) -> fmt::Result {
        let Some(value) = value else { return Ok(()) };
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        encoder.encode_counter::<NoLabels, _, u64>(&value, None)
    }

    fn gauges<S: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (S, V)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        values
            .into_iter()
            .try_for_each(|(labels, value)| encoder.encode_family(&labels)?.encode_gauge(&value))
    }

    fn counters<S: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (S, u64)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        values.into_iter().try_for_each(|(labels, value)| {
            encoder.encode_family(&labels)?.encode_counter::<NoLabels, _, u64>(&value, None)
        })
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        let within: u64 = histogram.counts.iter().sum();
        let mut buckets: Vec<_> = BOUNDS.into_iter().zip(histogram.counts).collect();
        buckets.push((f64::INFINITY, histogram.count - within));
        self.0.encode_descriptor(name, help, None, MetricType::Histogram)?.encode_histogram::<NoLabels>(
            histogram.sum.as_secs_f64(),
            histogram.count,
            &buckets,
            None,
        )
    }
}

type NoLabels = [(&'static str, &'static str); 0];
