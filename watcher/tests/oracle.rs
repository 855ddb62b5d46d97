//! Random Services and slices as raw JSON, read by naive loops straight from Kubernetes' rules, and by the parser,
//! the store and the table: the same rows, whatever came before and in whatever order.
//!
//! The oracle knows nothing of this project: it works on JSON values and texts. Its rules are those of kube-proxy
//! 1.37: which Services and slices count (`ShouldSkipService`, the label selectors), how slices merge
//! (`endpointslicecache.go`), who may serve (`CategorizeEndpoints` in `topology.go`).
//! A case that fails is made smaller before it is shown.
#![cfg(feature = "objects")]
#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use selection::{Here, Row};
use serde_json::{Value, json};
use watcher::object::Object;
use watcher::store::{Event, Item, Kind, Store, Stream};

// ---------------------------------------------------------------------------------------------------- the oracle

/// What one endpoint says, for one port.
#[derive(Clone, Debug)]
struct Found {
    at: String,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    zones: Vec<String>,
    nodes: Vec<String>,
}

fn text<'v>(value: &'v Value, or: &'v str) -> &'v str {
    value.as_str().unwrap_or(or)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn texts(value: &Value) -> Vec<String> {
    list(value).iter().map(|text| text.as_str().expect("a text").to_owned()).collect()
}

fn is_of(family: &str, address: &str) -> bool {
    address.contains(':') == (family == "IPv6")
}

/// An address as Go prints it, read sloppily: leading zeros of IPv4 are decimal.
fn canonical(address: &str) -> String {
    let address = address.trim();
    if address.contains(':') {
        return address.parse::<Ipv6Addr>().expect("an address").to_string();
    }
    let octets: Vec<u8> = address.split('.').map(|octet| octet.parse().expect("an octet")).collect();
    Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).to_string()
}

/// A range as Go prints it, without the bits of the host.
fn canonical_range(range: &str) -> String {
    let (address, length) = range.trim().split_once('/').expect("a range");
    let length: u32 = length.parse().expect("a length");
    if address.contains(':') {
        let bits = u128::from(address.parse::<Ipv6Addr>().expect("an address"));
        let kept = if length == 0 { 0 } else { bits >> (128 - length) << (128 - length) };
        return format!("{}/{length}", Ipv6Addr::from(kept));
    }
    let bits = u32::from(address.parse::<Ipv4Addr>().expect("an address"));
    let kept = if length == 0 { 0 } else { bits >> (32 - length) << (32 - length) };
    format!("{}/{length}", Ipv4Addr::from(kept))
}

/// What kube-proxy programs for `objects` on `node` in `zone`, one row for each Service port and family.
fn expected(objects: &[Value], node: &str, zone: &str) -> Vec<Value> {
    let mut rows = Vec::new();
    for service in objects.iter().filter(|object| object["kind"] == "Service") {
        let spec = &service["spec"];
        if service["metadata"]["labels"]
            .get("service.kubernetes.io/service-proxy-name")
            .is_some_and(|l| !l.is_null())
        {
            continue;
        }
        if service["metadata"]["annotations"]["remora.dev/balance"] == "off" {
            continue;
        }
        if spec["type"] == "ExternalName"
            || spec["clusterIP"] == "None"
            || text(&spec["clusterIP"], "").is_empty()
        {
            continue;
        }
        for family in ["IPv4", "IPv6"] {
            let Some(ip) = texts(&spec["clusterIPs"]).into_iter().find(|ip| is_of(family, ip)) else {
                continue;
            };
            for port in list(&spec["ports"]) {
                rows.push(row(objects, service, port, family, &ip, node, zone));
            }
        }
    }
    rows
}

