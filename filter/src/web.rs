//! Remora in a browser: a feed read by a page, and the table of it asked by JavaScript. The page fetches
//! `GET /v1/feed` and gives what comes to [`Mirror::read`]; the types of everything are in `web.d.ts`. Never fetches.

use std::net::SocketAddr;

use selection::story::{Connection, Moment, Story};
use selection::{Family, Protocol, Row, Symbol};
use serde::{Deserialize, Serialize};
use serde_wasm_bindgen::Serializer;
use wasm_bindgen::prelude::*;
use watcher::feed::{self, Splitter};

use crate::inquiry::{self, Inquiry};

#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = include_str!("web.d.ts");

/// A table that is kept in step with the feed of a Remora. What was known before a feed broke serves on.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Mirror {
    mirror: feed::Mirror,
    splitter: Splitter,
}

#[wasm_bindgen]
impl Mirror {
    /// A mirror that builds its table for `here`.
    #[wasm_bindgen(constructor)]
    pub fn new(
        #[wasm_bindgen(unchecked_optional_param_type = "Here")] here: JsValue,
    ) -> Result<Mirror, JsError> {
        let here = if here.is_undefined() { Here::default() } else { read("here", here)? };
        let symbol = |name: Option<String>| name.filter(|name| !name.is_empty()).map(Symbol::from);
        let here = selection::Here { node: symbol(here.node), zone: symbol(here.zone) };
        Ok(Self { mirror: feed::Mirror::new(here), splitter: Splitter::default() })
    }

    /// A new answer of the feed begins, after the last one ended or `read` failed.
    pub fn begin(&mut self) {
        self.splitter = Splitter::default();
    }

    /// Reads what came of the feed's body, in whatever pieces it comes. Fails if it is no feed, or something was lost:
    /// the feed is to be fetched again.
    #[wasm_bindgen(unchecked_return_type = "Progress")]
    pub fn read(&mut self, bytes: &[u8]) -> Result<JsValue, JsError> {
        let mut progress = Progress { complete: false, age: None };
        self.splitter.push(bytes);
        while let Some(frame) = self.splitter.frame()? {
            let feed::Progress { complete, age, .. } = self.mirror.frame(frame)?;
            progress.complete |= complete;
            progress.age = age.map(|age| age.as_millis() as f64).or(progress.age);
        }
        shown(&progress)
    }

    /// Counts the tables; 0 before the first.
    #[wasm_bindgen(getter)]
    pub fn version(&self) -> f64 {
        self.mirror.table().version() as f64
    }

    /// Every Service port, in the order of their names.
    #[wasm_bindgen(unchecked_return_type = "ServicePort[]")]
    pub fn services(&self) -> Result<JsValue, JsError> {
        let mut ports: Vec<_> = self.mirror.table().all().collect();
        ports.sort_by(|a, b| a.id.cmp(&b.id));
        shown(&ports.into_iter().map(|port| Row::from(&**port)).collect::<Vec<_>>())
    }

    /// The endpoints that may serve a port of a Service here; none if there is no such port. `service` is written as
    /// `NAMESPACE/NAME`, `port` is its name or number; of two families IPv4 counts.
    #[wasm_bindgen(unchecked_return_type = "Endpoint[]")]
    pub fn endpoints(&self, service: &str, port: &str) -> Result<JsValue, JsError> {
        let port = inquiry::port_of(self.mirror.table(), service, port, Family::V4).map_err(failed)?;
        let endpoints = port.map_or(&[][..], |port| &port.endpoints).iter().map(|endpoint| Endpoint {
            address: endpoint.address,
            pod: format!("{:016x}", endpoint.pod),
            in_cluster: endpoint.in_cluster,
            in_local: endpoint.in_local,
        });
        shown(&endpoints.collect::<Vec<_>>())
    }

    /// Which endpoint takes a connection. Counts nothing: the same inquiry gets the same reply.
    #[wasm_bindgen(unchecked_return_type = "Reply")]
    pub fn pick(
        &self,
        #[wasm_bindgen(unchecked_param_type = "Inquiry")] inquiry: JsValue,
    ) -> Result<JsValue, JsError> {
        let inquiry: Inquiry = read("inquiry", inquiry)?;
        shown(&inquiry.answer(self.mirror.table()).map_err(failed)?)
    }

    /// What becomes of a connection and why: the answer of `remora explain --source`.
    #[wasm_bindgen(unchecked_return_type = "Story")]
    pub fn explain(
        &self,
        #[wasm_bindgen(unchecked_param_type = "Connection")] connection: JsValue,
    ) -> Result<JsValue, JsError> {
        let Asked { address, protocol, client, inside } = read("connection", connection)?;
        let connection = Connection { address, protocol, client, inside: inside.unwrap_or(true) };
        shown(&Story::tell(self.mirror.table(), &connection, Moment::NONE, None))
    }
}

/// What a page says, where `selection` has no words of its own for it. See `web.d.ts`.
#[derive(Default, Deserialize)]
struct Here {
    node: Option<String>,
    zone: Option<String>,
}

#[derive(Deserialize)]
struct Asked {
    address: SocketAddr,
    #[serde(default)]
    protocol: Protocol,
    client: Option<SocketAddr>,
    inside: Option<bool>,
}

#[derive(Serialize)]
struct Progress {
    complete: bool,
    age: Option<f64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    address: SocketAddr,
    pod: String,
    in_cluster: bool,
    in_local: bool,
}

/// A value that JavaScript gave under this name.
fn read<T: for<'de> Deserialize<'de>>(name: &str, value: JsValue) -> Result<T, JsError> {
    serde_wasm_bindgen::from_value(value).map_err(|error| {
        let error = error.to_string();
        failed(format!("the {name} is wrong: {}", error.strip_prefix("Error: ").unwrap_or(&error)))
    })
}

/// A value for JavaScript, as JSON would have it.
fn shown(value: &impl Serialize) -> Result<JsValue, JsError> {
    value.serialize(&Serializer::json_compatible()).map_err(|error| failed(error.to_string()))
}

fn failed(sentence: String) -> JsError {
    JsError::new(&sentence)
}
