//! Who reads a feed, and whom a change concerns. In: subscriptions, and names of Services. Out: readers. Never looks at a
//! reader whom a change does not concern: ten thousand of them cost what the few cost that are told.

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use hashbrown::hash_map::EntryRef;
use selection::{ServiceName, Symbol};

use super::Subscription;

/// Says which reader. No other ever has it.
pub(crate) type Id = u64;

/// Readers by the places of what they are told.
pub(super) type Groups = HashMap<Vec<usize>, Vec<Id>, RandomState>;

/// Readers by what they subscribe to.
#[derive(Debug, Default)]
pub(super) struct Readers {
    all: Vec<Id>,
    namespaces: HashMap<Symbol, Vec<Id>, RandomState>,
    services: HashMap<ServiceName, Vec<Id>, RandomState>,
}

impl Readers {
    /// Takes note of a reader. Gives the subscription back with names that are shared with whoever has the same: `known`
    /// may have them, too.
    pub(super) fn enter<'a>(
        &mut self,
        id: Id,
        subscription: &Subscription,
        known: impl Fn(&ServiceName) -> Option<&'a ServiceName>,
    ) -> Subscription {
        let Subscription::Some { namespaces, services } = subscription else {
            self.all.push(id);
            return Subscription::All;
        };
        let namespaces = namespaces.iter().map(|name| match self.namespaces.entry_ref(name) {
            EntryRef::Occupied(mut entry) => {
                entry.get_mut().push(id);
                Symbol::clone(entry.key())
            }
            EntryRef::Vacant(entry) => {
                entry.insert_with_key(Symbol::clone(name), vec![id]);
                Symbol::clone(name)
            }
        });
        let namespaces = namespaces.collect();
        let services = services.iter().map(|name| match self.services.entry_ref(name) {
            EntryRef::Occupied(mut entry) => {
                entry.get_mut().push(id);
                entry.key().clone()
            }
            EntryRef::Vacant(entry) => {
                let name = known(name).unwrap_or(name).clone();
                entry.insert_with_key(name.clone(), vec![id]);
                name
            }
        });
        Subscription::Some { namespaces, services: services.collect() }
    }

    /// Forgets a reader who subscribed to this.
    pub(super) fn leave(&mut self, id: Id, subscription: &Subscription) {
        match subscription {
            Subscription::All => remove(&mut self.all, id),
            Subscription::Some { namespaces, services } => {
                namespaces.iter().for_each(|name| leave(&mut self.namespaces, name, id));
                services.iter().for_each(|name| leave(&mut self.services, name, id));
            }
        }
    }

    /// Those who are to be told of changes of these Services, in groups: each with the places of those that its readers
    /// subscribe to.
    pub(super) fn concerned<'a>(&self, services: impl Iterator<Item = &'a ServiceName>) -> Groups {
        let mut told: Vec<(Id, usize)> = Vec::new();
        let mut count = 0;
        for (place, name) in services.enumerate() {
            let by_namespace = self.namespaces.get(&name.namespace);
            let by_name = self.services.get(name);
            let ids = by_namespace.into_iter().chain(by_name).flatten();
            told.extend(ids.map(|id| (*id, place)));
            count += 1;
        }
        // Who subscribes to a Service and its namespace is told once.
        told.sort_unstable();
        told.dedup();
        let mut groups = Groups::default();
        let mut places = Vec::new();
        for of_one in told.chunk_by(|(one, _), (other, _)| one == other) {
            places.clear();
            places.extend(of_one.iter().map(|(_, place)| *place));
            let ids = of_one.first().map(|(id, _)| *id);
            groups.entry_ref(&places[..]).or_default().extend(ids);
        }
        if !self.all.is_empty() {
            groups.entry((0..count).collect()).or_default().extend(&self.all);
        }
        groups
    }
}

fn leave<N: Eq + std::hash::Hash>(readers: &mut HashMap<N, Vec<Id>, RandomState>, name: &N, id: Id) {
    let Some(ids) = readers.get_mut(name) else { return };
    remove(ids, id);
    if ids.is_empty() {
        readers.remove(name);
    }
}

fn remove(ids: &mut Vec<Id>, id: Id) {
    if let Some(place) = ids.iter().position(|other| *other == id) {
        ids.swap_remove(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServiceName {
        ServiceName::written(text).unwrap()
    }

    /// Whom changes of these concern, each group with the names of what it is told.
    fn concerned(readers: &Readers, services: &[&str]) -> Vec<(Vec<String>, Vec<Id>)> {
        let names: Vec<_> = services.iter().map(|text| name(text)).collect();
        let groups = readers.concerned(names.iter());
        let mut groups: Vec<_> = groups
            .into_iter()
            .map(|(places, mut ids)| {
                ids.sort_unstable();
                (places.into_iter().map(|place| services[place].to_owned()).collect(), ids)
            })
            .collect();
        groups.sort_unstable();
        groups
    }

    fn entered(subscriptions: &[Subscription]) -> Readers {
        let mut readers = Readers::default();
        for (id, subscription) in (0..).zip(subscriptions) {
            assert_eq!(readers.enter(id, subscription, |_| None), *subscription);
        }
        readers
    }

    fn subscriptions() -> [Subscription; 4] {
        [
            Subscription::All,
            Subscription::services([name("shop/web"), name("bank/api")]),
            Subscription::Some { namespaces: ["shop".into()].into(), services: [name("shop/web")].into() },
            Subscription::services([name("shop/web")]),
        ]
    }

    #[test]
    fn a_change_concerns_who_subscribes_to_it_and_each_once() {
        let readers = entered(&subscriptions());
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(concerned(&readers, &["shop/web"]), [(owned(&["shop/web"]), vec![0, 1, 2, 3])]);
        assert_eq!(
            concerned(&readers, &["bank/api", "shop/web", "shop/db"]),
            [
                (owned(&["bank/api", "shop/web"]), vec![1]),
                (owned(&["bank/api", "shop/web", "shop/db"]), vec![0]),
                (owned(&["shop/web"]), vec![3]),
                (owned(&["shop/web", "shop/db"]), vec![2]),
            ]
        );
        assert_eq!(concerned(&readers, &["other/web"]), [(owned(&["other/web"]), vec![0])]);
        assert_eq!(concerned(&readers, &[]), [(owned(&[]), vec![0])]);
    }

    #[test]
    fn who_has_left_leaves_nothing_behind() {
        let mut readers = entered(&subscriptions());
        for (id, subscription) in (0..).zip(&subscriptions()) {
            readers.leave(id, subscription);
            readers.leave(id, subscription);
        }
        assert!(readers.all.is_empty() && readers.namespaces.is_empty() && readers.services.is_empty());
    }

    #[test]
    fn equal_names_are_in_memory_once() {
        let (web, known) = (name("shop/web"), name("shop/web"));
        let mut readers = Readers::default();
        let mut enter = |id| match readers.enter(id, &Subscription::services([web.clone()]), |_| Some(&known))
        {
            Subscription::Some { services, .. } => services[0].clone(),
            Subscription::All => panic!("everything"),
        };
        let (one, other) = (enter(1), enter(2));
        for same in [one, other] {
            assert!(
                Symbol::ptr_eq(&same.name, &known.name) && Symbol::ptr_eq(&same.namespace, &known.namespace)
            );
        }
    }
}
