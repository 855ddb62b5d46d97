//! Which endpoints of a Service may serve a flow here: kube-proxy's rules to the letter (Kubernetes 1.37,
//! `CategorizeEndpoints`), evaluated for each Service port when the table is built.
//! In: a Service, its slices, the place. Out: [`ServicePort`]s. Never looks at load or failures.
//!
//! [`survey`] judges, [`build`] makes the table's entry of the judgement, and whoever explains reads the same
//! judgement: there is one set of rules.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::maglev::Maglev;
use crate::{
    Balance, Endpoint, Fact, Family, Here, Kind, Pool, Port, PortId, Service, ServicePort, Slice, Tally,
};

/// Why a proxy does not serve a Service at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// It is an alias in DNS; a cluster IP left over from an earlier type does not count.
    ExternalName,
    /// It has no cluster IP.
    Headless,
    /// The label `service.kubernetes.io/service-proxy-name` gives it to another proxy.
    OtherProxy,
    /// The annotation `remora.dev/balance: off`.
    Off,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ExternalName => "type ExternalName: an alias in DNS, not an address",
            Self::Headless => "headless: it has no cluster IP, only a name",
            Self::OtherProxy => "label service.kubernetes.io/service-proxy-name: another proxy serves it",
            Self::Off => "annotation remora.dev/balance: off",
        })
    }
}

/// Whether `service` is one that a proxy serves; if not, why.
pub fn skip(service: &Service) -> Option<Skip> {
    match service.kind {
        Kind::ExternalName(_) => Some(Skip::ExternalName),
        _ if service.proxy_name.is_some() => Some(Skip::OtherProxy),
        _ if service.balance == Balance::Off => Some(Skip::Off),
        _ if service.cluster_ips.is_empty() => Some(Skip::Headless),
        _ => None,
    }
}

/// Why an endpoint serves under neither policy, or only under one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// It is neither ready nor terminating while still serving.
    NotReady,
    /// It is terminating and still serves, but there are ready ones.
    Terminating,
    /// Every ready endpoint has hints for nodes, and some are meant for this node; this one is not.
    OtherNodeHint,
    /// Every ready endpoint has hints for zones, and some are meant for this zone; this one is not.
    OtherZoneHint,
    /// The policy is Local and it is not on this node.
    NotLocal,
}

impl LeftOut {
    /// A stable word for tables and JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotReady => "not-ready",
            Self::Terminating => "terminating",
            Self::OtherNodeHint => "hinted-for-other-node",
            Self::OtherZoneHint => "hinted-for-other-zone",
            Self::NotLocal => "not-on-this-node",
        }
    }
}

/// A Service port of one family with every endpoint that its slices name, judged.
#[derive(Debug)]
pub struct Survey<'a> {
    /// Which port.
    pub id: PortId,
    /// The Service's address of this family; `None` if it is found by its name alone.
    pub cluster_ip: Option<IpAddr>,
    /// The port as declared.
    pub port: &'a Port,
    /// The internal policy is Local.
    pub internal_local: bool,
    /// The external policy is Local.
    pub external_local: bool,
    /// Some endpoint in the cluster is usable.
    pub has_any: bool,
    /// The endpoints, ordered by address, each address once.
    pub endpoints: Vec<Standing<'a>>,
}

/// How an endpoint stands.
#[derive(Debug)]
pub struct Standing<'a> {
    /// Where it listens.
    pub address: SocketAddr,
    /// What the API says about it.
    pub fact: &'a Fact,
    /// It is on this node.
    pub is_local: bool,
    /// It serves under policy Cluster.
    pub in_cluster: bool,
    /// It serves under policy Local.
    pub in_local: bool,
    /// Why it serves under no policy that the port uses.
    pub left_out: Option<LeftOut>,
}

