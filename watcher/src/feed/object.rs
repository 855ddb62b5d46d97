//! Services, slices and endpoints in a frame: each one's writing and reading side by side. The tables are in the
//! header of [`super`].

use std::net::IpAddr;

use ipnet::IpNet;
use selection::{
    Balance, Fact, Family, Here, Hints, Kind, Pod, Port, Protocol, Service, ServiceName, Slice, SlicePort,
    Symbol,
};

use super::Error;
use super::strings::{Strings, Texts};
use super::wire::{Fields, put_bytes, put_eight, put_message, put_nonzero, put_number};
use crate::store::Piece;

/// A slice as a frame has it: with its number and its Service.
#[derive(Debug)]
pub(super) struct Numbered {
    pub(super) number: u64,
    pub(super) service: ServiceName,
    pub(super) slice: Slice,
}

/// A slice that changed, as a frame has it.
#[derive(Debug, Default)]
pub(super) struct Patch {
    pub(super) number: u64,
    pub(super) pieces: Vec<Piece>,
    pub(super) triggered: Option<u64>,
}

pub(super) fn put_name<'a>(out: &mut Vec<u8>, strings: &mut Strings<'a>, name: &'a ServiceName) {
    put_number(out, 1, strings.place(&name.namespace));
    put_number(out, 2, strings.place(&name.name));
}

pub(super) fn name(fields: Fields<'_>, texts: &mut Texts<'_>) -> Result<ServiceName, Error> {
    let (mut namespace, mut name) = (Symbol::default(), Symbol::default());
    for field in fields {
        match field? {
            (1, value) => namespace = texts.symbol(value.number()?)?,
            (2, value) => name = texts.symbol(value.number()?)?,
            _ => {}
        }
    }
    named(namespace, name)
}

fn named(namespace: Symbol, name: Symbol) -> Result<ServiceName, Error> {
    if namespace.is_empty() || name.is_empty() {
        Err(Error::Malformed)
    } else {
        Ok(ServiceName { namespace, name })
    }
}

pub(super) fn put_here<'a>(out: &mut Vec<u8>, strings: &mut Strings<'a>, here: &'a Here) {
    let mut put = |field, text: &'a Option<Symbol>| {
        put_nonzero(out, field, strings.place(text.as_deref().unwrap_or_default()));
    };
    put(1, &here.node);
    put(2, &here.zone);
}

pub(super) fn here(fields: Fields<'_>, texts: &mut Texts<'_>) -> Result<Here, Error> {
    let mut here = Here::default();
    for field in fields {
        let (part, value) = match field? {
            (1, value) => (&mut here.node, value),
            (2, value) => (&mut here.zone, value),
            _ => continue,
        };
        *part = Some(texts.symbol(value.number()?)?).filter(|text| !text.is_empty());
    }
    Ok(here)
}

pub(super) fn put_service<'a>(out: &mut Vec<u8>, strings: &mut Strings<'a>, service: &'a Service) {
    put_name(out, strings, &service.name);
    let (kind, external_name) = match &service.kind {
        Kind::ClusterIp => (1, None),
        Kind::Headless => (2, None),
        Kind::NodePort => (3, None),
        Kind::LoadBalancer => (4, None),
        Kind::ExternalName(name) => (5, Some(name)),
    };
    put_number(out, 3, kind);
    external_name.into_iter().for_each(|name| put_number(out, 4, strings.place(name)));
    service.cluster_ips.iter().for_each(|ip| put_ip(out, 5, *ip));
    for port in &service.ports {
        put_message(out, 6, |out| {
            put_nonzero(out, 1, strings.place(&port.name));
            put_nonzero(out, 2, protocol_number(port.protocol));
            put_nonzero(out, 3, port.port.into());
            put_nonzero(out, 4, port.node_port.into());
        });
    }
    service.external_ips.iter().for_each(|ip| put_ip(out, 7, *ip));
    service.load_balancer_vips.iter().for_each(|ip| put_ip(out, 8, *ip));
    service.source_ranges.iter().for_each(|range| put_range(out, 9, range));
    let Service { internal_local, external_local, has_selector, proxy_protocol, .. } = *service;
    let flags = [internal_local, external_local, has_selector, proxy_protocol];
    put_nonzero(out, 10, bits(flags));
    service.affinity_seconds.into_iter().for_each(|seconds| put_number(out, 11, seconds.into()));
    put_nonzero(out, 12, service.health_check_node_port.into());
    service.proxy_name.iter().for_each(|name| put_number(out, 13, strings.place(name)));
    put_nonzero(out, 14, balance_number(service.balance));
}

