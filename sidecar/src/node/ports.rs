//! The listeners of node ports. In: two tables, one after the other. Out: listeners opened, guarded and closed. What did
//! not change is not looked at.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use selection::{Destination, Family, Path, Protocol, ServiceName, ServicePort, Symbol, Table};
use tokio::task::yield_now;
use watcher::kubernetes::{Notice, Notices};

use crate::tcp::{Entrance, NodePort, Opened, Opener};

/// So many listeners are opened in a row before others get their turn.
const TURN: usize = 64;

/// A node port in one family.
type Number = (Family, u16);

/// What a node port needs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Need {
    service: ServiceName,
    port: Symbol,
    /// Only clients inside of the cluster can be served; others are to find nobody, rather than to be refused, so that
    /// they look at another node.
    is_guarded: bool,
}

/// What there is at one address.
#[derive(Debug)]
enum Door {
    Open(Opened, Need),
    /// Somebody else has it.
    Lacking,
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

    /// Asks again for what somebody else had.
    pub(super) fn retry(&mut self, table: &Table) {
        let lacking = self.doors.iter().filter(|(_, door)| matches!(door, Door::Lacking));
        for address in lacking.map(|(address, _)| *address).collect::<Vec<_>>() {
            self.settle(address, need(table, Family::of(&address.ip()), address.port()));
        }
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
        self.count(|door| matches!(door, Door::Lacking))
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
        match self.doors.get_mut(&address) {
            Some(Door::Open(_, had)) if *had == need => {}
            Some(Door::Open(opened, had)) if (&had.service, &had.port) == (&need.service, &need.port) => {
                guard(opened, &need, &self.inside);
                *had = need;
            }
            // Another Service has the port: who waits there still meets the one that had it.
            Some(Door::Open(..)) => {
                self.doors.remove(&address);
                self.open_door(address, need, false);
            }
            Some(Door::Lacking) => self.open_door(address, need, true),
            None => self.open_door(address, need, false),
        }
    }

    fn open_door(&mut self, address: SocketAddr, need: Need, was_lacking: bool) {
        let entrance = Entrance::Node(NodePort {
            address,
            service: need.service.clone(),
            port: need.port.clone(),
            inside: Arc::clone(&self.inside),
        });
        let door = match self.opener.open(&entrance) {
            Ok(opened) => {
                guard(&opened, &need, &self.inside);
                if was_lacking {
                    tracing::info!(%address, service = %need.service, "the node port is free again: serving");
                }
                Door::Open(opened, need)
            }
            Err(error) => {
                if !was_lacking {
                    let note = format!(
                        "{error}; clients of this node port meet that program, and it is tried again every {} s",
                        super::RETRY.as_secs()
                    );
                    tracing::warn!("{note}");
                    let (service, reason) = (need.service, "NodePortTaken");
                    let notice = Notice { service, reason, action: "Listen", note };
                    if let Some(notices) = &self.notices {
                        notices.tell(notice);
                    }
                }
                Door::Lacking
            }
        };
        self.doors.insert(address, door);
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
    Some(Need { service: port.id.service.clone(), port: label(port), is_guarded })
}

/// The name of a port, or its number.
fn label(port: &ServicePort) -> Symbol {
    if port.id.port.is_empty() { port.port.to_string().into() } else { port.id.port.clone() }
}
