//! A pick that is asked for with everything it depends on, as a page does, or a test. In: a table and an [`Inquiry`]. Out:
//! a [`Reply`], by `selection::pick`. Never counts, so that the same inquiry gets the same reply.

use std::net::SocketAddr;

use selection::story::Outcome;
use selection::{
    Destination, Draw, Endpoint, Family, Flow, Health, Millis, Path, Pin, Protocol, Question, Seed,
    ServiceName, ServicePort, Table, Tried, Verdict,
};
use serde::{Deserialize, Serialize};

/// What is asked. Either an address was dialled, or a Service is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inquiry {
    /// The address that was dialled; an unspecified one stands for every address of this node.
    #[serde(default)]
    pub address: Option<SocketAddr>,
    /// Over what it was dialled. Default TCP.
    #[serde(default)]
    pub protocol: Protocol,
    /// `[NAMESPACE/]NAME` of a Service, dialled at its cluster IP of the client's family, if it has one.
    #[serde(default)]
    pub service: Option<String>,
    /// The name or number of its port.
    #[serde(default)]
    pub port: Option<String>,
    /// Who dials.
    pub client: SocketAddr,
    /// The client is a Pod or a node of the cluster. Default true.
    #[serde(default = "inside")]
    pub inside: bool,
    /// The secret that draws are made from. Default 0, 0, as in `remora explain --source`.
    #[serde(default)]
    pub seed: (u64, u64),
    /// How many picks of the port came before. Default 0.
    #[serde(default)]
    pub turn: u64,
    /// The time. Default 0.
    #[serde(default)]
    pub now: Millis,
    /// Active connections of endpoints; who is not named has none.
    #[serde(default)]
    pub loads: Vec<(SocketAddr, u32)>,
    /// Endpoints that are put aside.
    #[serde(default)]
    pub aside: Vec<SocketAddr>,
    /// Endpoints that this connection tried already.
    #[serde(default)]
    pub tried: Vec<SocketAddr>,
    /// What the client got from its last pick.
    #[serde(default)]
    pub pin: Option<Held>,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// What happens.
    pub outcome: Outcome,
    /// The endpoint that takes it.
    pub endpoint: Option<SocketAddr>,
    /// With session affinity, what the client holds from here on.
    pub pin: Option<Held>,
}

/// A [`Pin`], as those keep it who have no numbers of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The endpoint's address.
    pub address: SocketAddr,
    /// Its Pod's identity, in hexadecimal digits.
    #[serde(with = "digits")]
    pub pod: u64,
    /// When the client last connected.
    pub used: Millis,
    /// The timeout that it was made under.
    pub seconds: u32,
}

impl Inquiry {
    /// What an ordinary client at `client` asks about the address that it dials.
    pub fn dialled(address: SocketAddr, protocol: Protocol, client: SocketAddr) -> Self {
        Self {
            address: Some(address),
            protocol,
            service: None,
            port: None,
            client,
            inside: inside(),
            seed: (0, 0),
            turn: 0,
            now: 0,
            loads: Vec::new(),
            aside: Vec::new(),
            tried: Vec::new(),
            pin: None,
        }
    }

    /// What `table` makes of it.
    ///
    /// # Errors
    /// If it cannot be understood: one sentence.
    pub fn answer(&self, table: &Table) -> Result<Reply, String> {
        let Some((path, port)) = self.port_in(table)? else {
            return Ok(Reply { outcome: Outcome::Pass, endpoint: None, pin: None });
        };
        let flow = Flow { client: self.client, inside: self.inside };
        let mut tried = Tried::default();
        self.tried.iter().for_each(|address| tried.add(*address));
        let question = Question {
            path,
            flow,
            draw: Draw::new(&Seed(self.seed.0, self.seed.1), &flow, self.turn),
            now: self.now,
            pin: self.pin.map(Pin::from),
            tried: &tried,
        };
        Ok(match selection::pick(port, &question, &Told::new(self, port)) {
            Verdict::Endpoint(endpoint, pin) => Reply {
                outcome: Outcome::Endpoint,
                endpoint: Some(endpoint.address),
                pin: pin.map(Held::from),
            },
            Verdict::Refuse => Reply { outcome: Outcome::Refuse, endpoint: None, pin: None },
            Verdict::Drop => Reply { outcome: Outcome::Drop, endpoint: None, pin: None },
        })
    }

