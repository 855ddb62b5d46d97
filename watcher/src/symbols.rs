//! One memory for equal strings. In: the symbols of an event. Out: the same symbols, those that many objects
//! share stored once. Never keeps a string alive for good: what only it holds is swept out.

use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashSet;
use selection::{Service, ServiceName, Slice, Symbol};

/// The shared strings of a store: namespaces, names of Services and ports, nodes, zones.
#[derive(Debug, Default)]
pub(crate) struct Symbols {
    known: HashSet<Symbol, RandomState>,
    /// How many were in use after the last sweep.
    swept: usize,
}

impl Symbols {
    /// Makes `symbol` the one that is already known by its text.
    pub(crate) fn share(&mut self, symbol: &mut Symbol) {
        if let Some(known) = self.known.get(symbol) {
            if !Arc::ptr_eq(known, symbol) {
                *symbol = Arc::clone(known);
            }
            return;
        }
        if self.known.len() >= 2 * self.swept + 1024 {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.swept = self.known.len();
            self.known.shrink_to_fit();
        }
        self.known.insert(Arc::clone(symbol));
    }

    pub(crate) fn share_name(&mut self, name: &mut ServiceName) {
        self.share(&mut name.namespace);
        self.share(&mut name.name);
    }

    pub(crate) fn share_service(&mut self, service: &mut Service) {
        self.share_name(&mut service.name);
        service.ports.iter_mut().for_each(|port| self.share(&mut port.name));
    }

    /// Not the names of Pods and of the slice itself: nothing else has them.
    pub(crate) fn share_slice(&mut self, slice: &mut Slice) {
        slice.ports.iter_mut().filter_map(|port| port.name.as_mut()).for_each(|name| self.share(name));
        for fact in &mut slice.endpoints {
            fact.node.iter_mut().for_each(|node| self.share(node));
            fact.zone.iter_mut().for_each(|zone| self.share(zone));
            if let Some(hints) = &mut fact.hints {
                hints.zones.iter_mut().chain(&mut hints.nodes).for_each(|name| self.share(name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_symbols_share_their_memory_and_those_out_of_use_are_swept_out() {
        let mut symbols = Symbols::default();
        let (mut a, mut b): (Symbol, Symbol) = ("node-1".into(), "node-1".into());
        symbols.share(&mut a);
        symbols.share(&mut b);
        assert!(Arc::ptr_eq(&a, &b));
        for i in 0..10_000 {
            symbols.share(&mut format!("gone-{i}").into());
        }
        assert!(symbols.known.len() < 2_048, "{} are kept", symbols.known.len());
        let mut c: Symbol = "node-1".into();
        symbols.share(&mut c);
        assert!(Arc::ptr_eq(&a, &c));
    }
}
