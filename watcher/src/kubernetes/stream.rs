//! One list-watch. In: what the API server sends. Out: events of one stream.
//!
//! ```text
//!      ┌──── 410 Gone · time to resync · watches fail in a row ────┐
//!      ▼                                                           │
//!   listing ──▶ as a stream ──initial-events-end──▶ watching from a version ──ends after 60 s──┐
//!      ▲   └──refused──▶ in pages ──last page──▶     ▲         │ silent · broken                │
//!      └── pause ◀── failure                         └─ pause ◀┘ ◀──────────────────────────────┘ at once
//! ```

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::time::Duration;

use ::kube::Client;
use ::kube::core::WatchEvent;
use futures::StreamExt;
use selection::Here;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use super::Options;
use super::failure::Failure;
use super::outage::Outage;
use super::request::{self, WATCH_SECONDS};
use crate::object::{self, Object, Reading};
use crate::store::{Event, Key, Kind, Loss, Stream};
use crate::watch::{Events, Report};
use tokio::sync::mpsc;

/// The server closes a watch after [`WATCH_SECONDS`]; one that has said nothing for longer is dead.
const SILENT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
/// An answer begins within this time.
const ANSWER: Duration = Duration::from_secs(30);
/// The pause after a first failure; doubled with each further one, and always jittered.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest pause.
const PAUSE_LONGEST: Duration = Duration::from_secs(15);
/// Watches that fail in a row before the list is asked for: a version may be one that the server cannot serve.
const WATCHES_TRIED: u32 = 3;
/// A watch shorter than this, in which nothing came, is followed by a pause.
const SHORT: Duration = Duration::from_secs(1);
/// Being in step is told at most this often.
const STEP: Duration = Duration::from_secs(1);
/// How fine jitter is.
const DRAWS: u32 = 1 << 10;
/// Objects whose mistakes are remembered, so that each is logged once.
const REMEMBERED: usize = 1_000;

/// Who follows one stream.
pub(super) struct Follower {
    client: Client,
    options: Options,
    stream: Stream,
    to: Told,
    report: Report,
    outage: Outage,
    /// The version up to which everything was told; `None`: a list is due.
    version: Option<String>,
    /// The server streams lists, as far as we know.
    streams_lists: bool,
    /// A list is due at this time, come what may.
    resync: Instant,
    failures: u32,
    stepped: Option<Instant>,
    /// A hash of the mistakes of each object that has some.
    mistakes: HashMap<Key, u64>,
    random: RandomState,
}

/// Who is told.
#[derive(Clone)]
pub(super) enum Told {
    /// A store, of what matters to a table.
    Store(Events),
    /// Somebody who reads the objects in another way.
    Objects(mpsc::Sender<Heard>),
}

/// What somebody who reads the objects is told.
pub(super) enum Heard {
    /// An object exists and looks like this.
    Exists(Kind, Value),
    /// An object is gone; it looked like this.
    Gone(Kind, Value),
    /// What became of the stream itself, and when.
    Stream(Instant, Event),
}

impl Told {
    async fn send(&self, event: Event) {
        match self {
            Self::Store(events) => events.send(event).await,
            // Fails only when nobody reads any more; this is about to be stopped then.
            Self::Objects(objects) => drop(objects.send(Heard::Stream(Instant::now(), event)).await),
        }
    }
}

/// What follows when a watch ends without a failure.
enum Ended {
    /// The server closed it; whether it had said anything.
    Closed(bool),
    /// It is time to list again.
    ResyncDue,
}

/// One page of a list.
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMetadata,
    items: Option<Vec<Value>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    continues: Option<String>,
}

impl Follower {
    pub(super) fn new(
        client: Client,
        options: Options,
        stream: Stream,
        to: Told,
        report: Report,
        outage: Outage,
    ) -> Self {
        Self {
            client,
            options,
            stream,
            to,
            report,
            outage,
            version: None,
            streams_lists: true,
            resync: Instant::now(),
            failures: 0,
            stepped: None,
            mistakes: HashMap::new(),
            random: RandomState::new(),
        }
    }

    /// Follows for ever.
    pub(super) async fn run(mut self) {
        loop {
            let opened = Instant::now();
            let ended = match &self.version {
                Some(version) => self.watch(version.clone()).await,
                None if self.streams_lists => self.list_as_stream().await,
                None => self.list_in_pages().await,
            };
            match ended {
                Ok(Ended::Closed(said)) if !said && opened.elapsed() < SHORT => self.pause(None).await,
                Ok(Ended::Closed(_)) => {}
                Ok(Ended::ResyncDue) => {
                    debug!(stream = %self.stream, "listing again, to be sure");
                    self.version = None;
                    self.streams_lists = true;
                }
                Err(failure) => self.failed(failure).await,
            }
        }
    }

