//! What is known of the source, and the table made of it. In: events. Out: tables. Never reads a clock, a file
//! or a socket; the same events give the same table in whatever order independent ones come.
//!
//! ```text
//! event ──▶ cache of Services, each with its slices ──dirty Services──▶ build ──▶ Table::with
//! ```
//! An event costs what its object costs; a table costs what the Services cost that changed since the last one.

mod counts;
mod event;

use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};
use selection::{Here, Service, ServiceName, Slice, Symbol, Table};

pub use counts::{Change, Counts};
pub use event::{Event, Item, Key, Kind, Loss, Part, Stream};

use crate::symbols::Symbols;

/// Everything known of the Services that are followed. Owning one means to be the only one who applies events.
#[derive(Debug)]
pub struct Store {
    here: Here,
    symbols: Symbols,
    services: HashMap<ServiceName, Entry, RandomState>,
    /// Which Service holds the slice of this namespace and name.
    holders: HashMap<(Symbol, Symbol), Symbol, RandomState>,
    /// How many of `services` have their Service.
    known: usize,
    streams: HashMap<Stream, Progress, RandomState>,
    /// Counts lists; an object remembers the count at which it was last told of.
    round: u32,
    dirty: HashSet<ServiceName, RandomState>,
    table: Table,
    triggers: Vec<u64>,
    counts: Counts,
}

/// One Service and what belongs to it. Either may be known without the other.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) service: Option<Box<Service>>,
    service_told: u32,
    /// In the order of their names.
    slices: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    slice: Box<Slice>,
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
    /// An empty store that builds for `here`.
    pub fn new(here: Here) -> Self {
        Self {
            here,
            symbols: Symbols::default(),
            services: HashMap::default(),
            holders: HashMap::default(),
            known: 0,
            streams: HashMap::default(),
            round: 0,
            dirty: HashSet::default(),
            table: Table::default(),
            triggers: Vec::new(),
            counts: Counts::default(),
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
            Event::Applied(Item::Slice { namespace, service, slice }) => {
                self.apply_slice(namespace, service, slice);
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
            Event::Zone(zone) => {
                if self.here.zone != zone {
                    self.here.zone = zone;
                    self.dirty.extend(self.services.keys().cloned());
                }
            }
            Event::Lost(stream, loss) => {
                self.counts.lose(loss);
                let progress = self.streams.entry(stream).or_default();
                progress.refused |= loss == Loss::Forbidden && !progress.listed;
            }
            Event::InStep(_) => {}
        }
    }

    /// The next table: `None` if it would be the last one again, or if a first list is not complete.
    pub fn publish(&mut self) -> Option<Table> {
        if !self.is_complete() {
            return None;
        }
        let mut changes = Vec::new();
        for name in std::mem::take(&mut self.dirty) {
            let old = self.table.ports(&name);
            let new = self.ports(&name, old);
            let is_same = old.len() == new.len() && old.iter().zip(&new).all(|(a, b)| Arc::ptr_eq(a, b));
            if !is_same {
                changes.push(selection::Change { service: name, ports: new });
            }
        }
        if changes.is_empty() && self.table.version() > 0 {
            return None;
        }
        self.table = self.table.with(&changes);
        Some(self.table.clone())
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

    /// What is known of each Service, in the order of their names.
    pub(crate) fn entries(&self) -> Vec<(&ServiceName, &Entry)> {
        let mut entries: Vec<_> = self.services.iter().collect();
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
            self.counts.miss(stream.kind);
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
            Some(known) if *known == service => Change::Same,
            Some(_) => Change::Changed,
            None => Change::Added,
        };
        if change != Change::Same {
            self.known += usize::from(entry.service.is_none());
            entry.service = Some(service);
        }
        self.count(Kind::Services, change, &name);
        if change != Change::Same {
            self.dirty.insert(name);
        }
    }

    fn apply_slice(&mut self, mut namespace: Symbol, service: Option<Symbol>, mut slice: Box<Slice>) {
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
        let entry = self.services.entry(owner.clone()).or_default();
        let (change, triggered) = match entry.find(&slice.name) {
            Ok(at) => {
                let held = &mut entry.slices[at];
                held.told = self.round;
                // The slice's own name is kept once: the holders share it.
                slice.name = held.slice.name.clone();
                let triggered = slice.triggered.filter(|_| slice.triggered != held.slice.triggered);
                let change = if *held.slice == *slice { Change::Same } else { Change::Changed };
                if change == Change::Changed {
                    held.slice = slice;
                }
                (change, triggered)
            }
            Err(at) => {
                let key = (owner.namespace.clone(), slice.name.clone());
                self.holders.insert(key, owner.name.clone());
                let triggered = slice.triggered;
                entry.slices.insert(at, Held { slice, told: self.round });
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

    /// Counts a change; one that a further list brought to light was missed.
    fn count(&mut self, kind: Kind, change: Change, service: &ServiceName) {
        let is_relisting = |p: &Progress| p.listed && p.listing.is_some();
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
            entry.slices.remove(at);
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

    fn find(&self, slice: &str) -> Result<usize, usize> {
        self.slices.binary_search_by(|held| (*held.slice.name).cmp(slice))
    }
}

#[cfg(test)]
mod tests;
