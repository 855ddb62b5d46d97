//! One Remora feeds others: what they know is what it knows, whatever happens to it on the way.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use selection::{Here, ServiceName};
use serde_json::Value;
use watcher::feed::{self, Mirror, Splitter, Subscription};

use crate::exposition;
use crate::folder::Folder;
use crate::server::Server;
use crate::sidecar::{PATIENCE, Sidecar, get, run, text, until};

const IPS: [&str; 3] = ["127.0.0.2", "127.0.0.3", "127.0.0.4"];

fn demo() -> String {
    format!("manifests:{}", Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/manifests").display())
}

/// A hub for `source`.
fn hub(source: &str, feed: &str) -> Sidecar {
    Sidecar::hub(&["--source", source, "--feed", feed])
}

fn source(hub: &Sidecar) -> String {
    format!("feed:{}", hub.feed.as_ref().unwrap())
}

/// Where the hub serves, if it does on an address.
fn address(hub: &Sidecar) -> SocketAddr {
    hub.feed.as_ref().unwrap().strip_prefix("http://").unwrap().parse().unwrap()
}

/// Reads a streamed feed, frame by frame, until `enough`.
fn mirror(address: SocketAddr, query: &str, mut enough: impl FnMut(&[u8], &Mirror) -> bool) -> Mirror {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // HTTP/1.0 has no chunks: what follows the head is the feed.
    write!(stream, "GET /v1/feed{query} HTTP/1.0\r\n\r\n").unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.0 200"), "{}", text(&head));
    let (mut splitter, mut mirror) = (Splitter::default(), Mirror::new(Here::default()));
    let mut buffer = vec![0; 64 << 10];
    loop {
        while let Some(frame) = splitter.frame().unwrap() {
            mirror.frame(frame).unwrap();
            if enough(frame, &mirror) {
                return mirror;
            }
        }
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the feed ended");
        splitter.push(&buffer[..read]);
    }
}

fn synced(_: &[u8], mirror: &Mirror) -> bool {
    mirror.is_synced()
}

/// The Services of a table.
fn services(mirror: &Mirror) -> Vec<String> {
    let mut names: Vec<_> = mirror.table().all().map(|port| port.id.service.to_string()).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn who_is_fed_knows_what_the_feeder_knows_over_tcp_and_at_a_path_also_at_second_hand() {
    let folder = Folder::new();
    let first = hub(&demo(), "127.0.0.1:0");
    let second = hub(&source(&first), &format!("unix:{}", folder.path("feed")));
    let (first_source, second_source) = (source(&first), source(&second));
    for place in [["a-node", "a"], ["node-1", "b"], ["", ""]] {
        for verb in
            [&["endpoints", "-o", "json"][..], &["endpoints"], &["explain", "10.96.0.10:80", "-o", "json"]]
        {
            let answer = |source: &str| {
                let place = ["--source", source, "--node", place[0], "--zone", place[1]];
                let output = run(&[verb, &place].concat());
                assert!(output.status.success(), "{}", text(&output.stderr));
                (text(&output.stdout), text(&output.stderr))
            };
            let expected = answer(&demo());
            assert!(expected.0.len() > 500, "{}", expected.0);
            assert_eq!(answer(&first_source), expected, "{verb:?} {place:?}");
            assert_eq!(answer(&second_source), expected, "{verb:?} {place:?}");
        }
    }
}

#[test]
fn a_sidecar_that_is_fed_serves_and_follows_every_change() {
    let (_servers, port) = Server::all_on(&IPS);
    let folder = Folder::new();
    folder.put_web(&IPS[..1], port);
    let feeder = Sidecar::start_web(&folder.source(), &["--feed", "127.0.0.1:0"]);
    let fed = Sidecar::start_web(&source(&feeder), &[]);
    assert_eq!(fed.connect().server, IPS[0]);
    for ips in [&IPS[1..], &IPS[..2], &IPS] {
        folder.put_web(ips, port);
        fed.wait_for_endpoints(ips);
    }
    let samples = exposition::read(&feeder.health("/metrics").1);
    assert_eq!((samples["remora_feed_readers"], samples["remora_feed_snapshots_total"]), (1.0, 1.0));
    assert!(samples["remora_feed_frames_total"] >= 4.0 && samples["remora_feed_bytes_total"] > 200.0);
    assert_eq!(samples["remora_feed_resets_total{reason=\"fell-behind\"}"], 0.0);
    let samples = exposition::read(&fed.health("/metrics").1);
    assert!(samples["remora_table_age_seconds"] < 15.0);
    assert_eq!(samples["remora_source_errors_total{reason=\"malformed\"}"], 0.0);
}

#[test]
fn a_server_that_is_gone_takes_nothing_away_and_one_that_starts_again_is_found() {
    let (_servers, port) = Server::all_on(&IPS);
    let folder = Folder::new();
    folder.put_web(&IPS[..1], port);
    let place = format!("unix:{}", folder.path("feed"));
    let mut first = hub(&folder.source(), &place);
    let fed = Sidecar::start_web(&format!("feed:{place}"), &[]);
    fed.wait_for_endpoints(&IPS[..1]);
    first.signal(rustix::process::Signal::KILL);
    first.ended();
    let age = || {
        let samples = exposition::read(&fed.health("/metrics").1);
        (samples["remora_table_age_seconds"], samples["remora_source_errors_total{reason=\"unreachable\"}"])
    };
    let before = age().0;
    until("it tries on", || if age().1 >= 3.0 { Ok(()) } else { Err(format!("{:?}", age())) });
    assert!(age().0 > before, "the age shows");
    assert_eq!(fed.connect().server, IPS[0], "the old table serves on");
    assert_eq!(fed.health("/readyz").0, 200);
    folder.put_web(&IPS[1..], port);
    let _second = hub(&folder.source(), &place);
    fed.wait_for_endpoints(&IPS[1..]);
    until("no stream is broken", || {
        match exposition::read(&fed.health("/metrics").1)["remora_source_streams_broken"] {
            0.0 => Ok(()),
            broken => Err(broken.to_string()),
        }
    });
}

/// What a server of `feed` sends on one connection, whatever it is asked: the head of an answer and what follows.
fn raw(body: &[u8]) -> Vec<u8> {
    let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: remora-feed\r\n\r\n";
    [&head[..], body].concat()
}

/// `frames` as a stream has them.
fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.iter().flat_map(|frame| feed::framed(frame)).collect()
}

#[test]
fn bytes_that_are_harmed_on_their_way_change_nothing_and_the_next_stream_heals() {
    let (_servers, port) = Server::all_on(&IPS);
    let folder = Folder::new();
    folder.put_web(&IPS[..1], port);
    let hub = hub(&folder.source(), "127.0.0.1:0");
    let at = address(&hub);
    let mut old = Vec::new();
    mirror(at, "", |frame, mirror| {
        old.push(frame.to_vec());
        mirror.is_synced()
    });
    folder.put_web(&IPS[1..], port);
    let mut new = Vec::new();
    mirror(at, "", |frame, mirror| {
        new.push(frame.to_vec());
        mirror.table().all().any(|port| port.endpoints.len() == 2)
    });
    // Were any of these taken, the endpoints would change.
    let sound = stream(&new);
    let mut flipped = sound.clone();
    let last = flipped.len() - 9;
    flipped[last] ^= 4;
    let cut = &sound[..sound.len() - 1];
    let too_large = [&[0, 0x7f, 0x7f, 0x7f, 0x7f], &sound[5..]].concat();
    let gap = [old.clone(), feed::Encoder::changes(77).complete(78, None)].concat();
    let harmed = [
        // Sound, and then the server ends.
        raw(&stream(&old)),
        raw(&flipped),
        raw(cut),
        raw(&too_large),
        raw(&stream(&gap)),
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(),
    ];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let source = format!("feed:http://{}", listener.local_addr().unwrap());
    let (heal_now, heal) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        for answer in harmed {
            let (mut client, _) = listener.accept().unwrap();
            assert!(client.read(&mut [0; 4096]).unwrap() > 0, "it asks");
            client.write_all(&answer).unwrap();
        }
        heal.recv().unwrap();
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(at).unwrap();
            for (mut from, mut to) in
                [(client.try_clone(), server.try_clone()), (server.try_clone(), client.try_clone())]
                    .map(|(from, to)| (from.unwrap(), to.unwrap()))
            {
                std::thread::spawn(move || std::io::copy(&mut from, &mut to).is_ok());
            }
        }
    });
    let fed = Sidecar::start_web(&source, &[]);
    fed.wait_for_endpoints(&IPS[..1]);
    let errors = |reason: &str| {
        let samples = exposition::read(&fed.health("/metrics").1);
        samples[&format!("remora_source_errors_total{{reason=\"{reason}\"}}")]
    };
    until("all harm is done", || {
        assert_eq!(fed.connect().server, IPS[0], "the old table serves on");
        let seen = ["malformed", "expired", "failed", "unreachable"].map(errors);
        if seen[0] >= 2.0 && seen[1] >= 1.0 && seen[2] >= 2.0 && seen[3] >= 2.0 {
            return Ok(());
        }
        Err(format!("{seen:?}\n{}", fed.log()))
    });
    heal_now.send(()).unwrap();
    fed.wait_for_endpoints(&IPS[1..]);
}

