//! How the program ends, and how it does not begin.

use std::io::Read;
use std::net::TcpListener;

use rustix::process::Signal;

use crate::folder::Folder;
use crate::server::Server;
use crate::sidecar::{Client, Sidecar, run, text, until};

fn serving(folder: &Folder, more: &[&str]) -> (Vec<Server>, Sidecar) {
    let ips = ["127.0.0.2"];
    let (servers, port) = Server::all_on(&ips);
    folder.put_web(&ips, port);
    (servers, Sidecar::start_web(&folder.source(), more))
}

#[test]
fn asked_to_end_it_takes_no_more_but_lets_open_connections_finish() {
    let folder = Folder::new();
    let (_servers, mut sidecar) = serving(&folder, &[]);
    let mut client = sidecar.connect();
    sidecar.signal(Signal::TERM);
    until("it is not ready", || match sidecar.health("/readyz") {
        (503, body) if body.contains("draining") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(sidecar.health("/livez").0, 200);
    until("nobody gets in", || match Client::connect(sidecar.listens[0]) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        other => Err(format!("{:?}", other.map(|client| client.server))),
    });
    client.echo("a long answer").unwrap();
    client.finish();
    assert_eq!(sidecar.ended().code(), Some(0));
}

#[test]
fn what_is_open_at_the_end_of_the_drain_timeout_is_reset() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = Folder::new();
        let (_servers, mut sidecar) = serving(&folder, &["--drain-timeout", "200ms"]);
        let mut client = sidecar.connect();
        sidecar.signal(signal);
        let error = client.stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(sidecar.ended().code(), Some(0), "{signal:?}");
        sidecar.wait_for_log("reset what was open");
    }
}

#[test]
fn asked_to_end_a_second_time_it_does_not_wait() {
    let folder = Folder::new();
    let (_servers, mut sidecar) = serving(&folder, &["--drain-timeout", "1h"]);
    let mut client = sidecar.connect();
    sidecar.signal(Signal::TERM);
    until("it drains", || match sidecar.health("/readyz").0 {
        503 => Ok(()),
        other => Err(other.to_string()),
    });
    sidecar.signal(Signal::TERM);
    assert_eq!(sidecar.ended().code(), Some(0));
    assert!(client.stream.read(&mut [0]).is_err(), "reset");
}

#[test]
fn an_address_that_is_taken_is_named_in_one_sentence() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = Folder::new();
    let source = folder.source();
    let listen = format!("{address}=shop/web:80");
    for flags in [["--listen", &listen], ["--health", &address], ["--admin", &address]] {
        let output = run(&[&["sidecar", "--source", &source, "--log-level", "error"], &flags[..]].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with(&format!("remora: cannot listen on {address} for ")), "{error}");
        assert!(error.contains("; ") && error.lines().count() == 1, "{error}");
        assert_eq!(text(&output.stdout), "");
    }
}

#[test]
fn a_source_that_does_not_exist_is_named_in_one_sentence() {
    let output =
        run(&["sidecar", "--source", "manifests:/nowhere/to/be/found", "--listen", "127.0.0.1:0=web:80"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let sentence = error.lines().find(|line| line.starts_with("remora: ")).unwrap();
    assert!(sentence.contains("/nowhere/to/be/found") && sentence.contains("; give"), "{sentence}");
}
