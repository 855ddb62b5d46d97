//! What went wrong with a request to the API server, by its consequence. Values only.

use std::time::Duration;

use ::kube::core::Status;

use crate::store::Loss;

/// A stream that broke, and why.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) loss: Loss,
    pub(super) message: String,
    /// The server asks not to come back earlier.
    pub(super) after: Option<Duration>,
    /// The server refused this very way of asking, as far as one can tell: an API server on an old etcd answers a
    /// streaming list with 500.
    pub(super) is_refusal: bool,
}

impl Failure {
    pub(super) fn new(loss: Loss, message: impl Into<String>) -> Self {
        Self { loss, message: message.into(), after: None, is_refusal: false }
    }

    /// Nothing came for `time`.
    pub(super) fn silent(time: Duration) -> Self {
        Self::new(Loss::Silent, format!("nothing heard for {} s", time.as_secs()))
    }

    /// What the API server says in place of an answer.
    pub(super) fn status(status: &Status) -> Self {
        let loss = match status.code {
            401 => Loss::Unauthorized,
            403 => Loss::Forbidden,
            410 => Loss::Expired,
            _ if status.reason == "Expired" || status.reason == "Gone" => Loss::Expired,
            _ => Loss::Failed,
        };
        let after =
            status.details.as_ref().map(|details| details.retry_after_seconds).filter(|after| *after > 0);
        Self {
            loss,
            message: format!("the API server says: {} ({})", status.message, status.code),
            after: after.map(|seconds| Duration::from_secs(seconds.into())),
            is_refusal: loss == Loss::Failed && !matches!(status.code, 429 | 503 | 504),
        }
    }

    pub(super) fn of(error: &::kube::Error) -> Self {
        use ::kube::Error;
        let loss = match error {
            Error::Api(status) => return Self::status(status),
            Error::SerdeError(_) | Error::FromUtf8(_) | Error::LinesCodecMaxLineLengthExceeded => {
                Loss::Malformed
            }
            Error::BuildRequest(_) | Error::HttpError(_) => Loss::Failed,
            Error::Auth(_) => Loss::Unauthorized,
            _ => Loss::Unreachable,
        };
        Self::new(loss, chain(error))
    }
}

/// An error with its causes; those that repeat what was said are left out, and in which layer of kube it was.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    if let Some(rest) = text.strip_prefix("ServiceError: ") {
        text = rest.to_owned();
    }
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
