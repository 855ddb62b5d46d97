//! Another Remora as a source. In: where its feed is, and what of it is wanted, which may change. Out: events, as of any
//! source. Never lets go of what was good: a server that is gone, starts again or sends what is no frame leaves
//! everything as it was, until a snapshot is complete.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::call::{Call, Failure};
use super::{Address, Decoder, Error, Request, SILENCE};
use crate::store::{Event, Loss, Stream};
use crate::watch::Events;

/// The pause after a first failure; doubled with each further one, and always jittered.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// How often it is looked whether there is a new token. A kubelet renews one long before it expires.
const TOKEN_EVERY: Duration = Duration::from_secs(60);
/// How fine jitter is.
const DRAWS: u32 = 1 << 10;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(if error == Error::Gap { Loss::Expired } else { Loss::Malformed }, error)
    }
}

/// Follows what `requests` ask for of the feed at `address`, for ever. `streams` cover whatever that is.
pub(crate) async fn follow(
    address: Address,
    streams: Vec<Stream>,
    mut requests: watch::Receiver<Request>,
    events: Events,
) {
    let (random, mut failures, mut told) = (RandomState::new(), 0_u32, None);
    loop {
        let mut following = Following {
            address: &address,
            streams: &streams,
            events: &events,
            is_read: false,
            told: &mut told,
        };
        let failure = match following.read(&mut requests).await {
            // Nothing is lost meanwhile.
            Ok(Renewed) => continue,
            Err(failure) => failure,
        };
        failures = if following.is_read { 0 } else { failures };
        let (server, error, reason) = (&address, &failure.message, failure.loss.label());
        if told.replace(failure.loss) == Some(failure.loss) {
            debug!(%server, error, "still broken");
        } else {
            warn!(%server, error, reason, "the feed is lost, what is known serves on; trying on");
        }
        for stream in &streams {
            events.send(Event::Lost(stream.clone(), failure.loss)).await;
        }
        let longest = PAUSE.saturating_mul(1 << failures.min(16)).min(PAUSE_LONGEST);
        let draw = (random.hash_one((failures, Instant::now())) % u64::from(DRAWS)) as u32;
        failures = failures.saturating_add(1);
        sleep(longest / 2 + longest / 2 * draw / DRAWS).await;
    }
}

/// There is a new token, by which the feed is to be asked for again.
struct Renewed;

/// One stream.
struct Following<'a> {
    address: &'a Address,
    streams: &'a [Stream],
    events: &'a Events,
    /// A transaction was complete.
    is_read: bool,
    /// Why the stream before this one was lost, if that has been said.
    told: &'a mut Option<Loss>,
}

impl Following<'_> {
    /// Reads it to its end, which is a failure.
    async fn read(&mut self, requests: &mut watch::Receiver<Request>) -> Result<Renewed, Failure> {
        let token = token(self.address)?;
        let request = requests.borrow_and_update().clone();
        let mut call = Call::open(self.address, &request, token.as_deref()).await?;
        let mut looked = Instant::now();
        let mut answers = Answers { wanted: request.number, ..Answers::default() };
        if call.is_deaf() {
            answers.whole = Whole::Asked;
        }
        let mut decoder = Decoder::new(self.streams.to_vec());
        let mut may_change = true;
        loop {
            let more = tokio::select! {
                more = timeout(SILENCE, call.more()) => more,
                changed = requests.changed(), if may_change => {
                    may_change = changed.is_ok();
                    let request = requests.borrow_and_update().clone();
                    if may_change && answers.asks(request.number) {
                        call.say(&request).await?;
                    }
                    self.answer(&mut answers).await;
                    continue;
                }
            };
            let silent = |_| Failure::new(Loss::Silent, format!("nothing heard for {} s", SILENCE.as_secs()));
            more.map_err(silent)??;
            if token.is_some() && looked.elapsed() >= TOKEN_EVERY {
                looked = Instant::now();
                // One that cannot be read is half written; the old one is good for a while.
                if self::token(self.address).is_ok_and(|new| new != token) {
                    return Ok(Renewed);
                }
            }
            while let Some(frame) = call.frame()? {
                self.frame(frame, &mut decoder, &mut answers).await?;
            }
        }
    }

    async fn frame(
        &mut self,
        frame: &[u8],
        decoder: &mut Decoder,
        answers: &mut Answers,
    ) -> Result<(), Failure> {
        let mut batch = Vec::new();
        let progress = decoder.frame(frame, &mut |event| batch.push(event));
        for event in batch {
            self.events.send(event).await;
        }
        let progress = progress?;
        answers.read(progress.answers, progress.complete);
        if progress.complete {
            self.answer(answers).await;
        }
        if progress.complete && !self.is_read {
            self.is_read = true;
            match self.told.take() {
                None => info!(server = %self.address, "following a feed"),
                Some(_) => info!(server = %self.address, "the feed is there again"),
            }
        }
        // Nothing is in step while a snapshot is on its way.
        let at = progress.age.filter(|_| self.is_read).and_then(|age| Instant::now().checked_sub(age));
        for stream in self.streams.iter().filter(|_| at.is_some()) {
            self.events.send_at(at.unwrap_or_else(Instant::now), Event::InStep(stream.clone())).await;
        }
        Ok(())
    }

    /// Tells which request has been answered, if one has.
    async fn answer(&self, answers: &mut Answers) {
        if let Some(number) = answers.given.take() {
            self.events.send(Event::Answers(number)).await;
        }
    }
}

