//! What `remora endpoints` prints, made of what the watcher knows. Pure: in values, out text or JSON.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use selection::{Millis, PortId, Row, Table};
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
}

/// A row as JSON: the row of the table, and every endpoint with its reason.
#[derive(Serialize)]
struct FullRow<'a> {
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
        let mut ports: Vec<&Port> = self.services.iter().flat_map(|service| &service.ports).collect();
        ports.sort_by(|a, b| key(a).cmp(&key(b)));
        let rows: Vec<FullRow<'_>> = ports.into_iter().map(|port| self.full_row(port)).collect();
        serde_json::to_string_pretty(&rows).map(|text| text + "\n")
    }

    /// The Services for people: for each port its endpoints, and the Services that are skipped, with the reason.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for port in self.services.iter().flat_map(|service| &service.ports) {
            if !text.is_empty() {
                text.push('\n');
            }
            self.write_port(&mut text, port);
        }
        if !text.is_empty() && self.services.iter().any(|service| service.skipped.is_some()) {
            text.push('\n');
        }
        for (service, skip) in
            self.services.iter().filter_map(|service| Some((&service.service, service.skipped?)))
        {
            let _ = writeln!(text, "{service} is not served: {skip}");
        }
        text
    }

    /// What is odd, in sentences.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.services.iter().flat_map(|service| &service.warnings).map(String::as_str)
    }

    fn full_row<'a>(&self, port: &'a Port) -> FullRow<'a> {
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
        FullRow { row: &port.row, endpoints: port.endpoints.iter().map(full).collect() }
    }

    fn write_port(&self, text: &mut String, port: &Port) {
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
            row.service, row.service_port, row.protocol, row.family, row.cluster_ip
        );
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
        let port = live.table.ports(&id.service).iter().find(|port| port.id == *id)?;
        let endpoint = port.endpoints.iter().find(|endpoint| endpoint.address == address)?;
        Some(TallyNow {
            active: endpoint.tally.active(),
            failures: endpoint.tally.failures(),
            aside_milliseconds: endpoint.tally.aside_until().saturating_sub(live.now),
        })
    }
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
    let aside = match tally {
        Some(tally) if tally.aside_milliseconds > 0 => {
            format!(", put aside for {:.1} s", tally.aside_milliseconds as f64 / 1000.0)
        }
        _ => String::new(),
    };
    format!("{serves}{terminating}{aside}")
}
