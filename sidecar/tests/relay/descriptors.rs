//! A process without descriptors left: a child of the test, which limits itself and serves.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit, setrlimit};
use sidecar::tcp::Settings;

use crate::world::{DEADLINE, World, eventually, named, patient, service};

const CHILD: &str = "REMORA_TEST_FEW_DESCRIPTORS";

#[test]
fn without_descriptors_clients_wait_and_are_served_once_others_have_ended() {
    if let Ok(endpoint) = std::env::var(CHILD) {
        return serve(endpoint.parse().unwrap());
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            concat!(
                "descriptors::",
                "without_descriptors_clients_wait_and_are_served_once_others_have_ended"
            ),
        ])
        .env(CHILD, named(b'a').to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut said = |what: &str| {
        let line = output.find_map(|line| Some(line.split_once(what)?.1.to_owned()));
        line.unwrap_or_else(|| panic!("the child did not say {what:?}"))
    };
    let address: SocketAddr = said("serves on ").parse().unwrap();

    let mut clients: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(address).unwrap()).collect();
    clients.iter_mut().for_each(|client| client.write_all(b"x").unwrap());
    while !clients.is_empty() {
        clients.iter().for_each(|client| client.set_nonblocking(true).unwrap());
        let answered = |client: &TcpStream| client.peek(&mut [0]).is_ok();
        eventually("another client is served", || {
            clients.iter().any(answered).then_some(()).ok_or(format!("{} wait", clients.len()))
        });
        let served = clients.iter().position(answered).unwrap();
        let mut client = clients.swap_remove(served);
        client.set_nonblocking(false).unwrap();
        patient(&client);
        let mut bytes = [0; 2];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ax");
    }

    drop(child.stdin.take());
    let exhausted: u64 = said("exhausted ").parse().unwrap();
    assert!(exhausted > 0, "the limit was met");
    // Twenty tries a second for each thread; a busy loop makes a million.
    assert!(exhausted < 20 * 4 * DEADLINE.as_secs(), "{exhausted} tries");
    assert!(child.wait().unwrap().success());
}

/// The child: serves `endpoint` with room for some ten connections until its input ends.
fn serve(endpoint: SocketAddr) {
    let world = World::with(Settings { workers: 2, ..Settings::default() }, service(), &[endpoint]);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let limit = Rlimit { current: Some(open + 20), maximum: Some(open + 20) };
    setrlimit(Resource::Nofile, limit).unwrap();
    println!("serves on {}", world.address);
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    println!("exhausted {}", world.counts().exhausted);
}
