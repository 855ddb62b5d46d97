//! Knows only the Services that this Pod uses. In: places that clients dialled and no table knows, a feed. Out: requests
//! for what is used, and whether a connection may look again. A place that is nobody's is left to the node. Never lets a
//! connection wait while the feed is lost.
//!
//! ```text
//! data thread ──place──▶ demand ──request──▶ feed ──▶ tables
//!      ◀──── look again ──┘  ◀────answered─────┘
//! ```

mod wants;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use selection::{Here, ServiceName};
use tokio::sync::{oneshot, watch};
use tokio::time::interval;
use watcher::{Demand, Tables, Watch, feed};

use self::wants::Wants;
use crate::asking::{Asked, QUEUE};
use crate::capture::agreement::Signal;
use crate::signals::Voice;
use crate::traffic::Traffic;

/// What is used of a feed. Owning one means to be the only one who asks for more.
#[derive(Debug)]
pub struct Following {
    asked: Asked,
    requests: watch::Sender<feed::Request>,
    answered: watch::Receiver<Option<u64>>,
    tables: Tables,
    wants: Wants<oneshot::Sender<()>>,
    voice: Voice,
    idle: Duration,
}

/// Follows the feed at `address` for `here`: `always` these Services, others from their first connection until they had
/// none for `idle`. On the current runtime.
///
/// # Errors
/// If there is no socket to be had.
pub fn follow(
    address: feed::Address,
    always: impl IntoIterator<Item = ServiceName>,
    here: Here,
    idle: Duration,
    asked: Asked,
) -> io::Result<(Watch, Following)> {
    let wants = Wants::new(always);
    let (requests, requested) = watch::channel(wants.request());
    let Demand { watch, answered } = watcher::demand(address, requested, here);
    let (tables, voice) = (watch.tables.clone(), Voice::new()?);
    Ok((watch, Following { asked, requests, answered, tables, wants, voice, idle }))
}

impl Following {
    /// Answers questions for ever; `traffic` tells which Services are used.
    pub async fn serve(mut self, traffic: Arc<Traffic>) {
        let mut looks = interval(self.idle / 10);
        let mut questions = Vec::new();
        loop {
            tokio::select! {
                received = self.asked.questions.recv_many(&mut questions, QUEUE) => {
                    if received == 0 {
                        return;
                    }
                    let asked = questions.drain(..).filter(|question| !question.answer.is_closed());
                    let asked: Vec<_> = asked.map(|question| (question.place, question.answer)).collect();
                    if self.wants.ask(asked, &self.tables.load(), Instant::now()) {
                        self.requests.send_replace(self.wants.request());
                    }
                }
                Ok(()) = self.answered.changed() => {
                    let answered = *self.answered.borrow_and_update();
                    self.answer(answered);
                }
                _ = looks.tick() => {
                    let used = traffic.snapshot().into_iter().filter_map(|(label, counts)| {
                        Some((label.service?, counts.opened, counts.active()))
                    });
                    if self.wants.fade(used, Instant::now(), self.idle) {
                        self.requests.send_replace(self.wants.request());
                    }
                }
            }
        }
    }

    /// The feed has answered the request of this number; `None`: it is lost.
    fn answer(&mut self, answered: Option<u64>) {
        let Some(number) = answered else {
            self.asked.counts.lives(false);
            // Their connections pass.
            self.wants.give_up();
            return;
        };
        let unknown = self.wants.answered(number, &self.tables.load(), Instant::now());
        for place in unknown {
            self.voice.say(Signal::Leave, place.into());
        }
        self.asked.counts.lives(self.wants.is_answered());
    }
}
