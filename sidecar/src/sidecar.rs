//! `remora sidecar`: puts the parts together, on Pingora's server. The only file that knows them all.
//!
//! ```text
//! control runtime: watch ──tables──▶ data threads (tcp)      Pingora services, a thread each: data (drains),
//!                    └──────────────▶ health, admin, feed                                     health, admin, feed
//! ```
//! Everything that can fail at the start fails before the server runs, as one sentence.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{ListenFds, RunArgs, Server, ShutdownWatch};
use pingora_core::services::Service;
use rustix::process::Resource;
use selection::{Family, Seed, ServiceName};
use tokio::sync::watch;
use watcher::kubernetes::Notices;
use watcher::kubernetes::balancer::Release;
use watcher::{Scope, Source, Watch};

use crate::admin::{Admin, Secret};
use crate::capture::agreement;
use crate::config::Sidecar;
use crate::dns::{self, Dns, Resolver};
use crate::ending::{self, Asked, DataPlane};
use crate::feed::{self, Feed};
use crate::handover::{self, Held, Inherited, Offer, Role};
use crate::health::{Draining, Health};
use crate::http::{self, Answers};
use crate::listeners::Listeners;
use crate::metrics::Metrics;
use crate::signals::{self, Capturing};
use crate::tcp::{self, Entrance, Listen, StandIn};
use crate::traffic::Traffic;
use crate::{asking, balancer, capabilities, certificate, demand, logs, node};

