//! v1 Service. The fields are those of core/v1 `ServiceSpec` and `ServiceStatus`; defaults as the API server's
//! (`pkg/apis/core/v1/defaults.go`), for manifests that never met one.

use std::net::IpAddr;

use ipnet::IpNet;
use selection::{Balance, Kind, Port, Protocol, Service, ServiceName, Symbol};

use super::field::Field;
use super::{Metadata, Warning};

pub(super) const PROTOCOLS: [(&str, Protocol); 3] =
    [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];

/// `sessionAffinityConfig.clientIP.timeoutSeconds` if absent.
const AFFINITY_SECONDS: u32 = 10_800;

/// The label that gives a Service to another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The annotation that says how to balance.
const BALANCE: &str = "remora.dev/balance";
/// The annotation that says how endpoints are told who the client is.
const PROXY_PROTOCOL: &str = "remora.dev/proxy-protocol";

pub(super) fn read(root: &Field<'_, '_>, warnings: &mut Vec<Warning>) -> Result<Service, Warning> {
    let Metadata { namespace, name } = Metadata::read(root)?;
    let metadata = root.get("metadata");
    let spec = root.get("spec");
    let (cluster_ips, is_headless) = cluster_ips(&spec)?;
    let external_ips = addresses(&spec.get("externalIPs"), warnings)?;
    let local = |field: Field<'_, '_>| field.choice(&[("Cluster", false), ("Local", true)]);
    let service_type = spec.get("type").choice(&[
        ("ClusterIP", Type::ClusterIp),
        ("NodePort", Type::NodePort),
        ("LoadBalancer", Type::LoadBalancer),
        ("ExternalName", Type::ExternalName),
    ])?;
    let kind = match service_type.unwrap_or(Type::ClusterIp) {
        Type::ClusterIp if is_headless => Kind::Headless,
        Type::ClusterIp => Kind::ClusterIp,
        Type::NodePort => Kind::NodePort,
        Type::LoadBalancer => Kind::LoadBalancer,
        Type::ExternalName => Kind::ExternalName(spec.get("externalName").required_text()?.into()),
    };
    Ok(Service {
        name: ServiceName::new(namespace, name),
        kind,
        cluster_ips,
        ports: ports(&spec.get("ports"), warnings)?,
        external_ips,
        load_balancer_vips: load_balancer_vips(root, warnings)?,
        source_ranges: source_ranges(&spec.get("loadBalancerSourceRanges"))?,
        internal_local: local(spec.get("internalTrafficPolicy"))?.unwrap_or(false),
        external_local: local(spec.get("externalTrafficPolicy"))?.unwrap_or(false),
        affinity_seconds: affinity(&spec)?,
        health_check_node_port: spec.get("healthCheckNodePort").port(0)?.unwrap_or(0),
        has_selector: spec.get("selector").has_fields(),
        proxy_name: metadata.get("labels").get(PROXY_NAME).text()?.map(Symbol::from),
        proxy_protocol: proxy_protocol(&metadata, warnings),
        balance: balance(&metadata, warnings),
    })
}

