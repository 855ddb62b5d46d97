//! What the kubelet, Prometheus and people are told on the health and admin addresses.

use std::io::Write;
use std::net::TcpStream;

use crate::exposition;
use crate::folder::Folder;
use crate::server::Server;
use crate::sidecar::{PATIENCE, Sidecar, exchange, get, remora, text, until};

const IPS: [&str; 2] = ["127.0.0.2", "127.0.0.3"];

fn serving(folder: &Folder) -> (Vec<Server>, Sidecar) {
    let (servers, port) = Server::all_on(&IPS);
    folder.put_web(&IPS, port);
    (servers, Sidecar::start_web(&folder.source(), &[]))
}

#[test]
fn it_is_ready_from_the_first_table_on() {
    let folder = Folder::new();
    let (_servers, sidecar) = serving(&folder);
    until("it is ready", || match sidecar.health("/readyz") {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn without_a_table_it_lives_but_is_not_ready_and_its_connections_are_reset_in_time() {
    let folder = Folder::new();
    let sidecar = Sidecar::start_with(
        &["--source", "kube", "--listen", "127.0.0.1:0=shop/web:80", "--connect-timeout", "300ms"],
        |command| {
            command.env("KUBECONFIG", folder.hopeless_kubeconfig());
        },
    );
    let body = until("the broken source is told", || match sidecar.health("/readyz") {
        (503, body) if body.contains("unreachable") => Ok(body),
        other => Err(format!("{other:?}")),
    });
    assert!(body.starts_with("waiting for the first table"), "{body}");
    assert_eq!(sidecar.health("/livez").0, 200);
    let mut waiting = TcpStream::connect(sidecar.listens[0]).unwrap();
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    let error = std::io::Read::read(&mut waiting, &mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let unserved = "remora_connections_unserved_total{service=\"shop/web\",port=\"80\",reason=\"no-table\"}";
    let samples = until("the reset is counted", || {
        let samples = exposition::read(&sidecar.health("/metrics").1);
        if samples[unserved] == 1.0 { Ok(samples) } else { Err(format!("{}", samples[unserved])) }
    });
    assert_eq!(samples["remora_table_version"], 0.0);
    assert!(samples["remora_source_errors_total{reason=\"unreachable\"}"] >= 1.0);
}

#[test]
fn the_metrics_are_valid_and_count_what_clients_saw() {
    let folder = Folder::new();
    let (mut servers, sidecar) = serving(&folder);
    let labels = "service=\"shop/web\",port=\"80\"";
    for _ in 0..10 {
        let mut client = sidecar.connect();
        client.echo("12345").unwrap();
        client.finish();
    }
    let open = sidecar.connect();
    // The other endpoint has fewer connections, and is chosen first.
    servers.retain(|server| server.ip() == open.server);
    for _ in 0..10 {
        sidecar.connect().finish();
    }
    let samples = until("21 connections are opened, 20 closed", || {
        let samples = exposition::read(&sidecar.health("/metrics").1);
        let of = |name: &str| samples[&format!("{name}{{{labels}}}")];
        match (of("remora_connections_opened_total"), of("remora_connections_closed_total")) {
            (21.0, 20.0) => Ok(samples),
            other => Err(format!("{other:?}")),
        }
    });
    let of = |name: &str| samples[&format!("{name}{{{labels}}}")];
    let by = |name: &str, label: &str| samples[&format!("{name}{{{labels},{label}}}")];
    assert_eq!(of("remora_connections_active"), 1.0);
    assert_eq!(by("remora_relayed_bytes_total", "direction=\"to-endpoint\""), 50.0);
    let said = (21 * "127.0.0.2\n".len() + 50) as f64;
    assert_eq!(by("remora_relayed_bytes_total", "direction=\"to-client\""), said);
    assert!(by("remora_connect_failures_total", "reason=\"refused\"") >= 1.0);
    assert_eq!(of("remora_retries_total"), by("remora_connect_failures_total", "reason=\"refused\""));
    assert_eq!(by("remora_endpoints", "family=\"IPv4\""), 2.0);
    assert!(samples["remora_table_version"] >= 1.0);
    assert!(samples["process_resident_memory_bytes"] > 1e6);
    assert!(samples["process_open_fds"] < samples["process_max_fds"]);
    assert_eq!(samples[&format!("remora_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))], 1.0);
    // For a while, and for longer with each further client that meets it.
    until("the endpoint that is gone is put aside", || {
        sidecar.connect().finish();
        let samples = exposition::read(&sidecar.health("/metrics").1);
        match samples[&format!("remora_endpoints_put_aside{{{labels},family=\"IPv4\"}}")] {
            1.0 => Ok(()),
            aside => Err(aside.to_string()),
        }
    });
    drop(open);
}

#[test]
fn the_time_from_an_event_to_its_table_is_measured() {
    let folder = Folder::new();
    let (_servers, sidecar) = serving(&folder);
    let count = |sidecar: &Sidecar| exposition::read(&sidecar.health("/metrics").1)["remora_received_to_table_seconds_count"];
    assert_eq!(count(&sidecar), 0.0, "the first list is no event");
    folder.put_web(&IPS[..1], 9);
    until("an event is measured", || match count(&sidecar) {
        count if count >= 1.0 => Ok(()),
        count => Err(count.to_string()),
    });
}

#[test]
fn the_health_address_answers_three_paths_and_nothing_else() {
    let folder = Folder::new();
    let (_servers, sidecar) = serving(&folder);
    let ask = |request: &str| exchange(sidecar.health, request).map(|(status, _)| status);
    for path in ["/", "/healthz", "/v1/endpoints", "/livez/", "/metrics/x", "//livez"] {
        assert_eq!(get(sidecar.health, path).unwrap().0, 404, "{path}");
    }
    assert_eq!(ask("POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").unwrap(), 405);
    assert_eq!(ask("HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap(), 200);
    let long = format!("GET /livez HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(60_000));
    assert!(!ask(&long).is_ok_and(|status| status == 200), "headers are bounded");
    assert!(!ask("not http at all\r\n\r\n").is_ok_and(|status| status == 200));
}

#[test]
fn clients_that_say_nothing_do_not_keep_others_out_for_long() {
    let folder = Folder::new();
    let (_servers, sidecar) = serving(&folder);
    let idle: Vec<TcpStream> = (0..80)
        .map(|_| {
            let mut stream = TcpStream::connect(sidecar.health).unwrap();
            stream.write_all(b"GET /livez HT").unwrap();
            stream
        })
        .collect();
    assert_eq!(sidecar.health("/livez").0, 200);
    drop(idle);
}

#[test]
fn the_admin_address_tells_how_it_is_and_answers_no_foreign_web_page() {
    let folder = Folder::new();
    let (_servers, sidecar) = serving(&folder);
    sidecar.wait_for_endpoints(&IPS);
    let (status, body) = get(sidecar.admin, "/v1/status").unwrap();
    let page: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &page["table"]["synced"]), (200, &true.into()), "{page}");
    assert_eq!(page["listeners"][0]["address"], sidecar.listens[0].to_string());
    assert_eq!(page["listeners"][0]["serves"], true);
    assert_eq!(page["source"], folder.source());

    let foreign = "GET /v1/status HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(sidecar.admin, foreign).unwrap().0, 403);
    assert_eq!(get(sidecar.admin, "/metrics").unwrap().0, 404);
    for (path, part) in [
        ("/v1/explain?address=nonsense", "nonsense"),
        ("/v1/explain?address=10.0.0.1:80&protocol=quic", "quic"),
        ("/v1/endpoints?service=No/Name", "No/Name"),
    ] {
        let (status, body) = get(sidecar.admin, path).unwrap();
        assert!(status == 400 && body.contains(part), "{status} {body}");
    }
    let (status, body) = get(sidecar.admin, "/v1/endpoints?service=shop/other").unwrap();
    assert!(status == 404 && body.contains("this sidecar has no Service shop/other"), "{status} {body}");
}

#[test]
fn endpoints_and_explain_ask_the_running_sidecar() {
    let folder = Folder::new();
    let (_servers, sidecar) = serving(&folder);
    let open: Vec<_> = (0..4).map(|_| sidecar.connect()).collect();
    let rows = sidecar.command(&["endpoints", "shop/web", "-o", "json"]);
    let rows: serde_json::Value = serde_json::from_slice(&rows.stdout).unwrap();
    let active: u64 =
        rows[0]["endpoints"].as_array().unwrap().iter().map(|e| e["active"].as_u64().unwrap()).sum();
    assert_eq!(active, 4);
    let listen = sidecar.listens[0].to_string();
    let told = text(&sidecar.command(&["explain", &listen]).stdout);
    assert!(told.contains("1. a --listen of the sidecar for shop/web port http 80/TCP"), "{told}");
    assert!(told.contains("with 2 active connections"), "{told}");
    let unknown = sidecar.command(&["endpoints", "shop/other"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).starts_with("remora: this sidecar has no Service shop/other;"));
    drop(open);
}

#[test]
fn with_nobody_to_ask_the_next_step_is_told() {
    let output = remora(&["endpoints", "--admin", "127.0.0.1:1"]).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        error,
        "remora: no sidecar answers on 127.0.0.1:1: connection refused; start one with --admin, name its address \
         with --admin, or look at a source with --source\n"
    );
}
