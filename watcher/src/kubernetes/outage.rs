//! Tells people of a broken API server once, not once for each stream and attempt. In: what the streams meet.
//! Out: one log line for each change of state.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{debug, info, warn};

use super::failure::Failure;
use super::request;
use crate::store::{Loss, Stream};

/// What is broken at the moment, known to all streams of a source.
#[derive(Clone, Debug)]
pub(super) struct Outage {
    server: Arc<str>,
    broken: Arc<Mutex<HashMap<Stream, Loss>>>,
}

impl Outage {
    pub(super) fn new(server: String) -> Self {
        Self { server: server.into(), broken: Arc::default() }
    }

    /// `stream` met `failure`.
    pub(super) fn lost(&self, stream: &Stream, failure: &Failure) {
        let (server, error) = (&*self.server, &*failure.message);
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let before = broken.insert(stream.clone(), failure.loss);
        let is_known = match failure.loss {
            // A matter of this stream alone.
            Loss::Forbidden | Loss::Expired | Loss::Malformed => before == Some(failure.loss),
            _ => {
                let others = broken.iter().filter(|(other, _)| *other != stream);
                before == Some(failure.loss) || others.into_iter().any(|(_, loss)| *loss == failure.loss)
            }
        };
        drop(broken);
        match failure.loss {
            _ if is_known => debug!(server, %stream, error, "still broken"),
            Loss::Expired => {
                info!(server, %stream, error, "listing again, for the API server has forgotten where we were")
            }
            Loss::Forbidden => {
                let needed = request::permission(stream);
                warn!(server, %stream, error, "may not list and watch {stream}: {needed}; trying on");
            }
            loss => {
                warn!(server, %stream, error, reason = loss.label(), "the Kubernetes API is lost, what is known serves on; trying on");
            }
        }
    }

    /// `stream` works.
    pub(super) fn works(&self, stream: &Stream) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let before = broken.remove(stream);
        let is_last = broken.is_empty();
        drop(broken);
        match before {
            None | Some(Loss::Expired) => {}
            Some(Loss::Forbidden) => {
                info!(server = &*self.server, %stream, "may list and watch {stream} after all")
            }
            Some(_) if is_last => info!(server = &*self.server, "the Kubernetes API answers again"),
            Some(_) => debug!(server = &*self.server, %stream, "answers again"),
        }
    }
}