#[test]
fn what_an_older_server_tells_in_a_body_is_read() {
    let (_servers, port) = Server::all_on(&IPS);
    let folder = Folder::new();
    folder.put_web(&IPS, port);
    let hub = hub(&folder.source(), "127.0.0.1:0");
    let mut body = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    mirror(address(&hub), "", |frame, mirror| {
        body.extend([&feed::prefix(frame)[..], frame].concat());
        mirror.is_synced()
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let source = format!("feed:http://{}", listener.local_addr().unwrap());
    let (asked, asks) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut request = vec![0; 4096];
        let length = client.read(&mut request).unwrap();
        client.write_all(&body).unwrap();
        asked.send((text(&request[..length]), client)).unwrap();
    });
    let fed = Sidecar::start_web(&source, &[]);
    fed.wait_for_endpoints(&IPS);
    let (request, _open) = asks.recv().unwrap();
    assert!(request.starts_with("GET /v1/feed?service=shop/web HTTP/1.1\r\n"), "{request}");
}

#[test]
fn a_reader_gets_what_it_asks_for_by_namespace_and_by_service() {
    let folder = Folder::new();
    folder.put_web(&IPS[..1], 80);
    folder.put("others.yaml", OTHERS);
    let hub = hub(&folder.source(), "127.0.0.1:0");
    let at = address(&hub);
    let asked = |query: &str| services(&mirror(at, query, synced));
    assert_eq!(asked(""), ["bank/api", "shop/web"]);
    assert_eq!(asked("?namespace=shop"), ["shop/web"]);
    assert_eq!(asked("?service=bank/api"), ["bank/api"]);
    assert_eq!(asked("?namespace=shop&service=bank%2Fapi&service=bank/nobody"), ["bank/api", "shop/web"]);
    assert_eq!(asked("?namespace=nobody"), [""; 0]);
    assert_eq!(get(at, "/v1/feed?name=web").unwrap().0, 400);
    assert_eq!(get(at, "/").unwrap().0, 404);
    let foreign = "GET /v1/feed HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert_eq!(crate::sidecar::exchange(at, foreign).unwrap().0, 403);
}

