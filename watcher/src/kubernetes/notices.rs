//! Tells whoever looks at an object (`kubectl describe`, `kubectl get events`) what became of it here. In: notices. Out:
//! Events of the API server. Never waited for, and never more than a few at once: what cannot be told is in the log anyway.

use std::collections::HashMap;
use std::time::{Duration, Instant};

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
const QUEUE: usize = 1024;
/// What an Event may say at most, in bytes.
const NOTE: usize = 1024;
/// The same about the same object is told again after this time only: a hundred Pods of a ReplicaSet are one Event.
const AGAIN: Duration = Duration::from_secs(60);
/// What was told longer ago is forgotten; the recorder, which counts the same as one Event, forgets it a little earlier.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// The API server has better things to do: so long between two Events.
const PAUSE: Duration = Duration::from_millis(50);

/// Where notices go. Owning one means that they are sent.
#[derive(Clone, Debug)]
pub struct Notices(mpsc::Sender<Notice>);

/// What somebody should know about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The object.
    pub about: About,
    /// Whether somebody has to mend something.
    pub is_warning: bool,
    /// What became of it, in one word of capitals, such as `NodePortTaken`.
    pub reason: &'static str,
    /// What was tried, in one word of capitals, such as `Listen`.
    pub action: &'static str,
    /// What people read.
    pub note: String,
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum About {
    /// A Service, whose uid is asked for.
    Service(ServiceName),
    /// Any other one.
    Object {
        /// Such as `apps/v1`.
        api_version: String,
        /// Such as `ReplicaSet`.
        kind: String,
        /// The namespace that it is in.
        namespace: String,
        /// Its name.
        name: String,
        /// By it people find the Event, and not one of an earlier object of the name; `None` if there is no such object yet.
        uid: Option<String>,
    },
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
        let reporter = Reporter { controller: controller.to_owned(), instance };
        let (sender, waiting) = mpsc::channel::<Notice>(QUEUE);
        tokio::spawn(send(client, reporter, waiting));
        Ok(Self(sender))
    }

    /// Sends `notice`, or loses it if many wait.
    pub fn tell(&self, notice: Notice) {
        if let Err(error) = self.0.try_send(notice) {
            debug!(%error, "an Event is lost");
        }
    }
}

async fn send(client: Client, reporter: Reporter, mut waiting: mpsc::Receiver<Notice>) {
    let fresh = || Recorder::new(client.clone(), reporter.clone());
    let (mut recorder, mut told, mut is_refused) = (fresh(), Told::default(), false);
    while let Some(notice) = waiting.recv().await {
        match told.hear(&notice, Instant::now()) {
            Heard::Again => continue,
            // The recorder would count it as what it said before, in the words of before.
            Heard::Otherwise => recorder = fresh(),
            Heard::First => {}
        }
        let sent = tell(&client, &recorder, notice).await;
        if let Err(error) = &sent
            && !is_refused
        {
            warn!(error = %chain(error), "cannot write an Event; allow create and patch on events in events.k8s.io");
        }
        is_refused = sent.is_err();
        tokio::time::sleep(PAUSE).await;
    }
}

/// What was told of late: about what and why, in which words, and when.
#[derive(Default)]
struct Told(HashMap<(About, &'static str), (String, Instant)>);

/// What a notice is to those that came before it.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// It says something for the first time, or for the first time in a while.
    First,
    /// It says what was said just before.
    Again,
    /// It says something else about the same object.
    Otherwise,
}

impl Told {
    fn hear(&mut self, notice: &Notice, now: Instant) -> Heard {
        let since = |at: &Instant| now.saturating_duration_since(*at);
        self.0.retain(|_, (_, at)| since(at) < FORGOTTEN);
        let key = (notice.about.clone(), notice.reason);
        let heard = match self.0.get(&key) {
            Some((note, at)) if *note == notice.note && since(at) < AGAIN => return Heard::Again,
            Some((note, _)) if *note != notice.note => Heard::Otherwise,
            _ => Heard::First,
        };
        self.0.insert(key, (notice.note.clone(), now));
        heard
    }
}

async fn tell(client: &Client, recorder: &Recorder, notice: Notice) -> Result<(), ::kube::Error> {
    let Notice { about, is_warning, reason, action, mut note } = notice;
    let regarding = match about {
        About::Service(service) => {
            let services = Api::<Service>::namespaced(client.clone(), &service.namespace);
            // By its uid people find the Event, and not one of an earlier Service of the name.
            let ObjectMeta { uid, .. } = services.get(&service.name).await?.metadata;
            ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Service".to_owned()),
                name: Some(service.name.to_string()),
                namespace: Some(service.namespace.to_string()),
                uid,
                ..ObjectReference::default()
            }
        }
        About::Object { api_version, kind, namespace, name, uid } => ObjectReference {
            api_version: Some(api_version),
            kind: Some(kind),
            name: Some(name),
            namespace: Some(namespace),
            uid,
            ..ObjectReference::default()
        },
    };
    note.truncate(note.floor_char_boundary(NOTE));
    let event = Event {
        type_: if is_warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        note: Some(note),
        action: action.to_owned(),
        secondary: None,
    };
    recorder.publish(&event, &regarding).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_in_a_while_and_anything_else_at_once() {
        let about = |name: &str| About::Object {
            api_version: "apps/v1".to_owned(),
            kind: "ReplicaSet".to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: None,
        };
        let notice = |name: &str, note: &str| Notice {
            about: about(name),
            is_warning: true,
            reason: "InjectionSkipped",
            action: "Inject",
            note: note.to_owned(),
        };
        let (mut told, start) = (Told::default(), Instant::now());
        let mut hear =
            |name: &str, note: &str, after: Duration| told.hear(&notice(name, note), start + after);
        assert_eq!(hear("web", "a", Duration::ZERO), Heard::First);
        assert_eq!(hear("web", "a", AGAIN / 2), Heard::Again);
        assert_eq!(hear("other", "a", AGAIN / 2), Heard::First, "another object");
        assert_eq!(hear("web", "a", AGAIN), Heard::First, "a while later");
        assert_eq!(hear("web", "b", AGAIN), Heard::Otherwise);
        assert_eq!(hear("web", "b", AGAIN), Heard::Again);
        assert_eq!(hear("web", "a", AGAIN + FORGOTTEN), Heard::First, "nobody remembers");
        assert_eq!(told.0.len(), 1, "what was told of others is forgotten");
    }
}
