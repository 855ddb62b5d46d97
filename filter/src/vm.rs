//! What all plugins in one worker of Envoy share: the mirror of the feed, the pins, what is counted. In: frames,
//! questions, outcomes, the time. Out: endpoints, by `selection::pick`. Never calls Envoy, never reads a clock.
//!
//! The tallies are those of the table: what one worker learns of an endpoint the others do not know, as no memory is
//! shared between them.

use std::net::SocketAddr;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use selection::{
    Destination, Draw, Family, Flow, Here, Millis, Path, Pin, Pins, PortId, Protocol, Question, Seed,
    ServicePort, Tallies, Tally, Tried, Verdict,
};
use watcher::feed::{self, Mirror, Names, Progress, Subscription};

use crate::authority::Wanted;
use crate::counts::{Count, Counts};
use crate::known::Known;
use crate::link::Link;
use crate::outcome::{Outcome, Reached};

/// Endpoints that Envoy is given for one request: it can try as many, one after the other.
pub const ATTEMPTS: usize = 3;
/// Pins in each of two generations; some 2 MB in all.
const PINS: usize = 4_096;

/// The state of one VM.
pub struct Vm {
    seed: Seed,
    joined: Option<Joined>,
    /// What each root context wants.
    wants: Vec<(u32, Subscription)>,
    /// The stream of the feed.
    pub link: Link,
    /// The last time that the server's table was known to be in step with its source.
    in_step: Option<Millis>,
    pins: Pins,
    /// Connections to endpoints that had failed, and when such a connect must have been decided.
    trials: Vec<(Weak<Trial>, Millis)>,
    /// What is counted.
    pub counts: Counts,
}

/// What the plugins of one VM must agree in.
#[derive(Debug)]
struct Joined {
    cluster: String,
    here: Here,
    mirror: Mirror,
}

/// What the table says of somebody that is wanted.
#[derive(Debug)]
pub enum Found {
    /// It is this Service port, dialled as this.
    Port(Path, Arc<ServicePort>),
    /// It is nobody's.
    Unknown,
    /// There is no table yet.
    NoTable,
}

/// Why no endpoint takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// Nobody can.
    NoEndpoint,
    /// Nobody may.
    Policy,
}

/// The endpoints chosen for one connection or request, the first of which counts it in until this is dropped.
#[derive(Debug)]
pub struct Attempt {
    choices: [Option<Choice>; ATTEMPTS],
    client: SocketAddr,
    port: PortId,
    began: Millis,
    /// At the first of them; given up with this.
    _place: Place,
    /// The first one had failed.
    _trial: Option<Rc<Trial>>,
}

#[derive(Clone, Debug)]
struct Choice {
    address: SocketAddr,
    tally: Arc<Tally>,
    // Most have none, and an attempt is copied around.
    pin: Option<Box<Pin>>,
}

/// A place in the tally of an endpoint.
#[derive(Debug)]
struct Place(Arc<Tally>);

