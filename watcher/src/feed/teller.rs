//! Tells one reader. In: what it subscribes to. Out: frame after frame. Never keeps more for a slow reader than a
//! snapshot: what it missed meanwhile it gets as another one.
//!
//! ```text
//!              ┌─────────── fell behind · wants something else altogether ──────┐
//!              ▼                                                                 │
//! asking ──opened──▶ telling the snapshot ──▶ telling changes, and every HEARTBEAT that we live
//! ```
//! Who wants a Service more, or less, is told that among the changes.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::batches::{Opening, Seat};
use super::{HEARTBEAT, Request, Subscription, heartbeat};
use crate::Watch;

/// Who tells one reader. Owning one costs its source nothing while nothing changes.
#[derive(Debug)]
pub struct Teller {
    watch: Watch,
    request: Request,
    /// The source is to be told that it has changed.
    is_amended: bool,
    state: State,
    /// Frames that are due.
    due: VecDeque<Bytes>,
    /// The snapshot that is being told, as others are told it at the same time.
    snapshot: Option<Arc<Vec<Bytes>>>,
    beat: Instant,
}

#[derive(Debug)]
enum State {
    /// A snapshot is to be asked for.
    New,
    Asking(oneshot::Receiver<Opening>),
    Following {
        /// What the reader has.
        version: u64,
        seat: Seat,
    },
}

/// What a reader is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A frame.
    Frame(Bytes),
    /// The first frame of a snapshot.
    Snapshot(Bytes),
    /// The reader was too slow, and is told everything again. Nothing to send.
    FellBehind,
}

impl Teller {
    /// Tells what `watch` knows and `request` asks for.
    pub fn new(watch: Watch, request: impl Into<Request>) -> Self {
        let beat = Instant::now() + HEARTBEAT;
        let (request, due) = (request.into(), VecDeque::new());
        Self { watch, request, is_amended: false, state: State::New, due, snapshot: None, beat }
    }

    /// From here on tells what `request` asks for.
    pub fn subscribe(&mut self, request: impl Into<Request>) {
        let request = request.into();
        if request == self.request {
            return;
        }
        let is_following = matches!(self.state, State::Following { .. });
        self.is_amended = is_following && is_alike(&self.request.subscription, &request.subscription);
        self.request = request;
        if !self.is_amended {
            // What is on its way of the earlier one is not told any more.
            self.state = State::New;
            self.due.clear();
        }
    }

    /// The next thing to tell; `None` if there is nobody who knows any more. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Told> {
        if let State::Following { seat, .. } = &self.state
            && self.is_amended
        {
            self.watch.amend_feed(seat.id(), self.request.clone()).await?;
            self.is_amended = false;
        }
        if let Some(frame) = self.due.pop_front() {
            return Some(self.frame(frame));
        }
        self.snapshot = None;
        loop {
            match &mut self.state {
                State::New => self.state = State::Asking(self.watch.open_feed(self.request.clone()).await?),
                // A source without a first table lets us wait.
                State::Asking(answer) => tokio::select! {
                    opening = answer => {
                        let Opening { request, frames, version, seat } = opening.ok()?;
                        self.request = request;
                        self.state = State::Following { version, seat };
                        let number = Some(self.request.number).filter(|number| *number > 0);
                        let answer = number.map(|number| super::encoder::answer(number).into());
                        self.due = answer.into_iter().chain(frames.iter().cloned()).collect();
                        self.snapshot = Some(frames);
                        let first = self.due.pop_front()?;
                        self.beat = Instant::now() + HEARTBEAT;
                        return Some(Told::Snapshot(first));
                    }
                    () = sleep_until(self.beat) => return Some(self.live()),
                },
                State::Following { version, seat } => tokio::select! {
                    transaction = seat.next() => match transaction {
                        Some(transaction) => {
                            self.due.extend(transaction.frames(*version));
                            *version = transaction.version;
                            if let Some(request) = transaction.answers.as_ref().filter(|r| **r == self.request) {
                                self.request = request.clone();
                            }
                            let first = self.due.pop_front()?;
                            return Some(self.frame(first));
                        }
                        None if self.watch.is_over() => return None,
                        None => {
                            self.state = State::New;
                            return Some(Told::FellBehind);
                        }
                    },
                    () = sleep_until(self.beat) => return Some(self.live()),
                },
            }
        }
    }

    fn frame(&mut self, frame: Bytes) -> Told {
        self.beat = Instant::now() + HEARTBEAT;
        Told::Frame(frame)
    }

    fn live(&mut self) -> Told {
        let age = self.watch.age();
        self.frame(heartbeat(age).into())
    }
}

