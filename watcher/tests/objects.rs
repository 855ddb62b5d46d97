//! Objects as the API server sends them and as people write them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use selection::{Balance, Family, Kind as ServiceKind, Protocol, Service, Slice};
use serde_json::{Value, json};
use watcher::object::{self, Object, Reading};
use watcher::store::{Item, Key, Kind};

fn reading(value: &Value) -> Reading {
    Object::from_json(value).unwrap_or_else(|error| panic!("{error}"))
}

fn service_and_warnings(value: &Value) -> (Service, Vec<String>) {
    let Reading { object, warnings } = reading(value);
    let Object::Item(Item::Service(service)) = object else { panic!("{object:?}") };
    (*service, warnings.iter().map(ToString::to_string).collect())
}

fn service(spec: Value) -> (Service, Vec<String>) {
    service_and_warnings(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec}),
    )
}

fn slice_of(more: Value) -> (Slice, Vec<String>) {
    let mut value = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    });
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let Reading { object, warnings } = reading(&value);
    let Object::Item(Item::Slice { slice, .. }) = object else { panic!("{object:?}") };
    (*slice, warnings.iter().map(ToString::to_string).collect())
}

fn error(value: &Value) -> String {
    Object::from_json(value).unwrap_err().to_string()
}

#[test]
fn a_service_that_met_no_api_server_has_its_defaults() {
    let (service, warnings) = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    assert_eq!(warnings, [""; 0]);
    assert_eq!(service.name.to_string(), "default/web");
    assert_eq!(service.kind, ServiceKind::ClusterIp);
    assert_eq!(service.cluster_ips[..], ["10.96.0.1".parse::<std::net::IpAddr>().unwrap()]);
    let port = &service.ports[0];
    assert_eq!((&*port.name, port.protocol, port.port, port.node_port), ("", Protocol::Tcp, 80, 0));
    assert!(!service.has_selector && !service.internal_local && !service.external_local);
    assert_eq!((service.affinity_seconds, service.balance), (None, Balance::LeastConnections));
}

#[test]
fn cluster_ips_win_over_cluster_ip_and_none_is_headless() {
    let (both, _) = service(json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.2", "fd00::2"]}));
    assert_eq!(
        both.cluster_ips[..].iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.96.0.2", "fd00::2"]
    );
    for spec in [json!({"clusterIP": "None"}), json!({"clusterIPs": ["None"]})] {
        let (service, _) = service(spec);
        assert_eq!((service.kind, service.cluster_ips.len()), (ServiceKind::Headless, 0));
    }
}

#[test]
fn null_and_unknown_fields_are_no_mistakes() {
    let (service, warnings) = service(json!({
        "clusterIP": "10.96.0.1", "clusterIPs": null, "ports": null, "selector": null, "type": null, "externalIPs": null,
        "sessionAffinity": "None", "sessionAffinityConfig": null, "trafficDistribution": "PreferClose", "new": {"x": []},
    }));
    assert_eq!((service.ports.len(), service.cluster_ips.len(), warnings.len()), (0, 1, 0));
    let (slice, warnings) = slice_of(json!({"endpoints": null, "ports": null}));
    assert_eq!((slice.ports.len(), slice.endpoints.len(), warnings.len()), (0, 0, 0));
}

#[test]
fn only_virtual_addresses_of_a_load_balancer_count() {
    let ingress = json!([
        {"ip": "198.51.100.1", "ipMode": "VIP"}, {"ip": "198.51.100.2"}, {"ip": "198.51.100.3", "ipMode": "Proxy"},
        {"hostname": "lb.example.com"}, {"ip": ""},
    ]);
    let value = json!({
        "kind": "Service", "metadata": {"name": "web"}, "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1"},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    let (service, warnings) = service_and_warnings(&value);
    let vips: Vec<_> = service.load_balancer_vips.iter().map(ToString::to_string).collect();
    assert_eq!((vips, warnings.len()), (vec!["198.51.100.1".to_owned(), "198.51.100.2".to_owned()], 0));
}

#[test]
fn source_ranges_may_have_white_space_and_bits_of_a_host() {
    let (service, _) = service(json!({"loadBalancerSourceRanges": [" 10.1.2.3/8 ", "2001:db8::1/32"]}));
    let ranges: Vec<_> = service.source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.0.0.0/8", "2001:db8::/32"]);
    let value = json!({
        "kind": "Service", "metadata": {"name": "web"}, "spec": {"loadBalancerSourceRanges": ["10.0.0.0/8", "everybody"]}
    });
    assert_eq!(
        error(&value),
        "Service default/web: spec.loadBalancerSourceRanges[1]: \"everybody\" is not a range of addresses like 10.0.0.0/8"
    );
}

#[test]
fn affinity_lasts_three_hours_unless_it_says_otherwise() {
    let seconds = |spec| service(spec).0.affinity_seconds;
    assert_eq!(seconds(json!({"sessionAffinity": "ClientIP"})), Some(10_800));
    let config = json!({"clientIP": {"timeoutSeconds": 7}});
    assert_eq!(seconds(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config})), Some(7));
    assert_eq!(seconds(json!({"sessionAffinity": "None", "sessionAffinityConfig": config})), None);
}

