//! A Service port of one address family as a reader of the table sees it: its addresses, its policies and
//! the endpoints that may serve it *here*. Made by [`crate::build`]; never changed afterwards, only replaced.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;

use crate::maglev::Maglev;
use crate::{Balance, Family, Protocol, ServiceName, Symbol, Tally};

/// The identity of a [`ServicePort`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId {
    /// The Service.
    pub service: ServiceName,
    /// The family that it is served in.
    pub family: Family,
    /// The port's name, empty if unnamed.
    pub port: Symbol,
    /// The port's protocol.
    pub protocol: Protocol,
}

/// One port of a Service in one family, ready to pick from. The policies are evaluated: a pick looks at
/// [`ServicePort::cluster`] or [`ServicePort::local`] and at nothing of Kubernetes.
///
/// In a big table a pick waits for memory longer than it works, so the fields that every pick reads come first and
/// fill one cache line: hence the fixed order and the alignment.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct ServicePort {
    /// The internal traffic policy is `Local`.
    pub internal_local: bool,
    /// The external traffic policy is `Local`.
    pub external_local: bool,
    /// Some endpoint in the cluster is usable, perhaps only elsewhere: decides between drop and refuse.
    pub has_any: bool,
    /// How to choose.
    pub balance: Balance,
    /// How long a client stays with its endpoint, in seconds; `None` without session affinity.
    pub affinity_seconds: Option<u32>,
    /// Every endpoint is a member of [`Self::cluster`], whose list need then not be looked at.
    pub(crate) is_cluster_whole: bool,
    /// Every endpoint of either pool, once, ordered by address.
    pub endpoints: Box<[Endpoint]>,
    /// The turn counter of this port, shared by old and new tables.
    pub(crate) turns: Arc<AtomicU64>,
    /// The endpoints for policy Cluster.
    pub cluster: Pool,
    /// The endpoints for policy Local.
    pub local: Pool,
    /// Who may use [`Self::load_balancer_vips`]; everybody if empty.
    pub source_ranges: Box<[IpNet]>,
    /// Which one this is.
    pub id: PortId,
    /// The Service's address of this family; `None` if it is found by its name alone.
    pub cluster_ip: Option<IpAddr>,
    /// The port on [`Self::cluster_ip`] and on every other address but a node's.
    pub port: u16,
    /// The port on the nodes, 0 if none.
    pub node_port: u16,
    /// The port of the health check of a load balancer, 0 if none.
    pub health_check_node_port: u16,
    /// What that health check tells: addresses of ready endpoints on this node, of all ports of the Service in this
    /// family; 0 without a health check.
    pub local_ready: u32,
    /// A connection to a node port begins, at its endpoint, with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// `externalIPs` of this family.
    pub external_ips: Box<[IpAddr]>,
    /// The load balancer's addresses of this family that packets keep as destination.
    pub load_balancer_vips: Box<[IpAddr]>,
    /// Endpoints that serve no longer but whose connections are still open: see [`Tally`].
    pub(crate) resting: Box<[Endpoint]>,
}

/// One place that takes connections of a Service port. Its [`Tally`] outlives the table.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// The identity of its Pod ([`crate::Pod::id`]), 0 if unknown.
    pub pod: u64,
    /// It is in the Cluster pool.
    pub in_cluster: bool,
    /// It is in the Local pool.
    pub in_local: bool,
    /// What this instance knows about it from its own connections.
    pub tally: Arc<Tally>,
}

/// The endpoints that one policy allows: indices into [`ServicePort::endpoints`], ascending.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// The members.
    pub members: Box<[u32]>,
    /// Who serves which client, for Services balanced by [`Balance::Maglev`].
    pub(crate) maglev: Option<Arc<Maglev>>,
}

/// Which of a Service's addresses was dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// `spec.clusterIPs`: the internal traffic policy rules.
    ClusterIp,
    /// An address of `status.loadBalancer`: external policy, and source ranges bind.
    LoadBalancer,
    /// `spec.externalIPs`: external policy.
    ExternalIp,
    /// A node's address and the node port: external policy.
    NodePort,
}

/// An address that a client dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// The address; [`Destination::node`] stands for every address of this node.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl Destination {
    /// `address` over `protocol`; an IPv4 address written as IPv6 is taken as IPv4.
    pub fn new(address: SocketAddr, protocol: Protocol) -> Self {
        Self { ip: address.ip().to_canonical(), port: address.port(), protocol }
    }

    /// A node port of `family`, on whatever address the node has: the unspecified address, which no Service
    /// can have, stands for them.
    pub fn node(family: Family, port: u16, protocol: Protocol) -> Self {
        let ip = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { ip, port, protocol }
    }
}

impl From<Destination> for SocketAddr {
    fn from(destination: Destination) -> Self {
        Self::new(destination.ip, destination.port)
    }
}

impl ServicePort {
    /// Every address under which clients reach this port, with the path that it means.
    pub fn destinations(&self) -> impl Iterator<Item = (Destination, Path)> + '_ {
        let protocol = self.id.protocol;
        let on = move |ip: &IpAddr, path| (Destination { ip: *ip, port: self.port, protocol }, path);
        let node = (self.node_port != 0)
            .then(|| (Destination::node(self.id.family, self.node_port, protocol), Path::NodePort));
        let cluster = self.cluster_ip.iter().map(move |ip| on(ip, Path::ClusterIp));
        cluster
            .chain(self.load_balancer_vips.iter().map(move |ip| on(ip, Path::LoadBalancer)))
            .chain(self.external_ips.iter().map(move |ip| on(ip, Path::ExternalIp)))
            .chain(node)
    }

    /// The next turn of this port: the part of a [`crate::Draw`] that differs between connections of one flow.
    pub fn next_turn(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    /// A pick of this port, dialled as `path`, depends on who the client is. Otherwise the client is only a part of the
    /// chance, to which the turn gives enough.
    pub fn looks_at_client(&self, path: Path) -> bool {
        self.affinity_seconds.is_some()
            || self.balance == Balance::Maglev
            || (path == Path::LoadBalancer && !self.source_ranges.is_empty())
    }

    /// The endpoints of `pool`, which must be one of this port's.
    pub fn members<'a>(&'a self, pool: &'a Pool) -> impl ExactSizeIterator<Item = &'a Endpoint> {
        pool.members.iter().map(|&i| &self.endpoints[i as usize])
    }

    /// Both name the same port and would serve every flow alike; what the tallies hold does not count.
    pub fn same_as(&self, other: &Self) -> bool {
        self.id == other.id
            && self.cluster_ip == other.cluster_ip
            && (self.port, self.node_port) == (other.port, other.node_port)
            && self.external_ips == other.external_ips
            && self.load_balancer_vips == other.load_balancer_vips
            && self.source_ranges == other.source_ranges
            && self.affinity_seconds == other.affinity_seconds
            && (self.health_check_node_port, self.local_ready)
                == (other.health_check_node_port, other.local_ready)
            && (self.internal_local, self.external_local, self.has_any)
                == (other.internal_local, other.external_local, other.has_any)
            && (self.balance, self.proxy_protocol) == (other.balance, other.proxy_protocol)
            && self.cluster.members == other.cluster.members
            && self.local.members == other.local.members
            && self.endpoints.len() == other.endpoints.len()
            && self.endpoints.iter().zip(&other.endpoints).all(|(a, b)| Arc::ptr_eq(&a.tally, &b.tally))
    }
}
