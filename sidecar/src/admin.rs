//! What people ask a running sidecar, on a loopback address: `/v1/endpoints`, `/v1/explain`, `/v1/status`,
//! `/v1/warnings`. `output=text` is for people, anything else JSON. Shows, never changes anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use hyper::StatusCode;
use selection::story::{Connection, Moment, Outcome, Story, Told};
use selection::{Millis, Protocol, Seed, ServiceName};
use serde::Serialize;
use watcher::Watch;

use crate::arguments::OutputFormat;
use crate::config;
use crate::endpoints::{self, Live, Report, Unknown};
use crate::explain;
use crate::http::{self, Answer, Answers, Asked, TEXT};
use crate::tcp::{Listen, StandIn};
use crate::traffic::Traffic;

/// Answers on the admin address.
#[derive(Debug)]
pub struct Admin {
    /// What is known of Services.
    pub watch: Watch,
    /// What the data plane counts.
    pub traffic: Arc<Traffic>,
    /// The listeners, with the addresses that they got.
    pub listens: Vec<(Listen, StandIn)>,
    /// Where Services come from, as the flag says it.
    pub source: String,
    /// It learns of Services as they are used.
    pub learns: bool,
    /// What draws are made from.
    pub secret: Secret,
    /// Where the times in tallies begin.
    pub origin: Instant,
}

/// A seed that no log and no answer shows.
#[derive(Clone, Copy)]
pub struct Secret(pub Seed);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Answers for Admin {
    async fn answer(&self, asked: Asked) -> Answer {
        if !http::is_local(&asked.host) {
            return refusal(
                StatusCode::FORBIDDEN,
                "a browser asked under a foreign host name; ask by address, such as 127.0.0.1",
            );
        }
        let words = Words(form_urlencoded::parse(asked.query.as_bytes()).into_owned().collect());
        match &*asked.path {
            "/" => Answer::text(StatusCode::OK, INDEX),
            "/v1/endpoints" => self.endpoints(&words).await.unwrap_or_else(|refusal| refusal),
            "/v1/warnings" => self.warnings(&words).await.unwrap_or_else(|refusal| refusal),
            "/v1/explain" => self.explain(&words).unwrap_or_else(|refusal| refusal),
            "/v1/status" => self.status(),
            _ => refusal(StatusCode::NOT_FOUND, INDEX),
        }
    }
}

const INDEX: &str = "GET /v1/endpoints[?service=NAMESPACE/NAME][&output=text]
GET /v1/warnings[?service=NAMESPACE/NAME]
GET /v1/explain?address=ADDRESS:PORT[&client=ADDRESS][&outside][&protocol=udp][&output=text]
GET /v1/status
";

/// The decoded words of a query.
struct Words(Vec<(String, String)>);