fn row(
    objects: &[Value],
    service: &Value,
    port: &Value,
    family: &str,
    ip: &str,
    node: &str,
    zone: &str,
) -> Value {
    let spec = &service["spec"];
    let metadata = &service["metadata"];
    let mut external_ips: Vec<String> = texts(&spec["externalIPs"])
        .into_iter()
        .filter(|ip| is_of(family, ip))
        .map(|ip| canonical(&ip))
        .collect();
    external_ips.sort();
    let mut vips = Vec::new();
    for ingress in list(&service["status"]["loadBalancer"]["ingress"]) {
        let mode = &ingress["ipMode"];
        if let Some(ip) = ingress["ip"].as_str()
            && (mode.is_null() || mode == "VIP")
            && is_of(family, ip)
        {
            vips.push(canonical(ip));
        }
    }
    vips.sort();
    let mut ranges: Vec<String> = texts(&spec["loadBalancerSourceRanges"])
        .iter()
        .filter(|range| is_of(family, range))
        .map(|range| canonical_range(range))
        .collect();
    if ranges.iter().any(|range| range.ends_with("/0")) {
        ranges.clear();
    }
    ranges.sort();

    let node_port = port["nodePort"].as_u64().unwrap_or(0);
    let externally_accessible = node_port != 0 || !vips.is_empty() || !external_ips.is_empty();
    let internal_local = spec["internalTrafficPolicy"] == "Local";
    let kind = text(&spec["type"], "ClusterIP");
    let external_local = spec["externalTrafficPolicy"] == "Local"
        && (kind == "LoadBalancer"
            || kind == "NodePort"
            || (kind == "ClusterIP" && !list(&spec["externalIPs"]).is_empty()));
    let uses_cluster = !internal_local || externally_accessible;
    let uses_local = internal_local || (external_local && externally_accessible);

    let all = merged(objects, service, port, family, node);
    let mut has_any = false;
    let mut cluster: Vec<&Found> = Vec::new();
    let mut local: Vec<&Found> = Vec::new();
    if uses_cluster {
        let ready: Vec<&Found> = all.iter().filter(|e| e.ready).collect();
        let mut every_node_hint = true;
        let mut every_zone_hint = true;
        let mut for_my_node = false;
        let mut for_my_zone = false;
        for e in &ready {
            if e.nodes.is_empty() {
                every_node_hint = false;
            }
            if e.zones.is_empty() {
                every_zone_hint = false;
            }
            if !node.is_empty() && e.nodes.iter().any(|name| name == node) {
                for_my_node = true;
            }
            if !zone.is_empty() && e.zones.iter().any(|name| name == zone) {
                for_my_zone = true;
            }
        }
        cluster = if every_node_hint && for_my_node {
            ready.into_iter().filter(|e| e.nodes.iter().any(|name| name == node)).collect()
        } else if every_zone_hint && for_my_zone {
            ready.into_iter().filter(|e| e.zones.iter().any(|name| name == zone)).collect()
        } else {
            ready
        };
        if cluster.is_empty() {
            cluster = all.iter().filter(|e| e.serving && e.terminating).collect();
        }
        if !cluster.is_empty() {
            has_any = true;
        }
    }
    if uses_local {
        for e in &all {
            if e.ready || (e.serving && e.terminating) {
                has_any = true;
            }
        }
        local = all.iter().filter(|e| e.local && e.ready).collect();
        if local.is_empty() {
            local = all.iter().filter(|e| e.local && e.serving && e.terminating).collect();
        }
    }
    let sorted = |found: Vec<&Found>| {
        let mut found: Vec<&str> = found.iter().map(|e| &*e.at).collect();
        found.sort_unstable();
        json!(found)
    };
    let affinity = match spec["sessionAffinity"] == "ClientIP" {
        true => spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64().unwrap_or(10_800),
        false => 0,
    };
    let health =
        if kind == "LoadBalancer" && external_local { spec["healthCheckNodePort"].as_u64() } else { None };
    json!({
        "service": format!("{}/{}", text(&metadata["namespace"], "default"), text(&metadata["name"], "")),
        "family": family,
        "port": text(&port["name"], ""),
        "protocol": text(&port["protocol"], "TCP"),
        "clusterIP": canonical(ip),
        "servicePort": port["port"],
        "nodePort": node_port,
        "externalIPs": external_ips,
        "loadBalancerVIPs": vips,
        "sourceRanges": ranges,
        "affinitySeconds": affinity,
        "healthCheckNodePort": health.unwrap_or(0),
        "internalLocal": internal_local,
        "externalLocal": external_local,
        "cluster": sorted(cluster),
        "local": sorted(local),
        "hasAny": has_any,
    })
}

