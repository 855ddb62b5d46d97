//! The health checks of load balancers (`healthCheckNodePort`): one HTTP server for each Service of type LoadBalancer with
//! external policy Local. In: tables. Out: 200 with the number of ready endpoints on this node, or 503, as kube-proxy
//! answers (pkg/proxy/healthcheck). Any path and any method is answered alike.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use hyper::StatusCode;
use selection::{Family, ServiceName, ServicePort, Table};
use tokio::task::JoinHandle;
use watcher::kubernetes::{Notice, Notices};

use crate::handover::Inherited;
use crate::health::Draining;
use crate::http::{self, Answer, Answers, Asked, JSON};

/// See the module.
pub(super) struct Checks {
    at: Vec<IpAddr>,
    draining: Draining,
    notices: Option<Notices>,
    servers: HashMap<SocketAddr, Server>,
}

/// One server, or none yet if somebody else has its port.
struct Server {
    told: Arc<Told>,
    task: Option<JoinHandle<()>>,
}

/// What one server tells.
struct Told {
    service: ServiceName,
    local_ready: AtomicU32,
    draining: Draining,
}

impl Checks {
    pub(super) fn new(at: Vec<IpAddr>, draining: Draining, notices: Option<Notices>) -> Self {
        Self { at, draining, notices, servers: HashMap::new() }
    }

    /// Makes the servers those of `next`, which follows `known`.
    pub(super) fn follow(&mut self, known: &Table, next: &Table) {
        let wanted: HashMap<(Family, u16), &Arc<ServicePort>> = checked(next.differing(known)).collect();
        for (place, _) in checked(known.differing(next)) {
            if !wanted.contains_key(&place) {
                self.addresses(place).iter().for_each(|address| drop(self.servers.remove(address)));
            }
        }
        for (place, port) in wanted {
            for address in self.addresses(place) {
                self.settle(address, port);
            }
        }
    }

    /// Asks again for what somebody else had.
    pub(super) fn retry(&mut self) {
        for (address, server) in &mut self.servers {
            if server.task.is_none() {
                server.task = start(*address, &server.told).ok();
            }
        }
    }

    /// Servers that answer.
    pub(super) fn open(&self) -> usize {
        self.servers.values().filter(|server| server.task.is_some()).count()
    }

    /// Servers whose port somebody else has.
    pub(super) fn lacking(&self) -> usize {
        self.servers.len() - self.open()
    }

    fn addresses(&self, (family, number): (Family, u16)) -> Vec<SocketAddr> {
        let of_family = self.at.iter().filter(|ip| Family::of(ip) == family);
        of_family.map(|ip| SocketAddr::new(*ip, number)).collect()
    }

    fn settle(&mut self, address: SocketAddr, port: &ServicePort) {
        if let Some(server) =
            self.servers.get(&address).filter(|server| server.told.service == port.id.service)
        {
            server.told.local_ready.store(port.local_ready, Relaxed);
            return;
        }
        // One of another Service ends first: it has the port.
        self.servers.remove(&address);
        let told = Arc::new(Told {
            service: port.id.service.clone(),
            local_ready: AtomicU32::new(port.local_ready),
            draining: self.draining.clone(),
        });
        let task = start(address, &told);
        if let Err(error) = &task {
            let service = told.service.clone();
            let note = format!(
                "cannot answer the health check of load balancers at {address}: {}; they take this node for unable: stop \
                 whoever has the port",
                error.source
            );
            tracing::warn!(%service, "{note}");
            if let Some(notices) = &self.notices {
                let reason = "FailedToStartServiceHealthcheck";
                notices.tell(Notice { service, reason, action: "Listen", note });
            }
        }
        let task = task.ok();
        self.servers.insert(address, Server { told, task });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The ports with a health check, and where that is; all ports of a Service say the same.
fn checked<'a>(
    ports: impl Iterator<Item = &'a Arc<ServicePort>>,
) -> impl Iterator<Item = ((Family, u16), &'a Arc<ServicePort>)> {
    let checked = ports.filter(|port| port.health_check_node_port != 0);
    checked.map(|port| ((port.id.family, port.health_check_node_port), port))
}

fn start(address: SocketAddr, told: &Arc<Told>) -> Result<JoinHandle<()>, http::Error> {
    let listener = http::bind("health-check", address, &mut Inherited::default())?;
    let answers = Arc::clone(told);
    Ok(tokio::spawn(async move {
        let Err(error) = http::serve(listener, answers).await;
        tracing::error!(%address, %error, "cannot answer a health check of load balancers");
    }))
}

impl Answers for Told {
    const ANY_METHOD: bool = true;

    async fn answer(&self, _: Asked) -> Answer {
        let (count, is_healthy) = (self.local_ready.load(Relaxed), !self.draining.has_begun());
        let ServiceName { namespace, name } = &self.service;
        // Names of Kubernetes need no escaping.
        let body = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
             \t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {is_healthy}\n}}"
        );
        let status = if count > 0 && is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let headers = vec![
            ("X-Content-Type-Options", "nosniff".to_owned()),
            ("X-Load-Balancing-Endpoint-Weight", count.to_string()),
        ];
        Answer { status, media: JSON, body, headers }
    }
}
