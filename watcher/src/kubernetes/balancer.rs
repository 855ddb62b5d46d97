//! A load balancer's talk with the API server and the nodes. In: lists and watches, answers to probes. Out: events of a
//! store, patches of Services, Events. What any of it means is decided by [`crate::balancer::Balancer`].
//!
//! Only who leads writes. What cannot be written is tried again, later and later; what was written comes back as the
//! object, which then says all already.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use ::kube::api::{Patch, PatchParams};
use ::kube::runtime::events::{Event as Told, EventType, Recorder, Reporter};
use ::kube::{Api, Client, Config};
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use selection::ServiceName;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::failure::chain;
use super::lease::Candidate;
use super::outage::Outage;
use super::probe::Probes;
use super::stream::{Follower, Heard, Told as To};
use super::{CONNECT, Error, WRITE};
use crate::balancer::{self, Balancer, Note, Write};
use crate::store::{Event, Kind, Stream};
use crate::watch::{Events, Report};

/// Objects that may wait.
const QUEUE: usize = 1024;
/// The pause after a write that failed; doubled with each further one.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const PAUSE_LONGEST: Duration = Duration::from_secs(300);
/// In whose name Events are written.
const CONTROLLER: &str = "remora-loadbalancer";

/// How the load balancer works.
#[derive(Clone, Debug)]
pub struct Options {
    /// For whom.
    pub balancer: balancer::Options,
    /// The lease that says who leads: its namespace, the one of the kubeconfig if absent, and its name.
    pub lease: (Option<String>, String),
    /// Who this process is among those that want the lease.
    pub identity: String,
}

/// Lets another process serve. Owning one means to be the one who decides when.
#[derive(Clone, Debug)]
pub struct Release(mpsc::Sender<oneshot::Sender<()>>);

impl Release {
    /// Stops leading, and returns when the lease is free.
    pub async fn release(self) {
        let (done, is_done) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

/// What became of a write.
struct Written {
    service: ServiceName,
    uid: String,
    note: Note,
    result: Result<Value, ::kube::Error>,
}

/// Follows the cluster for ever.
pub(crate) async fn follow(
    options: Options,
    held: watch::Receiver<BTreeSet<IpAddr>>,
    events: Events,
    report: Report,
) -> Result<(impl Future<Output = ()> + Send + use<>, watch::Receiver<bool>, Release), Error> {
    let (client, url) = super::client().await?;
    let writer = writer().await?;
    let (namespace, name) = &options.lease;
    let namespace = namespace.clone().unwrap_or_else(|| writer.default_namespace().to_owned());
    let candidate = Candidate::new(writer.clone(), &namespace, name, options.identity.clone());
    let leads = candidate.leads();
    let (release, asked) = mpsc::channel(1);
    let (objects, heard) = mpsc::channel(QUEUE);
    let (answers, probed) = mpsc::channel(QUEUE);
    let (written, writes) = mpsc::channel(QUEUE);
    info!(server = url, pool = ?options.balancer.pool, class = options.balancer.class, "balancing for the cluster");
    let outage = Outage::new(url);
    let follow = move |kind| {
        let (stream, to) = (Stream::all(kind), To::Objects(objects.clone()));
        let options = super::Options::default();
        Follower::new(client.clone(), options, stream, to, report.clone(), outage.clone()).run()
    };
    let recorder = Recorder::new(
        writer.clone(),
        Reporter { controller: CONTROLLER.to_owned(), instance: Some(options.identity.clone()) },
    );
    let work = Work {
        balancer: Balancer::new(options.balancer),
        events,
        client: writer,
        recorder,
        probes: Probes::new(answers),
        under_way: HashMap::new(),
        written,
    };
    let running = work.run(heard, probed, writes, held, leads.clone());
    let all = async move {
        let streams = futures::future::join_all(Kind::ALL.into_iter().map(follow));
        futures::join!(streams, candidate.run(asked), running);
    };
    Ok((all, leads, Release(release)))
}

/// A client for short questions, which never hang.
async fn writer() -> Result<Client, Error> {
    let mut config = Config::infer().await.map_err(|error| Error::NoConfig(chain(&error)))?;
    (config.connect_timeout, config.read_timeout) = (Some(CONNECT), Some(WRITE));
    config.write_timeout = Some(WRITE);
    let url = config.cluster_url.to_string();
    Client::try_from(config).map_err(|error| Error::BadConfig { url, cause: chain(&error) })
}

struct Work {
    balancer: Balancer,
    events: Events,
    client: Client,
    recorder: Recorder,
    probes: Probes,
    /// Services that are being written, or are not to be before a time after so many failures.
    under_way: HashMap<ServiceName, Pause>,
    written: mpsc::Sender<Written>,
}

#[derive(Clone, Copy)]
struct Pause {
    /// `None` while a write is under way.
    until: Option<Instant>,
    failures: u32,
}

impl Work {
    async fn run(
        mut self,
        mut heard: mpsc::Receiver<Heard>,
        mut probed: mpsc::Receiver<(std::net::SocketAddr, bool)>,
        mut writes: mpsc::Receiver<Written>,
        mut held: watch::Receiver<BTreeSet<IpAddr>>,
        mut leads: watch::Receiver<bool>,
    ) {
        let mut batch = Vec::with_capacity(QUEUE);
        loop {
            let due = self.under_way.values().filter_map(|pause| pause.until).min();
            let sleep = sleep_until(due.unwrap_or_else(Instant::now));
            tokio::select! {
                received = heard.recv_many(&mut batch, QUEUE) => {
                    if received == 0 {
                        return;
                    }
                    for heard in batch.drain(..) {
                        self.hear(heard).await;
                    }
                }
                Some((place, is_healthy)) = probed.recv() => {
                    info!(node = %place, is_healthy, "the health of a node has changed");
                    self.balancer.probed(place, is_healthy);
                }
                Some(written) = writes.recv() => self.written(written),
                Ok(()) = held.changed() => {
                    let held = held.borrow_and_update().clone();
                    self.balancer.holds(held);
                }
                Ok(()) = leads.changed() => self.balancer.leads(*leads.borrow_and_update()),
                () = sleep, if due.is_some() => {}
            }
            for event in self.balancer.settle() {
                self.events.send(event).await;
            }
            self.probes.follow(&self.balancer.probes());
            self.write();
        }
    }

    async fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Exists(kind, object) => self.balancer.exists(kind, &object),
            Heard::Gone(kind, object) => self.balancer.gone(kind, &object),
            Heard::Stream(_, Event::ListBegins(stream)) => self.balancer.list_begins(stream.kind),
            Heard::Stream(_, Event::ListEnds(stream)) => self.balancer.list_ends(stream.kind),
            // How old the table is, depends on these.
            Heard::Stream(at, event @ (Event::InStep(_) | Event::Lost(..))) => {
                self.events.send_at(at.into_std(), event).await;
            }
            Heard::Stream(..) => {}
        }
    }