/// The endpoints of all slices of `service` for `port`, each address once: a later one replaces an earlier one
/// unless it is terminating. Slices go by their names here; in kube-proxy their order is chance.
fn merged(objects: &[Value], service: &Value, port: &Value, family: &str, node: &str) -> Vec<Found> {
    let mut slices: Vec<&Value> = Vec::new();
    for slice in objects.iter().filter(|object| object["kind"] == "EndpointSlice") {
        let (of, own) = (&slice["metadata"], &service["metadata"]);
        let belongs = of["labels"]["kubernetes.io/service-name"] == own["name"]
            && text(&of["namespace"], "default") == text(&own["namespace"], "default");
        let headless =
            of["labels"].get("service.kubernetes.io/headless").is_some_and(|label| !label.is_null());
        if belongs && !headless && slice["addressType"] == family {
            slices.push(slice);
        }
    }
    slices.sort_by_key(|slice| text(&slice["metadata"]["name"], "").to_owned());

    let mut found: Vec<Found> = Vec::new();
    for slice in slices {
        for slice_port in list(&slice["ports"]) {
            // The API server writes "" and TCP where a name or a protocol is left out.
            let same_name = text(&slice_port["name"], "") == text(&port["name"], "");
            let same_protocol = text(&slice_port["protocol"], "TCP") == text(&port["protocol"], "TCP");
            let number = slice_port["port"].as_u64().unwrap_or(0);
            if !same_name || !same_protocol || number == 0 {
                continue;
            }
            for endpoint in list(&slice["endpoints"]) {
                let Some(address) = texts(&endpoint["addresses"]).first().map(|ip| canonical(ip)) else {
                    continue;
                };
                let at = if family == "IPv6" {
                    format!("[{address}]:{number}")
                } else {
                    format!("{address}:{number}")
                };
                let conditions = &endpoint["conditions"];
                let hinted = |kind: &str| -> Vec<String> {
                    list(&endpoint["hints"][kind])
                        .iter()
                        .map(|hint| text(&hint["name"], "").to_owned())
                        .collect()
                };
                let new = Found {
                    at,
                    ready: conditions["ready"].as_bool().unwrap_or(true),
                    serving: conditions["serving"].as_bool().unwrap_or(true),
                    terminating: conditions["terminating"].as_bool().unwrap_or(false),
                    local: !node.is_empty() && endpoint["nodeName"] == node,
                    zones: hinted("forZones"),
                    nodes: hinted("forNodes"),
                };
                match found.iter().position(|old| old.at == new.at) {
                    None => found.push(new),
                    Some(old) if !new.terminating => found[old] = new,
                    Some(_) => {}
                }
            }
        }
    }
    found
}

// ----------------------------------------------------------------------------------------------------- the cases

/// Numbers that a seed determines.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.roll() % 100 < percent
    }

    fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    fn some<'a>(&mut self, most: usize, of: &[&'a str]) -> Vec<&'a str> {
        (0..self.below(most + 1)).map(|_| self.one(of)).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// One of the values, or nothing at all, or null.
    fn maybe(&mut self, object: &mut Value, key: &str, percent: u64, value: Value) {
        if self.chance(percent) {
            object[key] = value;
        } else if self.chance(20) {
            object[key] = Value::Null;
        }
    }
}

#[derive(Clone)]
struct Case {
    node: String,
    zone: String,
    objects: Vec<Value>,
}

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const ZONES: [&str; 3] = ["a", "b", "c"];
const PORT_NAMES: [&str; 5] = ["http", "http", "http", "", "dns"];
const PROTOCOLS: [&str; 5] = ["TCP", "TCP", "TCP", "TCP", "UDP"];
const NAMESPACES: [&str; 2] = ["shop", "bank"];
const NAMES: [&str; 2] = ["web", "api"];
const RANGES: [&str; 8] = [
    "10.0.0.0/8",
    " 192.0.2.7/24 ",
    "203.0.113.9/32",
    "0.0.0.0/0",
    "10.9.8.7/0",
    "2001:db8::/32",
    "2001:DB8:0:1::ff/64\t",
    "::/0",
];
const OUTSIDE: [&str; 6] =
    ["192.0.2.1", "192.0.2.2", "198.51.100.7", "2001:db8::1", "2001:db8:0:0::2", "2001:DB8::F"];

