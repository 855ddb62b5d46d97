//! `remora hub`: knows the cluster, serves its feed, and moves no bytes of anybody. As many as one likes stand side by
//! side, each with what it watches itself; none keeps anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use selection::Here;
use tokio::sync::watch;
use watcher::Scope;
use watcher::kubernetes::ranges::service_ranges;
use watcher::kubernetes::{Cluster, Namespaces, Notices};

use crate::admin::Admin;
use crate::capture::merged;
use crate::certificate::Certificate;
use crate::config::Hub;
use crate::ending::{self, Asked};
use crate::feed::{self, Door, Feed, Tokens, Zones};
use crate::handover::Inherited;
use crate::health::{Draining, Health};
use crate::http;
use crate::inject::{Settings, Webhook};
use crate::metrics::Metrics;
use crate::sidecar::{Error, announce, raise_descriptor_limit, secret};
use crate::traffic::Traffic;

/// How long one question for the ranges of Services may take.
const RANGES_WITHIN: Duration = Duration::from_secs(10);
/// How often it is asked whether there are more.
const RANGES_EVERY: Duration = Duration::from_secs(600);
/// How soon it is asked again without an answer.
const RANGES_AGAIN: Duration = Duration::from_secs(10);

/// Runs the hub until it is asked to end. Its readers find another, or wait; what they know serves on.
///
/// # Errors
/// If it cannot start; nothing has been served then.
pub fn run(config: Hub) -> Result<(), Error> {
    crate::logs::start(config.log_format, &config.log_level);
    // Each reader is one.
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::System("start threads", error))?;
    runtime.block_on(serve(config))
}

async fn serve(config: Hub) -> Result<(), Error> {
    let asked = ending::signals().map_err(|error| Error::System("hear signals", error))?;
    let origin = Instant::now();
    let secret = secret().map_err(|error| Error::System("read random numbers", error))?;
    // There are no connections to hand over; a successor takes the addresses once they are free.
    let mut nobody = Inherited::default();
    let assets = config.assets.as_deref().map(feed::Assets::new).transpose()?;
    let listener = feed::bind(&config.feed, &mut nobody)?;
    let listener = if config.certificate.is_some() { listener.by_tls() } else { listener };
    let mut bind = |flag, address| http::bind(flag, address, &mut nobody);
    let health = config.health.map(|address| bind("health", address)).transpose()?;
    let admin = config.admin.map(|address| bind("admin", address)).transpose()?;

    let certificate = match config.certificate {
        Some(place) => {
            Some(Arc::new(Certificate::new(place, config.webhook_configuration.as_deref()).await?))
        }
        None => None,
    };

    let door = match certificate.as_ref().filter(|_| listener.tcp().is_some()) {
        Some(certificate) => {
            let cluster = Cluster::new().await.map_err(watcher::Error::from)?;
            let zones = Arc::new(Zones::new(cluster.clone()));
            let tokens = Arc::new(Tokens::new(cluster, config.feed_audience));
            Some(Door { tls: certificate.acceptor()?, tokens, zones })
        }
        None => None,
    };

    let webhook = match config.webhook.zip(certificate.as_ref()) {
        None => None,
        Some((webhook, certificate)) => {
            let is_kube = matches!(config.source, watcher::Source::Kube(_));
            let (mut namespaces, mut notices) = (None, None);
            if is_kube {
                namespaces = Some(Namespaces::new().await.map_err(watcher::Error::from)?);
                notices = Some(Notices::new("remora-hub", None).await.map_err(watcher::Error::from)?);
            }
            let listener = bind("webhook", webhook.address)?;
            let settings = watch::Sender::new(webhook.settings);
            let webhook =
                Webhook::new(settings.subscribe(), namespaces, Arc::clone(certificate)).telling(notices);
            if is_kube && settings.borrow().services.is_empty() {
                tokio::spawn(learn_ranges(settings));
            }
            Some((webhook, listener, certificate.acceptor()?))
        }
    };

    let source = config.source.to_string();
    let watch = watcher::start(config.source, Scope::All, Here::default()).await?;
    announce(&[], &[], &[], Some(&listener), health.as_ref(), admin.as_ref());
    let feed = Feed::new(watch.clone(), assets).behind(door);
    let traffic = Arc::new(Traffic::default());
    let admissions = webhook.as_ref().map(|(webhook, ..)| webhook.counts());
    if let Some(certificate) = certificate.clone() {
        tokio::spawn(async move { certificate.follow().await });
    }
    if let Some((webhook, listener, tls)) = webhook {
        tracing::info!(address = %listener.local_addr().map_err(|error| Error::System("listen", error))?, "answering admissions");
        tokio::spawn(webhook.serve(listener, tls));
    }
    if let Some(listener) = health {
        let metrics = Metrics::new(watch.clone(), Arc::clone(&traffic), Vec::new(), origin);
        let metrics = metrics.with_feed(feed.counts());
        let metrics = match admissions {
            Some(counts) => metrics.with_admissions(counts),
            None => metrics,
        };
        let draining = Draining::default();
        let answers = Health {
            watch: watch.clone(),
            metrics,
            draining,
            is_ready_without_table: false,
            certificate,
            node: Vec::new(),
        };
        tokio::spawn(http::serve(listener, Arc::new(answers)));
    }
    if let Some(listener) = admin {
        let answers = Admin { watch, traffic, listens: Vec::new(), source, learns: false, secret, origin };
        tokio::spawn(http::serve(listener, Arc::new(answers)));
    }
    let mut ends = asked.subscribe();
    tokio::select! {
        Err(error) = feed.serve(listener) => Err(Error::System("serve the feed", error)),
        _ = ends.wait_for(Asked::to_end) => Ok(()),
    }
}

/// Asks the API server for the ranges of Services, which a Pod's own account may mostly not, for as long as Pods are
/// injected; a cluster may be given more of them.
async fn learn_ranges(settings: watch::Sender<Settings>) {
    let mut is_told = false;
    while !settings.is_closed() {
        let pause = match service_ranges(RANGES_WITHIN).await {
            Ok(ranges) => {
                let services: Vec<String> = merged(ranges).iter().map(ToString::to_string).collect();
                settings.send_if_modified(|settings| {
                    let is_new = settings.services != services;
                    settings.services = services;
                    is_new
                });
                RANGES_EVERY
            }
            Err(error) => {
                if !is_told {
                    tracing::warn!(
                        "the ranges of Services are not known, injected Pods have to ask for them: {error}; or name \
                         them with --services"
                    );
                }
                is_told = true;
                RANGES_AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}
