//! Addresses on an interface, put there and taken away again by netlink. In: the addresses that are wanted. Out: those
//! that are there. Never touches an address that another program or person put there: ours have a mark.
//!
//! ```text
//! ip address add 192.0.2.7/32 dev eth0 proto 82
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use rustix::io::Errno;

use super::Error;
use crate::netlink::message::{Attributes, CREATE, DUMP, EXCLUSIVE, Message, attribute, number};
use crate::netlink::socket::{Refusal, Socket};

/// The kernel's names for messages.
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
/// Attributes of an address: of the other end, our own, flags, who put it there.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const FLAGS: u16 = 8;
const PROTOCOL: u16 = 11;
/// Usable at once: whether somebody else has it is decided by the lease.
const NO_DUPLICATE_DETECTION: u32 = 0x02;
/// Ours (`IFA_PROTO`): a number that neither the kernel nor a routing daemon uses.
const REMORA: u8 = 82;
/// Family, length of the prefix, flags, scope, and the interface.
const HEADER: usize = 8;

/// What an interface has of ours. Owning one means to be the one who puts addresses there.
#[derive(Debug)]
pub(super) struct Addresses {
    socket: Socket,
    interface: u32,
    ours: BTreeSet<IpAddr>,
    /// Wanted addresses that somebody else has put there: they serve, and stay.
    others: BTreeSet<IpAddr>,
}

impl Addresses {
    /// Of the interface of this name; what an earlier process left there is ours.
    pub(super) fn new(name: &str) -> Result<Self, Error> {
        let interface =
            nix::net::if_::if_nametoindex(name).map_err(|_| Error::NoInterface(name.to_owned()))?;
        let socket = Socket::route().map_err(Error::Netlink)?;
        let mut all = Self { socket, interface, ours: BTreeSet::new(), others: BTreeSet::new() };
        all.ours = all.left().map_err(|refusal| Error::Netlink(refusal.errno.into()))?;
        Ok(all)
    }

    /// The addresses of the interface that have our mark.
    fn left(&self) -> Result<BTreeSet<IpAddr>, Refusal> {
        let mut ours = BTreeSet::new();
        let every = Message::new(GET_ADDRESS, DUMP, &[0; HEADER]);
        self.socket.dump(&every, |kind, item| {
            if kind == NEW_ADDRESS && number(item, 4) == Some(self.interface) {
                ours.extend(marked(item));
            }
        })?;
        Ok(ours)
    }

    /// Puts an address there; whether it was not there before.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn add(&mut self, ip: IpAddr) -> Result<bool, Errno> {
        if self.ours.contains(&ip) || self.others.contains(&ip) {
            return Ok(false);
        }
        match self.socket.send(&[self.message(NEW_ADDRESS, CREATE | EXCLUSIVE, ip)]) {
            Ok(()) => drop(self.ours.insert(ip)),
            Err(Refusal { errno: Errno::EXIST, .. }) => drop(self.others.insert(ip)),
            Err(refusal) => return Err(refusal.errno),
        }
        Ok(true)
    }

    /// Takes away what is not among `wanted`.
    ///
    /// # Errors
    /// The first address that the kernel does not take away; the others are gone.
    pub(super) fn keep(&mut self, wanted: &BTreeSet<IpAddr>) -> Result<(), (IpAddr, Errno)> {
        self.others.retain(|ip| wanted.contains(ip));
        let mut result = Ok(());
        for ip in self.ours.difference(wanted).copied().collect::<Vec<_>>() {
            match self.socket.send(&[self.message(DELETE_ADDRESS, 0, ip)]) {
                Ok(()) | Err(Refusal { errno: Errno::ADDRNOTAVAIL, .. }) => drop(self.ours.remove(&ip)),
                Err(refusal) => result = Err((ip, refusal.errno)),
            }
        }
        result
    }

    /// The addresses that are there.
    pub(super) fn held(&self) -> BTreeSet<IpAddr> {
        self.ours.union(&self.others).copied().collect()
    }

    fn message(&self, kind: u16, flags: u16, ip: IpAddr) -> Message {
        let (family, octets) = match ip {
            IpAddr::V4(ip) => (2, ip.octets().to_vec()),
            IpAddr::V6(ip) => (10, ip.octets().to_vec()),
        };
        let mut header = [family, IpNet::from(ip).prefix_len(), 0, 0, 0, 0, 0, 0];
        header[4..].copy_from_slice(&self.interface.to_ne_bytes());
        let attributes = Attributes::default()
            .bytes(LOCAL, &octets)
            .bytes(ADDRESS, &octets)
            .native(FLAGS, NO_DUPLICATE_DETECTION)
            .bytes(PROTOCOL, &[REMORA]);
        Message::new(kind, flags, &header).with(attributes).acknowledged()
    }
}

/// The address that a dump tells of, if it has our mark.
fn marked(item: &[u8]) -> Option<IpAddr> {
    let rest = item.get(HEADER..)?;
    if attribute(rest, PROTOCOL) != Some(&[REMORA]) {
        return None;
    }
    let octets = attribute(rest, LOCAL).or_else(|| attribute(rest, ADDRESS))?;
    let v4 = || <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(octets).ok().map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_with_the_mark_are_ours() {
        let item = |mark: Option<u8>, octets: &[u8]| {
            let attributes = Attributes::default().bytes(LOCAL, octets);
            let attributes = match mark {
                Some(mark) => attributes.bytes(PROTOCOL, &[mark]),
                None => attributes,
            };
            [&[0; HEADER][..], attributes.as_bytes()].concat()
        };
        assert_eq!(marked(&item(Some(REMORA), &[192, 0, 2, 7])), Some([192, 0, 2, 7].into()));
        assert_eq!(marked(&item(Some(REMORA), &[0xfd; 16])), Some([0xfd; 16].into()));
        assert_eq!(marked(&item(None, &[192, 0, 2, 7])), None);
        assert_eq!(marked(&item(Some(3), &[192, 0, 2, 7])), None);
        assert_eq!(marked(&[0; 3]), None);
    }
}