fn case(seed: u64) -> Case {
    let dice = &mut Dice(seed);
    let node = if dice.chance(85) { dice.one(&NODES) } else { "" };
    let zone = if dice.chance(85) { dice.one(&ZONES) } else { "" };
    let mut objects = Vec::new();
    for namespace in NAMESPACES {
        for name in NAMES {
            if dice.chance(if namespace == "shop" && name == "web" { 98 } else { 10 }) {
                objects.push(service(dice, namespace, name));
            }
        }
    }
    // The moods of a case: where all endpoints have hints, where few are ready, where addresses repeat.
    let mood = Mood {
        ready: [10, 40, 70, 95][dice.below(4)],
        terminating: [0, 10, 60][dice.below(3)],
        zone_hints: [0, 50, 100, 100][dice.below(4)],
        node_hints: [0, 0, 50, 100][dice.below(4)],
        addresses: [3, 8, 250][dice.below(3)],
    };
    for i in 0..1 + dice.below(6) {
        let slice = slice(dice, &mood, i);
        objects.push(slice);
    }
    Case { node: node.into(), zone: zone.into(), objects }
}

struct Mood {
    ready: u64,
    terminating: u64,
    zone_hints: u64,
    node_hints: u64,
    addresses: usize,
}

fn service(dice: &mut Dice, namespace: &str, name: &str) -> Value {
    let kind = dice.one(&[
        "ClusterIP",
        "ClusterIP",
        "ClusterIP",
        "NodePort",
        "NodePort",
        "LoadBalancer",
        "LoadBalancer",
        "LoadBalancer",
        "ExternalName",
    ]);
    let ips = [
        &["10.96.0.7"][..],
        &["fd00:96::7"],
        &["10.96.0.7", "fd00:96::7"],
        &["fd00:96:0::7", "10.96.0.7"],
        &["None"],
    ];
    let ips = if dice.chance(5) { ips[4] } else { ips[dice.below(4)] };
    let families: Vec<&str> = ips.iter().map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }).collect();
    let mut ports = Vec::new();
    let mut used = BTreeSet::new();
    for i in 0..1 + dice.below(3) {
        let (port_name, protocol) = (dice.one(&PORT_NAMES), dice.one(&PROTOCOLS));
        if !used.insert((port_name, protocol)) {
            continue;
        }
        let mut port = json!({"port": 80 + i, "targetPort": dice.below(3)});
        if !port_name.is_empty() || dice.chance(30) {
            port["name"] = json!(port_name);
        }
        if protocol != "TCP" || dice.chance(60) {
            port["protocol"] = json!(protocol);
        }
        let has_node_port = if kind == "ClusterIP" { 5 } else { 70 };
        dice.maybe(&mut port, "nodePort", has_node_port, json!(30_000 + i));
        ports.push(port);
    }
    let mut spec = json!({"type": kind, "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families});
    if kind == "ExternalName" {
        spec["externalName"] = json!("example.org");
        if dice.chance(60) {
            spec["clusterIP"] = json!("");
            spec["clusterIPs"] = Value::Null;
        }
    }
    if kind == "ClusterIP" && dice.chance(10) {
        spec["type"] = Value::Null;
    }
    let policy = |dice: &mut Dice| json!(dice.one(&["Cluster", "Local", "Local"]));
    let (internal, external) = (policy(dice), policy(dice));
    dice.maybe(&mut spec, "ports", 97, json!(ports));
    dice.maybe(&mut spec, "internalTrafficPolicy", 60, internal);
    dice.maybe(&mut spec, "externalTrafficPolicy", 70, external);
    let few = dice.some(3, &OUTSIDE);
    dice.maybe(&mut spec, "externalIPs", 40, json!(few));
    let few = dice.some(3, &RANGES);
    dice.maybe(&mut spec, "loadBalancerSourceRanges", 40, json!(few));
    dice.maybe(&mut spec, "healthCheckNodePort", 50, json!(32_000));
    dice.maybe(&mut spec, "publishNotReadyAddresses", 20, json!(true));
    dice.maybe(&mut spec, "trafficDistribution", 20, json!("PreferClose"));
    let affinity = json!(dice.one(&["None", "ClientIP", "ClientIP"]));
    dice.maybe(&mut spec, "sessionAffinity", 60, affinity);
    let seconds = [json!({}), json!({"clientIP": null}), json!({"clientIP": {"timeoutSeconds": 60}})];
    let config = seconds[dice.below(3)].clone();
    dice.maybe(&mut spec, "sessionAffinityConfig", 60, config);

    let mut metadata = json!({"name": name, "namespace": namespace});
    let proxy = json!(dice.one(&["", "other"]));
    let mut labels = json!({"app": "web"});
    dice.maybe(&mut labels, "service.kubernetes.io/service-proxy-name", 5, proxy);
    dice.maybe(&mut metadata, "labels", 80, labels);
    let balance = json!({"remora.dev/balance": dice.one(&["random", "off", "maybe"])});
    dice.maybe(&mut metadata, "annotations", 10, balance);

    let mut ingress = Vec::new();
    for ip in dice.some(3, &OUTSIDE) {
        let mut entry = json!({"ip": ip});
        let mode = json!(dice.one(&["VIP", "Proxy"]));
        dice.maybe(&mut entry, "ipMode", 50, mode);
        ingress.push(entry);
    }
    if dice.chance(20) {
        ingress.push(json!({"hostname": "lb.example.org"}));
    }
    let mut balancer = json!({});
    dice.maybe(&mut balancer, "ingress", 50, json!(ingress));
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
    dice.maybe(&mut service, "status", 80, json!({"loadBalancer": balancer}));
    service
}

fn slice(dice: &mut Dice, mood: &Mood, i: usize) -> Value {
    let family = dice.one(&["IPv4", "IPv4", "IPv4", "IPv4", "IPv4", "IPv6", "IPv6", "IPv6", "FQDN"]);
    let mut labels = json!({"endpointslice.kubernetes.io/managed-by": "someone"});
    let owner = if dice.chance(90) { "web" } else { dice.one(&["api", "", "unknown"]) };
    dice.maybe(&mut labels, "kubernetes.io/service-name", 97, json!(owner));
    let headless = json!(dice.one(&["", "true"]));
    dice.maybe(&mut labels, "service.kubernetes.io/headless", 5, headless);
    let mut ports = Vec::new();
    let mut joining = vec![("http", "TCP"), ("", "TCP"), ("dns", "UDP"), ("dns", "TCP")];
    if dice.chance(50) {
        joining = (0..1 + dice.below(3)).map(|_| (dice.one(&PORT_NAMES), dice.one(&PROTOCOLS))).collect();
    }
    for (name, protocol) in joining {
        let mut port = json!({});
        dice.maybe(&mut port, "name", 90, json!(name));
        dice.maybe(&mut port, "protocol", 80, json!(protocol));
        let number = 8080 + dice.below(3);
        dice.maybe(&mut port, "port", 95, json!(number));
        ports.push(port);
    }
    let endpoints: Vec<Value> = (0..dice.below(9)).map(|_| endpoint(dice, mood, family)).collect();
    let namespace = if dice.chance(90) { "shop" } else { "bank" };
    // Names are not in the order of the list, and the same name in another namespace is another slice.
    let name = format!("web-{}", (i * 5 + 3) % 7);
    let mut slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "addressType": family,
    });
    dice.maybe(&mut slice, "ports", 97, json!(ports));
    dice.maybe(&mut slice, "endpoints", 95, json!(endpoints));
    slice
}

