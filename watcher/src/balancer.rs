//! What a load balancer makes of a cluster. In: Services, nodes and slices as the API server has them, what probes of
//! nodes said, which addresses this machine has. Out: events of a store, writes to Services, what is to be probed.
//! Never speaks to anybody: [`crate::kubernetes::balancer`] does.
//!
//! ```text
//! Services ──claim──▶ pool ──addresses──▶ made-up Service ─┐
//! nodes, probes ─────────────────────────▶ made-up slices ─┴─event──▶ store ──▶ table
//!                      └──▶ finalizer, status, Events
//! ```

mod claim;
mod made;
mod pool;
mod write;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use selection::{Family, ServiceName, Slice, Symbol};
use serde_json::Value;

pub use claim::{CLASS, Claim, FINALIZER, MARK};
pub use made::Node;
pub use pool::{Lack, Pool};

use crate::object::{Object, Reading};
use crate::store::{Event, Item, Key, Kind, Stream};

/// What the load balancer is for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The addresses that it may give away.
    pub pool: Vec<IpNet>,
    /// `spec.loadBalancerClass` of the Services that are its.
    pub class: String,
    /// Services without a class are its too.
    pub is_default: bool,
    /// Where each node tells whether its node ports work, under policy Cluster; nobody is asked if `None`.
    pub node_health: Option<u16>,
}

/// All that a load balancer knows. Owning one means to be the one who decides.
#[derive(Debug)]
pub struct Balancer {
    options: Options,
    pool: Pool,
    claims: BTreeMap<ServiceName, Claim>,
    nodes: BTreeMap<Symbol, Node>,
    slices: BTreeMap<(Symbol, Symbol), (Symbol, Box<Slice>)>,
    /// What probes said last.
    health: HashMap<SocketAddr, bool>,
    /// The addresses that this machine has.
    held: BTreeSet<IpAddr>,
    /// Nobody else serves.
    leads: bool,
    /// Of which kinds everything is known.
    listed: HashSet<Kind>,
    /// What the list that is under way has named.
    listing: HashMap<Kind, HashSet<String>>,
    /// What became of each Service.
    given: BTreeMap<ServiceName, Result<Vec<IpAddr>, Lack>>,
    /// What the store knows.
    told: HashMap<Key, Item>,
    is_told: bool,
}

/// Something to be written to a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The Service.
    pub service: ServiceName,
    /// Its `metadata.uid`.
    pub uid: String,
    /// A merge patch of `/status`.
    pub patch: Value,
    /// What people are told once it is written.
    pub note: Note,
}

/// What people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// It is bad news.
    pub is_warning: bool,
    /// One word of capitals.
    pub reason: &'static str,
    /// One sentence.
    pub text: String,
}

impl Note {
    fn good(reason: &'static str, text: impl Into<String>) -> Self {
        Self { is_warning: false, reason, text: text.into() }
    }

    fn bad(reason: &'static str, text: impl Into<String>) -> Self {
        Self { is_warning: true, reason, text: text.into() }
    }
}

impl Balancer {
    /// One that knows nothing yet.
    pub fn new(options: Options) -> Self {
        Self {
            pool: Pool::new(options.pool.clone()),
            options,
            claims: BTreeMap::new(),
            nodes: BTreeMap::new(),
            slices: BTreeMap::new(),
            health: HashMap::new(),
            held: BTreeSet::new(),
            leads: false,
            listed: HashSet::new(),
            listing: HashMap::new(),
            given: BTreeMap::new(),
            told: HashMap::new(),
            is_told: false,
        }
    }

    /// An object exists and looks like this.
    pub fn exists(&mut self, kind: Kind, object: &Value) {
        if let Some(listing) = self.listing.get_mut(&kind) {
            listing.insert(identity(object));
        }
        match kind {
            Kind::Services => {
                let Options { class, is_default, .. } = &self.options;
                let Some(claim) = Claim::read(object, class, *is_default) else { return };
                if self.claims.get(&claim.name).is_some_and(|known| claim.is_older_than(known)) {
                    return;
                }
                if claim.is_ours || claim.is_marked {
                    self.claims.insert(claim.name.clone(), claim);
                } else {
                    self.claims.remove(&claim.name);
                }
            }
            Kind::Node => {
                if let Some(node) = Node::read(object) {
                    self.nodes.insert(node.name.clone(), node);
                }
            }
            Kind::Slices => {
                let Ok(Reading { object: Object::Item(item), .. }) = Object::of_kind(kind, object) else {
                    return;
                };
                if let Item::Slice { namespace, service, slice, .. } = item {
                    let key = (namespace, slice.name.clone());
                    match service {
                        Some(service) => drop(self.slices.insert(key, (service, slice))),
                        None => drop(self.slices.remove(&key)),
                    }
                }
            }
        }
    }

    /// An object is gone.
    pub fn gone(&mut self, kind: Kind, object: &Value) {
        self.forget(kind, &identity(object));
    }

