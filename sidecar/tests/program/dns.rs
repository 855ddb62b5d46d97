//! `remora sidecar --dns`, asked by dig. The cluster's DNS that it asks is another Remora, with Services of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::folder::Folder;
use crate::sidecar::{PATIENCE, Sidecar, run, text, until};

const DB: &str = "
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIP: None, ports: [{name: pg, port: 5432}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}},
 addressType: IPv4, ports: [{name: pg, port: 5432}],
 endpoints: [{addresses: [10.1.0.1], hostname: db-0}, {addresses: [10.1.0.2], hostname: db-1}]}
---
{apiVersion: v1, kind: Service, metadata: {name: outside, namespace: shop}, spec: {type: ExternalName, externalName: web.shop.svc.example.com}}
---
{apiVersion: v1, kind: Service, metadata: {name: wrong, namespace: shop}, spec: {type: ExternalName, externalName: 192.0.2.1}}
";

/// A Remora that answers DNS, and the one that it asks.
struct World {
    dns: Sidecar,
    /// Of the zone example.com, where it has shop/web.
    cluster: Sidecar,
    _folders: [Folder; 2],
}

impl World {
    fn new() -> Self {
        let (ours, theirs) = (Folder::new(), Folder::new());
        ours.put_web(&["127.0.0.2"], 80);
        ours.put("db.yaml", DB);
        theirs.put_web(&["127.0.0.3"], 80);
        let nobody = "127.0.0.1:1";
        let cluster = start(&theirs, &["--dns-zone", "example.com", "--dns-forward", nobody]);
        let forward = format!("{nobody},{}", cluster.dns.unwrap());
        let dns = start(&ours, &["--dns-forward", &forward]);
        for (sidecar, zone) in [(&dns, "cluster.local"), (&cluster, "example.com")] {
            until("it knows its names", || {
                let answer = dig(sidecar.dns.unwrap(), &[&format!("web.shop.svc.{zone}")]);
                if answer.contains("10.96.0.10") { Ok(()) } else { Err(answer) }
            });
        }
        Self { dns, cluster, _folders: [ours, theirs] }
    }

    fn dig(&self, arguments: &[&str]) -> String {
        dig(self.dns.dns.unwrap(), arguments)
    }

    /// The value of a metric with these labels.
    fn metric(&self, name: &str) -> u64 {
        let (_, page) = self.dns.health("/metrics");
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in\n{page}"))
    }
}

fn start(folder: &Folder, more: &[&str]) -> Sidecar {
    let source = folder.source();
    Sidecar::start(&[&["--source", &source, "--dns", "127.0.0.1:0"], more].concat())
}

/// What dig says; without a cookie, so that answers may be kept.
fn dig(server: SocketAddr, arguments: &[&str]) -> String {
    let place = [format!("@{}", server.ip()), "-p".to_owned(), server.port().to_string()];
    let output =
        Command::new("dig").args(place).args(["+nocookie", "+tries=1", "+time=10"]).args(arguments).output();
    text(&output.expect("dig is there: tests/tools installs it").stdout)
}

#[test]
fn dig_gets_the_names_of_services_over_both_transports() {
    let world = World::new();
    for transport in ["+notcp", "+tcp"] {
        let short = |arguments: &[&str]| world.dig(&[&["+short", transport], arguments].concat());
        assert_eq!(short(&["web.shop.svc.cluster.local"]), "10.96.0.10\n");
        assert_eq!(short(&["db-1.db.shop.svc.cluster.local"]), "10.1.0.2\n");
        assert_eq!(
            short(&["_http._tcp.web.shop.svc.cluster.local", "SRV"]),
            "0 100 80 web.shop.svc.cluster.local.\n"
        );
        assert_eq!(short(&["-x", "10.96.0.10"]), "web.shop.svc.cluster.local.\n");
        assert_eq!(short(&["-x", "10.1.0.1"]), "db-0.db.shop.svc.cluster.local.\n");
        assert_eq!(short(&["dns-version.cluster.local", "TXT"]), "\"1.1.0\"\n");
        let whole = world.dig(&[transport, "web.shop.svc.cluster.local", "AAAA"]);
        assert!(whole.contains("status: NOERROR") && whole.contains("ANSWER: 0, AUTHORITY: 1"), "{whole}");
        assert!(whole.contains("flags: qr aa rd ra") && whole.contains("udp: 1232"), "{whole}");
    }
}

