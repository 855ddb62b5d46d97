//! The addresses behind an external name. In: a name. Out: its addresses in both families, and for how long they hold.
//! Asks whom `--dns-forward` or this machine's `/etc/resolv.conf` names, and takes the name as it is written: search
//! lists are for people who type. Keeps nothing; who asks knows when to ask again.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use super::counts::Counts;
use super::forward::{Forward, Over};
use super::message::PAYLOAD;
use super::{RESOLV_CONF, resolv};

/// Addresses of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Ascending, IPv4 first; at least one.
    pub ips: Vec<IpAddr>,
    /// The shortest time to live among them.
    pub lasts: Duration,
}

/// Why a name has no addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// DNS says that there is no such name.
    #[error("does not exist in DNS; correct spec.externalName")]
    NoName,
    /// The name exists, without any address.
    #[error("has no address in DNS; correct spec.externalName, or give the name an A or AAAA record")]
    NoAddress,
    /// No server could say.
    #[error("cannot be resolved: {0}; check the servers of {RESOLV_CONF} or of --dns-forward")]
    Failed(String),
}

impl Unresolved {
    /// It was answered, and the answer is that there is nothing.
    pub fn is_answer(&self) -> bool {
        !matches!(self, Self::Failed(_))
    }
}

/// How lookups ended, counted.
#[derive(Debug, Default)]
pub struct Lookups([AtomicU64; Lookups::ALL.len()]);

impl Lookups {
    /// Every outcome, as a stable word that is also the metric label.
    pub const ALL: [&str; 3] = ["found", "none", "failed"];

    /// How many ended how.
    pub fn by_outcome(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Self::ALL.into_iter().zip(&self.0).map(|(outcome, count)| (outcome, count.load(Relaxed)))
    }

    fn count(&self, outcome: &Result<Resolved, Unresolved>) {
        let at = match outcome {
            Ok(_) => 0,
            Err(why) if why.is_answer() => 1,
            Err(_) => 2,
        };
        self.0[at].fetch_add(1, Relaxed);
    }
}

/// What asks. Owning one means to know the servers.
#[derive(Debug)]
pub struct Resolver {
    forward: Forward,
    is_alone: bool,
    lookups: Lookups,
    /// Of the servers; those of `--dns` are counted by themselves.
    counts: Counts,
}

impl Resolver {
    /// Asks `servers`; if there are none, those that this machine asks.
    pub fn new(servers: &[SocketAddr]) -> Self {
        let mut servers = servers.to_vec();
        if servers.is_empty() {
            servers = resolv::servers(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default());
        }
        Self {
            is_alone: servers.is_empty(),
            forward: Forward::new(servers),
            lookups: Lookups::default(),
            counts: Counts::default(),
        }
    }

    /// How lookups ended so far.
    pub fn lookups(&self) -> &Lookups {
        &self.lookups
    }

    /// The addresses of `name`.
    ///
    /// # Errors
    /// If it has none, or nobody can tell.
    pub async fn resolve(&self, name: &Name) -> Result<Resolved, Unresolved> {
        let outcome = if self.is_alone {
            Err(Unresolved::Failed("there is no server to ask".to_owned()))
        } else {
            let of = |kind| self.ask(name, kind);
            let (v4, v6) = tokio::join!(of(RecordType::A), of(RecordType::AAAA));
            both(v4, v6)
        };
        self.lookups.count(&outcome);
        outcome
    }

    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Resolved, Unresolved> {
        let failed = |why: &dyn std::fmt::Display| Unresolved::Failed(why.to_string());
        let mut question = Message::new(0, MessageType::Query, OpCode::Query);
        question.metadata.recursion_desired = true;
        question.queries.push(Query::query(name.clone(), kind));
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        question.edns = Some(edns);
        let question = question.to_vec().map_err(|error| failed(&error))?;
        for over in [Over::Udp, Over::Tcp] {
            let answer = self.forward.ask(&question, over, &self.counts).await;
            let answer =
                answer.map_err(|why| failed(&format_args!("no server answers ({})", why.label())))?;
            let answer = Message::from_vec(&answer).map_err(|error| failed(&error))?;
            if !answer.metadata.truncation {
                return read(&answer, kind);
            }
        }
        Err(failed(&"its answer is too long"))
    }
}

