//! Why each endpoint serves or not: what `remora endpoints` prints. In: a store. Out: owned values. Asks the same
//! judgement that the table is built from; decides nothing.

use std::net::SocketAddr;

use selection::{Kind, LeftOut, PortId, Row, ServiceName, Skip, Slice, Symbol};

use crate::store::{Entry, Store};

/// What is known of one Service.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Which one.
    pub service: ServiceName,
    /// Its type.
    pub kind: Kind,
    /// Why no proxy serves it; it then has no ports here. A headless Service is none of those: whoever asks for it by
    /// name is served.
    pub skipped: Option<Skip>,
    /// Its ports in each of its families; of a headless Service, of its slices.
    pub ports: Vec<Port>,
    /// What is odd about it, in sentences that tell the next step.
    pub warnings: Vec<String>,
}

/// One Service port of one family, judged.
#[derive(Clone, Debug)]
pub struct Port {
    /// Which one.
    pub id: PortId,
    /// What the table has of it.
    pub row: Row,
    /// Every endpoint that the slices name, ordered by address.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// The node that it is on.
    pub node: Option<Symbol>,
    /// The zone that it is in.
    pub zone: Option<Symbol>,
    /// The name of its Pod.
    pub pod: Option<Symbol>,
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// It is on our node.
    pub is_local: bool,
    /// It serves under policy Cluster.
    pub in_cluster: bool,
    /// It serves under policy Local.
    pub in_local: bool,
    /// Why it serves under neither.
    pub left_out: Option<LeftOut>,
}

/// What `store` knows of `service`; `None` if there is no such Service.
pub fn inspect(store: &Store, service: &ServiceName) -> Option<Inspection> {
    let (name, entry) = store.entry(service)?;
    inspection(store, name, entry)
}

/// What `store` knows of every Service, in the order of their names.
pub fn inspect_all(store: &Store) -> Vec<Inspection> {
    store.entries(|_| true).into_iter().filter_map(|(name, entry)| inspection(store, name, entry)).collect()
}

fn inspection(store: &Store, name: &ServiceName, entry: &Entry) -> Option<Inspection> {
    let service = entry.service.as_ref()?;
    let slices = entry.slices();
    let skipped = selection::skip(service).filter(|skip| *skip != Skip::Headless);
    let (name, kind) = (name.clone(), service.kind.clone());
    let mut inspection = Inspection { service: name, kind, skipped, ports: Vec::new(), warnings: Vec::new() };
    let name = &service.name;
    if skipped.is_some() {
        return Some(inspection);
    }
    // Rows come from the very constructor of the table's entries, also before the first table.
    let built = selection::build(service, &slices, store.here(), store.table().ports(name));
    let surveys = selection::survey(service, &slices, store.here());
    for (survey, built) in surveys.into_iter().zip(&built) {
        let endpoints = survey.endpoints.iter().map(|standing| Endpoint {
            address: standing.address,
            node: standing.fact.node.clone(),
            zone: standing.fact.zone.clone(),
            pod: standing.fact.pod.as_ref().map(|pod| pod.name.clone()),
            ready: standing.fact.ready,
            serving: standing.fact.serving,
            terminating: standing.fact.terminating,
            is_local: standing.is_local,
            in_cluster: standing.in_cluster,
            in_local: standing.in_local,
            left_out: standing.left_out,
        });
        let endpoints: Vec<_> = endpoints.collect();
        if endpoints.is_empty() {
            let unmatched = unmatched(&survey.id, &slices);
            inspection.warnings.extend(unmatched);
        }
        inspection.ports.push(Port { id: survey.id, row: Row::from(&**built), endpoints });
    }
    if slices.is_empty() {
        inspection.warnings.push(no_slices(name, service.has_selector));
    }
    Some(inspection)
}

fn no_slices(name: &ServiceName, has_selector: bool) -> String {
    let ServiceName { namespace, name: service } = name;
    if has_selector {
        format!(
            "Service {name} has a selector but no EndpointSlices: export them with \
             kubectl get endpointslices -l kubernetes.io/service-name={service} -n {namespace} -o yaml"
        )
    } else {
        format!(
            "Service {name} has neither a selector nor EndpointSlices: write one with the label \
             kubernetes.io/service-name: {service}"
        )
    }
}

/// A port for which slices have endpoints, but none under its name and protocol.
fn unmatched(id: &PortId, slices: &[&Slice]) -> Option<String> {
    let ours: Vec<_> =
        slices.iter().filter(|s| s.family == Some(id.family) && !s.endpoints.is_empty()).collect();
    if ours.is_empty() {
        return None;
    }
    let mut offered: Vec<_> = ours
        .iter()
        .flat_map(|slice| &slice.ports)
        .map(|port| format!("\"{}\"/{}", port.name.as_deref().unwrap_or_default(), port.protocol))
        .collect();
    offered.sort_unstable();
    offered.dedup();
    Some(format!(
        "Service {} port \"{}\"/{}: its EndpointSlices ({}) have endpoints, but no port of this name and protocol; \
         they have {}",
        id.service,
        id.port,
        id.protocol,
        id.family,
        if offered.is_empty() { "none".to_owned() } else { offered.join(", ") },
    ))
}
