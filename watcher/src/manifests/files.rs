//! What a set of manifest files says together. In: the contents of files, as they change. Out: the events that lead
//! from what was told to what is. Never reads a file.

use std::collections::BTreeMap;
use std::sync::Arc;

use selection::{Here, ServiceName, Symbol};

use super::document::{Contents, Lost};
use crate::Scope;
use crate::object::Object;
use crate::store::{Event, Item, Key, Stream};

/// The files of one source.
#[derive(Debug)]
pub(super) struct Files {
    scope: Scope,
    /// Our node, if its zone is to be told.
    node: Option<Symbol>,
    /// By name: in this order the last wins.
    files: BTreeMap<String, File>,
    told: BTreeMap<Key, Arc<Item>>,
    zone: Option<Symbol>,
    doubles: Vec<Double>,
}

#[derive(Debug, Default)]
struct File {
    items: Vec<Arc<Item>>,
    nodes: Vec<(Symbol, Option<Symbol>)>,
}

/// An object that is in more than one place; the last counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Double {
    pub(super) key: Key,
    pub(super) first: String,
    pub(super) last: String,
}

impl Files {
    pub(super) fn new(scope: Scope, node: Option<Symbol>) -> Self {
        let (files, told) = (BTreeMap::new(), BTreeMap::new());
        Self { scope, node, files, told, zone: None, doubles: Vec::new() }
    }

    /// The file `name` has these contents. What it lost by a mistake stays as it was.
    pub(super) fn put(&mut self, name: &str, contents: Contents) {
        let old = self.files.remove(name).unwrap_or_default();
        let mut file = File::default();
        for object in contents.objects {
            match object {
                Object::Item(item) => file.items.push(Arc::new(item)),
                Object::Node { name, zone, .. } => file.nodes.push((name, zone)),
                Object::Other => {}
            }
        }
        let keeps_all =
            contents.problems.iter().any(|p| matches!(p.lost, Lost::Document | Lost::Object(_, None)));
        let kept = |item: &Arc<Item>| {
            let key = item.key();
            let is_lost = |lost: &Lost| matches!(lost, Lost::Object(_, Some(lost)) if *lost == key);
            (keeps_all || contents.problems.iter().any(|p| is_lost(&p.lost)))
                && !file.items.iter().any(|item| item.key() == key)
        };
        let mut kept: Vec<_> = old.items.into_iter().filter(kept).collect();
        if file.nodes.is_empty() && keeps_all {
            file.nodes = old.nodes;
        }
        kept.append(&mut file.items);
        file.items = kept;
        self.files.insert(name.to_owned(), file);
    }

    /// The file `name` is gone, and its objects with it.
    pub(super) fn remove(&mut self, name: &str) {
        self.files.remove(name);
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// The events that tell what has changed since the last call.
    pub(super) fn changes(&mut self) -> Vec<Event> {
        let mut all: BTreeMap<Key, (&str, &Arc<Item>)> = BTreeMap::new();
        let mut doubles = Vec::new();
        for (name, item) in
            self.files.iter().flat_map(|(name, file)| file.items.iter().map(move |item| (name, item)))
        {
            if !self.covers(item) {
                continue;
            }
            if let Some((first, _)) = all.insert(item.key(), (name, item)) {
                doubles.push(Double { key: item.key(), first: first.to_owned(), last: name.clone() });
            }
        }
        self.doubles = doubles;
        let mut events = Vec::new();
        for key in self.told.keys().filter(|key| !all.contains_key(key)) {
            events.push(Event::Gone(Stream::all(key.kind()), key.clone()));
        }
        for (key, (_, item)) in &all {
            let is_told = self.told.get(key).is_some_and(|told| Arc::ptr_eq(told, item) || told == *item);
            if !is_told {
                events.push(Event::Applied(Item::clone(item)));
            }
        }
        self.told = all.into_iter().map(|(key, (_, item))| (key, Arc::clone(item))).collect();
        let mut nodes = self.files.values().flat_map(|file| &file.nodes).rev();
        let zone =
            nodes.find(|(name, _)| Some(name) == self.node.as_ref()).and_then(|(_, zone)| zone.clone());
        if self.zone != zone {
            self.zone.clone_from(&zone);
            events.push(Event::Here(Here { node: None, zone }));
        }
        events
    }

    /// The objects that are in more than one place, as of the last [`Self::changes`].
    pub(super) fn doubles(&self) -> &[Double] {
        &self.doubles
    }

    fn covers(&self, item: &Item) -> bool {
        match item {
            Item::Service(service) => self.scope.covers(&service.name),
            Item::Slice { namespace, service, .. } => service.as_ref().is_some_and(|service| {
                self.scope.covers(&ServiceName { namespace: namespace.clone(), name: service.clone() })
            }),
        }
    }
}