#[test]
fn an_unknown_balance_is_told_with_the_allowed_ones_and_the_default_kept() {
    let with = |balance: Value| {
        let metadata = json!({"name": "web", "annotations": {"remora.dev/balance": balance}});
        service_and_warnings(&json!({"kind": "Service", "metadata": metadata}))
    };
    assert_eq!(with(json!("maglev")).0.balance, Balance::Maglev);
    let (service, warnings) = with(json!("fastest"));
    assert_eq!(service.balance, Balance::LeastConnections);
    assert_eq!(
        warnings,
        [
            "metadata.annotations[\"remora.dev/balance\"]: \"fastest\" is not one of least-connections, random, round-robin, \
          maglev, off; least-connections is taken"
        ]
    );
}

#[test]
fn the_proxy_protocol_is_spoken_in_version_2_or_not_at_all() {
    let with = |version: Value| {
        let metadata = json!({"name": "web", "annotations": {"remora.dev/proxy-protocol": version}});
        let (service, warnings) = service_and_warnings(&json!({"kind": "Service", "metadata": metadata}));
        (service.proxy_protocol, warnings)
    };
    assert_eq!(with(json!("v2")), (true, vec![]));
    let wrong = "metadata.annotations[\"remora.dev/proxy-protocol\"]: \"v1\" is not v2; none is spoken";
    assert_eq!(with(json!("v1")), (false, vec![wrong.to_owned()]));
}

#[test]
fn a_port_that_is_none_is_left_out_by_itself() {
    let ports = json!([{"port": 80}, {"name": "a", "port": 0}, {"name": "b", "port": 65536}, {"name": "c"}, {"port": "http"}]);
    let (service, warnings) = service(json!({"ports": ports}));
    assert_eq!(service.ports.len(), 1);
    assert_eq!(
        warnings,
        [
            "spec.ports[1].port: 0 is not between 1 and 65535",
            "spec.ports[2].port: 65536 is not between 1 and 65535",
            "spec.ports[3].port: is missing",
            "spec.ports[4].port: is a string, not a number",
        ]
    );
}

#[test]
fn an_endpoint_that_cannot_be_read_is_left_out_by_itself() {
    let endpoints = json!([
        {"addresses": ["10.0.0.1"]}, {"addresses": ["fd00::1"]}, {"addresses": []}, {"addresses": null},
        {"addresses": ["web.example.com"]}, {"addresses": ["0.0.0.0"]}, {"addresses": [7]}, 8, null,
        {"addresses": ["10.0.0.2"], "conditions": {"ready": "yes"}}, {"addresses": ["010.0.0.03", "10.9.9.9"]},
    ]);
    let (slice, warnings) = slice_of(json!({"endpoints": endpoints}));
    let ips: Vec<_> = slice.endpoints.iter().map(|fact| fact.ip.to_string()).collect();
    assert_eq!(ips, ["10.0.0.1", "10.0.0.3"], "only the first address counts, leading zeros are decimal");
    assert_eq!(
        warnings,
        [
            "endpoints[1].addresses[0]: \"fd00::1\" is not an IPv4 address",
            "endpoints[2].addresses: is empty",
            "endpoints[3].addresses: is empty",
            "endpoints[4].addresses[0]: \"web.example.com\" is not an IPv4 address",
            "endpoints[5].addresses[0]: \"0.0.0.0\" is not the address of an endpoint",
            "endpoints[6].addresses[0]: is a number, not a string",
            "endpoints[7].addresses: is empty",
            "endpoints[8].addresses: is empty",
            "endpoints[9].conditions.ready: is a string, not true or false",
        ]
    );
}