    fn port_in<'t>(&self, table: &'t Table) -> Result<Option<(Path, &'t ServicePort)>, String> {
        match (&self.address, &self.service, &self.port) {
            (Some(address), None, None) => {
                let dialled = Destination::new(*address, self.protocol);
                Ok(table.at(&dialled).map(|(path, port)| (path, &**port)))
            }
            (None, Some(service), Some(port)) => {
                let found = port_of(table, service, port, Family::of(&self.client.ip().to_canonical()))?;
                Ok(found.map(|port| (Path::ClusterIp, port)))
            }
            _ => Err("an inquiry names either an address, or a service and its port".to_owned()),
        }
    }
}

/// The port of a Service, written as [`Inquiry::service`] and [`Inquiry::port`] are.
///
/// # Errors
/// If it is not the name of a Service.
pub fn port_of<'t>(
    table: &'t Table,
    service: &str,
    port: &str,
    family: Family,
) -> Result<Option<&'t ServicePort>, String> {
    let name = ServiceName::written(service)
        .ok_or_else(|| format!("{service:?} is not the name of a Service; write it as shop/web"))?;
    Ok(table.port(&name, port, family).map(|port| &**port))
}

fn inside() -> bool {
    true
}

impl From<Pin> for Held {
    fn from(Pin { address, pod, used, seconds }: Pin) -> Self {
        Self { address, pod, used, seconds }
    }
}

impl From<Held> for Pin {
    fn from(Held { address, pod, used, seconds }: Held) -> Self {
        Self { address, pod, used, seconds }
    }
}

/// Health as the inquiry tells it, by the place of an endpoint in its port.
struct Told {
    loads: Vec<u32>,
    aside: Vec<bool>,
}

impl Told {
    fn new(inquiry: &Inquiry, port: &ServicePort) -> Self {
        let count = port.endpoints.len();
        let mut told = Self { loads: vec![0; count], aside: vec![false; count] };
        let at = |address: &SocketAddr| port.endpoints.binary_search_by_key(address, |e| e.address).ok();
        for (address, load) in &inquiry.loads {
            if let Some(at) = at(address) {
                told.loads[at] = *load;
            }
        }
        inquiry.aside.iter().filter_map(at).for_each(|at| told.aside[at] = true);
        told
    }
}

impl Health for Told {
    fn load(&self, index: usize, _: &Endpoint) -> u32 {
        self.loads[index]
    }

    fn aside(&self, index: usize, _: &Endpoint, _: Millis) -> bool {
        self.aside[index]
    }
}

mod digits {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{number:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use selection::{
        Balance, Change, Fact, Here, Kind, Port, Service, Slice, SlicePort, Symbol, build, client_hash,
    };
    use serde_json::{Value, json};

    use super::*;

    /// The table of one Service, `shop/web`, port `http` 80 at 10.96.0.1, with five endpoints.
    fn table(balance: Balance, affinity_seconds: Option<u32>) -> Table {
        let name: Symbol = "http".into();
        let service = Service {
            name: ServiceName::new("shop", "web"),
            kind: Kind::ClusterIp,
            cluster_ips: ["10.96.0.1".parse().unwrap()].into(),
            ports: [Port { name: name.clone(), protocol: Protocol::Tcp, port: 80, node_port: 0 }].into(),
            balance,
            affinity_seconds,
            external_ips: [].into(),
            load_balancer_vips: [].into(),
            source_ranges: [].into(),
            internal_local: false,
            external_local: false,
            health_check_node_port: 0,
            has_selector: true,
            proxy_protocol: false,
            proxy_name: None,
        };
        let fact = |n: u8| Fact {
            ip: [10, 0, 0, n].into(),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            zone: None,
            hints: None,
            pod: None,
        };
        let slice = Slice {
            name: "web-1".into(),
            family: Some(Family::V4),
            ports: [SlicePort { name: Some(Arc::clone(&name)), protocol: Protocol::Tcp, port: 8080 }].into(),
            endpoints: (1..=5).map(fact).collect(),
            headless: false,
            triggered: None,
        };
        let ports = build(&service, &[&slice], &Here::default(), &[]);
        Table::default().with(&[Change { service: service.name, ports }])
    }

