//! What serves each `--listen`: finds out what stands in for Service ports that no table has (a headless Service, an
//! external name), and tells in the log when nothing serves, and when something does again. In: the watch, names of
//! others. Out: Service ports for the data threads, made like any other. Never moves a byte, never picks.
//!
//! ```text
//! Service ──has an address──▶ table
//!    ├─ headless ──────────▶ its slices ─▶ build ─▶ stands in
//!    └─ external name ─┬─ of a Service of the cluster ─▶ the same again, for that one
//!                      └─ of something else ─▶ DNS ─▶ build ─▶ stands in, asked again when its time is over
//! ```

mod external;
mod hops;
mod way;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::Name;
use selection::{Family, Here, ServiceName, ServicePort, Table};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use watcher::{CurrentNames, Scope, Source, Watch};

use self::hops::{Elsewhere, Hops};
use self::way::{Outside, Step, Way, step};
use crate::dns::{ALIASES_MOST, Resolved, Resolver, Unresolved, Wrong, Zone};
use crate::tcp::{Found, Listen};

/// A name is not asked for again before this, whatever its records say…
const AGAIN_FIRST: Duration = Duration::from_secs(1);
/// …and not later than this.
const AGAIN_LAST: Duration = Duration::from_secs(300);
/// A name that has no addresses, or of which nobody knows, is asked for again after this long.
const AGAIN_WRONG: Duration = Duration::from_secs(5);

/// Service ports that stand in.
type Ports = Arc<[Arc<ServicePort>]>;

/// What all listeners share. Owning one means to be able to look at Services.
#[derive(Clone, Debug)]
pub struct Listeners {
    /// What is known.
    pub watch: Watch,
    /// Where it comes from, for Services that it does not cover.
    pub source: Source,
    /// What it covers.
    pub scope: Scope,
    /// Where this process runs.
    pub here: Here,
    /// Names that end with it are of this cluster.
    pub zone: Zone,
    /// Who knows all others.
    pub resolver: Arc<Resolver>,
}

impl Listeners {
    /// Finds out what serves `listen` and tells it, as long as the runtime runs.
    pub async fn serve(self, listen: Listen, tell: watch::Sender<Found>) {
        let Some(names) = self.watch.names().await else { return };
        let changed = Arc::new(Notify::new());
        let (mut hops, mut tasks, mut asking) = (Hops::default(), JoinSet::new(), JoinSet::new());
        tasks.spawn(hops::wake(self.watch.clone(), names.clone(), Arc::clone(&changed)));
        let (mut lookup, mut said, mut old) = (None, Said::default(), Ports::default());
        loop {
            // The table first: names are never older than the table that was there before them.
            let table = self.watch.tables.load();
            let way = self.find(&listen, &table, &names, &old, &mut hops, &changed).await;
            if !matches!(way, Way::Outside(_)) {
                lookup = None;
            }
            let (is_pending, ports, trouble) = match way {
                Way::Table => (false, Ports::default(), None),
                Way::Pending => (true, Ports::default(), None),
                Way::Ports(ports) => (false, ports, None),
                Way::Nowhere(why) => (false, Ports::default(), Some(why)),
                Way::Outside(outside) => {
                    let lookup = Lookup::of(&mut lookup, outside);
                    if lookup.is_due() {
                        let (resolver, name) = (Arc::clone(&self.resolver), lookup.outside.name.clone());
                        asking.spawn(async move {
                            let answer = resolver.resolve(&name).await;
                            (name, answer)
                        });
                    }
                    (lookup.said.is_none(), Arc::clone(&lookup.ports), lookup.trouble())
                }
            };
            if !is_pending {
                old = Arc::clone(&ports);
                said.say(&listen, trouble);
            }
            tell.send_replace(Found { table: table.version(), is_pending, ports });
            let again = lookup.as_ref().and_then(|lookup| lookup.again);
            tokio::select! {
                () = changed.notified() => {}
                Some(Ok((name, answer))) = asking.join_next() => {
                    let lookup = lookup.as_mut().filter(|lookup| lookup.outside.name == name);
                    lookup.into_iter().for_each(|lookup| lookup.answered(&answer, listen.address, &self.here));
                }
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
        }
    }

    /// Where the way of `listen` leads, by `table` and the names of this moment.
    async fn find(
        &self,
        listen: &Listen,
        table: &Arc<Table>,
        names: &CurrentNames,
        old: &Ports,
        hops: &mut Hops,
        changed: &Arc<Notify>,
    ) -> Way {
        let (own, family) = ((Arc::clone(table), names.load()), Family::of(&listen.address.ip()));
        let (mut at, mut service, mut wanted) = (own.clone(), listen.service.clone(), listen.port.clone());
        let (mut seen, mut alias): (Vec<ServiceName>, Option<Outside>) = (Vec::new(), None);
        let way = loop {
            seen.push(service.clone());
            let outside = match step((&*at.0, &*at.1), &service, &wanted, family, &self.here, old) {
                // The data threads find it there by themselves, and find it first.
                Step::End(Way::Ports(_)) if alias.is_none() && has(table, listen) => break Way::Table,
                Step::End(way) => break way,
                Step::Alias(outside) => outside,
                // The cluster may have Services that the source does not have.
                Step::Unknown => match alias {
                    Some(outside) => break Way::Outside(outside),
                    None => {
                        let why = format!("there is no Service {service}: create it, or correct --listen");
                        break Way::Nowhere(why);
                    }
                },
            };
            let Some(next) = self.zone.names(&outside.name) else { break Way::Outside(outside) };
            if seen.contains(&next) || seen.len() >= ALIASES_MOST {
                let (name, why) = (&outside.name, Wrong::Circle.advice());
                break Way::Nowhere(format!("the external name {name} of Service {service} {why}"));
            }
            at = if self.scope.covers(&next) {
                own.clone()
            } else {
                match hops.look(&next, &self.source, &self.here, changed).await {
                    Elsewhere::Known(table, names) => (table, names),
                    Elsewhere::Pending => break Way::Pending,
                    Elsewhere::Unreadable => break Way::Outside(outside),
                }
            };
            (service, wanted, alias) = (next, outside.port.to_string(), Some(outside));
        };
        if !matches!(way, Way::Pending) {
            hops.retain(&seen);
        }
        way
    }
}

fn has(table: &Table, listen: &Listen) -> bool {
    table.port(&listen.service, &listen.port, Family::of(&listen.address.ip())).is_some()
}

/// What DNS says of an external name.
struct Lookup {
    outside: Outside,
    /// When it is asked for next; `None` while it is.
    again: Option<Instant>,
    said: Option<Result<(), Unresolved>>,
    /// The last addresses that it had.
    ports: Ports,
}

impl Lookup {
    /// The one of `outside`; a new one if `kept` is of something else.
    fn of(kept: &mut Option<Self>, outside: Outside) -> &mut Self {
        if kept.as_ref().is_some_and(|kept| kept.outside != outside) {
            *kept = None;
        }
        kept.get_or_insert_with(|| Self {
            outside,
            again: Some(Instant::now()),
            said: None,
            ports: Ports::default(),
        })
    }

