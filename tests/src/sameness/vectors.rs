//! What kube-proxy's own code made of 300 random Services, as cases: the tables in every field, and picks in turn, of
//! which it is known whom they must give. In: `watcher/tests/vectors`. Out: batches.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use filter::cases::{Answer, Batch, Step};
use filter::inquiry::{Held, Inquiry, Reply};
use selection::story::Outcome;
use selection::{Here, Protocol};
use serde_json::{Value, json};
use watcher::feed::{Subscription, snapshot};
use watcher::object::Object;
use watcher::store::{Event, Kind, Store, Stream};

use super::Case;

/// When all is asked.
const NOW: u64 = 7;

/// One batch for each of kube-proxy's cases.
///
/// # Panics
/// When the file is not what it was.
pub fn vectors() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../watcher/tests/vectors/kube-proxy.jsonl");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| case(&serde_json::from_str(line).expect("JSON"))).collect()
}

fn case(vector: &Value) -> Case {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let (node, zone) = (text(&vector["node"]), text(&vector["zone"]));
    let batch = Batch { node, zone, seed: (0, 0), steps: Vec::new() };
    let mut case = Case::new(format!("kube-proxy's case {}", vector["id"]), batch);
    case.frames(frames(list(&vector["objects"])));
    let rows = list(&vector["expect"]);
    case.add(Step::Rows, Some(Answer::Rows(vector["expect"].to_string())));
    rows.iter().for_each(|row| picks(&mut case, row));
    case
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

/// The feed of a cluster that has these objects, whose Services are balanced in turn: kube-proxy's rules do not look at
/// how.
fn frames(objects: &[Value]) -> Vec<Vec<u8>> {
    let mut store = Store::new(Here::default());
    let streams = [Stream::all(Kind::Services), Stream::all(Kind::Slices)];
    streams.iter().for_each(|stream| store.apply(Event::ListBegins(stream.clone())));
    for object in objects {
        let mut object = object.clone();
        if object["kind"] == "Service" {
            object["metadata"]["annotations"]["remora.dev/balance"] = json!("round-robin");
        }
        let Object::Item(item) = Object::from_json(&object).expect("an object").object else {
            panic!("an object of another kind: {object}")
        };
        store.apply(Event::Applied(item));
    }
    streams.into_iter().for_each(|stream| store.apply(Event::ListEnds(stream)));
    snapshot(&store, &Subscription::All, 1, 1, None)
}

/// Dials every address of a row, by clients inside and outside of the cluster, so often that each endpoint has its turn.
fn picks(case: &mut Case, row: &Value) {
    let text = |key: &str| row[key].as_str().expect("a text");
    let number = |key: &str| row[key].as_u64().expect("a number");
    let protocol: Protocol = serde_json::from_value(row["protocol"].clone()).expect("a protocol");
    let is_v4 = text("family") == "IPv4";
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let ips = |key: &str| list(&row[key]).iter().map(|text| ip(text.as_str().expect("a text")));
    let port = |key: &str| u16::try_from(number(key)).expect("a port");
    let seconds = u32::try_from(number("affinitySeconds")).expect("seconds");

    let mut dialled = vec![(SocketAddr::new(ip(text("clusterIP")), port("servicePort")), true)];
    let outside = ips("externalIPs").chain(ips("loadBalancerVIPs"));
    dialled.extend(outside.map(|ip| (SocketAddr::new(ip, port("servicePort")), false)));
    if number("nodePort") != 0 {
        let any = if is_v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        dialled.push((SocketAddr::new(any, port("nodePort")), false));
    }
    // In the source ranges, which bind some addresses.
    let range =
        list(&row["sourceRanges"]).first().and_then(Value::as_str).and_then(|range| range.split('/').next());
    let client =
        SocketAddr::new(ip(range.unwrap_or(if is_v4 { "10.244.9.9" } else { "fd00:244:9::9" })), 4_567);
    for (address, is_inside_address) in dialled {
        for inside in [true, false] {
            let local = if is_inside_address {
                row["internalLocal"] == true
            } else {
                row["externalLocal"] == true && !inside
            };
            let mut pool: Vec<SocketAddr> = list(&row[if local { "local" } else { "cluster" }])
                .iter()
                .map(|text| text.as_str().and_then(|text| text.parse().ok()).expect("an endpoint"))
                .collect();
            pool.sort();
            for turn in 0..=pool.len() as u64 {
                let inquiry =
                    Inquiry { inside, turn, now: NOW, ..Inquiry::dialled(address, protocol, client) };
                let endpoint = pool.get((turn % pool.len().max(1) as u64) as usize).copied();
                let outcome = match endpoint {
                    Some(_) => Outcome::Endpoint,
                    None if row["hasAny"] == true => Outcome::Drop,
                    None => Outcome::Refuse,
                };
                let pin = endpoint.filter(|_| seconds > 0).map(|address| Held {
                    address,
                    pod: 0,
                    used: NOW,
                    seconds,
                });
                let reply = Reply { outcome, endpoint, pin };
                case.add(Step::Ask(inquiry), Some(Answer::Asked(reply)));
            }
        }
    }
}
