//! A gateway: one Envoy with both of Remora's plugins in one VM, before Services of HTTP and of TCP servers.
//!
//! In: how many endpoints there are, and which of them the Services have. Out: who answers, and a load of requests of
//! which none is tried again. An endpoint ends as Kubernetes ends it, or is killed. It never hides a failed request.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use tokio::task::JoinHandle;

use crate::envoy::{self, Envoy, Version, replaced};
use crate::feeder::{Feeder, Service};
use crate::greeter::greeter;
use crate::http::{Client, Server};
use crate::{Load, Program, SOON, World, load, wait_until};

/// Where `envoy/http.yaml` listens.
pub const HTTP: &str = "127.0.0.1:8080";
/// Where `envoy/tcp.yaml` listens.
pub const TCP: &str = "127.0.0.1:8081";
/// Connections that meet both workers and, in turn, every endpoint that each of them has.
const MEET_ALL: usize = 24;

/// An address that is written in a test.
///
/// # Panics
/// When it is none.
pub fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

/// Owning one means that all of it runs.
pub struct Gateway {
    /// The Envoy.
    pub envoy: Envoy,
    /// Who tells it of the Services.
    pub feeder: Feeder,
    http: Vec<Option<Server>>,
    tcp: Vec<Option<Program>>,
}

impl Gateway {
    /// Opens one with so many endpoints, of which the Services `web` (HTTP) and `db` (TCP) have these.
    pub async fn open(world: &World, version: Version, endpoints: usize, used: &[usize]) -> Gateway {
        let (mut http, mut tcp) = (Vec::new(), Vec::new());
        for number in 0..endpoints {
            http.push(Some(Server::start(&http_at(number).to_string()).await));
            tcp.push(Some(greeter(world, &name(number), tcp_at(number)).await));
        }
        let feeder = Feeder::ready(world, &services(used), &[]).await;
        let envoy = Envoy::ready(world, version, &configuration()).await;
        let gateway = Gateway { envoy, feeder, http, tcp };
        gateway.wait_used(used).await;
        gateway
    }

    /// From here on, the Services have these endpoints. Nobody has to have noticed when this returns.
    pub fn change(&self, used: &[usize]) {
        self.feeder.change(&services(used));
    }

    /// Waits until both workers use these endpoints of both Services, and no others.
    pub async fn wait_used(&self, used: &[usize]) {
        let http: BTreeSet<_> = used.iter().map(|number| http_at(*number).to_string()).collect();
        let tcp: BTreeSet<_> = used.iter().map(|number| name(*number)).collect();
        wait_until(SOON, &format!("both workers use {used:?}"), async || {
            let (mut asked, mut dialled) = (BTreeSet::new(), BTreeSet::new());
            for _ in 0..MEET_ALL {
                let mut client = Client::one(at(HTTP)).await?;
                asked.insert(client.get("web.shop", "/", &[]).await?.who().to_owned());
                dialled.insert(load::connect(at(TCP)).await.map_err(|error| error.to_string())?);
            }
            if (&asked, &dialled) == (&http, &tcp) { Ok(()) } else { Err(format!("{asked:?} {dialled:?}")) }
        })
        .await;
    }

    /// Ends an endpoint that no Service has any more, as Kubernetes does.
    ///
    /// # Panics
    /// When it had a request that was not answered.
    pub async fn end(&mut self, number: usize) {
        let unanswered = self.http[number].take().expect("it runs").end().await;
        assert_eq!(unanswered, 0, "an endpoint ended with requests that it had not answered");
        self.tcp[number].take().expect("it runs").stop(SOON).await;
    }

    /// Kills an endpoint while it has so many requests to answer or more, and tells nobody: how many it had, and how
    /// many connections of `load` were open then, at most.
    pub async fn kill(&mut self, number: usize, requests: u64, load: &Load) -> (u64, u64) {
        let server = self.http[number].take().expect("it runs");
        wait_until(SOON, &format!("{requests} requests are on their way"), async || {
            match server.unanswered() {
                few if few < requests => Err(format!("{few} are")),
                _ => Ok(()),
            }
        })
        .await;
        let unanswered = server.end().await;
        let done = load.done();
        self.tcp[number].take().expect("it runs").kill();
        (unanswered, load.begun() - done)
    }

    /// Starts an endpoint again.
    pub async fn start(&mut self, world: &World, number: usize) {
        self.http[number] = Some(Server::start(&http_at(number).to_string()).await);
        self.tcp[number] = Some(greeter(world, &name(number), tcp_at(number)).await);
    }
}

fn http_at(number: usize) -> SocketAddr {
    at(&format!("127.0.1.{}:9000", number + 1))
}

fn tcp_at(number: usize) -> SocketAddr {
    at(&format!("127.0.1.{}:9001", number + 1))
}

fn name(number: usize) -> String {
    format!("db-{number}")
}

fn services(used: &[usize]) -> [Service; 2] {
    [
        Service::new("web", "10.96.0.10", used.iter().map(|number| http_at(*number))),
        Service::new("db", "10.96.0.14", used.iter().map(|number| tcp_at(*number))),
    ]
}

