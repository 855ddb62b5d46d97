//! Who the client is, in the words of the PROXY protocol, version 2
//! (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>, 2.2). In: two addresses. Out: the bytes that come first
//! at the endpoint. Never reads such a header.
//!
//! | bytes | |
//! |--|--|
//! | 12 | `\r\n\r\n\0\r\nQUIT\n` |
//! | 1 | 0x21: version 2, a connection of somebody else |
//! | 1 | 0x11 TCP over IPv4, 0x21 TCP over IPv6 |
//! | 2 | how many bytes follow, the highest first |
//! | 4 or 16, twice | address of the client, address that it dialled |
//! | 2, twice | port of the client, port that it dialled, the highest first |

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The header for a connection that `client` made to `dialled`, of the same family.
pub(super) fn header(client: SocketAddr, dialled: SocketAddr) -> Vec<u8> {
    let (client_ip, dialled_ip) = (octets(client.ip()), octets(dialled.ip()));
    let family = if client_ip.len() == 4 { 0x11 } else { 0x21 };
    let length = (client_ip.len() + dialled_ip.len() + 4) as u16;
    let mut header = Vec::with_capacity(SIGNATURE.len() + 4 + usize::from(length));
    header.extend_from_slice(SIGNATURE);
    header.extend([0x21, family]);
    header.extend(length.to_be_bytes());
    header.extend(client_ip);
    header.extend(dialled_ip);
    header.extend(client.port().to_be_bytes());
    header.extend(dialled.port().to_be_bytes());
    header
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_who_and_whom() {
        let said = header("192.0.2.7:4660".parse().unwrap(), "10.0.0.1:30080".parse().unwrap());
        let expected =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\x0a\x00\x00\x01\x12\x34\x75\x80";
        assert_eq!(said, expected);
        let said = header("[2001:db8::7]:4660".parse().unwrap(), "[fd00::1]:30080".parse().unwrap());
        assert_eq!((said.len(), &said[12..16]), (52, &b"\x21\x21\x00\x24"[..]));
        assert_eq!((said[16], said[31], said[32], &said[48..]), (0x20, 7, 0xfd, &b"\x12\x34\x75\x80"[..]));
    }
}