    /// A list of everything of `kind` begins.
    pub fn list_begins(&mut self, kind: Kind) {
        self.listing.insert(kind, HashSet::new());
    }

    /// It is complete.
    pub fn list_ends(&mut self, kind: Kind) {
        self.listed.insert(kind);
        let Some(named) = self.listing.remove(&kind) else { return };
        let known: Vec<String> = match kind {
            Kind::Services => self.claims.keys().map(ToString::to_string).collect(),
            Kind::Node => self.nodes.keys().map(|name| format!("/{name}")).collect(),
            Kind::Slices => {
                self.slices.keys().map(|(namespace, name)| format!("{namespace}/{name}")).collect()
            }
        };
        known.iter().filter(|identity| !named.contains(*identity)).for_each(|gone| self.forget(kind, gone));
    }

    fn forget(&mut self, kind: Kind, identity: &str) {
        let (namespace, name) = identity.split_once('/').unwrap_or_default();
        match kind {
            Kind::Services => drop(self.claims.remove(&ServiceName::new(namespace, name))),
            Kind::Node => drop(self.nodes.remove(name)),
            Kind::Slices => drop(self.slices.remove(&(namespace.into(), name.into()))),
        }
    }

    /// A probe came back.
    pub fn probed(&mut self, place: SocketAddr, is_healthy: bool) {
        self.health.insert(place, is_healthy);
    }

    /// This machine has these addresses.
    pub fn holds(&mut self, held: BTreeSet<IpAddr>) {
        self.held = held;
    }

    /// From here on this one serves, or another one.
    pub fn leads(&mut self, leads: bool) {
        if self.leads != leads {
            self.leads = leads;
            // What another one has given away meanwhile is in the Services.
            self.pool.clear();
            self.given.clear();
        }
    }

