//! The Kubernetes API as a source.

use std::time::Duration;

use selection::Symbol;

use crate::Scope;
use crate::watch::{Events, Report};

/// How the Kubernetes API is followed.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything is listed again about this often, to heal what a watch may have missed.
    pub resync: Duration,
    /// Objects in a page of a list.
    pub page: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { resync: Duration::from_secs(1800), page: 500 }
    }
}

/// Why the Kubernetes API cannot be followed at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a kubeconfig nor a Pod's credentials.
    #[error("no way to a Kubernetes API: {0}")]
    NoConfig(String),
}

pub(crate) async fn follow(
    _options: Options,
    _scope: Scope,
    _node: Option<Symbol>,
    _events: Events,
    _report: Report,
) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
    Ok(std::future::pending())
}
