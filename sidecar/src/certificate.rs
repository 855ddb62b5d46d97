//! The certificate of this process, from files that somebody else renews, such as a mounted Secret. In: a folder with
//! `tls.crt` and `tls.key`. Out: TLS that shows clients, at every handshake, the newest that is whole. Never lets go of
//! one that works.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::{default_provider, sign::any_supported_type};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use the certificate in {folder} for --certificate: {cause}; put tls.crt and tls.key there, PEM, as a \
     Secret of type kubernetes.io/tls has them"
)]
pub struct Error {
    folder: PathBuf,
    cause: String,
}

/// The certificate in use.
#[derive(Debug)]
pub struct Certificate {
    folder: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// The one in `folder`.
    ///
    /// # Errors
    /// If there is none that can be used.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let current = RwLock::new(Arc::new(certified(folder)?));
        Ok(Self { folder: folder.to_owned(), current })
    }

    /// TLS for HTTP, 2 and 1.1, that shows what is current when a handshake begins.
    ///
    /// # Errors
    /// Of the same kind, if TLS cannot be set up.
    pub fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|why| Error { folder: self.folder.clone(), cause: why.to_string() })?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Self>::clone(self));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Takes over what is new in the folder, for ever.
    pub async fn follow(&self) {
        let mut told = String::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match certified(&self.folder) {
                Ok(new) => {
                    told.clear();
                    if new.cert != self.current().cert {
                        tracing::info!(folder = %self.folder.display(), "there is a new certificate");
                        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                    }
                }
                // Half of a new one, perhaps.
                Err(error) if error.cause != told => {
                    tracing::warn!("{error}; the last one that worked is used on");
                    told = error.cause;
                }
                Err(_) => {}
            }
        }
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn certified(folder: &Path) -> Result<CertifiedKey, Error> {
    let error = |cause: String| Error { folder: folder.to_owned(), cause };
    let (chain, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let failed = |path: &Path, why: &dyn std::fmt::Display| error(format!("{}: {why}", path.display()));
    let certificates = CertificateDer::pem_file_iter(&chain).map_err(|why| failed(&chain, &why))?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|why| failed(&chain, &why))?;
    if certificates.is_empty() {
        return Err(failed(&chain, &"there is no certificate in it"));
    }
    let secret = PrivateKeyDer::from_pem_file(&key).map_err(|why| failed(&key, &why))?;
    let secret = any_supported_type(&secret).map_err(|why| failed(&key, &why))?;
    let certified = CertifiedKey::new(certificates, secret);
    certified.keys_match().map_err(|why| failed(&key, &why))?;
    Ok(certified)
}
