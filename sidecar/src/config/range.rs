//! Ranges of addresses and ports as typed. In: text. Out: values, or nothing. Never knows which flag it came from.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

/// Reads `10.96.0.0/12`, or a single address.
pub(super) fn net(text: &str) -> Option<IpNet> {
    let text = text.trim();
    text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()
}

/// Reads `9443` or `20000-20100`.
pub(super) fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last && first > 0).then_some(first..=last)
}

/// Whether Services can have the addresses of a range: it has none that mean something to every machine.
pub(super) fn can_be_services(range: &IpNet) -> bool {
    let own = ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8"];
    let mut own = own.iter().filter_map(|own| own.parse::<IpNet>().ok());
    !own.any(|own| own.contains(range) || range.contains(&own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_address_is_a_range() {
        assert_eq!(net(" 10.96.0.1 "), Some("10.96.0.1/32".parse().unwrap()));
        assert_eq!(net("fd00::1"), Some("fd00::1/128".parse().unwrap()));
        assert_eq!(net("10.96.0.0/33"), None);
        assert_eq!(net("services"), None);
    }

    #[test]
    fn ports_are_one_or_a_range_that_goes_up() {
        assert_eq!(ports("9443"), Some(9443..=9443));
        assert_eq!(ports("1 - 9"), Some(1..=9));
        for wrong in ["9-1", "0", "65536", "", "-", "1-2-3", "http"] {
            assert_eq!(ports(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn everything_and_loopback_are_no_ranges_of_services() {
        for wrong in ["0.0.0.0/0", "127.0.0.1/32", "::/0", "ff02::1/128"] {
            assert!(!can_be_services(&wrong.parse().unwrap()), "{wrong}");
        }
        assert!(can_be_services(&"10.96.0.0/12".parse().unwrap()));
    }
}
