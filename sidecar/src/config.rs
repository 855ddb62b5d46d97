//! What the program shall do, validated: the only place that judges what was typed. In: [`crate::arguments`], and
//! whether this is a Pod. Out: values of which none can be wrong any more, or one sentence.
//! Never opens anything.

mod ask;
mod capture;
mod duration;
mod error;
mod inject;
mod listen;
mod loadbalancer;
mod names;
mod range;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use selection::Here;
use watcher::{Source, feed};

pub use ask::{Ask, Endpoints, Explain, client, service};
pub use capture::{Capture, CaptureUp};
pub use error::Error;
pub use inject::Inject;
pub use loadbalancer::Balancing;
pub use names::Names;

use crate::arguments::{
    HubArguments, InjectedArguments, LogFormat, NodeArguments, PlaceArguments, ServingArguments,
    SidecarArguments, SourceArguments,
};
use crate::capture::merged;
use crate::certificate;
use crate::dns;
use crate::node;
use crate::tcp::Listen;

/// Where the kubelet and Prometheus ask in a Pod.
const HEALTH_IN_POD: &str = "[::]:64104";
/// Where `remora endpoints` asks in a Pod.
const ADMIN_IN_POD: &str = "127.0.0.1:64103";
/// More threads than this are a mistake.
const THREADS_MOST: usize = 1024;

/// Smaller buffers cost more than they save, larger ones are a mistake.
const BUFFER_SIZES: std::ops::RangeInclusive<usize> = 4 * 1024..=16 * 1024 * 1024;

/// What `remora sidecar` shall do, or `remora node`, or `remora loadbalancer`.
#[derive(Debug)]
pub struct Sidecar {
    /// Where clients connect to.
    pub listens: Vec<Listen>,
    /// Take captured connections too.
    pub capture: bool,
    /// Know of a feed only what is used, and so long after.
    pub on_demand: Option<Duration>,
    /// Serve node ports.
    pub node: Option<NodePorts>,
    /// Be a load balancer.
    pub balancing: Option<Balancing>,
    /// Where Services come from.
    pub source: Source,
    /// Where this process runs.
    pub here: Here,
    /// Where the kubelet and Prometheus ask.
    pub health: Option<SocketAddr>,
    /// Where people ask.
    pub admin: Option<SocketAddr>,
    /// Where the feed is served.
    pub feed: Option<feed::Address>,
    /// What names end with, and who knows those of others.
    pub names: Names,
    /// How names are answered.
    pub dns: Option<dns::Settings>,
    /// The folder of the files that are served beside it.
    pub assets: Option<PathBuf>,
    /// Connections at once.
    pub max_connections: usize,
    /// Bytes that each direction of a connection may hold.
    pub buffer_size: usize,
    /// How long one connect may take.
    pub connect_timeout: Duration,
    /// How long open connections may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Where an earlier process hands over, and this one to a later.
    pub handover: Option<PathBuf>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which log lines.
    pub log_level: String,
    /// One line a closed connection.
    pub log_connections: bool,
    /// Threads that move bytes.
    pub threads: NonZeroUsize,
}

/// Where node ports are served.
#[derive(Debug)]
pub struct NodePorts {
    /// At which addresses.
    pub at: node::Which,
    /// The node's primary addresses; none if the system shall say.
    pub node_ips: Vec<IpAddr>,
    /// Clients that are Pods.
    pub pods: Vec<IpNet>,
}

/// What `remora hub` shall do.
#[derive(Debug)]
pub struct Hub {
    /// Where Services come from.
    pub source: Source,
    /// Where the feed is served: by TLS to who shows a token, if it is a TCP address and there is a certificate.
    pub feed: feed::Address,
    /// For whom those tokens are.
    pub feed_audience: String,
    /// The folder of the files that are served beside it.
    pub assets: Option<PathBuf>,
    /// Where the certificate is that is shown by TLS.
    pub certificate: Option<certificate::Place>,
    /// The MutatingWebhookConfiguration that shall trust it.
    pub webhook_configuration: Option<String>,
    /// Where the API server asks what Pods get; never without a certificate.
    pub webhook: Option<Webhook>,
    /// Where the kubelet and Prometheus ask.
    pub health: Option<SocketAddr>,
    /// Where people ask.
    pub admin: Option<SocketAddr>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which log lines.
    pub log_level: String,
}

