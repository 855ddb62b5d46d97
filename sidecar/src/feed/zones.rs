//! Where nodes are. In: the name of a node, from the token of a Pod that runs there. Out: its zone. Never lets a reader wait
//! long, nor asks the API server of one node often; what was known of a node counts on while nobody answers.

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
    /// By the name of the node; and from when on it is to be asked again.
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
        if let Some(zone) = self.known().of(node, Instant::now()) {
            return zone;
        }
        let _place = self.asking.acquire().await.ok()?;
        // Others may have asked meanwhile.
        if let Some(zone) = self.known().of(node, Instant::now()) {
            return zone;
        }
        let path = format!("/api/v1/nodes/{node}");
        let answer = timeout(WITHIN, self.cluster.metadata_of(&path)).await;
        let answer = answer.unwrap_or_else(|_| Err(Refusal::Failed(format!("no answer within {WITHIN:?}"))));
        let (mut known, now) = (self.known(), Instant::now());
        match answer {
            Ok(metadata) => known.learn(node, metadata["labels"][ZONE].as_str().map(Symbol::from), now),
            Err(Refusal::Absent) => known.learn(node, None, now),
            Err(error) => {
                tracing::warn!(%node, %error, "cannot ask for the zone of a node, and goes on with what is known; allow get on nodes");
                known.pause = Some(now + PAUSE);
            }
        }
        known.of(node, now).flatten()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// The zone of `node`, or none; `None` if that is to be asked.
    fn of(&self, node: &Symbol, now: Instant) -> Option<Option<Symbol>> {
        let known = self.zones.get(node);
        let is_asked =
            known.is_none_or(|(_, until)| *until <= now) && self.pause.is_none_or(|until| until <= now);
        (!is_asked).then(|| known.and_then(|(zone, _)| zone.clone()))
    }

    fn learn(&mut self, node: &Symbol, zone: Option<Symbol>, now: Instant) {
        if self.zones.len() >= NODES {
            self.zones.retain(|_, (_, until)| *until > now);
        }
        // The newest counts, whoever has to go.
        if self.zones.len() >= NODES {
            self.zones.clear();
        }
        self.zones.insert(node.clone(), (zone, now + LASTS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_known_of_a_node_counts_while_nobody_answers() {
        let (mut known, now) = (Known::default(), Instant::now());
        let (node, zone) = (Symbol::from("n1"), Some(Symbol::from("a")));
        assert_eq!(known.of(&node, now), None, "it is to be asked");
        known.learn(&node, zone.clone(), now);
        assert_eq!(known.of(&node, now), Some(zone.clone()));
        let later = now + LASTS;
        assert_eq!(known.of(&node, later), None, "it is to be asked again");
        known.pause = Some(later + PAUSE);
        assert_eq!(known.of(&node, later), Some(zone));
        assert_eq!(known.of(&"n2".into(), later), Some(None), "nor is another one asked for");
        assert_eq!(known.of(&node, later + PAUSE), None);
    }

    #[test]
    fn no_more_nodes_are_remembered_than_there_can_be() {
        let (mut known, now) = (Known::default(), Instant::now());
        for number in 0..=NODES {
            known.learn(&format!("n{number}").as_str().into(), None, now);
        }
        assert!(known.zones.len() <= NODES);
        assert_eq!(known.of(&format!("n{NODES}").as_str().into(), now), Some(None));
    }
}
