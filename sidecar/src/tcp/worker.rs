//! One data thread: takes connections in bursts and gives each a task of its own. In: listeners, and the stage
//! that the data plane is in. Out: how many connections were left when it stopped. Never hands a connection to
//! another thread.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use selection::Millis;
use tokio::runtime::LocalOptions;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinSet, spawn_local, yield_now};
use tokio::time::{sleep, timeout};
use watcher::{Reader, Tables};

use super::account::{Account, End};
use super::dial::{Dialled, dial};
use super::door::{self, Door, Ledgers, Taken, Wanted, Watched, accept};
use super::pins::Pins;
use super::relay::{Relay, Tools};
use super::socket::{Socket, Spare};
use super::{Entrance, Settings};
use crate::traffic::{Failure, Traffic};

/// Connections taken in a row before those that are open get their turn.
const BURST: usize = 64;
/// How long taking connections rests while this process has no descriptors for them.
const REST: Duration = Duration::from_millis(50);

/// What the data plane is to do.
///
/// ```text
/// Serving ──▶ Draining ──▶ Stopped
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Take connections.
    Serving,
    /// Take those that wait, then none, and let those that are open end.
    Draining,
    /// Reset what is open.
    Stopped,
}

/// A way in that is opened while connections are served.
pub(super) struct Opening {
    pub(super) entrance: Entrance,
    pub(super) listener: Arc<TcpListener>,
    /// Nobody can send any more: it is closed.
    pub(super) open: watch::Receiver<()>,
}

/// What a data thread is made with.
pub(super) struct Plan {
    pub(super) settings: Settings,
    pub(super) listeners: Vec<(Entrance, TcpListener)>,
    pub(super) openings: mpsc::UnboundedReceiver<Opening>,
    pub(super) tables: Tables,
    pub(super) pins: Arc<Pins>,
    /// Connections that are open, of all workers; counted only if they are limited.
    pub(super) open: Arc<AtomicUsize>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) stage: watch::Receiver<Stage>,
}

/// What the tasks of one data thread share.
pub(super) struct Worker {
    pub(super) settings: Settings,
    pub(super) reader: RefCell<Reader>,
    pub(super) pins: Arc<Pins>,
    pub(super) tools: RefCell<Tools>,
    /// Connections that are open.
    pub(super) active: Cell<usize>,
    /// See [`Plan::open`].
    open: Arc<AtomicUsize>,
    /// The last one left.
    empty: Notify,
    tables: Tables,
}

/// Runs one data thread to its end; returns how many connections it had to reset. Calls `serving` once it serves,
/// unless it cannot.
pub(super) fn run(plan: Plan, serving: impl FnOnce()) -> io::Result<usize> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_io().enable_time().build_local(LocalOptions::default())?;
    // With the tasks that are left go their sockets, which resets them.
    runtime.block_on(serve(plan, serving))
}

async fn serve(plan: Plan, serving: impl FnOnce()) -> io::Result<usize> {
    let Plan { settings, listeners, mut openings, tables, pins, open, traffic, mut stage } = plan;
    let tools = RefCell::new(Tools::new(settings.buffer_size));
    let worker = Rc::new(Worker {
        settings,
        reader: RefCell::new(tables.reader()),
        pins,
        tools,
        active: Cell::new(0),
        open,
        empty: Notify::new(),
        tables,
    });
    let ledgers = Rc::new(Ledgers::new(&traffic));
    // One ends with the stage, or when it is closed; a panic in it ends this door, not the others.
    let mut attending = JoinSet::new();
    let attend = |entrance: &Entrance, listener, open| {
        let door = Rc::new(Door::new(entrance, &ledgers));
        let stage = stage.clone();
        io::Result::Ok(attend(Rc::clone(&worker), door, door::watch(listener)?, open, stage))
    };
    for (entrance, listener) in listeners {
        attending.spawn_local(attend(&entrance, Arc::new(listener), None)?);
    }
    serving();
    let mut drains = stage.clone();
    loop {
        tokio::select! {
            Some(Opening { entrance, listener, open }) = openings.recv() => {
                match attend(&entrance, listener, Some(open)) {
                    Ok(attended) => drop(attending.spawn_local(attended)),
                    Err(error) => tracing::error!(address = %entrance.address(), %error, "cannot take connections"),
                }
            }
            Some(_) = attending.join_next() => {}
            _ = drains.wait_for(|stage| *stage != Stage::Serving) => break,
        }
    }
    // What was to be opened stays closed: nobody would take its connections.
    drop(openings);
    while attending.join_next().await.is_some() {}
    tokio::select! {
        () = worker.emptied() => {}
        // Fails if nobody is left to say it, which says the same.
        _ = stage.wait_for(|stage| *stage == Stage::Stopped) => {}
    }
    Ok(worker.active.get())
}

