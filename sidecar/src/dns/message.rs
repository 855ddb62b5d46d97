//! Queries and answers as bytes. In: a datagram, or a message of a stream. Out: the question, or why it gets none of
//! the answers; an answer that fits. Never trusts a count that a message tells about itself.

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Record};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// What a datagram may hold without being cut into pieces on its way (the DNS flag day of 2020).
pub(super) const PAYLOAD: u16 = 1232;
/// What a client takes that does not say.
const PAYLOAD_LEAST: u16 = 512;
/// Records besides the question that a query may have: EDNS, a signature.
const EXTRAS_MOST: u16 = 4;

/// A question that can be answered.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// The header.
    pub(super) metadata: Metadata,
    /// The question.
    pub(super) query: Query,
    /// The extension, if the client knows it.
    pub(super) edns: Option<Edns>,
}

/// Why a message gets no answer to its question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// It is none: to answer would serve those who send in the name of others.
    Garbage,
    /// It is a query that nobody could understand.
    Refused(Metadata, ResponseCode),
}

/// What an answer has.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The outcome.
    pub(super) code: ResponseCode,
    /// It is from the table, not from somebody else.
    pub(super) is_ours: bool,
    /// Records of the answer.
    pub(super) answers: Vec<Record>,
    /// Who says so.
    pub(super) authorities: Vec<Record>,
    /// What may be left out.
    pub(super) additionals: Vec<Record>,
}

impl Request {
    /// Reads a query.
    ///
    /// # Errors
    /// If there is nothing to answer in it.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Unanswered> {
        let header = Header::read(&mut BinDecoder::new(bytes)).map_err(|_| Unanswered::Garbage)?;
        let (metadata, counts) = (header.metadata, header.counts);
        if metadata.message_type != MessageType::Query {
            return Err(Unanswered::Garbage);
        }
        if metadata.op_code != OpCode::Query {
            return Err(Unanswered::Refused(metadata, ResponseCode::NotImp));
        }
        let malformed = Unanswered::Refused(metadata, ResponseCode::FormErr);
        let is_plain = counts.queries == 1
            && (counts.answers, counts.authorities) == (0, 0)
            && counts.additionals <= EXTRAS_MOST;
        if !is_plain {
            return Err(malformed);
        }
        let mut message = Message::from_vec(bytes).map_err(|_| malformed)?;
        let query = message.queries.pop().ok_or(malformed)?;
        Ok(Self { metadata, query, edns: message.edns })
    }

    /// The client speaks a later version of the extension.
    pub(super) fn is_beyond_us(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.version() > 0)
    }

    /// The question is of the Internet, as all are but those about servers.
    pub(super) fn is_internet(&self) -> bool {
        self.query.query_class() == DNSClass::IN
    }

    /// The longest datagram that the client takes.
    pub(super) fn payload(&self) -> u16 {
        self.edns.as_ref().map_or(PAYLOAD_LEAST, |edns| edns.max_payload().max(PAYLOAD_LEAST))
    }

    /// The answer in at most `limit` bytes: records that may be left out are, then it is cut short, and says so.
    pub(super) fn answer(&self, contents: Contents, limit: usize) -> Vec<u8> {
        let mut message = Message::new(self.metadata.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = self.metadata.recursion_desired;
        message.metadata.checking_disabled = self.metadata.checking_disabled;
        message.metadata.recursion_available = true;
        message.metadata.authoritative = contents.is_ours;
        message.metadata.response_code = contents.code;
        message.queries.push(self.query.clone());
        message.answers = contents.answers;
        message.authorities = contents.authorities;
        message.additionals = contents.additionals;
        if let Some(asked) = &self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD).set_dnssec_ok(asked.flags().dnssec_ok);
            message.edns = Some(edns);
        }
        fit(message, limit)
    }

    /// The answer that only has an outcome.
    pub(super) fn outcome(&self, code: ResponseCode) -> Vec<u8> {
        self.answer(Contents { code, ..Contents::default() }, usize::from(u16::MAX))
    }
}

/// The answer to a query that could not be read.
pub(super) fn refusal(metadata: Metadata, code: ResponseCode) -> Vec<u8> {
    let mut message = Message::new(metadata.id, MessageType::Response, metadata.op_code);
    message.metadata.recursion_desired = metadata.recursion_desired;
    message.metadata.response_code = code;
    message.to_vec().unwrap_or_default()
}

/// Bytes of the header.
pub(super) const HEADER: usize = 12;

/// The question of a message, its only one, as bytes.
pub(super) fn question(message: &[u8]) -> Option<&[u8]> {
    message.get(HEADER..question_end(message)?)
}

/// Where the question ends; `None` if it is none, or is written with pointers.
pub(super) fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match usize::from(*message.get(at)?) {
            0 => return Some(at + 5),
            length @ 1..=63 => at += 1 + length,
            _ => return None,
        }
    }
}