pub(super) fn service(fields: Fields<'_>, texts: &mut Texts<'_>) -> Result<Service, Error> {
    let (mut namespace, mut name) = (Symbol::default(), Symbol::default());
    let (mut kind, mut external_name) = (0, Symbol::default());
    let (mut cluster_ips, mut external_ips, mut vips) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ports, mut ranges) = (Vec::new(), Vec::new());
    let (mut flags, mut affinity_seconds, mut health_check_node_port) = (0, None, 0);
    let (mut proxy_name, mut balance) = (None, 0);
    for field in fields {
        match field? {
            (1, value) => namespace = texts.symbol(value.number()?)?,
            (2, value) => name = texts.symbol(value.number()?)?,
            (3, value) => kind = value.number()?,
            (4, value) => external_name = texts.symbol(value.number()?)?,
            (5, value) => cluster_ips.push(ip(value.bytes()?)?),
            (6, value) => ports.extend(port(value.message()?, texts)?),
            (7, value) => external_ips.push(ip(value.bytes()?)?),
            (8, value) => vips.push(ip(value.bytes()?)?),
            (9, value) => ranges.push(range(value.bytes()?)?),
            (10, value) => flags = value.number()?,
            (11, value) => affinity_seconds = Some(value.small()?),
            (12, value) => health_check_node_port = value.port()?,
            (13, value) => proxy_name = Some(texts.symbol(value.number()?)?),
            (14, value) => balance = value.number()?,
            _ => {}
        }
    }
    let kind = match kind {
        1 => Kind::ClusterIp,
        3 => Kind::NodePort,
        4 => Kind::LoadBalancer,
        5 => Kind::ExternalName(external_name),
        2 => Kind::Headless,
        // Of a kind that a newer writer knows: nothing that we could serve, its connections pass.
        _ => {
            cluster_ips.clear();
            Kind::Headless
        }
    };
    Ok(Service {
        name: named(namespace, name)?,
        kind,
        cluster_ips: cluster_ips.into(),
        ports: ports.into(),
        external_ips: external_ips.into(),
        load_balancer_vips: vips.into(),
        source_ranges: ranges.into(),
        internal_local: flags & 1 != 0,
        external_local: flags & 2 != 0,
        affinity_seconds,
        health_check_node_port,
        has_selector: flags & 4 != 0,
        proxy_protocol: flags & 8 != 0,
        proxy_name,
        balance: balance_of(balance),
    })
}

/// `None` for a protocol that a newer writer knows.
fn port(fields: Fields<'_>, texts: &mut Texts<'_>) -> Result<Option<Port>, Error> {
    let mut port = Port { name: Symbol::default(), protocol: Protocol::Tcp, port: 0, node_port: 0 };
    let mut is_known = true;
    for field in fields {
        match field? {
            (1, value) => port.name = texts.symbol(value.number()?)?,
            (2, value) => match protocol(value.number()?) {
                Some(known) => port.protocol = known,
                None => is_known = false,
            },
            (3, value) => port.port = value.port()?,
            (4, value) => port.node_port = value.port()?,
            _ => {}
        }
    }
    Ok(is_known.then_some(port))
}

/// A slice of `endpoints`, which may be only the first ones of its own.
pub(super) fn put_slice<'a>(
    out: &mut Vec<u8>,
    strings: &mut Strings<'a>,
    number: u64,
    service: &'a ServiceName,
    slice: &'a Slice,
    endpoints: &'a [Fact],
) {
    put_number(out, 1, number);
    put_number(out, 2, strings.place(&service.namespace));
    put_number(out, 3, strings.place(&service.name));
    put_number(out, 4, strings.place(&slice.name));
    let family = slice.family.map_or(0, |family| if family == Family::V4 { 1 } else { 2 });
    put_nonzero(out, 5, family);
    put_nonzero(out, 6, slice.headless.into());
    for port in &slice.ports {
        put_message(out, 7, |out| {
            port.name.iter().for_each(|name| put_number(out, 1, strings.place(name)));
            put_nonzero(out, 2, protocol_number(port.protocol));
            put_nonzero(out, 3, port.port.into());
        });
    }
    endpoints.iter().for_each(|fact| put_message(out, 8, |out| put_fact(out, strings, fact)));
    slice.triggered.into_iter().for_each(|at| put_number(out, 9, at));
}

