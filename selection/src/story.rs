//! The decision about one connection, told in words: what `remora explain` prints. In: a table and a connection. Out: a
//! [`Story`]. The steps are those of [`crate::explain`], the function that picks; nothing is decided here.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    Balance, Destination, Draw, Endpoint, Family, Flow, Millis, Path, Protocol, Question, Seed, ServicePort,
    Step, Table, Tallies, Tried, Unpinned, Verdict,
};

/// A connection that somebody might make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Where to.
    pub address: SocketAddr,
    /// Over what.
    pub protocol: Protocol,
    /// Who; port 0 stands for any.
    pub client: Option<SocketAddr>,
    /// The client is a Pod or a node of the cluster.
    pub inside: bool,
}

/// What becomes of a connection, and why.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Story {
    /// Where the connection goes to.
    pub address: SocketAddr,
    /// Over what.
    pub protocol: Protocol,
    /// Who makes it.
    pub client: Option<SocketAddr>,
    /// The client is inside of the cluster.
    pub inside: bool,
    /// The Service that has the address.
    pub service: Option<String>,
    /// The name of its port.
    pub port: Option<String>,
    /// What happens.
    pub outcome: Outcome,
    /// The endpoint that takes it.
    pub endpoint: Option<SocketAddr>,
    /// The steps to it.
    pub steps: Vec<Told>,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// An endpoint takes it.
    Endpoint,
    /// It is refused.
    Refuse,
    /// It is dropped.
    Drop,
    /// It is none of ours.
    Pass,
}

/// One step, by a stable word and in a sentence.
#[derive(Debug, Serialize)]
pub struct Told {
    /// The word.
    pub step: &'static str,
    /// The sentence.
    pub text: String,
}

/// By what chance and time the story goes.
#[derive(Clone, Copy)]
pub struct Moment {
    /// What draws are made from.
    pub seed: Seed,
    /// The time by which tallies go.
    pub now: Millis,
}

impl Moment {
    /// Where there is neither a secret nor a clock: the same question gets the same answer.
    pub const NONE: Self = Self { seed: Seed(0, 0), now: 0 };
}

impl Story {
    /// What `table` makes of `connection`. `listener` is the Service port that a listener on the address serves.
    pub fn tell(
        table: &Table,
        connection: &Connection,
        moment: Moment,
        listener: Option<&ServicePort>,
    ) -> Self {
        let mut story = Self {
            address: connection.address,
            protocol: connection.protocol,
            client: connection.client,
            inside: connection.inside,
            service: None,
            port: None,
            outcome: Outcome::Pass,
            endpoint: None,
            steps: Vec::new(),
        };
        let dialled = Destination::new(connection.address, connection.protocol);
        let by_node = Destination::node(Family::of(&dialled.ip), dialled.port, dialled.protocol);
        match (listener, table.at(&dialled), table.at(&by_node)) {
            (Some(port), _, _) => {
                story.add("listener", format!("a --listen of the sidecar for {}", named(port)));
                story.pick(port, Path::ClusterIp, connection, moment);
            }
            (None, Some((path, port)), _) => {
                story.add("address", format!("the {} of {}", path_name(path), named(port)));
                story.pick(port, path, connection, moment);
            }
            (None, None, Some((path, port))) => {
                story.add(
                    "address",
                    format!("if this is an address of a node: the node port of {}", named(port)),
                );
                story.pick(port, path, connection, moment);
            }
            (None, None, None) => {
                let transport = connection.protocol;
                story.add("address", format!("not a Service address for {transport}: passes"));
            }
        }
        story
    }

    /// The story for people.
    pub fn text(&self) -> String {
        let mut text = match self.client {
            Some(client) => format!("{}/{} from {}", self.address, self.protocol, shown(client)),
            None => format!("{}/{}", self.address, self.protocol),
        };
        let place = if self.inside { "inside" } else { "outside" };
        let _ = writeln!(text, ", by a client {place} the cluster");
        for (number, told) in (1..).zip(&self.steps) {
            let _ = writeln!(text, "{number}. {}", told.text);
        }
        let _ = match (self.outcome, self.endpoint) {
            (Outcome::Endpoint, Some(endpoint)) => writeln!(text, "=> {endpoint}"),
            (Outcome::Refuse, _) => writeln!(text, "=> refused"),
            (Outcome::Drop, _) => writeln!(text, "=> dropped"),
            _ => writeln!(text, "=> passes: goes where it would go without Remora"),
        };
        text
    }

    fn add(&mut self, step: &'static str, text: String) {
        self.steps.push(Told { step, text });
    }

