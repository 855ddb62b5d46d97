//! Tells the rules of `remora capture` that this process takes connections, and which ones to refuse or drop before
//! they are made. In: tables. Out: datagrams that the rules take and that never leave. Never captures by itself.
//!
//! ```text
//!  table ──▶ verdicts, told at once and every 30 s ─▶ rules        a control task
//!            alive, every second ──────────────────▶ rules        a thread of its own, which nothing delays
//! ```
//! Without the second, new connections go their ordinary way: before the first table, when this process is dead, when
//! it ends, and while it has no descriptors for more of them. Whoever sends a signal hears whether a rule took it: `sendto` says EPERM.

mod verdicts;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use selection::{Family, Table};
use socket2::SockRef;
use tokio::sync::mpsc::Receiver;
use watcher::Tables;

use crate::capture::agreement::{ALIVE_EVERY, Signal, VERDICT_LASTS};
use crate::traffic::Traffic;
use verdicts::Verdicts;

/// Verdicts are repeated well before they fade.
const REPEAT: Duration = Duration::from_secs(VERDICT_LASTS.as_secs() / 3);
/// How long an address that no rule takes is left in peace.
const NOT_CAPTURED: Duration = Duration::from_secs(600);
/// Addresses that the heartbeat tries in a family until a rule takes one, at each beat.
const TRIES: usize = 16;
/// Beats that nobody took before that is said.
const PATIENCE: u32 = 5;
/// The signals of [`Signal::Alive`] go to this port; any would do.
const DISCARD: u16 = 9;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// What the rules do by these signals, for whoever shows it. Cheap to clone, all show the same.
#[derive(Clone, Debug, Default)]
pub struct Capturing(Arc<State>);

#[derive(Debug, Default)]
struct State {
    alive: [AtomicBool; 2],
    refused: AtomicUsize,
    dropped: AtomicUsize,
}

impl Capturing {
    /// Every family and whether the rules took the last heartbeat in it.
    pub fn families(&self) -> [(Family, bool); 2] {
        FAMILIES.map(|family| (family, self.0.alive[family as usize].load(Relaxed)))
    }

    /// How many Service ports refuse every connection, and how many drop it.
    pub fn unserved(&self) -> [(&'static str, usize); 2] {
        [("refuse", self.0.refused.load(Relaxed)), ("drop", self.0.dropped.load(Relaxed))]
    }
}

/// The heartbeat. Dropping it stops it; the rules then stop to capture within
/// [`crate::capture::agreement::ALIVE_LASTS`].
#[derive(Debug)]
pub struct Heartbeat(mpsc::Sender<Order>);

/// What the heart is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The verdicts of a table have been told: beat at once, and from now on.
    Beat,
    Stop,
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        // Fails only if it has stopped.
        let _ = self.0.send(Order::Stop);
    }
}

/// Begins to tell what `tables` say, on the current runtime, and to beat once that has been told. `refusals` are
/// addresses that the node refused.
///
/// # Errors
/// If there is no socket or no thread to be had.
pub fn start(
    tables: &Tables,
    capturing: &Capturing,
    refusals: Receiver<SocketAddr>,
    traffic: &Arc<Traffic>,
) -> io::Result<Heartbeat> {
    let (orders, ordered) = mpsc::channel();
    tokio::spawn(tell(tables.clone(), refusals, capturing.clone(), Voice::new()?, orders.clone()));
    let mut heart = Heart { tables: tables.clone(), voice: Voice::new()?, found: [None; 2], skip: 0 };
    let (capturing, traffic) = (capturing.clone(), Arc::clone(traffic));
    std::thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
        let (mut beats, mut unheard, mut exhausted) = (false, 0, 0);
        loop {
            match ordered.recv_timeout(ALIVE_EVERY) {
                Ok(Order::Beat) => beats = true,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            // Who has no descriptors left tries again and again, and counts it.
            let before = std::mem::replace(&mut exhausted, traffic.exhausted());
            if beats && exhausted == before {
                unheard = if heart.beat(&capturing) { 0 } else { unheard + 1 };
            }
            if unheard == PATIENCE {
                tracing::warn!(
                    "nothing is captured: no rule takes the heartbeat; run `remora capture up` as root in this network \
                     namespace, and this process as the user that it names"
                );
            }
        }
    })?;
    Ok(Heartbeat(orders))
}

