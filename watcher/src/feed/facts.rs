//! What a store knows, and what changed in it, told to a reader. In: a store, or its changes, and a subscription. Out:
//! frames. Tells what the subscription covers, never more.

use std::time::Duration;

use selection::ServiceName;

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

fn covered<'a>(store: &'a Store, subscription: &'a Subscription) -> Vec<(&'a ServiceName, &'a Entry)> {
    match subscription {
        // Looking a few up is less than looking at all.
        Subscription::Some { namespaces, services } if namespaces.is_empty() => {
            services.iter().filter_map(|name| store.entry(name)).collect()
        }
        _ => store.entries().into_iter().filter(|(name, _)| subscription.covers(name)).collect(),
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

    /// The frames that make `version` of version `from`; none if nothing changed that `subscription` covers.
    pub fn encode(
        &self,
        subscription: &Subscription,
        from: u64,
        version: u64,
        age: Option<Duration>,
    ) -> Vec<Vec<u8>> {
        let mut encoder = Encoder::changes(from);
        let covered: Vec<_> = self.0.iter().filter(|c| subscription.covers(c.service())).collect();
        if covered.is_empty() {
            return Vec::new();
        }
        // What is gone comes first: a slice that went to another Service has the old one's name.
        for changed in &covered {
            match changed {
                Changed::Service { name, service: None } => encoder.service_gone(name),
                Changed::Slice { number, slice: None, .. } => encoder.slice_gone(*number),
                _ => {}
            }
        }
        for changed in covered {
            match changed {
                Changed::Service { service: Some(service), .. } => encoder.service(service),
                Changed::Slice { number, service, before, slice: Some(slice) } => match before {
                    Some(before) => encoder.slice_changed(*number, service, before, slice),
                    None => encoder.slice(*number, service, slice),
                },
                _ => {}
            }
        }
        encoder.complete(version, age)
    }
}