/// The ports of `service` in each family that it has an address of, judged for `here`; without any address, in each
/// family that its slices have. Slices are read in the given order: where two name the same address, the last that is
/// not terminating counts, else the first.
pub fn survey<'a>(service: &'a Service, slices: &[&'a Slice], here: &Here) -> Vec<Survey<'a>> {
    let mut surveys = Vec::new();
    for family in [Family::V4, Family::V6] {
        let cluster_ip = service.cluster_ips.iter().copied().find(|ip| Family::of(ip) == family);
        let has_address = !service.cluster_ips.is_empty();
        let is_served = if has_address {
            cluster_ip.is_some()
        } else {
            slices.iter().any(|slice| slice.family == Some(family))
        };
        if !is_served {
            continue;
        }
        // The label tells a proxy to keep its hands off; who asks for the Service by name wants these very slices.
        let read = slices.iter().copied().filter(|slice| !slice.headless || !has_address);
        let read: Vec<&Slice> = read.collect();
        for port in last_of_each(&service.ports) {
            let endpoints = candidates(port, family, &read, here);
            surveys.push(judge(service, port, family, cluster_ip, endpoints, here));
        }
    }
    surveys
}

/// `ports` without those that a later one of the same name and protocol replaces, as kube-proxy reads what no
/// API server accepts.
fn last_of_each(ports: &[Port]) -> impl Iterator<Item = &Port> {
    fn key(port: &Port) -> (&str, crate::Protocol) {
        (&port.name, port.protocol)
    }
    let last: HashMap<_, usize, FixedState> = ports.iter().enumerate().map(|(i, p)| (key(p), i)).collect();
    ports.iter().enumerate().filter(move |(i, port)| last.get(&key(port)) == Some(i)).map(|(_, port)| port)
}

/// The table's entries for `service`. An entry equal to its predecessor in `old` *is* that predecessor; in a
/// new one the endpoints keep their tallies, and so do those that come back while connections are open.
pub fn build(
    service: &Service,
    slices: &[&Slice],
    here: &Here,
    old: &[Arc<ServicePort>],
) -> Vec<Arc<ServicePort>> {
    let old: HashMap<&PortId, &Arc<ServicePort>, FixedState> = old.iter().map(|old| (&old.id, old)).collect();
    let surveys = survey(service, slices, here);
    let health_check_node_port = match service.kind {
        Kind::LoadBalancer if service.external_local => service.health_check_node_port,
        _ => 0,
    };
    let local_ready = [Family::V4, Family::V6].map(|family| match health_check_node_port {
        0 => 0,
        _ => local_ready(&surveys, family),
    });
    let entries = surveys.into_iter().map(|survey| {
        let old = old.get(&survey.id).copied();
        let local_ready = local_ready[survey.id.family as usize];
        let new = ServicePort {
            health_check_node_port,
            local_ready,
            ..entry(service, survey, old.map(|old| &**old))
        };
        match old {
            Some(old) if old.same_as(&new) => Arc::clone(old),
            _ => Arc::new(new),
        }
    });
    entries.collect()
}

/// Addresses of ready endpoints on this node, over all ports of `family`: what kube-proxy's health check counts.
fn local_ready(surveys: &[Survey<'_>], family: Family) -> u32 {
    let of_family: Vec<_> = surveys.iter().filter(|survey| survey.id.family == family).collect();
    let counts = |e: &&Standing<'_>| e.is_local && e.fact.ready;
    let mut count = 0;
    for (n, survey) in of_family.iter().enumerate() {
        let mut last = None;
        for e in survey.endpoints.iter().filter(counts) {
            let ip = e.address.ip();
            // A port has its endpoints in the order of addresses; most ports have those of the first.
            let is_new = last.replace(ip) != Some(ip);
            let is_counted = || of_family[..n].iter().any(|other| has(&other.endpoints, ip, counts));
            count += u32::from(is_new && !is_counted());
        }
    }
    count
}

/// One of `endpoints`, which are in the order of addresses, has the address `ip` and is wanted.
fn has(endpoints: &[Standing<'_>], ip: IpAddr, is_wanted: impl Fn(&&Standing<'_>) -> bool) -> bool {
    let first = endpoints.partition_point(|e| bits(e.address.ip()) < bits(ip));
    endpoints[first..].iter().take_while(|e| e.address.ip() == ip).any(|e| is_wanted(&e))
}

/// The endpoints that `slices` name for `port`, each address once, ordered by address.
fn candidates<'a>(port: &Port, family: Family, slices: &[&'a Slice], here: &Here) -> Vec<Standing<'a>> {
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.family == Some(family)) {
        let joins = |p: &&crate::SlicePort| {
            p.name.as_deref() == Some(&*port.name) && p.protocol == port.protocol && p.port != 0
        };
        for slice_port in slice.ports.iter().filter(joins) {
            // An address of the other family contradicts its slice.
            let facts = slice.endpoints.iter().filter(|fact| Family::of(&fact.ip) == family);
            found.extend(facts.map(|fact| Standing {
                address: SocketAddr::new(fact.ip, slice_port.port),
                fact,
                is_local: fact.node.is_some() && fact.node == here.node,
                in_cluster: false,
                in_local: false,
                left_out: None,
            }));
        }
    }
    found.sort_by_key(|standing| (bits(standing.address.ip()), standing.address.port()));
    found.dedup_by(|later, kept| {
        let same = later.address == kept.address;
        if same && !later.fact.terminating {
            std::mem::swap(later, kept);
        }
        same
    });
    found
}

