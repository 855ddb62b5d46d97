//! Services that external names lead to and that a listener's own watch does not cover: each is followed by a watch of
//! its own, as long as a name leads there. In: names of Services. Out: their tables and names.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use selection::{Here, ServiceName, Table};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use watcher::{CurrentNames, Names, Scope, Source, Watch};

/// A Service that is not known after this long is asked for in DNS: perhaps it may not be read.
const PATIENCE: Duration = Duration::from_secs(3);

/// The watches, by the Service that each is for.
#[derive(Debug, Default)]
pub(super) struct Hops(HashMap<ServiceName, Hop>);

#[derive(Debug)]
struct Hop {
    watch: Watch,
    names: CurrentNames,
    since: Instant,
    /// Ends with it.
    _waking: JoinSet<()>,
}

/// What is known of a Service elsewhere.
pub(super) enum Elsewhere {
    /// This.
    Known(Arc<Table>, Arc<Names>),
    /// Nothing yet.
    Pending,
    /// It cannot be read.
    Unreadable,
}

impl Hops {
    /// What is known of `service`, which is followed from here on; `changed` is told of whatever comes.
    pub(super) async fn look(
        &mut self,
        service: &ServiceName,
        source: &Source,
        here: &Here,
        changed: &Arc<Notify>,
    ) -> Elsewhere {
        if !self.0.contains_key(service) {
            let Some(hop) = Hop::new(service, source, here, changed).await else {
                return Elsewhere::Unreadable;
            };
            self.0.insert(service.clone(), hop);
        }
        match self.0.get(service) {
            Some(hop) if hop.watch.tables.is_synced() => {
                let table = hop.watch.tables.load();
                Elsewhere::Known(table, hop.names.load())
            }
            Some(hop) if hop.since.elapsed() < PATIENCE => Elsewhere::Pending,
            _ => Elsewhere::Unreadable,
        }
    }

    /// Forgets the Services that are not among `services`.
    pub(super) fn retain(&mut self, services: &[ServiceName]) {
        self.0.retain(|service, _| services.contains(service));
    }
}

impl Hop {
    async fn new(service: &ServiceName, source: &Source, here: &Here, changed: &Arc<Notify>) -> Option<Self> {
        let scope = Scope::Services(vec![service.clone()]);
        let watch = watcher::start(source.clone(), scope, here.clone()).await.ok()?;
        let names = watch.names().await?;
        let mut waking = JoinSet::new();
        waking.spawn(wake(watch.clone(), names.clone(), Arc::clone(changed)));
        let late = Arc::clone(changed);
        waking.spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            late.notify_one();
        });
        Some(Self { watch, names, since: Instant::now(), _waking: waking })
    }
}

/// Tells `changed` of every table and every view of names that comes.
pub(super) async fn wake(watch: Watch, names: CurrentNames, changed: Arc<Notify>) {
    let (mut table, mut view) = (0, 0);
    loop {
        tokio::select! {
            next = watch.tables.reaches(|next| next.version() > table) => table = next.version(),
            next = names.later_than(view) => view = next,
        }
        changed.notify_one();
    }
}
