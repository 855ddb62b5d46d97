//! What is known of the source, and the table made of it. In: events. Out: tables. Never reads a clock, a file
//! or a socket; the same events give the same table in whatever order independent ones come.
//!
//! ```text
//! event ──▶ cache of Services, each with its slices ──dirty Services──▶ build ──▶ Table::with
//! ```
//! An event costs what its object costs; a table costs what the Services cost that changed since the last one.

mod counts;
mod event;
mod journal;
mod piece;

use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};
use selection::{Here, Service, ServiceName, Slice, Symbol, Table};

pub use counts::{Change, Counts};
pub use event::{Event, Host, Item, Key, Kind, Loss, Part, Stream};
pub(crate) use journal::Changed;
pub use piece::Piece;
pub(crate) use piece::split;

use self::journal::Journal;
#[cfg(feature = "names")]
use crate::names::{Named, Names};
use crate::symbols::Symbols;

/// Everything known of the Services that are followed. Owning one means to be the only one who applies events.
#[derive(Debug)]
pub struct Store {
    /// Where we are, as we were told.
    told: Here,
    /// And where the source has added what it knows.
    here: Here,
    symbols: Symbols,
    /// How many slices there ever were.
    numbers: u64,
    /// What changed, if anybody wants to know.
    journal: Option<Journal>,
    services: HashMap<ServiceName, Entry, RandomState>,
    /// Which Service holds the slice of this namespace and name.
    holders: HashMap<(Symbol, Symbol), Symbol, RandomState>,
    /// How many of `services` have their Service.
    known: usize,
    streams: HashMap<Stream, Progress, RandomState>,
    /// What a further list brings to light was missed.
    misses: bool,
    /// Counts lists; an object remembers the count at which it was last told of.
    round: u32,
    dirty: HashSet<ServiceName, RandomState>,
    /// Events that belong together are under way: nothing is published.
    is_held: bool,
    table: Table,
    /// What the next table has so far; beside that it shares all with `table`.
    next: Table,
    /// `next` differs from `table`.
    is_prepared: bool,
    triggers: Vec<u64>,
    counts: Counts,
    /// The view of names, if anybody reads it.
    #[cfg(feature = "names")]
    names: Option<Naming>,
}

/// The next view of names.
#[cfg(feature = "names")]
#[derive(Debug, Default)]
struct Naming {
    next: Names,
    is_published: bool,
}

/// One Service and what belongs to it. Either may be known without the other.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) service: Option<Arc<Service>>,
    service_told: u32,
    /// In the order of their names.
    slices: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    slice: Arc<Slice>,
    /// The host names of its endpoints, if any has one.
    hosts: Option<Arc<[Host]>>,
    /// No other slice ever has it.
    number: u64,
    told: u32,
}

/// How far a stream is.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// It was listed to the end once.
    listed: bool,
    /// It may not be read, and never was: nobody waits for it.
    refused: bool,
    /// The round in which the list that is under way began.
    listing: Option<u32>,
}

impl Store {
    /// An empty store that builds for `here`; what that leaves open, the source may tell.
    pub fn new(here: Here) -> Self {
        Self {
            told: here.clone(),
            here,
            symbols: Symbols::default(),
            numbers: 0,
            journal: None,
            services: HashMap::default(),
            holders: HashMap::default(),
            known: 0,
            streams: HashMap::default(),
            misses: true,
            round: 0,
            dirty: HashSet::default(),
            is_held: false,
            table: Table::default(),
            next: Table::default(),
            is_prepared: false,
            triggers: Vec::new(),
            counts: Counts::default(),
            #[cfg(feature = "names")]
            names: None,
        }
    }

