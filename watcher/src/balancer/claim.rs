//! What a Service asks of the load balancer, read from the object. In: JSON, as the API server writes it. Out: a
//! [`Claim`]. Never decides what it gets.

use std::net::IpAddr;

use selection::{Family, Protocol, Service, ServiceName};
use serde_json::Value;

use super::Lack;
use crate::object::{Object, Reading};
use crate::store::{Item, Kind};

/// The class of Services that Remora balances if it is not told another.
pub const CLASS: &str = "remora.dev/loadbalancer";
/// The finalizer of the contract between clusters and their load balancers.
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// The annotation by which a Service that has lost its type and class is known as ours.
pub const MARK: &str = "remora.dev/balanced-by";
/// The annotation that asks for addresses.
const WANTED: &str = "remora.dev/addresses";

/// A Service as the load balancer sees it.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The Service.
    pub name: ServiceName,
    /// The class of Services that are ours.
    pub class: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// It wants a load balancer, and this one.
    pub is_ours: bool,
    /// It is being deleted.
    pub is_deleting: bool,
    /// Every one of `metadata.finalizers`.
    pub finalizers: Vec<String>,
    /// It has [`MARK`].
    pub is_marked: bool,
    /// The addresses asked for.
    pub wanted: Result<Vec<IpAddr>, Lack>,
    /// `spec.ipFamilies`.
    pub families: Vec<Family>,
    /// `spec.ipFamilyPolicy` is `RequireDualStack`.
    pub needs_all_families: bool,
    /// `status.loadBalancer.ingress[].ip`.
    pub has: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`.
    pub ingress: Value,
    /// `status.conditions`.
    pub conditions: Vec<Value>,
    /// What is to be served; `None` if the object cannot be understood.
    pub service: Option<Box<Service>>,
}

impl Claim {
    /// Reads an object, which is ours if it is of `class`, or if it has none and `is_default`.
    pub fn read(object: &Value, class: &str, is_default: bool) -> Option<Self> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let name = text("/metadata/name")?;
        let name = ServiceName::new(text("/metadata/namespace").unwrap_or("default"), name);
        let is_of_class = text("/spec/loadBalancerClass").map_or(is_default, |of| of == class);
        let families = texts(object.pointer("/spec/ipFamilies"));
        let ingress = object.pointer("/status/loadBalancer/ingress").cloned().unwrap_or(Value::Null);
        let has = ingress.as_array().into_iter().flatten();
        let has = has.filter_map(|entry| entry.get("ip")?.as_str()?.parse().ok()).collect();
        let annotation = |key| object.pointer("/metadata/annotations").and_then(|all| all.get(key)?.as_str());
        let service = match Object::of_kind(Kind::Services, object) {
            Ok(Reading { object: Object::Item(Item::Service(service)), .. }) => Some(service),
            _ => None,
        };
        Some(Self {
            name,
            class: class.to_owned(),
            uid: text("/metadata/uid").unwrap_or_default().to_owned(),
            version: text("/metadata/resourceVersion").unwrap_or_default().to_owned(),
            is_ours: text("/spec/type") == Some("LoadBalancer") && is_of_class,
            is_deleting: text("/metadata/deletionTimestamp").is_some(),
            finalizers: texts(object.pointer("/metadata/finalizers")),
            is_marked: annotation(MARK) == Some(class),
            // The field is deprecated for an annotation, which wins.
            wanted: wanted(annotation(WANTED).or(text("/spec/loadBalancerIP")).unwrap_or_default()),
            families: families.iter().filter_map(|family| self::family(family)).collect(),
            needs_all_families: text("/spec/ipFamilyPolicy") == Some("RequireDualStack"),
            has,
            ingress,
            conditions: object
                .pointer("/status/conditions")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
            service,
        })
    }

    /// Whether it has the finalizer.
    pub fn is_finalized(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }

    /// Whether it is to be served.
    pub fn is_to_be_served(&self) -> bool {
        self.is_ours && !self.is_deleting
    }

    /// Whether it was served, and is to be no longer.
    pub fn is_to_be_cleaned(&self) -> bool {
        self.is_marked && !self.is_to_be_served()
    }

    /// The version is older than that of `other`, as far as the two can be compared (KEP-5504).
    pub fn is_older_than(&self, other: &Self) -> bool {
        let versions = self.version.parse::<u64>().ok().zip(other.version.parse::<u64>().ok());
        self.uid == other.uid && versions.is_some_and(|(mine, theirs)| mine < theirs)
    }

    /// Its ports that are served.
    pub fn tcp(&self) -> impl Iterator<Item = &selection::Port> {
        let ports = self.service.iter().flat_map(|service| service.ports.iter());
        ports.filter(|port| port.protocol == Protocol::Tcp)
    }

    /// The port at which a node tells whether it has endpoints of this Service, under policy Local.
    pub fn check(&self) -> Option<u16> {
        let service = self.service.as_ref()?;
        Some(service.health_check_node_port).filter(|port| service.external_local && *port != 0)
    }

    /// Some port has no node port: the way leads to the endpoints themselves.
    pub fn is_portless(&self) -> bool {
        self.tcp().any(|port| port.node_port == 0)
    }
}

fn wanted(text: &str) -> Result<Vec<IpAddr>, Lack> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().map_err(|_| Lack::Unreadable { text: part.to_owned() })).collect()
}

fn family(text: &str) -> Option<Family> {
    match text {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

fn texts(list: Option<&Value>) -> Vec<String> {
    let items = list.and_then(Value::as_array).into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(spec: Value, metadata: Value, is_default: bool) -> Claim {
        let mut object = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
        for (field, value) in metadata.as_object().unwrap() {
            object["metadata"][field] = value.clone();
        }
        Claim::read(&object, CLASS, is_default).unwrap()
    }

    #[test]
    fn only_services_of_the_class_are_ours_and_those_without_one_if_told() {
        let of = |kind: &str, class: Value| json!({"type": kind, "loadBalancerClass": class});
        for (spec, is_default, is_ours) in [
            (of("LoadBalancer", json!(CLASS)), false, true),
            (of("LoadBalancer", json!(CLASS)), true, true),
            (of("LoadBalancer", Value::Null), false, false),
            (of("LoadBalancer", Value::Null), true, true),
            (of("LoadBalancer", json!("example.com/other")), true, false),
            (of("NodePort", Value::Null), true, false),
        ] {
            assert_eq!(claim(spec.clone(), json!({}), is_default).is_ours, is_ours, "{spec} {is_default}");
        }
    }

    #[test]
    fn a_service_that_lost_its_type_is_known_by_the_mark() {
        let mark = json!({"annotations": {MARK: CLASS}, "finalizers": [FINALIZER]});
        assert!(claim(json!({"type": "ClusterIP"}), mark, false).is_to_be_cleaned());
        // Another load balancer's.
        let other = json!({"finalizers": [FINALIZER]});
        assert!(!claim(json!({"type": "ClusterIP"}), other, true).is_to_be_cleaned());
    }

    #[test]
    fn wanted_addresses_are_those_of_the_annotation_before_the_deprecated_field() {
        let field = json!({"loadBalancerIP": "192.0.2.3"});
        assert_eq!(claim(field.clone(), json!({}), true).wanted, Ok(vec!["192.0.2.3".parse().unwrap()]));
        let both = json!({"annotations": {WANTED: "192.0.2.7, fd00:5::7"}});
        let wanted = ["192.0.2.7", "fd00:5::7"].map(|ip| ip.parse().unwrap()).to_vec();
        assert_eq!(claim(field, both, true).wanted, Ok(wanted));
        let wrong = json!({"annotations": {WANTED: "web.example"}});
        let lack = Lack::Unreadable { text: "web.example".to_owned() };
        assert_eq!(claim(json!({}), wrong, true).wanted, Err(lack));
    }
}