#[derive(Clone, Copy)]
enum Type {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

/// The cluster addresses, and whether the Service wants none. `clusterIPs` wins over `clusterIP`.
fn cluster_ips(spec: &Field<'_, '_>) -> Result<(Box<[IpAddr]>, bool), Warning> {
    let (list, single) = (spec.get("clusterIPs"), spec.get("clusterIP"));
    let mut ips = Vec::new();
    let mut is_headless = false;
    let mut take = |field: Field<'_, '_>| -> Result<(), Warning> {
        match field.text()? {
            None | Some("") => {}
            Some("None") => is_headless = true,
            Some(_) => ips.extend(field.parsed::<IpAddr>("an IP address")?),
        }
        Ok(())
    };
    if list.items()?.len() > 0 {
        list.items()?.try_for_each(&mut take)?;
    } else {
        take(single)?;
    }
    Ok((ips.into(), is_headless))
}

/// Ports that cannot be understood are left out, one by one.
fn ports(field: &Field<'_, '_>, warnings: &mut Vec<Warning>) -> Result<Box<[Port]>, Warning> {
    let mut ports: Vec<Port> = Vec::new();
    for item in field.items()? {
        match port(&item) {
            Ok(port) if ports.iter().any(|p| p.name == port.name && p.protocol == port.protocol) => {
                let message = format!("replaces an earlier port {:?}/{}", &*port.name, port.protocol);
                warnings.push(item.warning("duplicate", message));
                ports.push(port);
            }
            Ok(port) => ports.push(port),
            Err(warning) => warnings.push(warning),
        }
    }
    Ok(ports.into())
}

fn port(item: &Field<'_, '_>) -> Result<Port, Warning> {
    let number = item.get("port");
    let missing = || number.warning("missing", "is missing".to_owned());
    Ok(Port {
        name: item.get("name").text()?.unwrap_or_default().into(),
        protocol: item.get("protocol").choice(&PROTOCOLS)?.unwrap_or_default(),
        port: number.port(1)?.ok_or_else(missing)?,
        node_port: item.get("nodePort").port(0)?.unwrap_or(0),
    })
}

/// The addresses of a list; those that are none are left out.
fn addresses(field: &Field<'_, '_>, warnings: &mut Vec<Warning>) -> Result<Box<[IpAddr]>, Warning> {
    let mut ips = Vec::new();
    for item in field.items()? {
        match item.parsed::<IpAddr>("an IP address") {
            Ok(ip) => ips.extend(ip),
            Err(warning) => warnings.push(warning),
        }
    }
    Ok(ips.into())
}

/// The addresses of the load balancer that packets keep as destination: `ipMode` `VIP` or absent.
fn load_balancer_vips(root: &Field<'_, '_>, warnings: &mut Vec<Warning>) -> Result<Box<[IpAddr]>, Warning> {
    let status = root.get("status");
    let balancer = status.get("loadBalancer");
    let ingress = balancer.get("ingress");
    let mut ips = Vec::new();
    for item in ingress.items()? {
        let (mode, ip) = (item.get("ipMode"), item.get("ip"));
        let is_vip = matches!(mode.text()?, None | Some("" | "VIP"));
        if !is_vip || ip.text()? == Some("") {
            continue;
        }
        match ip.parsed::<IpAddr>("an IP address") {
            Ok(ip) => ips.extend(ip),
            Err(warning) => warnings.push(warning),
        }
    }
    Ok(ips.into())
}

/// Ranges of addresses. White space around them and bits of the host are tolerated; a range that cannot be
/// understood makes the Service unreadable, for without it everybody could come in.
fn source_ranges(field: &Field<'_, '_>) -> Result<Box<[IpNet]>, Warning> {
    let mut ranges = Vec::new();
    for item in field.items()? {
        let range = item.parsed::<IpNet>("a range of addresses like 10.0.0.0/8")?;
        ranges.extend(range.map(|range| range.trunc()));
    }
    Ok(ranges.into())
}

fn affinity(spec: &Field<'_, '_>) -> Result<Option<u32>, Warning> {
    let by_client = spec.get("sessionAffinity").choice(&[("None", false), ("ClientIP", true)])?;
    if by_client != Some(true) {
        return Ok(None);
    }
    let config = spec.get("sessionAffinityConfig");
    let client = config.get("clientIP");
    Ok(Some(client.get("timeoutSeconds").number(1, 86_400)?.unwrap_or(AFFINITY_SECONDS)))
}

fn proxy_protocol(metadata: &Field<'_, '_>, warnings: &mut Vec<Warning>) -> bool {
    let annotations = metadata.get("annotations");
    let annotation = annotations.get(PROXY_PROTOCOL);
    let version = match annotation.text() {
        Ok(None) => return false,
        Ok(Some("v2")) => return true,
        Ok(Some(text)) => annotation.warning("proxy-protocol", format!("{text:?} is not v2; none is spoken")),
        Err(warning) => warning,
    };
    warnings.push(version);
    false
}

fn balance(metadata: &Field<'_, '_>, warnings: &mut Vec<Warning>) -> Balance {
    let annotations = metadata.get("annotations");
    let annotation = annotations.get(BALANCE);
    let balance = match annotation.text() {
        Ok(None) => return Balance::default(),
        Ok(Some(text)) => Balance::parse(text).ok_or_else(|| {
            let message =
                format!("{text:?} is not one of {}; {} is taken", Balance::NAMES, Balance::default().name());
            annotation.warning("balance", message)
        }),
        Err(warning) => Err(warning),
    };
    balance.unwrap_or_else(|warning| {
        warnings.push(warning);
        Balance::default()
    })
}
