//! What `remora endpoints` prints, made of what the watcher knows. Pure: in values, out text or JSON.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use selection::{Kind, Millis, PortId, Row, ServiceName, ServicePort, Table};
use serde::Serialize;
use watcher::Inspection;
use watcher::inspect::{Endpoint, Port};

use super::columns::Columns;

/// Everything to print.
#[derive(Debug)]
pub struct Report {
    /// The Services, in the order of their names.
    pub services: Vec<Inspection>,
    /// What the running sidecar knows of its endpoints; `None` if nothing runs.
    pub live: Option<Live>,
}

/// The table of a running sidecar at one moment.
#[derive(Debug)]
pub struct Live {
    /// Its table, whose endpoints have tallies.
    pub table: Arc<Table>,
    /// The time by which the tallies go.
    pub now: Millis,
    /// What listeners of these Services serve, also where no table has it.
    pub beside: Vec<(ServiceName, Arc<ServicePort>)>,
}

/// What JSON has of a Service.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Port(FullRow<'a>),
    Name(NameRow<'a>),
}

/// An external name as JSON: where it leads to, and what a listener dials there.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NameRow<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    service: String,
    external_name: &'a str,
    /// Empty also if nobody had to know.
    endpoints: Vec<NameEndpoint>,
}

#[derive(Serialize)]
struct NameEndpoint {
    address: SocketAddr,
    #[serde(flatten)]
    tally: TallyNow,
}

/// A row as JSON: the row of the table, and every endpoint with its reason.
#[derive(Serialize)]
struct FullRow<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    row: &'a Row,
    endpoints: Vec<FullEndpoint<'a>>,
}

/// Connections to an endpoint and its failures are there only if a running sidecar was asked.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FullEndpoint<'a> {
    address: SocketAddr,
    in_cluster: bool,
    in_local: bool,
    left_out: Option<&'static str>,
    ready: bool,
    serving: bool,
    terminating: bool,
    on_this_node: bool,
    node: Option<&'a str>,
    zone: Option<&'a str>,
    pod: Option<&'a str>,
    #[serde(flatten)]
    tally: Option<TallyNow>,
}

/// What a running sidecar knows of an endpoint.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct TallyNow {
    active: u32,
    failures: u32,
    aside_milliseconds: Millis,
}

impl Report {
    /// The rows as JSON, ordered by Service, family, port and protocol. A Service that is skipped has none.
    ///
    /// # Errors
    /// Never, as long as JSON fits into memory.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        let of = |service: &'_ Inspection| kind_name(&service.kind);
        let ports = self
            .services
            .iter()
            .flat_map(|service| service.ports.iter().map(move |port| (of(service), port)));
        let mut ports: Vec<(&'static str, &Port)> = ports.collect();
        ports.sort_by(|a, b| key(a.1).cmp(&key(b.1)));
        let ports = ports.into_iter().map(|(kind, port)| Line::Port(self.full_row(kind, port)));
        let names = self.services.iter().filter_map(|service| self.name_row(service).map(Line::Name));
        let rows: Vec<Line<'_>> = ports.chain(names).collect();
        serde_json::to_string_pretty(&rows).map(|text| text + "\n")
    }