/// Whether they differ by single Services at most.
fn is_alike(one: &Subscription, other: &Subscription) -> bool {
    match (one, other) {
        (Subscription::Some { namespaces: some, .. }, Subscription::Some { namespaces: others, .. }) => {
            some == others
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Mirror;
    use crate::sample::{apply_service, apply_slice, here, listed, name, rows, service, slice};
    use crate::store::{Event, Kind};
    use crate::watch::{Events, watch_of_test};

    /// A watch with a table of shop/web and shop/api.
    async fn watched() -> (Watch, Events) {
        let (watch, events) = watch_of_test(here());
        let objects = vec![apply_service(service("web", 1)), apply_service(service("api", 2))];
        let lists = [Kind::Services, Kind::Slices].map(listed);
        let [[services, services_end], [slices, slices_end]] = lists;
        for event in [services, slices].into_iter().chain(objects).chain([services_end, slices_end]) {
            events.send(event).await;
        }
        (watch, events)
    }

    /// Reads until `mirror` has the rows of `watch`.
    async fn catch_up(teller: &mut Teller, mirror: &mut Mirror, watch: &Watch) -> Vec<Told> {
        let mut all = Vec::new();
        while rows(mirror.table()) != rows(&watch.tables.load()) || !mirror.is_synced() {
            let told = teller.next().await.expect("the watch lives");
            if let Told::Frame(frame) | Told::Snapshot(frame) = &told {
                mirror.frame(frame).expect("it is a frame");
            }
            all.push(told);
        }
        all
    }

    async fn change(watch: &Watch, events: &Events, service: &str, endpoint: u8) {
        let event: Event = apply_slice(service, slice(&format!("{service}-1"), &[endpoint]));
        events.send(event).await;
        let address = format!("10.0.0.{endpoint}:8080");
        let has = |port: &Arc<selection::ServicePort>| {
            port.endpoints.iter().any(|endpoint| endpoint.address.to_string() == address)
        };
        watch.tables.reaches(|table| table.ports(&name(service)).iter().any(has)).await;
    }

    #[tokio::test]
    async fn a_reader_gets_a_snapshot_then_what_changes() {
        let (watch, events) = watched().await;
        let (mut teller, mut mirror) = (Teller::new(watch.clone(), Subscription::All), Mirror::new(here()));
        let told = catch_up(&mut teller, &mut mirror, &watch).await;
        assert!(matches!(told[..], [Told::Snapshot(_)]));
        for endpoint in 1..5 {
            change(&watch, &events, "web", endpoint).await;
            let told = catch_up(&mut teller, &mut mirror, &watch).await;
            assert!(matches!(&told[..], [Told::Frame(frame)] if frame.len() <= 200), "{told:?}");
        }
    }

    #[tokio::test]
    async fn all_readers_of_everything_share_the_bytes() {
        let (watch, events) = watched().await;
        let reader = || Teller::new(watch.clone(), Subscription::All);
        let (mut one, mut other) = (reader(), reader());
        let snapshots = tokio::join!(one.next(), other.next());
        change(&watch, &events, "web", 1).await;
        let changes = tokio::join!(one.next(), other.next());
        let at = |told: &Option<Told>| match told {
            Some(Told::Frame(bytes) | Told::Snapshot(bytes)) => bytes.as_ptr(),
            other => panic!("{other:?}"),
        };
        assert_eq!((at(&snapshots.0), at(&changes.0)), (at(&snapshots.1), at(&changes.1)));
    }

    #[tokio::test]
    async fn a_reader_that_falls_behind_is_told_everything_again() {
        let (watch, events) = watched().await;
        let (mut teller, mut mirror) = (Teller::new(watch.clone(), Subscription::All), Mirror::new(here()));
        catch_up(&mut teller, &mut mirror, &watch).await;
        for endpoint in 1..=100 {
            change(&watch, &events, "web", endpoint).await;
        }
        let told = catch_up(&mut teller, &mut mirror, &watch).await;
        assert!(matches!(told[..], [Told::FellBehind, Told::Snapshot(_)]), "{told:?}");
    }

    #[tokio::test]
    async fn a_reader_is_told_what_it_subscribes_to_and_may_change_its_mind() {
        let (watch, events) = watched().await;
        let mut teller = Teller::new(watch.clone(), Subscription::services([name("web")]));
        let mut mirror = Mirror::new(here());
        let mut next = async |teller: &mut Teller| match teller.next().await {
            Some(Told::Frame(frame) | Told::Snapshot(frame)) => {
                mirror.frame(&frame).expect("it is a frame");
                rows(mirror.table())
                    .into_iter()
                    .map(|row| (row.service, row.cluster.len()))
                    .collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(next(&mut teller).await, [("shop/web".to_owned(), 0)]);
        change(&watch, &events, "api", 1).await;
        change(&watch, &events, "web", 1).await;
        assert_eq!(next(&mut teller).await, [("shop/web".to_owned(), 1)], "nothing of shop/api in between");
        teller.subscribe(Subscription::services([name("api")]));
        assert_eq!(next(&mut teller).await, [("shop/api".to_owned(), 1)]);
        teller.subscribe(Subscription::namespaces(["shop".into()]));
        assert_eq!(next(&mut teller).await.len(), 2);
    }

    #[tokio::test]
    async fn who_wants_a_service_more_or_less_is_told_of_that_one_alone() {
        let (watch, events) = watched().await;
        let wants = |names: &[&str], number| Request {
            number,
            ..Subscription::services(names.iter().map(|text| name(text))).into()
        };
        let (mut teller, mut mirror) = (Teller::new(watch.clone(), wants(&["web"], 1)), Mirror::new(here()));
        let mut answered = async |teller: &mut Teller, number: u64| {
            let (mut begun, mut bytes) = (0, 0);
            while let Some(told) = teller.next().await {
                let (Told::Frame(frame) | Told::Snapshot(frame)) = &told else { panic!("{told:?}") };
                assert!(number == 1 || matches!(told, Told::Frame(_)), "no snapshot");
                let progress = mirror.frame(frame).unwrap();
                begun = progress.answers.unwrap_or(begun);
                bytes += frame.len();
                if progress.complete && begun == number {
                    let rows = rows(mirror.table()).into_iter();
                    return (bytes, rows.map(|row| (row.service, row.cluster.len())).collect::<Vec<_>>());
                }
            }
            panic!("the feed ended");
        };
        let row = |service: &str, endpoints: usize| (format!("shop/{service}"), endpoints);
        assert_eq!(answered(&mut teller, 1).await.1, [row("web", 0)]);
        // What changes meanwhile is told before or with it, and once.
        change(&watch, &events, "api", 1).await;
        change(&watch, &events, "web", 2).await;
        teller.subscribe(wants(&["api", "web", "nobody"], 2));
        let (bytes, rows) = answered(&mut teller, 2).await;
        assert_eq!(rows, [row("api", 1), row("web", 1)]);
        assert!(bytes < 400, "{bytes} bytes");
        change(&watch, &events, "api", 3).await;
        teller.subscribe(wants(&["web"], 3));
        let (bytes, rows) = answered(&mut teller, 3).await;
        assert_eq!(rows, [row("web", 1)]);
        assert!(bytes < 300, "{bytes} bytes");
        // Nothing is new, and that is an answer, too.
        teller.subscribe(wants(&["web", "nobody"], 4));
        assert_eq!(answered(&mut teller, 4).await.1, [row("web", 1)]);
        change(&watch, &events, "api", 4).await;
        change(&watch, &events, "web", 5).await;
        teller.subscribe(wants(&["web"], 5));
        assert_eq!(answered(&mut teller, 5).await.1, [row("web", 1)]);
    }

    #[tokio::test]
    async fn a_reader_waits_for_the_first_table() {
        let (watch, events) = watch_of_test(here());
        let mut teller = Teller::new(watch, Subscription::All);
        tokio::select! {
            biased;
            told = teller.next() => panic!("{told:?} without a table"),
            () = tokio::task::yield_now() => {}
        }
        for event in [Kind::Services, Kind::Slices].map(listed).into_iter().flatten() {
            events.send(event).await;
        }
        assert!(matches!(teller.next().await, Some(Told::Snapshot(_))));
    }
}