/// Which requests of a stream have been answered.
///
/// ```text
/// a server that hears requests:   asked ──number──▶ begun ──complete──▶ given
/// one that tells everything:      asked ──complete──▶ given, like all to come
/// ```
#[derive(Debug, Default)]
struct Answers {
    /// The number of the last request; 0 if nobody wants to know.
    wanted: u64,
    /// The answer to this one has begun.
    begun: Option<u64>,
    /// It is complete, and that has not been told yet.
    given: Option<u64>,
    whole: Whole,
}

/// Whether everything is read, from a server that hears no requests.
#[derive(Debug, Default, PartialEq, Eq)]
enum Whole {
    #[default]
    No,
    Asked,
    Read,
}

impl Answers {
    /// There is a request of this `number`; whether the server is to hear it.
    fn asks(&mut self, number: u64) -> bool {
        self.wanted = number;
        if self.whole == Whole::Read {
            self.given = Some(number);
        }
        self.whole == Whole::No
    }

    /// A frame says that the answer to `begins` begins, or that a transaction is `complete`.
    fn read(&mut self, begins: Option<u64>, complete: bool) {
        self.begun = begins.or(self.begun);
        if !complete || self.wanted == 0 {
            return;
        }
        match self.whole {
            Whole::No => self.given = self.begun.take().or(self.given),
            Whole::Asked => {
                self.whole = Whole::Read;
                self.given = Some(self.wanted);
            }
            Whole::Read => {}
        }
    }
}

/// The token that is shown at this address.
fn token(address: &Address) -> Result<Option<String>, Failure> {
    match address {
        Address::Tls { trust, .. } => trust.token().map_err(|why| Failure::new(Loss::Unauthorized, why)),
        Address::Tcp(_) | Address::Unix(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_given_when_it_is_complete() {
        let mut answers = Answers { wanted: 3, ..Answers::default() };
        answers.read(Some(3), false);
        assert_eq!(answers.given, None);
        answers.read(None, true);
        assert_eq!(answers.given.take(), Some(3));
        answers.read(None, true);
        assert_eq!(answers.given, None, "only a change");
        assert!(answers.asks(4));
    }

    #[test]
    fn a_server_that_tells_everything_has_answered_whatever_is_asked() {
        let mut answers = Answers { wanted: 3, whole: Whole::Asked, ..Answers::default() };
        assert!(!answers.asks(4));
        assert_eq!(answers.given, None);
        answers.read(None, true);
        assert_eq!(answers.given.take(), Some(4));
        assert!(!answers.asks(5));
        assert_eq!(answers.given, Some(5), "it has all there is");
    }

    #[test]
    fn who_wants_no_numbers_hears_none() {
        let mut answers = Answers::default();
        answers.read(None, true);
        assert_eq!(answers.given, None);
    }
}
