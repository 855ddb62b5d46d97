//! One object of the API server that several processes keep: each follows it, and writes it when it is not as it should
//! be. In and out: JSON, as the API has it, so that fields that nobody here knows survive. Never overwrites what somebody
//! else has written since.

use ::kube::Api;
use ::kube::api::PostParams;
use ::kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use ::kube::runtime::WatchStreamExt as _;
use ::kube::runtime::watcher::watch_object;
use futures::StreamExt as _;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;

use super::failure::chain;
use super::{Error, WRITE, client};

/// An object by its name, whether it exists or not.
#[derive(Clone, Debug)]
pub struct Kept {
    api: Api<DynamicObject>,
    kind: &'static str,
    plural: &'static str,
    name: String,
}

/// What is known of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum State {
    /// The API server has not answered yet.
    #[default]
    Unknown,
    /// There is none.
    Absent,
    /// What it was when it was last heard of; it stays while the API server is away.
    Is(Value),
}

/// Why it cannot be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot write {kind} {name}: {cause}; allow get, list, watch and update on this one among {plural}, and create where \
     there is none"
)]
pub struct Refused {
    kind: &'static str,
    plural: &'static str,
    name: String,
    cause: String,
}

impl Kept {
    /// A Secret, in the process's own namespace if none is named.
    ///
    /// # Errors
    /// If there is no way to a Kubernetes API.
    pub async fn secret(namespace: Option<&str>, name: &str) -> Result<Self, Error> {
        let (client, _) = client().await?;
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Secret"));
        let api = match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::default_namespaced_with(client, &resource),
        };
        Ok(Self { api, kind: "Secret", plural: "secrets", name: name.to_owned() })
    }

    /// A MutatingWebhookConfiguration.
    ///
    /// # Errors
    /// If there is no way to a Kubernetes API.
    pub async fn webhook_configuration(name: &str) -> Result<Self, Error> {
        let (client, _) = client().await?;
        let kind = "MutatingWebhookConfiguration";
        let resource =
            ApiResource::from_gvk(&GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind));
        let plural = "mutatingwebhookconfigurations";
        Ok(Self { api: Api::all_with(client, &resource), kind, plural, name: name.to_owned() })
    }

    /// Follows it from here on, in the runtime that is around, until nobody looks.
    pub fn follow(&self) -> watch::Receiver<State> {
        let (sender, receiver) = watch::channel(State::Unknown);
        let kept = self.clone();
        tokio::spawn(async move {
            let changes = watch_object(kept.api, &kept.name).default_backoff();
            let follow = changes.for_each(async |change| match change {
                Ok(None) => _ = sender.send_replace(State::Absent),
                Ok(Some(object)) => {
                    let value = serde_json::to_value(object).unwrap_or_default();
                    sender.send_replace(State::Is(value));
                }
                Err(error) => tracing::warn!(
                    kind = kept.kind,
                    name = kept.name,
                    error = %chain(&error),
                    "cannot follow it; allow get, list and watch on this one"
                ),
            });
            tokio::select! {
                () = follow => {}
                () = sender.closed() => {}
            }
        });
        receiver
    }

    /// Writes it: anew where `object` has no `metadata.resourceVersion`. Whether it was: if somebody
    /// else was faster it was not, and who follows it hears of that.
    ///
    /// # Errors
    /// If the API server refuses, or does not answer.
    pub async fn write(&self, object: Value) -> Result<bool, Refused> {
        let refused =
            |cause: String| Refused { kind: self.kind, plural: self.plural, name: self.name.clone(), cause };
        let object: DynamicObject =
            serde_json::from_value(object).map_err(|error| refused(error.to_string()))?;
        let parameters = PostParams::default();
        let write = async {
            match &object.metadata.resource_version {
                Some(_) => self.api.replace(&self.name, &parameters, &object).await,
                None => self.api.create(&parameters, &object).await,
            }
        };
        match timeout(WRITE, write).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(::kube::Error::Api(status))) if status.code == 409 => Ok(false),
            Ok(Err(error)) => Err(refused(chain(&error))),
            Err(_) => Err(refused(format!("no answer within {} s", WRITE.as_secs()))),
        }
    }
}
