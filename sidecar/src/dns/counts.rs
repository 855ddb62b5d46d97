//! What the DNS did, counted. Only ever grows; read by the metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hickory_proto::op::ResponseCode;

use super::answer::Wrong;

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The table.
    Table,
    /// Another server, at this moment.
    Forward,
    /// Another server, a while ago.
    Cache,
    /// Nobody: the query was malformed, or nobody could be asked.
    Nobody,
}

impl From {
    /// Every place.
    pub const ALL: [Self; 4] = [Self::Table, Self::Forward, Self::Cache, Self::Nobody];

    /// A stable word, also the metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Forward => "forward",
            Self::Cache => "cache",
            Self::Nobody => "nobody",
        }
    }
}

/// Why another server gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It did not answer in time.
    Timeout,
    /// It cannot be reached.
    Unreachable,
    /// There were as many questions under way as may be.
    Limit,
}

impl Failure {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Timeout, Self::Unreachable, Self::Limit];

    /// A stable word, also the metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Limit => "limit",
        }
    }
}

/// The outcomes that are told apart, as DNS writes them.
const CODES: [(ResponseCode, &str); 6] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::NotImp, "NOTIMP"),
    (ResponseCode::Refused, "REFUSED"),
];

/// The running counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// By [`From`] and [`CODES`], the last for all others.
    answers: [[AtomicU64; CODES.len() + 1]; From::ALL.len()],
    dropped: AtomicU64,
    failures: [AtomicU64; Failure::ALL.len()],
    wrong: [AtomicU64; Wrong::ALL.len()],
}

impl Counts {
    /// Answers by where they came from and outcome.
    pub fn answers(&self) -> impl Iterator<Item = (From, &'static str, u64)> + '_ {
        let names = || CODES.iter().map(|(_, name)| *name).chain(["OTHER"]);
        From::ALL.into_iter().flat_map(move |from| {
            let counts = &self.answers[from as usize];
            names().zip(counts).map(move |(name, count)| (from, name, count.load(Relaxed)))
        })
    }

    /// Messages that got no answer.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Failures of other servers, by reason.
    pub fn failures(&self) -> impl Iterator<Item = (Failure, u64)> + '_ {
        Failure::ALL.into_iter().map(|why| (why, self.failures[why as usize].load(Relaxed)))
    }

    /// External names that led nowhere, by reason.
    pub fn wrong(&self) -> impl Iterator<Item = (Wrong, u64)> + '_ {
        Wrong::ALL.into_iter().map(|why| (why, self.wrong[why as usize].load(Relaxed)))
    }

    pub(super) fn answer(&self, from: From, code: ResponseCode) {
        let at = CODES.iter().position(|(known, _)| *known == code).unwrap_or(CODES.len());
        self.answers[from as usize][at].fetch_add(1, Relaxed);
    }

    pub(super) fn drop_one(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    pub(super) fn fail(&self, why: Failure) {
        self.failures[why as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn wrong_name(&self, why: Wrong) {
        self.wrong[why as usize].fetch_add(1, Relaxed);
    }
}