/// What `answer` says about addresses of `kind`, those behind aliases too: who was asked has followed them.
fn read(answer: &Message, kind: RecordType) -> Result<Resolved, Unresolved> {
    match answer.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Err(Unresolved::NoName),
        other => return Err(Unresolved::Failed(format!("the servers answer {other}"))),
    }
    let (mut ips, mut seconds) = (BTreeSet::new(), u32::MAX);
    for record in &answer.answers {
        seconds = seconds.min(record.ttl);
        let ip = match &record.data {
            RData::A(ip) if kind == RecordType::A => IpAddr::V4(ip.0),
            RData::AAAA(ip) if kind == RecordType::AAAA => IpAddr::V6(ip.0),
            _ => continue,
        };
        if !ip.is_unspecified() && !ip.is_multicast() {
            ips.insert(ip);
        }
    }
    if ips.is_empty() {
        return Err(Unresolved::NoAddress);
    }
    Ok(Resolved { ips: ips.into_iter().collect(), lasts: Duration::from_secs(seconds.into()) })
}

/// What two families say together: what one has is good, and only if neither has anything the reason counts.
fn both(v4: Result<Resolved, Unresolved>, v6: Result<Resolved, Unresolved>) -> Result<Resolved, Unresolved> {
    match (v4, v6) {
        (Ok(v4), Ok(v6)) => Ok(Resolved { ips: [v4.ips, v6.ips].concat(), lasts: v4.lasts.min(v6.lasts) }),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
        // That one family has nothing says nothing of the other.
        (Err(a), Err(b)) if a.is_answer() => Err(b),
        (Err(a), Err(_)) => Err(a),
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, AAAA, CNAME};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn answer(code: ResponseCode, records: &[(u32, RData)]) -> Message {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        for (ttl, data) in records {
            message.answers.push(Record::from_rdata(name("db.example."), *ttl, data.clone()));
        }
        message
    }

    #[test]
    fn addresses_behind_aliases_are_taken_for_the_shortest_time_of_all() {
        let alias = RData::CNAME(CNAME(name("real.example.")));
        let records = [
            (7, alias),
            (60, RData::A(A([192, 0, 2, 2].into()))),
            (60, RData::A(A([192, 0, 2, 1].into()))),
            (60, RData::A(A([0, 0, 0, 0].into()))),
        ];
        let found = read(&answer(ResponseCode::NoError, &records), RecordType::A).unwrap();
        assert_eq!(found.ips, [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])]);
        assert_eq!(found.lasts, Duration::from_secs(7));
        let other = read(&answer(ResponseCode::NoError, &records), RecordType::AAAA);
        assert_eq!(other, Err(Unresolved::NoAddress));
        let none = read(&answer(ResponseCode::NXDomain, &[]), RecordType::A);
        assert_eq!(none, Err(Unresolved::NoName));
        let failed = read(&answer(ResponseCode::ServFail, &[]), RecordType::A).unwrap_err();
        assert!(!failed.is_answer());
    }

    #[test]
    fn one_family_is_enough_and_a_failure_is_not_taken_for_an_answer() {
        let one = |ip: IpAddr, seconds| Ok(Resolved { ips: vec![ip], lasts: Duration::from_secs(seconds) });
        let (v4, v6) =
            (|| one([192, 0, 2, 1].into(), 9), || one(AAAA(std::net::Ipv6Addr::LOCALHOST).0.into(), 5));
        let together = both(v4(), v6()).unwrap();
        assert_eq!((together.ips.len(), together.lasts), (2, Duration::from_secs(5)));
        let failed = || Err(Unresolved::Failed("timeout".to_owned()));
        assert_eq!(both(v4(), failed()), v4());
        assert_eq!(both(Err(Unresolved::NoAddress), v6()), v6());
        assert_eq!(both(Err(Unresolved::NoAddress), failed()), failed());
        assert_eq!(both(failed(), Err(Unresolved::NoName)), failed());
        assert_eq!(both(Err(Unresolved::NoAddress), Err(Unresolved::NoName)), Err(Unresolved::NoName));
    }
}