fn endpoint(dice: &mut Dice, mood: &Mood, family: &str) -> Value {
    let at = dice.below(mood.addresses);
    let address = match family {
        "IPv4" if dice.chance(3) => format!("010.244.000.{at:03}"),
        "IPv4" => format!("10.244.0.{at}"),
        "IPv6" if dice.chance(10) => format!("FD00:10:0:0::00{at:x}"),
        "IPv6" => format!("fd00:10::{at:x}"),
        _ => format!("pod-{at}.example.org"),
    };
    let mut addresses = vec![address.clone()];
    if dice.chance(5) {
        addresses.push(address.replace("10", "11"));
    }
    let mut conditions = json!({});
    let (ready, terminating) = (dice.chance(mood.ready), dice.chance(mood.terminating));
    let serving = dice.chance(if ready { 90 } else { 50 });
    dice.maybe(&mut conditions, "ready", 85, json!(ready));
    dice.maybe(&mut conditions, "serving", 75, json!(serving));
    dice.maybe(&mut conditions, "terminating", 75, json!(terminating));
    let mut endpoint = json!({});
    if dice.chance(97) {
        endpoint["addresses"] = json!(addresses);
    } else if family != "FQDN" {
        endpoint["addresses"] = if dice.chance(50) { json!([]) } else { Value::Null };
    }
    dice.maybe(&mut endpoint, "conditions", 95, conditions);
    let (node, zone) = (json!(dice.one(&NODES)), json!(dice.one(&ZONES)));
    dice.maybe(&mut endpoint, "nodeName", 85, node);
    dice.maybe(&mut endpoint, "zone", 70, zone);
    let mut hints = json!({});
    let names = |dice: &mut Dice, percent: u64, of: &[&str]| -> Value {
        let mut few = if dice.chance(percent) { dice.some(2, of) } else { Vec::new() };
        if percent == 100 && few.is_empty() {
            few.push(of[0]);
        }
        few.iter().map(|name| json!({"name": name})).collect()
    };
    let (zones, nodes) = (names(dice, mood.zone_hints, &ZONES), names(dice, mood.node_hints, &NODES));
    dice.maybe(&mut hints, "forZones", 99, zones);
    dice.maybe(&mut hints, "forNodes", 99, nodes);
    dice.maybe(&mut endpoint, "hints", 98, hints);
    let uid = format!("uid-{}", dice.below(3));
    dice.maybe(&mut endpoint, "targetRef", 70, json!({"kind": "Pod", "name": "pod", "uid": uid}));
    endpoint
}

