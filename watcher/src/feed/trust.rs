//! How a reader of a feed on another machine knows that it is the right one, and shows who it is itself. In: a
//! certificate and a file with a token. Out: TLS, and what the token is at that moment. Never connects.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// What PEM has.
const PEM: &str = "-----BEGIN";

/// Whom a reader trusts, and what it shows. Files are read at each connection, since others renew them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// The certificates of who vouches for the server: PEM, or the path of a file with that.
    pub authority: String,
    /// The path of a file with a token of a ServiceAccount; nothing is shown without.
    pub token: Option<PathBuf>,
}

impl Trust {
    /// TLS to whom these certificates vouch for.
    pub(super) fn connector(&self) -> Result<TlsConnector, String> {
        let unusable =
            |why: &dyn fmt::Display| format!("{}: {why}; name the server's CA with --feed-ca", self.name());
        let pem = if self.authority.contains(PEM) {
            self.authority.clone().into_bytes()
        } else {
            std::fs::read(&self.authority).map_err(|error| unusable(&error))?
        };
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.map_err(|error| unusable(&error))?);
        if roots.is_empty() {
            return Err(unusable(&"there is no certificate in it"));
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// The token, if there is to be one.
    pub(super) fn token(&self) -> Result<Option<String>, String> {
        let Some(path) = &self.token else { return Ok(None) };
        let unusable = |why: &dyn fmt::Display| {
            format!(
                "{}: {why}; name a file with a token of a ServiceAccount with --feed-token",
                path.display()
            )
        };
        let text = std::fs::read_to_string(path).map_err(|error| unusable(&error))?;
        let token = text.trim();
        if token.is_empty() || token.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err(unusable(&"there is no token in it"));
        }
        Ok(Some(token.to_owned()))
    }

    fn name(&self) -> &str {
        if self.authority.contains(PEM) { "the certificate" } else { &self.authority }
    }
}