fn fit(mut message: Message, limit: usize) -> Vec<u8> {
    // Fails for what no message can hold: the same as not fitting.
    let encode = |message: &Message| message.to_vec().ok().filter(|bytes| bytes.len() <= limit);
    if let Some(bytes) = encode(&message) {
        return bytes;
    }
    message.additionals.clear();
    if let Some(bytes) = encode(&message) {
        return bytes;
    }
    message.metadata.truncation = true;
    message.authorities.clear();
    loop {
        if let Some(bytes) = encode(&message) {
            return bytes;
        }
        let kept = message.answers.len() * 3 / 4;
        if message.answers.is_empty() {
            return refusal(message.metadata, ResponseCode::ServFail);
        }
        message.answers.truncate(kept);
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, RecordType};

    use super::*;

    fn query(edns: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        let name = Name::from_ascii("Web.shop.svc.cluster.local.").unwrap();
        message.queries.push(Query::query(name, RecordType::A));
        message.edns = edns.map(|payload| {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            edns
        });
        message.to_vec().unwrap()
    }

    fn contents(records: u8) -> Contents {
        let name = Name::from_ascii("Web.shop.svc.cluster.local.").unwrap();
        let record = |i| Record::from_rdata(name.clone(), 5, RData::A(A([10, 0, 0, i].into())));
        Contents { answers: (0..records).map(record).collect(), is_ours: true, ..Contents::default() }
    }

    #[test]
    fn an_answer_has_the_question_as_it_was_written_and_the_extension_only_for_who_has_it() {
        for edns in [None, Some(4096)] {
            let request = Request::read(&query(edns)).unwrap();
            let answer = Message::from_vec(&request.answer(contents(2), 512)).unwrap();
            assert_eq!(answer.queries[0].name().to_string(), "Web.shop.svc.cluster.local.");
            assert_eq!((answer.metadata.id, answer.answers.len()), (7, 2));
            assert!(answer.metadata.recursion_desired && answer.metadata.authoritative);
            assert_eq!(answer.edns.map(|edns| edns.max_payload()), edns.map(|_| PAYLOAD));
        }
    }

    #[test]
    fn what_does_not_fit_is_cut_and_says_so_with_as_many_records_as_there_is_room_for() {
        let request = Request::read(&query(Some(512))).unwrap();
        let bytes = request.answer(contents(200), 512);
        let answer = Message::from_vec(&bytes).unwrap();
        assert!(answer.metadata.truncation && bytes.len() <= 512);
        assert!(answer.answers.len() >= 20 && answer.edns.is_some(), "{}", answer.answers.len());
        let whole = request.answer(contents(200), 65_535);
        assert!(!Message::from_vec(&whole).unwrap().metadata.truncation);
    }

    #[test]
    fn what_is_no_query_gets_no_answer_or_one_without_records() {
        let good = query(Some(1232));
        assert_eq!(Request::read(&good[..7]).unwrap_err(), Unanswered::Garbage);
        let mut response = good.clone();
        response[2] |= 0x80;
        assert_eq!(Request::read(&response).unwrap_err(), Unanswered::Garbage);
        let code = |bytes: &[u8]| match Request::read(bytes).unwrap_err() {
            Unanswered::Refused(metadata, code) => {
                assert_eq!(Message::from_vec(&refusal(metadata, code)).unwrap().metadata.id, 7);
                code
            }
            Unanswered::Garbage => panic!("it has a header"),
        };
        let mut update = good.clone();
        update[2] = 5 << 3;
        assert_eq!(code(&update), ResponseCode::NotImp);
        // It says that it has 65,535 questions: nobody makes room for them.
        let mut many = good.clone();
        many[4..6].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(code(&many), ResponseCode::FormErr);
        assert_eq!(code(&good[..20]), ResponseCode::FormErr);
    }

    #[test]
    fn no_bytes_at_all_make_it_fail() {
        let good = query(Some(1232));
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let (mut read, mut refused) = (0, 0);
        for round in 0..200_000_u64 {
            let mut bytes = good.clone();
            let length = next() as usize % (bytes.len() + 1);
            if round % 3 == 0 {
                bytes.truncate(length);
            }
            for _ in 0..next() % 8 {
                let at = next() as usize % good.len();
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = next() as u8;
                }
            }
            match Request::read(&bytes) {
                Ok(request) => {
                    read += 1;
                    assert!(request.answer(contents(3), 512).len() <= 512);
                }
                Err(Unanswered::Refused(metadata, code)) => {
                    refused += 1;
                    assert!(refusal(metadata, code).len() <= 512);
                }
                Err(Unanswered::Garbage) => {}
            }
        }
        assert!(read > 1_000 && refused > 1_000, "{read} read, {refused} refused");
    }
}
