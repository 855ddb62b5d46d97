//! An endpoint's address as Envoy reads it: as the standard library writes it, in a fraction of the instructions, since it
//! is written for each request. Never reads one.

use std::net::SocketAddr;

/// More than the longest address, by IPv6 with a scope, takes.
const MOST: usize = 64;

/// An address as text.
pub struct Written {
    bytes: [u8; MOST],
    /// Where it begins: it is written from its end.
    first: usize,
}

impl Written {
    /// `address` as text.
    pub fn new(address: SocketAddr) -> Self {
        let mut written = Self { bytes: [0; MOST], first: MOST };
        let SocketAddr::V4(address) = address else {
            address.to_string().bytes().rev().for_each(|byte| written.put(byte));
            return written;
        };
        written.number(address.port());
        let mut before = b':';
        for octet in address.ip().octets().into_iter().rev() {
            written.put(before);
            written.number(octet.into());
            before = b'.';
        }
        written
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.first..]
    }

    fn number(&mut self, mut number: u16) {
        loop {
            self.put(b'0' + (number % 10) as u8);
            number /= 10;
            if number == 0 {
                break;
            }
        }
    }

    fn put(&mut self, byte: u8) {
        self.first -= 1;
        self.bytes[self.first] = byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_everybody_writes_it() {
        for address in [
            "0.0.0.0:0",
            "10.244.1.9:80",
            "255.100.99.1:65535",
            "[fd00::1]:8080",
            "1.2.3.4:10",
            "[fdfd:1111:2222:3333:4444:5555:6666:7777%4294967295]:65535",
        ] {
            let written = Written::new(address.parse().unwrap());
            assert_eq!(std::str::from_utf8(written.bytes()), Ok(address));
        }
    }
}