// ------------------------------------------------------------------------------------------------- the comparison

fn item(object: &Value) -> Item {
    let reading = Object::from_json(object).unwrap_or_else(|e| panic!("{e}: {object:#}"));
    match reading.object {
        Object::Item(item) => item,
        other => panic!("{other:?} of {object:#}"),
    }
}

/// The rows of the table that the store makes of the case. With `dice`, objects come in some order, some of them
/// in an earlier state first, some that go again, with tables published in between.
fn found(case: &Case, dice: Option<&mut Dice>) -> Vec<Value> {
    let symbol = |text: &str| (!text.is_empty()).then(|| text.into());
    let stream = |kind| Stream::all(kind);
    let here = |zone: &str| Here { node: symbol(&case.node), zone: symbol(zone) };
    let kinds = [Kind::Services, Kind::Slices];
    let begin = |store: &mut Store| kinds.map(|kind| store.apply(Event::ListBegins(stream(kind))));
    let end = |store: &mut Store| kinds.map(|kind| store.apply(Event::ListEnds(stream(kind))));
    let mut store;
    match dice {
        None => {
            store = Store::new(here(&case.zone));
            begin(&mut store);
            case.objects.iter().for_each(|object| store.apply(Event::Applied(item(object))));
            end(&mut store);
        }
        Some(dice) => {
            store = Store::new(here(""));
            store.apply(Event::Here(here("elsewhere")));
            begin(&mut store);
            // Earlier states: the same names with the contents of another case.
            let before = crate::case(dice.roll()).objects;
            before.iter().for_each(|object| store.apply(Event::Applied(item(object))));
            end(&mut store);
            store.publish();
            store.apply(Event::Here(here(&case.zone)));
            let by_list = dice.chance(30);
            if by_list {
                begin(&mut store);
            } else {
                let stays: Vec<_> = case.objects.iter().map(|object| item(object).key()).collect();
                for key in before.iter().map(|object| item(object).key()).filter(|key| !stays.contains(key)) {
                    store.apply(Event::Gone(stream(key.kind()), key));
                }
            }
            let mut left: Vec<&Value> = case.objects.iter().collect();
            while !left.is_empty() {
                let next = left.swap_remove(dice.below(left.len()));
                store.apply(Event::Applied(item(next)));
                if dice.chance(30) {
                    store.publish();
                }
            }
            if by_list {
                end(&mut store);
            }
        }
    }
    store.publish();
    store
        .table()
        .all()
        .map(|port| serde_json::to_value(Row::from(&**port)).expect("a row is plain data"))
        .collect()
}

fn sorted(mut rows: Vec<Value>) -> Vec<Value> {
    rows.sort_by_cached_key(|row| ["service", "family", "port", "protocol"].map(|key| row[key].to_string()));
    rows
}

