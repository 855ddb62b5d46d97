//! Which objects changed since somebody looked last, and what the slices were then. In: each change as it is made.
//! Out: one line for each object, however often it changed. Keeps what changed, never the rest.

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use selection::{Service, ServiceName, Slice, Symbol};

/// The changes since the last look.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// Whether each was known.
    services: HashMap<ServiceName, bool, RandomState>,
    /// By their numbers.
    slices: HashMap<u64, Before, RandomState>,
}

/// A slice, which belongs to one Service as long as it has its number.
#[derive(Debug)]
pub(super) struct Before {
    pub(super) service: ServiceName,
    pub(super) name: Symbol,
    /// What it was, if it was.
    pub(super) slice: Option<Box<Slice>>,
}

/// An object that changed, appeared or went.
#[derive(Debug)]
pub(crate) enum Changed {
    /// A Service.
    Service {
        name: ServiceName,
        /// What it is, if it is.
        service: Option<Box<Service>>,
    },
    /// A slice.
    Slice {
        number: u64,
        service: ServiceName,
        /// What it was, if it was.
        before: Option<Box<Slice>>,
        /// What it is, if it is.
        slice: Option<Box<Slice>>,
    },
}

impl Changed {
    /// The Service that it concerns.
    pub(crate) fn service(&self) -> &ServiceName {
        match self {
            Self::Service { name, .. } => name,
            Self::Slice { service, .. } => service,
        }
    }
}

impl Journal {
    pub(super) fn service(&mut self, name: &ServiceName, was_known: bool) {
        self.services.entry_ref(name).or_insert(was_known);
    }

    pub(super) fn added(&mut self, number: u64, service: &ServiceName, name: &Symbol) {
        let before = Before { service: service.clone(), name: Symbol::clone(name), slice: None };
        self.slices.insert(number, before);
    }

    /// The slice was `before` until this moment, and is something else, or gone.
    pub(super) fn changed(&mut self, number: u64, service: &ServiceName, before: Box<Slice>) {
        self.slices.entry(number).or_insert_with(|| Before {
            service: service.clone(),
            name: before.name.clone(),
            slice: Some(before),
        });
    }

    /// Takes the Services out, in the order of their names, each with whether it was known.
    pub(super) fn take_services(&mut self) -> Vec<(ServiceName, bool)> {
        let mut services: Vec<_> = std::mem::take(&mut self.services).into_iter().collect();
        services.sort_unstable();
        services
    }

    /// Takes the slices out, the oldest first.
    pub(super) fn take_slices(&mut self) -> Vec<(u64, Before)> {
        let mut slices: Vec<_> = std::mem::take(&mut self.slices).into_iter().collect();
        slices.sort_unstable_by_key(|(number, _)| *number);
        slices
    }
}
