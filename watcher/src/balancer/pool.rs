//! Which address belongs to which Service. In: ranges, and who wants one. Out: an address that nobody else has, or why
//! there is none. Never gives one address to two Services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use selection::{Family, ServiceName};

/// Addresses to give away.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    ranges: Vec<IpNet>,
    taken: BTreeMap<IpAddr, ServiceName>,
}

/// Why a Service has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// Every address has been given away.
    #[error("every {family} address of --pool is in use; free one, or give the load balancer a larger pool")]
    Exhausted {
        /// The family that has none left.
        family: Family,
    },
    /// No range has the address that was asked for.
    #[error("{ip} is not in --pool; ask for another address, or give the load balancer a pool that has it")]
    Outside {
        /// The address.
        ip: IpAddr,
    },
    /// Another Service has the address that was asked for.
    #[error("{ip} belongs to Service {holder}; ask for another address, or let it give this one up")]
    InUse {
        /// The address.
        ip: IpAddr,
        /// Whose it is.
        holder: ServiceName,
    },
    /// What was asked for cannot be read.
    #[error("{text:?} is not an address; write the wanted ones as 192.0.2.7,fd00:5::7")]
    Unreadable {
        /// What was asked for.
        text: String,
    },
    /// The Service is not of the family of the address.
    #[error("{ip} is of a family that the Service does not have; change spec.ipFamilies, or ask for another")]
    OtherFamily {
        /// The address.
        ip: IpAddr,
    },
}

impl Lack {
    /// A stable word in capitals, as conditions and Events have it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Exhausted { .. } => "AddressesExhausted",
            Self::Outside { .. } => "AddressOutsidePool",
            Self::InUse { .. } => "AddressInUse",
            Self::Unreadable { .. } => "AddressUnreadable",
            Self::OtherFamily { .. } => "AddressOfOtherFamily",
        }
    }
}

impl Pool {
    /// The addresses of `ranges`, all free.
    pub fn new(ranges: Vec<IpNet>) -> Self {
        Self { ranges, taken: BTreeMap::new() }
    }

    /// Some range is of `family`.
    pub fn has(&self, family: Family) -> bool {
        self.ranges.iter().any(|range| Family::of(&range.addr()) == family)
    }

    /// Gives `ip` to `service`, which may have it already.
    ///
    /// # Errors
    /// If it is in no range, or another Service's.
    pub fn hold(&mut self, ip: IpAddr, service: &ServiceName) -> Result<(), Lack> {
        if !self.ranges.iter().any(|range| range.contains(&ip)) {
            return Err(Lack::Outside { ip });
        }
        match self.taken.get(&ip) {
            Some(holder) if holder != service => Err(Lack::InUse { ip, holder: holder.clone() }),
            Some(_) => Ok(()),
            None => {
                self.taken.insert(ip, service.clone());
                Ok(())
            }
        }
    }

    /// The first address of `family` that nobody has. Those that name a network or everybody in it are given only to
    /// who asks for them: routers on the way may not know that it is a single machine's.
    ///
    /// # Errors
    /// If there is none.
    pub fn first_free(&self, family: Family) -> Result<IpAddr, Lack> {
        let ranges = self.ranges.iter().filter(|range| Family::of(&range.addr()) == family);
        let mut all = ranges.flat_map(|range| {
            let anycast = matches!(range, IpNet::V6(range) if range.prefix_len() < 127);
            range.hosts().skip(usize::from(anycast))
        });
        all.find(|ip| !self.taken.contains_key(ip)).ok_or(Lack::Exhausted { family })
    }

    /// What `service` has.
    pub fn of(&self, service: &ServiceName) -> impl Iterator<Item = &IpAddr> {
        self.taken.iter().filter(move |(_, holder)| *holder == service).map(|(ip, _)| ip)
    }

    /// Takes back what `service` has, but for `kept`.
    pub fn release(&mut self, service: &ServiceName, kept: &[IpAddr]) {
        self.taken.retain(|ip, holder| holder != service || kept.contains(ip));
    }

    /// Takes everything back.
    pub fn clear(&mut self) {
        self.taken.clear();
    }

    /// How many addresses are given away.
    pub fn taken(&self) -> usize {
        self.taken.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(ranges: &[&str]) -> Pool {
        Pool::new(ranges.iter().map(|range| range.parse().unwrap()).collect())
    }

    #[test]
    fn addresses_that_name_a_network_are_given_only_to_who_asks() {
        let mut pool = pool(&["192.0.2.0/30", "fd00:5::/126"]);
        let web = ServiceName::new("shop", "web");
        for wanted in ["192.0.2.1", "192.0.2.2"] {
            let ip = pool.first_free(Family::V4).unwrap();
            assert_eq!(ip.to_string(), wanted);
            pool.hold(ip, &web).unwrap();
        }
        assert_eq!(pool.first_free(Family::V4), Err(Lack::Exhausted { family: Family::V4 }));
        assert_eq!(pool.hold("192.0.2.0".parse().unwrap(), &web), Ok(()));
        assert_eq!(pool.first_free(Family::V6).unwrap().to_string(), "fd00:5::1");
    }

    #[test]
    fn an_address_that_is_another_services_or_nobodys_is_refused_by_name() {
        let mut pool = pool(&["192.0.2.0/28"]);
        let (web, db) = (ServiceName::new("shop", "web"), ServiceName::new("shop", "db"));
        let ip: IpAddr = "192.0.2.7".parse().unwrap();
        assert_eq!(pool.hold(ip, &web), Ok(()));
        assert_eq!(pool.hold(ip, &web), Ok(()), "it has it already");
        assert_eq!(pool.hold(ip, &db), Err(Lack::InUse { ip, holder: web.clone() }));
        let far: IpAddr = "198.51.100.1".parse().unwrap();
        assert_eq!(pool.hold(far, &db), Err(Lack::Outside { ip: far }));
        pool.release(&web, &[]);
        assert_eq!(pool.hold(ip, &db), Ok(()));
    }

    proptest! {
        #[test]
        fn no_two_services_ever_have_one_address(steps in prop::collection::vec((0..6u8, 0..3u8, 0..20u8), 1..200)) {
            let mut pool = pool(&["192.0.2.0/29", "192.0.2.16/30"]);
            // What a naive list of all addresses says.
            let mut given: Vec<(IpAddr, u8)> = Vec::new();
            for (who, what, last) in steps {
                let service = ServiceName::new("shop", who.to_string());
                let asked: IpAddr = [192, 0, 2, last].into();
                match what {
                    0 => {
                        if let Ok(ip) = pool.first_free(Family::V4) {
                            prop_assert!(given.iter().all(|(other, _)| *other != ip));
                            prop_assert_eq!(pool.hold(ip, &service), Ok(()));
                            given.push((ip, who));
                        } else {
                            prop_assert!(given.len() >= 8, "six and two are free for everybody");
                        }
                    }
                    1 => {
                        let holder = given.iter().find(|(ip, _)| *ip == asked).map(|(_, holder)| *holder);
                        let is_inside = last < 8 || (16..20).contains(&last);
                        let may = is_inside && holder.is_none_or(|holder| holder == who);
                        prop_assert_eq!(pool.hold(asked, &service).is_ok(), may);
                        if may && holder.is_none() {
                            given.push((asked, who));
                        }
                    }
                    _ => {
                        pool.release(&service, &[]);
                        given.retain(|(_, holder)| *holder != who);
                    }
                }
                prop_assert_eq!(pool.taken(), given.len());
            }
        }
    }
}