    /// The Services for people: for each port its endpoints, and the Services that are skipped, with the reason.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for service in &self.services {
            for port in &service.ports {
                paragraph(&mut text);
                self.write_port(&mut text, &service.kind, port);
            }
            if let Kind::ExternalName(name) = &service.kind {
                paragraph(&mut text);
                self.write_name(&mut text, service, name);
            } else if service.ports.is_empty() && service.skipped.is_none() {
                paragraph(&mut text);
                let what =
                    if service.kind == Kind::Headless { "is headless: no endpoints" } else { "has no ports" };
                let _ = writeln!(text, "{} {what}", service.service);
            }
        }
        let is_name = |service: &Inspection| matches!(service.kind, Kind::ExternalName(_));
        let skipped = self.services.iter().filter(|service| !is_name(service));
        let skipped: Vec<_> =
            skipped.filter_map(|service| Some((&service.service, service.skipped?))).collect();
        if !skipped.is_empty() {
            paragraph(&mut text);
        }
        for (service, skip) in skipped {
            let _ = writeln!(text, "{service} is not served: {skip}");
        }
        text
    }

    /// What is odd, in sentences.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.services.iter().flat_map(|service| &service.warnings).map(String::as_str)
    }

    fn name_row<'a>(&self, service: &'a Inspection) -> Option<NameRow<'a>> {
        let Kind::ExternalName(external_name) = &service.kind else { return None };
        let endpoints = self.dialled(&service.service);
        let endpoints =
            endpoints.into_iter().map(|(address, tally)| NameEndpoint { address, tally }).collect();
        let (kind, service) = (kind_name(&service.kind), service.service.to_string());
        Some(NameRow { kind, service, external_name, endpoints })
    }

    /// What listeners dial for the external name of `service`.
    fn dialled(&self, service: &ServiceName) -> Vec<(SocketAddr, TallyNow)> {
        let Some(live) = &self.live else { return Vec::new() };
        let ports = live.beside.iter().filter(|(listened, _)| listened == service);
        let endpoints = ports.flat_map(|(_, port)| &port.endpoints);
        let mut dialled: Vec<_> = endpoints.map(|e| (e.address, TallyNow::of(e, live.now))).collect();
        dialled.sort_unstable_by_key(|(address, _)| *address);
        dialled.dedup_by_key(|(address, _)| *address);
        dialled
    }

    fn write_name(&self, text: &mut String, service: &Inspection, name: &str) {
        let dialled = self.dialled(&service.service);
        let _ = writeln!(text, "{} is an external name: {name}", service.service);
        if dialled.is_empty() {
            return;
        }
        let mut columns = Columns::new(&["ADDRESS", "STATE", "ACTIVE"]);
        for (address, tally) in dialled {
            let state = format!("serves{}", aside(Some(tally)));
            columns.add(vec![address.to_string(), state, tally.active.to_string()]);
        }
        columns.write(text, "  ");
    }

    fn full_row<'a>(&self, kind: &'static str, port: &'a Port) -> FullRow<'a> {
        let full = |endpoint: &'a Endpoint| FullEndpoint {
            address: endpoint.address,
            in_cluster: endpoint.in_cluster,
            in_local: endpoint.in_local,
            left_out: endpoint.left_out.map(selection::LeftOut::label),
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            on_this_node: endpoint.is_local,
            node: endpoint.node.as_deref(),
            zone: endpoint.zone.as_deref(),
            pod: endpoint.pod.as_deref(),
            tally: self.tally(&port.id, endpoint.address),
        };
        FullRow { kind, row: &port.row, endpoints: port.endpoints.iter().map(full).collect() }
    }

    fn write_port(&self, text: &mut String, kind: &Kind, port: &Port) {
        let row = &port.row;
        let name = if row.port.is_empty() { String::new() } else { format!(" {}", row.port) };
        let serving = port.endpoints.iter().filter(|e| e.in_cluster || e.in_local).count();
        let count = match (serving, port.endpoints.len()) {
            (_, 0) => "no endpoints".to_owned(),
            (0, 1) => "its one endpoint is left out".to_owned(),
            (0, all) => format!("all {all} endpoints are left out"),
            (serving, all) if serving == all => {
                format!("{all} {} here", plural(all, "endpoint serves", "endpoints serve"))
            }
            (serving, all) => format!("{serving} of {all} endpoints serve here"),
        };
        let _ = writeln!(
            text,
            "{} port{name} {}/{}, {} {}: {count}",
            row.service,
            row.service_port,
            row.protocol,
            row.family,
            address(row)
        );
        if let Some(outside) = outside(kind, row) {
            let _ = writeln!(text, "  {outside}");
        }
        if let Some(policy) = policy(row) {
            let _ = writeln!(text, "  {policy}");
        }
        if port.endpoints.is_empty() {
            return;
        }
        let mut heads = vec!["ADDRESS", "STATE"];
        if self.live.is_some() {
            heads.push("ACTIVE");
        }
        heads.extend(["NODE", "ZONE", "POD"]);
        let mut columns = Columns::new(&heads);
        for endpoint in &port.endpoints {
            let tally = self.tally(&port.id, endpoint.address);
            let mut cells = vec![endpoint.address.to_string(), state(row, endpoint, tally)];
            if self.live.is_some() {
                cells.push(tally.map_or("-".to_owned(), |tally| tally.active.to_string()));
            }
            let known = |name: &Option<selection::Symbol>| name.as_deref().unwrap_or("-").to_owned();
            cells.extend([known(&endpoint.node), known(&endpoint.zone), known(&endpoint.pod)]);
            columns.add(cells);
        }
        columns.write(text, "  ");
    }

    fn tally(&self, id: &PortId, address: SocketAddr) -> Option<TallyNow> {
        let live = self.live.as_ref()?;
        let mut ports = live.table.ports(&id.service).iter().chain(live.beside.iter().map(|(_, port)| port));
        let port = ports.find(|port| port.id == *id)?;
        let endpoint = port.endpoints.iter().find(|endpoint| endpoint.address == address)?;
        Some(TallyNow::of(endpoint, live.now))
    }
}