    async fn failed(&mut self, failure: Failure) {
        let is_list = self.version.is_none();
        if is_list && self.streams_lists && failure.is_refusal {
            debug!(stream = %self.stream, error = failure.message, "the server does not stream lists; asking for pages");
            self.streams_lists = false;
            return;
        }
        self.outage.lost(&self.stream, &failure);
        self.to.send(Event::Lost(self.stream.clone(), failure.loss)).await;
        // A server that streams lists badly serves pages, perhaps.
        let is_unwell = matches!(failure.loss, Loss::Silent | Loss::Failed | Loss::Malformed);
        self.streams_lists &= !(is_list && is_unwell);
        let is_hopeless = self.failures >= WATCHES_TRIED && is_unwell;
        if failure.loss == Loss::Expired || is_hopeless {
            self.version = None;
        }
        self.pause(failure.after).await;
    }

    /// Waits before the next attempt, at least `after`.
    async fn pause(&mut self, after: Option<Duration>) {
        let longest = PAUSE.saturating_mul(1 << self.failures.min(16)).min(PAUSE_LONGEST);
        self.failures = self.failures.saturating_add(1);
        let jittered = longest / 2 + longest / 2 * self.draw() / DRAWS;
        let at_least = after.unwrap_or_default().min(2 * PAUSE_LONGEST);
        sleep(jittered.max(at_least)).await;
    }

    /// Lists and, on the same connection, watches.
    async fn list_as_stream(&mut self) -> Result<Ended, Failure> {
        self.to.send(Event::ListBegins(self.stream.clone())).await;
        self.open(None).await
    }

    async fn watch(&mut self, version: String) -> Result<Ended, Failure> {
        self.open(Some(version)).await
    }