impl Words {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(word, _)| word == name).map(|(_, value)| &**value)
    }

    fn output(&self) -> OutputFormat {
        if self.get("output") == Some("text") { OutputFormat::Text } else { OutputFormat::Json }
    }

    fn service(&self) -> Result<Option<ServiceName>, Answer> {
        self.get("service").map(config::service).transpose().map_err(bad)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusPage<'a> {
    version: &'static str,
    source: &'a str,
    node: Option<&'a str>,
    zone: Option<&'a str>,
    listeners: Vec<ListenerLine>,
    connections: u64,
    table: TableLine,
    broken: Vec<BrokenLine>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListenerLine {
    address: SocketAddr,
    service: String,
    port: String,
    serves: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TableLine {
    synced: bool,
    version: u64,
    age_seconds: Option<f64>,
    services: usize,
    endpoint_slices: usize,
}

#[derive(Serialize)]
struct BrokenLine {
    stream: String,
    reason: &'static str,
}

impl Admin {
    async fn endpoints(&self, words: &Words) -> Result<Answer, Answer> {
        let report = self.report(words).await?;
        rendered(words.output(), |output| endpoints::render(&report, output))
    }

    async fn warnings(&self, words: &Words) -> Result<Answer, Answer> {
        let report = self.report(words).await?;
        let mut lines = String::new();
        report.warnings().for_each(|warning| lines.extend([warning, "\n"]));
        Ok(Answer { media: TEXT, ..Answer::json(lines) })
    }

    async fn report(&self, words: &Words) -> Result<Report, Answer> {
        let services = match words.service()? {
            None => self.watch.inspect_all().await,
            Some(service) => match self.watch.inspect(service.clone()).await {
                Some(inspection) => vec![inspection],
                None => {
                    let unknown = match self.learns {
                        true => format!(
                            "this sidecar has not learnt of Service {service}, as it knows those that its Pod uses: \
                             connect to it once, or ask its source with --source"
                        ),
                        false => Unknown { service, source: "this sidecar".to_owned() }.to_string(),
                    };
                    return Err(refusal(StatusCode::NOT_FOUND, unknown));
                }
            },
        };
        let table = self.watch.tables.load();
        let beside = self.listens.iter().flat_map(|(listen, stand_in)| {
            let ports = stand_in.ports(listen, &table);
            ports.iter().map(|port| (listen.service.clone(), Arc::clone(port))).collect::<Vec<_>>()
        });
        let beside = beside.collect();
        Ok(Report { services, live: Some(Live { table, now: self.now(), beside }) })
    }

    fn explain(&self, words: &Words) -> Result<Answer, Answer> {
        let connection = connection(words)?;
        let table = self.watch.tables.load();
        let is_dialled = |(listen, _): &&(Listen, StandIn)| {
            let ip = listen.address.ip();
            let same_ip = ip == connection.address.ip()
                || (ip.is_unspecified() && ip.is_ipv4() == connection.address.is_ipv4());
            connection.protocol == Protocol::Tcp
                && same_ip
                && listen.address.port() == connection.address.port()
        };
        let found = self.listens.iter().find(is_dialled);
        let ports = found.map(|(listen, stand_in)| stand_in.ports(listen, &table)).unwrap_or_default();
        let listener = ports.last();
        let moment = Moment { seed: self.secret.0, now: self.now() };
        let mut story = Story::tell(&table, &connection, moment, listener.map(|port| &**port));
        if self.learns && story.outcome == Outcome::Pass {
            let text =
                "but this sidecar knows only the Services that its Pod uses: a first connection asks the hub";
            story.steps.push(Told { step: "demand", text: text.to_owned() });
        }
        rendered(words.output(), |output| explain::render(&story, output))
    }

    fn status(&self) -> Answer {
        let status = self.watch.status();
        let table = self.watch.tables.load();
        let listener = |(listen, stand_in): &(Listen, StandIn)| ListenerLine {
            address: listen.address,
            service: listen.service.to_string(),
            port: listen.port.clone(),
            serves: !stand_in.ports(listen, &table).is_empty(),
        };
        let page = StatusPage {
            version: env!("CARGO_PKG_VERSION"),
            source: &self.source,
            node: status.here.node.as_deref(),
            zone: status.here.zone.as_deref(),
            listeners: self.listens.iter().map(listener).collect(),
            connections: self.traffic.active(),
            table: TableLine {
                synced: status.synced,
                version: status.version,
                age_seconds: status.age.map(|age| age.as_secs_f64()),
                services: status.services,
                endpoint_slices: status.slices,
            },
            broken: status
                .broken
                .iter()
                .map(|(stream, loss)| BrokenLine { stream: stream.to_string(), reason: loss.label() })
                .collect(),
        };
        let text = serde_json::to_string_pretty(&page).map(|text| text + "\n");
        text.map_or_else(|error| failure(&error), Answer::json)
    }

    fn now(&self) -> Millis {
        self.origin.elapsed().as_millis() as Millis
    }
}

fn connection(words: &Words) -> Result<Connection, Answer> {
    let address = words.get("address").unwrap_or_default();
    let protocol = match words.get("protocol").unwrap_or("tcp").to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => {
            let sentence = format!("{other:?} is not a protocol; write tcp, udp or sctp");
            return Err(refusal(StatusCode::BAD_REQUEST, sentence));
        }
    };
    Ok(Connection {
        address: address.parse().map_err(|_| bad(config::Error::Explained(address.to_owned())))?,
        protocol,
        client: words.get("client").map(config::client).transpose().map_err(bad)?,
        inside: words.get("outside").is_none_or(|outside| outside == "false"),
    })
}

fn rendered<E: std::fmt::Display>(
    output: OutputFormat,
    render: impl FnOnce(OutputFormat) -> Result<String, E>,
) -> Result<Answer, Answer> {
    let body = render(output).map_err(|error| failure(&error))?;
    Ok(match output {
        OutputFormat::Json => Answer::json(body),
        OutputFormat::Text => Answer { media: TEXT, ..Answer::json(body) },
    })
}

fn refusal(status: StatusCode, sentence: impl Into<String>) -> Answer {
    Answer::text(status, sentence)
}

fn bad(error: config::Error) -> Answer {
    refusal(StatusCode::BAD_REQUEST, error.to_string())
}

fn failure(error: &dyn std::fmt::Display) -> Answer {
    refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}
