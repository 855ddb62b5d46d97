//! The certificate of this process. In: files that somebody else renews, such as a mounted Secret, or a Secret in which
//! processes like this one keep an authority of their own ([`authority`]). Out: TLS that shows clients, at every
//! handshake, the newest that is whole and trusted. Never lets go of one that works.

pub mod authority;
mod bundle;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::{default_provider, sign::any_supported_type};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use watcher::kubernetes::Kept;
use watcher::kubernetes::kept::State;

use authority::Files;

/// How often a folder is looked at, and what failed is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often it is asked whether a certificate is to be renewed.
const RENEW_EVERY: Duration = Duration::from_secs(3600);
/// API servers hear by a watch whom they are to trust; a new authority is shown so much later than it is told.
const LEAD: Duration = Duration::from_secs(5);

/// Where the certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A folder, as a Secret of type kubernetes.io/tls is mounted.
    Folder(PathBuf),
    /// A Secret that this process keeps.
    Secret {
        /// This process's own if there is none.
        namespace: Option<String>,
        /// The Secret.
        name: String,
        /// What clients call this process: DNS names and addresses.
        names: Vec<String>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Secret { namespace: Some(namespace), name, .. } => write!(f, "Secret {namespace}/{name}"),
            Self::Secret { namespace: None, name, .. } => write!(f, "Secret {name}"),
        }
    }
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is there is no certificate with its key.
    #[error(
        "cannot use the certificate in {place} for --certificate: {cause}; put tls.crt and tls.key there, PEM, as a \
         Secret of type kubernetes.io/tls has them"
    )]
    Unusable {
        /// Where it is.
        place: Place,
        /// What is wrong.
        cause: String,
    },
    /// Nobody can be told whom to trust.
    #[error(
        "there is no ca.crt in {0} for --webhook-configuration; put the certificate of who signed tls.crt there, as \
         cert-manager does, or leave --webhook-configuration away and write caBundle yourself"
    )]
    NoAuthority(Place),
    /// There is no Kubernetes API to keep it in.
    #[error(transparent)]
    Kubernetes(#[from] watcher::kubernetes::Error),
}

/// The certificate in use. Owning one means that there will be one, not that there is.
#[derive(Debug)]
pub struct Certificate {
    place: Place,
    secret: Option<Kept>,
    /// Whose caBundle is kept in step.
    configuration: Option<Kept>,
    current: RwLock<Option<Shown>>,
}

/// What is shown, and who vouches for it.
#[derive(Clone, Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    authority: Option<String>,
}

/// What is known of the world, while it is followed.
struct Followed {
    secret: Option<watch::Receiver<State>>,
    configuration: Option<watch::Receiver<State>>,
    /// A new authority has been told, and is not shown earlier.
    not_before: Option<Instant>,
}

impl Certificate {
    /// The one in `place`. The API server is told to trust it by `configuration`, the name of a
    /// MutatingWebhookConfiguration.
    ///
    /// # Errors
    /// If there is none in a folder that can be used, or no way to a Kubernetes API that is needed.
    pub async fn new(place: Place, configuration: Option<&str>) -> Result<Self, Error> {
        let (secret, current) = match &place {
            Place::Folder(folder) => {
                let shown = Shown::new(&place, &files(folder))?;
                if configuration.is_some() && shown.authority.is_none() {
                    return Err(Error::NoAuthority(place));
                }
                // With a configuration, it is shown once it is trusted.
                (None, Some(shown).filter(|_| configuration.is_none()))
            }
            Place::Secret { namespace, name, .. } => {
                (Some(Kept::secret(namespace.as_deref(), name).await?), None)
            }
        };
        let configuration = match configuration {
            Some(name) => Some(Kept::webhook_configuration(name).await?),
            None => None,
        };
        Ok(Self { place, secret, configuration, current: RwLock::new(current) })
    }

