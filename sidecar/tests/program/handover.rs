//! A process takes over from another, and no client notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::process::Signal;

use crate::folder::Folder;
use crate::server::Server;
use crate::sidecar::{Client, Sidecar, run, text, until};

const IPS: [&str; 2] = ["127.0.0.2", "127.0.0.3"];

/// Clients that come one after the other, and none of which may fail. Owning one means that they come.
struct Clients {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Clients {
    fn of(address: SocketAddr) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = |_| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    Client::connect(address)?.finish();
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        let threads = (0..4).map(thread).collect();
        Self { stop, served, threads }
    }

    /// Waits for another hundred of them.
    fn hundred_more(&self) {
        let goal = self.served.load(Ordering::Relaxed) + 100;
        until("a hundred more clients are served", || match self.served.load(Ordering::Relaxed) {
            served if served >= goal => Ok(()),
            served => Err(format!("{served} of {goal}")),
        });
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap().unwrap();
        }
    }
}

/// A folder with a Service in it, its servers, and a path for the hand-over.
fn shop() -> (Folder, Vec<Server>, String) {
    let (servers, port) = Server::all_on(&IPS);
    let folder = Folder::new();
    folder.put_web(&IPS, port);
    let path = folder.path("handover.sock");
    (folder, servers, path)
}

/// The command line of a successor of `earlier`.
fn successor(earlier: &Sidecar, source: &str, path: &str, more: &[&str]) -> Vec<String> {
    let listen = format!("{}=shop/web:80", earlier.listens[0]);
    let (health, admin) = (earlier.health.to_string(), earlier.admin.to_string());
    let arguments =
        ["--source", source, "--listen", &listen, "--handover", path, "--health", &health, "--admin", &admin];
    arguments.iter().chain(more).map(|&word| word.to_owned()).collect()
}

fn start(arguments: &[String]) -> Sidecar {
    Sidecar::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn successors_take_over_and_no_connection_fails() {
    let (folder, _servers, path) = shop();
    let mut first = Sidecar::start_web(&folder.source(), &["--handover", &path, "--threads", "2"]);
    let mut old = first.connect();
    let clients = Clients::of(first.listens[0]);
    clients.hundred_more();

    // More threads than there are sockets, then fewer: clients wait in each of them.
    let mut second = start(&successor(&first, &folder.source(), &path, &["--threads", "4"]));
    first.wait_for_log("draining");
    clients.hundred_more();
    let mut third = start(&successor(&second, &folder.source(), &path, &["--threads", "1"]));
    assert_eq!(second.ended().code(), Some(0));
    clients.hundred_more();
    assert_eq!((third.listens[0], third.health, third.admin), (first.listens[0], first.health, first.admin));
    assert_eq!(
        third.health("/readyz").0,
        200,
        "the first process drains, and it is not the one that answers"
    );

    old.echo("an open connection stays where it is").unwrap();
    old.finish();
    assert_eq!(first.ended().code(), Some(0));
    clients.end();
    third.signal(Signal::TERM);
    assert_eq!(third.ended().code(), Some(0));
    assert!(!std::path::Path::new(&path).exists(), "without a successor the path goes with the process");
}

#[test]
fn a_successor_without_a_table_leaves_everything_to_the_earlier_process() {
    let (folder, _servers, path) = shop();
    let first = Sidecar::start_web(&folder.source(), &["--handover", &path]);
    let clients = Clients::of(first.listens[0]);
    let arguments = successor(&first, "kube", &path, &[]);
    let mut hopeless = crate::sidecar::remora(&[]);
    hopeless.arg("sidecar").args(&arguments).env("KUBECONFIG", folder.hopeless_kubeconfig());
    let mut hopeless =
        hopeless.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(hopeless.stderr.take().unwrap()));
    let waits = lines.map_while(Result::ok).find(|line| line.contains("an earlier process serves until"));
    assert!(waits.is_some(), "the successor has the sockets, and waits");
    clients.hundred_more();
    hopeless.kill().unwrap();
    hopeless.wait().unwrap();
    first.wait_for_log("a successor ended before it served; this process goes on");
    clients.hundred_more();
    let _second = start(&successor(&first, &folder.source(), &path, &[]));
    clients.hundred_more();
    clients.end();
}

