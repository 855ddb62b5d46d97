//! The Kubernetes API as a source. In: lists and watches of Services, EndpointSlices and our own Node. Out: events.
//! Never gives up, and never takes silence for emptiness.
//!
//! Every stream is followed by itself ([`stream`]); what can fail has a name ([`failure`]). The list-watch is our
//! own on kube's client rather than kube's `watcher`: that one hides bookmarks, by which the age of a table is
//! known, does not fall back to pages where streaming lists are refused, and cannot list again on purpose.

pub mod balancer;
mod cluster;
mod failure;
pub mod kept;
mod lease;
mod namespaces;
mod notices;
mod outage;
mod probe;
pub mod ranges;
mod request;
mod stream;

use std::time::Duration;

use ::kube::{Client, Config};
use selection::Symbol;
use tracing::info;

use crate::Scope;
use crate::store::{Event, Kind, Part};
use crate::watch::{Events, Report};
use outage::Outage;
use stream::{Follower, Told};

pub use cluster::{Cluster, Refusal};
pub use kept::Kept;
pub use namespaces::Namespaces;
pub use notices::{About, Notice, Notices};

/// How the Kubernetes API is followed.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything is listed again about this often, to heal what a watch may have missed.
    pub resync: Duration,
    /// Objects in a page of a list, where lists are not streamed.
    pub page: u32,
}

impl Default for Options {
    /// Every half hour; 500 objects.
    fn default() -> Self {
        Self { resync: Duration::from_secs(1800), page: 500 }
    }
}

/// Why the Kubernetes API cannot be followed at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is neither a kubeconfig nor the service account of a Pod, or one that cannot be read.
    #[error(
        "do not know which Kubernetes API to ask: {0}; set KUBECONFIG, run in a Pod with a service account, or use \
         --source manifests:PATH"
    )]
    NoConfig(String),
    /// The configuration names what cannot be used: a certificate, a key, a proxy.
    #[error("cannot use the configuration of the Kubernetes API at {url}: {cause}")]
    BadConfig {
        /// The server.
        url: String,
        /// What is wrong.
        cause: String,
    },
}

/// A connection to the API server is made within this time, or it is tried again.
const CONNECT: Duration = Duration::from_secs(5);
/// A write to it blocks no longer than this.
const WRITE: Duration = Duration::from_secs(15);

/// A client for lists and watches, and where it asks.
async fn client() -> Result<(Client, String), Error> {
    let mut config = Config::infer().await.map_err(|error| Error::NoConfig(failure::chain(&error)))?;
    config.connect_timeout = Some(CONNECT);
    config.write_timeout = Some(WRITE);
    let url = config.cluster_url.to_string();
    let bad = |error: ::kube::Error| Error::BadConfig { url: url.clone(), cause: failure::chain(&error) };
    Ok((Client::try_from(config).map_err(bad)?, url))
}

/// Follows `scope` for ever, and the zone of `node`, if one is given.
pub(crate) async fn follow(
    options: Options,
    scope: Scope,
    node: Option<Symbol>,
    events: Events,
    report: Report,
) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
    let (client, url) = client().await?;
    let mut streams = scope.streams();
    if let Some(node) = node {
        // Waited for like the others, lest a first table be built for no zone.
        let part = Part::Service(selection::ServiceName::new("", node));
        let stream = crate::store::Stream { kind: Kind::Node, part };
        events.send(Event::Follow(stream.clone())).await;
        streams.push(stream);
    }
    info!(server = url, streams = streams.len(), "following the Kubernetes API");
    let outage = Outage::new(url);
    let follow = move |stream| {
        let to = Told::Store(events.clone());
        Follower::new(client.clone(), options.clone(), stream, to, report.clone(), outage.clone()).run()
    };
    Ok(async move {
        futures::future::join_all(streams.into_iter().map(follow)).await;
    })
}