#[test]
fn other_names_come_from_the_clusters_dns_the_next_server_if_the_first_fails() {
    let world = World::new();
    for transport in ["+notcp", "+tcp"] {
        assert_eq!(world.dig(&["+short", transport, "web.shop.svc.example.com"]), "10.96.0.10\n");
    }
    let failures = world.metric("remora_dns_forward_failures_total{reason=\"unreachable\"}");
    assert!(failures >= 1, "{failures}");
    let kept = world.metric("remora_dns_answers_total{from=\"cache\",rcode=\"NOERROR\"}");
    assert_eq!(world.dig(&["+short", "+notcp", "WEB.shop.svc.example.com"]), "10.96.0.10\n");
    assert_eq!(world.metric("remora_dns_answers_total{from=\"cache\",rcode=\"NOERROR\"}"), kept + 1);
    // Manifests are not all that a cluster has: whether there is such a name, its own DNS may say. This one asks
    // nobody further.
    let denied = world.dig(&["nothing.shop.svc.cluster.local"]);
    assert!(denied.contains("status: SERVFAIL"), "{denied}");
    // An answer of the other is passed on as it was written.
    let none = world.dig(&["web.shop.svc.example.com", "AAAA"]);
    assert!(none.contains("ns.dns.example.com."), "{none}");
}

#[test]
fn an_external_name_is_resolved_in_the_same_answer_and_a_wrong_one_is_told_once() {
    let world = World::new();
    assert_eq!(
        world.dig(&["+short", "outside.shop.svc.cluster.local"]),
        "web.shop.svc.example.com.\n10.96.0.10\n"
    );
    for _ in 0..2 {
        let wrong = world.dig(&["wrong.shop.svc.cluster.local"]);
        assert!(wrong.contains("status: SERVFAIL"), "{wrong}");
    }
    assert_eq!(world.metric("remora_dns_external_names_wrong_total{reason=\"address\"}"), 2);
    let said = "the external name of Service shop/wrong is an IP address";
    world.dns.wait_for_log(said);
    let log = world.dns.log();
    assert_eq!(log.matches(said).count(), 1, "{log}");
}

#[test]
fn names_follow_the_manifests_and_a_long_answer_is_cut_and_comes_whole_over_tcp() {
    let folder = Folder::new();
    let sidecar = start(&folder, &["--dns-forward", "127.0.0.1:1"]);
    let slice = |count: u8| {
        let endpoints: Vec<_> = (1..=count).map(|i| format!("{{addresses: [10.1.1.{i}]}}")).collect();
        format!(
            "{{kind: Service, metadata: {{name: many, namespace: shop}}, spec: {{clusterIP: None}}}}\n---\n\
             {{kind: EndpointSlice, metadata: {{name: many-1, namespace: shop, labels: {{kubernetes.io/service-name: \
             many}}}}, addressType: IPv4, ports: [], endpoints: [{}]}}",
            endpoints.join(", ")
        )
    };
    for count in [3, 200] {
        folder.put("many.yaml", &slice(count));
        until("the endpoints have names", || {
            let answer = dig(sidecar.dns.unwrap(), &["+short", "many.shop.svc.cluster.local"]);
            if answer.lines().count() == usize::from(count) { Ok(()) } else { Err(answer) }
        });
    }
    let cut = dig(sidecar.dns.unwrap(), &["+ignore", "+noall", "+comments", "many.shop.svc.cluster.local"]);
    assert!(cut.contains(" tc ") && !cut.contains("ANSWER: 0,"), "{cut}");
}

