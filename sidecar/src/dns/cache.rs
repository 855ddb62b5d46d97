//! Answers of others, kept as bytes for as long as they may be. In: a question, an answer, the time. Out: the answer
//! once more, with the time that is left. Never holds more than its share of memory, whoever asks what.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::message::{HEADER, Request, question, question_end};

/// Nothing is kept for longer, so that a Service that comes is not denied for longer.
const KEPT_MOST: u32 = 30;
/// Bytes that all answers together may have.
const BYTES: usize = 4 * 1024 * 1024;
/// A longer answer is not worth its place.
const BYTES_EACH: usize = 4096;
/// What an answer costs beside its bytes.
const OVERHEAD: usize = 200;
/// What is kept.
#[derive(Debug, Default)]
pub(super) struct Cache {
    answers: HashMap<Key, Kept>,
    /// Each key with the moment of its answer, the oldest first: that is the order in which they go.
    order: VecDeque<(Key, Instant)>,
    bytes: usize,
}

/// A question, and how it was put: another way may be answered in another way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(Box<[u8]>);

#[derive(Debug)]
struct Kept {
    at: Instant,
    lasts: Duration,
    answer: Box<[u8]>,
    /// Where the answer has its times.
    times: Box<[u16]>,
}

impl Key {
    /// The key of `request`, which was read from `bytes`; `None` if its answer is for one client only.
    pub(super) fn of(request: &Request, bytes: &[u8]) -> Option<Self> {
        let (mut flags, metadata) = (0, request.metadata);
        let wishes = [metadata.recursion_desired, metadata.checking_disabled, metadata.authentic_data];
        if let Some(edns) = &request.edns {
            if !edns.options().as_ref().is_empty() {
                return None;
            }
            flags |= 8 | u8::from(edns.flags().dnssec_ok) << 4;
        }
        for (bit, wish) in wishes.into_iter().enumerate() {
            flags |= u8::from(wish) << bit;
        }
        let mut key = question(bytes)?.to_ascii_lowercase();
        key.push(flags);
        Some(Self(key.into()))
    }
}

impl Cache {
    /// The answer to `request`, which was read from `bytes`, if it is known at `now`.
    pub(super) fn get(&self, key: &Key, request: &Request, bytes: &[u8], now: Instant) -> Option<Vec<u8>> {
        let kept = self.answers.get(key)?;
        let age = now.saturating_duration_since(kept.at);
        if age >= kept.lasts || kept.answer.len() > usize::from(request.payload()) {
            return None;
        }
        let mut answer = kept.answer.to_vec();
        answer[..2].copy_from_slice(bytes.get(..2)?);
        // The question as this client wrote it, in whatever letters.
        let end = question_end(bytes)?;
        answer.get_mut(HEADER..end)?.copy_from_slice(bytes.get(HEADER..end)?);
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for at in &kept.times {
            let at = usize::from(*at);
            let time = answer.get_mut(at..at + 4)?;
            let left = u32::from_be_bytes([time[0], time[1], time[2], time[3]]).saturating_sub(age);
            time.copy_from_slice(&left.to_be_bytes());
        }
        Some(answer)
    }

    /// Keeps `answer`, received at `now`, if it may be kept.
    pub(super) fn put(&mut self, key: Key, answer: &[u8], now: Instant) {
        let Some((seconds, times)) = lasting(answer).filter(|_| answer.len() <= BYTES_EACH) else { return };
        let lasts = Duration::from_secs(seconds.min(KEPT_MOST).into());
        let kept = Kept { at: now, lasts, answer: answer.into(), times: times.into() };
        self.bytes += weight(&key, answer.len());
        self.order.push_back((key.clone(), now));
        if let Some(old) = self.answers.insert(key.clone(), kept) {
            self.bytes = self.bytes.saturating_sub(weight(&key, old.answer.len()));
        }
        while self.bytes > BYTES || self.order.front().is_some_and(|(_, at)| is_old(*at, now)) {
            let Some((key, at)) = self.order.pop_front() else { return };
            // A later answer to the same question has its own place in the order.
            if self.answers.get(&key).is_some_and(|kept| kept.at == at)
                && let Some(old) = self.answers.remove(&key)
            {
                self.bytes = self.bytes.saturating_sub(weight(&key, old.answer.len()));
            }
        }
    }
}