#[test]
fn a_successor_takes_the_feed_over_and_its_readers_never_fall_behind() {
    for place in ["127.0.0.1:0", "unix:"] {
        let (folder, servers, path) = shop();
        let port = servers[0].port();
        let place = if place == "unix:" { format!("unix:{}", folder.path("feed")) } else { place.to_owned() };
        let mut first = Sidecar::start_web(
            &folder.source(),
            &["--handover", &path, "--feed", &place, "--drain-timeout", "60s"],
        );
        let feed = first.feed.clone().unwrap();
        let fed = Sidecar::start_web(&format!("feed:{feed}"), &[]);
        fed.wait_for_endpoints(&IPS);
        let clients = Clients::of(fed.listens[0]);
        let ages = Ages::of(fed.health);
        // While it drains, who read before reads on.
        let mut open = first.connect();
        let same = feed.strip_prefix("http://").unwrap_or(&feed);
        let mut second = start(&successor(&first, &folder.source(), &path, &["--feed", same]));
        assert_eq!(second.feed.as_ref(), Some(&feed));
        first.wait_for_log("draining");
        folder.put_web(&IPS[..1], port);
        fed.wait_for_endpoints(&IPS[..1]);
        open.echo("an open connection stays where it is").unwrap();
        open.finish();
        assert_eq!(first.ended().code(), Some(0));
        let readers = || crate::exposition::read(&second.health("/metrics").1)["remora_feed_readers"];
        until("the successor feeds", || if readers() == 1.0 { Ok(()) } else { Err(fed.log()) });
        folder.put_web(&IPS, port);
        fed.wait_for_endpoints(&IPS);
        clients.hundred_more();
        clients.end();
        let oldest = ages.end();
        // The age grows between two signs of life, and by no more.
        let most = 2.0 * watcher::feed::HEARTBEAT.as_secs_f64();
        assert!(oldest < most, "{place}: the table was {oldest} s old");
        second.signal(Signal::TERM);
        assert_eq!(second.ended().code(), Some(0));
    }
}

/// Who watches how old a table gets. Owning one means that it is watched.
struct Ages {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<f64>,
}

impl Ages {
    fn of(health: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut oldest = 0.0_f64;
            while !stopped.load(Ordering::Relaxed) {
                let (_, page) = crate::sidecar::get(health, "/metrics").unwrap();
                oldest = oldest.max(crate::exposition::read(&page)["remora_table_age_seconds"]);
            }
            oldest
        });
        Self { stop, thread }
    }

    /// The oldest that was seen, in seconds.
    fn end(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn a_path_that_is_somebody_elses_is_left_alone() {
    let folder = Folder::new();
    let path = folder.path("precious");
    std::fs::write(&path, "words").unwrap();
    let source = folder.source();
    let output =
        run(&["sidecar", "--source", &source, "--listen", "127.0.0.1:0=shop/web:80", "--handover", &path]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    let expected =
        format!("remora: cannot use --handover {path}: it is there and no socket; choose a path of its own");
    assert_eq!(error.lines().last(), Some(&*expected), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "words");
}

#[test]
fn a_socket_that_nobody_listens_on_any_more_is_replaced() {
    let (folder, _servers, path) = shop();
    let mut first = Sidecar::start_web(&folder.source(), &["--handover", &path]);
    first.signal(Signal::KILL);
    first.ended();
    assert!(std::path::Path::new(&path).exists());
    let second = Sidecar::start_web(&folder.source(), &["--handover", &path]);
    second.connect().finish();
    let _third = start(&successor(&second, &folder.source(), &path, &[]));
}
