//! How the process ends. Pingora's own answer to SIGTERM sleeps for a fixed time even when nothing is open; here
//! it ends when the last connection has.
//!
//! ```text
//! running ──SIGTERM or SIGINT, or a successor serves──▶ draining ──last connection ended──▶ ended, exit 0
//!                        drain timeout, or a second signal └──▶ the rest is reset ──▶ ended, exit 0
//! ```

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::server::{ListenFds, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora_core::services::Service;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::capture::agreement::{ALIVE_EVERY, ALIVE_LASTS};
use crate::handover::Offer;
use crate::health::Draining;
use crate::signals::Heartbeat;
use crate::tcp::Running;

/// Who asked for the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// Signals so far.
    pub signals: u32,
    /// Another process serves in the place of this one.
    pub succeeded: bool,
}

impl Asked {
    /// Whether anybody has.
    pub fn to_end(&self) -> bool {
        self.signals > 0 || self.succeeded
    }
}

/// Counts the signals that ask for the end. Heard from the moment that this was made.
///
/// # Errors
/// If the system refuses to tell of signals. Needs a runtime around it, which must go on running.
pub fn signals() -> std::io::Result<Arc<watch::Sender<Asked>>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let asked = Arc::new(watch::Sender::new(Asked::default()));
    let asking = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            asking.send_modify(|asked| asked.signals += 1);
        }
    });
    Ok(asked)
}

/// The data plane as a Pingora service: serves until the process is asked to end, then drains.
pub struct DataPlane {
    running: Option<Running>,
    drain_timeout: Duration,
    asked: watch::Receiver<Asked>,
    offer: Option<Offer>,
    heartbeat: Option<Heartbeat>,
    /// Closed once no question of DNS is left.
    answered: Option<watch::Receiver<()>>,
    draining: Draining,
    ended: watch::Sender<bool>,
}

/// Tells Pingora when the data plane has drained: then nothing is left to wait for.
pub struct UntilDrained(watch::Receiver<bool>);

impl DataPlane {
    /// The service, and who tells of its end.
    pub fn new(
        running: Running,
        drain_timeout: Duration,
        asked: watch::Receiver<Asked>,
        draining: Draining,
    ) -> (Self, UntilDrained) {
        let (ended, has_ended) = watch::channel(false);
        let running = Some(running);
        let (offer, heartbeat, answered) = (None, None, None);
        let service = Self { running, drain_timeout, asked, offer, heartbeat, answered, draining, ended };
        (service, UntilDrained(has_ended))
    }

    /// The same, which gives up `offer` and `heartbeat` when it drains, and, if a successor serves, does not end before
    /// `answered` closes.
    pub fn with(
        self,
        offer: Option<Offer>,
        heartbeat: Option<Heartbeat>,
        answered: watch::Receiver<()>,
    ) -> Self {
        Self { offer, heartbeat, answered: Some(answered), ..self }
    }

    async fn drain(&mut self, running: Running) {
        self.draining.begin();
        if let Some(offer) = &self.offer {
            offer.withdraw();
        }
        let active = running.active();
        tracing::info!(connections = active, timeout = ?self.drain_timeout, "draining: no new connections");
        let Asked { signals: before, succeeded } = *self.asked.borrow();
        // The rules bring connections for a while yet, and somebody must take them.
        let linger = self.heartbeat.take().is_some() && !succeeded;
        if linger {
            let again = self.asked.wait_for(|asked| asked.signals > before);
            let _ = timeout(ALIVE_LASTS + ALIVE_EVERY / 2, again).await;
        }
        let mut why = "at the end of --drain-timeout";
        let patience = async {
            let again = self.asked.wait_for(|asked| asked.signals > before);
            if timeout(self.drain_timeout, again).await.is_ok() {
                why = "when asked to end again";
            }
        };
        let drained = running.drain(patience).await;
        if drained.reset > 0 {
            tracing::warn!(connections = drained.reset, "reset what was open {why}");
        }
        if let (true, Some(mut answered)) = (succeeded, self.answered.take()) {
            let _ = timeout(self.drain_timeout, async { while answered.changed().await.is_ok() {} }).await;
        }
    }
}

#[async_trait]
impl Service for DataPlane {
    async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, _: usize) {
        // Fails only if nobody hears signals any more, and then ending is the best that can be done.
        let _ = self.asked.wait_for(Asked::to_end).await;
        if let Some(running) = self.running.take() {
            self.drain(running).await;
        }
        tracing::info!("drained");
        self.ended.send_replace(true);
    }

    fn name(&self) -> &str {
        "data"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

#[async_trait]
impl ShutdownSignalWatch for UntilDrained {
    async fn recv(&self) -> ShutdownSignal {
        // Fails if the data plane is gone, which is an end too.
        let _ = self.0.clone().wait_for(|ended| *ended).await;
        ShutdownSignal::FastShutdown
    }
}
