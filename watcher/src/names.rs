//! What only names need: the host names of endpoints, external names, which Service has an address. In: each Service
//! that changed. Out: a view beside the table, for a DNS server; a table, and so an Envoy, carries none of it.
//!
//! The view shares Services and slices with the store: it holds pointers, and copies nothing. Like the table it is an
//! array of copy-on-write shards, so that a new one costs what changed. Never answers a question of DNS; whoever
//! serves names does.

use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use foldhash::fast::FixedState;
use hashbrown::{Equivalent, HashMap};
use selection::{Kind, Service, ServiceName, Slice, SlicePort, Symbol};

use crate::store::Host;

/// Shards of a view.
const SHARDS: usize = 256;

/// Every name that is known at one moment. Owning one means to see that moment for ever.
#[derive(Clone, Debug)]
pub struct Names {
    version: u64,
    is_whole: bool,
    shards: Arc<[Arc<Shard>]>,
}

/// One Service and what its slices say.
#[derive(Debug)]
pub struct Named {
    service: Arc<Service>,
    slices: Box<[Told]>,
}

/// A slice, and the host names of its endpoints.
pub(crate) type Told = (Arc<Slice>, Option<Arc<[Host]>>);

/// An endpoint that names lead to: one that is ready.
#[derive(Clone, Copy, Debug)]
pub struct NamedEndpoint<'a> {
    /// Its address.
    pub ip: IpAddr,
    /// The `hostname` that its slice gives it.
    pub host: Option<&'a str>,
    /// The ports of its slice.
    pub ports: &'a [SlicePort],
}

#[derive(Clone, Debug, Default)]
struct Shard {
    services: HashMap<ServiceName, Arc<Named>, FixedState>,
    /// How many Services each namespace has.
    namespaces: HashMap<Symbol, usize, FixedState>,
    /// Whose address it is: of a Service itself, or of an endpoint of a headless one.
    addresses: HashMap<IpAddr, Box<[ServiceName]>, FixedState>,
}

/// A [`ServiceName`] that is only borrowed. The fields are in its order, so that both have the same hash.
#[derive(Hash)]
struct Borrowed<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Equivalent<ServiceName> for Borrowed<'_> {
    fn equivalent(&self, key: &ServiceName) -> bool {
        *self.namespace == *key.namespace && *self.name == *key.name
    }
}

impl Default for Names {
    /// No names, version 0: nothing is known.
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Self { version: 0, is_whole: false, shards: vec![empty; SHARDS].into() }
    }
}

impl Names {
    /// Counts the views since the empty one, which is 0.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Every Service of the source is in it: a name that is not, is not a Service.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The Service of this name.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Named>> {
        let key = Borrowed { namespace, name };
        self.shard(&key).services.get(&key)
    }

    /// The namespace has a Service.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.shard(namespace).namespaces.contains_key(namespace)
    }

    /// The Services that have `ip` as their own address or, being headless, as that of a ready endpoint.
    pub fn at(&self, ip: &IpAddr) -> &[ServiceName] {
        self.shard(ip).addresses.get(ip).map_or(&[], |services| services)
    }

    /// Makes `new` what `name` has; tells whether that is a difference. Copies the shards that it touches.
    pub(crate) fn change(&mut self, name: &ServiceName, new: Option<Named>) -> bool {
        let old = self.service(&name.namespace, &name.name).cloned();
        match (&old, &new) {
            (None, None) => return false,
            (Some(old), Some(new)) if old.shares_all_with(new) => return false,
            _ => {}
        }
        let (before, after) = (addresses(old.as_deref()), addresses(new.as_ref()));
        for ip in before.iter().filter(|ip| after.binary_search(ip).is_err()) {
            self.release(ip, name);
        }
        for ip in after.iter().filter(|ip| before.binary_search(ip).is_err()) {
            self.claim(ip, name);
        }
        if old.is_some() != new.is_some() {
            self.count(&name.namespace, new.is_some());
        }
        let services = &mut self.shard_mut(name).services;
        match new {
            Some(new) => services.insert(name.clone(), Arc::new(new)),
            None => services.remove(name),
        };
        true
    }

    /// The same, of the next version.
    pub(crate) fn next(&mut self, is_whole: bool) -> Self {
        self.version += 1;
        self.is_whole = is_whole;
        self.clone()
    }

    fn claim(&mut self, ip: &IpAddr, name: &ServiceName) {
        let holders = self.shard_mut(ip).addresses.entry(*ip).or_default();
        if let Err(at) = holders.binary_search(name) {
            let mut more = std::mem::take(holders).into_vec();
            more.insert(at, name.clone());
            *holders = more.into();
        }
    }

    fn release(&mut self, ip: &IpAddr, name: &ServiceName) {
        let addresses = &mut self.shard_mut(ip).addresses;
        let Some(holders) = addresses.get_mut(ip) else { return };
        *holders = holders.iter().filter(|holder| *holder != name).cloned().collect();
        if holders.is_empty() {
            addresses.remove(ip);
        }
    }

    fn count(&mut self, namespace: &Symbol, is_more: bool) {
        let namespaces = &mut self.shard_mut(&**namespace).namespaces;
        let count = namespaces.entry(Arc::clone(namespace)).or_insert(0);
        *count = if is_more { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            namespaces.remove(&**namespace);
        }
    }

    fn shard<K: Hash + ?Sized>(&self, key: &K) -> &Shard {
        &self.shards[index(key)]
    }

    fn shard_mut<K: Hash + ?Sized>(&mut self, key: &K) -> &mut Shard {
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[index(key)])
    }
}

