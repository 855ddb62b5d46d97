//! A Service and its EndpointSlices as facts: what the API says, reduced to what choosing an endpoint needs.
//! Made by whoever reads the API (the watcher), consumed by [`crate::build`]. Never holds a result.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Family, Protocol, ServiceName, Symbol};

/// One Service as its owner declared it. `spec` and `status` of core/v1 Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// `spec.type`.
    pub kind: Kind,
    /// `spec.clusterIPs`, the primary first; empty for a headless Service.
    pub cluster_ips: Box<[IpAddr]>,
    /// `spec.ports`.
    pub ports: Box<[Port]>,
    /// `spec.externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is `VIP` or absent.
    pub load_balancer_vips: Box<[IpAddr]>,
    /// `spec.loadBalancerSourceRanges`.
    pub source_ranges: Box<[IpNet]>,
    /// `spec.internalTrafficPolicy` is `Local`.
    pub internal_local: bool,
    /// `spec.externalTrafficPolicy` is `Local`.
    pub external_local: bool,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds` if `spec.sessionAffinity` is `ClientIP`.
    pub affinity_seconds: Option<u32>,
    /// `spec.healthCheckNodePort`, 0 if none.
    pub health_check_node_port: u16,
    /// `spec.selector` has entries: a controller makes the slices.
    pub has_selector: bool,
    /// The label `service.kubernetes.io/service-proxy-name`: another proxy serves it, whatever the value.
    pub proxy_name: Option<Symbol>,
    /// Endpoints are told who the client is where they cannot see it: the annotation `remora.dev/proxy-protocol: v2`.
    pub proxy_protocol: bool,
    /// The annotation `remora.dev/balance`.
    pub balance: Balance,
}

/// `spec.type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `ClusterIP` with an address.
    ClusterIp,
    /// `ClusterIP` with `clusterIP: None`.
    Headless,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName`, with `spec.externalName`.
    ExternalName(Symbol),
}

/// One of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// `name`, empty if unnamed; joins with the name of a slice's port.
    pub name: Symbol,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: u16,
    /// `nodePort`, 0 if none.
    pub node_port: u16,
}

/// How to choose among the endpoints that may serve; the annotation `remora.dev/balance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Balance {
    /// `least-connections`: of two drawn at random, the one with fewer active connections.
    #[default]
    LeastConnections,
    /// `random`.
    Random,
    /// `round-robin`.
    RoundRobin,
    /// `maglev`: the client's address decides, alike on every host.
    Maglev,
    /// `off`: the Service is not ours; its connections pass.
    Off,
}

impl Balance {
    /// Every value that the annotation may have, for messages.
    pub const NAMES: &str = "least-connections, random, round-robin, maglev, off";

    /// The value of the annotation, `None` if it is not one of [`Self::NAMES`].
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "least-connections" => Self::LeastConnections,
            "random" => Self::Random,
            "round-robin" => Self::RoundRobin,
            "maglev" => Self::Maglev,
            "off" => Self::Off,
            _ => return None,
        })
    }

    /// The value as the annotation spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::LeastConnections => "least-connections",
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
            Self::Maglev => "maglev",
            Self::Off => "off",
        }
    }
}

/// One EndpointSlice of discovery.k8s.io/v1. Which Service it belongs to is told by the label
/// `kubernetes.io/service-name` alone, and kept by whoever holds the slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// `metadata.name`: slices of a Service are read in the order of their names.
    pub name: Symbol,
    /// `addressType`; `None` for FQDN, which no proxy serves.
    pub family: Option<Family>,
    /// The label `service.kubernetes.io/headless`: names may use this slice, a proxy may not.
    pub headless: bool,
    /// `ports`; none means no endpoints.
    pub ports: Box<[SlicePort]>,
    /// `endpoints`, those with a readable first address.
    pub endpoints: Box<[Fact]>,
    /// The annotation `endpoints.kubernetes.io/last-change-trigger-time`, in milliseconds since 1970.
    pub triggered: Option<u64>,
}

/// One of a slice's `ports`. Joined with a Service's port by name *and* protocol, never by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// `name`; `None` (no API server writes it) joins nothing.
    pub name: Option<Symbol>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`, the number that the endpoint listens on; 0 if absent, which joins nothing.
    pub port: u16,
}

/// One of a slice's `endpoints`: what the API says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// `addresses[0]`.
    pub ip: IpAddr,
    /// `conditions.ready`, absent is true.
    pub ready: bool,
    /// `conditions.serving`, absent is true.
    pub serving: bool,
    /// `conditions.terminating`, absent is false.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Symbol>,
    /// `zone`: shown to people; hints alone decide.
    pub zone: Option<Symbol>,
    /// `hints`; absent if both lists are empty.
    pub hints: Option<Box<Hints>>,
    /// `targetRef` of a Pod.
    pub pod: Option<Pod>,
}

/// `hints` of an endpoint: for whom it is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `forZones[].name`.
    pub zones: Box<[Symbol]>,
    /// `forNodes[].name`.
    pub nodes: Box<[Symbol]>,
}

/// The Pod behind an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `targetRef.name`, in the namespace of the slice.
    pub name: Symbol,
    /// A hash of `targetRef.uid` ([`Pod::id_of`]), so that a new Pod of the same name and address is told
    /// apart.
    pub id: u64,
}

impl Pod {
    /// The [`Pod::id`] of a Pod: a fixed hash of its uid, or of its name if it has no uid; never 0.
    pub fn id_of(uid_or_name: &str) -> u64 {
        crate::draw::fixed_hash(uid_or_name.as_bytes()).max(1)
    }
}
