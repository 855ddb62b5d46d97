//! Where the feed is served. In: an address on this machine, or a path. Out: connections.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use watcher::feed::{Address, Trust};

use crate::handover::Inherited;
use crate::http;

/// Connections that may wait in the kernel: after a restart all readers come at once.
const WAITING: i32 = 4096;

/// A listening socket that takes no connections yet.
#[derive(Debug)]
pub enum Listener {
    /// On a loopback address.
    Tcp(std::net::TcpListener),
    /// On an address, by TLS.
    Tls(std::net::TcpListener),
    /// At a path.
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

/// Why the feed cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// Where others ask, and nobody listens.
    #[error("cannot listen on {0} for --feed; say at which address and port, such as 0.0.0.0:64105")]
    Url(Address),
    /// The path is somebody's.
    #[error("cannot listen on {0} for --feed: {1}; choose a path of its own with --feed unix:PATH")]
    Occupied(PathBuf, &'static str),
    /// The path cannot be had.
    #[error("cannot listen on {0} for --feed: {1}; choose a path in a folder that this user may write")]
    Path(PathBuf, io::Error),
    /// There is no folder to serve files from.
    #[error(
        "cannot serve files from {0} for --assets: {1}; name the folder in which filter.wasm is, which filter/build makes"
    )]
    Assets(PathBuf, io::Error),
}

/// Takes `address`, from an earlier process if that handed it over.
///
/// # Errors
/// If it cannot be had.
pub fn bind(address: &Address, inherited: &mut Inherited) -> Result<Listener, Error> {
    match address {
        Address::Tcp(address) => Ok(Listener::Tcp(http::bind("feed", *address, inherited)?)),
        Address::Tls { .. } => Err(Error::Url(address.clone())),
        Address::Unix(path) => {
            let listener = bind_path(path, inherited.is_from_somebody())?;
            Ok(Listener::Unix(listener, path.clone()))
        }
    }
}

fn bind_path(path: &Path, replace: bool) -> Result<std::os::unix::net::UnixListener, Error> {
    let occupied = |why| Err(Error::Occupied(path.to_owned(), why));
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return occupied("it is there and no socket"),
        Ok(_) if !replace && std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return occupied("a process that lives serves there");
        }
        _ => {}
    }
    // What an earlier process left, or serves until this one does, is replaced in one step: readers always find one.
    let mut next = path.as_os_str().to_owned();
    next.push(format!(".{}", std::process::id()));
    let bound = (|| {
        let listener = std::os::unix::net::UnixListener::bind(&next)?;
        listener.set_nonblocking(true)?;
        // Whoever may enter the folder may read, as every user of this machine may on a loopback address: an Envoy in
        // the same Pod is another user.
        std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o666))?;
        std::fs::rename(&next, path)?;
        Ok(listener)
    })();
    bound.map_err(|error| Error::Path(path.to_owned(), error))
}

impl Listener {
    /// The same by TLS, where that is a question.
    pub fn by_tls(self) -> Self {
        match self {
            Self::Tcp(listener) => Self::Tls(listener),
            other => other,
        }
    }

    /// The TCP socket, if it is one.
    pub fn tcp(&self) -> Option<&std::net::TcpListener> {
        match self {
            Self::Tcp(listener) | Self::Tls(listener) => Some(listener),
            Self::Unix(..) => None,
        }
    }

    /// Where it is, as `--source feed:` takes it.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Self::Tls(listener) => {
                let address = listener.local_addr()?;
                let trust = Trust::default();
                Ok(Address::Tls { host: address.ip().to_string(), port: address.port(), trust })
            }
            Self::Unix(_, path) => Ok(Address::Unix(path.clone())),
        }
    }

    /// Takes connections, on the runtime around it.
    pub(super) fn listen(self) -> io::Result<Accepting> {
        Ok(match self {
            Self::Tcp(listener) | Self::Tls(listener) => {
                // It listens already, with a place for 128.
                rustix::net::listen(&listener, WAITING)?;
                Accepting::Tcp(TcpListener::from_std(listener)?)
            }
            Self::Unix(listener, _) => Accepting::Unix(UnixListener::from_std(listener)?),
        })
    }
}

pub(super) enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Accepting {
    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        }
    }
}
