//! Connections to a Service get to its endpoints.

use std::collections::BTreeMap;

use crate::folder::Folder;
use crate::server::Server;
use crate::sidecar::{Client, Sidecar, text, until};

const IPS: [&str; 3] = ["127.0.0.2", "127.0.0.3", "127.0.0.4"];

/// How often each endpoint answered `count` connections.
fn spread(sidecar: &Sidecar, count: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        let mut client = sidecar.connect();
        client.echo("hello").unwrap();
        *answers.entry(client.server.clone()).or_default() += 1;
        client.finish();
    }
    answers
}

#[test]
fn connections_to_a_listener_are_spread_over_the_endpoints_of_its_service() {
    let (_servers, port) = Server::all_on(&IPS);
    let folder = Folder::new();
    folder.put_web(&IPS, port);
    let sidecar = Sidecar::start_web(&folder.source(), &[]);
    let answers = spread(&sidecar, 90);
    assert_eq!(answers.keys().collect::<Vec<_>>(), IPS, "{answers:?}");
    assert!(answers.values().all(|&count| count >= 10), "{answers:?}");
}

#[test]
fn a_service_port_is_known_by_name_and_by_number_and_both_families_can_listen() {
    let (_servers, port) = Server::all_on(&IPS[..1]);
    let folder = Folder::new();
    folder.put_web(&IPS[..1], port);
    let listens = ["127.0.0.1:0=shop/web:80", "127.0.0.1:0=shop/web:http", "[::1]:0=shop/web:http"];
    let listens = listens.map(|listen| ["--listen", listen]).concat();
    let sidecar = Sidecar::start(&[&["--source", &folder.source()], &listens[..]].concat());
    assert!(sidecar.listens[2].is_ipv6());
    for address in &sidecar.listens {
        assert_eq!(Client::connect(*address).unwrap().server, IPS[0]);
    }
}

#[test]
fn a_change_of_a_manifest_moves_new_connections_and_cuts_none() {
    let (_servers, port) = Server::all_on(&IPS);
    let folder = Folder::new();
    folder.put_web(&IPS[..1], port);
    let sidecar = Sidecar::start_web(&folder.source(), &[]);
    let mut old = sidecar.connect();
    assert_eq!(old.server, IPS[0]);
    folder.put_web(&IPS[1..], port);
    sidecar.wait_for_endpoints(&IPS[1..]);
    let answers = spread(&sidecar, 40);
    assert_eq!(answers.keys().collect::<Vec<_>>(), &IPS[1..], "{answers:?}");
    old.echo("still here").unwrap();
    old.finish();
}

#[test]
fn a_manifest_that_breaks_takes_nothing_away() {
    let (_servers, port) = Server::all_on(&IPS[..1]);
    let folder = Folder::new();
    folder.put_web(&IPS[..1], port);
    let sidecar = Sidecar::start_web(&folder.source(), &[]);
    sidecar.connect().finish();
    folder.put("web.yaml", "kind: Service\n  metadata: [broken\n");
    until("the log names the file", || match sidecar.log() {
        log if log.contains("web.yaml") && log.contains("WARN") => Ok(()),
        log => Err(log),
    });
    sidecar.connect().finish();
    assert_eq!(sidecar.health("/readyz").0, 200);
}

#[test]
fn nobody_notices_when_a_server_dies() {
    let (mut servers, port) = Server::all_on(&IPS);
    let folder = Folder::new();
    folder.put_web(&IPS, port);
    let sidecar = Sidecar::start_web(&folder.source(), &[]);
    spread(&sidecar, 10);
    drop(servers.remove(1));
    let answers = spread(&sidecar, 60);
    assert_eq!(answers.keys().collect::<Vec<_>>(), [IPS[0], IPS[2]], "{answers:?}");
    assert_eq!(answers.values().sum::<usize>(), 60);

    // For a while, and for longer with each further client that meets it.
    until("it is put aside", || {
        spread(&sidecar, 10);
        let shown = text(&sidecar.command(&["endpoints", "shop/web"]).stdout);
        let line = shown.lines().find(|line| line.contains(IPS[1])).unwrap();
        if line.contains("put aside for") { Ok(()) } else { Err(shown) }
    });
}

#[test]
fn an_unknown_service_resets_its_connections_until_it_exists() {
    let (_servers, port) = Server::all_on(&IPS[..1]);
    let folder = Folder::new();
    let sidecar = Sidecar::start_web(&folder.source(), &[]);
    sidecar.wait_for_log("there is no Service shop/web: create it, or correct --listen");
    assert_eq!(sidecar.health("/readyz").0, 200, "every other listener is served");
    let reset = Client::connect(sidecar.listens[0]).map(|client| client.server);
    assert_eq!(reset.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

    folder.put_web(&IPS[..1], port);
    sidecar.wait_for_endpoints(&IPS[..1]);
    assert_eq!(sidecar.connect().server, IPS[0]);
}
