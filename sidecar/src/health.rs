//! What the kubelet and Prometheus ask: `/livez`, `/readyz`, `/metrics`, and nothing else; on a node also `/healthz`, which
//! load balancers ask, as kube-proxy answers it.
//! Readiness tells whether connections are served. A source that broke later never takes it back: the last good
//! table serves on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::StatusCode;
use selection::Family;
use serde_json::json;
use watcher::{Status, Watch};

use crate::certificate::Certificate;
use crate::http::{Answer, Answers, Asked};
use crate::metrics::{self, Metrics};

/// Whether this process is on its way out.
#[derive(Clone, Debug, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    /// From here on it is.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is.
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Answers on the health address.
#[derive(Debug)]
pub struct Health {
    /// Who knows of the first table.
    pub watch: Watch,
    /// What is measured.
    pub metrics: Metrics,
    /// Whether the process is ending.
    pub draining: Draining,
    /// Connections are served before there is a table, by others.
    pub is_ready_without_table: bool,
    /// What readers and the API server are shown, if there is such a thing.
    pub certificate: Option<Arc<Certificate>>,
    /// The families in which node ports are served; none unless this is `remora node`.
    pub node: Vec<Family>,
}

impl Answers for Health {
    async fn answer(&self, asked: Asked) -> Answer {
        match &*asked.path {
            // That the process answers is all that a restart could improve.
            "/livez" => Answer::text(StatusCode::OK, "ok"),
            "/readyz" => self.readiness(),
            "/metrics" => match self.metrics.text() {
                Ok(body) => Answer { media: metrics::MEDIA, ..Answer::json(body) },
                Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            },
            "/healthz" if !self.node.is_empty() => self.eligibility(),
            _ => Answer::text(StatusCode::NOT_FOUND, "only /livez, /readyz and /metrics are here"),
        }
    }
}

impl Health {
    /// What kube-proxy answers on its port 10256 (pkg/proxy/healthcheck): 503 once load balancers are to leave this
    /// node, be it the node or this process that goes.
    fn eligibility(&self) -> Answer {
        let status = self.watch.status();
        let now = jiff::Timestamp::now();
        // That the source broke takes nothing away: the last table serves on.
        let is_healthy = status.synced;
        let is_eligible = !status.is_node_ineligible && !self.draining.has_begun();
        let updated = now - status.age.unwrap_or_default();
        let families = self.node.iter().map(|family| {
            (family.to_string(), json!({"lastUpdated": updated.to_string(), "healthy": is_healthy}))
        });
        let body = json!({
            "lastUpdated": if is_healthy && is_eligible { now } else { updated }.to_string(),
            "currentTime": now.to_string(),
            "nodeEligible": is_eligible,
            "healthy": is_healthy,
            "status": families.collect::<serde_json::Map<_, _>>(),
        });
        let code = if is_healthy && is_eligible { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Answer { status: code, ..Answer::json(body.to_string()) }
    }

    fn readiness(&self) -> Answer {
        let unready = |why: String| Answer::text(StatusCode::SERVICE_UNAVAILABLE, why);
        if self.draining.has_begun() {
            return unready("draining: the process was asked to end".to_owned());
        }
        if !self.is_ready_without_table && !self.watch.tables.is_synced() {
            return unready(waiting(&self.watch.status()));
        }
        if let Some(why) = self.certificate.as_ref().and_then(|certificate| certificate.waiting()) {
            return unready(why);
        }
        Answer::text(StatusCode::OK, "ok")
    }
}

/// Why there is no table yet.
pub fn waiting(status: &Status) -> String {
    let broken: Vec<String> =
        status.broken.iter().map(|(stream, loss)| format!("{stream}: {}", loss.label())).collect();
    if broken.is_empty() {
        "waiting for the source's first complete list of Services and EndpointSlices".to_owned()
    } else {
        format!(
            "waiting for the first table; the source is broken: {}; the log tells more",
            broken.join(", ")
        )
    }
}
