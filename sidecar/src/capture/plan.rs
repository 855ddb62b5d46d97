//! What shall be captured, as values. In: ranges and exceptions. Out: whether an address is captured, intervals for sets.
//! Never asks the kernel.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::family::{Family, octets};
use super::table::address;

/// What shall be captured, and for whom not. Ranges do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The ranges of Service addresses.
    pub services: Vec<IpNet>,
    /// Destination ports that are left alone.
    pub skip_ports: Vec<RangeInclusive<u16>>,
    /// Parts of the ranges that are left alone.
    pub skip_subnets: Vec<IpNet>,
    /// The sidecar's user.
    pub user: u32,
}

impl Plan {
    /// Whether a TCP connection to `place` is captured while the sidecar lives.
    pub(super) fn takes(&self, place: SocketAddr) -> bool {
        self.is_service(place.ip())
            && !self.skip_subnets.iter().any(|range| range.contains(&place.ip()))
            && !self.skip_ports.iter().any(|ports| ports.contains(&place.port()))
    }

    /// Whether `address` is in the ranges.
    pub(super) fn is_service(&self, address: IpAddr) -> bool {
        self.services.iter().any(|range| range.contains(&address))
    }

    /// The families that have a range.
    pub(super) fn families(&self) -> Vec<Family> {
        Family::ALL.into_iter().filter(|family| family.among(&self.services).next().is_some()).collect()
    }

    /// The same without the ranges of a family.
    pub(super) fn without(mut self, family: Family) -> Self {
        self.services.retain(|range| Family::of(range.addr()) != family);
        self
    }
}

/// The same addresses in as few ranges as there can be, none of which overlaps another.
pub fn merged(ranges: Vec<IpNet>) -> Vec<IpNet> {
    IpNet::aggregate(&ranges.iter().map(IpNet::trunc).collect())
}