    /// Whether it has to be asked for, which is then under way.
    fn is_due(&mut self) -> bool {
        let is_due = self.again.is_some_and(|again| again <= Instant::now());
        if is_due {
            self.again = None;
        }
        is_due
    }

    /// DNS has answered. A failure takes nothing away: the last addresses serve on.
    fn answered(&mut self, answer: &Result<Resolved, Unresolved>, own: SocketAddr, here: &Here) {
        let Outside { service, name, .. } = &self.outside;
        let again = match answer {
            Ok(Resolved { ips, lasts }) => {
                self.ports = external::ports(&self.outside, ips, own, here, &self.ports);
                (*lasts).clamp(AGAIN_FIRST, AGAIN_LAST)
            }
            Err(why) => {
                if why.is_answer() {
                    self.ports = Ports::default();
                } else if !self.ports.is_empty() && self.said == Some(Ok(())) {
                    tracing::warn!("{}; its last addresses serve on", sentence(service, name, why));
                }
                AGAIN_WRONG
            }
        };
        self.said = Some(answer.as_ref().map(|_| ()).map_err(Clone::clone));
        self.again = Some(Instant::now() + again);
    }

    /// Why it serves nobody.
    fn trouble(&self) -> Option<String> {
        let Outside { service, name, .. } = &self.outside;
        match &self.said {
            Some(Err(why)) if self.ports.is_empty() => Some(sentence(service, name, why)),
            Some(Ok(())) if self.ports.is_empty() => {
                let why = Wrong::Circle.advice();
                Some(format!(
                    "the external name {name} of Service {service} has the address of this listener: it {why}"
                ))
            }
            _ => None,
        }
    }
}

fn sentence(service: &ServiceName, name: &Name, why: &Unresolved) -> String {
    format!("the external name {name} of Service {service} {why}")
}

/// What the log was told of one listener, so that it is told once.
#[derive(Default)]
struct Said(Option<String>);

impl Said {
    fn say(&mut self, listen: &Listen, trouble: Option<String>) {
        let Listen { address, service, port } = listen;
        match &trouble {
            Some(why) if self.0.as_ref() != Some(why) => {
                tracing::warn!(%address, "{why}; its connections are reset until then");
            }
            None if self.0.is_some() => tracing::info!(%address, "{service} has port {port}: serving"),
            _ => {}
        }
        self.0 = trouble;
    }
}