fn is_old(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) >= Duration::from_secs(KEPT_MOST.into())
}

/// The key is there twice.
fn weight(key: &Key, answer: usize) -> usize {
    OVERHEAD + 2 * key.0.len() + answer
}

/// For how many seconds `answer` may be kept, and where it has its times; `None` if it may not be, or is malformed.
fn lasting(answer: &[u8]) -> Option<(u32, Vec<u16>)> {
    let word = |at: usize| Some(u16::from_be_bytes([*answer.get(at)?, *answer.get(at + 1)?]));
    let (is_cut, code) = (answer.get(2)? & 0x02 != 0, *answer.get(3)? & 0x0f);
    let is_kept = [ResponseCode::NoError.low(), ResponseCode::NXDomain.low()].contains(&code);
    if is_cut || !is_kept || word(4)? != 1 {
        return None;
    }
    let (answers, authorities, additionals) = (word(6)?, word(8)?, word(10)?);
    let is_negative = code != ResponseCode::NoError.low() || answers == 0;
    let mut at = question_end(answer)?;
    let (mut seconds, mut times, mut has_authority) = (u32::MAX, Vec::new(), false);
    for number in 0..u32::from(answers) + u32::from(authorities) + u32::from(additionals) {
        at = name_end(answer, at)?;
        let (kind, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = answer.get(at + 10..at + 10 + length)?;
        if kind == u16::from(RecordType::OPT) {
            // Options are meant for whoever asked.
            if length > 0 {
                return None;
            }
        } else {
            let time = answer.get(at + 4..at + 8)?;
            seconds = seconds.min(u32::from_be_bytes([time[0], time[1], time[2], time[3]]));
            times.push(u16::try_from(at + 4).ok()?);
        }
        let is_authority =
            number >= u32::from(answers) && number < u32::from(answers) + u32::from(authorities);
        if is_authority && kind == u16::from(RecordType::SOA) {
            let minimum = data.last_chunk::<4>()?;
            seconds = seconds.min(u32::from_be_bytes(*minimum));
            has_authority = true;
        }
        at += 10 + length;
    }
    let is_known = !is_negative || has_authority;
    (is_known && at == answer.len() && seconds > 0 && !times.is_empty()).then_some((seconds, times))
}

fn name_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, RData, Record};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn query(text: &str, id: u16) -> (Request, Vec<u8>) {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.queries.push(Query::query(name(text), RecordType::A));
        let bytes = message.to_vec().unwrap();
        (Request::read(&bytes).unwrap(), bytes)
    }

    fn response(text: &str, code: ResponseCode, ttls: &[u32], authority: Option<(u32, u32)>) -> Vec<u8> {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.queries.push(Query::query(name(text), RecordType::A));
        for ttl in ttls {
            message.answers.push(Record::from_rdata(name(text), *ttl, RData::A(A([1, 2, 3, 4].into()))));
        }
        if let Some((ttl, minimum)) = authority {
            let soa = SOA::new(name("ns.example."), name("root.example."), 1, 2, 3, 4, minimum);
            message.authorities.push(Record::from_rdata(name("example."), ttl, RData::SOA(soa)));
        }
        message.edns = Some(Edns::new());
        message.to_vec().unwrap()
    }

    fn kept(answer: &[u8], after: u64) -> Option<Message> {
        let (request, bytes) = query("WWW.example.", 77);
        let (mut cache, now) = (Cache::default(), Instant::now());
        let key = Key::of(&request, &bytes).unwrap();
        cache.put(key.clone(), answer, now);
        let answer = cache.get(&key, &request, &bytes, now + Duration::from_secs(after))?;
        Some(Message::from_vec(&answer).unwrap())
    }

    #[test]
    fn an_answer_comes_again_to_whoever_asks_the_same_with_the_time_that_is_left() {
        let answer = response("www.example.", ResponseCode::NoError, &[20, 60], None);
        let again = kept(&answer, 15).unwrap();
        assert_eq!(again.metadata.id, 77);
        assert_eq!(again.queries[0].name().to_string(), "WWW.example.");
        assert_eq!(again.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [5, 45]);
        assert!(kept(&answer, 20).is_none(), "the shortest time rules");
        let long = response("www.example.", ResponseCode::NoError, &[86_400], None);
        assert!(kept(&long, 29).is_some() && kept(&long, 30).is_none());
    }

    #[test]
    fn that_there_is_none_is_kept_as_long_as_the_zone_says_and_a_failure_never() {
        let none = |authority| response("www.example.", ResponseCode::NXDomain, &[], authority);
        assert!(
            kept(&none(Some((60, 7))), 6).is_some_and(|m| m.metadata.response_code == ResponseCode::NXDomain)
        );
        assert!(kept(&none(Some((60, 7))), 7).is_none());
        assert!(kept(&none(None), 0).is_none());
        assert!(kept(&response("www.example.", ResponseCode::NoError, &[], Some((9, 9))), 8).is_some());
        assert!(kept(&response("www.example.", ResponseCode::NoError, &[], None), 0).is_none());
        assert!(kept(&response("www.example.", ResponseCode::ServFail, &[9], None), 0).is_none());
        assert!(kept(&response("www.example.", ResponseCode::NoError, &[0], None), 0).is_none());
    }

    #[test]
    fn who_asks_in_another_way_or_with_options_of_his_own_is_not_given_it() {
        let (plain, bytes) = query("www.example.", 1);
        let key = Key::of(&plain, &bytes).unwrap();
        let mut recursive = plain.clone();
        recursive.metadata.recursion_desired = true;
        assert_ne!(Key::of(&recursive, &bytes).unwrap(), key);
        let mut extended = plain.clone();
        extended.edns = Some(Edns::new());
        assert_ne!(Key::of(&extended, &bytes).unwrap(), key);
        assert_ne!(Key::of(&query("ww.example.", 1).0, &query("ww.example.", 1).1).unwrap(), key);
    }

    #[test]
    fn it_is_bounded_whatever_is_asked() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for i in 0..50_000 {
            let text = format!("{}-{i}.example.", "x".repeat(50));
            let (request, bytes) = query(&text, 1);
            let answer = response(&text, ResponseCode::NoError, &[30; 4], None);
            cache.put(Key::of(&request, &bytes).unwrap(), &answer, now);
            assert!(cache.bytes <= BYTES);
        }
        assert!((1_000..50_000).contains(&cache.answers.len()), "{}", cache.answers.len());
        assert_eq!(cache.answers.len(), cache.order.len());
        let (request, bytes) = query("late.example.", 1);
        let late = now + Duration::from_secs(31);
        let answer = response("late.example.", ResponseCode::NoError, &[30], None);
        let key = Key::of(&request, &bytes).unwrap();
        cache.put(key.clone(), &answer, late);
        cache.put(key, &answer, late);
        assert_eq!(cache.answers.len(), 1, "what is too old goes");
        let expected: usize = cache.answers.iter().map(|(key, kept)| weight(key, kept.answer.len())).sum();
        assert_eq!(cache.bytes, expected);
    }

    #[test]
    fn half_an_answer_is_not_kept() {
        let whole = response("www.example.", ResponseCode::NoError, &[20, 60], Some((60, 7)));
        assert!(lasting(&whole).is_some());
        for length in 0..whole.len() {
            assert!(lasting(&whole[..length]).is_none(), "{length} bytes");
        }
    }
}