/// An address as a number: quicker to sort by than the enum.
fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// `CategorizeEndpoints` of kube-proxy for one port.
fn judge<'a>(
    service: &Service,
    port: &'a Port,
    family: Family,
    cluster_ip: Option<IpAddr>,
    mut endpoints: Vec<Standing<'a>>,
    here: &Here,
) -> Survey<'a> {
    let internal_local = service.internal_local;
    let external_local = service.external_local
        && match service.kind {
            Kind::NodePort | Kind::LoadBalancer => true,
            Kind::ClusterIp | Kind::Headless => !service.external_ips.is_empty(),
            Kind::ExternalName(_) => false,
        };
    let mut of_family = service.load_balancer_vips.iter().chain(&service.external_ips);
    let outside = port.node_port != 0 || of_family.any(|ip| Family::of(ip) == family);
    let uses_cluster = !internal_local || outside;
    let uses_local = internal_local || (external_local && outside);

    let topology = topology(&endpoints, here);
    let falls_back = |e: &Standing<'_>| e.fact.serving && e.fact.terminating;
    let mut has_any = false;
    let mut any_for_cluster = false;
    if uses_cluster {
        for e in &mut endpoints {
            e.in_cluster = e.fact.ready && topology.allows(e.fact, here);
            any_for_cluster |= e.in_cluster;
        }
        if !any_for_cluster {
            endpoints.iter_mut().for_each(|e| e.in_cluster = falls_back(e));
        }
        has_any |= endpoints.iter().any(|e| e.in_cluster);
    }
    let any_local_ready = endpoints.iter().any(|e| e.is_local && e.fact.ready);
    if uses_local {
        has_any |= endpoints.iter().any(|e| e.fact.ready || falls_back(e));
        for e in &mut endpoints {
            e.in_local = e.is_local && if any_local_ready { e.fact.ready } else { falls_back(e) };
        }
    }
    for e in &mut endpoints {
        e.left_out = (!e.in_cluster && !e.in_local).then_some(match e.fact {
            _ if !e.fact.ready && !falls_back(e) => LeftOut::NotReady,
            // A fallback would serve here, or on the node that it is on, were there no ready one.
            _ if !e.fact.ready && (uses_cluster || e.is_local) => LeftOut::Terminating,
            _ if !uses_cluster => LeftOut::NotLocal,
            _ if topology == Topology::SameNode => LeftOut::OtherNodeHint,
            _ => LeftOut::OtherZoneHint,
        });
    }
    let id = PortId {
        service: service.name.clone(),
        family,
        port: Arc::clone(&port.name),
        protocol: port.protocol,
    };
    Survey { id, cluster_ip, port, internal_local, external_local, has_any, endpoints }
}

