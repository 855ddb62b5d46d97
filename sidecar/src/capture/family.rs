//! The two IP families, as values: what differs between them for a rule. Never decides whether one is used.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Serialize;

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Family {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::IPv4, Self::IPv6];

    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::IPv4 } else { Self::IPv6 }
    }

    /// Those of `ranges` that are of this family.
    pub(super) fn among(self, ranges: &[IpNet]) -> impl Iterator<Item = IpNet> {
        ranges.iter().copied().filter(move |range| Self::of(range.addr()) == self)
    }

    /// 4 or 6, which the names of its sets and chains end with.
    pub(super) fn digit(self) -> u8 {
        match self {
            Self::IPv4 => 4,
            Self::IPv6 => 6,
        }
    }

    /// `AF_INET` or `AF_INET6`, which are also netfilter's numbers.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::IPv4 => 2,
            Self::IPv6 => 10,
        }
    }

    /// Bytes of its own header and TCP's, without options.
    pub(super) fn headers(self) -> u32 {
        match self {
            Self::IPv4 => 40,
            Self::IPv6 => 60,
        }
    }

    /// Where the source is in an IP header.
    pub(super) fn source(self) -> u8 {
        self.destination() - self.length()
    }

    /// No address of the family.
    pub(super) fn unspecified(self) -> IpAddr {
        match self {
            Self::IPv4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::IPv6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// Bytes of an address.
    pub(super) fn length(self) -> u8 {
        match self {
            Self::IPv4 => 4,
            Self::IPv6 => 16,
        }
    }

    /// Where the destination is in an IP header.
    pub(super) fn destination(self) -> u8 {
        match self {
            Self::IPv4 => 16,
            Self::IPv6 => 24,
        }
    }

    /// What nft calls the type of its addresses.
    pub(super) fn datatype(self) -> u32 {
        match self {
            Self::IPv4 => 7,
            Self::IPv6 => 8,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        })
    }
}

/// The bytes of an address as they are in a packet.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