/// The hash that places keys in shards: of other bits, and of another seed, than the maps within.
fn index<K: Hash + ?Sized>(key: &K) -> usize {
    (FixedState::with_seed(0x6e61_6d65).hash_one(key) >> 32) as usize % SHARDS
}

impl Named {
    pub(crate) fn new(service: Arc<Service>, slices: impl Iterator<Item = Told>) -> Self {
        Self { service, slices: slices.collect() }
    }

    /// The Service itself.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Its slices, in the order of their names.
    pub fn slices(&self) -> Vec<&Slice> {
        self.slices.iter().map(|(slice, _)| &**slice).collect()
    }

    /// Its ready endpoints, an address once for each slice that has it.
    pub fn endpoints(&self) -> impl Iterator<Item = NamedEndpoint<'_>> {
        self.slices.iter().filter(|(slice, _)| slice.family.is_some()).flat_map(|(slice, hosts)| {
            // Both lists ascend: one walk finds each endpoint's name.
            let mut hosts = hosts.iter().flat_map(|hosts| hosts.iter()).peekable();
            slice.endpoints.iter().zip(0..).filter_map(move |(fact, at): (_, u32)| {
                let host = hosts.next_if(|host| host.at == at).map(|host| &*host.name);
                fact.ready.then_some(NamedEndpoint { ip: fact.ip, host, ports: &slice.ports })
            })
        })
    }

    fn shares_all_with(&self, other: &Self) -> bool {
        let is_same = |((a, hosts_a), (b, hosts_b)): (&Told, &Told)| {
            Arc::ptr_eq(a, b) && hosts_a.as_ref().map(Arc::as_ptr) == hosts_b.as_ref().map(Arc::as_ptr)
        };
        Arc::ptr_eq(&self.service, &other.service)
            && self.slices.len() == other.slices.len()
            && self.slices.iter().zip(&other.slices).all(is_same)
    }
}

/// The addresses that lead to a Service by [`Names::at`], sorted, each once.
fn addresses(named: Option<&Named>) -> Vec<IpAddr> {
    let Some(named) = named else { return Vec::new() };
    let mut addresses: Vec<IpAddr> = match named.service.kind {
        Kind::ExternalName(_) => Vec::new(),
        Kind::Headless => named.endpoints().map(|endpoint| endpoint.ip).collect(),
        Kind::ClusterIp | Kind::NodePort | Kind::LoadBalancer => named.service.cluster_ips.to_vec(),
    };
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Where the current view is found, of a source that is followed.
#[derive(Clone, Debug, Default)]
pub struct CurrentNames {
    current: Arc<ArcSwap<Names>>,
    #[cfg(feature = "tokio")]
    published: tokio::sync::watch::Sender<u64>,
}

impl CurrentNames {
    /// A handle for one thread or task that reads often.
    pub fn reader(&self) -> NamesReader {
        NamesReader(arc_swap::Cache::new(Arc::clone(&self.current)))
    }

    /// Makes `names` the current one.
    pub fn publish(&self, names: Names) {
        #[cfg(feature = "tokio")]
        let version = names.version();
        self.current.store(Arc::new(names));
        #[cfg(feature = "tokio")]
        self.published.send_replace(version);
    }

    /// The current view; the empty one, version 0, before there is a table.
    pub fn load(&self) -> Arc<Names> {
        self.current.load_full()
    }

    /// Returns once there is a view later than `version`, with its version.
    #[cfg(feature = "tokio")]
    pub async fn later_than(&self, version: u64) -> u64 {
        let mut published = self.published.subscribe();
        // Fails if nobody can publish any more, which cannot be while `self` can.
        published.wait_for(|published| *published > version).await.map_or(version, |version| *version)
    }
}

/// A cached handle on the current view: reading it costs one relaxed load while the view stays the same.
#[derive(Clone, Debug)]
pub struct NamesReader(arc_swap::Cache<Arc<ArcSwap<Names>>, Arc<Names>>);

impl NamesReader {
    /// The current view; the empty one, version 0, before there is a table.
    pub fn names(&mut self) -> &Arc<Names> {
        self.0.load()
    }
}

#[cfg(test)]
mod tests;
