//! discovery.k8s.io/v1 EndpointSlice. An endpoint or port that cannot be understood is left out by itself: the
//! others serve.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use selection::{Fact, Family, Hints, Pod, Slice, SlicePort, Symbol};

use super::field::Field;
use super::service::PROTOCOLS;
use super::{Metadata, Object, Warning};
use crate::store::{Host, Item};

/// The label by which alone a slice belongs to a Service of its namespace.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label of slices that are for names only, whatever its value.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// When the change was triggered that the controller wrote last.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

pub(super) fn read(root: &Field<'_, '_>, warnings: &mut Vec<Warning>) -> Result<Object, Warning> {
    let Metadata { namespace, name } = Metadata::read(root)?;
    let metadata = root.get("metadata");
    let labels = metadata.get("labels");
    let address_type = root.get("addressType");
    if !address_type.is_present() {
        return Err(address_type.warning("missing", "is missing: IPv4, IPv6 or FQDN".to_owned()));
    }
    let family =
        address_type.choice(&[("IPv4", Some(Family::V4)), ("IPv6", Some(Family::V6)), ("FQDN", None)])?;
    let family = family.flatten();
    let (mut endpoints, mut hosts) = (Vec::new(), Vec::new());
    if let Some(family) = family {
        let list = root.get("endpoints");
        let items = list.items()?;
        endpoints.reserve_exact(items.len());
        for item in items {
            match fact(&item, family) {
                Ok(fact) => {
                    let name = item.get("hostname").text().unwrap_or_default();
                    let at = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
                    hosts.extend(
                        name.filter(|name| !name.is_empty()).map(|name| Host { at, name: name.into() }),
                    );
                    endpoints.push(fact);
                }
                Err(warning) => warnings.push(warning),
            }
        }
    }
    let slice = Slice {
        name: name.into(),
        family,
        headless: labels.get(HEADLESS).is_present(),
        ports: ports(&root.get("ports"), warnings)?,
        endpoints: endpoints.into(),
        triggered: triggered(&metadata),
    };
    Ok(Object::Item(Item::Slice {
        namespace: namespace.into(),
        service: labels.get(SERVICE_NAME).text()?.map(Symbol::from),
        slice: Box::new(slice),
        hosts,
    }))
}

fn ports(field: &Field<'_, '_>, warnings: &mut Vec<Warning>) -> Result<Box<[SlicePort]>, Warning> {
    let mut ports = Vec::new();
    let items = field.items()?;
    ports.reserve_exact(items.len());
    for item in items {
        match port(&item) {
            Ok(port) => ports.push(port),
            Err(warning) => warnings.push(warning),
        }
    }
    Ok(ports.into())
}

/// An API server gives every port a name, if only the empty one; a manifest that never met one may not.
fn port(item: &Field<'_, '_>) -> Result<SlicePort, Warning> {
    Ok(SlicePort {
        name: Some(item.get("name").text()?.unwrap_or_default().into()),
        protocol: item.get("protocol").choice(&PROTOCOLS)?.unwrap_or_default(),
        port: item.get("port").port(1)?.unwrap_or(0),
    })
}

fn fact(item: &Field<'_, '_>, family: Family) -> Result<Fact, Warning> {
    let addresses = item.get("addresses");
    let first = addresses.items()?.next();
    let Some(address) = first else {
        return Err(addresses.warning("missing", "is empty".to_owned()));
    };
    let text = address.required_text()?;
    let invalid = |what: &str| address.warning("address", format!("{text:?} is not {what}"));
    let ip = match family {
        Family::V4 => ipv4(text).map(IpAddr::V4).ok_or_else(|| invalid("an IPv4 address")),
        Family::V6 => text.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| invalid("an IPv6 address")),
    }?;
    // The API server refuses loopback too, but files may mean servers on this machine.
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(invalid("the address of an endpoint"));
    }
    let conditions = item.get("conditions");
    let name = |field: &str| -> Result<Option<Symbol>, Warning> {
        Ok(item.get(field).text()?.filter(|text| !text.is_empty()).map(Symbol::from))
    };
    Ok(Fact {
        ip,
        ready: conditions.get("ready").flag()?.unwrap_or(true),
        serving: conditions.get("serving").flag()?.unwrap_or(true),
        terminating: conditions.get("terminating").flag()?.unwrap_or(false),
        node: name("nodeName")?,
        zone: name("zone")?,
        hints: hints(&item.get("hints"))?,
        pod: pod(&item.get("targetRef"))?,
    })
}

/// An IPv4 address; kube-proxy reads leading zeros as decimal ("sloppy"), and so must we.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        *octet = part.parse().ok().filter(|_| is_number)?;
    }
    parts.next().is_none().then(|| octets.into())
}

fn hints(field: &Field<'_, '_>) -> Result<Option<Box<Hints>>, Warning> {
    let names = |field: Field<'_, '_>| -> Result<Box<[Symbol]>, Warning> {
        field.items()?.map(|item| Ok(item.get("name").text()?.unwrap_or_default().into())).collect()
    };
    let hints = Hints { zones: names(field.get("forZones"))?, nodes: names(field.get("forNodes"))? };
    let is_empty = hints.zones.is_empty() && hints.nodes.is_empty();
    Ok((!is_empty).then(|| Box::new(hints)))
}

fn pod(field: &Field<'_, '_>) -> Result<Option<Pod>, Warning> {
    if field.get("kind").text()? != Some("Pod") {
        return Ok(None);
    }
    let Some(name) = field.get("name").text()?.filter(|name| !name.is_empty()) else { return Ok(None) };
    let uid = field.get("uid").text()?.filter(|uid| !uid.is_empty());
    Ok(Some(Pod { name: name.into(), id: Pod::id_of(uid.unwrap_or(name)) }))
}

/// Only a measure depends on it: what cannot be understood counts as absent.
fn triggered(metadata: &Field<'_, '_>) -> Option<u64> {
    let annotations = metadata.get("annotations");
    let text = annotations.get(TRIGGERED).text().ok().flatten()?;
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}
