//! How the namespaces of the cluster are labelled. In: the Kubernetes API. Out: labels, as far as they are known. What
//! was known stays known while the API server is away.

use ::kube::core::PartialObjectMeta;
use ::kube::runtime::{WatchStreamExt as _, reflector, watcher};
use ::kube::{Api, Client, Config};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;

use super::failure::chain;
use super::{CONNECT, Error};

/// The namespaces. Owning one means that they are followed, by the runtime that it was made in.
#[derive(Clone)]
pub struct Namespaces(reflector::Store<PartialObjectMeta<Namespace>>);

impl std::fmt::Debug for Namespaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Namespaces").field(&self.0.len()).finish()
    }
}

impl Namespaces {
    /// Follows them from here on.
    ///
    /// # Errors
    /// If there is no way to a Kubernetes API.
    pub async fn new() -> Result<Self, Error> {
        let mut config = Config::infer().await.map_err(|error| Error::NoConfig(chain(&error)))?;
        config.connect_timeout = Some(CONNECT);
        let url = config.cluster_url.to_string();
        let bad = |error: ::kube::Error| Error::BadConfig { url, cause: chain(&error) };
        let client = Client::try_from(config).map_err(bad)?;
        let (known, writer) = reflector::store();
        // The API server sends no more than labels then.
        let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client);
        let changes = watcher(namespaces, watcher::Config::default());
        let follow = changes.default_backoff().reflect(writer).for_each(async |change| {
            if let Err(error) = change {
                tracing::warn!(error = %chain(&error), "cannot follow namespaces; allow get, list and watch on them");
            }
        });
        tokio::spawn(follow);
        Ok(Self(known))
    }

    /// What the label `label` of a namespace says: `None` if it has none, nothing at all if it is not known.
    pub fn label(&self, namespace: &str, label: &str) -> Option<Option<String>> {
        let namespace = self.0.get(&reflector::ObjectRef::new(namespace))?;
        let labels = namespace.metadata.labels.as_ref();
        Some(labels.and_then(|labels| labels.get(label)).cloned())
    }
}
