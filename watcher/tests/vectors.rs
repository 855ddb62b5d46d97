//! What kube-proxy's own code made of 300 random Services, and what is made of them here: the same, in every field.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;

use selection::{Here, Row, Symbol};
use serde_json::Value;
use watcher::object::Object;
use watcher::store::{Event, Kind, Store, Stream};

/// The cases: those named by `REMORA_VECTORS`, else the copy beside this file.
fn cases() -> Vec<Value> {
    let path = std::env::var_os("REMORA_VECTORS").map_or_else(
        || concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/kube-proxy.jsonl").into(),
        PathBuf::from,
    );
    let text =
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn symbol(value: &Value) -> Option<Symbol> {
    value.as_str().filter(|text| !text.is_empty()).map(Symbol::from)
}

/// The rows of the table that the store makes of `objects`.
fn rows(here: Here, objects: &[Value]) -> Vec<Row> {
    let mut store = Store::new(here);
    let streams = [Stream::all(Kind::Services), Stream::all(Kind::Slices)];
    streams.iter().for_each(|stream| store.apply(Event::ListBegins(stream.clone())));
    for object in objects {
        let reading = Object::from_json(object).unwrap();
        assert_eq!(reading.warnings, []);
        let Object::Item(item) = reading.object else { panic!("an object of another kind: {object}") };
        store.apply(Event::Applied(item));
    }
    streams.into_iter().for_each(|stream| store.apply(Event::ListEnds(stream)));
    let table = store.publish().expect("both lists are complete");
    let mut ports: Vec<_> = table.all().collect();
    ports.sort_by(|a, b| a.id.cmp(&b.id));
    ports.into_iter().map(|port| Row::from(&**port)).collect()
}

#[test]
fn every_field_agrees_with_kube_proxy() {
    let cases = cases();
    assert!(!cases.is_empty());
    let mut differing = Vec::new();
    for case in &cases {
        let here = Here { node: symbol(&case["node"]), zone: symbol(&case["zone"]) };
        let rows = rows(here, case["objects"].as_array().unwrap());
        let mut found: Vec<Value> = rows.iter().map(|row| serde_json::to_value(row).unwrap()).collect();
        let mut expected = case["expect"].as_array().unwrap().clone();
        let order = |row: &Value| ["service", "family", "port", "protocol"].map(|key| row[key].to_string());
        found.sort_by_key(order);
        expected.sort_by_key(order);
        if found != expected {
            differing.push(format!("case {}:\n expected {expected:#?}\n found {found:#?}", case["id"]));
        }
    }
    let count = differing.len();
    assert_eq!(count, 0, "{count} of {} cases differ, the first:\n{}", cases.len(), differing[0]);
}