    fn is_complete(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.listed.contains(kind))
    }

    /// Brings all in step with what is known, and tells what that means to the store.
    pub fn settle(&mut self) -> Vec<Event> {
        if !self.is_complete() {
            return Vec::new();
        }
        if self.leads {
            self.give();
        }
        let wanted = if self.leads { self.items() } else { HashMap::new() };
        let mut events = Vec::new();
        if !self.is_told {
            events.extend([Kind::Services, Kind::Slices].map(|kind| Event::ListBegins(Stream::all(kind))));
        }
        for (key, item) in &wanted {
            if self.told.get(key) != Some(item) {
                events.push(Event::Applied(item.clone()));
            }
        }
        for key in self.told.keys().filter(|key| !wanted.contains_key(key)) {
            events.push(Event::Gone(Stream::all(key.kind()), key.clone()));
        }
        if !std::mem::replace(&mut self.is_told, true) {
            events.extend([Kind::Services, Kind::Slices].map(|kind| Event::ListEnds(Stream::all(kind))));
        }
        self.told = wanted;
        let probes = self.probes();
        self.health.retain(|place, _| probes.contains(place));
        events
    }

    /// Gives addresses to who has none, and takes them from who needs none.
    fn give(&mut self) {
        let is_gone = |name: &ServiceName| !self.claims.contains_key(name);
        let gone: Vec<ServiceName> = self.given.keys().filter(|name| is_gone(name)).cloned().collect();
        for name in gone {
            self.given.remove(&name);
            self.pool.release(&name, &[]);
        }
        let served: Vec<Claim> =
            self.claims.values().filter(|claim| claim.is_to_be_served()).cloned().collect();
        // What a Service has already is nobody else's.
        for claim in served.iter().filter(|claim| !self.given.contains_key(&claim.name)) {
            for ip in &claim.has {
                // Else it gets another one below.
                let _ = self.pool.hold(*ip, &claim.name);
            }
        }
        // Who asks for an address gets it before somebody who takes any.
        let (asking, others): (Vec<Claim>, Vec<Claim>) = served
            .into_iter()
            .partition(|claim| claim.wanted.as_ref().is_ok_and(|wanted| !wanted.is_empty()));
        for claim in asking.into_iter().chain(others) {
            let given = self.addresses(&claim);
            self.pool.release(&claim.name, given.as_deref().unwrap_or_default());
            self.given.insert(claim.name, given);
        }
    }

    /// The addresses of `claim`, which the pool counts as its from here on.
    fn addresses(&mut self, claim: &Claim) -> Result<Vec<IpAddr>, Lack> {
        let wanted = claim.wanted.clone()?;
        let is_other = |ip: &&IpAddr| !claim.families.contains(&Family::of(ip));
        if let Some(ip) = wanted.iter().find(is_other) {
            return Err(Lack::OtherFamily { ip: *ip });
        }
        let before = match self.given.get(&claim.name) {
            Some(Ok(given)) => given.clone(),
            _ => claim.has.clone(),
        };
        let mut addresses = Vec::new();
        for family in &claim.families {
            let of_family = |ip: &&IpAddr| Family::of(ip) == *family;
            let asked: Vec<IpAddr> = wanted.iter().filter(of_family).copied().collect();
            if !asked.is_empty() {
                for ip in asked {
                    self.pool.hold(ip, &claim.name)?;
                    addresses.push(ip);
                }
                continue;
            }
            let kept = before.iter().filter(of_family).find(|ip| self.pool.hold(**ip, &claim.name).is_ok());
            let ip = match kept {
                Some(ip) => *ip,
                None if !self.pool.has(*family) && !claim.needs_all_families => continue,
                None => self.pool.first_free(*family)?,
            };
            self.pool.hold(ip, &claim.name)?;
            addresses.push(ip);
        }
        match (addresses.is_empty(), claim.families.first()) {
            (true, family) => Err(Lack::Exhausted { family: family.copied().unwrap_or(Family::V4) }),
            (false, _) => Ok(addresses),
        }
    }

    /// What the store is to know.
    fn items(&self) -> HashMap<Key, Item> {
        let mut items = HashMap::new();
        let mut add = |item: Item| drop(items.insert(item.key(), item));
        for (claim, addresses) in self.served() {
            let Some(service) = made::service(claim, addresses) else { continue };
            add(service);
            for family in families(addresses) {
                add(made::nodes(claim, family, self.nodes.values(), |node| self.is_healthy(claim, node)));
            }
            if claim.is_portless() {
                let of_service = self.slices.iter().filter(|((namespace, _), (service, _))| {
                    (namespace, service) == (&claim.name.namespace, &claim.name.name)
                });
                of_service.for_each(|(_, (_, slice))| add(made::own(claim, slice)));
            }
        }
        items
    }

    /// The Services that have addresses and the finalizer.
    fn served(&self) -> impl Iterator<Item = (&Claim, &Vec<IpAddr>)> {
        let served = self
            .claims
            .values()
            .filter(|claim| self.leads && claim.is_to_be_served() && claim.is_finalized() && claim.is_marked);
        served.filter_map(|claim| Some((claim, self.given.get(&claim.name)?.as_ref().ok()?)))
    }

    fn is_healthy(&self, claim: &Claim, node: &Node) -> bool {
        match self.probe(claim, node) {
            Some(place) => self.health.get(&place).copied().unwrap_or(false),
            None => claim.check().is_none(),
        }
    }

    /// Where `node` tells whether connections to `claim` may go to it.
    fn probe(&self, claim: &Claim, node: &Node) -> Option<SocketAddr> {
        let port = claim.check().or(self.options.node_health)?;
        Some(SocketAddr::new(*node.ips.first()?, port))
    }

    /// Everything that is to be probed.
    pub fn probes(&self) -> BTreeSet<SocketAddr> {
        let nodes = || self.nodes.values().filter(|node| !node.is_excluded);
        self.served().flat_map(|(claim, _)| nodes().filter_map(|node| self.probe(claim, node))).collect()
    }

    /// What is to be written at the time `now`, given as the API writes times.
    pub fn writes(&self, now: &str) -> Vec<Write> {
        if !self.leads || !self.is_complete() {
            return Vec::new();
        }
        self.claims.values().filter_map(|claim| self.write(claim, now)).collect()
    }

    fn write(&self, claim: &Claim, now: &str) -> Option<Write> {
        let (patch, note) = if claim.is_to_be_served() {
            if let Some(patch) = write::finalizer(claim) {
                (patch, Note::good("EnsuringLoadBalancer", "Ensuring load balancer"))
            } else {
                match self.given.get(&claim.name)? {
                    // Nobody is sent to an address before it is there.
                    Ok(addresses) if addresses.iter().all(|ip| self.held.contains(ip)) => {
                        (write::served(claim, addresses, now)?, self.ensured(addresses))
                    }
                    Ok(_) => return None,
                    Err(lack) => (
                        write::lacking(claim, lack, now)?,
                        Note::bad("SyncLoadBalancerFailed", lack.to_string()),
                    ),
                }
            }
        } else {
            let is_gone = !self.pool.of(&claim.name).any(|ip| self.held.contains(ip));
            if !claim.is_to_be_cleaned() || !is_gone {
                return None;
            }
            (write::cleaned(claim), Note::good("DeletedLoadBalancer", "Deleted load balancer"))
        };
        Some(Write { service: claim.name.clone(), uid: claim.uid.clone(), patch, note })
    }

    fn ensured(&self, addresses: &[IpAddr]) -> Note {
        let text: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let text = text.join(" and ");
        if self.nodes.values().all(|node| node.is_excluded) {
            return Note::bad("UnAvailableLoadBalancer", format!("There are no available nodes for {text}"));
        }
        Note::good("EnsuredLoadBalancer", format!("Ensured load balancer at {text}"))
    }
}

fn families(addresses: &[IpAddr]) -> BTreeSet<Family> {
    addresses.iter().map(Family::of).collect()
}

/// Namespace and name of an object.
fn identity(object: &Value) -> String {
    let text = |path| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    format!("{}/{}", text("/metadata/namespace"), text("/metadata/name"))
}

#[cfg(test)]
mod tests;