/// Both files in one: the listener and the clusters of `tcp.yaml` are added to `http.yaml`.
fn configuration() -> String {
    let tcp = replaced(&envoy::configuration("tcp.yaml"), "shop/web:80", "shop/db:80");
    let part = |from: &str, to: &str| {
        let text = tcp.split_once(from).expect("the file has its parts").1;
        text.split_once(to).expect("the file has its parts").0.to_owned()
    };
    let listener =
        replaced(&part("  listeners:\n", "  clusters:\n"), "cluster: remora\n", "cluster: remora-tcp\n");
    let clusters =
        replaced(&part("  clusters:\n", "  # Where `remora"), "name: remora\n", "name: remora-tcp\n");
    let http = envoy::configuration("http.yaml");
    let both = replaced(&http, "  listeners:\n", &format!("  listeners:\n{listener}"));
    replaced(&both, "  clusters:\n", &format!("  clusters:\n{clusters}"))
}

/// Requests on kept connections. Owning one means that they are made, on the runtime of the test.
pub struct Requests {
    stop: Arc<AtomicBool>,
    /// How many requests of each client have ended.
    done: Arc<[AtomicU64]>,
    clients: Vec<JoinHandle<Answers>>,
}

/// What became of requests.
#[derive(Debug, Default)]
pub struct Answers {
    /// Answered ones, by who answered.
    pub answered: BTreeMap<String, u64>,
    /// Failed ones, each with when (since the start) and how.
    pub failures: Vec<String>,
}

impl Requests {
    /// Starts so many clients, every other one with HTTP/2; half of their requests take `slow` milliseconds, so that
    /// there are always some on their way.
    pub fn start(clients: usize, slow: u64) -> Requests {
        let stop = Arc::<AtomicBool>::default();
        let done: Arc<[AtomicU64]> = (0..clients).map(|_| AtomicU64::new(0)).collect();
        let client = |number| tokio::spawn(drive(number, slow, stop.clone(), done.clone()));
        let clients = (0..clients).map(client).collect();
        Requests { stop, done, clients }
    }

    /// How many have ended so far, well or not.
    pub fn done(&self) -> u64 {
        self.done_by_each().sum()
    }

    fn done_by_each(&self) -> impl Iterator<Item = u64> {
        self.done.iter().map(|done| done.load(Ordering::Relaxed))
    }

    /// Waits until all requests that are on their way have ended; others are made meanwhile.
    pub async fn wait_through(&self) {
        let before: Vec<_> = self.done_by_each().collect();
        wait_until(SOON, "the requests on their way end", async || {
            match self.done_by_each().zip(&before).filter(|(now, before)| now <= before).count() {
                0 => Ok(()),
                clients => Err(format!("{clients} clients wait")),
            }
        })
        .await;
    }

    /// Makes no more, waits for those on their way, and tells.
    pub async fn stop(self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Answers::default();
        for client in self.clients {
            let Answers { answered, failures } = client.await.expect("a client does not panic");
            answered.into_iter().for_each(|(who, count)| *all.answered.entry(who).or_default() += count);
            all.failures.extend(failures);
        }
        all
    }
}

impl Answers {
    /// Panics if a request failed, with the first few reasons.
    pub fn assert_none_failed(&self) {
        let few: Vec<_> = self.failures.iter().take(5).map(String::as_str).collect();
        let (failed, answered) = (self.failures.len(), self.answered.values().sum::<u64>());
        assert!(
            few.is_empty(),
            "{failed} requests failed ({answered} did not), the first:\n  {}",
            few.join("\n  ")
        );
    }
}

async fn drive(number: usize, slow: u64, stop: Arc<AtomicBool>, done: Arc<[AtomicU64]>) -> Answers {
    let (started, slow) = (Instant::now(), format!("/slow/{slow}"));
    let (mut answers, mut client, mut turn) = (Answers::default(), None, number / 2);
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let path = if turn.is_multiple_of(2) { "/" } else { &*slow };
        let asked = async {
            let client = match &mut client {
                Some(client) => client,
                none if number.is_multiple_of(2) => none.insert(Client::one(at(HTTP)).await?),
                none => none.insert(Client::two(at(HTTP)).await?),
            };
            client.get("web.shop", path, &[]).await
        };
        let outcome = asked.await;
        done[number].fetch_add(1, Ordering::Relaxed);
        match outcome {
            Ok(answer) if answer.status == 200 => {
                *answers.answered.entry(answer.who().to_owned()).or_default() += 1;
            }
            Ok(answer) => {
                let when = started.elapsed().as_secs_f64();
                answers.failures.push(format!(
                    "{when:.3} s: {path}: {} {}",
                    answer.status,
                    answer.body.trim()
                ));
            }
            Err(error) => {
                client = None;
                answers.failures.push(format!("{:.3} s: {path}: {error}", started.elapsed().as_secs_f64()));
            }
        }
    }
    answers
}
