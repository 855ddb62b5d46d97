//! What a reader of a feed wants, as a value and as bytes. The reader sends it when it opens a stream, and again
//! whenever it wants something else.
//!
//! | field | |
//! |--|--|
//! | 1 | 1: everything |
//! | 2, any number of times | a namespace |
//! | 3, any number of times | a Service: `NAMESPACE/NAME` |

use std::ops::Deref;
use std::sync::Arc;

use selection::{ServiceName, Symbol};

use super::Error;
use super::wire::{self, Fields};

/// The Services that a reader wants to know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subscription {
    /// Every one.
    All,
    /// Those of some namespaces, and some others.
    Some {
        /// All Services of these.
        namespaces: Names<Symbol>,
        /// And these.
        services: Names<ServiceName>,
    },
}

/// A set of names: a list, sorted, which clones share. A tree would be 20 KB of the module that an Envoy loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names<T>(Arc<[T]>);

impl<T: Ord> Names<T> {
    /// Whether `name` is one of them.
    pub fn contains(&self, name: &T) -> bool {
        self.0.binary_search(name).is_ok()
    }
}

impl<T: Ord + Clone> Names<T> {
    /// Adds one, if it is not one of them. For a few; many are collected.
    pub fn insert(&mut self, name: T) {
        if let Err(at) = self.0.binary_search(&name) {
            let mut names = self.0.to_vec();
            names.insert(at, name);
            self.0 = names.into();
        }
    }
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Deref for Names<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Ord> FromIterator<T> for Names<T> {
    fn from_iter<I: IntoIterator<Item = T>>(names: I) -> Self {
        let mut names: Vec<T> = names.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        Self(names.into())
    }
}

impl<T: Ord, const N: usize> From<[T; N]> for Names<T> {
    fn from(names: [T; N]) -> Self {
        names.into_iter().collect()
    }
}

impl Subscription {
    /// Nothing yet.
    pub fn none() -> Self {
        Self::Some { namespaces: Names::default(), services: Names::default() }
    }

    /// All Services of `namespaces`.
    pub fn namespaces(namespaces: impl IntoIterator<Item = Symbol>) -> Self {
        Self::Some { namespaces: namespaces.into_iter().collect(), services: Names::default() }
    }

    /// The Services of these names.
    pub fn services(services: impl IntoIterator<Item = ServiceName>) -> Self {
        Self::Some { namespaces: Names::default(), services: services.into_iter().collect() }
    }

    /// Whether it has `service`.
    pub fn covers(&self, service: &ServiceName) -> bool {
        match self {
            Self::All => true,
            Self::Some { namespaces, services } => {
                namespaces.contains(&service.namespace) || services.contains(service)
            }
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::All => wire::put_number(&mut out, 1, 1),
            Self::Some { namespaces, services } => {
                namespaces.iter().for_each(|namespace| wire::put_bytes(&mut out, 2, namespace.as_bytes()));
                services.iter().for_each(|name| wire::put_bytes(&mut out, 3, name.to_string().as_bytes()));
            }
        }
        out
    }

    /// The subscription that these bytes are.
    ///
    /// # Errors
    /// If they are none, or more than [`super::LARGEST`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > super::LARGEST {
            return Err(Error::TooLarge);
        }
        let mut is_all = false;
        let (mut namespaces, mut services) = (Vec::new(), Vec::new());
        for field in Fields(bytes) {
            match field? {
                (1, value) => is_all = value.number()? == 1,
                (2, value) => namespaces.push(text(value.bytes()?)?.into()),
                (3, value) => {
                    let (namespace, name) = text(value.bytes()?)?.split_once('/').ok_or(Error::Malformed)?;
                    services.push(ServiceName::new(namespace, name));
                }
                _ => {}
            }
        }
        let (namespaces, services) = (namespaces.into_iter().collect(), services.into_iter().collect());
        Ok(if is_all { Self::All } else { Self::Some { namespaces, services } })
    }
}

fn text(bytes: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|_| Error::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Subscription {
        Subscription::Some {
            namespaces: ["shop".into(), "bank".into()].into(),
            services: [ServiceName::new("other", "web")].into(),
        }
    }

    #[test]
    fn what_is_wanted_is_what_is_read() {
        for subscription in [Subscription::All, Subscription::none(), some()] {
            assert_eq!(Subscription::decode(&subscription.encode()), Ok(subscription));
        }
        assert_eq!(some().encode(), b"\x12\x04bank\x12\x04shop\x1a\x09other/web");
        for wrong in [&b"\x12\x01\xff"[..], b"\x1a\x01x", b"\x12\x09shop"] {
            assert_eq!(Subscription::decode(wrong), Err(Error::Malformed));
        }
    }

    #[test]
    fn fields_of_newer_readers_are_passed_over() {
        let newer = [&some().encode()[..], b"\x3a\x02hi\x40\x07"].concat();
        assert_eq!(Subscription::decode(&newer), Ok(some()));
    }

    #[test]
    fn names_are_the_same_however_they_came() {
        let mut names = Names::default();
        ["b", "a", "c", "a"].into_iter().for_each(|name| names.insert(name));
        assert_eq!(names, ["c", "b", "b", "a"].into());
        assert!(names.contains(&"b") && !names.contains(&"d"));
    }

    #[test]
    fn namespaces_and_services_add_up() {
        let covered = [("shop", "a"), ("other", "web"), ("other", "api")]
            .map(|(namespace, name)| some().covers(&ServiceName::new(namespace, name)));
        assert_eq!(covered, [true, true, false]);
    }
}