fn agrees(case: &Case, way: Option<u64>) -> bool {
    sorted(expected(&case.objects, &case.node, &case.zone)) == sorted(found(case, way.map(Dice).as_mut()))
}

/// The case without anything that can be left out while it still fails.
fn smallest(mut case: Case, way: Option<u64>) -> Case {
    loop {
        let whole = Value::from(case.objects.clone());
        let smaller = without_one_part(&whole)
            .map(|objects| Case { objects: list(&objects).to_vec(), ..case.clone() })
            .find(|smaller| {
                let fails = || !agrees(smaller, way);
                // What can no longer be read at all is no smaller case.
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(fails)).unwrap_or(false)
            });
        match smaller {
            Some(smaller) => case = smaller,
            None => return case,
        }
    }
}

/// `value` without one element or field, for each of them, the large ones first.
fn without_one_part(value: &Value) -> Box<dyn Iterator<Item = Value> + '_> {
    match value {
        Value::Array(items) => {
            let whole = (0..items.len()).map(|i| {
                let mut fewer = items.clone();
                fewer.remove(i);
                Value::from(fewer)
            });
            let part = (0..items.len()).flat_map(move |i| {
                without_one_part(&items[i]).map(move |part| {
                    let mut items = items.clone();
                    items[i] = part;
                    Value::from(items)
                })
            });
            Box::new(whole.chain(part))
        }
        Value::Object(fields) => {
            let whole = fields.keys().map(|key| {
                let mut fewer = fields.clone();
                fewer.remove(key);
                Value::from(fewer)
            });
            let part = fields.iter().flat_map(move |(key, value)| {
                without_one_part(value).map(move |part| {
                    let mut fields = fields.clone();
                    fields.insert(key.clone(), part);
                    Value::from(fields)
                })
            });
            Box::new(whole.chain(part))
        }
        _ => Box::new(std::iter::empty()),
    }
}

#[track_caller]
fn assert_agrees(seed: u64, case: Case, way: Option<u64>) {
    if agrees(&case, way) {
        return;
    }
    let case = smallest(case, way);
    let rows = [
        sorted(expected(&case.objects, &case.node, &case.zone)),
        sorted(found(&case, way.map(Dice).as_mut())),
    ];
    panic!(
        "seed {seed}, on node {:?} in zone {:?}, with {:#}\nexpected {:#}\nfound {:#}",
        case.node,
        case.zone,
        Value::from(case.objects),
        Value::from(rows[0].clone()),
        Value::from(rows[1].clone()),
    );
}

const CASES: u64 = 10_000;

#[test]
fn a_list_of_objects_gives_what_naive_loops_over_them_give() {
    let mut rows = 0;
    let (mut cluster, mut local, mut nowhere) = (0, 0, 0);
    for seed in 0..CASES {
        let case = case(seed);
        let expected = expected(&case.objects, &case.node, &case.zone);
        rows += expected.len();
        let has = |row: &&Value, key: &str| row[key].as_array().is_some_and(|list| !list.is_empty());
        cluster += expected.iter().filter(|row| has(row, "cluster")).count();
        local += expected.iter().filter(|row| has(row, "local")).count();
        nowhere += expected.iter().filter(|row| row["hasAny"] == false).count();
        assert_agrees(seed, case, None);
    }
    println!(
        "{CASES} cases, {rows} rows: {cluster} with cluster endpoints, {local} with local ones, {nowhere} without"
    );
    assert!(cluster > 5_000 && local > 1_000 && nowhere > 2_000, "the cases are rich");
}

#[test]
fn whatever_came_before_and_in_whatever_order_the_rows_are_the_same() {
    // Dearer ones: each reads two cases.
    for seed in CASES..CASES + CASES / 2 {
        assert_agrees(seed, case(seed), Some(!seed));
    }
}

#[test]
fn the_oracle_agrees_with_kube_proxy_itself() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/kube-proxy.jsonl");
    let cases = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"));
    for case in cases.lines() {
        let case: Value = serde_json::from_str(case).expect("a case is JSON");
        let rows = expected(list(&case["objects"]), text(&case["node"], ""), text(&case["zone"], ""));
        assert_eq!(sorted(rows), sorted(list(&case["expect"]).to_vec()), "case {}", case["id"]);
    }
}