/// Which hints count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Anywhere,
    SameNode,
    SameZone,
}

impl Topology {
    fn allows(self, fact: &Fact, here: &Here) -> bool {
        match self {
            Self::Anywhere => true,
            Self::SameNode => hinted(fact, here).0 == Hinted::ForUs,
            Self::SameZone => hinted(fact, here).1 == Hinted::ForUs,
        }
    }
}

/// What the hints of one kind say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hinted {
    Not,
    ForOthers,
    ForUs,
}

/// What the hints of `fact` say about our node and our zone.
fn hinted(fact: &Fact, here: &Here) -> (Hinted, Hinted) {
    let Some(hints) = &fact.hints else { return (Hinted::Not, Hinted::Not) };
    let of = |names: &[crate::Symbol], ours: &Option<crate::Symbol>| match ours {
        _ if names.is_empty() => Hinted::Not,
        Some(ours) if names.contains(ours) => Hinted::ForUs,
        _ => Hinted::ForOthers,
    };
    (of(&hints.nodes, &here.node), of(&hints.zones, &here.zone))
}

/// Hints of a kind count if every ready endpoint has some and one of them is meant for us.
fn topology(endpoints: &[Standing<'_>], here: &Here) -> Topology {
    let (mut all_nodes, mut our_node, mut all_zones, mut our_zone) = (true, false, true, false);
    for e in endpoints.iter().filter(|e| e.fact.ready) {
        let (node, zone) = hinted(e.fact, here);
        all_nodes &= node != Hinted::Not;
        our_node |= node == Hinted::ForUs;
        all_zones &= zone != Hinted::Not;
        our_zone |= zone == Hinted::ForUs;
    }
    match () {
        () if all_nodes && our_node => Topology::SameNode,
        () if all_zones && our_zone => Topology::SameZone,
        () => Topology::Anywhere,
    }
}

/// The table's entry for a judged port.
fn entry(service: &Service, survey: Survey<'_>, old: Option<&ServicePort>) -> ServicePort {
    let family = survey.id.family;
    let of_family =
        |ips: &[IpAddr]| ips.iter().copied().filter(|ip| Family::of(ip) == family).collect::<Box<[_]>>();
    let mut known = Known::of(old);
    let serving = survey.endpoints.iter().filter(|e| e.in_cluster || e.in_local);
    let endpoints: Box<[Endpoint]> = serving
        .map(|e| {
            let pod = e.fact.pod.as_ref().map_or(0, |pod| pod.id);
            Endpoint {
                address: e.address,
                pod,
                in_cluster: e.in_cluster,
                in_local: e.in_local,
                tally: known.tally(e.address, pod),
            }
        })
        .collect();
    let members = |is_member: fn(&Endpoint) -> bool| -> Box<[u32]> {
        (0u32..).zip(&endpoints).filter(|(_, e)| is_member(e)).map(|(i, _)| i).collect()
    };
    let (cluster, local) = (members(|e| e.in_cluster), members(|e| e.in_local));
    let (cluster, local) = match service.balance {
        Balance::Maglev => {
            let known = old.map_or(&[][..], |old| &*old.endpoints);
            let before: Vec<_> = old.iter().flat_map(|old| [&old.cluster, &old.local]).collect();
            let cluster = Pool { maglev: lookup(&endpoints, &cluster, known, &before), members: cluster };
            let local = if local == cluster.members {
                Pool { maglev: cluster.maglev.clone(), members: local }
            } else {
                Pool { maglev: lookup(&endpoints, &local, known, &before), members: local }
            };
            (cluster, local)
        }
        _ => (Pool { members: cluster, maglev: None }, Pool { members: local, maglev: None }),
    };
    let unrestricted = |net: &ipnet::IpNet| net.prefix_len() == 0;
    let ranges = service.source_ranges.iter().filter(|net| Family::of(&net.addr()) == family);
    let mut source_ranges: Vec<_> = ranges.map(ipnet::IpNet::trunc).collect();
    if source_ranges.iter().any(unrestricted) {
        source_ranges.clear();
    }
    ServicePort {
        resting: known.rest(),
        id: survey.id,
        cluster_ip: survey.cluster_ip,
        port: survey.port.port,
        node_port: survey.port.node_port,
        external_ips: of_family(&service.external_ips),
        load_balancer_vips: of_family(&service.load_balancer_vips),
        source_ranges: source_ranges.into(),
        // A Service without an address has no affinity: the API server warns of it, and nothing keeps it.
        affinity_seconds: service.affinity_seconds.filter(|_| survey.cluster_ip.is_some()),
        // The Service's, filled in once all its ports are judged.
        health_check_node_port: 0,
        local_ready: 0,
        internal_local: survey.internal_local,
        external_local: survey.external_local,
        has_any: survey.has_any,
        balance: service.balance,
        proxy_protocol: service.proxy_protocol,
        is_cluster_whole: cluster.members.len() == endpoints.len(),
        endpoints,
        cluster,
        local,
        turns: old.map(|old| Arc::clone(&old.turns)).unwrap_or_default(),
    }
}

/// The Maglev table for the `members` of `endpoints`. One is dear to fill: if a pool `before` had the same
/// addresses, among the endpoints `known`, its table is taken over.
fn lookup(
    endpoints: &[Endpoint],
    members: &[u32],
    known: &[Endpoint],
    before: &[&Pool],
) -> Option<Arc<Maglev>> {
    let addresses = || members.iter().map(|&i| endpoints[i as usize].address);
    let same = |pool: &&&Pool| pool.members.iter().map(|&i| known[i as usize].address).eq(addresses());
    let taken = before.iter().filter(|pool| pool.maglev.is_some()).find(same);
    taken.map_or_else(|| Maglev::new(addresses()).map(Arc::new), |pool| pool.maglev.clone())
}

/// The tallies of an entry's predecessor, handed over in the order of addresses.
struct Known<'a> {
    endpoints: std::iter::Peekable<std::slice::Iter<'a, Endpoint>>,
    resting: HashMap<(SocketAddr, u64), Endpoint, FixedState>,
}

