//! Tells the rules of `remora capture` that this process takes connections, and to which Service ports, and which of
//! them to refuse or drop before they are made. In: tables. Out: datagrams that the rules take and that never leave.
//! Never captures by itself.
//!
//! ```text
//!  table ──▶ verdicts, told at once and every minute ─▶ rules        a control task
//!            alive, every second ────────────────────▶ rules        a thread of its own, which nothing delays
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
use tokio::sync::Notify;
use watcher::Tables;

use crate::capture::agreement::{ALIVE_EVERY, Signal, VERDICT_LASTS};
use crate::capture::routed;

/// Verdicts are repeated well before they fade.
const REPEAT: Duration = Duration::from_secs(VERDICT_LASTS.as_secs() / 3);
/// Places told in a row before other control tasks get their turn.
const SAID_AT_ONCE: usize = 64;
/// How long an address that no rule takes is left in peace.
const NOT_CAPTURED: Duration = Duration::from_secs(600);
/// How long the heart rests after there was no room for a connection: until then those that end make room for few.
const FULL_RESTS: Duration = Duration::from_secs(5);
/// What is not taken goes no further than this Pod's node.
const HOPS: u32 = 1;
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
    /// Rules hear in a family where they did not: they were told nothing.
    heard: Notify,
    served: AtomicUsize,
    refused: AtomicUsize,
    dropped: AtomicUsize,
}

impl Capturing {
    /// Every family and whether the rules took the last heartbeat in it.
    pub fn families(&self) -> [(Family, bool); 2] {
        FAMILIES.map(|family| (family, self.0.alive[family as usize].load(Relaxed)))
    }

    /// At how many addresses and ports connections are served, refused and dropped.
    pub fn places(&self) -> [(&'static str, usize); 3] {
        let State { served, refused, dropped, .. } = &*self.0;
        [("serve", served), ("refuse", refused), ("drop", dropped)]
            .map(|(verdict, count)| (verdict, count.load(Relaxed)))
    }

    fn count(&self, signal: Signal) -> Option<&AtomicUsize> {
        match signal {
            Signal::Serve => Some(&self.0.served),
            Signal::Refuse => Some(&self.0.refused),
            Signal::Drop => Some(&self.0.dropped),
            Signal::Alive | Signal::Learn | Signal::Leave | Signal::Pass => None,
        }
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

/// Begins to tell what `tables` say, on the current runtime, and to beat once that has been told, while it `has_room`
/// for more connections. While it `learns`, what no table knows is captured, too.
///
/// # Errors
/// If there is no socket or no thread to be had.
pub fn start(
    tables: &Tables,
    capturing: &Capturing,
    mut has_room: impl FnMut() -> bool + Send + 'static,
    learns: impl Fn() -> bool + Send + 'static,
) -> io::Result<Heartbeat> {
    let (orders, ordered) = mpsc::channel();
    tokio::spawn(tell(tables.clone(), capturing.clone(), Voice::new()?, orders.clone()));
    let mut heart = Heart { voice: Voice::new()?, found: [None; 2] };
    let capturing = capturing.clone();
    std::thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
        let (mut beats, mut unheard, mut full) = (false, 0, None);
        loop {
            match ordered.recv_timeout(ALIVE_EVERY) {
                Ok(Order::Beat) => beats = true,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            if !has_room() {
                full = Some(Instant::now());
            }
            let rests = full.is_some_and(|at| at.elapsed() < FULL_RESTS);
            if beats && !rests {
                unheard = if heart.beat(&capturing, learns()) { 0 } else { unheard + 1 };
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

/// Tells what becomes of connections as tables change, again from time to time, and when the rules begin to hear.
async fn tell(tables: Tables, capturing: Capturing, mut voice: Voice, orders: mpsc::Sender<Order>) {
    let mut earlier = Arc::new(Table::default());
    let mut repeat = tokio::time::interval(REPEAT);
    loop {
        let version = earlier.version();
        tokio::select! {
            table = tables.reaches(|table| table.version() > version) => {
                for turn in verdicts::turns(&earlier, &table) {
                    voice.say(turn.signal, turn.address);
                    capturing.count(turn.before).map(|count| count.fetch_sub(1, Relaxed));
                    capturing.count(turn.signal).map(|count| count.fetch_add(1, Relaxed));
                }
                if version == 0 && orders.send(Order::Beat).is_err() {
                    return;
                }
                earlier = table;
            }
            () = capturing.0.heard.notified() => {
                voice.not_captured.clear();
                say_all(&mut voice, &earlier).await;
            }
            _ = repeat.tick() => say_all(&mut voice, &earlier).await,
        }
    }
}

async fn say_all(voice: &mut Voice, table: &Table) {
    for (said, (address, signal)) in verdicts::all(table).enumerate() {
        voice.say(signal, address);
        if said % SAID_AT_ONCE == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// Who beats.
struct Heart {
    voice: Voice,
    /// By family, an address whose signals a rule took.
    found: [Option<IpAddr>; 2],
}

impl Heart {
    /// Beats once; whether any family heard it.
    fn beat(&mut self, capturing: &Capturing, learns: bool) -> bool {
        for family in FAMILIES {
            let at = family as usize;
            let is_heard = self.found[at].is_some_and(|ip| self.is_taken(ip));
            if !is_heard {
                self.found[at] = self.search(family);
            }
            if let Some(ip) = self.found[at].filter(|_| learns) {
                self.voice.send(Signal::Learn, SocketAddr::new(ip, DISCARD));
            }
            let is_heard = self.found[at].is_some();
            if capturing.0.alive[at].swap(is_heard, Relaxed) != is_heard {
                let state = if is_heard {
                    capturing.0.heard.notify_one();
                    "capturing"
                } else {
                    "no rule takes the heartbeat any more: not capturing"
                };
                tracing::info!(%family, "{state}");
            }
        }
        self.found.iter().any(Option::is_some)
    }

    /// An address in `family` whose signals a rule takes: any that is captured.
    fn search(&mut self, family: Family) -> Option<IpAddr> {
        let addresses = routed().into_iter().filter_map(|range| range.hosts().next());
        let of_family: Vec<IpAddr> = addresses.filter(|ip| Family::of(ip) == family).collect();
        of_family.into_iter().find(|ip| self.is_taken(*ip))
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
#[derive(Debug)]
pub(crate) struct Voice {
    sockets: [Option<UdpSocket>; 2],
    /// Addresses that no rule takes, and when that was seen. As many as Services at most.
    not_captured: HashMap<IpAddr, Instant>,
}

impl Voice {
    /// One with sockets of its own.
    pub(crate) fn new() -> io::Result<Self> {
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // A machine without IPv6 captures none.
        let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok();
        for socket in [Some(&v4), v6.as_ref()].into_iter().flatten() {
            socket.set_nonblocking(true)?;
        }
        v4.set_ttl(HOPS)?;
        if let Some(v6) = &v6 {
            SockRef::from(v6).set_unicast_hops_v6(HOPS)?;
        }
        Ok(Self { sockets: [Some(v4), v6], not_captured: HashMap::new() })
    }

    /// Says `signal` of `address`, unless no rule took one to it lately.
    pub(crate) fn say(&mut self, signal: Signal, address: SocketAddr) {
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
