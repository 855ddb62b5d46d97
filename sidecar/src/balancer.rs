//! `remora loadbalancer`: the addresses of a load balancer on an interface, and listeners at them. In: tables, in which
//! such an address is a Service's and the nodes are its endpoints. Out: addresses and listeners that come and go with
//! them. Never moves a byte: the data threads do.
//!
//! ```text
//! tables ──what is wanted──▶ addresses on the interface ──▶ listeners at them ──▶ data threads
//!                                    └── those that are there ──▶ status of the Services (watcher)
//! ```
//! A port that no node can serve has no listener, so that the system refuses whoever dials it.

mod addresses;
mod announcement;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use ipnet::IpNet;
use selection::{Destination, Path, Protocol, ServiceName, Table};
use tokio::sync::watch;
use tokio::time::sleep;
use watcher::Tables;

use crate::tcp::{Entrance, Opened, Opener};
use addresses::Addresses;
use announcement::Announcer;

/// What could not be had is asked for again this often.
const RETRY: Duration = Duration::from_secs(1);

/// Why there is no load balancer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such interface.
    #[error("--interface {0}: this machine has no such interface; `ip link` shows what it has")]
    NoInterface(String),
    /// The kernel does not say which addresses there are.
    #[error("cannot ask the kernel for addresses: {0}; allow netlink sockets")]
    Netlink(#[source] std::io::Error),
}

/// What the load balancer is doing.
#[derive(Debug, Default)]
pub struct Counts {
    /// Addresses that are on the interface.
    pub addresses: AtomicUsize,
    /// Those that cannot be put there.
    pub addresses_lacking: AtomicUsize,
    /// Listeners, a port at one address each.
    pub open: AtomicUsize,
    /// Listeners that cannot be had.
    pub lacking: AtomicUsize,
}

/// What is needed at one address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Need {
    service: ServiceName,
    /// Who may come in; everybody if empty.
    ranges: Box<[IpNet]>,
}

/// Addresses to be served.
#[derive(Debug)]
pub struct Balancer {
    addresses: Addresses,
    /// `None` if neighbours cannot be told.
    announcer: Option<Announcer>,
    held: watch::Sender<BTreeSet<IpAddr>>,
    counts: Arc<Counts>,
    doors: HashMap<SocketAddr, (Opened, Need)>,
    /// What was said to be lacking, which is said once.
    told: BTreeSet<SocketAddr>,
}

impl Balancer {
    /// At the interface of this name.
    ///
    /// # Errors
    /// If there is none, or the kernel does not say what it has.
    pub fn new(interface: &str) -> Result<Self, Error> {
        let addresses = Addresses::new(interface)?;
        let announcer = Announcer::new(interface).inspect_err(|error| {
            tracing::warn!(
                interface, %error,
                "cannot tell neighbours of addresses, which find out by themselves later; allow NET_RAW"
            );
        });
        let announcer = announcer.ok();
        let (held, _) = watch::channel(addresses.held());
        let counts = Arc::default();
        Ok(Self { addresses, announcer, held, counts, doors: HashMap::new(), told: BTreeSet::new() })
    }

    /// The addresses that are on the interface.
    pub fn held(&self) -> watch::Receiver<BTreeSet<IpAddr>> {
        self.held.subscribe()
    }

    /// What it is doing.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Keeps addresses and listeners in step with `tables`, for ever.
    pub async fn serve(mut self, tables: Tables, opener: Opener) {
        let mut known = 0;
        let mut is_lacking = false;
        loop {
            tokio::select! {
                table = tables.reaches(|table| table.version() > known) => {
                    known = table.version();
                    is_lacking = self.settle(&table, &opener);
                }
                () = sleep(RETRY), if is_lacking => is_lacking = self.settle(&tables.load(), &opener),
            }
        }
    }

