//! Follows a source: applies its events to a store, publishes tables, answers questions about the store. One task
//! of control work; never waited for by a data thread.

#[cfg(feature = "feed")]
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use selection::{Here, ServiceName};
use tokio::sync::{mpsc, oneshot};

#[cfg(feature = "feed")]
use crate::feed::{Batches, Opening, ReaderId, Request};
use crate::inspect::{self, Inspection};
#[cfg(feature = "names")]
use crate::names::CurrentNames;
use crate::status::Steps;
use crate::store::{Event, Store};
use crate::{Histogram, Scope, Source, Status, Tables};

/// Tables follow each other at least this far apart; the first event after a pause is published at once.
const PUBLISH_EVERY: Duration = Duration::from_millis(10);
/// Snapshots that are made before their readers have a turn.
#[cfg(feature = "feed")]
const READINGS: usize = 16;
/// Events that may wait between a source and the store; a source that is ahead waits.
const QUEUE: usize = 1024;

/// A source being followed. It is followed as long as one of the clones of this lives, and the runtime that it
/// was started on.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Where the tables are published.
    pub tables: Tables,
    #[cfg(feature = "names")]
    names: CurrentNames,
    shared: Arc<Mutex<Shared>>,
    questions: mpsc::Sender<Question>,
}

/// Why a source cannot be followed at all. What goes wrong later is told in [`Status`] and logged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifests cannot be read.
    #[cfg(feature = "manifests")]
    #[error(transparent)]
    Manifests(#[from] crate::manifests::Error),
    /// There is no way to a Kubernetes API.
    #[cfg(feature = "kube")]
    #[error(transparent)]
    Kube(#[from] crate::kubernetes::Error),
}

/// Follows what `scope` says of `source`, on the current tokio runtime.
///
/// # Errors
/// If the source cannot be followed as it is configured: a path that does not exist, no kubeconfig. A source that
/// does not answer is no error; it is asked again until it does.
pub async fn start(source: Source, scope: Scope, here: Here) -> Result<Watch, Error> {
    let (watch, control, events) = Control::new(&scope, here.clone());
    #[cfg(any(feature = "manifests", feature = "kube"))]
    let report = Report(Arc::clone(&watch.shared));
    let source = match source {
        #[cfg(feature = "manifests")]
        Source::Manifests(path) => {
            tokio::spawn(crate::manifests::follow(path, scope, wanted_node(&here), events, report)?)
        }
        #[cfg(feature = "kube")]
        Source::Kube(options) => {
            tokio::spawn(crate::kubernetes::follow(options, scope, wanted_node(&here), events, report).await?)
        }
        #[cfg(feature = "feed")]
        Source::Feed(address) => {
            let asked = tokio::sync::watch::channel(Request::from(scope.subscription())).1;
            tokio::spawn(crate::feed::follow(address, scope.streams(), asked, events))
        }
    };
    tokio::spawn(async move {
        control.run().await;
        source.abort();
    });
    Ok(watch)
}

/// A feed that is read on demand.
#[cfg(feature = "feed")]
#[derive(Debug)]
pub struct Demand {
    /// What is known of what was asked for.
    pub watch: Watch,
    /// The number of the last request whose answer is in the tables; `None` while the feed is lost.
    pub answered: tokio::sync::watch::Receiver<Option<u64>>,
}

/// Follows what the last of `requests` asks for of the feed at `address`, on the current tokio runtime. Requests have
/// numbers from 1 on.
#[cfg(feature = "feed")]
pub fn demand(
    address: crate::feed::Address,
    requests: tokio::sync::watch::Receiver<Request>,
    here: Here,
) -> Demand {
    let (watch, mut control, events) = Control::new(&Scope::All, here);
    // A list that is longer since more was asked for brings nothing to light.
    control.store.expect_lists();
    let answered = control.answered.subscribe();
    let source = tokio::spawn(crate::feed::follow(address, Scope::All.streams(), requests, events));
    tokio::spawn(async move {
        control.run().await;
        source.abort();
    });
    Demand { watch, answered }
}

/// A load balancer at work.
#[cfg(feature = "kube")]
#[derive(Debug)]
pub struct Balance {
    /// The tables that it makes: its addresses, and behind them the nodes.
    pub watch: Watch,
    /// Whether it is the one that serves.
    pub leads: tokio::sync::watch::Receiver<bool>,
    /// Let another one serve at once; done when dropped.
    pub release: crate::kubernetes::balancer::Release,
}

/// Balances the Services that `options` name, on the current tokio runtime. `held` tells which addresses this machine
/// has: nobody is sent to others.
///
/// # Errors
/// If there is no way to a Kubernetes API.
#[cfg(feature = "kube")]
pub async fn balance(
    options: crate::kubernetes::balancer::Options,
    held: tokio::sync::watch::Receiver<std::collections::BTreeSet<std::net::IpAddr>>,
) -> Result<Balance, Error> {
    let (watch, control, events) = Control::new(&Scope::All, Here::default());
    let report = Report(Arc::clone(&watch.shared));
    let (following, leads, release) =
        crate::kubernetes::balancer::follow(options, held, events, report).await?;
    let source = tokio::spawn(following);
    tokio::spawn(async move {
        control.run().await;
        source.abort();
    });
    Ok(Balance { watch, leads, release })
}

#[cfg(any(feature = "manifests", feature = "kube"))]
/// The node whose zone the source is to tell, being given no zone.
pub(crate) fn wanted_node(here: &Here) -> Option<selection::Symbol> {
    here.node.clone().filter(|_| here.zone.is_none())
}

impl Watch {
    /// How it is doing.
    pub fn status(&self) -> Status {
        let shared = lock(&self.shared);
        let mut status = shared.status.clone();
        status.age = shared.steps.last().map(|at| at.elapsed());
        status.broken = shared.steps.broken();
        status
    }

    /// What is known of `service`; `None` if there is no such Service.
    pub async fn inspect(&self, service: ServiceName) -> Option<Inspection> {
        self.ask(|answer| Question::One(service, answer)).await.flatten()
    }

    /// What is known of every Service, in the order of their names.
    pub async fn inspect_all(&self) -> Vec<Inspection> {
        self.ask(Question::All).await.unwrap_or_default()
    }

    /// Where names are published from here on; `None` if the source is followed no longer.
    #[cfg(feature = "names")]
    pub async fn names(&self) -> Option<CurrentNames> {
        self.ask(Question::Names).await?;
        Some(self.names.clone())
    }

    /// The time since the table was last known to be in step with the source: [`Status::age`].
    pub fn age(&self) -> Option<Duration> {
        lock(&self.shared).steps.last().map(|at| at.elapsed())
    }

    /// Nobody can answer any more.
    #[cfg(feature = "feed")]
    pub(crate) fn is_over(&self) -> bool {
        self.questions.is_closed()
    }

    /// Asks for the beginning of a feed, which comes once there is a table; `None` if nobody can answer any more.
    #[cfg(feature = "feed")]
    pub(crate) async fn open_feed(&self, request: Request) -> Option<oneshot::Receiver<Opening>> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(Question::Feed(Reading::Opens(request, answer))).await.ok()?;
        Some(answered)
    }

    /// A reader wants something else from here on; `None` if nobody can answer any more.
    #[cfg(feature = "feed")]
    pub(crate) async fn amend_feed(&self, reader: ReaderId, request: Request) -> Option<()> {
        self.questions.send(Question::Feed(Reading::Amends(reader, request))).await.ok()
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(question(answer)).await.ok()?;
        answered.await.ok()
    }
}

