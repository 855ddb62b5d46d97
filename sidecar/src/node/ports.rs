//! The listeners of node ports. In: two tables, one after the other. Out: listeners opened, guarded and closed. What did
//! not change is not looked at.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use selection::{Destination, Family, Path, Protocol, ServiceName, Table};
use tokio::task::yield_now;
use watcher::kubernetes::{About, Notice, Notices};

use super::{Lacking, RETRY};
use crate::tcp::{self, Entrance, NodePort, Opened, Opener};

/// So many listeners are opened in a row before others get their turn.
const TURN: usize = 64;

/// A node port in one family.
type Number = (Family, u16);

/// What a node port needs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Need {
    /// Whose it is.
    service: ServiceName,
    /// Only clients inside of the cluster can be served; others are to find nobody, rather than to be refused, so that
    /// they look at another node.
    is_guarded: bool,
}

/// What there is at one address.
#[derive(Debug)]
enum Door {
    Open(Opened, Need),
    Lacking(Lacking),
}

/// See the module.
pub(super) struct Ports {
    at: Vec<IpAddr>,
    inside: Arc<[IpNet]>,
    opener: Opener,
    notices: Option<Notices>,
    doors: HashMap<SocketAddr, Door>,
}

impl Ports {
    pub(super) fn new(
        at: Vec<IpAddr>,
        inside: Arc<[IpNet]>,
        opener: Opener,
        notices: Option<Notices>,
    ) -> Self {
        Self { at, inside, opener, notices, doors: HashMap::new() }
    }

    /// Makes the listeners those of `next`, which follows `known`.
    pub(super) async fn follow(&mut self, known: &Table, next: &Table) {
        for (n, (family, number)) in changed(known, next).into_iter().enumerate() {
            let need = need(next, family, number);
            for address in self.addresses(family, number) {
                self.settle(address, need.clone());
            }
            if n % TURN == TURN - 1 {
                yield_now().await;
            }
        }
    }

    /// Asks again for what could not be had.
    pub(super) fn retry(&mut self, table: &Table) {
        let lacking = self.doors.iter().filter(|(_, door)| matches!(door, Door::Lacking(_)));
        for address in lacking.map(|(address, _)| *address).collect::<Vec<_>>() {
            self.settle(address, need(table, Family::of(&address.ip()), address.port()));
        }
    }

    /// When to ask again for what could not be had.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let after = |door: &Door| match door {
            Door::Lacking(lacking) => Some(lacking.retry_after()),
            Door::Open(..) => None,
        };
        self.doors.values().filter_map(after).min()
    }

    /// Listeners that are open.
    pub(super) fn open(&self) -> usize {
        self.count(|door| matches!(door, Door::Open(..)))
    }

    /// Listeners that answer only clients inside.
    pub(super) fn guarded(&self) -> usize {
        self.count(|door| matches!(door, Door::Open(_, need) if need.is_guarded))
    }

    /// Listeners that cannot be had.
    pub(super) fn lacking(&self) -> usize {
        self.count(|door| matches!(door, Door::Lacking(_)))
    }

    fn count(&self, is_it: impl Fn(&Door) -> bool) -> usize {
        self.doors.values().filter(|door| is_it(door)).count()
    }

    fn addresses(&self, family: Family, number: u16) -> Vec<SocketAddr> {
        let of_family = self.at.iter().filter(|ip| Family::of(ip) == family);
        of_family.map(|ip| SocketAddr::new(*ip, number)).collect()
    }

    /// Makes what there is at `address` what is needed there.
    fn settle(&mut self, address: SocketAddr, need: Option<Need>) {
        let Some(need) = need else {
            // Dropping it closes it.
            self.doors.remove(&address);
            return;
        };
        let lacking = match self.doors.get_mut(&address) {
            Some(Door::Open(opened, had)) => {
                if had.is_guarded != need.is_guarded {
                    guard(opened, &need, &self.inside);
                }
                *had = need;
                return;
            }
            Some(Door::Lacking(lacking)) => Some(lacking.clone()),
            None => None,
        };
        let entrance = Entrance::Node(NodePort { address, inside: Arc::clone(&self.inside) });
        let door = match self.opener.open(&entrance) {
            Ok(opened) => {
                guard(&opened, &need, &self.inside);
                if lacking.is_some_and(|lacking| lacking.is_told()) {
                    tracing::info!(%address, service = %need.service, "the node port is free again: serving");
                }
                Door::Open(opened, need)
            }
            Err(error) => {
                let mut lacking = lacking.unwrap_or_default();
                if lacking.is_to_be_told() {
                    self.tell(need.service, &error);
                }
                Door::Lacking(lacking)
            }
        };
        self.doors.insert(address, door);
    }

    fn tell(&self, service: ServiceName, error: &tcp::Error) {
        let note = format!(
            "{error}; clients of the node port of {service} meet that program, and it is tried again every {} s",
            RETRY.as_secs()
        );
        tracing::warn!("{note}");
        if let Some(notices) = &self.notices {
            let (about, reason) = (About::Service(service), "NodePortTaken");
            notices.tell(Notice { about, is_warning: true, reason, action: "Listen", note });
        }
    }
}

/// Lets in whom `need` says. A filter that the kernel does not take leaves clients to be reset instead.
fn guard(opened: &Opened, need: &Need, inside: &[IpNet]) {
    if let Err(error) = opened.admit(need.is_guarded.then_some(inside)) {
        tracing::warn!(
            service = %need.service, %error,
            "cannot filter who comes in at a node port; clients from outside are reset instead"
        );
    }
}

/// The node ports that may differ between two tables, in order.
fn changed(known: &Table, next: &Table) -> BTreeSet<Number> {
    let either = known.differing(next).chain(next.differing(known));
    let tcp = either.filter(|port| port.node_port != 0 && port.id.protocol == Protocol::Tcp);
    tcp.map(|port| (port.id.family, port.node_port)).collect()
}

/// What the port `number` needs; nothing if nobody has it, or nobody can be served.
fn need(table: &Table, family: Family, number: u16) -> Option<Need> {
    let (path, port) = table.at(&Destination::node(family, number, Protocol::Tcp))?;
    let serves_outside = if port.external_local { &port.local } else { &port.cluster };
    let is_guarded = serves_outside.members.is_empty();
    if path != Path::NodePort || (is_guarded && port.cluster.members.is_empty()) {
        return None;
    }
    Some(Need { service: port.id.service.clone(), is_guarded })
}
