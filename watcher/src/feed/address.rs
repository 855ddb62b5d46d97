//! Where a feed is served. Values; parsed, never opened here.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Trust;

/// Where another Remora serves its feed. Plain only on this machine: who could stand between two others could send
/// connections anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
    /// Anywhere, by TLS.
    Tls {
        /// The server's name, or its address.
        host: String,
        /// Its port.
        port: u16,
        /// How either knows the other; nothing yet when it is parsed.
        trust: Trust,
    },
}

/// Why a text is no such address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is not written as one.
    #[error("{0:?} is not where a feed is: say https://HOST:PORT, http://127.0.0.1:PORT or unix:PATH")]
    Unknown(String),
    /// Other machines have it.
    #[error(
        "{0} is not on this machine, and without TLS nobody could tell who answers there: say https://{0}"
    )]
    NotLoopback(SocketAddr),
}

impl Address {
    /// Reads `https://HOST:PORT`, `ADDRESS:PORT`, with or without `http://`, or `unix:PATH`.
    ///
    /// # Errors
    /// If it is none, or without TLS and not on this machine.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let unknown = || AddressError::Unknown(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(unknown()) } else { Ok(Self::Unix(path.into())) };
        }
        if let Some(authority) = text.strip_prefix("https://") {
            let (host, port) = authority.trim_end_matches('/').rsplit_once(':').ok_or_else(unknown)?;
            let port = port.parse().map_err(|_| unknown())?;
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-.:".contains(c);
            if host.is_empty() || !host.chars().all(is_name) {
                return Err(unknown());
            }
            return Ok(Self::Tls { host: host.to_owned(), port, trust: Trust::default() });
        }
        let authority = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let address = match authority.strip_prefix("localhost:") {
            Some(port) => SocketAddr::from(([127, 0, 0, 1], port.parse().map_err(|_| unknown())?)),
            None => authority.parse().map_err(|_| unknown())?,
        };
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(AddressError::NotLoopback(address))
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tls { host, port, .. } if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Tls { host, port, .. } => write!(f, "https://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feed_is_on_loopback_or_at_a_path_or_by_tls_anywhere() {
        let read = |text| Address::parse(text).map(|address| address.to_string());
        assert_eq!(read("http://127.0.0.1:64105").unwrap(), "http://127.0.0.1:64105");
        assert_eq!(read("localhost:1").unwrap(), "http://127.0.0.1:1");
        assert_eq!(read("http://[::1]:1/").unwrap(), "http://[::1]:1");
        assert_eq!(read("unix:/run/remora/feed").unwrap(), "unix:/run/remora/feed");
        assert_eq!(read("https://remora.remora.svc:64105").unwrap(), "https://remora.remora.svc:64105");
        assert_eq!(read("https://[fd00::1]:1/").unwrap(), "https://[fd00::1]:1");
        for wrong in ["", "unix:", "https://hub", "https://:1", "https://a/b:1", "http://hub:1", "127.0.0.1"]
        {
            assert_eq!(read(wrong).unwrap_err(), AddressError::Unknown(wrong.to_owned()));
        }
        let open = "0.0.0.0:1".parse().unwrap();
        assert_eq!(read("http://0.0.0.0:1").unwrap_err(), AddressError::NotLoopback(open));
    }
}
