//! Questions of data threads: whose is this place, which no table knows? In: places. Out: a moment to look again. Never
//! keeps a connection waiting for longer than [`WITHIN`]. Who answers is [`crate::demand`]'s matter.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use selection::Destination;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use watcher::Tables;

/// A connection waits for an answer this long.
pub(crate) const WITHIN: Duration = Duration::from_secs(1);
/// Questions that wait to be heard; whoever has one more passes.
pub(crate) const QUEUE: usize = 1024;

/// Whom data threads ask. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Asking {
    questions: mpsc::Sender<Question>,
    counts: Arc<Counts>,
}

/// A place, and who wants to know whose it is.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) place: Destination,
    /// Dropped when it is known, or cannot be.
    pub(crate) answer: oneshot::Sender<()>,
}

/// What became of questions.
#[derive(Debug, Default)]
pub struct Counts {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    /// The feed answers: new places may be captured.
    is_live: AtomicBool,
}

/// What became of a connection to a place that no table knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A Service has it.
    Found,
    /// Nobody has it.
    Unknown,
    /// No answer came in time.
    Late,
    /// There were too many questions.
    Limit,
    /// The feed is lost.
    Lost,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 5] = [Self::Found, Self::Unknown, Self::Late, Self::Limit, Self::Lost];

    /// A stable word, the metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Unknown => "unknown",
            Self::Late => "late",
            Self::Limit => "limit",
            Self::Lost => "lost",
        }
    }
}

impl Counts {
    /// How often it came to this.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].load(Relaxed)
    }

    /// The feed answers.
    pub fn is_live(&self) -> bool {
        self.is_live.load(Relaxed)
    }

    /// The feed answers, or does not.
    pub(crate) fn lives(&self, is_live: bool) {
        self.is_live.store(is_live, Relaxed);
    }

    fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Relaxed);
    }
}

/// What data threads ask. Owning one means to be the only one who answers.
#[derive(Debug)]
pub struct Asked {
    pub(crate) questions: mpsc::Receiver<Question>,
    pub(crate) counts: Arc<Counts>,
}

/// Somebody to ask, and what is asked.
pub fn asking() -> (Asking, Asked) {
    let (sender, questions) = mpsc::channel(QUEUE);
    let counts = Arc::<Counts>::default();
    (Asking { questions: sender, counts: Arc::clone(&counts) }, Asked { questions, counts })
}

impl Asking {
    /// What became of all questions.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Waits until it is known whose `place` is, or cannot be known: then the table says what there is to say.
    pub(crate) async fn ask(&self, place: Destination, tables: &Tables) {
        let (answer, answered) = oneshot::channel();
        let outcome = if !self.counts.is_live() {
            Outcome::Lost
        } else if self.questions.try_send(Question { place, answer }).is_err() {
            Outcome::Limit
        } else if timeout(WITHIN, answered).await.is_err() {
            // Others need not wait, until there is an answer.
            self.counts.lives(false);
            Outcome::Late
        } else if tables.load().at(&place).is_some() {
            Outcome::Found
        } else {
            Outcome::Unknown
        };
        self.counts.count(outcome);
    }
}