/// Why the sidecar does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data plane.
    #[error(transparent)]
    Tcp(#[from] tcp::Error),
    /// An address of the control plane.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// The feed.
    #[error(transparent)]
    Feed(#[from] feed::Error),
    /// The addresses of this node.
    #[error(transparent)]
    Node(#[from] node::Error),
    /// The addresses of a load balancer.
    #[error(transparent)]
    Balancer(#[from] balancer::Error),
    /// The DNS.
    #[error(transparent)]
    Dns(#[from] dns::Error),
    /// What is shown by TLS.
    #[error(transparent)]
    Certificate(#[from] certificate::Error),
    /// The process before or after this one.
    #[error(transparent)]
    Handover(#[from] handover::Error),
    /// The source.
    #[error(transparent)]
    Source(#[from] watcher::Error),
    /// What the system did not give.
    #[error("cannot {0}: {1}; raise the limits of this process on threads and open files")]
    System(&'static str, std::io::Error),
}

/// Runs the sidecar until it is asked to end and has drained.
///
/// # Errors
/// If it cannot start; nothing has been served then.
pub fn run(config: Sidecar) -> Result<(), Error> {
    logs::start(config.log_format, &config.log_level);
    let descriptors = raise_descriptor_limit();
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|error| Error::System("start the control thread", error))?;
    let asked = {
        let _inside = control.enter();
        ending::signals().map_err(|error| Error::System("hear signals", error))?
    };

    let origin = Instant::now();
    let Secret(seed) = secret().map_err(|error| Error::System("read random numbers", error))?;
    let descriptors_end =
        i32::try_from(descriptors - DESCRIPTORS_KEPT.min(descriptors / 4)).unwrap_or(i32::MAX);
    let (asking, questions) = config.on_demand.map(|_| asking::asking()).unzip();
    let asks = asking.as_ref().map(asking::Asking::counts);
    let settings = tcp::Settings {
        connect_timeout: config.connect_timeout,
        max_connections: config.max_connections,
        descriptors_end,
        buffer_size: config.buffer_size,
        workers: config.threads.get(),
        seed,
        origin,
        log_connections: config.log_connections,
        asking,
        ..tcp::Settings::default()
    };
    let (tells, stand_ins): (Vec<_>, Vec<_>) = config.listens.iter().map(|_| StandIn::new()).unzip();
    let listened = config.listens.iter().cloned().zip(stand_ins.iter().cloned());
    let mut entrances: Vec<Entrance> =
        listened.map(|(listen, stand_in)| Entrance::Listen(listen, stand_in)).collect();
    if config.capture {
        capabilities::raise();
        entrances.extend(captured());
    }
    let mut inherited = config.handover.as_deref().map(Inherited::take).transpose()?.unwrap_or_default();
    let node = config.node.as_ref().map(node::Node::new).transpose()?;
    let balancing = config.balancing.map(|balancing| {
        let balancer = balancer::Balancer::new(&balancing.interface)?;
        Ok::<_, Error>((balancer, balancing.options))
    });
    let balancing = balancing.transpose()?;
    let bound = tcp::bind(&entrances, settings, &mut inherited)?;
    if config.capture {
        capabilities::lower();
    }
    let listens = with_addresses(&config.listens, &bound.addresses());
    let assets = config.assets.as_deref().map(feed::Assets::new).transpose()?;
    let feed = config.feed.map(|address| feed::bind(&address, &mut inherited)).transpose()?;
    let (dns_address, follows_names) = (config.dns.as_ref().map(|dns| dns.address), config.dns.is_some());
    let is_authority = matches!(config.source, Source::Kube(_));
    let resolver = Arc::new(Resolver::new(&config.names.forward));
    let dns = config.dns.map(|settings| Dns::new(settings, is_authority).map(Arc::new)).transpose()?;
    let mut bind = |flag, address| http::bind(flag, address, &mut inherited);
    let health = config.health.map(|address| bind("health", address)).transpose()?;
    let admin = config.admin.map(|address| bind("admin", address)).transpose()?;

    let source = config.source.to_string();
    let is_kube = matches!(config.source, Source::Kube(_));
    let notices = (node.is_some() && is_kube)
        .then(|| control.block_on(Notices::new("remora-node", config.here.node.as_ref())))
        .transpose()
        .map_err(watcher::Error::from)?;
    let (mut balance, mut demands) = (None, None);
    let scope = match balancing {
        Some(_) => Scope::All,
        None => scope(&listens, config.capture || node.is_some(), feed.is_some() || follows_names),
    };
    let (watch, balancer) = match balancing {
        Some((balancer, options)) => {
            let watcher::Balance { watch, leads, release } =
                control.block_on(watcher::balance(options, balancer.held()))?;
            balance = Some((balancer.counts(), leads, release, balancer.held()));
            (watch, Some(balancer))
        }
        None => match (config.source.clone(), config.here.clone(), config.on_demand.zip(questions)) {
            (Source::Feed(address), here, Some((idle, questions))) => {
                let always = listens.iter().map(|listen| listen.service.clone());
                let _inside = control.enter();
                let (watch, following) = demand::follow(address, always, here, idle, questions)
                    .map_err(|error| Error::System("tell what is left to the node", error))?;
                demands = Some(following);
                (watch, None)
            }
            (source, here, _) => (control.block_on(watcher::start(source, scope.clone(), here))?, None),
        },
    };
    let shared = Listeners {
        watch: watch.clone(),
        source: config.source,
        scope,
        here: config.here.clone(),
        zone: config.names.zone,
        resolver: Arc::clone(&resolver),
    };
    for (listen, tell) in listens.iter().zip(tells) {
        control.spawn(shared.clone().serve(listen.clone(), tell));
    }
    drop(shared);
    if inherited.is_from_somebody() && !control.block_on(is_synced(&watch, &asked)) {
        return Ok(());
    }
    // Shared with an earlier process, so not before this one can answer, and with a later one, until this one ends.
    let names = dns_address.map(|address| dns::bind(address, config.handover.is_some())).transpose()?;
    let offered = config
        .handover
        .is_some()
        .then(|| held(&bound, [health.as_ref(), admin.as_ref(), feed.as_ref().and_then(feed::Listener::tcp)]))
        .transpose()?;
    let traffic = Arc::new(Traffic::default());
    let running = bound.run(&watch.tables, &traffic)?;
    if let Some(demands) = demands {
        control.spawn(demands.serve(Arc::clone(&traffic)));
    }
    inherited.serves();
    let draining = Draining::default();
    let node_counts = node.as_ref().map(node::Node::counts);
    let mut node_at = Vec::new();
    if let Some(node) = node {
        node_at.extend_from_slice(node.addresses());
        control.spawn(node.serve(watch.tables.clone(), running.opener(), draining.clone(), notices));
    }
    if let Some(balancer) = balancer {
        control.spawn(balancer.serve(watch.tables.clone(), running.opener()));
    }
    let capturing = Capturing::default();
    let heartbeat = {
        let _inside = control.enter();
        let (counted, mut exhausted) = (Arc::clone(&traffic), 0);
        // Those that end meanwhile may leave room for a few at this moment.
        let has_room = move || {
            let before = std::mem::replace(&mut exhausted, counted.exhausted());
            exhausted == before && tcp::has_room(descriptors_end)
        };
        let counts = asks.clone();
        let learns = move || counts.as_ref().is_some_and(|counts| counts.is_live());
        let begin = || signals::start(&watch.tables, &capturing, has_room, learns);
        config.capture.then(begin).transpose().map_err(|error| Error::System("start the heartbeat", error))?
    };
    let asking = Arc::clone(&asked);
    let succeeded = move || asking.send_modify(|asked| asked.succeeded = true);
    let offer =
        config.handover.zip(offered).map(|(path, held)| Offer::new(&path, held, succeeded)).transpose()?;
    names.as_ref().and_then(|names| names.address().ok()).into_iter().for_each(announce_names);
    let captured = &entrances[listens.len()..];
    announce(&listens, captured, &node_at, feed.as_ref(), health.as_ref(), admin.as_ref());

    let mut server = Server::new_with_opt_and_conf(None, ServerConf { threads: 1, ..ServerConf::default() });
    server.bootstrap();
    let (data, until_drained) =
        DataPlane::new(running, config.drain_timeout, asked.subscribe(), draining.clone());
    let (answers, answered) = watch::channel(());
    server.add_service(data.with(offer, heartbeat, answered));
    let feed = feed.map(|listener| (Feed::new(watch.clone(), assets), listener));
    if let Some(listener) = health {
        let listened = listens.iter().cloned().zip(stand_ins.iter().cloned()).collect();
        let metrics = Metrics::new(watch.clone(), Arc::clone(&traffic), listened, origin);
        let metrics = if listens.is_empty() { metrics } else { metrics.with_resolver(resolver) };
        let metrics = if config.capture { metrics.with(capturing) } else { metrics };
        let metrics = match asks {
            Some(asks) => metrics.with_demand(asks),
            None => metrics,
        };
        let metrics = match node_counts {
            Some(counts) => metrics.with_node(counts),
            None => metrics,
        };
        let metrics = match &balance {
            Some((counts, leads, ..)) => metrics.with_balancer(Arc::clone(counts), leads.clone()),
            None => metrics,
        };
        let metrics = match &feed {
            Some((feed, _)) => metrics.with_feed(feed.counts()),
            None => metrics,
        };
        let metrics = match &dns {
            Some(dns) => metrics.with_dns(dns.counts()),
            None => metrics,
        };
        // Captured connections and names are served from the start: by others until the first table is here.
        let is_ready_without_table = (config.capture || follows_names) && listens.is_empty();
        let node = [Family::V4, Family::V6].into_iter();
        let node = node.filter(|family| node_at.iter().any(|ip| Family::of(ip) == *family)).collect();
        let certificate = None;
        let answers =
            Health { watch: watch.clone(), metrics, draining, is_ready_without_table, certificate, node };
        server.add_service(Control::new("health", listener, answers, &asked));
    }
    match dns.zip(names) {
        Some((dns, listener)) => {
            let serves = Some((dns, listener, watch.clone()));
            server.add_service(Naming { serves, asked: asked.subscribe(), answers: Some(answers) });
        }
        None => drop(answers),
    }
    if let Some(listener) = admin {
        let listens = listens.into_iter().zip(stand_ins).collect();
        let learns = config.on_demand.is_some();
        let answers = Admin { watch, traffic, listens, source, learns, secret: Secret(seed), origin };
        server.add_service(Control::new("admin", listener, answers, &asked));
    }
    if let Some((feed, listener)) = feed {
        server.add_service(Feeding { serves: Some((feed, listener)), asked: asked.subscribe() });
    }
    let giving_up =
        balance.map(|(_, _, release, held)| control.spawn(give_up(asked.subscribe(), release, held)));
    server.run(RunArgs { shutdown_signal: Box::new(until_drained) });
    if let Some(giving_up) = giving_up {
        // What is left is another process's to clean, which it does when it starts.
        let _ = control.block_on(async { tokio::time::timeout(GIVING_UP, giving_up).await });
    }
    control.shutdown_background();
    Ok(())
}

/// A Pingora service that answers on one address, on a thread of its own.
struct Control<A> {
    name: &'static str,
    listener: Option<TcpListener>,
    answers: Arc<A>,
    asked: watch::Receiver<Asked>,
}

impl<A> Control<A> {
    fn new(name: &'static str, listener: TcpListener, answers: A, asked: &watch::Sender<Asked>) -> Self {
        Self { name, listener: Some(listener), answers: Arc::new(answers), asked: asked.subscribe() }
    }
}

#[async_trait]
impl<A: Answers> Service for Control<A> {
    /// Answers until the runtime ends, also while connections drain, or until a successor answers.
    async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, _: usize) {
        let Some(listener) = self.listener.take() else { return };
        tokio::select! {
            Err(error) = http::serve(listener, Arc::clone(&self.answers)) => {
                tracing::error!(%error, "cannot answer on the {} address; restart to try again", self.name);
            }
            _ = self.asked.wait_for(|asked| asked.succeeded) => {}
        }
    }

    fn name(&self) -> &str {
        self.name
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// The feed as a Pingora service, on a thread of its own.
struct Feeding {
    serves: Option<(Feed, feed::Listener)>,
    asked: watch::Receiver<Asked>,
}

#[async_trait]
impl Service for Feeding {
    /// Serves until the runtime ends, also while connections drain, or until a successor serves.
    async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, _: usize) {
        let Some((feed, listener)) = self.serves.take() else { return };
        tokio::select! {
            Err(error) = feed.serve(listener) => {
                tracing::error!(%error, "cannot serve the feed; restart to try again");
            }
            _ = self.asked.wait_for(|asked| asked.succeeded) => {}
        }
    }

    fn name(&self) -> &str {
        "feed"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// The DNS as a Pingora service, on a thread of its own.
struct Naming {
    serves: Option<(Arc<Dns>, dns::Listener, Watch)>,
    asked: watch::Receiver<Asked>,
    /// Dropped once no question is left.
    answers: Option<watch::Sender<()>>,
}

#[async_trait]
impl Service for Naming {
    /// Answers until the runtime ends, also while connections drain; or until a successor does and no question is left
    /// in a socket that nobody reads.
    async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, _: usize) {
        let Some((dns, listener, watch)) = self.serves.take() else { return };
        let mut asked = self.asked.clone();
        let leaves = async move {
            if asked.wait_for(|asked| asked.succeeded).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        if let Err(error) = dns.serve(listener, watch, leaves).await {
            tracing::error!(%error, "cannot answer DNS; restart to try again");
        }
        self.answers = None;
    }

    fn name(&self) -> &str {
        "dns"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// When this process is asked to end, lets another one have the addresses, at once: they are no use to whoever connects
/// from here on, and open connections can be held by no other address.
async fn give_up(
    mut asked: watch::Receiver<Asked>,
    release: Release,
    mut held: watch::Receiver<BTreeSet<IpAddr>>,
) {
    let _ = asked.wait_for(Asked::to_end).await;
    release.release().await;
    let _ = held.wait_for(BTreeSet::is_empty).await;
}

/// Waits for the first table; tells whether it came before this process was asked to end.
async fn is_synced(watch: &Watch, asked: &watch::Sender<Asked>) -> bool {
    let mut asked = asked.subscribe();
    tracing::info!("an earlier process serves until the first table is here");
    tokio::select! {
        () = watch.tables.synced() => true,
        _ = asked.wait_for(Asked::to_end) => false,
    }
}

/// Every listening socket once more.
fn held(bound: &tcp::Bound, control: [Option<&TcpListener>; 3]) -> Result<Vec<Held>, Error> {
    let http = control.into_iter().flatten();
    let http = http.map(|socket| Ok((Role::Http, socket.local_addr()?, socket.try_clone()?)));
    let all = bound.held().and_then(|tcp| tcp.into_iter().map(Ok).chain(http).collect());
    all.map_err(|error| Error::System("offer the listening sockets to a successor", error))
}

/// Where the rules of `remora capture` bring connections, in the families that this machine has.
fn captured() -> impl Iterator<Item = Entrance> {
    let has = |ip: &IpAddr| TcpListener::bind((*ip, 0)).is_ok();
    let ips = [agreement::LISTENER_V4, agreement::LISTENER_V6].into_iter().filter(has);
    ips.map(|ip| Entrance::Capture(SocketAddr::new(ip, agreement::PORT)))
}

/// What the listeners need; everything if there are none, if any Service's connections may come, or if readers may want
/// anything.
fn scope(listens: &[Listen], capture: bool, feed_or_dns: bool) -> Scope {
    if capture || feed_or_dns {
        return Scope::All;
    }
    if listens.is_empty() {
        tracing::warn!(
            "nothing to serve without --capture or --listen ADDRESS:PORT=NAMESPACE/NAME:PORT; following every Service"
        );
        return Scope::All;
    }
    let services: BTreeSet<ServiceName> = listens.iter().map(|listen| listen.service.clone()).collect();
    Scope::Services(services.into_iter().collect())
}

fn with_addresses(listens: &[Listen], addresses: &[SocketAddr]) -> Vec<Listen> {
    let pairs = listens.iter().zip(addresses);
    pairs.map(|(listen, address)| Listen { address: *address, ..listen.clone() }).collect()
}

/// Says on standard output which addresses are taken, one a line: `listen ADDRESS SERVICE:PORT`,
/// `capture ADDRESS`, `node ADDRESS` without a port, `feed ADDRESS`, `health ADDRESS`, `admin ADDRESS`.
pub(crate) fn announce(
    listens: &[Listen],
    captured: &[Entrance],
    node: &[IpAddr],
    feed: Option<&feed::Listener>,
    health: Option<&TcpListener>,
    admin: Option<&TcpListener>,
) {
    let mut lines = String::new();
    for entrance in captured {
        lines += &format!("capture {}\n", entrance.address());
    }
    for ip in node {
        tracing::info!(address = %ip, "serving node ports");
        lines += &format!("node {ip}\n");
    }
    for listen in listens {
        tracing::info!(address = %listen.address, service = %listen.service, port = listen.port, "listening");
        lines += &format!("listen {} {}:{}\n", listen.address, listen.service, listen.port);
    }
    if let Some(Ok(address)) = feed.map(feed::Listener::address) {
        tracing::info!(%address, "serving the feed");
        lines += &format!("feed {address}\n");
    }
    for (name, listener) in [("health", health), ("admin", admin)] {
        if let Some(Ok(address)) = listener.map(TcpListener::local_addr) {
            tracing::info!(%address, "answering {name}");
            lines += &format!("{name} {address}\n");
        }
    }
    // Nobody may be reading, and that is no reason not to serve.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
}

/// Says `dns ADDRESS`, as [`announce`] says the others.
fn announce_names(address: SocketAddr) {
    tracing::info!(%address, "answering DNS");
    // As for the others.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "dns {address}").and_then(|()| out.flush());
}

/// Addresses are off the interface, and the lease is free, within this time of a process's end.
const GIVING_UP: Duration = Duration::from_secs(6);

/// Descriptors that connections leave to the health and admin addresses and the source.
const DESCRIPTORS_KEPT: u64 = 64;

/// Two descriptors a connection are soon more than the usual 1,024; as many as may be without asking anybody. Tells
/// how many.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit on open files; raise it with ulimit -n before the start");
    }
    rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// A seed for draws that nobody can guess.
pub(crate) fn secret() -> std::io::Result<Secret> {
    let mut bytes = [0; 16];
    let read = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if read < bytes.len() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let (a, b) = bytes.split_at(8);
    let number = |half: &[u8]| half.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Ok(Secret(Seed(number(a), number(b))))
}
