//! Listeners of Services without an address of their own: headless ones, and external names. The DNS that external
//! names are resolved by is another Remora, whose headless Services have the addresses that a test gives them.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::folder::Folder;
use crate::server::Server;
use crate::sidecar::{Client, Sidecar, text, until};

const IPS: [&str; 3] = ["127.0.0.2", "127.0.0.3", "127.0.0.4"];

/// A Service shop/NAME with this `spec`, in the way of JSON.
fn service(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{{spec}}}}}\n---\n"
    )
}

/// A slice of shop/NAME, of endpoints at `port`.
fn slice(name: &str, family: &str, endpoints: &str, port: u16, labels: &str) -> String {
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}-{family}, namespace: shop, \
         labels: {{kubernetes.io/service-name: {name}{labels}}}}}, addressType: {family}, ports: [{{name: pg, port: \
         {port}}}], endpoints: [{endpoints}]}}\n---\n"
    )
}

fn endpoints(ips: &[&str]) -> String {
    ips.iter().map(|ip| format!("{{addresses: ['{ip}']}}, ")).collect()
}

/// The headless Service shop/db, port pg 5432, with these endpoints at `port`, as the controllers of Kubernetes write it.
fn headless(ips: &[&str], port: u16) -> String {
    let label = ", service.kubernetes.io/headless: ''";
    service("db", "clusterIP: None, clusterIPs: [None], ports: [{name: pg, port: 5432}]")
        + &slice("db", "IPv4", &endpoints(ips), port, label)
}

/// Who answers at `address`, in many connections.
fn answers(address: SocketAddr) -> BTreeSet<String> {
    let one =
        |_| Client::connect(address).map_or_else(|error| error.kind().to_string(), |client| client.server);
    (0..40).map(one).collect()
}

/// Waits until exactly these answer at `address`.
fn until_answered(sidecar: &Sidecar, address: SocketAddr, by: &[&str]) {
    until(&format!("{by:?} answer"), || {
        let found = answers(address);
        if found.iter().eq(by) { Ok(()) } else { Err(format!("{found:?}\n{}", sidecar.log())) }
    });
}

/// A Remora that answers for names of the zone example.com as `manifests` say, which `folder` gets.
fn dns(folder: &Folder, manifests: &str) -> Sidecar {
    folder.put("names.yaml", manifests);
    let source = folder.source();
    Sidecar::start(&[
        "--source",
        &source,
        "--dns",
        "127.0.0.1:0",
        "--dns-zone",
        "example.com",
        "--dns-forward",
        "127.0.0.1:1",
    ])
}

/// A sidecar with these listeners, which asks `dns` for external names.
fn sidecar(folder: &Folder, dns: &str, listens: &[&str]) -> Sidecar {
    let source = folder.source();
    let listens: Vec<String> =
        listens.iter().map(|listen| format!("--listen=127.0.0.1:0={listen}")).collect();
    let mut arguments = vec!["--source", &*source, "--dns-forward", dns];
    arguments.extend(listens.iter().map(String::as_str));
    Sidecar::start(&arguments)
}

const NOBODY: &str = "127.0.0.1:1";

#[test]
fn a_listener_of_a_headless_service_balances_over_its_ready_endpoints_down_to_none_and_back() {
    let (_servers, port) = Server::all_on(&IPS);
    let folder = Folder::new();
    folder.put("db.yaml", &headless(&IPS, port));
    let sidecar = sidecar(&folder, NOBODY, &["shop/db:5432", "shop/db:pg"]);
    for address in &sidecar.listens {
        until_answered(&sidecar, *address, &IPS);
    }
    let mut open = sidecar.connect();
    let (first, rest) = (endpoints(&IPS[..1]), "{addresses: ['127.0.0.3'], conditions: {ready: false}}");
    let mixed = service("db", "clusterIP: None, ports: [{name: pg, port: 5432}]")
        + &slice("db", "IPv4", &(first + rest), port, "");
    folder.put("db.yaml", &mixed);
    until_answered(&sidecar, sidecar.listens[0], &IPS[..1]);
    folder.put("db.yaml", &headless(&[], port));
    until_answered(&sidecar, sidecar.listens[0], &["connection reset"]);
    folder.put("db.yaml", &headless(&IPS[1..], port));
    until_answered(&sidecar, sidecar.listens[0], &IPS[1..]);
    open.echo("still here").unwrap();
    open.finish();
}