impl TallyNow {
    fn of(endpoint: &selection::Endpoint, now: Millis) -> Self {
        Self {
            active: endpoint.tally.active(),
            failures: endpoint.tally.failures(),
            aside_milliseconds: endpoint.tally.aside_until().saturating_sub(now),
        }
    }
}

/// An empty line between two things.
fn paragraph(text: &mut String) {
    if !text.is_empty() {
        text.push('\n');
    }
}

/// The type as `spec.type` spells it.
fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::ClusterIp | Kind::Headless => "ClusterIP",
        Kind::NodePort => "NodePort",
        Kind::LoadBalancer => "LoadBalancer",
        Kind::ExternalName(_) => "ExternalName",
    }
}

/// Under what clients inside find it.
fn address(row: &Row) -> &str {
    if row.cluster_ip == "None" { "headless" } else { &row.cluster_ip }
}

/// Under what else clients find it, and who may.
fn outside(kind: &Kind, row: &Row) -> Option<String> {
    let mut places = Vec::new();
    if row.node_port != 0 {
        places.push(format!("node port {}", row.node_port));
    }
    let vips = row.load_balancer_vips.join(", ");
    if !vips.is_empty() && row.source_ranges.is_empty() {
        places.push(format!("load balancer {vips}"));
    } else if !vips.is_empty() {
        places.push(format!("load balancer {vips} for {} alone", row.source_ranges.join(", ")));
    }
    if !row.external_ips.is_empty() {
        places.push(format!("external {}", row.external_ips.join(", ")));
    }
    let kind = kind_name(kind);
    (!places.is_empty()).then(|| format!("{kind}, also at {}", places.join("; ")))
}

fn key(port: &Port) -> (&str, selection::Family, &str, selection::Protocol) {
    (&port.row.service, port.row.family, &port.row.port, port.row.protocol)
}

fn plural<'a>(count: usize, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

/// The policies, where they are not the ones that nobody wonders about.
fn policy(row: &Row) -> Option<&'static str> {
    Some(match (row.internal_local, row.external_local) {
        (false, false) => return None,
        (true, false) => "internal policy Local: on its cluster IP only endpoints of this node serve",
        (false, true) => "external policy Local: on outside addresses only endpoints of this node serve",
        (true, true) => "internal and external policy Local: only endpoints of this node serve",
    })
}

/// How an endpoint stands, in words.
fn state(row: &Row, endpoint: &Endpoint, tally: Option<TallyNow>) -> String {
    if let Some(left_out) = endpoint.left_out {
        return format!("left out: {}", left_out.label());
    }
    let has_outside =
        row.node_port != 0 || !row.external_ips.is_empty() || !row.load_balancer_vips.is_empty();
    let uses_both = (row.internal_local || row.external_local) && (!row.internal_local || has_outside);
    let serves = match (endpoint.in_cluster, endpoint.in_local) {
        (true, false) if uses_both => "serves policy Cluster",
        (false, true) if uses_both => "serves policy Local",
        _ => "serves",
    };
    let terminating = if endpoint.terminating { ", terminating" } else { "" };
    format!("{serves}{terminating}{}", aside(tally))
}

fn aside(tally: Option<TallyNow>) -> String {
    match tally {
        Some(tally) if tally.aside_milliseconds > 0 => {
            format!(", put aside for {:.1} s", tally.aside_milliseconds as f64 / 1000.0)
        }
        _ => String::new(),
    }
}
