//! Which of several processes is the one that works, by a Lease of the API server (client-go's leaderelection, in its
//! words and times). In: a name. Out: whether it is this one. Never trusts another machine's clock.
//!
//! ```text
//!   waiting ──nobody renewed it for its duration, as seen from here──▶ leading ──another has it──▶ waiting
//!                                             renewed every 5 s ──┘ └──▶ released, at the end
//! ```
//! Who cannot reach the API server goes on leading: it is more likely that nobody reaches it than that somebody else
//! does, and a load balancer that stops because its cluster's API does is worse than two that have one address for a
//! while, which both lead to the same nodes. Neighbours follow who announced it last. Once the API server answers, who
//! has lost the lease stops at once.

use std::time::Duration;

use ::kube::api::PostParams;
use ::kube::{Api, Client, Error};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::failure::chain;

/// A lease that nobody has renewed for so long is anybody's.
const DURATION: Duration = Duration::from_secs(15);
/// Who leads renews it this often.
const RENEW: Duration = Duration::from_secs(5);
/// Who waits looks this often.
const LOOK: Duration = Duration::from_secs(2);
/// An answer takes no longer.
const ANSWER: Duration = Duration::from_secs(4);

/// A lease that this process wants.
pub(super) struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    leads: watch::Sender<bool>,
    /// What another has written last, and when that was seen.
    seen: Option<(Option<LeaseSpec>, Instant)>,
}

impl Candidate {
    /// Of the lease `name` in `namespace`.
    pub(super) fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        let leads = watch::Sender::new(false);
        Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            leads,
            seen: None,
        }
    }

    /// Whether this process leads.
    pub(super) fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Runs until it is asked to let go, and has; whoever asked is told by the sender that it gave.
    pub(super) async fn run(mut self, mut release: mpsc::Receiver<tokio::sync::oneshot::Sender<()>>) {
        let mut told = false;
        loop {
            match timeout(ANSWER, self.turn()).await {
                Ok(Ok(leads)) => {
                    told = false;
                    if self.leads.send_replace(leads) != leads {
                        let word = if leads { "leading" } else { "another process leads" };
                        info!(lease = self.name, identity = self.identity, "{word}");
                    }
                }
                // Somebody was faster; the next look tells who.
                Ok(Err(Error::Api(status))) if status.code == 409 => {}
                Ok(Err(error)) => self.lost(&mut told, &chain(&error)),
                Err(_) => self.lost(&mut told, "no answer"),
            }
            let pause = if *self.leads.borrow() { RENEW } else { LOOK };
            tokio::select! {
                () = sleep(pause) => {}
                asked = release.recv() => {
                    if self.leads.send_replace(false) {
                        self.let_go().await;
                    }
                    if let Some(done) = asked {
                        // Who asked may have gone.
                        let _ = done.send(());
                    }
                    return;
                }
            }
        }
    }

    fn lost(&self, told: &mut bool, error: &str) {
        if !std::mem::replace(told, true) {
            warn!(
                lease = self.name,
                leads = *self.leads.borrow(),
                error,
                "cannot ask for the lease; going on as before. Allow get, create and update on leases in \
                 coordination.k8s.io"
            );
        }
    }

    /// Takes or renews the lease if it may; whether it is this process's.
    async fn turn(&mut self) -> Result<bool, Error> {
        let now = MicroTime(k8s_openapi::jiff::Timestamp::now());
        let Some(mut lease) = self.leases.get_opt(&self.name).await? else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(self.name.clone());
            lease.spec = Some(LeaseSpec { lease_transitions: Some(0), ..self.held(now.clone(), now) });
            self.leases.create(&PostParams::default(), &lease).await?;
            return Ok(true);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
        let is_mine = holder.as_ref() == Some(&self.identity);
        if !is_mine && holder.is_some() {
            let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let duration = duration.map_or(DURATION, Duration::from_secs);
            match &self.seen {
                Some((seen, at)) if seen.as_ref() == Some(&spec) && at.elapsed() >= duration => {}
                Some((seen, _)) if seen.as_ref() == Some(&spec) => return Ok(false),
                _ => {
                    self.seen = Some((Some(spec), Instant::now()));
                    return Ok(false);
                }
            }
        }
        let since = spec.acquire_time.clone().filter(|_| is_mine).unwrap_or_else(|| now.clone());
        let transitions = spec.lease_transitions.unwrap_or(0) + i32::from(!is_mine);
        lease.spec = Some(LeaseSpec { lease_transitions: Some(transitions), ..self.held(since, now) });
        // Fails if anybody has written it since it was read.
        self.leases.replace(&self.name, &PostParams::default(), &lease).await?;
        Ok(true)
    }

    fn held(&self, since: MicroTime, now: MicroTime) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(since),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }

    /// So that the next one need not wait.
    async fn let_go(&self) {
        let released = async {
            let Some(mut lease) = self.leases.get_opt(&self.name).await? else { return Ok(()) };
            let Some(spec) = &mut lease.spec else { return Ok(()) };
            if spec.holder_identity.as_ref() == Some(&self.identity) {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
                self.leases.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, Error>(())
        };
        match timeout(ANSWER, released).await {
            Ok(Ok(())) => info!(lease = self.name, "let go of the lease"),
            _ => warn!(lease = self.name, "cannot let go of the lease; it is anybody's in {DURATION:?}"),
        }
    }
}
