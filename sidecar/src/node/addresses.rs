//! At which of this machine's addresses node ports are served (`--nodeport-addresses` of kube-proxy). In: what was typed,
//! and what the machine has. Out: addresses to listen at. Never listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};

use ipnet::IpNet;
use selection::Family;

/// Which addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The node's own, one of a family.
    Primary,
    /// Every one.
    All,
    /// Those that only this machine reaches.
    Localhost,
    /// This machine's in these ranges, and every one of a family that no range is of.
    Ranges(Vec<IpNet>),
}

/// Why node ports cannot be served anywhere.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system does not say which addresses there are.
    #[error("cannot list the addresses of this machine: {0}; raise the limit on open files")]
    Unlisted(#[source] std::io::Error),
    /// There is no primary address.
    #[error("do not know this node's addresses: it has no default route; name them with --node-ips ADDRESS")]
    NoPrimary,
    /// Nothing is in the ranges.
    #[error(
        "no address of this machine is in the ranges of --nodeport-addresses; `ip address` shows what it has"
    )]
    NoneInRanges,
}

impl Which {
    /// Reads the values of the flag.
    ///
    /// # Errors
    /// The value that is none.
    pub fn parse<'a>(typed: impl Iterator<Item = &'a String>) -> Result<Self, String> {
        let typed: Vec<&str> = typed.map(|text| text.trim()).collect();
        match *typed {
            [] | ["primary"] => return Ok(Self::Primary),
            ["all"] => return Ok(Self::All),
            ["localhost"] => return Ok(Self::Localhost),
            _ => {}
        }
        let range = |text: &str| {
            let single = || text.parse::<IpAddr>().map(IpNet::from);
            text.parse::<IpNet>().or_else(|_| single()).map_err(|_| text.to_owned())
        };
        typed.into_iter().map(range).collect::<Result<_, _>>().map(Self::Ranges)
    }

    /// Where to listen on a machine with the addresses `own`, of which `primary` are the node's.
    ///
    /// # Errors
    /// If there is no such address.
    pub fn among(&self, primary: &[IpAddr], own: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
        let every = |families: &[Family]| {
            let any = families.iter().map(|family| match family {
                Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            });
            any.filter(|ip| own.iter().any(|own| own.is_ipv4() == ip.is_ipv4())).collect::<Vec<_>>()
        };
        match self {
            Self::Primary if primary.is_empty() => Err(Error::NoPrimary),
            Self::Primary => Ok(primary.to_vec()),
            Self::All => Ok(every(&[Family::V4, Family::V6])),
            Self::Localhost => Ok(own.iter().copied().filter(IpAddr::is_loopback).collect()),
            Self::Ranges(ranges) => {
                let is_bare =
                    |family: &Family| ranges.iter().all(|range| Family::of(&range.addr()) != *family);
                let bare: Vec<Family> = [Family::V4, Family::V6].into_iter().filter(is_bare).collect();
                let inside = own.iter().filter(|ip| ranges.iter().any(|range| range.contains(*ip)));
                let at: Vec<IpAddr> = inside.copied().chain(every(&bare)).collect();
                if at.is_empty() { Err(Error::NoneInRanges) } else { Ok(at) }
            }
        }
    }
}

/// The addresses of this machine that can be listened at, in order.
///
/// # Errors
/// If the system does not say.
pub(super) fn own() -> Result<Vec<IpAddr>, Error> {
    let interfaces = nix::ifaddrs::getifaddrs().map_err(|errno| Error::Unlisted(errno.into()))?;
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    let mut own: Vec<IpAddr> =
        interfaces.filter_map(|interface| ip(interface.address?)).filter(can_be_listened_at).collect();
    own.sort_unstable();
    own.dedup();
    Ok(own)
}

/// A link-local address means nothing without its interface; one that is being tried out cannot be had yet.
fn can_be_listened_at(ip: &IpAddr) -> bool {
    let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    !is_link_local && TcpListener::bind((*ip, 0)).is_ok()
}

/// From which address of each family this machine speaks to others. Nothing is sent: the addresses are those of
/// documentation (RFC 5737, RFC 3849), and connecting UDP only asks for a route.
pub(super) fn primary() -> Vec<IpAddr> {
    let others: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    ];
    let from = |(any, other)| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((other, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
    };
    others.into_iter().filter_map(from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn among(typed: &[&str], own: &[&str]) -> Option<Vec<IpAddr>> {
        let typed: Vec<String> = typed.iter().map(|text| (*text).to_owned()).collect();
        Which::parse(typed.iter()).unwrap().among(&ips(&["192.168.1.10"]), &ips(own)).ok()
    }

    #[test]
    fn node_ports_are_where_kube_proxy_would_have_them() {
        let own = ["127.0.0.1", "192.168.1.10", "10.0.0.5", "::1", "fd00::5"];
        assert_eq!(among(&[], &own), Some(ips(&["192.168.1.10"])));
        assert_eq!(among(&["primary"], &own), Some(ips(&["192.168.1.10"])));
        assert_eq!(among(&["all"], &own), Some(ips(&["0.0.0.0", "::"])));
        assert_eq!(among(&["all"], &own[..3]), Some(ips(&["0.0.0.0"])));
        assert_eq!(among(&["localhost"], &own), Some(ips(&["127.0.0.1", "::1"])));
        // No range of a family means all of it.
        assert_eq!(among(&["10.0.0.0/8"], &own), Some(ips(&["10.0.0.5", "::"])));
        assert_eq!(among(&["10.0.0.0/8", "fd00::/8"], &own), Some(ips(&["10.0.0.5", "fd00::5"])));
        assert_eq!(among(&["10.9.0.0/16", "fd99::/16"], &own), None);
    }

    #[test]
    fn what_is_neither_a_word_nor_a_range_is_named() {
        let typed = ["10.0.0.0/8".to_owned(), "primary".to_owned()];
        assert_eq!(Which::parse(typed.iter()), Err("primary".to_owned()));
    }
}