#[test]
fn garbage_and_floods_cost_nothing() {
    let world = World::new();
    let dns = world.dns.dns.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut seed = 7_u32;
    for i in 0..20_000_usize {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let bytes: Vec<u8> = (0..i % 90).map(|at| (seed >> (at % 25)) as u8).collect();
        socket.send_to(&bytes, dns).unwrap();
    }
    // Streams that say nothing, that lie about a length, that end halfway.
    let streams: Vec<_> = (0..400).filter_map(|_| TcpStream::connect_timeout(&dns, PATIENCE).ok()).collect();
    for (i, mut stream) in streams.iter().enumerate() {
        let _ = stream.write_all(&[0xff; 40][..i % 40]);
    }
    until("it answers among them", || {
        let answer = dig(dns, &["+short", "+notcp", "web.shop.svc.cluster.local"]);
        if answer == "10.96.0.10\n" { Ok(()) } else { Err(answer) }
    });
    drop(streams);
    until("streams are taken again", || {
        let answer = dig(dns, &["+short", "+tcp", "web.shop.svc.cluster.local"]);
        if answer == "10.96.0.10\n" { Ok(()) } else { Err(answer) }
    });
    // How many of them come so far depends on who is faster: the kernel keeps only some hundred of them.
    until("a thousand are dropped", || {
        (0..500).for_each(|_| drop(socket.send_to(&[0xff; 40], dns)));
        match world.metric("remora_dns_dropped_total") {
            1_001.. => Ok(()),
            dropped => Err(dropped.to_string()),
        }
    });
    assert!(!world.cluster.log().contains("panicked") && !world.dns.log().contains("panicked"));
    let resident = |page: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
        line.unwrap().parse::<f64>().unwrap()
    };
    let bytes = resident(&world.dns.health("/metrics").1);
    assert!(bytes < 96.0 * 1024.0 * 1024.0, "{bytes} bytes resident");
}

/// The query for the address of shop/web, as a stream has it: after its length.
fn query(id: u8) -> Vec<u8> {
    let mut query = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["web", "shop", "svc", "cluster", "local"] {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    [vec![0, u8::try_from(query.len()).unwrap()], query].concat()
}

#[test]
fn several_questions_on_one_stream_are_answered_in_turn() {
    let world = World::new();
    let mut stream = TcpStream::connect(world.dns.dns.unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[query(1), query(2)].concat()).unwrap();
    for id in [1, 2] {
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!((answer[1], &answer[answer.len() - 4..]), (id, &[10, 96, 0, 10][..]));
    }
}

#[test]
fn a_successor_takes_over_and_no_question_is_lost() {
    let folder = Folder::new();
    folder.put_web(&["127.0.0.2"], 80);
    let path = folder.path("handover");
    let with = |dns: &str| {
        let source = folder.source();
        Sidecar::start(&[
            "--source",
            &source,
            "--handover",
            &path,
            "--dns",
            dns,
            "--dns-forward",
            "127.0.0.1:1",
        ])
    };
    let mut first = with("127.0.0.1:0");
    let dns = first.dns.unwrap();
    let ask = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(&query(7)[2..], dns).unwrap();
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).map_err(|error| error.to_string())?;
        let is_it = answer[..length].ends_with(&[10, 96, 0, 10]);
        if is_it { Ok(()) } else { Err(format!("{:?}", &answer[..length])) }
    };
    until("the first answers", ask);
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut asked = 0;
            while !is_done.load(Ordering::SeqCst) {
                ask().unwrap_or_else(|error| panic!("question {asked}: {error}"));
                asked += 1;
            }
            asked
        });
        let second = with(&dns.to_string());
        assert_eq!(second.dns, Some(dns));
        first.ended();
        is_done.store(true, Ordering::SeqCst);
        assert!(asking.join().unwrap() > 20);
        assert_eq!(ask(), Ok(()));
    });
}

#[test]
fn what_cannot_work_is_said_in_one_sentence() {
    let folder = Folder::new();
    let source = folder.source();
    let fails = |arguments: &[&str]| {
        let output = run(&[&["sidecar"], arguments].concat());
        assert!(!output.status.success());
        text(&output.stderr)
    };
    let with =
        |dns: &str, forward: &str| fails(&["--source", &source, "--dns", dns, "--dns-forward", forward]);
    assert!(with("0.0.0.0:53", "10.96.0.10").contains("every address of this machine"));
    assert!(with("127.0.0.1", "10.96.0.10").contains("write it as 127.0.0.1:53"));
    assert!(with("127.0.0.1:53", "dns.example.com").contains("is not an IP address"));
    assert!(with("127.0.0.1:5399", "127.0.0.1:5399").contains("has nobody to ask"));
    let by_feed = fails(&["--source", "feed:http://127.0.0.1:1", "--dns", "127.0.0.1:0"]);
    assert!(by_feed.contains("does not tell the host names"), "{by_feed}");
}
