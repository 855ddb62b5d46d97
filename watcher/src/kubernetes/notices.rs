//! Tells whoever looks at a Service (`kubectl describe`) what became of it here. In: notices. Out: Events of the API
//! server. Never waited for, and never more than a few at once: what cannot be told is in the log anyway.

use ::kube::core::ObjectMeta;
use ::kube::runtime::events::{Event, EventType, Recorder, Reporter};
use ::kube::{Api, Client, Config};
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use selection::{ServiceName, Symbol};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::failure::chain;
use super::{CONNECT, Error, WRITE};

/// Notices that wait for the API server; what comes then is lost.
const QUEUE: usize = 64;
/// What an Event may say at most, in bytes.
const NOTE: usize = 1024;

/// Where notices go. Owning one means that they are sent.
#[derive(Clone, Debug)]
pub struct Notices(mpsc::Sender<Notice>);

/// Something that went wrong with a Service here.
#[derive(Debug)]
pub struct Notice {
    /// The Service.
    pub service: ServiceName,
    /// Why it went wrong, in one word of capitals, such as `NodePortTaken`.
    pub reason: &'static str,
    /// What was tried, in one word of capitals, such as `Listen`.
    pub action: &'static str,
    /// What people read.
    pub note: String,
}

impl Notices {
    /// Sends notices in the name of `controller`, such as `remora-node`, on `node`. Needs a runtime around it, which
    /// must go on running.
    ///
    /// # Errors
    /// If there is no way to a Kubernetes API.
    pub async fn new(controller: &str, node: Option<&Symbol>) -> Result<Self, Error> {
        let mut config = Config::infer().await.map_err(|error| Error::NoConfig(chain(&error)))?;
        (config.connect_timeout, config.read_timeout) = (Some(CONNECT), Some(WRITE));
        let url = config.cluster_url.to_string();
        let bad = |error: ::kube::Error| Error::BadConfig { url, cause: chain(&error) };
        let client = Client::try_from(config).map_err(bad)?;
        let instance = node.map(|node| format!("{controller}-{node}"));
        let recorder =
            Recorder::new(client.clone(), Reporter { controller: controller.to_owned(), instance });
        let (sender, mut waiting) = mpsc::channel::<Notice>(QUEUE);
        tokio::spawn(async move {
            while let Some(notice) = waiting.recv().await {
                let service = notice.service.clone();
                if let Err(error) = tell(&client, &recorder, notice).await {
                    warn!(%service, error = %chain(&error), "cannot write an Event; allow create on events in events.k8s.io");
                }
            }
        });
        Ok(Self(sender))
    }

    /// Sends `notice`, or loses it if many wait.
    pub fn tell(&self, notice: Notice) {
        if let Err(error) = self.0.try_send(notice) {
            debug!(%error, "an Event is lost");
        }
    }
}

async fn tell(client: &Client, recorder: &Recorder, notice: Notice) -> Result<(), ::kube::Error> {
    let Notice { service, reason, action, mut note } = notice;
    let services = Api::<Service>::namespaced(client.clone(), &service.namespace);
    // By its uid people find the Event, and not one of an earlier Service of the name.
    let ObjectMeta { uid, .. } = services.get(&service.name).await?.metadata;
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        name: Some(service.name.to_string()),
        namespace: Some(service.namespace.to_string()),
        uid,
        ..ObjectReference::default()
    };
    note.truncate(note.floor_char_boundary(NOTE));
    let event = Event {
        type_: EventType::Warning,
        reason: reason.to_owned(),
        note: Some(note),
        action: action.to_owned(),
        secondary: None,
    };
    recorder.publish(&event, &regarding).await
}