impl Place {
    fn take(tally: &Arc<Tally>) -> Self {
        tally.open();
        Self(Arc::clone(tally))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A connection to an endpoint that had failed, which lives as long as the attempt.
#[derive(Debug)]
struct Trial(Arc<Tally>);

/// An endpoint that was put aside, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutAside {
    /// Its Service port.
    pub port: PortId,
    /// Its address.
    pub endpoint: SocketAddr,
    /// Failed connects in a row.
    pub failures: u32,
}

impl Vm {
    /// A VM that knows nothing yet; `seed` is its secret.
    pub fn new(seed: Seed) -> Self {
        Self {
            seed,
            joined: None,
            wants: Vec::new(),
            link: Link::default(),
            in_step: None,
            pins: Pins::new(seed, PINS),
            trials: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// The root context `root` reads the feed of `cluster` at `here`, for what `subscription` says.
    ///
    /// # Errors
    /// If another plugin of this VM does so otherwise: one sentence.
    pub fn join(
        &mut self,
        root: u32,
        cluster: &str,
        here: &Here,
        subscription: Subscription,
    ) -> Result<(), String> {
        match &self.joined {
            Some(joined) if joined.cluster != cluster => {
                return Err(format!(
                    "the field feed of the configuration is wrong: it is {cluster}, but another plugin with the same \
                     vm_id reads {}; give this one a vm_id of its own",
                    joined.cluster
                ));
            }
            Some(joined) if joined.here != *here => {
                return Err(
                    "the fields node and zone of the configuration are wrong: another plugin with the same \
                            vm_id has others; give this one a vm_id of its own"
                        .to_owned(),
                );
            }
            Some(_) => {}
            None => {
                self.joined = Some(Joined {
                    cluster: cluster.to_owned(),
                    here: here.clone(),
                    mirror: Mirror::new(here.clone()),
                });
            }
        }
        let before = self.wanted();
        self.wants.retain(|(other, _)| *other != root);
        self.wants.push((root, subscription));
        if self.wanted() != before {
            self.link.wants_more();
        }
        Ok(())
    }

    /// The root context is gone. What only it wanted stays known until a stream is opened again.
    pub fn leave(&mut self, root: u32) {
        self.wants.retain(|(other, _)| *other != root);
        self.link.gone(root);
    }

    /// Envoy's cluster of the feed, and what is to be asked there.
    pub fn feed(&self) -> Option<(&str, Subscription)> {
        Some((&self.joined.as_ref()?.cluster, self.wanted()))
    }

    /// What all plugins together want.
    fn wanted(&self) -> Subscription {
        let (mut all_namespaces, mut all_services) = (Names::default(), Names::default());
        for (_, one) in &self.wants {
            let Subscription::Some { namespaces, services } = one else { return Subscription::All };
            namespaces.iter().for_each(|name| all_namespaces.insert(name.clone()));
            services.iter().for_each(|name| all_services.insert(name.clone()));
        }
        Subscription::Some { namespaces: all_namespaces, services: all_services }
    }

    /// Reads a frame of the feed.
    ///
    /// # Errors
    /// If it is none: the stream is to be opened again. The table stays.
    pub fn frame(&mut self, frame: &[u8], now: Millis) -> Result<Progress, feed::Error> {
        let Some(joined) = &mut self.joined else { return Ok(Progress::default()) };
        let progress = joined.mirror.frame(frame)?;
        if let Some(age) = progress.age {
            self.in_step = Some(now.saturating_sub(age.as_millis() as Millis));
        }
        if progress.complete {
            self.link.settled();
        }
        Ok(progress)
    }

    /// The mirror, once a plugin reads a feed.
    pub fn mirror(&self) -> Option<&Mirror> {
        self.joined.as_ref().map(|joined| &joined.mirror)
    }

    /// The time since the table was last known to be in step with its source.
    pub fn age(&self, now: Millis) -> Option<Millis> {
        self.in_step.map(|then| now.saturating_sub(then))
    }

    /// A number that nobody can foresee, for waits.
    pub fn chance(&self, now: Millis) -> u64 {
        let flow = Flow { client: SocketAddr::from(([0, 0, 0, 0], 0)), inside: true };
        Draw::new(&self.seed, &flow, now).hash
    }

    /// Whom the table has for `wanted`.
    pub fn find(&self, wanted: &Wanted) -> Found {
        let Some(mirror) = self.mirror().filter(|mirror| mirror.is_synced()) else { return Found::NoTable };
        let table = mirror.table();
        let found = match wanted {
            Wanted::Service(service, port) => {
                table.port(service, port, Family::V4).map(|port| (Path::ClusterIp, port))
            }
            Wanted::Address(address) => table.at(&Destination::new(*address, Protocol::Tcp)),
        };
        found.map_or(Found::Unknown, |(path, port)| Found::Port(path, Arc::clone(port)))
    }

    /// Whom the table has for an authority: what is `known` of it, else what it `read`s as.
    pub fn find_known(
        &self,
        known: &mut Known<(Path, Arc<ServicePort>)>,
        authority: &[u8],
        read: impl FnOnce() -> Option<Wanted>,
    ) -> Found {
        let Some(mirror) = self.mirror().filter(|mirror| mirror.is_synced()) else { return Found::NoTable };
        let found = known.get(mirror.table().version(), authority, || match self.find(&read()?) {
            Found::Port(path, port) => Some((path, port)),
            Found::Unknown | Found::NoTable => None,
        });
        found.map_or(Found::Unknown, |(path, port)| Found::Port(path, port))
    }

    /// Chooses endpoints of `port` for `client`: one, and up to `most` altogether that are to be tried in turn. A
    /// connect takes `connect_timeout` at most.
    ///
    /// # Errors
    /// Why nobody serves.
    pub fn choose(
        &mut self,
        port: &ServicePort,
        path: Path,
        client: SocketAddr,
        most: usize,
        connect_timeout: Millis,
        now: Millis,
    ) -> Result<Attempt, Unserved> {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let flow = Flow { client, inside: true };
        let pin = port.affinity_seconds.and_then(|_| self.pins.get(client.ip(), &port.id));
        let turn = port.next_turn();
        let mut tried = Tried::default();
        let mut choices = [const { None }; ATTEMPTS];
        for (n, slot) in choices.iter_mut().take(most).enumerate() {
            // Those that may never be tried take no turn of their own, or the turns of others would be missing.
            let draw = Draw::new(&self.seed, &flow, turn.wrapping_add(n as u64));
            let question = Question { path, flow, draw, now, pin, tried: &tried };
            match selection::pick(port, &question, &Tallies) {
                Verdict::Endpoint(endpoint, pin) => {
                    tried.add(endpoint.address);
                    let (tally, pin) = (Arc::clone(&endpoint.tally), pin.map(Box::new));
                    *slot = Some(Choice { address: endpoint.address, tally, pin });
                }
                Verdict::Refuse if n == 0 => return Err(Unserved::NoEndpoint),
                Verdict::Drop if n == 0 => return Err(Unserved::Policy),
                Verdict::Refuse | Verdict::Drop => break,
            }
        }
        let Some(first) = &choices[0] else { return Err(Unserved::NoEndpoint) };
        if let Some(pin) = &first.pin {
            self.pins.put(client.ip(), &port.id, **pin);
        }
        let place = Place::take(&first.tally);
        let trial = (first.tally.failures() > 0).then(|| {
            let deadline = now.saturating_add(connect_timeout);
            first.tally.attempt(now, deadline);
            let trial = Rc::new(Trial(Arc::clone(&first.tally)));
            self.trials.push((Rc::downgrade(&trial), deadline));
            trial
        });
        Ok(Attempt { choices, client, port: port.id.clone(), began: now, _place: place, _trial: trial })
    }

    /// It is over. Returns the endpoints that were put aside for it.
    pub fn settle(&mut self, attempt: Attempt, outcome: &Outcome, now: Millis) -> Vec<PutAside> {
        let mut aside = Vec::new();
        let tried = attempt.tried(outcome);
        let last = tried.end;
        for (n, choice) in attempt.choices.iter().flatten().enumerate().take(last).skip(tried.start) {
            let is_last = n + 1 == last;
            if n > tried.start {
                self.counts.add(Count::Retries);
            }
            // Envoy goes on to the next one for one reason only, that the connect failed, and does not tell the errno.
            let failed = if is_last { outcome.failure } else { Some(selection::Failure::Refused) };
            match failed {
                Some(failure) => {
                    self.counts.add(Count::ConnectFailures);
                    if failure.blames_endpoint() && choice.tally.failed(attempt.began, now) {
                        aside.push(PutAside {
                            port: attempt.port.clone(),
                            endpoint: choice.address,
                            failures: choice.tally.failures(),
                        });
                    }
                }
                None if outcome.connected => {
                    choice.tally.succeeded();
                    if let Some(pin) = choice.pin.as_deref().filter(|_| n > 0) {
                        self.pins.put(attempt.client.ip(), &attempt.port, *pin);
                    }
                }
                None => {}
            }
        }
        aside
    }

    /// A connection to an endpoint that had failed, and that lives when its connect must have been decided, was made:
    /// nothing is held against the endpoint any more. Envoy does not tell, and a connection may last for days.
    pub fn decide_trials(&mut self, now: Millis) {
        self.trials.retain(|(trial, deadline)| {
            let Some(trial) = trial.upgrade() else { return false };
            let is_decided = *deadline < now;
            if is_decided {
                trial.0.succeeded();
            }
            !is_decided
        });
    }
}

impl Attempt {
    /// The endpoints, in the order in which they are to be tried.
    pub fn endpoints(&self) -> [Option<SocketAddr>; ATTEMPTS] {
        std::array::from_fn(|n| self.choices[n].as_ref().map(|choice| choice.address))
    }

    /// Which of the endpoints were tried, as far as is known.
    fn tried(&self, outcome: &Outcome) -> Range<usize> {
        let chosen = self.choices.iter().flatten().count();
        let Reached::At(reached) = outcome.reached else { return 0..outcome.tried.min(chosen) };
        let is_there = |choice: &Choice| Some(choice.address) == reached;
        match self.choices.iter().flatten().position(is_there) {
            // None was passed over.
            Some(at) if at + 1 == outcome.tried => 0..at + 1,
            Some(at) => at..at + 1,
            None => 0..0,
        }
    }

    /// The Service port.
    pub fn port(&self) -> &PortId {
        &self.port
    }

    /// An endpoint that was chosen failed before: whether it serves again is worth a question when it is over.
    pub fn is_trial(&self) -> bool {
        self.choices.iter().flatten().any(|choice| choice.tally.failures() > 0)
    }
}

#[cfg(test)]
mod tests;