#[test]
fn an_endpoint_of_a_headless_service_that_fails_is_put_aside_without_anybody_noticing() {
    let (mut servers, port) = Server::all_on(&IPS);
    let folder = Folder::new();
    folder.put("db.yaml", &headless(&IPS, port));
    let sidecar = sidecar(&folder, NOBODY, &["shop/db:5432"]);
    until_answered(&sidecar, sidecar.listens[0], &IPS);
    drop(servers.remove(1));
    assert_eq!(answers(sidecar.listens[0]), [IPS[0], IPS[2]].map(str::to_owned).into());
    // For a while, and for longer with each further client that meets it.
    until("it is put aside", || {
        answers(sidecar.listens[0]);
        let (_, page) = sidecar.health("/metrics");
        let of = |name: &str| format!("{name}{{service=\"shop/db\",port=\"5432\",family=\"IPv4\"}}");
        assert!(page.contains(&format!("{} 3", of("remora_endpoints"))), "{page}");
        if page.contains(&format!("{} 1", of("remora_endpoints_put_aside"))) { Ok(()) } else { Err(page) }
    });
}

#[test]
fn an_external_name_is_dialled_by_its_addresses_and_a_change_in_dns_is_followed() {
    let (_servers, port) = Server::all_on(&IPS);
    let (names, folder) = (Folder::new(), Folder::new());
    let dns = dns(&names, &headless(&IPS[..1], 1));
    let spec = "type: ExternalName, externalName: db.shop.svc.example.com., ports: [{name: pg, port: PORT}]";
    folder.put("ext.yaml", &service("ext", &spec.replace("PORT", &port.to_string())));
    let by_number = format!("shop/ext:{port}");
    let sidecar = sidecar(&folder, &dns.dns.unwrap().to_string(), &[&by_number, "shop/ext:pg"]);
    for address in &sidecar.listens {
        until_answered(&sidecar, *address, &IPS[..1]);
    }
    let mut open = sidecar.connect();
    names.put("names.yaml", &headless(&IPS[1..], 1));
    until_answered(&sidecar, sidecar.listens[0], &IPS[1..]);
    open.echo("still here").unwrap();
    open.finish();
    until("the name is looked up again and again", || {
        let (_, page) = sidecar.health("/metrics");
        let found = page
            .lines()
            .find_map(|line| line.strip_prefix("remora_external_name_lookups_total{outcome=\"found\"} "));
        if found.is_some_and(|found| found.parse::<u64>().unwrap() >= 3) { Ok(()) } else { Err(page) }
    });
    assert_eq!(dns.health("/readyz").0, 200);
}

#[test]
fn endpoints_and_explain_show_what_a_listener_of_each_type_leads_to() {
    let (_servers, port) = Server::all_on(&IPS);
    let (names, folder) = (Folder::new(), Folder::new());
    let dns = dns(&names, &headless(&IPS[..1], 1));
    folder.put("db.yaml", &headless(&IPS[1..2], port));
    folder.put("ext.yaml", &service("ext", "type: ExternalName, externalName: db.shop.svc.example.com"));
    let listens = ["shop/db:5432", &format!("shop/ext:{port}")];
    let sidecar = sidecar(&folder, &dns.dns.unwrap().to_string(), &listens);
    for (address, by) in sidecar.listens.iter().zip([&IPS[1..2], &IPS[..1]]) {
        until_answered(&sidecar, *address, by);
    }
    let _open = sidecar.connect();
    let expected = format!(
        "\
shop/db port pg 5432/TCP, IPv4 headless: 1 endpoint serves here
  ADDRESS          STATE   ACTIVE  NODE  ZONE  POD
  127.0.0.3:{port}  serves  1       -     -     -

shop/ext is an external name: db.shop.svc.example.com
  ADDRESS          STATE   ACTIVE
  127.0.0.2:{port}  serves  0
"
    );
    // Columns are as wide as the port has digits.
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    until("only the open connection is left", || match text(&sidecar.command(&["endpoints"]).stdout) {
        shown if words(&shown) == words(&expected) => Ok(()),
        shown => Err(format!("{shown}\n{expected}")),
    });
    for (address, endpoint) in sidecar.listens.iter().zip([IPS[1], IPS[0]]) {
        let told = text(&sidecar.command(&["explain", &address.to_string()]).stdout);
        assert!(
            told.contains("a --listen of the sidecar for shop/")
                && told.contains(&format!("=> {endpoint}:{port}")),
            "{told}"
        );
    }
}