    fn pick(&mut self, port: &ServicePort, path: Path, connection: &Connection, moment: Moment) {
        self.service = Some(port.id.service.to_string());
        self.port = Some(port.id.port.to_string());
        let client = connection.client.unwrap_or_else(|| any_client(port, path));
        if connection.client.is_none() && path == Path::LoadBalancer && !port.source_ranges.is_empty() {
            self.add(
                "client",
                format!("no --client: taken as {}, which is in the source ranges", client.ip()),
            );
        }
        let flow = Flow { client, inside: connection.inside };
        let question = Question {
            path,
            flow,
            draw: Draw::new(&moment.seed, &flow, 0),
            now: moment.now,
            pin: None,
            tried: &Tried::default(),
        };
        let mut steps = Vec::new();
        let verdict = crate::explain(port, &question, &Tallies, &mut |step| steps.push(step));
        steps.into_iter().for_each(|step| self.add(word(&step), sentence(&step, port, &flow)));
        (self.outcome, self.endpoint) = match verdict {
            Verdict::Endpoint(endpoint, _) => (Outcome::Endpoint, Some(endpoint.address)),
            Verdict::Refuse => (Outcome::Refuse, None),
            Verdict::Drop => (Outcome::Drop, None),
        };
        if let (Some(seconds), Outcome::Endpoint) = (port.affinity_seconds, self.outcome) {
            let text = format!("session affinity: the client stays with that endpoint for {seconds} s");
            self.add("affinity", text);
        }
    }
}

/// A client of the port's family that its source ranges allow.
fn any_client(port: &ServicePort, path: Path) -> SocketAddr {
    let allowed = port.source_ranges.first().filter(|_| path == Path::LoadBalancer).map(|range| range.addr());
    let any = match port.id.family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(allowed.unwrap_or(any), 0)
}

fn word(step: &Step<'_>) -> &'static str {
    match step {
        Step::Policy { .. } => "policy",
        Step::OutOfRange => "out-of-range",
        Step::Empty { .. } => "empty",
        Step::Pinned(_) => "pinned",
        Step::Unpinned(_) => "unpinned",
        Step::Candidates { .. } => "candidates",
        Step::Drawn(..) => "drawn",
        Step::Chosen(_) => "chosen",
        Step::Exhausted => "exhausted",
    }
}

fn sentence(step: &Step<'_>, port: &ServicePort, flow: &Flow) -> String {
    match *step {
        Step::Policy { path, local, short_circuit, members } => {
            let side = if path == Path::ClusterIp { "internal" } else { "external" };
            let policy = if local { "Local" } else { "Cluster" };
            let why = if short_circuit {
                ", for the policy is Local, but a client inside the cluster is not bound by it (see --outside)"
            } else {
                ""
            };
            format!("{side} policy {policy}{why}: {} may serve", count(members))
        }
        Step::OutOfRange => {
            let ranges: Vec<String> = port.source_ranges.iter().map(ToString::to_string).collect();
            format!("client {} is outside of the source ranges {}", flow.client.ip(), ranges.join(", "))
        }
        Step::Empty { elsewhere: true } => {
            "no endpoint may serve here, though there are some elsewhere".to_owned()
        }
        Step::Empty { elsewhere: false } => "no endpoint is ready anywhere".to_owned(),
        Step::Pinned(endpoint) => format!("session affinity: the client stays with {}", endpoint.address),
        Step::Unpinned(why) => format!("session affinity: {}", unpinned(why)),
        Step::Candidates { candidates, tried, aside, ignored } => {
            let tried = if tried > 0 { format!(", {tried} tried already") } else { String::new() };
            let unless = if ignored { ", but too many to count" } else { "" };
            format!("{} to choose among; {aside} put aside after failures{unless}{tried}", count(candidates))
        }
        Step::Drawn(endpoint, active) => {
            format!("drawn by chance: {}, with {active} active connections", endpoint.address)
        }
        Step::Chosen(endpoint) => chosen(endpoint, port),
        Step::Exhausted => "every endpoint was tried".to_owned(),
    }
}

fn chosen(endpoint: &Endpoint, port: &ServicePort) -> String {
    let how = match port.balance {
        Balance::LeastConnections => "the fewest active connections",
        Balance::Random => "by chance",
        Balance::RoundRobin => "whose turn it is",
        Balance::Maglev => "by the client's address",
        Balance::Off => "unbalanced",
    };
    format!("{} chooses {} ({how})", port.balance.name(), endpoint.address)
}

fn unpinned(why: Unpinned) -> &'static str {
    match why {
        Unpinned::Changed => "its timeout changed, the client is free again",
        Unpinned::Expired => "the client stayed away for too long and is free again",
        Unpinned::Gone => "the client's endpoint serves no longer",
        Unpinned::Failing => "the client's endpoint is put aside",
    }
}

fn count(endpoints: usize) -> String {
    if endpoints == 1 { "1 endpoint".to_owned() } else { format!("{endpoints} endpoints") }
}

fn path_name(path: Path) -> &'static str {
    match path {
        Path::ClusterIp => "cluster IP",
        Path::LoadBalancer => "load balancer's address",
        Path::ExternalIp => "external IP",
        Path::NodePort => "node port",
    }
}

fn named(port: &ServicePort) -> String {
    let name = if port.id.port.is_empty() { String::new() } else { format!(" {}", port.id.port) };
    format!("{} port{name} {}/{}", port.id.service, port.port, port.id.protocol)
}

/// A client whose port does not matter is shown without.
fn shown(client: SocketAddr) -> String {
    if client.port() == 0 { client.ip().to_string() } else { client.to_string() }
}
