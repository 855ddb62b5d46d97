//! The table: from a destination, or a Service's name, to its [`ServicePort`]. An array of copy-on-write
//! shards: a new table shares with its predecessor all that did not change, so that its cost is that of the
//! change. Readers borrow a table; nothing in it changes under them.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::{Destination, Family, Path, PortId, ServiceName, ServicePort};

/// Shards of a table.
const SHARDS: usize = 256;

/// The ports of one Service, as [`crate::build`] gives them: IPv4 first, then in the Service's order.
pub type Ports = Arc<[Arc<ServicePort>]>;

/// Everything that can be picked from at one moment.
#[derive(Clone, Debug)]
pub struct Table {
    version: u64,
    shards: Arc<[Arc<Shard>]>,
}

/// What becomes of one Service in the next table.
#[derive(Clone, Debug)]
pub struct Change {
    /// The Service.
    pub service: ServiceName,
    /// Its new ports; none takes it out.
    pub ports: Vec<Arc<ServicePort>>,
}

/// Destinations of IPv4, nearly all there are, have a map of their own, by a number: it is hashed and compared in a
/// few instructions, and several entries share a cache line.
#[derive(Clone, Debug, Default)]
struct Shard {
    v4: HashMap<u64, Claim, FixedState>,
    v6: HashMap<Destination, Claim, FixedState>,
    /// Who else claims a destination, in the order of [`rank`]. That is a mistake of theirs (two Services with one
    /// external IP), and must not lose the second when the first goes.
    later: HashMap<Destination, Box<[Claim]>, FixedState>,
    services: HashMap<ServiceName, Ports, FixedState>,
}

/// Who has a destination, and as what.
type Claim = (Path, Arc<ServicePort>);

/// What a destination is found by.
enum Key<'a> {
    V4(u64),
    V6(&'a Destination),
}

impl<'a> Key<'a> {
    #[inline]
    fn of(destination: &'a Destination) -> Self {
        match destination.ip {
            IpAddr::V4(ip) => {
                let (port, protocol) = (u64::from(destination.port), destination.protocol as u64);
                Self::V4(u64::from(ip.to_bits()) << 32 | port << 16 | protocol)
            }
            IpAddr::V6(_) => Self::V6(destination),
        }
    }

    #[inline]
    fn hash(&self) -> u64 {
        match self {
            Self::V4(number) => HASH.hash_one(number),
            Self::V6(destination) => HASH.hash_one(destination),
        }
    }
}

impl Default for Table {
    /// The empty table, version 0: nothing is known, everything passes.
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Self { version: 0, shards: vec![empty; SHARDS].into() }
    }
}

impl Table {
    /// Counts the tables since the empty one.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The port that serves `destination`, and as what it was dialled. `None`: not ours, it passes.
    pub fn at(&self, destination: &Destination) -> Option<(Path, &Arc<ServicePort>)> {
        let key = Key::of(destination);
        let shard = &self.shards[index(key.hash())];
        let claim = match key {
            Key::V4(number) => shard.v4.get(&number),
            Key::V6(destination) => shard.v6.get(destination),
        };
        claim.map(|(path, port)| (*path, port))
    }

    /// The ports of a Service, none if it is not served.
    pub fn ports(&self, service: &ServiceName) -> &[Arc<ServicePort>] {
        let shard = &self.shards[index(HASH.hash_one(service))];
        shard.services.get(service).map_or(&[], |ports| ports)
    }

    /// The port of `service` that `wanted` names by name or number, in `family` if it has that, else in its
    /// other. A number that protocols share means TCP, then UDP.
    pub fn port(&self, service: &ServiceName, wanted: &str, family: Family) -> Option<&Arc<ServicePort>> {
        let named = |port: &&Arc<ServicePort>| {
            *port.id.port == *wanted || wanted.parse().is_ok_and(|number: u16| number == port.port)
        };
        let ports = self.ports(service).iter().filter(named);
        ports.min_by_key(|port| (port.id.family != family, port.id.protocol))
    }