#[test]
fn an_external_name_whose_dns_fails_keeps_its_addresses() {
    let (_servers, port) = Server::all_on(&IPS[..1]);
    let (names, folder) = (Folder::new(), Folder::new());
    let dns = dns(&names, &headless(&IPS[..1], 1));
    folder.put("ext.yaml", &service("ext", "type: ExternalName, externalName: db.shop.svc.example.com"));
    let sidecar = sidecar(&folder, &dns.dns.unwrap().to_string(), &[&format!("shop/ext:{port}")]);
    until_answered(&sidecar, sidecar.listens[0], &IPS[..1]);
    drop(dns);
    sidecar.wait_for_log("its last addresses serve on");
    until_answered(&sidecar, sidecar.listens[0], &IPS[..1]);
}

#[test]
fn of_a_name_with_both_families_the_one_that_answers_serves() {
    let (_servers, port) = Server::all_on(&IPS[..1]);
    let (names, folder) = (Folder::new(), Folder::new());
    let both = headless(&IPS[..1], 1) + &slice("db", "IPv6", &endpoints(&["::1"]), 1, "");
    let dns = dns(&names, &both);
    folder.put("ext.yaml", &service("ext", "type: ExternalName, externalName: db.shop.svc.example.com"));
    let sidecar = sidecar(&folder, &dns.dns.unwrap().to_string(), &[&format!("shop/ext:{port}")]);
    until_answered(&sidecar, sidecar.listens[0], &IPS[..1]);
    let (_, page) = sidecar.health("/metrics");
    let tried = page.lines().find(|line| line.starts_with("remora_retries_total{service=\"shop/ext\""));
    assert!(tried.is_some_and(|line| !line.ends_with(" 0")), "IPv6 was tried first\n{page}");
}

#[test]
fn an_external_name_of_a_service_of_the_cluster_goes_to_its_endpoints_without_dns() {
    let (_servers, port) = Server::all_on(&IPS);
    let folder = Folder::new();
    folder.put_web(&IPS[..2], port);
    folder.put("db.yaml", &headless(&IPS[2..], port));
    let alias = |name: &str, to: &str| {
        service(name, &format!("type: ExternalName, externalName: {to}.shop.svc.cluster.local"))
    };
    folder.put("aliases.yaml", &(alias("front", "web") + &alias("far", "front") + &alias("store", "db")));
    let sidecar = sidecar(&folder, NOBODY, &["shop/front:80", "shop/far:80", "shop/store:5432"]);
    for (address, by) in sidecar.listens.iter().zip([&IPS[..2], &IPS[..2], &IPS[2..]]) {
        until_answered(&sidecar, *address, by);
    }
    // The Service that it leads to changes, which nobody listens for.
    folder.put_web(&IPS[1..2], port);
    for address in &sidecar.listens[..2] {
        until_answered(&sidecar, *address, &IPS[1..2]);
    }
}