/// The same ports in as few ranges as there can be.
pub fn merged_ports(mut ports: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    ports.sort_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ports {
        match merged.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// An element of an interval set: its key, and whether it is the first key behind an interval. An interval that reaches
/// the last key of all has no end.
pub(super) type Bound = (Vec<u8>, bool);

/// The bounds of address ranges.
pub(super) fn address_bounds(ranges: impl Iterator<Item = IpNet>) -> Vec<Bound> {
    bounds(ranges.map(|range| (octets(range.network()), octets(range.broadcast()))))
}

/// The bounds of port ranges.
pub(super) fn port_bounds(ports: &[RangeInclusive<u16>]) -> Vec<Bound> {
    let bytes = |port: &u16| port.to_be_bytes().to_vec();
    bounds(ports.iter().map(|range| (bytes(range.start()), bytes(range.end()))))
}

/// The bounds of intervals from first to last key, in order. Where one begins behind another, they are one.
fn bounds(intervals: impl Iterator<Item = (Vec<u8>, Vec<u8>)>) -> Vec<Bound> {
    let mut bounds: Vec<Bound> = Vec::new();
    for (first, last) in intervals {
        match bounds.last() {
            Some((end, true)) if *end == first => drop(bounds.pop()),
            _ => bounds.push((first, false)),
        }
        bounds.extend(successor(last).map(|end| (end, true)));
    }
    bounds
}

/// The address ranges that have these bounds, in any order.
pub(super) fn ranges(bounds: &[Bound]) -> Vec<IpNet> {
    let net = |(first, last): (Vec<u8>, Vec<u8>)| match (address(&first), address(&last)) {
        (Some(IpAddr::V4(first)), Some(IpAddr::V4(last))) => {
            Ipv4Subnets::new(first, last, 0).map(IpNet::from).collect()
        }
        (Some(IpAddr::V6(first)), Some(IpAddr::V6(last))) => {
            Ipv6Subnets::new(first, last, 0).map(IpNet::from).collect()
        }
        _ => Vec::new(),
    };
    intervals(bounds).flat_map(net).collect()
}

/// The port ranges that have these bounds, in any order.
pub(super) fn ports(bounds: &[Bound]) -> Vec<RangeInclusive<u16>> {
    let port = |key: Vec<u8>| <[u8; 2]>::try_from(key).ok().map(u16::from_be_bytes);
    intervals(bounds).filter_map(|(first, last)| Some(port(first)?..=port(last)?)).collect()
}

fn intervals(bounds: &[Bound]) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let mut bounds = bounds.to_vec();
    bounds.sort();
    // Before the first interval, the kernel may hold an end that ends nothing.
    let mut bounds = bounds.into_iter().skip_while(|(_, is_end)| *is_end).peekable();
    std::iter::from_fn(move || {
        let (first, _) = bounds.next()?;
        let last = match bounds.next_if(|(_, is_end)| *is_end) {
            Some((end, _)) => predecessor(end),
            None => vec![u8::MAX; first.len()],
        };
        Some((first, last))
    })
}

fn predecessor(mut key: Vec<u8>) -> Vec<u8> {
    for byte in key.iter_mut().rev() {
        let (before, overflow) = byte.overflowing_sub(1);
        *byte = before;
        if !overflow {
            break;
        }
    }
    key
}

/// The next key; none after the last.
fn successor(mut key: Vec<u8>) -> Option<Vec<u8>> {
    for byte in key.iter_mut().rev() {
        let (next, overflow) = byte.overflowing_add(1);
        *byte = next;
        if !overflow {
            return Some(key);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_skipped_is_not_taken() {
        let plan = Plan {
            services: nets("10.96.0.0/12 fd00:96::/112"),
            skip_ports: vec![9443..=9443, 100..=200],
            skip_subnets: nets("10.97.0.0/16"),
            user: 1,
        };
        let takes = |place: &str| plan.takes(place.parse().unwrap());
        assert!(takes("10.96.0.1:80") && takes("[fd00:96::1]:80"));
        assert!(!takes("10.97.0.1:80") && !takes("10.96.0.1:150") && !takes("[fd00:96::1]:9443"));
        assert!(!takes("10.112.0.1:80") && !takes("[fd00:97::1]:80"));
        assert_eq!(plan.without(Family::IPv4).families(), [Family::IPv6]);
    }

    #[test]
    fn overlapping_ranges_become_one() {
        assert_eq!(merged(nets("10.97.0.0/16 10.96.0.0/16 10.96.1.0/24")), nets("10.96.0.0/15"));
        assert_eq!(merged(nets("10.96.0.9/16")), nets("10.96.0.0/16"));
        assert_eq!(merged_ports(vec![5..=9, 1..=4, 20..=20, 7..=8]), [1..=9, 20..=20]);
        assert_eq!(merged_ports(vec![65535..=65535, 0..=65535]), [0..=65535]);
    }

    #[test]
    fn an_interval_ends_before_the_next_key_unless_there_is_none() {
        let bounds = address_bounds(nets("10.96.0.0/16 255.255.255.0/24").into_iter());
        let expected: [Bound; 3] =
            [(vec![10, 96, 0, 0], false), (vec![10, 97, 0, 0], true), (vec![255, 255, 255, 0], false)];
        assert_eq!(bounds, expected);
        assert_eq!(port_bounds(&[255..=255]), [(vec![0, 255], false), (vec![1, 0], true)]);
    }

    #[test]
    fn what_the_bounds_enclose_is_read_back() {
        let wanted = nets("10.97.0.0/16 10.98.0.0/16 192.0.2.1/32 255.255.255.0/24");
        let mut bounds = address_bounds(wanted.iter().copied());
        assert_eq!(bounds.len(), 5, "neighbours are one interval, and the last has no end");
        bounds.reverse();
        assert_eq!(ranges(&bounds), wanted);
        let wanted = nets("fd00:96::/112");
        assert_eq!(ranges(&address_bounds(wanted.iter().copied())), wanted);
        let wanted = [1..=9, 20..=20, 65000..=65535];
        assert_eq!(ports(&port_bounds(&wanted)), wanted);
    }
}