/// Tells verdicts as tables change, and repeats them.
async fn tell(
    tables: Tables,
    mut refusals: Receiver<SocketAddr>,
    capturing: Capturing,
    mut voice: Voice,
    orders: mpsc::Sender<Order>,
) {
    let mut verdicts = Verdicts::default();
    let mut earlier = Arc::new(Table::default());
    let mut repeat = tokio::time::interval(REPEAT);
    loop {
        let version = earlier.version();
        tokio::select! {
            table = tables.reaches(|table| table.version() > version) => {
                for (address, signal) in verdicts.change(&earlier, &table) {
                    voice.say(signal, address);
                }
                if version == 0 && orders.send(Order::Beat).is_err() {
                    return;
                }
                let of = |wanted| verdicts.all().filter(|(_, signal)| *signal == wanted).count();
                capturing.0.refused.store(of(Signal::Refuse), Relaxed);
                capturing.0.dropped.store(of(Signal::Drop), Relaxed);
                earlier = table;
            }
            Some(address) = refusals.recv() => {
                if let Some(signal) = verdicts.node_refused(address, &earlier) {
                    voice.say(signal, address);
                }
            }
            _ = repeat.tick() => verdicts.all().for_each(|(address, signal)| voice.say(signal, address)),
        }
    }
}

/// Who beats.
struct Heart {
    tables: Tables,
    voice: Voice,
    /// By family, an address whose signals a rule took.
    found: [Option<IpAddr>; 2],
    /// How many addresses to pass over in the next search.
    skip: usize,
}

impl Heart {
    /// Beats once; whether any family heard it.
    fn beat(&mut self, capturing: &Capturing) -> bool {
        for family in FAMILIES {
            let at = family as usize;
            let is_heard = self.found[at].is_some_and(|ip| self.is_taken(ip));
            if !is_heard {
                self.found[at] = self.search(family);
            }
            let is_heard = self.found[at].is_some();
            if capturing.0.alive[at].swap(is_heard, Relaxed) != is_heard {
                let state = if is_heard {
                    "capturing"
                } else {
                    "no rule takes the heartbeat any more: not capturing"
                };
                tracing::info!(%family, "{state}");
            }
        }
        self.found.iter().any(Option::is_some)
    }

    /// An address of a Service in `family` that is captured, if one of the next few is.
    fn search(&mut self, family: Family) -> Option<IpAddr> {
        let table = self.tables.load();
        let of_family = || table.all().filter(|port| port.id.family == family).map(|port| port.cluster_ip);
        if of_family().nth(self.skip).is_none() {
            self.skip = 0;
        }
        let next: Vec<IpAddr> = of_family().skip(self.skip).take(TRIES).collect();
        let taken = next.into_iter().find(|ip| self.is_taken(*ip));
        if taken.is_none() {
            self.skip += TRIES;
        }
        taken
    }

    fn is_taken(&mut self, ip: IpAddr) -> bool {
        self.voice.send(Signal::Alive, SocketAddr::new(ip, DISCARD)) == Heard::Taken
    }
}

/// What became of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// A rule took it.
    Taken,
    /// No rule did: the address is not captured.
    NotTaken,
    /// It could not be sent: the family is not there.
    Unsent,
}

/// Says signals.
struct Voice {
    sockets: [Option<UdpSocket>; 2],
    /// Addresses that no rule takes, and when that was seen. As many as Services at most.
    not_captured: HashMap<IpAddr, Instant>,
}

impl Voice {
    fn new() -> io::Result<Self> {
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // A machine without IPv6 captures none.
        let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok();
        for socket in [Some(&v4), v6.as_ref()].into_iter().flatten() {
            socket.set_nonblocking(true)?;
        }
        Ok(Self { sockets: [Some(v4), v6], not_captured: HashMap::new() })
    }

    /// Says `signal` of `address`, unless no rule took one to it lately.
    fn say(&mut self, signal: Signal, address: SocketAddr) {
        let ip = address.ip();
        if self.not_captured.get(&ip).is_some_and(|at| at.elapsed() < NOT_CAPTURED) {
            return;
        }
        match self.send(signal, address) {
            Heard::NotTaken => drop(self.not_captured.insert(ip, Instant::now())),
            Heard::Taken => drop(self.not_captured.remove(&ip)),
            Heard::Unsent => {}
        }
    }

    fn send(&mut self, signal: Signal, address: SocketAddr) -> Heard {
        let family = Family::of(&address.ip());
        let Some(socket) = &self.sockets[family as usize] else { return Heard::Unsent };
        let class = u32::from(signal.dscp()) << 2;
        let marked = match family {
            Family::V4 => SockRef::from(socket).set_tos_v4(class),
            Family::V6 => SockRef::from(socket).set_tclass_v6(class),
        };
        if marked.is_err() {
            return Heard::Unsent;
        }
        match socket.send_to(&[], address) {
            Ok(_) => Heard::NotTaken,
            Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Heard::Taken,
            Err(_) => Heard::Unsent,
        }
    }
}