    fn ask(table: &Table, inquiry: Value) -> Value {
        let inquiry: Inquiry = serde_json::from_value(inquiry).unwrap();
        serde_json::to_value(inquiry.answer(table).unwrap()).unwrap()
    }

    #[test]
    fn what_is_not_told_has_its_default() {
        let asked: Inquiry =
            serde_json::from_value(json!({"address": "10.96.0.1:80", "client": "10.1.2.3:4"})).unwrap();
        let dialled =
            Inquiry::dialled("10.96.0.1:80".parse().unwrap(), Protocol::Tcp, "10.1.2.3:4".parse().unwrap());
        assert_eq!(asked, dialled);
    }

    #[test]
    fn a_service_by_name_is_its_cluster_ip() {
        let table = table(Balance::RoundRobin, None);
        for turn in 0..7 {
            let by_address = json!({"address": "10.96.0.1:80", "client": "10.1.2.3:4", "turn": turn});
            let expected = format!("10.0.0.{}:8080", 1 + turn % 5);
            let reply = ask(&table, by_address);
            assert_eq!(reply, json!({"outcome": "endpoint", "endpoint": expected, "pin": null}));
            for port in ["80", "http"] {
                let by_name =
                    json!({"service": "shop/web", "port": port, "client": "10.1.2.3:4", "turn": turn});
                assert_eq!(ask(&table, by_name), reply);
            }
        }
        let other = json!({"service": "shop/web", "port": "81", "client": "10.1.2.3:4"});
        assert_eq!(ask(&table, other)["outcome"], "pass");
    }

    #[test]
    fn loads_tried_and_aside_are_those_of_the_addresses() {
        let table = table(Balance::LeastConnections, None);
        let busy = |but: u8| {
            (1..=5).filter(|n| *n != but).map(|n| json!([format!("10.0.0.{n}:8080"), 9])).collect::<Value>()
        };
        let mut idle = 0;
        for port in 0..100 {
            let client = format!("10.1.2.3:{port}");
            let ask = |more: &str, list: Value| {
                ask(&table, json!({"address": "10.96.0.1:80", "client": client, more: list}))
            };
            idle += u32::from(ask("loads", busy(3))["endpoint"] == "10.0.0.3:8080");
            for word in ["tried", "aside"] {
                let without = ask(word, json!(["10.0.0.2:8080", "10.0.0.4:8080"]));
                assert!(
                    ["1", "3", "5"].map(|n| json!(format!("10.0.0.{n}:8080"))).contains(&without["endpoint"])
                );
            }
        }
        assert!((25..=55).contains(&idle), "two of five are drawn, so that 40 of 100 meet it: {idle}");
    }

    #[test]
    fn a_pin_that_was_given_is_understood() {
        let table = table(Balance::Random, Some(60));
        let first = ask(&table, json!({"address": "10.96.0.1:80", "client": "10.1.2.3:4", "now": 5}));
        for turn in 0..50 {
            let again = json!({"address": "10.96.0.1:80", "client": "10.1.2.3:4", "now": 6, "turn": turn,
                "pin": first["pin"]});
            assert_eq!(ask(&table, again)["endpoint"], first["endpoint"]);
        }
        assert_eq!(first["pin"]["pod"], "0000000000000000");
        let held = Held {
            pod: client_hash([10, 1, 2, 3].into()),
            ..serde_json::from_value(first["pin"].clone()).unwrap()
        };
        assert_eq!(serde_json::from_value::<Held>(serde_json::to_value(held).unwrap()).unwrap(), held);
    }

    #[test]
    fn an_inquiry_about_nothing_or_about_two_things_is_refused_in_a_sentence() {
        let table = Table::default();
        for wrong in [
            json!({"client": "10.1.2.3:4"}),
            json!({"client": "10.1.2.3:4", "service": "shop/web"}),
            json!({"client": "10.1.2.3:4", "service": "shop/web", "port": "80", "address": "10.96.0.1:80"}),
            json!({"client": "10.1.2.3:4", "service": "Shop", "port": "80"}),
        ] {
            let inquiry: Inquiry = serde_json::from_value(wrong).unwrap();
            let sentence = inquiry.answer(&table).unwrap_err();
            assert!(sentence.to_lowercase().contains("service"), "{sentence}");
        }
    }
}
