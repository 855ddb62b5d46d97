//! An endpoint's address as Envoy reads it: as the standard library writes it, in a fraction of the instructions, since it
//! is written for each request. Never reads one.

use std::fmt::Write;
use std::net::SocketAddr;

/// Appends `address` to `text`.
pub fn write(text: &mut String, address: SocketAddr) {
    let SocketAddr::V4(address) = address else {
        // Text takes all that is written to it.
        let _ = write!(text, "{address}");
        return;
    };
    for (n, octet) in address.ip().octets().into_iter().enumerate() {
        if n > 0 {
            text.push('.');
        }
        number(text, octet.into());
    }
    text.push(':');
    number(text, address.port());
}

fn number(text: &mut String, mut number: u16) {
    let mut digits = [0; 5];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    digits[first..].iter().for_each(|digit| text.push(char::from(*digit)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_everybody_writes_it() {
        for address in ["0.0.0.0:0", "10.244.1.9:80", "255.100.99.1:65535", "[fd00::1]:8080", "1.2.3.4:10"] {
            let mut text = "before ".to_owned();
            write(&mut text, address.parse().unwrap());
            assert_eq!(text, format!("before {address}"));
        }
    }
}