enum Question {
    One(ServiceName, oneshot::Sender<Option<Inspection>>),
    All(oneshot::Sender<Vec<Inspection>>),
    #[cfg(feature = "names")]
    Names(oneshot::Sender<()>),
    #[cfg(feature = "feed")]
    Feed(Reading),
}

/// What a reader of the feed asks for.
#[cfg(feature = "feed")]
enum Reading {
    /// The beginning of a feed.
    Opens(Request, oneshot::Sender<Opening>),
    /// Something else than it has, on the feed that it has.
    Amends(ReaderId, Request),
}

/// What is asked for from other threads.
#[derive(Debug, Default)]
struct Shared {
    status: Status,
    steps: Steps,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a source sends its events.
#[derive(Clone, Debug)]
pub(crate) struct Events(mpsc::Sender<(Instant, Event)>);

impl Events {
    /// Sends `event`, received at this moment. Waits while the store is behind.
    pub(crate) async fn send(&self, event: Event) {
        self.send_at(Instant::now(), event).await;
    }

    /// Sends `event`, which is true of the moment `at`. Waits while the store is behind.
    pub(crate) async fn send_at(&self, at: Instant, event: Event) {
        // Fails only when nobody follows any more; the source is about to be stopped then.
        let _ = self.0.send((at, event)).await;
    }
}

#[cfg(any(feature = "manifests", feature = "kube"))]
/// Where a source counts what it leaves out.
#[derive(Clone, Debug)]
pub(crate) struct Report(Arc<Mutex<Shared>>);

#[cfg(any(feature = "manifests", feature = "kube"))]
impl Report {
    /// Counts something of an object of `kind` that could not be understood.
    pub(crate) fn skipped(&self, kind: crate::store::Kind, reason: &'static str) {
        let skipped = &mut lock(&self.0).status.skipped;
        match skipped.iter_mut().find(|(k, r, _)| (*k, *r) == (kind, reason)) {
            Some((_, _, count)) => *count += 1,
            None => skipped.push((kind, reason, 1)),
        }
    }
}

/// The task that owns the store.
struct Control {
    events: mpsc::Receiver<(Instant, Event)>,
    asked: mpsc::Receiver<Question>,
    store: Store,
    tables: Tables,
    #[cfg(feature = "names")]
    names: CurrentNames,
    shared: Arc<Mutex<Shared>>,
    /// When the events were received that no table has yet.
    since: Vec<Instant>,
    published: Option<Instant>,
    started: SystemTime,
    /// What readers of the feed are told, once there was one.
    #[cfg(feature = "feed")]
    batches: Option<Batches>,
    /// The request whose answer has been received, but is in no table yet.
    #[cfg(feature = "feed")]
    answer: Option<u64>,
    /// The last one whose answer is in the tables; none while the feed is lost.
    #[cfg(feature = "feed")]
    answered: tokio::sync::watch::Sender<Option<u64>>,
    /// Readers that wait.
    #[cfg(feature = "feed")]
    readings: VecDeque<Reading>,
}

impl Control {
    /// The task to be, for what `scope` says; who can ask it; where a source sends its events.
    fn new(scope: &Scope, here: Here) -> (Watch, Self, Events) {
        let (told, events) = mpsc::channel(QUEUE);
        let (questions, asked) = mpsc::channel(16);
        let (tables, shared) = (Tables::default(), Arc::new(Mutex::new(Shared::default())));
        lock(&shared).status.here = here.clone();
        let mut store = Store::new(here);
        for stream in scope.streams() {
            lock(&shared).steps.follow(&stream);
            store.apply(Event::Follow(stream));
        }
        let control = Self {
            events,
            asked,
            store,
            tables: tables.clone(),
            #[cfg(feature = "names")]
            names: CurrentNames::default(),
            shared: Arc::clone(&shared),
            since: Vec::new(),
            published: None,
            started: SystemTime::now(),
            #[cfg(feature = "feed")]
            batches: None,
            #[cfg(feature = "feed")]
            answer: None,
            #[cfg(feature = "feed")]
            answered: tokio::sync::watch::Sender::new(None),
            #[cfg(feature = "feed")]
            readings: VecDeque::new(),
        };
        let watch = Watch {
            tables,
            #[cfg(feature = "names")]
            names: control.names.clone(),
            shared,
            questions,
        };
        (watch, control, Events(told))
    }

