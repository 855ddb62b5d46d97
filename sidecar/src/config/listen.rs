//! What `--listen` says: `ADDRESS:PORT=[NAMESPACE/]NAME:PORT`.

use std::net::SocketAddr;

use selection::ServiceName;

use crate::tcp::Listen;

/// Reads one `--listen`; the error says what is wrong with it.
pub(super) fn parse(text: &str) -> Result<Listen, String> {
    let (address, wanted) =
        text.split_once('=').ok_or("an = between the address and the Service is missing")?;
    let address: SocketAddr = address.parse().map_err(|_| {
        format!("{address:?} is not an IP address and a port, IPv6 in brackets, such as [::1]:8080")
    })?;
    let (service, port) = wanted.rsplit_once(':').ok_or("the port of the Service is missing")?;
    let service = service_name(service)?;
    if port.is_empty() || port == "0" || !port.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(format!("{port:?} is neither the name nor the number of a Service port"));
    }
    Ok(Listen { address, service, port: port.to_owned() })
}

/// Reads `[NAMESPACE/]NAME`.
pub(super) fn service_name(text: &str) -> Result<ServiceName, String> {
    ServiceName::written(text)
        .ok_or_else(|| format!("{text:?} is not the name of a Service, such as shop/web"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listen_names_an_address_and_a_service_port() {
        let listen = parse("127.0.0.1:8080=shop/web:80").unwrap();
        assert_eq!(listen.address.to_string(), "127.0.0.1:8080");
        assert_eq!((listen.service, &*listen.port), (ServiceName::new("shop", "web"), "80"));

        let listen = parse("[::1]:0=web:http").unwrap();
        assert_eq!(listen.address.to_string(), "[::1]:0");
        assert_eq!((listen.service, &*listen.port), (ServiceName::new("default", "web"), "http"));
    }

    #[test]
    fn a_wrong_listen_says_which_part_is_wrong() {
        for (text, part) in [
            ("127.0.0.1:8080", "="),
            ("localhost:8080=web:80", "localhost:8080"),
            ("::1:8080=web:80", "brackets"),
            ("127.0.0.1:8080=web", "port of the Service"),
            ("127.0.0.1:8080=a/b/c:80", "a/b/c"),
            ("127.0.0.1:8080=/web:80", "/web"),
            ("127.0.0.1:8080=:80", "name of a Service"),
            ("127.0.0.1:8080=web:", "Service port"),
            ("127.0.0.1:8080=web:0", "Service port"),
            ("127.0.0.1:80800=web:80", "80800"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
