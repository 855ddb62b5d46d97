//! The whole of the decision, without a cluster.

use serde_json::json;

use super::*;

const NOW: &str = "2026-01-01T00:00:00Z";

fn balancer(pool: &[&str]) -> Balancer {
    let mut balancer = Balancer::new(Options {
        pool: pool.iter().map(|range| range.parse().unwrap()).collect(),
        class: CLASS.to_owned(),
        is_default: false,
        node_health: Some(10256),
    });
    balancer.leads(true);
    Kind::ALL.iter().for_each(|kind| balancer.list_ends(*kind));
    balancer
}

/// The API server, as far as a Service is concerned: it takes what is written, and says what there is.
fn write_all(balancer: &mut Balancer, objects: &mut [Value]) -> Vec<&'static str> {
    let mut told = Vec::new();
    for _ in 0..10 {
        for object in objects.iter() {
            balancer.exists(Kind::Services, object);
        }
        balancer.settle();
        let held = balancer.given.values().flatten().flatten().copied().collect();
        balancer.holds(held);
        let writes = balancer.writes(NOW);
        if writes.is_empty() {
            return told;
        }
        for write in writes {
            told.push(write.note.reason);
            let object =
                objects.iter_mut().find(|object| identity(object) == write.service.to_string()).unwrap();
            merge(object, &write.patch);
            let version: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
            object["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        }
    }
    panic!("it never ends: {told:?}");
}

fn merge(into: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    for (field, value) in fields {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(field);
        } else if value.is_object() && into[field].is_object() {
            merge(&mut into[field], value);
        } else {
            into[field] = value.clone();
        }
    }
}

fn service(name: &str, annotations: Value) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1", "annotations": annotations},
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": CLASS, "clusterIPs": ["10.96.0.1"],
            "ipFamilies": ["IPv4"], "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        },
        "status": {},
    })
}

fn ip(object: &Value) -> Option<&str> {
    object.pointer("/status/loadBalancer/ingress/0/ip")?.as_str()
}

#[test]
fn a_service_gets_the_finalizer_then_an_address_and_is_then_left_alone() {
    let mut balancer = balancer(&["192.0.2.0/28"]);
    let mut objects = [service("web", json!({}))];
    let told = write_all(&mut balancer, &mut objects);
    // Without a node it is told so.
    assert_eq!(told, ["EnsuringLoadBalancer", "UnAvailableLoadBalancer"]);
    assert_eq!(ip(&objects[0]), Some("192.0.2.1"));
    assert_eq!(objects[0]["status"]["loadBalancer"]["ingress"][0]["ipMode"], "Proxy");
    assert!(write_all(&mut balancer, &mut objects).is_empty());
}

#[test]
fn a_restart_changes_nothing_whatever_the_order_in_which_services_come() {
    let mut first = balancer(&["192.0.2.0/28"]);
    let wanted = |ip: &str| json!({"remora.dev/addresses": ip});
    let mut objects = [service("b", wanted("192.0.2.1")), service("a", json!({}))];
    write_all(&mut first, &mut objects);
    assert_eq!(
        (ip(&objects[0]), ip(&objects[1])),
        (Some("192.0.2.1"), Some("192.0.2.2")),
        "wanted addresses come first"
    );
    for _ in 0..2 {
        objects.reverse();
        assert!(write_all(&mut balancer(&["192.0.2.0/28"]), &mut objects).is_empty());
    }
}

#[test]
fn a_service_that_cannot_have_its_address_gets_it_once_it_is_free_and_harms_nobody() {
    let mut balancer = balancer(&["192.0.2.0/28"]);
    let wanted = json!({"remora.dev/addresses": "192.0.2.7"});
    let mut objects = [service("web", wanted.clone()), service("db", wanted)];
    let told = write_all(&mut balancer, &mut objects[..1]);
    assert!(!told.contains(&"SyncLoadBalancerFailed"));
    let told = write_all(&mut balancer, &mut objects);
    assert_eq!(told, ["EnsuringLoadBalancer", "SyncLoadBalancerFailed"]);
    assert_eq!(objects[1]["status"]["conditions"][0]["reason"], "AddressInUse");
    assert_eq!(ip(&objects[0]), Some("192.0.2.7"));
    balancer.gone(Kind::Services, &objects[0]);
    write_all(&mut balancer, &mut objects[1..]);
    assert_eq!(ip(&objects[1]), Some("192.0.2.7"));
    assert_eq!(objects[1]["status"]["conditions"], json!([]));
}

#[test]
fn a_service_that_is_no_load_balancers_any_more_is_cleaned_after_its_address_is_gone() {
    let mut balancer = balancer(&["192.0.2.0/28"]);
    let mut objects = [service("web", json!({}))];
    write_all(&mut balancer, &mut objects);
    let held = balancer.held.clone();
    objects[0]["spec"]["type"] = json!("ClusterIP");
    objects[0]["status"] = json!({});
    objects[0]["metadata"]["resourceVersion"] = json!("100");
    balancer.exists(Kind::Services, &objects[0]);
    let gone = balancer.settle().into_iter().filter(|event| matches!(event, Event::Gone(..))).count();
    assert_eq!(gone, 2, "the Service and its slice");
    balancer.holds(held);
    assert_eq!(balancer.writes(NOW), [], "the address is still there");
    balancer.holds(BTreeSet::new());
    let writes = balancer.writes(NOW);
    assert_eq!(writes[0].patch["metadata"]["finalizers"], json!([]));
    merge(&mut objects[0], &writes[0].patch);
    balancer.exists(Kind::Services, &objects[0]);
    balancer.settle();
    assert_eq!((balancer.claims.len(), balancer.pool.taken()), (0, 0));
}

#[test]
fn a_node_takes_part_once_its_probe_says_so_and_while_it_is_not_excluded() {
    let mut balancer = balancer(&["192.0.2.0/28"]);
    let node = |labels: Value| {
        json!({
            "metadata": {"name": "a", "labels": labels},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
        })
    };
    balancer.exists(Kind::Node, &node(json!({})));
    let mut objects = [service("web", json!({}))];
    write_all(&mut balancer, &mut objects);
    let place: SocketAddr = "10.0.0.1:10256".parse().unwrap();
    assert_eq!(balancer.probes(), BTreeSet::from([place]));
    let ready = |balancer: &Balancer| {
        let slices = balancer.told.values().filter_map(|item| match item {
            Item::Slice { slice, .. } => {
                Some(slice.endpoints.iter().map(|fact| fact.ready).collect::<Vec<_>>())
            }
            Item::Service(_) => None,
        });
        slices.flatten().collect::<Vec<bool>>()
    };
    assert_eq!(ready(&balancer), [false]);
    balancer.probed(place, true);
    balancer.settle();
    assert_eq!(ready(&balancer), [true]);
    balancer
        .exists(Kind::Node, &node(json!({"node.kubernetes.io/exclude-from-external-load-balancers": ""})));
    balancer.settle();
    assert_eq!(ready(&balancer), Vec::<bool>::new());
    assert_eq!(balancer.probes(), BTreeSet::new());
}

#[test]
fn who_does_not_lead_neither_serves_nor_writes() {
    let mut balancer = balancer(&["192.0.2.0/28"]);
    let mut objects = [service("web", json!({}))];
    write_all(&mut balancer, &mut objects);
    assert_eq!(balancer.told.len(), 2);
    balancer.leads(false);
    assert_eq!(balancer.settle().len(), 2, "everything is taken out of the table");
    objects.iter_mut().for_each(|object| object["status"] = json!({}));
    assert!(write_all(&mut balancer, &mut objects).is_empty());
}