pub(super) fn slice(fields: Fields<'_>, texts: &mut Texts<'_>, is_lean: bool) -> Result<Numbered, Error> {
    let mut number = 0;
    let (mut namespace, mut service, mut name) = (Symbol::default(), Symbol::default(), Symbol::default());
    let (mut family, mut flags, mut triggered) = (None, 0, None);
    let (mut ports, mut endpoints) = (Vec::new(), Vec::new());
    for field in fields {
        match field? {
            (1, value) => number = value.number()?,
            (2, value) => namespace = texts.symbol(value.number()?)?,
            (3, value) => service = texts.symbol(value.number()?)?,
            (4, value) => name = texts.symbol(value.number()?)?,
            (5, value) => {
                family = match value.number()? {
                    1 => Some(Family::V4),
                    2 => Some(Family::V6),
                    _ => None,
                };
            }
            (6, value) => flags = value.number()?,
            (7, value) => ports.extend(slice_port(value.message()?, texts)?),
            (8, value) => endpoints.push(fact(value.message()?, texts, is_lean)?),
            (9, value) => triggered = Some(value.number()?),
            _ => {}
        }
    }
    if name.is_empty() {
        return Err(Error::Malformed);
    }
    let slice = Slice {
        name,
        family,
        headless: flags & 1 != 0,
        ports: ports.into(),
        endpoints: endpoints.into(),
        triggered: triggered.filter(|_| !is_lean),
    };
    Ok(Numbered { number, service: named(namespace, service)?, slice })
}

/// `None` for a protocol that a newer writer knows.
fn slice_port(fields: Fields<'_>, texts: &mut Texts<'_>) -> Result<Option<SlicePort>, Error> {
    let mut port = SlicePort { name: None, protocol: Protocol::Tcp, port: 0 };
    let mut is_known = true;
    for field in fields {
        match field? {
            (1, value) => port.name = Some(texts.symbol(value.number()?)?),
            (2, value) => match protocol(value.number()?) {
                Some(known) => port.protocol = known,
                None => is_known = false,
            },
            (3, value) => port.port = value.port()?,
            _ => {}
        }
    }
    Ok(is_known.then_some(port))
}

pub(super) fn put_patch<'a>(
    out: &mut Vec<u8>,
    strings: &mut Strings<'a>,
    number: u64,
    pieces: &[Piece<&'a Fact>],
    triggered: Option<u64>,
) {
    put_number(out, 1, number);
    for piece in pieces {
        match piece {
            Piece::Kept { skip, count } => put_message(out, 7, |out| {
                put_nonzero(out, 1, *skip as u64);
                put_nonzero(out, 2, *count as u64);
            }),
            Piece::New(fact) => put_message(out, 8, |out| put_fact(out, strings, fact)),
        }
    }
    triggered.into_iter().for_each(|at| put_number(out, 9, at));
}

pub(super) fn patch(fields: Fields<'_>, texts: &mut Texts<'_>, is_lean: bool) -> Result<Patch, Error> {
    let mut patch = Patch::default();
    for field in fields {
        match field? {
            (1, value) => patch.number = value.number()?,
            (7, value) => patch.pieces.push(kept(value.message()?)?),
            (8, value) => patch.pieces.push(Piece::New(Box::new(fact(value.message()?, texts, is_lean)?))),
            (9, value) => patch.triggered = Some(value.number()?).filter(|_| !is_lean),
            _ => {}
        }
    }
    Ok(patch)
}

fn kept(fields: Fields<'_>) -> Result<Piece, Error> {
    let (mut skip, mut count) = (0, 0);
    for field in fields {
        match field? {
            (1, value) => skip = value.small()? as usize,
            (2, value) => count = value.small()? as usize,
            _ => {}
        }
    }
    Ok(Piece::Kept { skip, count })
}