impl<'a> Known<'a> {
    fn of(old: Option<&'a ServicePort>) -> Self {
        let (endpoints, resting) = old.map_or((&[][..], &[][..]), |old| (&*old.endpoints, &*old.resting));
        let mut known = Self { endpoints: endpoints.iter().peekable(), resting: HashMap::default() };
        resting.iter().for_each(|e| known.put_to_rest(e));
        known
    }

    /// The tally of the endpoint at `address`; a new Pod on an old address starts clean.
    fn tally(&mut self, address: SocketAddr, pod: u64) -> Arc<Tally> {
        let wanted = (bits(address.ip()), address.port());
        while let Some(left) = self.endpoints.next_if(|e| (bits(e.address.ip()), e.address.port()) < wanted) {
            self.put_to_rest(left);
        }
        if let Some(same) = self.endpoints.next_if(|e| e.address == address && e.pod == pod) {
            return Arc::clone(&same.tally);
        }
        self.resting.remove(&(address, pod)).map(|e| e.tally).unwrap_or_default()
    }

    /// An endpoint that serves no longer is remembered while it has connections: should it come back, it is
    /// not idle. A terminated Pod's memory goes with its last connection.
    fn put_to_rest(&mut self, endpoint: &Endpoint) {
        if endpoint.tally.active() > 0 {
            self.resting.insert((endpoint.address, endpoint.pod), endpoint.clone());
        }
    }

    fn rest(mut self) -> Box<[Endpoint]> {
        while let Some(left) = self.endpoints.next() {
            self.put_to_rest(left);
        }
        self.resting.into_values().collect()
    }
}
