//! Which client stays with which endpoint, for Services with session affinity. Bounded: a flood of clients pushes
//! out those that connected longest ago. Never judges a pin; the pick does. Never locks; a host whose threads
//! share pins has several of these, each behind a lock.

use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;

use hashbrown::{Equivalent, HashMap};
use siphasher::sip::SipHasher13;

use crate::{Pin, PortId, Seed};

/// The pins of clients on Service ports.
///
/// Two generations. What is used moves to the young one; when that is full it becomes the old one, and what was
/// old until then is forgotten. So no use costs more than a few look-ups, and no clock is needed.
#[derive(Debug)]
pub struct Pins {
    /// Pins in one generation.
    most: usize,
    young: HashMap<(IpAddr, PortId), Pin, Keyed>,
    old: HashMap<(IpAddr, PortId), Pin, Keyed>,
}

impl Pins {
    /// None yet; keeps twice `generation` at most. Clients choose what is hashed here, hence the secret.
    pub fn new(seed: Seed, generation: usize) -> Self {
        let empty = || HashMap::with_hasher(Keyed(seed));
        Self { most: generation, young: empty(), old: empty() }
    }

    /// The pin of `client` on `port`.
    pub fn get(&self, client: IpAddr, port: &PortId) -> Option<Pin> {
        let key = Key(client, port);
        self.young.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    /// From here on, `pin` is the pin of `client` on `port`.
    pub fn put(&mut self, client: IpAddr, port: &PortId, pin: Pin) {
        if let Some(known) = self.young.get_mut(&Key(client, port)) {
            *known = pin;
            return;
        }
        if self.young.len() >= self.most {
            // What was old keeps its memory for what comes.
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert((client, port.clone()), pin);
    }

    /// How many are kept, those of a client that is in both generations twice.
    pub fn count(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// What a pin is kept under, borrowed.
#[derive(Hash)]
struct Key<'a>(IpAddr, &'a PortId);

impl Equivalent<(IpAddr, PortId)> for Key<'_> {
    fn equivalent(&self, key: &(IpAddr, PortId)) -> bool {
        self.0 == key.0 && *self.1 == key.1
    }
}

#[derive(Clone, Copy)]
struct Keyed(Seed);

impl std::fmt::Debug for Keyed {
    /// Not the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyed")
    }
}

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0.0, self.0.1)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{Family, Protocol, ServiceName};

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
        let mut pins = Pins::new(Seed(1, 2), 10);
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
        let mut pins = Pins::new(Seed(1, 2), 2_048);
        let regular = IpAddr::from([192, 168, 0, 1]);
        for n in 0..200_000_u32 {
            if n % 1_000 == 0 {
                pins.put(regular, &port("http"), pin(u64::from(n)));
            }
            pins.put(IpAddr::V4(Ipv4Addr::from_bits(n)), &port("http"), pin(u64::from(n)));
        }
        assert!((2_048..=4_096).contains(&pins.count()), "{} pins are kept", pins.count());
        assert_eq!(pins.get(regular, &port("http")), Some(pin(199_000)));
    }
}
