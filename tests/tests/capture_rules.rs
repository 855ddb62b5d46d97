//! `remora capture`: the kernel's rules, tried with real connections in both families. What is captured, what is not,
//! what lives on; and that nothing is left behind. The sidecar's part is played by a listener of the test's own, since
//! the rules promise the same whoever listens.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use tests::captor::{DROP, PASS, RANGES, REFUSE, SERVE, SERVICE, SIDECAR, SIGNALS, service};
use tests::inside::{Client, ROOT, connect, send, within};
use tests::wait::Calm;
use tests::{Cluster, Host, SOON, Stand, World, remora, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

tests::tests! {
    up_twice_changes_nothing_and_down_leaves_everything_as_it_was,
    other_arguments_replace_the_ranges_and_keep_what_the_sets_hold,
    new_connections_are_captured_as_long_as_the_heartbeat_lasts,
    connections_live_on_while_the_heartbeat_lapses_and_returns,
    a_half_closed_connection_that_passed_lives_on,
    running_connections_survive_up,
    what_is_not_served_is_left_to_the_node,
    a_refused_port_resets_a_dropped_one_is_silent_and_both_come_back,
    nothing_is_refused_without_a_living_sidecar,
    only_the_sidecars_user_gives_signals_and_none_leaves,
    what_the_sidecar_has_sent_arrives_after_it_has_closed,
    a_connection_to_a_dead_sidecar_reaches_the_node_within_five_seconds,
    strict_settings_of_the_kernel_are_no_obstacle,
    what_leaves_is_as_large_as_the_way_to_the_node_allows,
    another_routing_rule_that_would_keep_answers_out_leaves_ipv4_alone,
    skipped_ports_and_subnets_are_untouched,
    udp_icmp_and_other_addresses_are_untouched,
    a_family_without_addresses_is_left_alone_and_that_is_said,
    what_an_interrupted_or_older_up_left_is_replaced,
    the_probe_says_what_is_in_the_way_and_leaves_nothing_behind,
    without_permission_the_next_step_is_told,
    the_ranges_come_from_the_api_server_or_from_what_it_refuses,
}

/// The node, in both families.
const NODE: [&str; 2] = ["node", "node"];

/// The captor, in both families, as it names where the client wanted to go.
fn captor(port: u16) -> [String; 2] {
    service(port).map(|to| format!("captor {to}"))
}

/// All that the kernel has of rules and routes in a host, handles included; without what fades.
fn state(host: &Host) -> String {
    let ask: [&[&str]; 5] = [
        &["nft", "-s", "-a", "list", "ruleset"],
        &["ip", "rule"],
        &["ip", "-6", "rule"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
    ];
    ask.map(|words| {
        let output = host.command(words[0]).args(&words[1..]).output().expect("nft and ip");
        assert!(output.status.success(), "{words:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        // The kernel's own address on a link is there once it has found out that nobody else has it.
        text.lines()
            .filter(|line| !line.contains("fe80::"))
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    })
    .concat()
}

/// Adds an nftables table of somebody else.
fn foreign(host: &Host, rules: &str) {
    let added = host.command("nft").arg(rules).output().expect("nft");
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
}

async fn up_twice_changes_nothing_and_down_leaves_everything_as_it_was(world: World) {
    let stand = Stand::new(&world).await;
    foreign(
        &stand.pod,
        "table ip other {\nchain c {\ntype filter hook output priority 0;\ntcp dport 1 drop\n}\n}",
    );
    let before = state(&stand.pod);
    let told = stand.capture(&["down"]).await.expect("nothing to undo is no failure");
    assert!(told.contains("nothing was captured"), "{told}");
    let arguments = ["--skip-ports", "9443,100-200", "--skip-subnets", "10.96.128.0/20"];
    stand.up(&arguments).await;
    let after = state(&stand.pod);
    assert!(
        after.contains("table inet remora") && after.matches("fwmark 0/0xfff00000").count() == 2,
        "{after}"
    );
    stand.up(&arguments).await;
    assert_eq!(state(&stand.pod), after);
    stand.capture(&["down"]).await.expect("it is undone");
    assert_eq!(state(&stand.pod), before);
    stand.capture(&["down"]).await.expect("once more is no failure");
    assert_eq!(state(&stand.pod), before);
}

async fn other_arguments_replace_the_ranges_and_keep_what_the_sets_hold(world: World) {
    let stand = Stand::new(&world).await;
    stand.up(&[]).await;
    let _captor = stand.captor();
    let passed = stand.clients(80).await;
    let _heartbeat = stand.heartbeat().await;
    let captured = stand.clients(80).await;
    stand.signal(REFUSE, 82);
    let more = format!("{RANGES},10.97.0.0/16");
    stand.capture(&["up", "--services", &more, "--skip-ports", "81"]).await.expect("it is replaced");
    let v4 = stand.show(0).await;
    assert_eq!(v4["services"], json!(["10.96.0.0/15"]));
    assert_eq!((&v4["refused"], &v4["passed"], &v4["alive"]), (&json!(1), &json!(1), &json!(true)), "{v4}");
    assert_eq!(stand.who(81).await, NODE, "skipped by the new arguments");
    for mut client in passed.into_iter().chain(captured) {
        client.echo().await.unwrap_or_else(|error| panic!("{}: {error}", client.who));
    }
    let only_v4 = ["up", "--services", "10.96.0.0/16"];
    stand.capture(&only_v4).await.expect("it is replaced");
    let v6 = stand.show(1).await;
    assert_eq!((&v6["services"], &v6["routed"]), (&json!([]), &json!(false)), "{v6}");
    assert_eq!(stand.who(80).await, [&captor(80)[0], "node"]);
}

async fn new_connections_are_captured_as_long_as_the_heartbeat_lasts(world: World) {
    let stand = Stand::new(&world).await;
    stand.up(&[]).await;
    let _captor = stand.captor();
    assert_eq!(stand.who(80).await, NODE);
    let heartbeat = stand.heartbeat().await;
    assert_eq!(stand.who(80).await, captor(80));
    stand.lapse(heartbeat).await;
    assert_eq!(stand.who(80).await, NODE);
    let tracked = stand.pod.command("cat").arg("/proc/sys/net/netfilter/nf_conntrack_count").output();
    let tracked = tracked.expect("cat").stdout;
    assert!(tracked.is_empty() || tracked == b"0\n", "no connection is tracked");
}

async fn connections_live_on_while_the_heartbeat_lapses_and_returns(world: World) {
    let stand = Stand::new(&world).await;
    stand.up(&[]).await;
    let _captor = stand.captor();
    let mut open = Vec::new();
    for _ in 0..2 {
        for client in stand.clients(80).await {
            assert_eq!(client.who, "node");
            open.push(client);
        }
        all_echo(&mut open).await;
        let heartbeat = stand.heartbeat().await;
        all_echo(&mut open).await;
        for client in stand.clients(80).await {
            assert!(client.who.starts_with("captor"), "{}", client.who);
            open.push(client);
        }
        all_echo(&mut open).await;
        stand.lapse(heartbeat).await;
        all_echo(&mut open).await;
    }
    let _heartbeat = stand.heartbeat().await;
    for client in open {
        let who = client.who.clone();
        client.end().await.unwrap_or_else(|error| panic!("{who}: {error}"));
    }
    stand.wait_shown("closing", 2).await;
    assert_eq!(stand.show(0).await["passed"], 2);
}

async fn all_echo(clients: &mut [Client]) {
    for (number, client) in clients.iter_mut().enumerate() {
        client.echo().await.unwrap_or_else(|error| panic!("connection {number} to {}: {error}", client.who));
    }
}

async fn a_half_closed_connection_that_passed_lives_on(world: World) {
    /// More than both kernels hold, so that the client must acknowledge after its end.
    const BYTES: usize = 32 << 20;
    let stand = Stand::new(&world).await;
    stand.up(&[]).await;
    let _captor = stand.captor();
    for (family, client) in stand.clients(80).await.into_iter().enumerate() {
        let heartbeat = stand.heartbeat().await;
        let (mut read, mut write) = client.into_stream().into_split();
        let sent = tokio::spawn(async move {
            write.write_all(&vec![b'x'; BYTES]).await?;
            write.shutdown().await?;
            // Half closed; the rest of the way back is long.
            io::Result::Ok(write)
        });
        let mut back = vec![0; BYTES / 2];
        read.read_exact(&mut back).await.expect("the first half");
        let mut rest = Vec::new();
        let reads = tokio::time::timeout(SOON, read.read_to_end(&mut rest));
        reads.await.expect("in time").expect("the other half");
        assert_eq!(rest.len(), BYTES / 2);
        sent.await.expect("no panic").expect("all is sent");
        let shown = stand.show(family).await;
        assert_eq!((&shown["passed"], &shown["closing"]), (&json!(1), &json!(1)), "{shown}");
        let [passed, closing] = ["passed", "closing"].map(|set| lasting(&stand.pod, set, family));
        assert!(passed <= 600 && closing <= 600, "for ten minutes, not for a day: {passed} and {closing} s");
        stand.lapse(heartbeat).await;
    }
}

/// For how many seconds the elements of a set will last at most.
fn lasting(host: &Host, set: &str, family: usize) -> u64 {
    let set = format!("{set}{}", [4, 6][family]);
    let listed =
        host.command("nft").args(["-j", "list", "set", "inet", "remora", &set]).output().expect("nft");
    let listed: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    let elements = listed["nftables"][1]["set"]["elem"].as_array().expect("elements").iter();
    elements.map(|element| element["elem"]["expires"].as_u64().expect("a time")).max().expect("an element")
}

async fn running_connections_survive_up(world: World) {
    let stand = Stand::new(&world).await;
    let mut running = stand.clients(80).await;
    let ending = stand.clients(80).await;
    stand.up(&[]).await;
    let shown = [stand.show(0).await, stand.show(1).await];
    assert!(shown.iter().all(|family| family["passed"] == 2), "{shown:?}");
    let _captor = stand.captor();
    let _heartbeat = stand.heartbeat().await;
    all_echo(&mut running).await;
    for client in ending {
        client.end().await.expect("an end in good order");
    }
    assert_eq!(stand.who(80).await, captor(80), "new ones are captured");
    // Those are captured, and are to stay so.
    let mut captured = stand.clients(80).await;
    stand.up(&["--skip-ports", "7"]).await;
    all_echo(&mut running).await;
    all_echo(&mut captured).await;
}

async fn what_is_not_served_is_left_to_the_node(world: World) {
    let stand = Stand::new(&world).await;
    stand.up(&[]).await;
    let _captor = stand.captor();
    let _heartbeat = stand.heartbeat().await;
    stand.wait_shown("served", 2).await;
    for to in service(82) {
        let error =
            connect(&stand.pod, ROOT, to).await.expect_err("the node does not serve this port either");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
    }
    stand.signal(SERVE, 82);
    assert_eq!(stand.who(82).await, captor(82));
    let mut captured = stand.clients(80).await;
    stand.signal(PASS, 80);
    let mut passed = stand.clients(80).await;
    assert!(passed.iter().all(|client| client.who == "node"));
    stand.signal(SERVE, 80);
    assert_eq!(stand.who(80).await, captor(80));
    all_echo(&mut captured).await;
    all_echo(&mut passed).await;
}

async fn a_refused_port_resets_a_dropped_one_is_silent_and_both_come_back(world: World) {
    let stand = Stand::new(&world).await;
    stand.up(&[]).await;
    let _captor = stand.captor();
    let _heartbeat = stand.heartbeat().await;
    let mut before = stand.clients(80).await;
    stand.signal(REFUSE, 80);
    stand.signal(DROP, 81);
    for to in service(80) {
        stand.beat();
        let error = connect(&stand.pod, ROOT, to).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
    }
    for to in service(81) {
        // A SYN is repeated after a second: it was not answered before.
        let patience = Duration::from_millis(1500);
        stand.beat();
        let outcome = tokio::time::timeout(patience, connect(&stand.pod, ROOT, to)).await;
        assert!(outcome.is_err(), "{to}: {outcome:?}");
    }
    stand.signal(SERVE, 82);
    assert_eq!(stand.who(82).await, captor(82), "another port is served");
    all_echo(&mut before).await;
    stand.signal(DROP, 80);
    let shown = stand.show(0).await;
    assert_eq!(
        (&shown["refused"], &shown["dropped"]),
        (&json!(0), &json!(2)),
        "the last word counts: {shown}"
    );
    stand.signal(SERVE, 80);
    stand.signal(SERVE, 81);
    assert_eq!(stand.who(80).await, captor(80));
    assert_eq!(stand.who(81).await, captor(81));
    stand.wait_shown("dropped", 0).await;
}

async fn nothing_is_refused_without_a_living_sidecar(world: World) {
    let stand = Stand::new(&world).await;
    stand.up(&[]).await;
    stand.signal(REFUSE, 80);
    stand.signal(DROP, 81);
    assert_eq!(stand.who(80).await, NODE);
    assert_eq!(stand.who(81).await, NODE);
}

async fn only_the_sidecars_user_gives_signals_and_none_leaves(world: World) {
    let stand = Stand::new(&world).await;
    let heard = SERVICE.map(|ip| {
        let socket = UdpSocket::bind(SocketAddr::new(ip, 80)).expect("a socket at the node");
        socket.set_nonblocking(true).expect("a socket");
        socket
    });
    stand.up(&[]).await;
    for user in [ROOT, SIDECAR + 1] {
        for dscp in SIGNALS {
            for to in service(80) {
                send(&stand.pod, user, to, dscp).expect("an ordinary datagram");
            }
        }
    }
    for (family, socket) in heard.iter().enumerate() {
        let all = 2 * SIGNALS.len();
        for number in 0..all {
            wait_until(SOON, "ordinary datagrams arrive", async || {
                socket.recv(&mut [0; 8]).map_err(|error| format!("{number} of {all}, then {error}"))
            })
            .await;
        }
        let shown = stand.show(family).await;
        let states = ["alive", "served", "refused", "dropped"].map(|field| shown[field].clone());
        assert_eq!(states, [json!(false), json!(0), json!(0), json!(0)]);
    }
    for dscp in SIGNALS {
        stand.signal(dscp, 80);
    }
    for to in service(80) {
        send(&stand.pod, SIDECAR, to, 0).expect("a datagram of the sidecar that is no signal");
    }
    for socket in &heard {
        wait_until(SOON, "it arrives", async || socket.recv(&mut [0; 8]).map_err(|error| error.to_string()))
            .await;
        let error = socket.recv(&mut [0; 8]).expect_err("no signal has arrived before it");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
    assert_eq!(stand.show(1).await["alive"], true);
}

async fn what_the_sidecar_has_sent_arrives_after_it_has_closed(world: World) {
    const BYTES: usize = 4 << 20;
    let stand = Stand::new(&world).await;
    stand.up(&[]).await;
    let _captor = stand.captor();
    let _heartbeat = stand.heartbeat().await;
    for ip in SERVICE {
        let slow = TcpListener::bind(SocketAddr::new(ip, 83)).await.expect("a server at the node");
        let to = slow.local_addr().expect("its address");
        let mut stream = connect(&stand.pod, SIDECAR, to).await.expect("the sidecar reaches the node");
        let (mut server, _) = slow.accept().await.expect("it arrives at the node");
        // Filled until nothing more fits, while nobody reads; then closed with all of that on the way.
        let mut sent = 0;
        while sent < BYTES {
            match stream.try_write(&[0; 4096]) {
                Ok(some) => sent += some,
                Err(_) if sent > 0 => break,
                Err(_) => stream.writable().await.expect("room"),
            }
        }
        let _ = stream.flush().await;
        drop(stream);
        let mut received = Vec::new();
        let reads = tokio::time::timeout(SOON, server.read_to_end(&mut received));
        reads.await.expect("in time").expect("an end in good order");
        assert_eq!(received.len(), sent, "{to}");
    }
}

async fn a_connection_to_a_dead_sidecar_reaches_the_node_within_five_seconds(world: World) {
    let stand = Stand::new(&world).await;
    stand.up(&[]).await;
    // Somebody else's listener in the Pod is no substitute.
    let _other = within(&stand.pod, ROOT, || std::net::TcpListener::bind("[::]:80")).expect("a listener");
    let heartbeat = stand.heartbeat().await;
    drop(heartbeat);
    let calm = Calm::start();
    let (v4, v6) = {
        let [v4, v6] = service(80).map(|to| Client::open(&stand.pod, ROOT, to));
        futures::future::join(v4, v6).await
    };
    for client in [v4, v6] {
        assert_eq!(client.expect("an answer").who, "node");
    }
    let lasted = calm.elapsed();
    assert!(lasted < Duration::from_secs(5), "{lasted:?}");
}

/// Answers of the node come from addresses that are local here to those who are captured; and a connection that stands on
/// a cookie is known to nobody before its first packet with data.
async fn strict_settings_of_the_kernel_are_no_obstacle(world: World) {
    let stand = Stand::new(&world).await;
    let set = "echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter; echo 1 >/proc/sys/net/ipv4/conf/eth0/rp_filter; \
               echo 2 >/proc/sys/net/ipv4/tcp_syncookies";
    let done = stand.pod.command("sh").args(["-ec", set]).status().expect("sh");
    assert!(done.success());
    stand.up(&[]).await;
    let _captor = stand.captor();
    assert_eq!(stand.who(80).await, NODE);
    let heartbeat = stand.heartbeat().await;
    let mut open = stand.clients(80).await;
    assert_eq!(open.iter().map(|client| client.who.clone()).collect::<Vec<_>>(), captor(80));
    stand.lapse(heartbeat).await;
    assert_eq!(stand.who(80).await, NODE);
    all_echo(&mut open).await;
}

/// The node's own way is wider: what the Pod sends and announces is what its own allows. What is captured goes over lo.
async fn what_leaves_is_as_large_as_the_way_to_the_node_allows(world: World) {
    let stand = Stand::new(&world).await;
    let narrow = stand.pod.command("ip").args(["link", "set", "eth0", "mtu", "1400"]).status();
    assert!(narrow.expect("ip, of iproute2").success());
    stand.up(&[]).await;
    let segment = |stream: &TcpStream| socket2::SockRef::from(stream).tcp_mss().expect("its segment size");
    for ip in SERVICE {
        let listener = TcpListener::bind(SocketAddr::new(ip, 83)).await.expect("a server at the node");
        let to = listener.local_addr().expect("its address");
        let client = connect(&stand.pod, ROOT, to).await.unwrap_or_else(|error| panic!("{to}: {error}"));
        let (server, _) = listener.accept().await.expect("it arrives at the node");
        for end in [&client, &server] {
            assert!((1200..=1360).contains(&segment(end)), "{to}: {}", segment(end));
        }
    }
    let _captor = stand.captor();
    let _heartbeat = stand.heartbeat().await;
    for client in stand.clients(80).await {
        assert!(segment(&client.into_stream()) > 16_000);
    }
}

async fn another_routing_rule_that_would_keep_answers_out_leaves_ipv4_alone(world: World) {
    let stand = Stand::new(&world).await;
    let rule = |deed: &str, input: &str| {
        let words = format!("rule {deed} pref 100 {input} ipproto udp dport 53 lookup main");
        let done = stand.pod.command("ip").args(words.split_whitespace()).status().expect("ip, of iproute2");
        assert!(done.success(), "{words}");
    };
    rule("add", "");
    let told = stand.up(&[]).await;
    assert!(told.contains("IPv4 is not captured: a routing rule by protocol or port"), "{told}");
    assert_eq!(stand.show(0).await["services"], json!([]));
    assert_eq!(stand.who(80).await, NODE);
    rule("del", "");
    rule("add", "iif lo");
    stand.up(&[]).await;
    assert_eq!(stand.who(80).await, NODE);
    let _captor = stand.captor();
    let _heartbeat = stand.heartbeat().await;
    assert_eq!(stand.who(80).await, captor(80));
}

async fn skipped_ports_and_subnets_are_untouched(world: World) {
    let stand = Stand::new(&world).await;
    stand.up(&["--skip-ports", "81,9000-9010"]).await;
    let _captor = stand.captor();
    let _heartbeat = stand.heartbeat().await;
    assert_eq!(stand.who(81).await, NODE);
    assert_eq!(stand.who(80).await, captor(80));
    stand.up(&["--skip-subnets", "10.96.0.0/28,fd00:96::10"]).await;
    assert_eq!(stand.who(80).await, NODE);
    assert_eq!(stand.show(0).await["skip_subnets"], json!(["10.96.0.0/28"]));
}

async fn udp_icmp_and_other_addresses_are_untouched(world: World) {
    let stand = Stand::new(&world).await;
    stand.up(&[]).await;
    let _captor = stand.captor();
    let _heartbeat = stand.heartbeat().await;
    for ip in SERVICE {
        let node = UdpSocket::bind(SocketAddr::new(ip, 53)).expect("a socket at the node");
        let client = tests::inside::udp(&stand.pod, ROOT, ip, 0).expect("a socket");
        for socket in [&node, &client] {
            socket.set_read_timeout(Some(SOON)).expect("a patience");
        }
        client.send_to(b"question", (ip, 53)).expect("it is sent");
        let (length, from) = node.recv_from(&mut [0; 64]).expect("UDP arrives at the node");
        assert_eq!(length, 8);
        node.send_to(b"answer", from).expect("it is answered");
        assert_eq!(client.recv_from(&mut [0; 64]).expect("an answer"), (6, SocketAddr::new(ip, 53)));
        ping(&stand.pod, SocketAddr::new(ip, 0)).unwrap_or_else(|error| panic!("ping {ip}: {error}"));
    }
    let other = Host::new(&world, "other");
    let _server = tests::pods::serve(&world, &other, "other", 80).await;
    for ip in other.ips() {
        let client = Client::open(&stand.pod, ROOT, (ip, 80).into()).await.expect("it is reached");
        assert_eq!(client.who, "other");
    }
}

/// An echo request and its answer.
fn ping(host: &Host, to: SocketAddr) -> io::Result<()> {
    let (protocol, request, answer) = match to {
        // The sum of the IPv4 one: of 0x0800 and 0x4242; the kernel does that of IPv6.
        SocketAddr::V4(_) => (Protocol::ICMPV4, [8, 0, 0xb5, 0xbd, 0x42, 0x42, 0, 0], 0),
        SocketAddr::V6(_) => (Protocol::ICMPV6, [128, 0, 0, 0, 0x42, 0x42, 0, 0], 129),
    };
    let socket = within(host, ROOT, move || Socket::new(Domain::for_address(to), Type::RAW, Some(protocol)))?;
    socket.set_read_timeout(Some(SOON))?;
    socket.send_to(&request, &to.into())?;
    let socket = UdpSocket::from(socket);
    let deadline = Instant::now() + SOON;
    while Instant::now() < deadline {
        let mut packet = [0; 128];
        let length = socket.recv(&mut packet)?;
        // IPv4 brings its header along.
        let message = if to.is_ipv4() { &packet[20..length] } else { &packet[..length] };
        if message[0] == answer && message[4..6] == [0x42, 0x42] {
            return Ok(());
        }
    }
    Err(ErrorKind::TimedOut.into())
}

async fn a_family_without_addresses_is_left_alone_and_that_is_said(world: World) {
    let stand = Stand::new(&world).await;
    let unrouted = stand.pod.command("ip").args(["-6", "route", "del", "default"]).status();
    assert!(unrouted.expect("ip, of iproute2").success());
    let told = stand.up(&[]).await;
    assert!(
        told.contains("IPv6 is not captured: this network namespace has no route to fd00:96::/112"),
        "{told}"
    );
    // What is left reaches no further than the link.
    let flushed =
        stand.pod.command("ip").args(["-6", "addr", "flush", "dev", "eth0", "scope", "global"]).status();
    assert!(flushed.expect("ip, of iproute2").success());
    let told = stand.up(&[]).await;
    assert!(told.contains("IPv6 is not captured: this network namespace has no IPv6 address"), "{told}");
    assert!(told.contains("IPv4: capture works"), "{told}");
    assert!(!state(&stand.pod).contains("chain ipv6"));
}

async fn what_an_interrupted_or_older_up_left_is_replaced(world: World) {
    let stand = Stand::new(&world).await;
    let before = state(&stand.pod);
    stand.up(&[]).await;
    foreign(&stand.pod, "add set inet remora arriving4 { type ipv4_addr; flags interval; }");
    let arriving = "{ type filter hook output priority -151; }";
    foreign(&stand.pod, &format!("add chain inet remora arriving {arriving}"));
    foreign(&stand.pod, "add rule inet remora arriving ip daddr @arriving4 drop");
    foreign(&stand.pod, "flush chain inet remora opening4");
    stand.up(&[]).await;
    let after = state(&stand.pod);
    assert!(!after.contains("arriving4") && after.contains("goto leaving4"), "{after}");
    stand.capture(&["down"]).await.expect("it is undone");

    foreign(&stand.pod, "table inet remora {\nset alive {\ntype ipv4_addr\n}\nchain old {\n}\n}");
    stand.up(&[]).await;
    let _captor = stand.captor();
    let _heartbeat = stand.heartbeat().await;
    assert_eq!(stand.who(80).await, captor(80));
    assert!(!state(&stand.pod).contains("chain old"));
    stand.capture(&["down"]).await.expect("it is undone");
    assert_eq!(state(&stand.pod), before);
}

async fn the_probe_says_what_is_in_the_way_and_leaves_nothing_behind(world: World) {
    let stand = Stand::new(&world).await;
    let arguments = ["up", "--services", RANGES];
    let strict = [&arguments[..], &["--strict"]].concat();
    let told = stand.capture(&strict).await.expect("it works");
    assert!(told.contains("IPv4: capture works") && told.contains("IPv6: capture works"), "{told}");
    let captor_ = stand.captor();
    let told = stand.capture(&strict).await.expect("it works beside a sidecar that listens");
    assert!(told.contains("IPv4: capture works") && told.contains("IPv6: capture works"), "{told}");
    drop(captor_);
    let shown: Value =
        serde_json::from_str(&stand.capture(&["show", "-o", "json"]).await.expect("JSON")).expect("JSON");
    for family in shown["families"].as_array().expect("families") {
        let states = ["alive", "passed", "closing"].map(|field| family[field].clone());
        assert_eq!(states, [json!(false), json!(0), json!(0)]);
    }
    assert!(!state(&stand.pod).contains("64101 . "), "no flow of a probe is left");

    // Somebody drops it on its way.
    foreign(
        &stand.pod,
        "table inet other {\nchain c {\ntype filter hook prerouting priority -300;\niif lo tcp dport 64101 drop\n}\n}",
    );
    let told = stand.capture(&arguments).await.expect("told only");
    assert!(told.contains("IPv4: capture does not work here") && told.contains("did not arrive"), "{told}");
    let told = stand.capture(&strict).await.expect_err("strict");
    assert!(told.contains("socketLB.hostNamespaceOnly"), "{told}");
    foreign(&stand.pod, "delete table inet other");

    // Somebody translates it before it comes to us, as eBPF does: it is answered, and not by us.
    foreign(
        &stand.pod,
        "table ip other {\nchain c {\ntype nat hook output priority -160;\n\
         ip daddr 10.96.0.10 tcp dport 443 dnat to 10.96.0.10:80\n}\n}",
    );
    let mut command = stand.pod.command(tests::tools::own("remora", "sidecar"));
    command.args(["capture", "up", "--services", "10.96.0.0/16"]);
    command.env("KUBERNETES_SERVICE_HOST", "10.96.0.10").env("KUBERNETES_SERVICE_PORT", "443");
    let output = command.output().expect("remora");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(told.contains("was answered, but not through these rules"), "{told}");
    assert!(told.contains("bpfConnectTimeLoadBalancing"), "{told}");
}

async fn without_permission_the_next_step_is_told(world: World) {
    let stand = Stand::new(&world).await;
    let remora = tests::tools::own("remora", "sidecar");
    for deed in [&["up", "--services", "10.96.0.0/16"][..], &["down"], &["show"]] {
        let mut command = stand.pod.command("setpriv");
        command.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]).arg(&remora);
        let output = command.arg("capture").args(deed).output().expect("setpriv, of util-linux");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{deed:?}");
        assert!(told.contains("capabilities.add: [NET_ADMIN]") && told.lines().count() == 1, "{told}");
    }
    assert!(!state(&stand.pod).contains("remora"));
}

async fn the_ranges_come_from_the_api_server_or_from_what_it_refuses(world: World) {
    let cluster = Cluster::shared().await;
    let stand = Stand::new(&world).await;
    let rules =
        json!([{"apiGroups": ["networking.k8s.io"], "resources": ["servicecidrs"], "verbs": ["list"]}]);
    let lists = cluster.user_with("capture-lists", rules).await;
    let rules = json!([{"apiGroups": [""], "resources": ["services"], "verbs": ["create"]}]);
    let tries = cluster.user_with("capture-tries", rules).await;
    let nobody = cluster.user("capture-nobody", None);
    let up = async |kubeconfig| remora::run(&stand.pod, &["capture", "up"], Some(kubeconfig)).await;

    let told = up(&nobody).await.expect("the Pod must start");
    assert!(told.contains("nothing is captured") && told.contains("servicecidrs"), "{told}");
    assert!(!state(&stand.pod).contains("remora"));
    for user in [&lists, &tries] {
        let told = wait_until(SOON, "the permission is in force", async || match up(user).await {
            Ok(told) if told.contains("IPv4: 10.96.0.0/16\n") => Ok(told),
            other => Err(format!("{other:?}")),
        })
        .await;
        assert!(told.contains("IPv6: fd00:96::/112\n"), "{told}");
        stand.capture(&["down"]).await.expect("it is undone");
    }
    stand.up(&[]).await;
    let kept = state(&stand.pod);
    let told = up(&nobody).await.expect("the Pod must start");
    assert!(told.contains("capture stays as it is"), "{told}");
    assert_eq!(state(&stand.pod), kept);
}
