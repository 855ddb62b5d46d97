//! What the `:authority` of a request says. In: its text. Out: a Service or an address. Never looks into a table.

use std::net::{IpAddr, SocketAddr};

use selection::ServiceName;

/// The port of an authority that names none: requests reach this filter after TLS has ended.
const PORT: u16 = 80;

/// Whom a request or a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A port of a Service, by name or number.
    Service(ServiceName, String),
    /// Whoever has this address.
    Address(SocketAddr),
}

/// Reads `web.shop.svc.cluster.local`, `web.shop.svc`, `web.shop` or an IP address, each with a port or without;
/// `domain` is the cluster's, `namespace` that of a name without one, if such a name is to be a Service's. `None` for any
/// other name: it is no Service's.
pub fn read(authority: &str, domain: &str, namespace: Option<&str>) -> Option<Wanted> {
    if let Ok(address) = authority.parse() {
        return Some(Wanted::Address(address));
    }
    let unbracketed =
        authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(authority);
    if let Ok(ip) = unbracketed.parse::<IpAddr>() {
        return Some(Wanted::Address(SocketAddr::new(ip, PORT)));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)?),
        None => (authority, PORT),
    };
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let cluster = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
    let short = match cluster {
        // Names of Pods and of endpoints end with the domain too, and are no Service's.
        Some(full) => full.strip_suffix(".svc")?,
        None => host.strip_suffix(".svc").unwrap_or(&host),
    };
    let (name, namespace) = match (short.split_once('.'), namespace) {
        (Some(both), _) => both,
        (None, Some(namespace)) if short.len() == host.len() => (short, namespace),
        _ => return None,
    };
    if namespace.contains('.') {
        return None;
    }
    Some(Wanted::Service(ServiceName::written(&format!("{namespace}/{name}"))?, port.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(port: &str) -> Option<Wanted> {
        Some(Wanted::Service(ServiceName::new("shop", "web"), port.to_owned()))
    }

    #[test]
    fn every_way_to_write_a_service_means_the_same() {
        for host in [
            "web.shop",
            "web.shop.svc",
            "web.shop.svc.cluster.local",
            "web.shop.svc.cluster.local.",
            "WEB.Shop",
        ] {
            assert_eq!(read(host, "cluster.local", None), service("80"), "{host}");
            assert_eq!(read(&format!("{host}:8080"), "cluster.local", None), service("8080"), "{host}");
        }
        assert_eq!(read("web.shop.svc.my.zone:81", "my.zone", None), service("81"));
    }

    #[test]
    fn an_address_stands_for_itself() {
        let address = |text: &str| Some(Wanted::Address(text.parse().unwrap()));
        assert_eq!(read("10.96.0.1", "cluster.local", None), address("10.96.0.1:80"));
        assert_eq!(read("10.96.0.1:81", "cluster.local", None), address("10.96.0.1:81"));
        assert_eq!(read("[fd00::1]", "cluster.local", None), address("[fd00::1]:80"));
        assert_eq!(read("[fd00::1]:81", "cluster.local", None), address("[fd00::1]:81"));
    }

    #[test]
    fn a_name_alone_is_a_service_of_the_namespace_that_is_meant() {
        let read = |authority| read(authority, "cluster.local", Some("shop"));
        assert_eq!(read("web"), service("80"));
        assert_eq!(read("Web.:8080"), service("8080"));
        assert_eq!(read("web.shop"), service("80"));
        for other in ["", ".", "web.svc", "web.svc.cluster.local", "we_b", "www.example.com"] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn other_names_are_no_service() {
        for other in [
            "",
            ":80",
            ".",
            "web",
            "localhost:8080",
            "www.example.com",
            "10-1-2-3.shop.pod.cluster.local",
            "one.web.shop.svc.cluster.local",
            "web.shop.svc.cluster.local:http",
            "web.shop:0",
            "web.shop:70000",
            "web.shop:80:80",
            ".shop",
            "web.",
            "we_b.shop",
            "web/x.shop",
            "a/b.c/d",
            "\u{fc}.shop",
        ] {
            assert_eq!(read(other, "cluster.local", None), None, "{other}");
        }
    }
}
