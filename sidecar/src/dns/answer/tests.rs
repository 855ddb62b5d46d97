use hickory_proto::rr::RData;
use serde_json::{Value, json};
use watcher::object::Object;
use watcher::store::{Event, Kind as Listed, Store, Stream};

use super::*;

fn service(name: &str, spec: Value) -> Value {
    json!({"kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

fn slice(name: &str, service: &str, family: &str, endpoints: Value) -> Value {
    let labels = json!({"kubernetes.io/service-name": service});
    let ports = json!([{"name": "pg", "port": 5432}, {"name": "metrics", "port": 9100}]);
    json!({"kind": "EndpointSlice", "metadata": {"name": name, "namespace": "shop", "labels": labels},
           "addressType": family, "ports": ports, "endpoints": endpoints})
}

/// A cluster with one Service of each kind that names tell apart.
fn cluster() -> Vec<Value> {
    let ready =
        |ip: &str, host: &str| json!({"addresses": [ip], "hostname": host, "conditions": {"ready": true}});
    let external = |name: &str, to: &str| service(name, json!({"type": "ExternalName", "externalName": to}));
    let http = json!([{"name": "http", "port": 80}, {"port": 81, "protocol": "UDP"}]);
    vec![
        service("web", json!({"clusterIPs": ["10.96.0.10", "fd00:96::a"], "ports": http})),
        service("old", json!({"clusterIP": "10.96.0.11", "ports": [{"port": 80}]})),
        slice("old-1", "old", "IPv4", json!([ready("10.1.0.9", "old-0")])),
        service("db", json!({"clusterIP": "None", "ports": [{"name": "pg", "port": 5432}]})),
        slice(
            "db-1",
            "db",
            "IPv4",
            json!([
                ready("10.1.0.1", "db-0"),
                ready("10.1.0.2", "db-1"),
                {"addresses": ["10.1.0.3"], "hostname": "db-2", "conditions": {"ready": false, "serving": true}},
                {"addresses": ["10.1.0.4"], "conditions": {"ready": true, "terminating": true}},
            ]),
        ),
        slice("db-2", "db", "IPv6", json!([ready("fd00::1", "db-0"), {"addresses": ["fd00::"]}])),
        service("twins", json!({"clusterIP": "None"})),
        slice("twins-1", "twins", "IPv4", json!([ready("10.1.1.1", "twin"), ready("10.1.1.2", "twin")])),
        service("empty", json!({"clusterIP": "None"})),
        slice(
            "empty-1",
            "empty",
            "IPv4",
            json!([{"addresses": ["10.1.0.5"], "conditions": {"ready": false}}]),
        ),
        external("outside", "db.example.com"),
        external("inside", "web.shop.svc.cluster.local."),
        external("again", "inside.shop.svc.cluster.local"),
        external("to-nothing", "nothing.shop.svc.cluster.local"),
        external("address", "192.0.2.1"),
        external("self", "SELF.shop.svc.cluster.local"),
        external("ping", "pong.shop.svc.cluster.local"),
        external("pong", "ping.shop.svc.cluster.local"),
    ]
}

fn names() -> Names {
    let mut store = Store::new(selection::Here::default());
    let streams = [Listed::Services, Listed::Slices].map(Stream::all);
    streams.iter().for_each(|stream| store.apply(Event::ListBegins(stream.clone())));
    for object in cluster() {
        let reading = Object::from_json(&object).unwrap();
        assert_eq!(reading.warnings, []);
        let Object::Item(item) = reading.object else { panic!("{object}") };
        store.apply(Event::Applied(item));
    }
    streams.into_iter().for_each(|stream| store.apply(Event::ListEnds(stream)));
    store.follow_names();
    store.publish().unwrap();
    store.take_names().unwrap()
}

fn zone() -> Zone {
    Zone::parse("cluster.local").unwrap()
}

fn ask_with(name: &str, kind: RecordType, may_deny: bool, turn: usize) -> Answer {
    answer(&names(), &zone(), &Name::from_ascii(name).unwrap(), kind, may_deny, turn)
}

/// The records as text, or how it ends without.
fn ask(name: &str, kind: RecordType) -> Vec<String> {
    let Answer { records, end, .. } = ask_with(name, kind, true, 0);
    let text = |record: &Record| match &record.data {
        RData::SRV(srv) => format!("{} {} {} {}", srv.priority, srv.weight, srv.port, srv.target),
        data => data.to_string(),
    };
    let mut lines: Vec<_> = records.iter().map(text).collect();
    match end {
        End::Found => {}
        End::NoData => lines.push("no data".into()),
        End::NoName => lines.push("no name".into()),
        End::Elsewhere(name) => lines.push(format!("elsewhere {name}")),
        End::Wrong(service, why) => lines.push(format!("{service}: {}", why.label())),
    }
    lines
}

#[track_caller]
fn is(name: &str, kind: RecordType, expected: &[&str]) {
    assert_eq!(ask(name, kind), expected, "{name} {kind}");
}

const A: RecordType = RecordType::A;
const AAAA: RecordType = RecordType::AAAA;
const SRV: RecordType = RecordType::SRV;
const TXT: RecordType = RecordType::TXT;

#[test]
fn the_names_of_a_service_with_addresses() {
    is("web.shop.svc.cluster.local.", A, &["10.96.0.10"]);
    is("WEB.Shop.SVC.Cluster.Local.", AAAA, &["fd00:96::a"]);
    is("old.shop.svc.cluster.local.", A, &["10.96.0.11"]);
    is("old.shop.svc.cluster.local.", AAAA, &["no data"]);
    is("web.shop.svc.cluster.local.", TXT, &["no data"]);
    is("web.shop.svc.cluster.local.", RecordType::CNAME, &["no data"]);
    is("dns-version.cluster.local.", TXT, &["1.1.0"]);
    is("dns-version.cluster.local.", A, &["no data"]);
}

#[test]
fn the_ports_of_a_service_with_addresses() {
    let web = ["0 100 80 web.shop.svc.cluster.local.", "0 100 80 web.shop.svc.cluster.local."];
    is("_http._tcp.web.shop.svc.cluster.local.", SRV, &web[..1]);
    is("_HTTP._TCP.web.shop.svc.cluster.local.", SRV, &web[..1]);
    is("_http._tcp.web.shop.svc.cluster.local.", A, &["no data"]);
    is("_tcp.web.shop.svc.cluster.local.", SRV, &["no data"]);
    is("_sctp.web.shop.svc.cluster.local.", SRV, &["no name"]);
    is("_http._udp.web.shop.svc.cluster.local.", SRV, &["no name"]);
    is("_none._tcp.web.shop.svc.cluster.local.", SRV, &["no name"]);
    is("_._udp.web.shop.svc.cluster.local.", SRV, &["no name"]);
    let all = ["0 50 80 web.shop.svc.cluster.local.", "0 50 81 web.shop.svc.cluster.local."];
    is("web.shop.svc.cluster.local.", SRV, &all);
    let answer = ask_with("_http._tcp.web.shop.svc.cluster.local.", SRV, true, 0);
    let spared: Vec<_> = answer.additionals.iter().map(|record| record.data.to_string()).collect();
    assert_eq!(spared, ["10.96.0.10", "fd00:96::a"]);
}

#[test]
fn the_names_of_a_headless_service_and_of_its_ready_endpoints() {
    is("db.shop.svc.cluster.local.", A, &["10.1.0.1", "10.1.0.2", "10.1.0.4"]);
    is("db.shop.svc.cluster.local.", AAAA, &["fd00::", "fd00::1"]);
    is("db-0.db.shop.svc.cluster.local.", A, &["10.1.0.1"]);
    is("DB-0.db.shop.svc.cluster.local.", AAAA, &["fd00::1"]);
    is("db-1.db.shop.svc.cluster.local.", AAAA, &["no data"]);
    is("db-2.db.shop.svc.cluster.local.", A, &["no name"]);
    is("10-1-0-4.db.shop.svc.cluster.local.", A, &["10.1.0.4"]);
    is("10-1-0-1.db.shop.svc.cluster.local.", A, &["no name"]);
    is("fd00--0.db.shop.svc.cluster.local.", AAAA, &["fd00::"]);
    is("twin.twins.shop.svc.cluster.local.", A, &["10.1.1.1", "10.1.1.2"]);
    is("empty.shop.svc.cluster.local.", A, &["no name"]);
    is("empty.shop.svc.cluster.local.", SRV, &["no name"]);
    is("old-0.old.shop.svc.cluster.local.", A, &["10.1.0.9"]);
}

#[test]
fn the_ports_of_a_headless_service_are_those_of_its_endpoints() {
    let pg = [
        "0 20 5432 10-1-0-4.db.shop.svc.cluster.local.",
        "0 20 5432 db-0.db.shop.svc.cluster.local.",
        "0 20 5432 db-0.db.shop.svc.cluster.local.",
        "0 20 5432 db-1.db.shop.svc.cluster.local.",
        "0 20 5432 fd00--0.db.shop.svc.cluster.local.",
    ];
    let mut unique = pg.to_vec();
    unique.dedup();
    let mut found = ask("_pg._tcp.db.shop.svc.cluster.local.", SRV);
    found.sort_unstable();
    let weighed: Vec<_> = unique.iter().map(|line| line.replace(" 20 ", " 25 ")).collect();
    assert_eq!(found, weighed);
    is("_http._tcp.db.shop.svc.cluster.local.", SRV, &["no name"]);
}

#[test]
fn addresses_lead_back_to_names() {
    let ptr = RecordType::PTR;
    is("10.0.96.10.in-addr.arpa.", ptr, &["web.shop.svc.cluster.local."]);
    is("1.0.1.10.in-addr.arpa.", ptr, &["db-0.db.shop.svc.cluster.local."]);
    is("4.0.1.10.in-addr.arpa.", ptr, &["10-1-0-4.db.shop.svc.cluster.local."]);
    let v6 = |last: &str| format!("{last}.{}6.9.0.0.0.0.d.f.ip6.arpa.", "0.".repeat(23));
    is(&v6("a"), ptr, &["web.shop.svc.cluster.local."]);
    is("10.0.96.10.in-addr.arpa.", A, &["no data"]);
    for others in
        ["3.0.1.10.in-addr.arpa.", "9.0.1.10.in-addr.arpa.", "96.10.in-addr.arpa.", "8.8.8.8.in-addr.arpa."]
    {
        is(others, ptr, &[&format!("elsewhere {others}")]);
    }
}

#[test]
fn what_exists_without_data_is_told_apart_from_what_does_not_exist() {
    is("svc.cluster.local.", A, &["no data"]);
    is("shop.svc.cluster.local.", A, &["no data"]);
    is("nothing.shop.svc.cluster.local.", A, &["no name"]);
    is("web.bank.svc.cluster.local.", A, &["no name"]);
    is("x.web.shop.svc.cluster.local.", A, &["no name"]);
    is("a.b.c.web.shop.svc.cluster.local.", A, &["no name"]);
    // The search path of a Pod in another namespace, for web.shop: the first has to be denied for the second.
    is("web.shop.bank.svc.cluster.local.", A, &["no name"]);
    is("www.example.com.shop.svc.cluster.local.", A, &["no name"]);
}

#[test]
fn what_the_table_does_not_know_is_asked_of_others() {
    for other in [
        "cluster.local.",
        "bank.svc.cluster.local.",
        "10-1-0-1.shop.pod.cluster.local.",
        "nothing.cluster.local.",
        "www.example.com.",
        "local.",
        ".",
    ] {
        is(other, A, &[&format!("elsewhere {other}")]);
    }
    // It has not all there are: what is missing may be somewhere.
    for unknown in ["nothing.shop.svc.cluster.local.", "empty.shop.svc.cluster.local."] {
        let end = ask_with(unknown, A, false, 0).end;
        assert_eq!(end, End::Elsewhere(Name::from_ascii(unknown).unwrap()));
    }
    assert_eq!(ask_with("web.shop.svc.cluster.local.", A, false, 0).end, End::Found);
    // Before the first table nothing is known.
    let web = Name::from_ascii("web.shop.svc.cluster.local.").unwrap();
    assert_eq!(answer(&Names::default(), &zone(), &web, A, true, 0).end, End::Elsewhere(web));
}

#[test]
fn an_external_name_is_an_alias_that_is_followed_in_the_same_answer() {
    is("outside.shop.svc.cluster.local.", A, &["db.example.com.", "elsewhere db.example.com."]);
    is("outside.shop.svc.cluster.local.", RecordType::CNAME, &["db.example.com."]);
    is("inside.shop.svc.cluster.local.", A, &["web.shop.svc.cluster.local.", "10.96.0.10"]);
    let again = ["inside.shop.svc.cluster.local.", "web.shop.svc.cluster.local.", "fd00:96::a"];
    is("again.shop.svc.cluster.local.", AAAA, &again);
    is("to-nothing.shop.svc.cluster.local.", A, &["nothing.shop.svc.cluster.local.", "no name"]);
    is("x.outside.shop.svc.cluster.local.", A, &["no name"]);
}

#[test]
fn an_external_name_that_leads_nowhere_is_named() {
    is("address.shop.svc.cluster.local.", A, &["shop/address: address"]);
    assert_eq!(ask("self.shop.svc.cluster.local.", A).last().unwrap(), "shop/self: circle");
    assert_eq!(ask("ping.shop.svc.cluster.local.", A).last().unwrap(), "shop/pong: circle");
}

#[test]
fn equal_records_take_turns_and_aliases_stay_before_them() {
    let first = |turn| ask_with("db.shop.svc.cluster.local.", A, true, turn).records[0].data.to_string();
    assert_eq!([first(0), first(1), first(2), first(3)], ["10.1.0.1", "10.1.0.2", "10.1.0.4", "10.1.0.1"]);
    let alias = ask_with("inside.shop.svc.cluster.local.", A, true, 1);
    assert_eq!(alias.records[0].record_type(), RecordType::CNAME);
}

#[test]
fn a_zone_is_a_name() {
    assert_eq!(Zone::parse(" Cluster.Local. ").unwrap().name.to_string(), "cluster.local.");
    for wrong in ["", ".", "a..b", "a b", "ä", "a_b"] {
        assert!(Zone::parse(wrong).is_none(), "{wrong}");
    }
    let soa = zone().authority(7).unwrap();
    assert!(soa.data.to_string().starts_with("ns.dns.cluster.local. hostmaster.cluster.local. 7 "), "{soa}");
}
