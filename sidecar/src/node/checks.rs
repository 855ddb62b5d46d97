//! The health checks of load balancers (`healthCheckNodePort`): one HTTP server for each Service of type LoadBalancer with
//! external policy Local. In: tables. Out: 200 with the number of ready endpoints on this node, or 503, as kube-proxy
//! answers (pkg/proxy/healthcheck). Any path and any method is answered alike.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use hyper::StatusCode;
use selection::{Family, ServiceName, ServicePort, Table};
use tokio::task::JoinHandle;
use watcher::kubernetes::{About, Notice, Notices};

use super::Lacking;
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

/// One server.
struct Server {
    told: Arc<Told>,
    state: State,
}

enum State {
    Answers(JoinHandle<()>),
    Lacking(Lacking),
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

    /// Asks again for what could not be had.
    pub(super) fn retry(&mut self) {
        for (address, server) in &mut self.servers {
            server.start(*address, self.notices.as_ref());
        }
    }

    /// When to ask again for what could not be had.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.servers.values().filter_map(|server| server.lacking().map(Lacking::retry_after)).min()
    }

    /// Servers that answer.
    pub(super) fn open(&self) -> usize {
        self.servers.len() - self.lacking()
    }

    /// Servers whose port somebody else has.
    pub(super) fn lacking(&self) -> usize {
        self.servers.values().filter(|server| server.lacking().is_some()).count()
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
        let mut server = Server { told, state: State::Lacking(Lacking::default()) };
        server.start(address, self.notices.as_ref());
        self.servers.insert(address, server);
    }
}

impl Server {
    fn lacking(&self) -> Option<&Lacking> {
        match &self.state {
            State::Lacking(lacking) => Some(lacking),
            State::Answers(_) => None,
        }
    }

    /// Begins to answer, unless it does.
    fn start(&mut self, address: SocketAddr, notices: Option<&Notices>) {
        let State::Lacking(lacking) = &mut self.state else { return };
        match http::bind("health-check", address, &mut Inherited::default()) {
            Ok(listener) => {
                let answers = Arc::clone(&self.told);
                self.state = State::Answers(tokio::spawn(async move {
                    let Err(error) = http::serve(listener, answers).await;
                    tracing::error!(%address, %error, "cannot answer a health check of load balancers");
                }));
            }
            Err(error) if lacking.is_to_be_told() => self.told.tell(address, &error.source, notices),
            Err(_) => {}
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let State::Answers(task) = &self.state {
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

impl Told {
    fn tell(&self, address: SocketAddr, error: &std::io::Error, notices: Option<&Notices>) {
        let service = self.service.clone();
        let note = format!(
            "cannot answer the health check of load balancers at {address}: {error}; they take this node for unable: stop \
             whoever has the port"
        );
        tracing::warn!(%service, "{note}");
        if let Some(notices) = notices {
            let reason = "FailedToStartServiceHealthcheck";
            let about = About::Service(service);
            notices.tell(Notice { about, is_warning: true, reason, action: "Listen", note });
        }
    }
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