    /// Takes note of one event.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Follow(stream) => {
                self.streams.entry(stream).or_default();
            }
            Event::ListBegins(stream) => {
                self.round += 1;
                self.streams.entry(stream).or_default().listing = Some(self.round);
            }
            Event::ListEnds(stream) => self.list_ends(&stream),
            Event::Applied(Item::Service(service)) => self.apply_service(service),
            Event::Applied(Item::Slice { namespace, service, slice, hosts }) => {
                self.apply_slice(namespace, service, slice, hosts);
            }
            Event::Unreadable(key) => self.still_there(&key),
            Event::Gone(stream, Key::Service(name)) => {
                if stream.part.covers(&name) && self.remove_service(&name) {
                    self.counts.event(Kind::Services, Change::Gone);
                }
            }
            Event::Gone(stream, Key::Slice { namespace, name }) => {
                let holder = self.holder(&namespace, &name);
                if holder.is_some_and(|holder| stream.part.covers(&holder))
                    && self.remove_slice(&namespace, &name)
                {
                    self.counts.event(Kind::Slices, Change::Gone);
                }
            }
            Event::Here(here) => self.place(here),
            Event::Eligible(_) => {}
            Event::Lost(stream, loss) => {
                self.counts.lose(loss);
                let progress = self.streams.entry(stream).or_default();
                progress.refused |= loss == Loss::Forbidden && !progress.listed;
            }
            Event::Patched { namespace, name, pieces, triggered } => {
                self.patch_slice(namespace, &name, pieces, triggered);
            }
            Event::Hold => self.is_held = true,
            Event::Release => self.is_held = false,
            #[cfg(feature = "feed")]
            Event::Answers(_) => {}
            Event::InStep(_) => {}
        }
    }

    /// The source says that we are `there`.
    fn place(&mut self, there: Here) {
        let Here { node, zone } = &self.told;
        // The zone of another node is not ours.
        let is_ours = node.is_none() || there.node.is_none() || *node == there.node;
        let zone = zone.clone().or(there.zone.filter(|_| is_ours));
        let here = Here { node: node.clone().or(there.node), zone };
        if self.here != here {
            self.here = here;
            self.dirty.extend(self.services.keys().cloned());
        }
    }

    /// The next table: `None` if it would be the last one again, if a first list is not complete, or between
    /// [`Event::Hold`] and [`Event::Release`].
    pub fn publish(&mut self) -> Option<Table> {
        if self.is_held || !self.is_complete() {
            return None;
        }
        self.prepare(None);
        if !std::mem::take(&mut self.is_prepared) && self.table.version() > 0 {
            return None;
        }
        self.table = self.next.clone().numbered(self.table.version() + 1);
        Some(self.table.clone())
    }

    /// Builds what the next table will have of every Service that has changed, but of `except`, of which more is to
    /// come. Nobody sees it before [`Self::publish`]: a large change is prepared in small steps.
    pub(crate) fn prepare(&mut self, except: Option<&ServiceName>) {
        let mut changes = Vec::new();
        let mut kept = None;
        for name in std::mem::take(&mut self.dirty) {
            if except == Some(&name) {
                kept = Some(name);
                continue;
            }
            #[cfg(feature = "names")]
            self.name(&name);
            // From what is published, not from an earlier step, which may have had only half of the Service: an
            // endpoint's account must not be lost in between.
            let new = self.ports(&name, self.table.ports(&name));
            let old = self.next.ports(&name);
            let is_same = old.len() == new.len() && old.iter().zip(&new).all(|(a, b)| Arc::ptr_eq(a, b));
            if !is_same {
                changes.push(selection::Change { service: name, ports: new });
            }
        }
        self.dirty.extend(kept);
        self.is_prepared |= !changes.is_empty();
        self.next.change(&changes);
    }

    /// From here on keeps [`Names`] too.
    #[cfg(feature = "names")]
    pub fn follow_names(&mut self) {
        if self.names.is_none() {
            self.names = Some(Naming::default());
            let all: Vec<_> = self.services.keys().cloned().collect();
            all.iter().for_each(|name| self.name(name));
        }
    }

    /// The next view of names: `None` if it would be the last one again, or when there is no table to go with it.
    #[cfg(feature = "names")]
    pub fn take_names(&mut self) -> Option<Names> {
        let has_table = self.table.version() > 0 && !self.is_held;
        let listed = |kind| self.streams.get(&Stream::all(kind)).is_some_and(|progress| progress.listed);
        let is_whole = listed(Kind::Services) && listed(Kind::Slices);
        let naming = self.names.as_mut().filter(|naming| has_table && !naming.is_published)?;
        naming.is_published = true;
        Some(naming.next.next(is_whole))
    }

    /// Brings the next view of names in step with what is known of `name`.
    #[cfg(feature = "names")]
    fn name(&mut self, name: &ServiceName) {
        // Without its slices a headless Service looks as if nobody had its name.
        let has_slices = self.names.is_some() && self.has_listed(Kind::Slices, name);
        let Some(naming) = &mut self.names else { return };
        let entry = self.services.get(name).filter(|_| has_slices);
        let named = entry.and_then(|entry| {
            let slices = entry.slices.iter().map(|held| (Arc::clone(&held.slice), held.hosts.clone()));
            Some(Named::new(Arc::clone(entry.service.as_ref()?), slices))
        });
        naming.is_published &= !naming.next.change(name, named);
    }

    /// Something that belongs together is under way.
    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// The table that was published last; the empty one before the first.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Where this instance runs.
    pub fn here(&self) -> &Here {
        &self.here
    }

    /// What was seen so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many Services are known, those that are skipped included.
    pub fn services(&self) -> usize {
        self.known
    }

    /// How many slices are known.
    pub fn slices(&self) -> usize {
        self.holders.len()
    }

    /// The times at which somebody triggered the changes of slices since the last call, in milliseconds since
    /// 1970: see [`Slice::triggered`].
    pub fn take_triggers(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.triggers)
    }

    /// From here on lists come since something else is wanted: what they bring to light was not missed.
    #[cfg(feature = "feed")]
    pub(crate) fn expect_lists(&mut self) {
        self.misses = false;
    }

    /// From here on remembers what changes, for [`crate::feed::Changes`].
    pub fn record(&mut self) {
        self.journal.get_or_insert_default();
    }

    /// What changed since the last call: first the Services, in the order of their names, then the slices, the oldest
    /// first. What came and went in between is left out.
    pub(crate) fn take_changes(&mut self) -> Vec<Changed> {
        let Some(journal) = &mut self.journal else { return Vec::new() };
        let (services, slices) = (journal.take_services(), journal.take_slices());
        let services = services.into_iter().filter_map(|(name, was_known)| {
            let service = self.services.get(&name).and_then(|entry| entry.service.as_deref());
            let service = service.cloned().map(Box::new);
            (was_known || service.is_some()).then_some(Changed::Service { name, service })
        });
        let slices = slices.into_iter().filter_map(|(number, was)| {
            let held = self.services.get(&was.service).and_then(|entry| entry.slice(&was.name));
            let slice = held.filter(|(held, _)| *held == number).map(|(_, slice)| Box::new(slice.clone()));
            let before = was.slice;
            let is_any = before.is_some() || slice.is_some();
            is_any.then_some(Changed::Slice { number, service: was.service, before, slice })
        });
        services.chain(slices).collect()
    }

    /// What is known of each Service whose name is `wanted`, in the order of their names.
    pub(crate) fn entries(&self, wanted: impl Fn(&ServiceName) -> bool) -> Vec<(&ServiceName, &Entry)> {
        let mut entries: Vec<_> = self.services.iter().filter(|(name, _)| wanted(name)).collect();
        entries.sort_unstable_by_key(|(name, _)| *name);
        entries
    }

    /// What is known of `name`.
    pub(crate) fn entry(&self, name: &ServiceName) -> Option<(&ServiceName, &Entry)> {
        self.services.get_key_value(name)
    }

    /// Every stream that is waited for has been listed: both of Services and of slices, at least of some part.
    fn is_complete(&self) -> bool {
        let listed = |kind| self.streams.iter().any(|(stream, p)| stream.kind == kind && p.listed);
        self.table.version() > 0
            || (self.streams.values().all(|progress| progress.listed || progress.refused)
                && listed(Kind::Services)
                && listed(Kind::Slices))
    }

    /// The ports of `name` in the next table.
    fn ports(
        &self,
        name: &ServiceName,
        old: &[Arc<selection::ServicePort>],
    ) -> Vec<Arc<selection::ServicePort>> {
        let Some(entry) = self.services.get(name) else { return Vec::new() };
        match &entry.service {
            // Without its slices a Service looks as if it had no endpoints, and would be refused.
            Some(service) if selection::skip(service).is_none() && self.has_listed(Kind::Slices, name) => {
                selection::build(service, &entry.slices(), &self.here, old)
            }
            _ => Vec::new(),
        }
    }

    fn has_listed(&self, kind: Kind, name: &ServiceName) -> bool {
        self.progress(kind, name).is_some_and(|progress| progress.listed)
    }

    /// The progress of the stream of `kind` that covers `name`.
    fn progress(&self, kind: Kind, name: &ServiceName) -> Option<&Progress> {
        let parts =
            || [Part::All, Part::Namespace(name.namespace.clone()), Part::Service(name.clone())].into_iter();
        parts().find_map(|part| self.streams.get(&Stream { kind, part }))
    }

    fn list_ends(&mut self, stream: &Stream) {
        let progress = self.streams.entry(stream.clone()).or_default();
        let Some(round) = progress.listing.take() else { return };
        let is_first = !progress.listed;
        *progress = Progress { listed: true, refused: false, listing: None };
        if is_first && stream.kind == Kind::Slices {
            // Services whose slices were not known until here.
            let covered = self.services.keys().filter(|name| stream.part.covers(name)).cloned();
            self.dirty.extend(covered);
        }
        let mut gone = Vec::new();
        for (name, entry) in self.services.iter().filter(|(name, _)| stream.part.covers(name)) {
            match stream.kind {
                Kind::Services if entry.service.is_some() && entry.service_told < round => {
                    gone.push(Key::Service(name.clone()));
                }
                Kind::Slices => {
                    let old = entry.slices.iter().filter(|held| held.told < round);
                    gone.extend(old.map(|held| Key::Slice {
                        namespace: name.namespace.clone(),
                        name: held.slice.name.clone(),
                    }));
                }
                _ => {}
            }
        }
        for key in gone {
            if self.misses {
                self.counts.miss(stream.kind);
            }
            match key {
                Key::Service(name) => self.remove_service(&name),
                Key::Slice { namespace, name } => self.remove_slice(&namespace, &name),
            };
        }
    }

    fn apply_service(&mut self, mut service: Box<Service>) {
        self.symbols.share_service(&mut service);
        let name = service.name.clone();
        let round = self.round;
        let entry = self.services.entry(name.clone()).or_default();
        entry.service_told = round;
        let change = match &entry.service {
            Some(known) if **known == *service => Change::Same,
            Some(_) => Change::Changed,
            None => Change::Added,
        };
        if change != Change::Same {
            let was_known = entry.service.replace(Arc::from(service)).is_some();
            self.known += usize::from(!was_known);
            self.journal.iter_mut().for_each(|journal| journal.service(&name, was_known));
        }
        self.count(Kind::Services, change, &name);
        if change != Change::Same {
            self.dirty.insert(name);
        }
    }

    fn apply_slice(
        &mut self,
        mut namespace: Symbol,
        service: Option<Symbol>,
        mut slice: Box<Slice>,
        hosts: Vec<Host>,
    ) {
        self.symbols.share(&mut namespace);
        let holder = self.holder(&namespace, &slice.name);
        let Some(mut service) = service.filter(|service| !service.is_empty()) else {
            self.remove_slice(&namespace, &slice.name);
            return;
        };
        self.symbols.share(&mut service);
        self.symbols.share_slice(&mut slice);
        let owner = ServiceName { namespace, name: service };
        let was_elsewhere = holder.is_some_and(|holder| holder != owner);
        if was_elsewhere {
            self.remove_slice(&owner.namespace, &slice.name);
        }
        let hosts = (!hosts.is_empty()).then(|| Arc::from(hosts));
        let entry = self.services.entry(owner.clone()).or_default();
        let (change, triggered) = match entry.find(&slice.name) {
            Ok(at) => {
                let held = &mut entry.slices[at];
                held.told = self.round;
                // The slice's own name is kept once: the holders share it.
                slice.name = held.slice.name.clone();
                let triggered = slice.triggered.filter(|_| slice.triggered != held.slice.triggered);
                let is_same = *held.slice == *slice;
                if !is_same {
                    let before = std::mem::replace(&mut held.slice, Arc::from(slice));
                    if let Some(journal) = &mut self.journal {
                        journal.changed(held.number, &owner, Box::new(Arc::unwrap_or_clone(before)));
                    }
                }
                let has_same_hosts = held.hosts == hosts;
                if !has_same_hosts {
                    held.hosts = hosts;
                }
                (if is_same && has_same_hosts { Change::Same } else { Change::Changed }, triggered)
            }
            Err(at) => {
                let key = (owner.namespace.clone(), slice.name.clone());
                self.holders.insert(key, owner.name.clone());
                let triggered = slice.triggered;
                self.numbers += 1;
                self.journal.iter_mut().for_each(|j| j.added(self.numbers, &owner, &slice.name));
                let slice = Arc::from(slice);
                entry.slices.insert(at, Held { slice, hosts, number: self.numbers, told: self.round });
                (if was_elsewhere { Change::Changed } else { Change::Added }, triggered)
            }
        };
        self.count(Kind::Slices, change, &owner);
        if change != Change::Same {
            if self.table.version() > 0 {
                self.triggers.extend(triggered);
            }
            self.dirty.insert(owner);
        }
    }

    /// Makes a slice that is known into one of `pieces`. One that is not known is none of ours.
    fn patch_slice(&mut self, namespace: Symbol, name: &Symbol, pieces: Vec<Piece>, triggered: Option<u64>) {
        let Some(owner) = self.holder(&namespace, name) else { return };
        let Some((_, slice)) = self.services.get(&owner).and_then(|entry| entry.slice(name)) else { return };
        let endpoints = piece::join(&slice.endpoints, pieces);
        let slice =
            Slice { endpoints, triggered, ports: slice.ports.clone(), name: slice.name.clone(), ..*slice };
        // A patch comes by a feed, which does not tell host names.
        self.apply_slice(namespace, Some(owner.name), Box::new(slice), Vec::new());
    }

    /// Counts a change; one that a further list brought to light was missed, unless it is the first that counts.
    fn count(&mut self, kind: Kind, change: Change, service: &ServiceName) {
        let has_table = self.table.version() > 0;
        let is_relisting = |p: &Progress| self.misses && has_table && p.listed && p.listing.is_some();
        if change != Change::Same && self.progress(kind, service).is_some_and(is_relisting) {
            self.counts.miss(kind);
        }
        self.counts.event(kind, change);
    }

    fn still_there(&mut self, key: &Key) {
        let round = self.round;
        match key {
            Key::Service(name) => {
                self.services.get_mut(name).into_iter().for_each(|entry| entry.service_told = round);
            }
            Key::Slice { namespace, name } => {
                let Some(holder) = self.holder(namespace, name) else { return };
                let Some(entry) = self.services.get_mut(&holder) else { return };
                if let Ok(at) = entry.find(name) {
                    entry.slices[at].told = round;
                }
            }
        }
    }

    /// Whether it was known.
    fn remove_service(&mut self, name: &ServiceName) -> bool {
        let Some(entry) = self.services.get_mut(name) else { return false };
        let was_known = entry.service.take().is_some();
        if was_known {
            self.known -= 1;
            self.dirty.insert(name.clone());
            self.journal.iter_mut().for_each(|journal| journal.service(name, true));
        }
        self.forget_if_empty(name);
        was_known
    }

    /// Whether it was known.
    fn remove_slice(&mut self, namespace: &Symbol, name: &Symbol) -> bool {
        let key = (namespace.clone(), name.clone());
        let Some(service) = self.holders.remove(&key) else { return false };
        let holder = ServiceName { namespace: key.0, name: service };
        if let Some(entry) = self.services.get_mut(&holder)
            && let Ok(at) = entry.find(name)
        {
            let held = entry.slices.remove(at);
            if let Some(journal) = &mut self.journal {
                journal.changed(held.number, &holder, Box::new(Arc::unwrap_or_clone(held.slice)));
            }
        }
        self.forget_if_empty(&holder);
        self.dirty.insert(holder);
        true
    }

    fn forget_if_empty(&mut self, name: &ServiceName) {
        if self.services.get(name).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.services.remove(name);
        }
    }

    /// The Service that holds the slice.
    fn holder(&self, namespace: &Symbol, name: &Symbol) -> Option<ServiceName> {
        let service = self.holders.get(&(namespace.clone(), name.clone()))?;
        Some(ServiceName { namespace: namespace.clone(), name: service.clone() })
    }
}

impl Entry {
    /// The slices in the order of their names.
    pub(crate) fn slices(&self) -> Vec<&Slice> {
        self.slices.iter().map(|held| &*held.slice).collect()
    }

    /// Each slice with its number, in the order of their names.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (u64, &Slice)> {
        self.slices.iter().map(|held| (held.number, &*held.slice))
    }

    /// The slice of this name and its number.
    pub(crate) fn slice(&self, name: &str) -> Option<(u64, &Slice)> {
        let held = self.find(name).ok().and_then(|at| self.slices.get(at))?;
        Some((held.number, &held.slice))
    }

    fn find(&self, slice: &str) -> Result<usize, usize> {
        self.slices.binary_search_by(|held| (*held.slice.name).cmp(slice))
    }
}

#[cfg(test)]
mod tests;