    /// Every Service port, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<ServicePort>> {
        self.shards.iter().flat_map(|shard| shard.services.values()).flat_map(|ports| ports.iter())
    }

    /// The ports of every Service that may differ in `other`, and perhaps of some that do not: those in the shards that
    /// the two tables do not share. What comes from one table to the next costs what changed.
    pub fn differing<'a>(&'a self, other: &Self) -> impl Iterator<Item = &'a Arc<ServicePort>> {
        let pairs = self.shards.iter().zip(other.shards.iter());
        let shards = pairs.filter(|(mine, theirs)| !Arc::ptr_eq(mine, theirs)).map(|(mine, _)| mine);
        shards.flat_map(|shard| shard.services.values()).flat_map(|ports| ports.iter())
    }

    /// The table after `changes`. Copies the shards that they touch, and nothing else.
    pub fn with(&self, changes: &[Change]) -> Self {
        let mut next = self.clone();
        next.change(changes);
        next.numbered(self.version + 1)
    }

    /// Makes `changes` in this table, whose version stays. Shards that no other table has are changed in place: a table
    /// that nobody reads yet is made in as many steps as one likes, for the price of one.
    pub fn change(&mut self, changes: &[Change]) {
        let mut edit = Edit(Arc::make_mut(&mut self.shards));
        for change in changes {
            let old = Arc::clone(edit.shard(HASH.hash_one(&change.service)).entry(&change.service));
            for port in old.iter() {
                let stays = change.ports.iter().any(|new| Arc::ptr_eq(new, port));
                if !stays {
                    port.destinations().for_each(|(destination, path)| edit.release(destination, path, port));
                }
            }
            for port in &change.ports {
                let stood = old.iter().any(|old| Arc::ptr_eq(old, port));
                if !stood {
                    port.destinations().for_each(|(destination, path)| edit.claim(destination, path, port));
                }
            }
            let services = &mut edit.shard(HASH.hash_one(&change.service)).services;
            if change.ports.is_empty() {
                services.remove(&change.service);
            } else {
                services.insert(change.service.clone(), change.ports.clone().into());
            }
        }
    }

    /// The same table as number `version`.
    #[must_use]
    pub fn numbered(self, version: u64) -> Self {
        Self { version, ..self }
    }
}

impl Shard {
    fn entry(&mut self, service: &ServiceName) -> &Ports {
        self.services.entry_ref(service).or_insert_with(|| Arc::new([]))
    }

    fn first(&mut self, key: &Key<'_>) -> Option<&mut Claim> {
        match key {
            Key::V4(number) => self.v4.get_mut(number),
            Key::V6(destination) => self.v6.get_mut(*destination),
        }
    }

    fn add(&mut self, destination: Destination, claim: Claim) {
        let key = Key::of(&destination);
        let Some(first) = self.first(&key) else {
            match key {
                Key::V4(number) => self.v4.insert(number, claim),
                Key::V6(destination) => self.v6.insert(*destination, claim),
            };
            return;
        };
        let mut later = claim;
        if rank(&later) < rank(first) {
            std::mem::swap(&mut later, first);
        }
        let all = self.later.entry(destination).or_default();
        let mut claims = std::mem::take(all).into_vec();
        claims.insert(claims.partition_point(|other| rank(other) < rank(&later)), later);
        *all = claims.into();
    }

    fn remove(&mut self, destination: &Destination, is_it: impl Fn(&Claim) -> bool) {
        let mut later = self.later.remove(destination).unwrap_or_default().into_vec();
        let key = Key::of(destination);
        match self.first(&key) {
            Some(first) if is_it(first) => {
                if later.is_empty() {
                    match key {
                        Key::V4(number) => self.v4.remove(&number),
                        Key::V6(destination) => self.v6.remove(destination),
                    };
                } else {
                    *first = later.remove(0);
                }
            }
            _ => later.retain(|claim| !is_it(claim)),
        }
        if !later.is_empty() {
            self.later.insert(*destination, later.into());
        }
    }
}

/// The shards of a table in the making: one that another table has too is copied before it is changed.
struct Edit<'a>(&'a mut [Arc<Shard>]);

impl Edit<'_> {
    fn shard(&mut self, hash: u64) -> &mut Shard {
        Arc::make_mut(&mut self.0[index(hash)])
    }

    fn claim(&mut self, destination: Destination, path: Path, port: &Arc<ServicePort>) {
        let shard = self.shard(Key::of(&destination).hash());
        shard.add(destination, (path, Arc::clone(port)));
    }

    fn release(&mut self, destination: Destination, path: Path, port: &Arc<ServicePort>) {
        let shard = self.shard(Key::of(&destination).hash());
        shard.remove(&destination, |claim| claim.0 == path && Arc::ptr_eq(&claim.1, port));
    }
}

/// The order among claims of one destination: by path, then by name. The same for every reader.
fn rank(claim: &Claim) -> (Path, &PortId) {
    (claim.0, &claim.1.id)
}

/// Fixed, so that a table is the same on every machine; what it hashes comes from the API server, not from
/// clients.
const HASH: FixedState = FixedState::with_seed(0x7265_6d6f_7261);

/// The shard of `hash`, by bits that the map within the shard uses least.
fn index(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}