/// Takes the connections of one door until it is closed or the stage ends that.
async fn attend(
    worker: Rc<Worker>,
    door: Rc<Door>,
    listener: Watched,
    open: Option<watch::Receiver<()>>,
    mut stage: watch::Receiver<Stage>,
) {
    let mut closed = pin!(async move {
        match open {
            Some(mut open) => while open.changed().await.is_ok() {},
            None => pending().await,
        }
    });
    loop {
        match burst(&worker, &door, &listener) {
            Burst::More => yield_now().await,
            Burst::Done => tokio::select! {
                ready = listener.readable() => match ready {
                    Ok(mut guard) => guard.clear_ready(),
                    Err(_) => return,
                },
                () = &mut closed => break,
                _ = stage.wait_for(|stage| *stage != Stage::Serving) => break,
            },
            Burst::Exhausted => tokio::select! {
                () = sleep(REST) => {}
                () = &mut closed => break,
                _ = stage.wait_for(|stage| *stage != Stage::Serving) => break,
            },
        }
    }
    // Closing the listener resets whoever waits at it, and they waited while they were welcome.
    while matches!(burst(&worker, &door, &listener), Burst::More) {}
}

enum Burst {
    /// Perhaps more connections wait.
    More,
    /// None waits.
    Done,
    /// Some wait that cannot even be refused.
    Exhausted,
}

/// Takes connections. One begins with both descriptors, else those that are taken last would starve the others.
fn burst(worker: &Rc<Worker>, door: &Rc<Door>, listener: &Watched) -> Burst {
    for _ in 0..BURST {
        let (client, address) = match accept(listener) {
            Taken::Connection(client, address) => (client, address),
            Taken::Nobody => return Burst::Done,
            Taken::Exhausted(errno) => {
                door.exhausted(errno);
                return Burst::Exhausted;
            }
        };
        if worker.is_full() {
            door.ledger.counters.limited();
            continue;
        }
        // It was reset already, perhaps: then it is none.
        let Ok(wanted) = door.wanted(&client) else { continue };
        match Spare::new(door.family, worker.settings.descriptors_end) {
            Ok(spare) => {
                let account = Account::open(worker, door, address, wanted);
                spawn_local(connection(client, spare, account));
            }
            Err(errno) => {
                door.ledger.counters.limited();
                door.exhausted(errno);
            }
        }
    }
    Burst::More
}

/// One connection, from when it was taken to its end.
async fn connection(mut client: Socket, spare: Spare, mut account: Account) {
    // A captured connection need not wait: it passes.
    if !account.worker.tables.is_synced() && account.wanted == Wanted::Service {
        let synced = account.worker.tables.synced();
        if timeout(account.worker.settings.connect_timeout, synced).await.is_err() {
            account.end = End::Unsynced;
            return;
        }
    }
    let Dialled { endpoint, pending } = match dial(&client, spare, &mut account).await {
        Ok(dialled) => dialled,
        Err(end) => {
            account.end = end;
            return;
        }
    };
    if client.watch().is_err() {
        account.end = End::Failed(Failure::Descriptors);
        return;
    }
    let mut relay = Relay::new(client, endpoint, pending);
    let mut settled = pin!(sleep(account.worker.settings.keep_alive_after));
    let mut is_settled = false;
    let end = poll_fn(|cx| {
        let worker = &account.worker;
        let end = relay.poll(cx, &mut worker.tools.borrow_mut(), &account.ledger.counters);
        if end.is_pending() && !is_settled && settled.as_mut().poll(cx).is_ready() {
            is_settled = true;
            relay.keep_alive();
        }
        end
    })
    .await;
    account.end = End::Relayed(end);
}

impl Worker {
    /// Where tables are published.
    pub(super) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The time of tallies and pins.
    pub(super) fn now(&self) -> Millis {
        self.settings.origin.elapsed().as_millis() as Millis
    }

    /// There are as many connections as there may be. Two workers may both find room for the last one.
    fn is_full(&self) -> bool {
        self.open.load(Relaxed) >= self.settings.max_connections
    }

    fn is_limited(&self) -> bool {
        self.settings.max_connections < usize::MAX
    }

    /// A connection began.
    pub(super) fn came(&self) {
        self.active.set(self.active.get() + 1);
        if self.is_limited() {
            self.open.fetch_add(1, Relaxed);
        }
    }

    /// A connection ended.
    pub(super) fn left(&self) {
        if self.is_limited() {
            self.open.fetch_sub(1, Relaxed);
        }
        self.active.set(self.active.get() - 1);
        if self.active.get() == 0 {
            self.empty.notify_waiters();
        }
    }

    async fn emptied(&self) {
        while self.active.get() > 0 {
            self.empty.notified().await;
        }
    }
}