#[test]
fn an_external_name_that_leads_nowhere_is_told_once_with_the_next_step() {
    let (names, folder) = (Folder::new(), Folder::new());
    let dns = dns(&names, &headless(&[], 1));
    let external = |name: &str, to: &str| service(name, &format!("type: ExternalName, externalName: {to}"));
    let local = |name: &str| format!("{name}.shop.svc.cluster.local");
    folder.put(
        "wrong.yaml",
        &[
            external("ip", "192.0.2.1"),
            external("self", &local("self")),
            external("a", &local("b")),
            external("b", &local("a")),
            external("gone", "nothing.example.org"),
            external("empty", "dns-version.example.com"),
            service("portless", "clusterIP: None"),
            external("unnamed", "db.example.org"),
        ]
        .concat(),
    );
    let listens = [
        "shop/ip:1",
        "shop/self:1",
        "shop/a:1",
        "shop/gone:1",
        "shop/empty:1",
        "shop/portless:1",
        "shop/unnamed:pg",
    ];
    let sidecar = sidecar(&folder, &dns.dns.unwrap().to_string(), &listens);
    let sentences = [
        "the external name \"192.0.2.1\" of Service shop/ip is an IP address; make the Service a headless one and write an EndpointSlice for it",
        "the external name self.shop.svc.cluster.local. of Service shop/self leads back to itself; point it to a name outside",
        "the external name a.shop.svc.cluster.local. of Service shop/b leads back to itself",
        "the external name nothing.example.org. of Service shop/gone cannot be resolved: the servers answer",
        "the external name dns-version.example.com. of Service shop/empty has no address in DNS; correct spec.externalName",
        "Service shop/portless has no ports: give it spec.ports with those that its endpoints listen on",
        "Service shop/unnamed is an external name and has no port pg: say the number in --listen",
    ];
    for sentence in sentences {
        sidecar.wait_for_log(sentence);
    }
    for address in &sidecar.listens {
        let reset = Client::connect(*address).map(|client| client.server);
        assert_eq!(reset.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    let log = sidecar.log();
    for sentence in sentences {
        assert_eq!(log.matches(sentence).count(), 1, "{log}");
    }
}

#[test]
fn a_name_that_has_the_address_of_its_own_listener_is_no_endless_relay() {
    let (names, folder) = (Folder::new(), Folder::new());
    let dns = dns(&names, &headless(&["127.0.0.1"], 1));
    folder.put("ext.yaml", &service("ext", "type: ExternalName, externalName: db.shop.svc.example.com"));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listen = format!("{free}=shop/ext:{}", free.port());
    let (source, dns) = (folder.source(), dns.dns.unwrap().to_string());
    let sidecar = Sidecar::start(&["--source", &source, "--dns-forward", &dns, "--listen", &listen]);
    sidecar.wait_for_log("has the address of this listener");
    assert_eq!(
        Client::connect(free).map(|client| client.server).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[test]
fn a_listener_follows_its_service_through_all_types_and_no_connection_fails() {
    let (_servers, port) = Server::all_on(&IPS);
    let (names, folder) = (Folder::new(), Folder::new());
    let dns = dns(&names, &headless(&IPS[..1], 1));
    let ports = format!("ports: [{{name: pg, port: {port}, nodePort: NODE}}]");
    let with = |spec: &str, ip: &str| {
        service(
            "db",
            &format!(
                "{spec}, {}",
                ports.replace("NODE", if spec.contains("NodePort") { "30123" } else { "0" })
            ),
        ) + &slice("db", "IPv4", &endpoints(&[ip]), port, "")
    };
    let external = with("type: ExternalName, externalName: db.shop.svc.example.com", IPS[1]);
    let cluster_ip = with("clusterIP: 10.96.0.20, clusterIPs: [10.96.0.20]", IPS[1]);
    let headless = with("clusterIP: None", IPS[2]);
    let node_port = with("type: NodePort, clusterIP: 10.96.0.20, clusterIPs: [10.96.0.20]", IPS[1]);
    folder.put("db.yaml", &external);
    let sidecar = sidecar(&folder, &dns.dns.unwrap().to_string(), &[&format!("shop/db:{port}")]);
    until_answered(&sidecar, sidecar.listens[0], &IPS[..1]);
    let mut open = sidecar.connect();
    let (address, is_done) = (sidecar.listens[0], AtomicBool::new(false));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut count = 0;
                    while !is_done.load(Ordering::SeqCst) {
                        let met = Client::connect(address);
                        met.unwrap_or_else(|error| panic!("connection {count}: {error}")).finish();
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        for _ in 0..3 {
            for (manifest, by) in [
                (&cluster_ip, 1),
                (&headless, 2),
                (&node_port, 1),
                (&external, 0),
                (&headless, 2),
                (&external, 0),
            ] {
                folder.put("db.yaml", manifest);
                until_answered(&sidecar, address, &IPS[by..=by]);
            }
        }
        is_done.store(true, Ordering::SeqCst);
        for client in clients {
            assert!(client.join().unwrap() > 100);
        }
    });
    open.echo("still here").unwrap();
    let log = sidecar.log();
    assert!(!log.contains("WARN"), "{log}");
}