    /// Runs until nobody can ask any more.
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(QUEUE);
        loop {
            tokio::select! {
                question = self.asked.recv() => match question {
                    Some(question) => self.answer(question),
                    None => return,
                },
                received = self.events.recv_many(&mut batch, QUEUE) => {
                    if received == 0 {
                        return;
                    }
                    self.pause(&mut batch).await;
                    for (at, event) in batch.drain(..) {
                        self.apply(at, event);
                    }
                    self.publish();
                }
                () = tokio::task::yield_now(), if self.has_readings() => self.read_on(),
            }
        }
    }

    /// Gathers more events until the last table is old enough. Before the first table nothing hurries; somebody waits for
    /// an answer.
    async fn pause(&mut self, batch: &mut Vec<(Instant, Event)>) {
        let Some(published) = self.published else { return };
        #[cfg(feature = "feed")]
        if batch.iter().any(|(_, event)| matches!(event, Event::Answers(_))) {
            return;
        }
        let due = tokio::time::Instant::from_std(published + PUBLISH_EVERY);
        while batch.len() < 8 * QUEUE {
            match tokio::time::timeout_at(due, self.events.recv_many(batch, QUEUE)).await {
                Ok(received) if received > 0 => {}
                _ => return,
            }
        }
    }

    fn apply(&mut self, at: Instant, event: Event) {
        match &event {
            Event::Follow(stream) => lock(&self.shared).steps.follow(stream),
            Event::InStep(stream) => lock(&self.shared).steps.in_step(stream, at),
            Event::Lost(stream, loss) => {
                lock(&self.shared).steps.lost(stream, *loss);
                #[cfg(feature = "feed")]
                self.answered.send_if_modified(|answered| answered.take().is_some());
            }
            #[cfg(feature = "feed")]
            Event::Answers(number) => self.answer = Some(*number),
            Event::Applied(_) | Event::Patched { .. } | Event::Gone(..) | Event::Here(_) => {
                self.since.push(at)
            }
            Event::Eligible(is_eligible) => lock(&self.shared).status.is_node_ineligible = !is_eligible,
            Event::ListBegins(_)
            | Event::ListEnds(_)
            | Event::Unreadable(_)
            | Event::Hold
            | Event::Release => {}
        }
        let is_place = matches!(event, Event::Here(_));
        self.store.apply(event);
        if is_place {
            lock(&self.shared).status.here = self.store.here().clone();
        }
    }

