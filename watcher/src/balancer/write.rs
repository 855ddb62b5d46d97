//! What is written to a Service: finalizer and mark, status, and all of them away again. In: a claim and what became of
//! it. Out: a merge patch of `/status`, which takes the metadata too, or nothing if the object says it already. Never
//! touches what others wrote.

use std::net::IpAddr;

use selection::Protocol;
use serde_json::{Value, json};

use super::claim::{FINALIZER, MARK};
use super::{Claim, Lack};

/// The condition of a Service that has no address. One that has them has no such condition.
const ADDRESSED: &str = "remora.dev/Addressed";
/// The condition of the API for ports that no load balancer serves.
const PORTS_ERROR: &str = "LoadBalancerPortsError";
/// Why a port is not served.
const NOT_TCP: &str = "remora.dev/ProtocolNotSupported";

/// Finalizer and mark, before anything is made.
pub(super) fn finalizer(claim: &Claim) -> Option<Value> {
    let is_there = claim.is_finalized() && claim.is_marked;
    (!is_there).then(|| {
        let mut finalizers = claim.finalizers.clone();
        if !claim.is_finalized() {
            finalizers.push(FINALIZER.to_owned());
        }
        let annotations = json!({ MARK: claim.class });
        json!({"metadata": {
            "resourceVersion": claim.version, "finalizers": finalizers, "annotations": annotations,
        }})
    })
}

/// The status of a Service that has `addresses`.
pub(super) fn served(claim: &Claim, addresses: &[IpAddr], now: &str) -> Option<Value> {
    let service = claim.service.as_ref()?;
    let ports = service.ports.iter().map(|port| {
        let protocol = match port.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        };
        let mut entry = json!({"port": port.port, "protocol": protocol});
        if port.protocol != Protocol::Tcp {
            entry["error"] = json!(NOT_TCP);
        }
        entry
    });
    let ports: Vec<Value> = ports.collect();
    let ingress = addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "Proxy", "ports": ports}));
    let is_whole = service.ports.iter().all(|port| port.protocol == Protocol::Tcp);
    let conditions = if is_whole {
        without(claim, &[ADDRESSED, PORTS_ERROR])
    } else {
        let message = "only TCP ports are served; the others have an error in status.loadBalancer.ingress";
        let conditions = without(claim, &[ADDRESSED]);
        with(conditions, PORTS_ERROR, "True", NOT_TCP, message, now)
    };
    differing(claim, ingress.collect(), conditions)
}

/// The status of a Service that has no addresses.
pub(super) fn lacking(claim: &Claim, lack: &Lack, now: &str) -> Option<Value> {
    let conditions = with(
        without(claim, &[PORTS_ERROR]),
        ADDRESSED,
        "False",
        &format!("remora.dev/{}", lack.label()),
        &lack.to_string(),
        now,
    );
    differing(claim, Value::Array(Vec::new()), conditions)
}

/// Nothing of ours is left.
pub(super) fn cleaned(claim: &Claim) -> Value {
    let finalizers: Vec<&String> =
        claim.finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).collect();
    let annotations = json!({ MARK: null });
    json!({
        "metadata": {"resourceVersion": claim.version, "finalizers": finalizers, "annotations": annotations},
        "status": {"loadBalancer": {"ingress": null}, "conditions": without(claim, &[ADDRESSED, PORTS_ERROR])},
    })
}

fn without(claim: &Claim, ours: &[&str]) -> Vec<Value> {
    let is_others = |condition: &&Value| !ours.iter().any(|ours| condition["type"] == *ours);
    claim.conditions.iter().filter(is_others).cloned().collect()
}

/// `conditions` with this one, whose time is kept if it says the same as before.
fn with(
    mut conditions: Vec<Value>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: &str,
) -> Vec<Value> {
    // Dots and slashes are not for a reason of the API.
    let reason = reason.rsplit('/').next().unwrap_or(reason);
    let same = |condition: &&mut Value| condition["type"] == kind;
    let Some(old) = conditions.iter_mut().find(same) else {
        conditions.push(json!({
            "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now,
        }));
        return conditions;
    };
    if old["status"] != status {
        old["lastTransitionTime"] = json!(now);
    }
    (old["status"], old["reason"], old["message"]) = (json!(status), json!(reason), json!(message));
    conditions
}

/// The patch to these, if the object has others.
fn differing(claim: &Claim, ingress: Value, conditions: Vec<Value>) -> Option<Value> {
    let is_empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    let is_same = claim.ingress == ingress || (is_empty(&claim.ingress) && is_empty(&ingress));
    (!is_same || claim.conditions != conditions).then(|| {
        json!({
            "metadata": {"resourceVersion": claim.version},
            "status": {"loadBalancer": {"ingress": ingress}, "conditions": conditions},
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::CLASS;
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn object() -> Value {
        json!({
            "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7", "finalizers": ["other"]},
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": CLASS, "clusterIPs": ["10.96.0.1"],
                "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
            },
            "status": {"conditions": [{"type": "other", "status": "True"}]},
        })
    }

    /// What the API server makes of a merge patch.
    fn merge(into: &mut Value, patch: &Value) {
        let Some(fields) = patch.as_object() else {
            *into = patch.clone();
            return;
        };
        if !into.is_object() {
            *into = json!({});
        }
        for (field, value) in fields {
            if value.is_null() {
                into.as_object_mut().unwrap().remove(field);
            } else {
                merge(&mut into[field], value);
            }
        }
    }

    #[test]
    fn a_service_that_says_all_already_is_not_written() {
        let mut object = object();
        let read = |object: &Value| Claim::read(object, CLASS, false).unwrap();
        let first = finalizer(&read(&object)).unwrap();
        assert_eq!(first["metadata"]["finalizers"], json!(["other", FINALIZER]));
        merge(&mut object, &first);
        assert_eq!(finalizer(&read(&object)), None);
        let addresses = ["192.0.2.1".parse().unwrap()];
        let status = served(&read(&object), &addresses, NOW).unwrap();
        merge(&mut object, &status);
        assert_eq!(served(&read(&object), &addresses, "2027-01-01T00:00:00Z"), None);
        let ports = &object["status"]["loadBalancer"]["ingress"][0]["ports"];
        assert_eq!(ports[0], json!({"port": 80, "protocol": "TCP"}));
        assert_eq!(ports[1]["error"], NOT_TCP);
        let conditions = object["status"]["conditions"].as_array().unwrap();
        assert_eq!(
            (conditions[0]["type"].as_str(), conditions[1]["type"].as_str()),
            (Some("other"), Some(PORTS_ERROR))
        );
    }

    #[test]
    fn what_is_cleaned_has_nothing_of_ours_and_all_of_others() {
        let mut object = object();
        let mut step = |patch: &dyn Fn(&Claim) -> Value| {
            let patch = patch(&Claim::read(&object, CLASS, false).unwrap());
            merge(&mut object, &patch);
            object.clone()
        };
        step(&|claim| finalizer(claim).unwrap());
        let lack = Lack::Outside { ip: "10.0.0.1".parse().unwrap() };
        let lacked = step(&|claim| lacking(claim, &lack, NOW).unwrap());
        assert_eq!(lacked["status"]["conditions"][1]["reason"], "AddressOutsidePool");
        let cleaned = step(&|claim| cleaned(claim));
        assert_eq!(cleaned["metadata"]["finalizers"], json!(["other"]));
        assert_eq!(cleaned["metadata"]["annotations"], json!({}));
        assert_eq!(cleaned["status"]["conditions"], json!([{"type": "other", "status": "True"}]));
    }
}
