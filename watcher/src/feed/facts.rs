//! What a store knows, and what changed in it, told to a reader. In: a store, or its changes, and a subscription. Out:
//! frames. Tells what the subscription covers, never more.

use std::time::Duration;

use selection::ServiceName;

#[cfg(feature = "feed")]
use super::transaction::Transaction;
use super::{Encoder, Subscription};
use crate::store::{Changed, Entry, Store};

/// The snapshot of what `store` knows and `subscription` covers.
pub fn snapshot(
    store: &Store,
    subscription: &Subscription,
    epoch: u64,
    version: u64,
    age: Option<Duration>,
) -> Vec<Vec<u8>> {
    let mut encoder = Encoder::snapshot(epoch);
    for (name, entry) in covered(store, subscription) {
        entry.service.iter().for_each(|service| encoder.service(service));
        entry.numbered().for_each(|(number, slice)| encoder.slice(number, name, slice));
    }
    encoder.complete(version, age)
}

/// What makes `version` of what a reader has, who was told what `old` covers and is to be told what `new` covers.
#[cfg(feature = "feed")]
pub(super) fn difference(
    store: &Store,
    old: &Subscription,
    new: &Subscription,
    version: u64,
    age: Option<Duration>,
) -> Transaction {
    let mut encoder = Encoder::shared_changes();
    for (name, entry) in covered(store, old).into_iter().filter(|(name, _)| !new.covers(name)) {
        entry.service.iter().for_each(|_| encoder.service_gone(name));
        entry.numbered().for_each(|(number, _)| encoder.slice_gone(number));
    }
    for (name, entry) in covered(store, new).into_iter().filter(|(name, _)| !old.covers(name)) {
        entry.service.iter().for_each(|service| encoder.service(service));
        entry.numbered().for_each(|(number, slice)| encoder.slice(number, name, slice));
    }
    Transaction::new(encoder.finish(version, age), version)
}

fn covered<'a>(store: &'a Store, subscription: &'a Subscription) -> Vec<(&'a ServiceName, &'a Entry)> {
    match subscription {
        // Looking a few up is less than looking at all.
        Subscription::Some { namespaces, services } if namespaces.is_empty() => {
            services.iter().filter_map(|name| store.entry(name)).collect()
        }
        _ => store.entries(|name| subscription.covers(name)),
    }
}

/// What changed in a store from one version to a later one.
#[derive(Debug)]
pub struct Changes(Vec<Changed>);

impl Changes {
    /// What changed in `store` since this was called last. A store is to be told to remember it:
    /// [`Store::record`].
    pub fn take(store: &mut Store) -> Self {
        Self(store.take_changes())
    }

    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The Service that each of them concerns.
    #[cfg(feature = "feed")]
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.0.iter().map(Changed::service)
    }

    /// The frames that make `version` of version `from`; none if nothing changed that `subscription` covers.
    pub fn encode(
        &self,
        subscription: &Subscription,
        from: u64,
        version: u64,
        age: Option<Duration>,
    ) -> Vec<Vec<u8>> {
        let covered: Vec<_> = self.0.iter().filter(|c| subscription.covers(c.service())).collect();
        if covered.is_empty() {
            return Vec::new();
        }
        written(&covered, Encoder::changes(from)).complete(version, age)
    }

    /// The changes of these places, which make `version` of whatever a reader has.
    #[cfg(feature = "feed")]
    pub(super) fn transaction(&self, places: &[usize], version: u64, age: Option<Duration>) -> Transaction {
        let covered: Vec<_> = places.iter().filter_map(|place| self.0.get(*place)).collect();
        Transaction::new(written(&covered, Encoder::shared_changes()).finish(version, age), version)
    }
}

fn written<'a>(changes: &[&'a Changed], mut encoder: Encoder<'a>) -> Encoder<'a> {
    // What is gone comes first: a slice that went to another Service has the old one's name.
    for changed in changes {
        match changed {
            Changed::Service { name, service: None } => encoder.service_gone(name),
            Changed::Slice { number, slice: None, .. } => encoder.slice_gone(*number),
            _ => {}
        }
    }
    for changed in changes {
        match changed {
            Changed::Service { service: Some(service), .. } => encoder.service(service),
            Changed::Slice { number, service, before, slice: Some(slice) } => match before {
                Some(before) => encoder.slice_changed(*number, service, before, slice),
                None => encoder.slice(*number, service, slice),
            },
            _ => {}
        }
    }
    encoder
}