    /// Writes what is due.
    fn write(&mut self) {
        let now = Instant::now();
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let due = |service: &ServiceName| {
            self.under_way.get(service).is_none_or(|pause| pause.until.is_some_and(|until| until <= now))
        };
        let writes: Vec<Write> =
            self.balancer.writes(&time).into_iter().filter(|write| due(&write.service)).collect();
        self.under_way.retain(|_, pause| pause.until.is_none_or(|until| until > now) || pause.failures > 0);
        for Write { service, uid, patch, note } in writes {
            let failures = self.under_way.get(&service).map_or(0, |pause| pause.failures);
            self.under_way.insert(service.clone(), Pause { until: None, failures });
            let services = Api::<Service>::namespaced(self.client.clone(), &service.namespace);
            let written = self.written.clone();
            tokio::spawn(async move {
                let patched = services
                    .patch_status(&service.name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await;
                let result = patched
                    .and_then(|object| serde_json::to_value(&object).map_err(::kube::Error::SerdeError));
                let _ = written.send(Written { service, uid, note, result }).await;
            });
        }
        // What waits without anything to be written waits for nothing.
        if self.under_way.values().any(|pause| pause.until.is_some_and(|until| until <= now)) {
            self.under_way.retain(|_, pause| pause.until.is_none_or(|until| until > now));
        }
    }

    fn written(&mut self, written: Written) {
        let Written { service, uid, note, result } = written;
        match result {
            Ok(object) => {
                self.under_way.remove(&service);
                self.balancer.exists(Kind::Services, &object);
                self.tell(service, uid, note);
            }
            // Somebody else has written it; the watch brings what.
            Err(::kube::Error::Api(status)) if status.code == 409 => {
                let until = Some(Instant::now() + PAUSE / 10);
                self.under_way.insert(service, Pause { until, failures: 0 });
            }
            // It is gone; the watch brings that too.
            Err(::kube::Error::Api(status)) if status.code == 404 => drop(self.under_way.remove(&service)),
            Err(error) => {
                let failures = self.under_way.get(&service).map_or(0, |pause| pause.failures);
                let pause = PAUSE.saturating_mul(1 << failures.min(16)).min(PAUSE_LONGEST);
                let until = Some(Instant::now() + pause);
                warn!(%service, error = %chain(&error), again_in = ?pause, "cannot write a Service; allow patch on services/status");
                self.under_way.insert(service, Pause { until, failures: failures + 1 });
            }
        }
    }

    /// Writes an Event, which nobody waits for.
    fn tell(&self, service: ServiceName, uid: String, note: Note) {
        let Note { is_warning, reason, text } = note;
        if is_warning {
            warn!(%service, reason, "{text}");
        } else {
            info!(%service, reason, "{text}");
        }
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            name: Some(service.name.to_string()),
            namespace: Some(service.namespace.to_string()),
            uid: Some(uid),
            ..ObjectReference::default()
        };
        let event = Told {
            type_: if is_warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(text),
            action: "Balance".to_owned(),
            secondary: None,
        };
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            if let Err(error) = recorder.publish(&event, &about).await {
                debug!(%service, error = %chain(&error), "cannot write an Event; allow create and patch on events in events.k8s.io");
            }
        });
    }
}
