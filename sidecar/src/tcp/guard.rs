//! Who gets in at a listener. In: ranges of clients. Out: a filter of the socket (BPF), by which the kernel drops the
//! packets of everybody else without an answer, as a firewall does. Needs no privilege, never sees a connection that
//! stands.
//!
//! A listener alone can only refuse or take. Where kube-proxy drops, so that a client looks for another node instead of
//! taking "refused" for an answer, this is how.

use std::io;
use std::net::{IpAddr, TcpListener};

use ipnet::IpNet;
use socket2::{SockFilter, SockRef};

/// Instructions of classic BPF (linux/bpf_common.h): load a word, and, jump if equal, return.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// What is loaded from here on is counted from the header of IP (`SKF_NET_OFF`).
const NETWORK: u32 = (-0x10_0000i32).cast_unsigned();
/// Where that header has the source.
const SOURCE_V4: u32 = NETWORK + 12;
const SOURCE_V6: u32 = NETWORK + 8;

/// Lets only clients of `ranges` in at `listener`; everybody if `None`.
pub(super) fn admit(listener: &TcpListener, ranges: Option<&[IpNet]>) -> io::Result<()> {
    let socket = SockRef::from(listener);
    let Some(ranges) = ranges else {
        return match socket.detach_filter() {
            // There was none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        };
    };
    let is_v4 = listener.local_addr()?.is_ipv4();
    let of_family = ranges.iter().filter(|range| range.addr().is_ipv4() == is_v4);
    let mut program: Vec<SockFilter> = of_family.flat_map(accept).collect();
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    socket.attach_filter(&program)
}

/// Takes a packet from `range`, and goes on behind this else.
fn accept(range: &IpNet) -> Vec<SockFilter> {
    let (source, words): (u32, Vec<(u32, u32)>) = match (range.network(), range.netmask()) {
        (IpAddr::V4(net), IpAddr::V4(mask)) => (SOURCE_V4, vec![(net.to_bits(), mask.to_bits())]),
        (IpAddr::V6(net), IpAddr::V6(mask)) => {
            let word = |bits: u128, n: u32| (bits >> (96 - 32 * n)) as u32;
            (SOURCE_V6, (0..4).map(|n| (word(net.to_bits(), n), word(mask.to_bits(), n))).collect())
        }
        // A range and its mask are of one family.
        _ => return Vec::new(),
    };
    let mut program = Vec::with_capacity(3 * words.len() + 1);
    for (n, (net, mask)) in words.iter().enumerate() {
        let behind = 3 * (words.len() - n - 1) + 1;
        program.push(SockFilter::new(LOAD, 0, 0, source + 4 * n as u32));
        program.push(SockFilter::new(AND, 0, 0, *mask));
        program.push(SockFilter::new(EQUAL, 0, behind as u8, *net));
    }
    program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    program
}