/// How the API server is told what Pods get.
#[derive(Debug)]
pub struct Webhook {
    /// Where it asks.
    pub address: SocketAddr,
    /// What they get.
    pub settings: crate::inject::Settings,
}

impl Sidecar {
    /// Judges the command line of `remora sidecar`; `in_pod` decides defaults.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(typed: SidecarArguments, in_pod: bool) -> Result<Self, Error> {
        let listens = listens(&typed.listen)?;
        let idle = match typed.on_demand_idle.trim() {
            "off" => None,
            text => Some(positive("on-demand-idle", text, "10m")?),
        };
        let serving = Self::serving(typed.serving, in_pod)?;
        // Who reads a feed of ours, or asks for names, may want any Service.
        let is_alone = serving.feed.is_none() && serving.dns.is_none();
        let may = typed.capture && is_alone && matches!(serving.source, Source::Feed(_));
        Ok(Self { listens, capture: typed.capture, on_demand: idle.filter(|_| may), ..serving })
    }

    /// Judges the command line of `remora node`; `in_pod` decides defaults.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn node(typed: NodeArguments, in_pod: bool) -> Result<Self, Error> {
        if typed.serving.handover.as_ref().is_some_and(|path| !path.as_os_str().is_empty()) {
            return Err(Error::HandoverOfNode);
        }
        let ip = |text: &String| text.trim().parse().map_err(|_| Error::NodeIp(text.clone()));
        let node = NodePorts {
            at: node::Which::parse(given(&typed.nodeport_addresses)).map_err(Error::NodePortAddresses)?,
            node_ips: given(&typed.node_ips).map(ip).collect::<Result<_, _>>()?,
            pods: ranges("pods", &typed.pods)?,
        };
        Ok(Self { node: Some(node), ..Self::serving(typed.serving, in_pod)? })
    }

    fn serving(typed: ServingArguments, in_pod: bool) -> Result<Self, Error> {
        let (health, admin) = control(typed.health.as_deref(), typed.admin.as_deref(), in_pod)?;
        let level = level(&typed.log_level)?;
        let feed = typed.feed.as_deref().filter(|text| !matches!(text.trim(), "" | "off"));
        let source = followed(typed.source)?;
        let names = Names::new(&typed.dns_forward, &typed.dns_zone)?;
        let dns = names.answered(typed.dns.as_deref(), &source)?;
        let assets = path(typed.assets);
        if assets.is_some() && feed.is_none() {
            return Err(Error::AssetsWithoutFeed);
        }
        Ok(Self {
            listens: Vec::new(),
            capture: false,
            on_demand: None,
            node: None,
            balancing: None,
            source,
            here: here(typed.place),
            health,
            admin,
            names,
            dns,
            feed: feed.map(|text| feed_place(text, false)).transpose()?,
            assets,
            max_connections: max_connections(typed.max_connections.as_deref())?,
            buffer_size: buffer_size(&typed.buffer_size)?,
            connect_timeout: positive("connect-timeout", &typed.connect_timeout, "5s")?,
            drain_timeout: duration("drain-timeout", &typed.drain_timeout, "30s")?,
            handover: path(typed.handover),
            log_format: typed.log_format,
            log_level: level,
            log_connections: typed.log_connections,
            threads: threads(typed.threads.as_deref())?,
        })
    }
}