fn put_fact<'a>(out: &mut Vec<u8>, strings: &mut Strings<'a>, fact: &'a Fact) {
    put_ip(out, 1, fact.ip);
    put_nonzero(out, 2, bits([fact.ready, fact.serving, fact.terminating]));
    fact.node.iter().for_each(|node| put_number(out, 3, strings.place(node)));
    fact.zone.iter().for_each(|zone| put_number(out, 4, strings.place(zone)));
    if let Some(hints) = &fact.hints {
        hints.zones.iter().for_each(|zone| put_number(out, 5, strings.place(zone)));
        hints.nodes.iter().for_each(|node| put_number(out, 6, strings.place(node)));
    }
    if let Some(pod) = &fact.pod {
        put_number(out, 7, strings.place(&pod.name));
        put_eight(out, 8, pod.id);
    }
}

/// A lean one has no name of its Pod: nothing that is picked from needs it.
fn fact(fields: Fields<'_>, texts: &mut Texts<'_>, is_lean: bool) -> Result<Fact, Error> {
    let (mut address, mut conditions, mut node, mut zone) = (None, 0, None, None);
    let (mut zones, mut nodes) = (Vec::new(), Vec::new());
    let (mut pod_name, mut pod_id) = (None, 0);
    for field in fields {
        match field? {
            (1, value) => address = Some(ip(value.bytes()?)?),
            (2, value) => conditions = value.number()?,
            (3, value) => node = Some(texts.symbol(value.number()?)?),
            (4, value) => zone = Some(texts.symbol(value.number()?)?),
            (5, value) => zones.push(texts.symbol(value.number()?)?),
            (6, value) => nodes.push(texts.symbol(value.number()?)?),
            (7, value) => pod_name = Some(texts.symbol(if is_lean { 0 } else { value.number()? })?),
            (8, value) => pod_id = value.number()?,
            _ => {}
        }
    }
    let has_hints = !zones.is_empty() || !nodes.is_empty();
    Ok(Fact {
        ip: address.ok_or(Error::Malformed)?,
        ready: conditions & 1 != 0,
        serving: conditions & 2 != 0,
        terminating: conditions & 4 != 0,
        node,
        zone,
        hints: has_hints.then(|| Box::new(Hints { zones: zones.into(), nodes: nodes.into() })),
        pod: pod_name.map(|name| Pod { name, id: pod_id }),
    })
}

pub(super) fn put_ip(out: &mut Vec<u8>, field: u32, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => put_bytes(out, field, &ip.octets()),
        IpAddr::V6(ip) => put_bytes(out, field, &ip.octets()),
    }
}

pub(super) fn ip(bytes: &[u8]) -> Result<IpAddr, Error> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).map_err(|_| Error::Malformed)
}

fn put_range(out: &mut Vec<u8>, field: u32, range: &IpNet) {
    let mut bytes = match range.addr() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.push(range.prefix_len());
    put_bytes(out, field, &bytes);
}

fn range(bytes: &[u8]) -> Result<IpNet, Error> {
    let (prefix, address) = bytes.split_last().ok_or(Error::Malformed)?;
    IpNet::new(ip(address)?, *prefix).map_err(|_| Error::Malformed)
}

/// Flags as a number, the first being 1, the second 2, and so on.
fn bits<const N: usize>(flags: [bool; N]) -> u64 {
    (0..).zip(flags).map(|(at, flag)| u64::from(flag) << at).sum()
}

pub(super) fn protocol_number(protocol: Protocol) -> u64 {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::Sctp => 2,
    }
}

pub(super) fn protocol(number: u64) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| protocol_number(*p) == number)
}

fn balance_number(balance: Balance) -> u64 {
    match balance {
        Balance::LeastConnections => 0,
        Balance::Random => 1,
        Balance::RoundRobin => 2,
        Balance::Maglev => 3,
        Balance::Off => 4,
    }
}

/// One that a newer writer knows is the default.
fn balance_of(number: u64) -> Balance {
    [Balance::Random, Balance::RoundRobin, Balance::Maglev, Balance::Off]
        .into_iter()
        .find(|balance| balance_number(*balance) == number)
        .unwrap_or_default()
}
