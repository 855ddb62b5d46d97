//! A short look at a source, for the commands that end by themselves: follows it until its first table.

use std::time::Duration;

use selection::{Here, ServiceName};
use watcher::{Scope, Source, Watch};

use crate::health;

/// How long a source may take to give its first table.
const WITHIN: Duration = Duration::from_secs(30);

/// Why a source gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be followed at all.
    #[error(transparent)]
    Source(#[from] watcher::Error),
    /// It does not answer.
    #[error("{name} gave no table within {} s: {why}; check that it can be reached", WITHIN.as_secs())]
    Late {
        /// Which source.
        name: String,
        /// What is known of the reason.
        why: String,
    },
}

/// What of a source is needed for one Service, or for all.
pub fn scope(service: Option<&ServiceName>) -> Scope {
    service.map_or(Scope::All, |service| Scope::Services(vec![service.clone()]))
}

/// Follows `source` up to its first table.
///
/// # Errors
/// If there is no first table.
pub async fn start(source: Source, scope: Scope, here: Here) -> Result<Watch, Error> {
    let name = source.to_string();
    let watch = watcher::start(source, scope, here).await?;
    if tokio::time::timeout(WITHIN, watch.tables.synced()).await.is_err() {
        return Err(Error::Late { name, why: health::waiting(&watch.status()) });
    }
    Ok(watch)
}