    /// Makes all that is what `table` wants; whether something is lacking.
    fn settle(&mut self, table: &Table, opener: &Opener) -> bool {
        let (addresses, needs) = wanted(table);
        // A listener goes before its address, and comes after it.
        self.doors.retain(|address, _| needs.contains_key(address));
        self.told.retain(|address| needs.contains_key(address) || addresses.contains(&address.ip()));
        let mut lacking = BTreeSet::new();
        if let Err((ip, error)) = self.addresses.keep(&addresses) {
            lacking.insert(ip);
            self.tell(SocketAddr::new(ip, 0), &format!("cannot take {ip} off the interface: {error}"));
        }
        for ip in addresses {
            match self.addresses.add(ip) {
                Ok(true) => self.announce(ip),
                Ok(false) => {}
                Err(error) => {
                    lacking.insert(ip);
                    let text = format!("cannot put {ip} on the interface: {error}; this needs NET_ADMIN");
                    self.tell(SocketAddr::new(ip, 0), &text);
                }
            }
        }
        let mut closed = 0;
        for (address, need) in needs {
            if let Some((opened, had)) = self.doors.get_mut(&address) {
                if *had != need {
                    admit(opened, &need);
                    *had = need;
                }
                continue;
            }
            match opener.open(&Entrance::Balancer(address)) {
                Ok(opened) => {
                    admit(&opened, &need);
                    self.told.remove(&address);
                    tracing::info!(%address, service = %need.service, "balancing");
                    self.doors.insert(address, (opened, need));
                }
                Err(error) => {
                    closed += 1;
                    self.tell(
                        address,
                        &format!("{error}; clients of {} are refused until then", need.service),
                    );
                }
            }
        }
        let held = self.addresses.held();
        self.counts.addresses.store(held.len(), Relaxed);
        self.counts.addresses_lacking.store(lacking.len(), Relaxed);
        self.counts.open.store(self.doors.len(), Relaxed);
        self.counts.lacking.store(closed, Relaxed);
        self.held.send_if_modified(|before| {
            let is_new = *before != held;
            *before = held;
            is_new
        });
        closed > 0 || !lacking.is_empty()
    }

    fn announce(&self, ip: IpAddr) {
        if let Some(Err(error)) = self.announcer.as_ref().map(|announcer| announcer.announce(ip)) {
            tracing::warn!(%ip, %error, "cannot tell neighbours where it is; they find out by themselves");
        }
    }

    fn tell(&mut self, about: SocketAddr, text: &str) {
        if self.told.insert(about) {
            tracing::warn!("{text}; it is tried again every {} s", RETRY.as_secs());
        }
    }
}

/// Lets in whom `need` says. A filter that the kernel does not take leaves clients to be reset instead.
fn admit(opened: &Opened, need: &Need) {
    let ranges = Some(&*need.ranges).filter(|ranges| !ranges.is_empty());
    if let Err(error) = opened.admit(ranges) {
        tracing::warn!(service = %need.service, %error, "cannot filter who comes in; others are reset instead");
    }
}

/// The addresses of every Service in `table`, and the listeners that it needs at them.
fn wanted(table: &Table) -> (BTreeSet<IpAddr>, BTreeMap<SocketAddr, Need>) {
    let (mut addresses, mut needs) = (BTreeSet::new(), BTreeMap::new());
    for port in table.all().filter(|port| port.id.protocol == Protocol::Tcp) {
        for ip in &port.load_balancer_vips {
            addresses.insert(*ip);
            let address = SocketAddr::new(*ip, port.port);
            let found = table.at(&Destination::new(address, Protocol::Tcp));
            let is_first =
                found.is_some_and(|(path, found)| path == Path::LoadBalancer && found.id == port.id);
            if is_first && !port.cluster.members.is_empty() {
                let (service, ranges) = (port.id.service.clone(), port.source_ranges.clone());
                needs.insert(address, Need { service, ranges });
            }
        }
    }
    (addresses, needs)
}