    /// TLS for HTTP, 2 and 1.1, that shows what is current when a handshake begins.
    ///
    /// # Errors
    /// Of the same kind, if TLS cannot be set up.
    pub fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|why| Error::Unusable { place: self.place.clone(), cause: why.to_string() })?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Self>::clone(self));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Why nothing is shown yet, if it is so.
    pub fn waiting(&self) -> Option<String> {
        let why = || format!("waiting for the certificate in {}; the log tells more", self.place);
        self.current().is_none().then(why)
    }

    /// The certificates of who vouches for the current one, PEM, if they are known.
    pub fn authority(&self) -> Option<String> {
        self.current()?.authority
    }

    /// Takes over what is new, and keeps what is its own to keep, for ever.
    pub async fn follow(&self) {
        let follow = |kept: &Option<Kept>| kept.as_ref().map(Kept::follow);
        let mut followed = Followed {
            secret: follow(&self.secret),
            configuration: follow(&self.configuration),
            not_before: None,
        };
        let mut told = String::new();
        loop {
            let pause = match self.step(&mut followed).await {
                Ok(pause) => {
                    told.clear();
                    pause
                }
                Err(error) => {
                    // Half of a new one, perhaps.
                    if error != told {
                        let used = if self.current().is_some() {
                            "the last one that worked is used on"
                        } else {
                            "there is none until then"
                        };
                        tracing::warn!("{error}; {used}");
                        told = error;
                    }
                    LOOK_EVERY
                }
            };
            tokio::select! {
                () = changed(followed.secret.as_mut()) => {}
                () = changed(followed.configuration.as_mut()) => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Brings everything one step nearer to what it should be. When to look again, unless something changes before.
    async fn step(&self, followed: &mut Followed) -> Result<Duration, String> {
        let secret = heard(followed.secret.as_mut());
        let configuration = heard(followed.configuration.as_mut());
        let Some(files) = self.found(secret).await? else { return Ok(RENEW_EVERY) };
        let shown = Shown::new(&self.place, &files).map_err(|error| error.to_string())?;
        let current = self.current();
        if let Some(kept) = &self.configuration {
            let authority = shown.authority.as_deref();
            let authority = authority.ok_or_else(|| Error::NoAuthority(self.place.clone()).to_string())?;
            match configuration {
                State::Unknown => return Ok(RENEW_EVERY),
                State::Is(configuration) => {
                    if let Some(new) = bundle::trusting(&configuration, authority, OffsetDateTime::now_utc())
                    {
                        if kept.write(new).await.map_err(|error| error.to_string())? {
                            tracing::info!("the API server is told to trust the authority in {}", self.place);
                        }
                        // Who shows nothing loses nothing by being early.
                        followed.not_before = current.as_ref().map(|_| Instant::now() + LEAD);
                        return Ok(RENEW_EVERY);
                    }
                }
                // Nobody to tell; it may come.
                State::Absent => {}
            }
        }
        let pause = if self.secret.is_some() { RENEW_EVERY } else { LOOK_EVERY };
        if current.as_ref().is_some_and(|current| current.key.cert == shown.key.cert) {
            return Ok(pause);
        }
        if let Some(wait) = followed.not_before.and_then(|then| then.checked_duration_since(Instant::now())) {
            return Ok(wait);
        }
        tracing::info!("there is a new certificate in {}", self.place);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        Ok(pause)
    }

    /// The files in the place; none while they are not known, or not as they should be and being written.
    async fn found(&self, secret: State) -> Result<Option<Files>, String> {
        let (name, names) = match &self.place {
            Place::Folder(folder) => return Ok(Some(files(folder))),
            Place::Secret { name, names, .. } => (name, names),
        };
        let mut secret = match secret {
            State::Unknown => return Ok(None),
            State::Absent => {
                json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "Opaque"})
            }
            State::Is(secret) => secret,
        };
        let files = decoded(&secret["data"]);
        let renewed = authority::renewed(&files, names, OffsetDateTime::now_utc());
        let renewed = renewed.map_err(|error| format!("cannot certify {}: {error}", names.join(", ")))?;
        let Some(new) = renewed else { return Ok(Some(files)) };
        let encoded = |(name, file)| (name, Value::from(BASE64_STANDARD.encode::<Vec<u8>>(file)));
        secret["data"] = new.into_iter().map(encoded).collect();
        if let Some(kept) = &self.secret
            && kept.write(secret).await.map_err(|error| error.to_string())?
        {
            tracing::info!("a certificate for {} is made, in {}", names.join(", "), self.place);
        }
        Ok(None)
    }

    fn current(&self) -> Option<Shown> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current().map(|shown| shown.key)
    }
}

impl Shown {
    fn new(place: &Place, files: &Files) -> Result<Self, Error> {
        let failed = |name: &str, why: &dyn fmt::Display| Error::Unusable {
            place: place.clone(),
            cause: format!("{name}: {why}"),
        };
        let file = |name: &str| files.get(name).ok_or_else(|| failed(name, &"there is no such file"));
        let (chain, key) = (file("tls.crt")?, file("tls.key")?);
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let certificates = certificates.map_err(|why| failed("tls.crt", &why))?;
        if certificates.is_empty() {
            return Err(failed("tls.crt", &"there is no certificate in it"));
        }
        let secret = PrivateKeyDer::from_pem_slice(key).map_err(|why| failed("tls.key", &why))?;
        let secret = any_supported_type(&secret).map_err(|why| failed("tls.key", &why))?;
        let key = CertifiedKey::new(certificates, secret);
        key.keys_match().map_err(|why| failed("tls.key", &why))?;
        let authority = files.get("ca.crt").map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        Ok(Self { key: Arc::new(key), authority })
    }
}

fn heard(followed: Option<&mut watch::Receiver<State>>) -> State {
    followed.map_or(State::Unknown, |followed| followed.borrow_and_update().clone())
}

/// Ends when it has changed; never, where there is nothing that could.
async fn changed(followed: Option<&mut watch::Receiver<State>>) {
    if let Some(followed) = followed
        && followed.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// What of it is in a folder; what cannot be read is not.
fn files(folder: &std::path::Path) -> Files {
    let read = |name: &str| Some((name.to_owned(), std::fs::read(folder.join(name)).ok()?));
    ["tls.crt", "tls.key", "ca.crt"].into_iter().filter_map(read).collect()
}

fn decoded(data: &Value) -> Files {
    let files = data.as_object().into_iter().flatten();
    let decoded = |file: &Value| BASE64_STANDARD.decode(file.as_str()?).ok();
    files.filter_map(|(name, file)| Some((name.clone(), decoded(file)?))).collect()
}