    fn publish(&mut self) {
        let table = self.store.publish();
        let triggers = self.store.take_triggers();
        let (is_new, is_first) = (table.is_some(), self.published.is_none());
        // First the names: who was woken by a table finds what it does not have in a view that is no older.
        #[cfg(feature = "names")]
        self.publish_names();
        if let Some(table) = table {
            self.tables.publish(table);
            self.published = Some(Instant::now());
        }
        #[cfg(feature = "feed")]
        {
            self.feed();
            if let Some(number) = self.answer.take() {
                self.answered.send_replace(Some(number));
            }
        }
        let mut shared = lock(&self.shared);
        let status = &mut shared.status;
        status.synced = self.published.is_some();
        status.version = self.store.table().version();
        status.services = self.store.services();
        status.slices = self.store.slices();
        status.counts = self.store.counts().clone();
        if self.published.is_none() {
            return;
        }
        let received = self.since.drain(..);
        // The first table waits for lists, not for events.
        if is_new && !is_first {
            received.for_each(|at| status.received_to_table.observe(at.elapsed()));
        }
        triggers.into_iter().for_each(|at| observe_trigger(&mut status.triggered_to_table, at, self.started));
    }

    fn answer(&mut self, question: Question) {
        // Who asked may have gone.
        match question {
            Question::One(service, answer) => drop(answer.send(inspect::inspect(&self.store, &service))),
            Question::All(answer) => drop(answer.send(inspect::inspect_all(&self.store))),
            #[cfg(feature = "names")]
            Question::Names(answer) => {
                self.store.follow_names();
                self.publish_names();
                let _ = answer.send(());
            }
            #[cfg(feature = "feed")]
            Question::Feed(reading) => {
                self.readings.push_back(reading);
                self.feed();
            }
        }
    }

    #[cfg(feature = "names")]
    fn publish_names(&mut self) {
        self.store.take_names().into_iter().for_each(|names| self.names.publish(names));
    }

    /// Whether readers wait who could be told.
    fn has_readings(&self) -> bool {
        #[cfg(feature = "feed")]
        return !self.readings.is_empty() && self.published.is_some() && !self.store.is_held();
        #[cfg(not(feature = "feed"))]
        false
    }

    /// Tells some of those who wait.
    fn read_on(&mut self) {
        #[cfg(feature = "feed")]
        self.feed();
    }

    /// Tells readers what changed, and those who wait what there is. Half of what belongs together is not told.
    #[cfg(feature = "feed")]
    fn feed(&mut self) {
        if self.published.is_none() || self.store.is_held() {
            return;
        }
        let age = lock(&self.shared).steps.last().map(|at| at.elapsed());
        if let Some(batches) = &mut self.batches {
            batches.tell(&mut self.store, age);
        }
        // Many begin at once after a start. Each takes its snapshot away before there are too many in memory.
        for _ in 0..READINGS {
            let Some(reading) = self.readings.pop_front() else { return };
            let batches = self.batches.get_or_insert_with(|| Batches::new(&mut self.store));
            match reading {
                Reading::Opens(_, answer) if answer.is_closed() => {}
                Reading::Opens(request, answer) => {
                    let _ = answer.send(batches.open(&self.store, &request, age));
                }
                Reading::Amends(reader, request) => batches.amend(&self.store, reader, &request, age),
            }
        }
    }
}

/// A watch of the events that a test sends.
#[cfg(all(test, feature = "feed"))]
pub(crate) fn watch_of_test(here: Here) -> (Watch, Events) {
    let (watch, control, events) = Control::new(&Scope::All, here);
    tokio::spawn(control.run());
    (watch, events)
}

/// Counts a trigger at `millis` since 1970, if it was after `started` and is not in the future.
fn observe_trigger(histogram: &mut Histogram, millis: u64, started: SystemTime) {
    let triggered = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    if triggered >= started
        && let Ok(duration) = triggered.elapsed()
    {
        histogram.observe(duration);
    }
}
