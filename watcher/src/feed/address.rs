//! Where a feed is served. Values; parsed, never opened here.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Where another Remora serves its feed. On this machine: until servers and readers prove to each other who they are,
/// who could stand between them could send connections anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Why a text is no such address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is not written as one.
    #[error("{0:?} is not where a feed is: say http://127.0.0.1:PORT or unix:PATH")]
    Unknown(String),
    /// Other machines have it.
    #[error(
        "{0} is not on this machine, and nobody could tell who answers there: say http://127.0.0.1:PORT or unix:PATH"
    )]
    NotLoopback(SocketAddr),
}

impl Address {
    /// Reads `ADDRESS:PORT`, with or without `http://`, or `unix:PATH`.
    ///
    /// # Errors
    /// If it is neither, or not on this machine.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let unknown = || AddressError::Unknown(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(unknown()) } else { Ok(Self::Unix(path.into())) };
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feed_is_on_loopback_or_at_a_path() {
        let read = |text| Address::parse(text).map(|address| address.to_string());
        assert_eq!(read("http://127.0.0.1:64105").unwrap(), "http://127.0.0.1:64105");
        assert_eq!(read("localhost:1").unwrap(), "http://127.0.0.1:1");
        assert_eq!(read("http://[::1]:1/").unwrap(), "http://[::1]:1");
        assert_eq!(read("unix:/run/remora/feed").unwrap(), "unix:/run/remora/feed");
        for wrong in ["", "unix:", "https://127.0.0.1:1", "http://hub:1", "127.0.0.1"] {
            assert_eq!(read(wrong).unwrap_err(), AddressError::Unknown(wrong.to_owned()));
        }
        let open = "0.0.0.0:1".parse().unwrap();
        assert_eq!(read("http://0.0.0.0:1").unwrap_err(), AddressError::NotLoopback(open));
    }
}
