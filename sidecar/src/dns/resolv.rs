//! `/etc/resolv.conf`: whom this machine asks for names. In: its text. Out: addresses. Search lists are the client's
//! business.

use std::net::{IpAddr, SocketAddr};

/// The port of DNS.
pub const PORT: u16 = 53;

/// The servers that `text` names, in its order; the zone of a link-local address is not understood.
pub(super) fn servers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        let ip: IpAddr = words.next().filter(|_| is_server)?.parse().ok()?;
        Some(SocketAddr::new(ip, PORT))
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_the_resolver_of_c_does() {
        let text = "# made by hand\nsearch a b\nnameserver 10.96.0.10\n nameserver  fd00::a # dns\n;nameserver 1.1.1.1\n\
                    nameserver x\noptions ndots:5\n";
        let expected = ["10.96.0.10:53", "[fd00::a]:53"].map(|address| address.parse().unwrap());
        assert_eq!(servers(text), expected);
        assert!(servers("").is_empty());
    }
}
