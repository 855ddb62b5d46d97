//! The pins of clients, shared by all data threads, so that a client meets the same endpoint whichever thread takes
//! its connection. Shares the locks out; what a pin is and how many are kept is `selection`'s.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use selection::{Pin, PortId, Seed};

/// Locks, so that threads seldom meet at one.
const SHARDS: usize = 16;
/// Pins in one generation of one shard: at most 65,536 pins in all, some 10 MB.
const GENERATION: usize = 2_048;

/// The pins of every client on every Service port.
#[derive(Debug)]
pub(super) struct Pins {
    shards: [Mutex<selection::Pins>; SHARDS],
}

impl Pins {
    /// None yet.
    pub(super) fn new(seed: Seed) -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::new(selection::Pins::new(seed, GENERATION))) }
    }

    /// The pin of `client` on `port`.
    pub(super) fn get(&self, client: IpAddr, port: &PortId) -> Option<Pin> {
        self.shard(client).get(client, port)
    }

    /// From here on, `pin` is the pin of `client` on `port`.
    pub(super) fn put(&self, client: IpAddr, port: &PortId, pin: Pin) {
        self.shard(client).put(client, port, pin);
    }

    fn shard(&self, client: IpAddr) -> MutexGuard<'_, selection::Pins> {
        let at = selection::client_hash(client) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