#[test]
fn a_grpc_stream_brings_the_frames_and_takes_other_subscriptions() {
    let (_servers, port) = Server::all_on(&IPS);
    let folder = Folder::new();
    folder.put_web(&IPS[..1], port);
    folder.put("others.yaml", OTHERS);
    let hub = hub(&folder.source(), "127.0.0.1:0");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let web = Subscription::services([ServiceName::new("shop", "web")]);
        let mut call = Call::open(address(&hub), "/remora.Feed/Watch", &web.encode()).await;
        assert_eq!(services(call.until(Mirror::is_synced).await), ["shop/web"]);
        call.say(&Subscription::namespaces(["bank".into()]).encode()).await;
        let is_bank = |mirror: &Mirror| !services(mirror).contains(&"shop/web".to_owned());
        assert_eq!(services(call.until(is_bank).await), ["bank/api"]);
        call.say(&Subscription::All.encode()).await;
        call.until(|mirror| services(mirror).len() == 2).await;
        folder.put_web(&IPS, port);
        let has_all = |mirror: &Mirror| mirror.table().all().any(|port| port.endpoints.len() == IPS.len());
        call.until(has_all).await;
        // What is no subscription ends the stream by gRPC's own means.
        call.say(b"\x12\xff").await;
        assert_eq!(call.end().await, "3");
        let mut unknown = Call::open(address(&hub), "/remora.Feed/Other", &web.encode()).await;
        assert_eq!(unknown.end().await, "12");
    });
    until("all is counted", || {
        let samples = exposition::read(&hub.health("/metrics").1);
        let of = |name| samples[name];
        match ["remora_feed_resets_total{reason=\"malformed\"}", "remora_feed_snapshots_total"].map(of) {
            [1.0, 3.0] => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

const OTHERS: &str = "{apiVersion: v1, kind: Service, metadata: {name: api, namespace: bank}, spec: {clusterIP: \
    10.96.0.20, clusterIPs: [10.96.0.20], ports: [{port: 80}]}}";

/// A gRPC call, made by hand of HTTP/2.
struct Call {
    said: http_body_util::channel::Sender<bytes::Bytes>,
    response: hyper::Response<hyper::body::Incoming>,
    bytes: Vec<u8>,
    mirror: Mirror,
}

impl Call {
    async fn open(address: SocketAddr, path: &str, message: &[u8]) -> Self {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
        tokio::spawn(connection);
        let (said, body) = http_body_util::channel::Channel::new(1);
        let request = hyper::Request::post(format!("http://feed{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let mut call = Self { said, response, bytes: Vec::new(), mirror: Mirror::new(Here::default()) };
        call.say(message).await;
        call
    }

    async fn say(&mut self, message: &[u8]) {
        // A call that was refused listens no more.
        let _ = self.said.send_data(feed::framed(message).into()).await;
    }

    /// Reads on until `enough`.
    async fn until(&mut self, enough: impl Fn(&Mirror) -> bool) -> &Mirror {
        use http_body_util::BodyExt;
        while !enough(&self.mirror) {
            let part = tokio::time::timeout(PATIENCE, self.response.body_mut().frame()).await;
            let part = part.expect("in time").expect("the stream goes on").expect("it is sound");
            self.bytes.extend_from_slice(part.data_ref().expect("data"));
            while let Some((&[0, a, b, c, d], rest)) = self.bytes.split_first_chunk::<5>() {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                let Some(frame) = rest.get(..length) else { break };
                self.mirror.frame(frame).unwrap();
                self.bytes.drain(..5 + length);
            }
        }
        &self.mirror
    }

    /// Reads to the end: the status.
    async fn end(&mut self) -> String {
        use http_body_util::BodyExt;
        let status =
            |headers: &hyper::HeaderMap| headers.get("grpc-status").map(|s| s.to_str().unwrap().to_owned());
        if let Some(status) = status(self.response.headers()) {
            return status;
        }
        loop {
            let part = tokio::time::timeout(PATIENCE, self.response.body_mut().frame()).await;
            let part = part.expect("in time").expect("there are trailers").expect("it is sound");
            if let Some(trailers) = part.trailers_ref() {
                return status(trailers).expect("a status");
            }
        }
    }
}

#[test]
fn a_server_that_says_nothing_is_given_up_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeping = Arc::clone(&kept);
    let address = silent.local_addr().unwrap();
    std::thread::spawn(move || {
        silent.incoming().flatten().for_each(|stream| keeping.lock().unwrap().push(stream))
    });
    let fed = Sidecar::start_web(&format!("feed:http://{address}"), &[]);
    let why = until("the silence is told", || match fed.health("/readyz") {
        (503, body) if body.contains("silent") => Ok(body),
        other => Err(format!("{other:?}")),
    });
    assert!(why.starts_with("waiting for the first table"), "{why}");
    until("it tries on", || if kept.lock().unwrap().len() > 1 { Ok(()) } else { Err(fed.log()) });
}

#[test]
fn a_server_that_stops_in_mid_stream_is_given_up_and_found_again() {
    let (_servers, port) = Server::all_on(&IPS);
    let folder = Folder::new();
    folder.put_web(&IPS[..1], port);
    let hub = hub(&folder.source(), "127.0.0.1:0");
    let fed = Sidecar::start_web(&source(&hub), &[]);
    fed.wait_for_endpoints(&IPS[..1]);
    let of = |name: &str| exposition::read(&fed.health("/metrics").1)[name];
    // Its connections stay, and take what they are sent, as those of a machine that hangs.
    hub.signal(rustix::process::Signal::STOP);
    folder.put_web(&IPS[1..], port);
    let silent = feed::SILENCE.as_secs_f64();
    until("the silence is told", || {
        assert_eq!(fed.connect().server, IPS[0], "the old table serves on");
        match of("remora_source_errors_total{reason=\"silent\"}") {
            errors if errors >= 1.0 => Ok(()),
            _ => Err(format!("{} s", of("remora_table_age_seconds"))),
        }
    });
    let age = of("remora_table_age_seconds");
    assert!(age >= silent, "the table is {age} s old after {silent} s of silence");
    until("the stream is broken", || match of("remora_source_streams_broken") {
        0.0 => Err("none is".to_owned()),
        _ => Ok(()),
    });
    assert_eq!(fed.health("/readyz").0, 200);
    hub.signal(rustix::process::Signal::CONT);
    fed.wait_for_endpoints(&IPS[1..]);
    until("all is well", || match ["remora_table_age_seconds", "remora_source_streams_broken"].map(of) {
        [age, 0.0] if age < silent => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn who_connects_and_says_nothing_keeps_no_reader_out() {
    let hub = hub(&demo(), "127.0.0.1:0");
    let at = address(&hub);
    let of = |name: &str| exposition::read(&hub.health("/metrics").1)[name];
    let early = TcpStream::connect(at).unwrap();
    write!(&early, "GET /v1/feed HTTP/1.0\r\n\r\n").unwrap();
    until("a reader is there", || match of("remora_feed_readers") {
        1.0 => Ok(()),
        readers => Err(format!("{readers} readers")),
    });
    // As many as are let in at once, and some that wait.
    let strangers: Vec<_> = (0..300).map(|_| TcpStream::connect(at).unwrap()).collect();
    mirror(at, "", synced);
    until("strangers are let go", || match of("remora_feed_resets_total{reason=\"stranger\"}") {
        let_go if let_go >= 1.0 => Ok(()),
        let_go => Err(format!("{let_go} were")),
    });
    assert!(of("remora_feed_readers") >= 1.0, "who is known stays");
    drop(strangers);
    // Those who are left are no hindrance.
    mirror(at, "", synced);
}

#[test]
fn nobody_but_this_machine_is_served_or_believed() {
    let refused = |arguments: &[&str]| {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        text(&output.stderr)
    };
    assert_eq!(
        refused(&["hub", "--feed", "0.0.0.0:64105"]),
        "remora: --feed 0.0.0.0:64105 could be reached by other machines, and nobody who reads proves who they are; \
         use a loopback address such as 127.0.0.1:64105, or unix:PATH, or remora hub with --certificate\n"
    );
    assert!(
        refused(&["sidecar", "--feed", "hub"]).contains("neither a loopback address and a port nor a path")
    );
    let far = refused(&["endpoints", "--source", "feed:http://10.0.0.1:64105"]);
    assert!(far.contains("10.0.0.1:64105 is not on this machine"), "{far}");
    let unknown =
        refused(&["sidecar", "--source", "feed:https://hub:64105", "--listen", "127.0.0.1:0=shop/web:80"]);
    assert!(unknown.contains("name the hub's CA with --feed-ca"), "{unknown}");
    let folder = Folder::new();
    let place = format!("unix:{}", folder.path("feed"));
    let _first = hub(&demo(), &place);
    let output = run(&["hub", "--source", &demo(), "--feed", &place]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("a process that lives serves there"), "{}", text(&output.stderr));
}

#[test]
fn a_hub_answers_as_a_sidecar_does_and_ends_when_asked() {
    let mut hub = hub(&demo(), "127.0.0.1:0");
    until("it is ready", || match hub.health("/readyz") {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let asked = text(&hub.command(&["endpoints", "-o", "json"]).stdout);
    let looked = text(&run(&["endpoints", "--source", &demo(), "-o", "json"]).stdout);
    let names = |text: &str| -> Vec<Value> {
        let rows: Vec<Value> = serde_json::from_str(text).unwrap();
        rows.into_iter().map(|row| row["service"].clone()).collect()
    };
    assert_eq!(names(&asked), names(&looked));
    hub.signal(rustix::process::Signal::TERM);
    assert!(hub.ended().success());
}