    /// Opens a watch and reads it to its end.
    async fn open(&mut self, version: Option<String>) -> Result<Ended, Failure> {
        let request = request::watch(&self.stream, version.as_deref())
            .map_err(|e| Failure::new(Loss::Failed, e.to_string()))?;
        let client = self.client.clone();
        let opened = timeout(ANSWER, client.request_events::<Value>(request)).await;
        let events = opened.map_err(|_| Failure::silent(ANSWER))?.map_err(|error| Failure::of(&error))?;
        let mut events = pin!(events);
        let mut is_listing = version.is_none();
        let mut said = false;
        if !is_listing {
            self.works().await;
        }
        loop {
            let event = tokio::select! {
                event = timeout(SILENT, events.next()) => event.map_err(|_| Failure::silent(SILENT))?,
                () = sleep_until(self.resync), if !is_listing => return Ok(Ended::ResyncDue),
            };
            let Some(event) = event else {
                let broken =
                    || Failure::new(Loss::Unreachable, "the connection was closed in the middle of a list");
                return if is_listing { Err(broken()) } else { Ok(Ended::Closed(said)) };
            };
            said = true;
            match event.map_err(|error| Failure::of(&error))? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.reached(&object, is_listing);
                    self.exists(&object).await;
                }
                WatchEvent::Deleted(object) => {
                    self.reached(&object, is_listing);
                    self.gone(&object).await;
                }
                WatchEvent::Bookmark(bookmark) => {
                    let ends_list = bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end");
                    if !is_listing || ends_list {
                        self.version = Some(bookmark.metadata.resource_version);
                    }
                    if is_listing && ends_list {
                        is_listing = false;
                        self.listed().await;
                    }
                }
                WatchEvent::Error(status) => return Err(Failure::status(&status)),
            }
            if !is_listing {
                self.works().await;
            }
        }
    }

    /// Lists page by page; a watch from there is the next thing to do.
    async fn list_in_pages(&mut self) -> Result<Ended, Failure> {
        self.to.send(Event::ListBegins(self.stream.clone())).await;
        // A list that expired between its pages is asked for in one piece.
        let limit = Some(self.options.page).filter(|_| self.failures == 0);
        let mut continues = None;
        loop {
            let request = request::page(&self.stream, limit, continues)
                .map_err(|e| Failure::new(Loss::Failed, e.to_string()))?;
            let answer = timeout(ANSWER, self.client.request_text(request)).await;
            let text = answer.map_err(|_| Failure::silent(ANSWER))?.map_err(|error| Failure::of(&error))?;
            let malformed = |error: serde_json::Error| Failure::new(Loss::Malformed, error.to_string());
            let page: Page = serde_json::from_str(&text).map_err(malformed)?;
            drop(text);
            for object in page.items.into_iter().flatten() {
                self.exists(&object).await;
            }
            continues = page.metadata.continues.filter(|token| !token.is_empty());
            if continues.is_none() {
                let version = page.metadata.resource_version.filter(|version| !version.is_empty());
                self.version = version;
                if self.version.is_none() {
                    return Err(Failure::new(Loss::Malformed, "the list has no metadata.resourceVersion"));
                }
                self.listed().await;
                self.works().await;
                return Ok(Ended::Closed(true));
            }
        }
    }

    async fn listed(&mut self) {
        self.to.send(Event::ListEnds(self.stream.clone())).await;
        self.stepped = None;
        // Ten per cent earlier or later, lest a fleet that started at once list at once.
        let spread = self.options.resync / 5;
        self.resync = Instant::now() + self.options.resync - spread / 2 + spread * self.draw() / DRAWS;
    }

    /// A number below [`DRAWS`], another each time.
    fn draw(&self) -> u32 {
        (self.random.hash_one(Instant::now()) >> 48) as u32 % DRAWS
    }

    /// Something came as it should: nothing is broken.
    async fn works(&mut self) {
        self.failures = 0;
        if self.stepped.is_none_or(|stepped| stepped.elapsed() >= STEP) {
            self.stepped = Some(Instant::now());
            self.outage.works(&self.stream);
            self.to.send(Event::InStep(self.stream.clone())).await;
        }
    }

    /// The version moves with every event of a watch; those of a list come in no order.
    fn reached(&mut self, object: &Value, is_listing: bool) {
        let version = object.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        if let Some(version) = version.filter(|version| !is_listing && !version.is_empty()) {
            self.version = Some(version.to_owned());
        }
    }

    async fn exists(&mut self, object: &Value) {
        if let Told::Objects(objects) = &self.to {
            let _ = objects.send(Heard::Exists(self.stream.kind, object.clone())).await;
            return;
        }
        let read = Object::of_kind(self.stream.kind, object);
        self.note_mistakes(object, &read);
        let event = match read {
            Ok(Reading { object: Object::Item(item), .. }) => Event::Applied(item),
            Ok(Reading { object: Object::Node { zone, is_eligible, .. }, .. }) => {
                self.to.send(Event::Eligible(is_eligible)).await;
                Event::Here(Here { node: None, zone })
            }
            Ok(Reading { object: Object::Other, .. }) => return,
            Err(object::Error { key: Some(key), .. }) => Event::Unreadable(key),
            Err(object::Error { key: None, .. }) => return,
        };
        self.to.send(event).await;
    }

    async fn gone(&mut self, object: &Value) {
        if let Told::Objects(objects) = &self.to {
            let _ = objects.send(Heard::Gone(self.stream.kind, object.clone())).await;
            return;
        }
        // A Node that is gone leaves its zone: the machine stands where it stood.
        if let Some(key) = object::key(self.stream.kind, object) {
            self.mistakes.remove(&key);
            if self.stream.kind == Kind::Node {
                self.to.send(Event::Eligible(false)).await;
            }
            self.to.send(Event::Gone(self.stream.clone(), key)).await;
        }
    }

    /// Counts and logs what cannot be understood; the same of the same object only once.
    fn note_mistakes(&mut self, object: &Value, read: &Result<Reading, object::Error>) {
        let key = object::key(self.stream.kind, object);
        let (warnings, error) = match read {
            Ok(reading) => (&reading.warnings[..], None),
            Err(error) => (&[][..], Some(error)),
        };
        if warnings.is_empty() && error.is_none() {
            if let Some(key) = key.filter(|_| !self.mistakes.is_empty()) {
                self.mistakes.remove(&key);
            }
            return;
        }
        let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        let hash = self.random.hash_one((&texts, error.map(ToString::to_string)));
        let before = key.clone().and_then(|key| self.mistakes.insert(key, hash));
        if self.mistakes.len() > REMEMBERED {
            self.mistakes.clear();
        }
        if before == Some(hash) {
            return;
        }
        let kind = self.stream.kind;
        if let Some(error) = error {
            self.report.skipped(kind, error.cause.reason);
            warn!(reason = error.cause.reason, "{error}; the object stays as it was known");
        }
        let name = key.map(|key| key.to_string()).unwrap_or_default();
        for warning in warnings {
            self.report.skipped(kind, warning.reason);
        }
        if let Some(first) = warnings.first() {
            let more = warnings.len() - 1;
            warn!(reason = first.reason, more, "{name}: {first}; the rest of the object serves");
        }
    }
}
