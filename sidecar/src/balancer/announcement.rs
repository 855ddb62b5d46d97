//! Tells the neighbours where an address is now, for they remember where it was: the kernel does so only for what it
//! calls a change of the link. In: an address. Out: one frame: a gratuitous ARP (RFC 5227, section 3) or an unsolicited
//! neighbour advertisement (RFC 4861, section 7.2.6). Never waits for anybody.
//!
//! ```text
//! Ethernet: to 6 │ from 6 │ type 2
//! ARP:      1 2 │ IPv4 2 │ lengths 6, 4 │ reply 2 │ hardware 6, address 4 │ hardware 6, address 4
//! IPv6:     version 4 │ payload 2 │ next, hops 2 │ from 16 │ to 16 │ 136, 0 │ sum 2 │ flags 4 │ address 16 │ 2, 1, hardware 6
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

/// An address of hardware.
type Hardware = [u8; 6];

const EVERYBODY: Hardware = [0xff; 6];
/// ff02::1 on Ethernet.
const ALL_NODES: Hardware = [0x33, 0x33, 0, 0, 0, 1];

/// Owning one means that frames can be sent on an interface.
#[derive(Debug)]
pub(super) struct Announcer {
    socket: OwnedFd,
    link: LinkAddr,
    from: Hardware,
}

impl Announcer {
    /// On the interface of this name.
    ///
    /// # Errors
    /// If frames may not be sent (NET_RAW), or the interface has no hardware that could have neighbours.
    pub(super) fn new(interface: &str) -> io::Result<Self> {
        let mut all = nix::ifaddrs::getifaddrs()?.filter(|of| of.interface_name == interface);
        let link = all.find_map(|of| of.address?.as_link_addr().copied());
        let from = link.and_then(|link| link.addr()).filter(|from| *from != [0; 6]);
        let (link, from) = link.zip(from).ok_or(io::ErrorKind::Unsupported)?;
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { socket, link, from })
    }

    /// Says that `ip` is here.
    ///
    /// # Errors
    /// If the frame cannot be sent.
    pub(super) fn announce(&self, ip: IpAddr) -> io::Result<()> {
        let frame = match ip {
            IpAddr::V4(ip) => arp(self.from, ip),
            IpAddr::V6(ip) => advertisement(self.from, ip),
        };
        sendto(self.socket.as_raw_fd(), &frame, &self.link, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }
}

fn arp(from: Hardware, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = [&EVERYBODY[..], &from, &[0x08, 0x06], &[0, 1, 0x08, 0, 6, 4, 0, 2]].concat();
    frame.extend([&from[..], &ip.octets(), &EVERYBODY, &ip.octets()].concat());
    frame
}

fn advertisement(from: Hardware, ip: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    // It replaces what is remembered.
    let (kind, replaces) = ([136, 0], [0x20, 0, 0, 0]);
    let option = [&[2, 1][..], &from].concat();
    let mut message = [&kind[..], &[0, 0], &replaces, &ip.octets(), &option].concat();
    let length = message.len() as u16;
    let pseudo = [&ip.octets()[..], &all_nodes, &u32::from(length).to_be_bytes(), &[0, 0, 0, 58]].concat();
    let sum = checksum(&[&pseudo[..], &message].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let header = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[58, 255], &ip.octets(), &all_nodes].concat();
    [&ALL_NODES[..], &from, &[0x86, 0xdd], &header, &message].concat()
}

/// RFC 1071, of a whole number of words.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Hardware = [2, 0, 0, 0, 0, 7];

    #[test]
    fn a_gratuitous_arp_names_the_address_as_sender_and_as_target() {
        let frame = arp(FROM, Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!(frame.len(), 42);
        assert_eq!((&frame[..6], &frame[6..12]), (&EVERYBODY[..], &FROM[..]));
        assert_eq!(
            (&frame[22..28], &frame[28..32], &frame[38..]),
            (&FROM[..], &[192, 0, 2, 7][..], &[192, 0, 2, 7][..])
        );
    }

    #[test]
    fn an_advertisement_has_the_sum_that_receivers_want() {
        let ip: Ipv6Addr = "fd00:5::7".parse().unwrap();
        let frame = advertisement(FROM, ip);
        assert_eq!(frame.len(), 14 + 40 + 32);
        let (header, message) = frame[14..].split_at(40);
        // Over the message as it is sent, sum included, it is nothing.
        let pseudo = [&header[8..40], &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
        assert_eq!(checksum(&[&pseudo[..], message].concat()), 0);
        assert_eq!((header[7], &message[8..24]), (255, &ip.octets()[..]));
    }
}
