//! A batch: the feed of one place, and what is asked of its tables on the way. In: a [`Batch`]. Out: an [`Answer`] to each
//! step. Asks the code that serves in Envoy and in a browser; decides nothing.

use std::net::SocketAddr;

use selection::story::Outcome;
use selection::{Failure, Here, Millis, Row, Seed};
use serde::{Deserialize, Serialize};
use watcher::feed::Subscription;

use crate::authority::Wanted;
use crate::inquiry::{Inquiry, Reply};
use crate::outcome::{self, Reached};
use crate::vm::{Attempt, Found, Unserved, Vm};

/// One Envoy, or one page, from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Its node.
    pub node: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// Its secret.
    pub seed: (u64, u64),
    /// What happens, in this order.
    pub steps: Vec<Step>,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// A frame of the feed comes.
    Frame(Vec<u8>),
    /// What is in the table?
    Rows,
    /// A pick of which everything is told.
    Ask(Inquiry),
    /// A connection comes.
    Connect(Connect),
    /// A connection is over.
    Settle(Settle),
}

/// A connection or request, as the plugins ask about one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// The address that was dialled, over TCP.
    pub dialled: SocketAddr,
    /// Who dialled it.
    pub client: SocketAddr,
    /// So many endpoints may be tried.
    pub most: usize,
    /// When.
    pub now: Millis,
}

/// The end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settle {
    /// Which of those that are open, by age.
    pub which: usize,
    /// So many of its endpoints were tried.
    pub tried: usize,
    /// Why the last of them failed, by its place in [`Failure::ALL`].
    pub failure: Option<usize>,
    /// The last of them took it.
    pub connected: bool,
    /// A mesh's cluster went to the endpoint at this place of the choice, or to none of them; without it, Envoy went to
    /// the one whose turn it was.
    pub reached: Option<usize>,
    /// When.
    pub now: Millis,
}

/// What a step gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The frame was read; the table has this version.
    Read(u64),
    /// The rows of the table as JSON, in the order of their names.
    Rows(String),
    /// What was picked.
    Asked(Reply),
    /// The endpoints that are to be tried in turn; without any, why.
    Connected(Outcome, Vec<SocketAddr>),
    /// The endpoints that were put aside, and how often each failed; none also if no such connection is open.
    Settled(Vec<(SocketAddr, u32)>),
}

/// As in an Envoy that is configured with nothing special.
const CONNECT_TIMEOUT: Millis = 5_000;

impl Batch {
    /// The answers, one to each step.
    ///
    /// # Errors
    /// At a frame or an inquiry that is none: one sentence.
    pub fn answers(&self) -> Result<Vec<Answer>, String> {
        let here =
            Here { node: self.node.as_deref().map(Into::into), zone: self.zone.as_deref().map(Into::into) };
        let mut vm = Vm::new(Seed(self.seed.0, self.seed.1));
        vm.join(1, "feed", &here, Subscription::All)?;
        let mut open = Vec::new();
        self.steps.iter().map(|step| step.answer(&mut vm, &mut open)).collect()
    }
}

impl Step {
    fn answer(&self, vm: &mut Vm, open: &mut Vec<Attempt>) -> Result<Answer, String> {
        let table = |vm: &Vm| vm.mirror().map(|mirror| mirror.table().clone()).unwrap_or_default();
        Ok(match self {
            Self::Frame(frame) => {
                vm.frame(frame, 0).map_err(|error| error.to_string())?;
                Answer::Read(vm.mirror().map_or(0, |mirror| mirror.table().version()))
            }
            Self::Rows => {
                let table = table(vm);
                let mut ports: Vec<_> = table.all().collect();
                ports.sort_by(|a, b| a.id.cmp(&b.id));
                let rows: Vec<_> = ports.into_iter().map(|port| Row::from(&**port)).collect();
                Answer::Rows(serde_json::to_string(&rows).map_err(|error| error.to_string())?)
            }
            Self::Ask(inquiry) => Answer::Asked(inquiry.answer(&table(vm))?),
            Self::Connect(Connect { dialled, client, most, now }) => {
                let (path, port) = match vm.find(&Wanted::Address(*dialled)) {
                    Found::Port(path, port) => (path, port),
                    Found::Unknown | Found::NoTable => {
                        return Ok(Answer::Connected(Outcome::Pass, Vec::new()));
                    }
                };
                match vm.choose(&port, path, *client, *most, CONNECT_TIMEOUT, *now) {
                    Ok(attempt) => {
                        let endpoints = attempt.endpoints().into_iter().flatten().collect();
                        open.push(attempt);
                        Answer::Connected(Outcome::Endpoint, endpoints)
                    }
                    Err(Unserved::NoEndpoint) => Answer::Connected(Outcome::Refuse, Vec::new()),
                    Err(Unserved::Policy) => Answer::Connected(Outcome::Drop, Vec::new()),
                }
            }
            Self::Settle(Settle { which, tried, failure, connected, reached, now }) => {
                vm.decide_trials(*now);
                if *which >= open.len() {
                    return Ok(Answer::Settled(Vec::new()));
                }
                let attempt = open.remove(*which);
                let failure = failure.and_then(|at| Failure::ALL.get(at)).copied();
                let reached = reached.map_or(Reached::AsChosen, |at| {
                    Reached::At(attempt.endpoints().get(at).copied().flatten())
                });
                let outcome = outcome::Outcome { tried: *tried, failure, connected: *connected, reached };
                let aside = vm.settle(attempt, &outcome, *now);
                Answer::Settled(aside.into_iter().map(|aside| (aside.endpoint, aside.failures)).collect())
            }
        })
    }
}