impl Hub {
    /// Judges the command line of `remora hub`; `in_pod` decides defaults.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(typed: HubArguments, in_pod: bool) -> Result<Self, Error> {
        let (health, admin) = control(typed.health.as_deref(), typed.admin.as_deref(), in_pod)?;
        let certificate = certificate_place(typed.certificate.as_deref(), typed.certificate_name)?;
        let feed_audience = typed.injected.feed_audience.clone();
        let webhook = webhook(typed.webhook.as_deref(), certificate.is_some(), typed.injected)?;
        Ok(Self {
            source: followed(typed.source)?,
            feed: feed_place(&typed.feed, certificate.is_some())?,
            feed_audience,
            assets: path(typed.assets),
            certificate,
            webhook_configuration: typed.webhook_configuration.filter(|name| !name.is_empty()),
            webhook,
            health,
            admin,
            log_format: typed.log_format,
            log_level: level(&typed.log_level)?,
        })
    }
}

/// Ranges of addresses, given with the flag `flag`.
fn ranges(flag: &'static str, typed: &[String]) -> Result<Vec<IpNet>, Error> {
    let range = |text: &String| range::net(text).ok_or_else(|| Error::Range(flag, text.clone()));
    given(typed).map(range).collect::<Result<Vec<_>, _>>().map(merged)
}

/// What is not blank: an empty environment variable names nothing.
fn given(typed: &[String]) -> impl Iterator<Item = &String> {
    typed.iter().filter(|text| !text.trim().is_empty())
}

fn listens(typed: &[String]) -> Result<Vec<Listen>, Error> {
    let mut listens: Vec<Listen> = Vec::new();
    for text in typed.iter().filter(|text| !text.trim().is_empty()) {
        let listen = listen::parse(text.trim()).map_err(|why| Error::Listen(text.clone(), why))?;
        if listen.address.port() != 0 && listens.iter().any(|l| l.address == listen.address) {
            return Err(Error::ListenTwice(listen.address));
        }
        listens.push(listen);
    }
    Ok(listens)
}

/// The addresses of health and admin.
fn control(
    health: Option<&str>,
    admin: Option<&str>,
    in_pod: bool,
) -> Result<(Option<SocketAddr>, Option<SocketAddr>), Error> {
    let defaults = if in_pod { (HEALTH_IN_POD, ADMIN_IN_POD) } else { ("off", "off") };
    let health = address("health", health, defaults.0, "0.0.0.0:64104")?;
    let admin = address("admin", admin, defaults.1, ADMIN_IN_POD)?;
    match admin.filter(|admin| !admin.ip().is_loopback()) {
        Some(open) => Err(Error::AdminNotLoopback(open)),
        None => Ok((health, admin)),
    }
}

fn certificate_place(typed: Option<&str>, names: Vec<String>) -> Result<Option<certificate::Place>, Error> {
    let names: Vec<String> = names.into_iter().filter(|name| !name.is_empty()).collect();
    let Some(typed) = typed.filter(|typed| !typed.is_empty()) else { return Ok(None) };
    let Some(secret) = typed.strip_prefix("secret:") else {
        return Ok(Some(certificate::Place::Folder(typed.into())));
    };
    let (namespace, name) = match secret.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, secret),
    };
    if name.is_empty() || namespace.is_some_and(str::is_empty) {
        return Err(Error::Certificate(typed.to_owned()));
    }
    if names.is_empty() {
        return Err(Error::CertificateWithoutName(typed.to_owned()));
    }
    let namespace = namespace.map(str::to_owned);
    Ok(Some(certificate::Place::Secret { namespace, name: name.to_owned(), names }))
}

fn webhook(
    typed: Option<&str>,
    has_certificate: bool,
    injected: InjectedArguments,
) -> Result<Option<Webhook>, Error> {
    match address("webhook", typed, "off", "[::]:64106")? {
        None => Ok(None),
        Some(address) if !has_certificate => Err(Error::WebhookWithoutCertificate(address)),
        Some(address) => Ok(Some(Webhook { address, settings: inject::settings(injected)? })),
    }
}

fn level(text: &str) -> Result<String, Error> {
    let level = text.trim().to_owned();
    if crate::logs::is_level(&level) { Ok(level) } else { Err(Error::LogLevel(level)) }
}

