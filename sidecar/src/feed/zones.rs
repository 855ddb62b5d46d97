//! Where nodes are. In: the name of a node, from the token of a Pod that runs there. Out: its zone. Never lets a reader wait
//! long, nor asks the API server of one node often.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use selection::Symbol;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use watcher::kubernetes::{Cluster, Refusal};

/// The label of a Node that is its zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// What is known of a node is taken for so long.
const LASTS: Duration = Duration::from_secs(600);
/// Nodes of which something is remembered; no cluster has more.
const NODES: usize = 16 << 10;
/// Questions at once.
const AT_ONCE: usize = 16;
/// A reader waits no longer; it would rather not know.
const WITHIN: Duration = Duration::from_secs(1);
/// After a question that was not answered nobody asks for so long.
const PAUSE: Duration = Duration::from_secs(10);

/// Who knows the zones of nodes.
#[derive(Debug)]
pub struct Zones {
    cluster: Cluster,
    known: Mutex<Known>,
    asking: Semaphore,
}

#[derive(Debug, Default)]
struct Known {
    /// By the name of the node; and until when that is taken.
    zones: HashMap<Symbol, (Option<Symbol>, Instant)>,
    /// Nobody asks before.
    pause: Option<Instant>,
}

impl Zones {
    /// Those of the nodes of `cluster`.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, known: Mutex::default(), asking: Semaphore::new(AT_ONCE) }
    }

    /// The zone of `node`; `None` if it has none, or nobody says so soon.
    pub async fn of(&self, node: &Symbol) -> Option<Symbol> {
        if let Some(zone) = self.known().of(node) {
            return zone;
        }
        let _place = self.asking.acquire().await.ok()?;
        // Others may have asked meanwhile.
        if let Some(zone) = self.known().of(node) {
            return zone;
        }
        let path = format!("/api/v1/nodes/{node}");
        let answer = timeout(WITHIN, self.cluster.metadata_of(&path)).await;
        let zone = match answer
            .unwrap_or_else(|_| Err(Refusal::Failed(format!("no answer within {WITHIN:?}"))))
        {
            Ok(metadata) => metadata["labels"][ZONE].as_str().map(Symbol::from),
            Err(Refusal::Absent) => None,
            Err(error) => {
                tracing::warn!(%node, %error, "cannot ask for the zone of a node, and tells its readers none; allow get on nodes");
                self.known().pause = Some(Instant::now() + PAUSE);
                return None;
            }
        };
        self.known().learn(node, zone.clone());
        zone
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// The zone of `node`, or none; `None` if that is to be asked.
    fn of(&self, node: &Symbol) -> Option<Option<Symbol>> {
        let now = Instant::now();
        let known = self.zones.get(node).filter(|(_, until)| *until > now);
        let pauses = self.pause.is_some_and(|until| until > now);
        known.map(|(zone, _)| zone.clone()).or(pauses.then_some(None))
    }

    fn learn(&mut self, node: &Symbol, zone: Option<Symbol>) {
        let now = Instant::now();
        if self.zones.len() >= NODES {
            self.zones.retain(|_, (_, until)| *until > now);
        }
        if self.zones.len() < NODES {
            self.zones.insert(node.clone(), (zone, now + LASTS));
        }
    }
}
