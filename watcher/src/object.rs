//! Objects as the Kubernetes API and people write them, read into what selection wants. In: JSON values. Out:
//! Services, slices, zones, and warnings. Never fails for more than the object at hand, never for one endpoint.
//!
//! Accepted are `null` for every absent field and list, fields that nobody knows, and Services that no API server
//! has given its defaults. What cannot be understood is named by its field: `endpoints[3].addresses[0]: …`.

mod field;
mod service;
mod slice;

use selection::Symbol;
use serde_json::Value;

use crate::store::{Item, Key, Kind};
use field::Field;

/// One object of a kind that matters here, or of another.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Service or an EndpointSlice.
    Item(Item),
    /// A Node.
    Node {
        /// `metadata.name`.
        name: Symbol,
        /// The label `topology.kubernetes.io/zone`.
        zone: Option<Symbol>,
        /// It is neither deleted nor about to be: load balancers may send connections to it (KEP-3836).
        is_eligible: bool,
    },
    /// An object of another kind: none of our business.
    Other,
}

/// An object, and what of it was left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The object.
    pub object: Object,
    /// Parts that were left out or taken as their default.
    pub warnings: Vec<Warning>,
}

/// What is wrong in one place of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where: `spec.ports[0].port`.
    pub field: String,
    /// A stable word, also the metric label.
    pub reason: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// An object that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{cause}", object_prefix(.kind, .key))]
pub struct Error {
    /// Its kind, if that much is known.
    pub kind: Option<Kind>,
    /// Its name, if that much is known.
    pub key: Option<Key>,
    /// What is wrong in which field.
    pub cause: Warning,
}

fn object_prefix(kind: &Option<Kind>, key: &Option<Key>) -> String {
    match (kind, key) {
        (_, Some(key)) => format!("{key}: "),
        (Some(kind), None) => format!("an object of {}: ", kind.label()),
        (None, None) => String::new(),
    }
}

impl Object {
    /// Reads one object, which must say its `kind`.
    ///
    /// # Errors
    /// If it cannot be understood as what it says to be. A list is no object: see [`read`].
    pub fn from_json(value: &Value) -> Result<Reading, Error> {
        let root = Field::root(value);
        let no_kind = |cause| Error { kind: None, key: None, cause };
        let kind = root.get("kind").required_text().map_err(no_kind)?;
        let version = root.get("apiVersion").text().map_err(no_kind)?;
        match (kind, version) {
            ("Service", None | Some("v1")) => Self::of_kind(Kind::Services, value),
            ("EndpointSlice", None | Some("discovery.k8s.io/v1")) => Self::of_kind(Kind::Slices, value),
            ("Node", None | Some("v1")) => Self::of_kind(Kind::Node, value),
            ("EndpointSlice", Some(other)) if other.starts_with("discovery.k8s.io/") => Err(no_kind(
                root.get("apiVersion").warning("version", format!("{other:?} is not discovery.k8s.io/v1")),
            )),
            _ => Ok(Reading { object: Self::Other, warnings: Vec::new() }),
        }
    }

    /// Reads one object of `kind`, as items of typed lists are, which do not say their kind.
    ///
    /// # Errors
    /// If it cannot be understood.
    pub fn of_kind(kind: Kind, value: &Value) -> Result<Reading, Error> {
        let root = Field::root(value);
        let mut warnings = Vec::new();
        let object = match kind {
            Kind::Services => {
                service::read(&root, &mut warnings).map(|service| Item::Service(Box::new(service)).into())
            }
            Kind::Slices => slice::read(&root, &mut warnings),
            Kind::Node => node(&root),
        };
        match object {
            Ok(object) => Ok(Reading { object, warnings }),
            Err(cause) => Err(Error { kind: Some(kind), key: key(kind, value), cause }),
        }
    }
}

impl From<Item> for Object {
    fn from(item: Item) -> Self {
        Self::Item(item)
    }
}

/// The objects of `value`: it alone, or if it is a list (`kind: List`, `kind: ServiceList`) its items, each by
/// itself. With the path of each.
pub fn read(value: &Value) -> Vec<(String, Result<Reading, Error>)> {
    let mut found = Vec::new();
    read_nested(value, String::new(), 0, &mut found);
    found
}

/// Lists within lists are taken apart up to this depth.
const LISTS_DEEP: u32 = 8;

fn read_nested(value: &Value, path: String, depth: u32, found: &mut Vec<(String, Result<Reading, Error>)>) {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
    let Some(of) = kind.strip_suffix("List").filter(|_| depth < LISTS_DEEP) else {
        found.push((path, Object::from_json(value)));
        return;
    };
    let items = value.get("items").unwrap_or(&Value::Null);
    let item_kind = match of {
        "Service" => Some(Kind::Services),
        "EndpointSlice" => Some(Kind::Slices),
        "Node" => Some(Kind::Node),
        "" => None,
        _ => return,
    };
    match items {
        Value::Null => {}
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let path = format!("{path}items[{i}].");
                match item_kind {
                    Some(kind) if item.get("kind").is_none_or(Value::is_null) => {
                        found.push((path, Object::of_kind(kind, item)));
                    }
                    _ => read_nested(item, path, depth + 1, found),
                }
            }
        }
        _ => {
            let cause = Field::root(value).get("items").warning("type", "is not a list".to_owned());
            found.push((path, Err(Error { kind: None, key: None, cause })));
        }
    }
}

/// Which object `value` is, if that much can be understood.
pub fn key(kind: Kind, value: &Value) -> Option<Key> {
    let meta = Metadata::read(&Field::root(value)).ok()?;
    match kind {
        Kind::Services => Some(Key::Service(selection::ServiceName::new(meta.namespace, meta.name))),
        Kind::Slices => Some(Key::Slice { namespace: meta.namespace.into(), name: meta.name.into() }),
        Kind::Node => None,
    }
}

/// What of `metadata` matters.
struct Metadata<'v> {
    namespace: &'v str,
    name: &'v str,
}

impl<'v> Metadata<'v> {
    fn read(root: &Field<'v, '_>) -> Result<Self, Warning> {
        let metadata = root.get("metadata");
        let name = metadata.get("name").required_text()?;
        let namespace = metadata.get("namespace").text()?.filter(|namespace| !namespace.is_empty());
        Ok(Self { namespace: namespace.unwrap_or("default"), name })
    }
}

/// What the cluster autoscaler puts on a node before it takes it away.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

fn node(root: &Field<'_, '_>) -> Result<Object, Warning> {
    let metadata = root.get("metadata");
    let name = metadata.get("name").required_text()?.into();
    let zone = metadata.get("labels").get("topology.kubernetes.io/zone").text()?;
    let zone = zone.filter(|zone| !zone.is_empty()).map(Symbol::from);
    let spec = root.get("spec");
    let taints = spec.get("taints");
    let is_tainted = taints.items()?.into_iter().any(|taint| {
        let key = taint.get("key").text();
        key.is_ok_and(|key| key == Some(TO_BE_DELETED))
    });
    let is_eligible = metadata.get("deletionTimestamp").text()?.is_none() && !is_tainted;
    Ok(Object::Node { name, zone, is_eligible })
}