#[test]
fn absent_conditions_mean_ready_serving_and_not_terminating() {
    let endpoints = json!([{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": null}}]);
    let (slice, _) = slice_of(json!({"endpoints": endpoints}));
    let of =
        |i: usize| (slice.endpoints[i].ready, slice.endpoints[i].serving, slice.endpoints[i].terminating);
    assert_eq!((of(0), of(1)), ((true, true, false), (false, true, false)));
}

#[test]
fn a_pod_is_known_by_its_uid_or_else_by_its_name() {
    let target = |target| json!({"addresses": ["10.0.0.1"], "targetRef": target});
    let endpoints = json!([
        target(json!({"kind": "Pod", "name": "web-0", "uid": "1"})),
        target(json!({"kind": "Pod", "name": "web-0", "uid": "2"})),
        target(json!({"kind": "Pod", "name": "web-0"})),
        target(json!({"kind": "Node", "name": "n1"})),
    ]);
    let (slice, _) = slice_of(json!({"endpoints": endpoints}));
    let id = |i: usize| slice.endpoints[i].pod.as_ref().map(|pod| pod.id);
    assert_eq!((id(0), id(1)), (Some(selection::Pod::id_of("1")), Some(selection::Pod::id_of("2"))));
    assert_eq!((id(2), id(3)), (Some(selection::Pod::id_of("web-0")), None));
}

#[test]
fn hints_of_neither_kind_are_none_and_the_trigger_is_read() {
    let endpoints = json!([
        {"addresses": ["10.0.0.1"], "hints": {"forZones": [], "forNodes": null}},
        {"addresses": ["10.0.0.2"], "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}]}},
    ]);
    let metadata = json!({"name": "s", "annotations": {
        "endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:00:01.5Z"}});
    let (slice, _) = slice_of(json!({"endpoints": endpoints, "metadata": metadata}));
    assert_eq!(slice.endpoints[0].hints, None);
    let hints = slice.endpoints[1].hints.as_ref().unwrap();
    assert_eq!((&*hints.zones[0], &*hints.nodes[0]), ("a", "n1"));
    assert_eq!((slice.triggered, slice.family), (Some(1_500), Some(Family::V4)));
}

#[test]
fn addresses_that_are_names_are_read_as_no_endpoints() {
    let (slice, warnings) =
        slice_of(json!({"addressType": "FQDN", "endpoints": [{"addresses": ["example.com"]}]}));
    assert_eq!((slice.family, slice.endpoints.len(), warnings.len()), (None, 0, 0));
}

#[test]
fn what_cannot_be_an_object_is_named_by_its_field() {
    let named = |value| json!({"kind": "Service", "metadata": {"name": "web"}, "spec": value});
    assert_eq!(error(&json!({"metadata": {}})), "kind: is missing");
    assert_eq!(error(&json!({"kind": "Service"})), "an object of services: metadata.name: is missing");
    assert_eq!(
        error(&named(json!({"type": "Magic"}))),
        "Service default/web: spec.type: \"Magic\" is not one of ClusterIP, NodePort, LoadBalancer, ExternalName"
    );
    assert_eq!(
        error(&named(json!({"ports": {}}))),
        "Service default/web: spec.ports: is an object, not a list"
    );
    let old =
        json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1beta1", "metadata": {"name": "x"}});
    assert_eq!(error(&old), "apiVersion: \"discovery.k8s.io/v1beta1\" is not discovery.k8s.io/v1");
    let other = json!({"kind": "Service", "apiVersion": "serving.knative.dev/v1"});
    assert_eq!(reading(&other).object, Object::Other, "a Service of another group is none of ours");
}

#[test]
fn one_bad_object_of_a_list_takes_no_other_with_it() {
    let list = json!({"kind": "List", "items": [
        {"kind": "Service", "metadata": {"name": "a"}}, {"kind": "Service", "metadata": {"name": "b"}, "spec": {"ports": 1}}, 7, null,
        {"kind": "Service", "metadata": {"name": "c"}},
    ]});
    let read = object::read(&list);
    let paths: Vec<_> = read.iter().map(|(path, read)| (path.as_str(), read.is_ok())).collect();
    assert_eq!(
        paths,
        [
            ("items[0].", true),
            ("items[1].", false),
            ("items[2].", false),
            ("items[3].", false),
            ("items[4].", true)
        ]
    );
    let key = read[1].1.as_ref().unwrap_err().key.clone();
    assert_eq!(key, Some(Key::Service(selection::ServiceName::new("default", "b"))));
}

#[test]
fn a_key_is_read_where_the_rest_cannot_be() {
    let value = json!({"metadata": {"name": "s", "namespace": "shop"}, "endpoints": 3});
    assert_eq!(
        object::key(Kind::Slices, &value),
        Some(Key::Slice { namespace: "shop".into(), name: "s".into() })
    );
    assert_eq!(object::key(Kind::Slices, &json!({"metadata": 3})), None);
}
