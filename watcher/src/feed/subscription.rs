//! What a reader of a feed wants, as a value and as bytes. The reader sends it when it opens a stream, and again
//! whenever it wants something else.
//!
//! | field | |
//! |--|--|
//! | 1 | 1: everything |
//! | 2, any number of times | a namespace |
//! | 3, any number of times | a Service: `NAMESPACE/NAME` |

use std::collections::BTreeSet;

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
        namespaces: BTreeSet<Symbol>,
        /// And these.
        services: BTreeSet<ServiceName>,
    },
}

impl Subscription {
    /// Nothing yet.
    pub fn none() -> Self {
        Self::Some { namespaces: BTreeSet::new(), services: BTreeSet::new() }
    }

    /// All Services of `namespaces`.
    pub fn namespaces(namespaces: impl IntoIterator<Item = Symbol>) -> Self {
        Self::Some { namespaces: namespaces.into_iter().collect(), services: BTreeSet::new() }
    }

    /// The Services of these names.
    pub fn services(services: impl IntoIterator<Item = ServiceName>) -> Self {
        Self::Some { namespaces: BTreeSet::new(), services: services.into_iter().collect() }
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
        let (mut namespaces, mut services) = (BTreeSet::new(), BTreeSet::new());
        for field in Fields(bytes) {
            match field? {
                (1, value) => is_all = value.number()? == 1,
                (2, value) => drop(namespaces.insert(text(value.bytes()?)?.into())),
                (3, value) => {
                    let (namespace, name) = text(value.bytes()?)?.split_once('/').ok_or(Error::Malformed)?;
                    services.insert(ServiceName::new(namespace, name));
                }
                _ => {}
            }
        }
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
    fn namespaces_and_services_add_up() {
        let covered = [("shop", "a"), ("other", "web"), ("other", "api")]
            .map(|(namespace, name)| some().covers(&ServiceName::new(namespace, name)));
        assert_eq!(covered, [true, true, false]);
    }
}
