//! Which client stays with which endpoint, for Services with session affinity: shared by all data threads, so
//! that a client meets the same endpoint whichever thread takes its connection. Bounded: a flood of clients
//! pushes out those that connected longest ago. Never judges a pin; the pick does.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use selection::{Pin, PortId};

/// Locks, so that threads seldom meet at one.
const SHARDS: usize = 16;
/// Pins in one generation of one shard: at most 65,536 pins in all, some 10 MB.
const GENERATION: usize = 2_048;

/// The pins of every client on every Service port.
#[derive(Debug, Default)]
pub(super) struct Pins {
    shards: [Mutex<Shard>; SHARDS],
}

/// Two generations. What is used moves to the young one; when that is full it becomes the old one, and what
/// was old until then is forgotten. So no use costs more than a few look-ups, and no clock is needed.
#[derive(Debug, Default)]
struct Shard {
    young: HashMap<(IpAddr, PortId), Pin>,
    old: HashMap<(IpAddr, PortId), Pin>,
}

impl Pins {
    /// The pin of `client` on `port`.
    pub(super) fn get(&self, client: IpAddr, port: &PortId) -> Option<Pin> {
        let key = (client, port.clone());
        let shard = self.shard(client);
        shard.young.get(&key).or_else(|| shard.old.get(&key)).copied()
    }

    /// From here on, `pin` is the pin of `client` on `port`.
    pub(super) fn put(&self, client: IpAddr, port: &PortId, pin: Pin) {
        let key = (client, port.clone());
        let mut shard = self.shard(client);
        if shard.young.len() >= GENERATION && !shard.young.contains_key(&key) {
            shard.old = std::mem::take(&mut shard.young);
        }
        shard.young.insert(key, pin);
    }

    fn shard(&self, client: IpAddr) -> MutexGuard<'_, Shard> {
        let at = selection::client_hash(client) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use selection::{Family, Protocol, ServiceName};

    use super::*;

    fn port(name: &str) -> PortId {
        PortId {
            service: ServiceName::new("shop", "web"),
            family: Family::V4,
            port: name.into(),
            protocol: Protocol::Tcp,
        }
    }

    fn pin(used: u64) -> Pin {
        Pin { address: ([10, 0, 0, 1], 80).into(), pod: 1, used, seconds: 10_800 }
    }

    #[test]
    fn a_pin_is_found_under_its_client_and_port_only() {
        let pins = Pins::default();
        let client = IpAddr::from([10, 1, 2, 3]);
        pins.put(client, &port("http"), pin(5));
        assert_eq!(pins.get(client, &port("http")), Some(pin(5)));
        assert_eq!(pins.get(client, &port("https")), None);
        assert_eq!(pins.get(IpAddr::from([10, 1, 2, 4]), &port("http")), None);
        pins.put(client, &port("http"), pin(6));
        assert_eq!(pins.get(client, &port("http")), Some(pin(6)));
    }

    #[test]
    fn a_flood_of_clients_is_bounded_and_leaves_a_client_that_keeps_connecting() {
        let pins = Pins::default();
        let regular = IpAddr::from([192, 168, 0, 1]);
        for n in 0..200_000_u32 {
            if n % 1_000 == 0 {
                pins.put(regular, &port("http"), pin(u64::from(n)));
            }
            pins.put(IpAddr::V4(Ipv4Addr::from_bits(n)), &port("http"), pin(u64::from(n)));
        }
        let kept: usize = (0..SHARDS)
            .map(|at| {
                let shard = pins.shards[at].lock().unwrap();
                shard.young.len() + shard.old.len()
            })
            .sum();
        assert!(kept <= 2 * SHARDS * GENERATION, "{kept} pins are kept");
        assert_eq!(pins.get(regular, &port("http")), Some(pin(199_000)));
    }
}
