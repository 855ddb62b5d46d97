//! The stream to the feed as a state: who opened it, when it is to be opened again. In: what happens to it, and the
//! time. Out: what is due. Never calls Envoy.
//!
//! ```text
//!             due: open                     heard
//!   Waiting ─────────────▶ Open ◀────────────────┐
//!      ▲                    │ ───────────────────┘
//!      └── lost, or silent ─┘
//! ```

use selection::Millis;

/// How long the first wait is at most.
const FIRST: Millis = 200;
/// How long a wait is at most: many Envoys come back to one server.
const LONGEST: Millis = 10_000;

/// The stream of one VM.
#[derive(Debug)]
pub struct Link {
    state: State,
    /// Streams lost since one was of use.
    lost: u32,
    /// What the server was told last is what is wanted no longer.
    is_stale: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting { until: Millis },
    Open { token: u32, owner: u32, heard: Millis, was_of_use: bool },
}

impl Default for Link {
    /// To be opened at once.
    fn default() -> Self {
        Self { state: State::Waiting { until: 0 }, lost: 0, is_stale: false }
    }
}

impl Link {
    /// It is time to open a stream.
    pub fn is_due(&self, now: Millis) -> bool {
        matches!(self.state, State::Waiting { until } if until <= now)
    }

    /// A stream was opened by this root context, which gets its messages, and what is wanted was sent.
    pub fn opened(&mut self, token: u32, owner: u32, now: Millis) {
        self.state = State::Open { token, owner, heard: now, was_of_use: false };
        self.is_stale = false;
    }

    /// The stream that this root context has open.
    pub fn token_of(&self, root: u32) -> Option<u32> {
        match self.state {
            State::Open { token, owner, .. } if owner == root => Some(token),
            _ => None,
        }
    }

    /// A message came; whether it is of the stream that is open.
    pub fn heard(&mut self, from: u32, now: Millis) -> bool {
        match &mut self.state {
            State::Open { token, heard, .. } if *token == from => {
                *heard = now;
                true
            }
            _ => false,
        }
    }

    /// What came was of use.
    pub fn settled(&mut self) {
        self.lost = 0;
        if let State::Open { was_of_use, .. } = &mut self.state {
            *was_of_use = true;
        }
    }

    /// What came on the stream that is open was of use: whoever serves it has taken what this Envoy shows.
    pub fn was_of_use(&self) -> bool {
        matches!(self.state, State::Open { was_of_use: true, .. })
    }

    /// Nothing came for longer than a server that lives lets pass.
    pub fn is_silent(&self, now: Millis) -> bool {
        let silence = watcher::feed::SILENCE.as_millis() as Millis;
        matches!(self.state, State::Open { heard, .. } if now.saturating_sub(heard) > silence)
    }

    /// The stream ended, or could not be opened: the next one comes after a while, longer each time, at a moment that
    /// `chance` decides. Returns the while.
    pub fn lost(&mut self, now: Millis, chance: u64) -> Millis {
        let most = (FIRST << self.lost.min(16)).min(LONGEST);
        let wait = most / 2 + chance % (most / 2 + 1);
        self.lost = self.lost.saturating_add(1);
        self.state = State::Waiting { until: now.saturating_add(wait) };
        wait
    }

    /// The root context is gone, and its stream with it.
    pub fn gone(&mut self, root: u32) {
        if self.token_of(root).is_some() {
            self.state = State::Waiting { until: 0 };
        }
    }

    /// What is wanted has changed.
    pub fn wants_more(&mut self) {
        self.is_stale = true;
    }

    /// Whether the server is to be told anew what is wanted; asks once.
    pub fn take_stale(&mut self) -> bool {
        std::mem::take(&mut self.is_stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_ten_seconds_and_begin_anew_once_a_stream_was_of_use() {
        let mut link = Link::default();
        assert!(link.is_due(0));
        for most in [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
            let wait = link.lost(1_000, most / 3);
            assert!((most / 2..=most).contains(&wait), "{wait} of {most}");
            assert!(!link.is_due(1_000 + wait - 1) && link.is_due(1_000 + wait));
        }
        link.opened(7, 1, 0);
        link.settled();
        assert!(link.lost(0, u64::MAX) <= 200);
    }

    #[test]
    fn only_messages_of_the_open_stream_count() {
        let mut link = Link::default();
        assert!(!link.heard(7, 0));
        link.opened(7, 1, 0);
        assert!(!link.is_due(u64::MAX) && link.heard(7, 19_000) && !link.heard(8, 0));
        assert!(!link.is_silent(39_000) && link.is_silent(39_001));
        assert_eq!((link.token_of(1), link.token_of(2)), (Some(7), None));
    }

    #[test]
    fn a_stream_was_of_use_by_what_came_on_itself() {
        let mut link = Link::default();
        link.opened(7, 1, 0);
        assert!(!link.was_of_use());
        link.settled();
        assert!(link.was_of_use());
        link.lost(0, 0);
        assert!(!link.was_of_use());
        link.opened(8, 1, 0);
        assert!(!link.was_of_use());
    }

    #[test]
    fn another_root_context_opens_a_stream_at_once_when_its_owner_goes() {
        let mut link = Link::default();
        link.opened(7, 1, 5_000);
        link.gone(2);
        assert!(!link.is_due(5_000));
        link.gone(1);
        assert!(link.is_due(5_000));
    }

    #[test]
    fn the_server_is_told_once_that_more_is_wanted() {
        let mut link = Link::default();
        link.wants_more();
        link.opened(7, 1, 0);
        assert!(!link.take_stale(), "opening said it");
        link.wants_more();
        assert!(link.take_stale() && !link.take_stale());
    }
}
