//! The connections of this network namespace, as /proc/net/tcp and tcp6 list them. In: their text. Out: flows.
//! Never opens them.
//!
//! ```text
//!   sl  local_address rem_address   st ...
//!    0: 0200F40A:D431 0100600A:01BB 01 ...
//! ```
//! An address is hexadecimal, in words of four bytes that are in the order of the machine; a port is hexadecimal; the
//! state is one of the kernel's `TCP_ESTABLISHED` (1) to `TCP_NEW_SYN_RECV` (12).

use std::net::{IpAddr, SocketAddr};

use super::family::{Family, octets};
use super::table::address;

/// One end of a connection, by its own port and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    /// The port of this end.
    pub(super) port: u16,
    /// The other end.
    pub(super) to: SocketAddr,
}

impl Flow {
    /// As a key of a set: each part in words of four bytes.
    pub(super) fn key(&self) -> Vec<u8> {
        let word = |port: u16| [port.to_be_bytes(), [0, 0]].concat();
        [word(self.port), octets(self.to.ip()), word(self.to.port())].concat()
    }

    /// That of the other end.
    pub(super) fn family(&self) -> Family {
        Family::of(self.to.ip())
    }
}

/// A line of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// This end's address.
    pub(super) from: SocketAddr,
    /// The other end.
    pub(super) to: SocketAddr,
    state: u8,
}

/// What has no other end.
const CLOSED: u8 = 7;
const LISTENING: u8 = 10;
/// States in which this end has said its last.
const CLOSING: [u8; 5] = [4, 5, 6, 9, 11];

impl Line {
    /// The flow, for a connection that sends from here.
    pub(super) fn flow(&self) -> Flow {
        Flow { port: self.from.port(), to: self.to }
    }

    /// This end will send no more.
    pub(super) fn is_closing(&self) -> bool {
        CLOSING.contains(&self.state)
    }
}

/// The connections in a list. IPv4 addresses in the clothes of IPv6 are IPv4 addresses.
pub(super) fn read(list: &str) -> impl Iterator<Item = Line> {
    list.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let from = place(words.next()?)?;
        let to = place(words.next()?)?;
        let state = u8::from_str_radix(words.next()?, 16).ok()?;
        (state != CLOSED && state != LISTENING).then_some(Line { from, to, state })
    })
}

fn place(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words = (0..ip.len()).step_by(8).map(|at| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok());
    let bytes: Vec<u8> =
        words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip: IpAddr = address(&bytes)?.to_canonical();
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
        \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
        \x20  1: 0200F40A:D431 0100600A:01BB 01 00000000:00000000 00:00000000 00000000     0\n\
        \x20  2: 0200F40A:D432 0100600A:01BB 06 00000000:00000000 00:00000000 00000000     0\n";
    const V6: &str = "   0: 4402 broken 01\n\
        \x20  1: 440200FD000000000000000002000000:D431 960000FD000000000000000001000000:0050 01\n\
        \x20  2: 0000000000000000FFFF00000200F40A:D433 0000000000000000FFFF00000100600A:01BB 04\n";

    #[test]
    #[cfg(target_endian = "little")]
    fn connections_are_read_and_listeners_left_out() {
        let lines: Vec<Line> = read(V4).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].from, "10.244.0.2:54321".parse().unwrap());
        assert_eq!(lines[0].to, "10.96.0.1:443".parse().unwrap());
        assert!(!lines[0].is_closing() && lines[1].is_closing());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn an_ipv4_connection_of_an_ipv6_socket_is_ipv4() {
        let lines: Vec<Line> = read(V6).collect();
        assert_eq!(lines[0].to, "[fd00:96::1]:80".parse().unwrap());
        assert_eq!(lines[1].to, "10.96.0.1:443".parse().unwrap());
        assert_eq!(lines[1].flow().key(), [212, 51, 0, 0, 10, 96, 0, 1, 1, 187, 0, 0]);
        assert_eq!(lines[0].flow().key().len(), 24);
    }
}
