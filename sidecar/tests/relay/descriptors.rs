//! A process without descriptors left: a child of the test, which serves with few.

use std::io::{self, BufRead, BufReader, ErrorKind, Lines, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{ChildStdout, Command, Stdio};
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sidecar::tcp::Settings;

use crate::world::{World, eventually, named, patient, service};

const CHILD: &str = "REMORA_TEST_FEW_DESCRIPTORS";

/// More than are served at once.
const CLIENTS: usize = 60;
/// Descriptors that the child has to serve with: its threads and listeners take some, a connection two.
const FEW: usize = 40;

#[test]
fn without_descriptors_clients_are_refused_and_counted_and_served_once_others_have_ended() {
    if let Ok(endpoint) = std::env::var(CHILD) {
        return serve_with_few(endpoint.parse().unwrap());
    }
    let mut child = Child::start(concat!(
        "descriptors::",
        "without_descriptors_clients_are_refused_and_counted_and_served_once_others_have_ended"
    ));
    let address: SocketAddr = child.said("serves on ").parse().unwrap();

    let clients: Vec<TcpStream> = (0..CLIENTS).map(|_| TcpStream::connect(address).unwrap()).collect();
    let asked: Vec<TcpStream> = clients.into_iter().filter_map(asking).collect();
    let mut served: Vec<TcpStream> = asked.into_iter().filter_map(answered).collect();
    assert!((4..=FEW / 2).contains(&served.len()), "{} were served", served.len());
    for client in &mut served {
        client.write_all(b"y").unwrap();
        client.read_exact(&mut [0; 1]).expect("whoever is served stays so");
    }
    let refused = CLIENTS - served.len();
    drop(served);
    eventually("others are served after that", || {
        let client = TcpStream::connect(address).map_err(|error| error.to_string())?;
        asking(client).and_then(answered).map(drop).ok_or("refused".to_owned())
    });

    child.go_on();
    let counted = child.said("counted ");
    let mut counted = counted.split_whitespace().map(|count| count.parse::<usize>().unwrap());
    assert!(counted.all(|count| count >= refused), "{refused}");
    child.end();
}

#[test]
fn clients_that_cannot_even_be_refused_wait_without_a_busy_loop() {
    if let Ok(endpoint) = std::env::var(CHILD) {
        return serve_with_none(endpoint.parse().unwrap());
    }
    let mut child = Child::start(concat!(
        "descriptors::",
        "clients_that_cannot_even_be_refused_wait_without_a_busy_loop"
    ));
    let address: SocketAddr = child.said("serves on ").parse().unwrap();
    let began = Instant::now();
    let clients: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
    let asked: Vec<TcpStream> = clients.into_iter().filter_map(asking).collect();
    child.said("has none");
    child.go_on();
    let answered = asked.into_iter().filter_map(answered).count();
    assert_eq!(answered, 4);
    let tries: u128 = child.said("tries ").parse().unwrap();
    // Twenty a second for each of two threads, and one for each client at the start; a busy loop makes a million.
    assert!(tries <= began.elapsed().as_millis() / 25 + 8, "{tries} tries in {:?}", began.elapsed());
    child.end();
}

/// This test binary once more, to run one of its tests as the child.
struct Child(std::process::Child, Lines<BufReader<ChildStdout>>);

impl Child {
    fn start(test: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", test])
            .env(CHILD, named(b'a').to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self(child, output)
    }

    /// The rest of the next line with these words in it.
    fn said(&mut self, what: &str) -> String {
        let line = self.1.find_map(|line| Some(line.unwrap().split_once(what)?.1.to_owned()));
        line.unwrap_or_else(|| panic!("the child did not say {what:?}"))
    }

    fn go_on(&mut self) {
        drop(self.0.stdin.take());
    }

    fn end(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

/// In the child: waits until it is told to go on.
fn until_told() {
    io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
}

/// The client, once it has sent its byte; not if it was reset before. A write that meets the reset is the only one
/// that is told of it: a read after that finds an ordinary end.
fn asking(mut client: TcpStream) -> Option<TcpStream> {
    match client.write_all(b"x") {
        Ok(()) => Some(client),
        Err(error) => {
            assert!(is_reset(&error), "{error}");
            None
        }
    }
}

/// The client, if it is served; not if it is reset.
fn answered(mut client: TcpStream) -> Option<TcpStream> {
    patient(&client);
    let mut bytes = [0; 2];
    match client.read_exact(&mut bytes) {
        Ok(()) => {
            assert_eq!(&bytes, b"ax");
            Some(client)
        }
        Err(error) => {
            assert!(is_reset(&error), "{error}");
            None
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The child: serves `endpoint` with room for a few connections, and descriptors beyond them that are others'.
fn serve_with_few(endpoint: SocketAddr) {
    let descriptors_end = (open_descriptors() + FEW) as i32;
    let settings = Settings { workers: 2, descriptors_end, ..Settings::default() };
    let world = World::with(settings, service(), &[endpoint]);
    println!("serves on {}", world.address);
    until_told();
    println!("counted {} {}", world.counts().limited, world.counts().exhausted);
}

/// The child: has not one descriptor left until it is told to go on.
fn serve_with_none(endpoint: SocketAddr) {
    let world = World::with(Settings { workers: 2, ..Settings::default() }, service(), &[endpoint]);
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
    println!("serves on {}", world.address);
    let tries = || world.counts().exhausted;
    eventually("it has tried a few times", || if tries() > 4 { Ok(()) } else { Err(tries().to_string()) });
    println!("has none");
    until_told();
    println!("tries {}", tries());
    setrlimit(Resource::Nofile, before).unwrap();
    // The clients are served until this process ends.
    eventually("all are served", || {
        let counts = world.counts();
        if counts.opened == 4 && counts.active() == 0 { Ok(()) } else { Err(format!("{counts:?}")) }
    });
}