/// Where a feed is served; anywhere, if there is a certificate to show.
fn feed_place(text: &str, has_certificate: bool) -> Result<feed::Address, Error> {
    match feed::Address::parse(text.trim()) {
        Ok(feed::Address::Tls { .. }) => Err(Error::Feed(text.to_owned())),
        Ok(address) => Ok(address),
        Err(feed::AddressError::NotLoopback(address)) if has_certificate => Ok(feed::Address::Tcp(address)),
        Err(feed::AddressError::NotLoopback(address)) => Err(Error::FeedNotLoopback(address)),
        Err(feed::AddressError::Unknown(text)) => Err(Error::Feed(text)),
    }
}

/// An empty environment variable names nothing.
fn path(typed: Option<PathBuf>) -> Option<PathBuf> {
    typed.filter(|path| !path.as_os_str().is_empty())
}

fn source(flag: &'static str, text: &str) -> Result<Source, Error> {
    Source::parse(text).map_err(|error| Error::Source(flag, error.to_string()))
}

/// A source, with what it takes to be let in there.
fn followed(typed: SourceArguments) -> Result<Source, Error> {
    let mut source = source("source", &typed.source)?;
    if let Source::Feed(feed::Address::Tls { trust, .. }) = &mut source {
        let authority = typed.feed_ca.filter(|text| !text.trim().is_empty());
        trust.authority = authority.ok_or_else(|| Error::FeedWithoutAuthority(typed.source.clone()))?;
        trust.token = path(typed.feed_token);
    }
    Ok(source)
}

fn here(typed: PlaceArguments) -> Here {
    let known = |text: String| Some(text.trim().into()).filter(|name: &selection::Symbol| !name.is_empty());
    Here { node: known(typed.node), zone: known(typed.zone) }
}

/// An address or `off`; absent and empty mean `default`.
fn address(
    flag: &'static str,
    typed: Option<&str>,
    default: &str,
    example: &'static str,
) -> Result<Option<SocketAddr>, Error> {
    let text = typed.map(str::trim).filter(|text| !text.is_empty()).unwrap_or(default);
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Error::Address(flag, text.to_owned(), example))
}

fn duration(flag: &'static str, text: &str, example: &'static str) -> Result<Duration, Error> {
    duration::parse(text.trim()).ok_or_else(|| Error::Duration(flag, text.to_owned(), example))
}

fn positive(flag: &'static str, text: &str, example: &'static str) -> Result<Duration, Error> {
    let duration = duration(flag, text, example)?;
    if duration.is_zero() { Err(Error::Duration(flag, text.to_owned(), example)) } else { Ok(duration) }
}

fn max_connections(typed: Option<&str>) -> Result<usize, Error> {
    match typed.map(str::trim).filter(|text| !text.is_empty()) {
        None => Ok(usize::MAX),
        Some(text) => {
            let number: Option<NonZeroUsize> = text.parse().ok();
            number.map(NonZeroUsize::get).ok_or_else(|| Error::MaxConnections(text.to_owned()))
        }
    }
}

fn buffer_size(text: &str) -> Result<usize, Error> {
    let units = [("KiB", 1024), ("MiB", 1024 * 1024)];
    let size = units.iter().find_map(|(unit, bytes)| {
        let number: usize = text.trim().strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*bytes)
    });
    size.filter(|size| BUFFER_SIZES.contains(size)).ok_or_else(|| Error::BufferSize(text.to_owned()))
}

fn threads(typed: Option<&str>) -> Result<NonZeroUsize, Error> {
    match typed.map(str::trim).filter(|text| !text.is_empty()) {
        None => Ok(std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)),
        Some(text) => {
            let number: Option<NonZeroUsize> = text.parse().ok();
            number.filter(|n| n.get() <= THREADS_MOST).ok_or_else(|| Error::Threads(text.to_owned()))
        }
    }
}
