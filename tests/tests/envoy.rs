//! The filter in a real Envoy with two workers, configured by the files of `envoy/` and fed by the real program. Each
//! test of a file runs in the newest Envoy and in the oldest that the files are for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::time::Instant;

use tests::envoy::{self, Envoy, Version, replaced};
use tests::feeder::{Feeder, Service};
use tests::greeter::greeter;
use tests::http::{Answer, Client, Server};
use tests::load::connect;
use tests::world::Test;
use tests::{Program, SOON, World, wait_until};

fn main() -> ExitCode {
    let mut tests = tests::in_both_envoys![
        requests_on_one_connection_spread_over_all_endpoints,
        a_refused_endpoint_is_tried_no_more_and_another_one_answers,
        where_nobody_serves_the_answer_is_503_or_the_fallback,
        a_client_stays_with_its_endpoint,
        a_client_can_neither_choose_its_endpoint_nor_do_endpoints_see_how_it_was_chosen,
        changes_take_effect_and_a_feed_that_dies_leaves_the_table,
        an_answer_may_take_longer_than_envoys_own_timeout,
        a_wrong_configuration_and_a_missing_service_are_named_in_the_log,
        the_same_client_meets_the_same_endpoint_through_the_sidecar_and_through_envoy,
        connections_spread_and_those_nobody_can_serve_are_closed,
        a_connection_to_no_known_service_goes_the_ordinary_way,
        a_dead_endpoint_costs_one_connection_and_is_put_aside,
        connections_that_are_redirected_reach_endpoints_and_others_pass,
        three_thousand_connections_at_once_are_served,
    ];
    tests.push(Test {
        name: "the_module_is_small_and_takes_no_data",
        run: |world| Box::pin(the_module_is_small_and_takes_no_data(world)),
    });
    envoy::main(tests)
}

const HTTP: &str = "127.0.0.1:8080";
const TCP: &str = "127.0.0.1:8081";

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

/// Servers at addresses of their own, all with the same port.
async fn servers(count: u8) -> Vec<Server> {
    let mut servers = Vec::new();
    for number in 1..=count {
        servers.push(Server::start(&format!("127.0.1.{number}:9000")).await);
    }
    servers
}

fn web(servers: &[Server]) -> Service {
    Service::new("web", "10.96.0.10", servers.iter().map(|server| server.address))
}

/// Nobody listens there.
fn dead() -> SocketAddr {
    at("127.0.1.250:9000")
}

/// As many requests on one connection; how often each endpoint answered.
async fn spread(client: &mut Client, authority: &str, requests: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..requests {
        let answer = client.get(authority, "/", &[]).await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        *answers.entry(answer.who().to_owned()).or_default() += 1;
    }
    answers
}

/// Asks until the answer is as wished: each worker of Envoy has a table of its own.
async fn settles(what: &str, is_it: impl Fn(&Answer) -> bool) {
    wait_until(SOON, what, async || {
        let mut last = None;
        // New connections go to whichever worker takes them.
        for _ in 0..16 {
            let mut client = Client::one(at(HTTP)).await?;
            let answer = client.get("web.shop", "/", &[]).await?;
            if !is_it(&answer) {
                return Err(format!("{answer:?}"));
            }
            last = Some(answer);
        }
        last.map(drop).ok_or_else(String::new)
    })
    .await;
}

async fn http(world: &World, version: Version) -> Envoy {
    Envoy::ready(world, version, &envoy::configuration("http.yaml")).await
}

async fn requests_on_one_connection_spread_over_all_endpoints(world: World, version: Version) {
    let servers = servers(5).await;
    let _feeder = Feeder::ready(&world, &[web(&servers)], &[]).await;
    let envoy = http(&world, version).await;
    settles("every worker has the table", |answer| answer.status == 200).await;
    let mut one = Client::one(at(HTTP)).await.expect("HTTP/1.1");
    let mut two = Client::two(at(HTTP)).await.expect("HTTP/2");
    for authority in
        ["web.shop", "web.shop.svc", "web.shop.svc.cluster.local:80", "10.96.0.10", "10.96.0.10:80"]
    {
        for client in [&mut one, &mut two] {
            let answers = spread(client, authority, 50).await;
            assert_eq!(answers.values().collect::<Vec<_>>(), [&10; 5], "{authority}: {answers:?}");
        }
    }
    envoy.wait_number("remora_requests_opened_total", |requests| requests >= 500).await;
    envoy.wait_number("remora_services", |services| services == 1).await;
    let age = envoy.number("wasmcustom.remora_table_age_seconds").await.expect("a number");
    assert!(age < 15, "the table is {age} s old");
    let opened = envoy.number("wasmcustom.remora_requests_opened_total").await.expect("a number");
    envoy.wait_number("remora_requests_closed_total", |closed| closed == opened).await;
}

async fn a_refused_endpoint_is_tried_no_more_and_another_one_answers(world: World, version: Version) {
    let servers = servers(2).await;
    let mut service = web(&servers);
    service.endpoints.push(dead());
    let _feeder = Feeder::ready(&world, &[service], &[]).await;
    let envoy = http(&world, version).await;
    settles("every worker has the table", |answer| answer.status == 200).await;
    let mut client = Client::one(at(HTTP)).await.expect("a connection");
    let answers = spread(&mut client, "web.shop", 300).await;
    assert_eq!(answers.len(), 2, "{answers:?}");
    let retries = envoy.wait_number("remora_retries_total", |retries| retries > 0).await;
    assert!(retries < 30, "{retries} of 300 requests and more met the dead endpoint");
    envoy.wait_log("endpoint put aside service=shop/web").await;
}

async fn where_nobody_serves_the_answer_is_503_or_the_fallback(world: World, version: Version) {
    let servers = servers(1).await;
    let services = [web(&servers), Service::new("empty", "10.96.0.11", [])];
    let _feeder = Feeder::ready(&world, &services, &[]).await;
    let envoy = http(&world, version).await;
    settles("every worker has the table", |answer| answer.status == 200).await;
    let mut client = Client::one(at(HTTP)).await.expect("a connection");
    let answer = client.get("empty.shop", "/", &[]).await.expect("an answer");
    assert_eq!((answer.status, &*answer.body), (503, "remora: no endpoint of the Service can serve\n"));
    for unknown in ["other.shop", "www.example.com", "10.96.0.99", "web.shop:81"] {
        // Also when the client sends the header that the other route asks for.
        for more in [&[][..], &[("x-remora-endpoint-1", "127.0.1.1:9000")]] {
            let answer = client.get(unknown, "/", more).await.expect("an answer");
            assert_eq!((answer.status, &*answer.body), (503, "no such Service\n"), "{unknown}");
        }
    }
    drop(envoy);
    let strict = replaced(&envoy::configuration("http.yaml"), r#", "fallback": true"#, "");
    let _envoy = Envoy::ready(&world, version, &strict).await;
    settles("every worker has the table", |answer| answer.status == 200).await;
    let mut client = Client::one(at(HTTP)).await.expect("a connection");
    let answer = client.get("other.shop", "/", &[]).await.expect("an answer");
    let words = "remora: the request is for no Service that is known here\n";
    assert_eq!((answer.status, &*answer.body), (503, words));
}

async fn a_client_stays_with_its_endpoint(world: World, version: Version) {
    let servers = servers(5).await;
    let service = Service { sticky: true, ..web(&servers) };
    let _feeder = Feeder::ready(&world, &[service], &[]).await;
    // What one worker knows of a client the other does not, so that a client is with one endpoint per worker.
    let _envoy = http(&world, version).await;
    settles("every worker has the table", |answer| answer.status == 200).await;
    let mut met = BTreeSet::new();
    for number in 1..=20 {
        let from = at(&format!("127.0.2.{number}:0"));
        let mut client = Client::one_from(from, at(HTTP)).await.expect("a connection");
        // Each request takes a turn of the round over five endpoints: a multiple of five would bring the next client to the
        // same one.
        let answers = spread(&mut client, "web.shop", 7).await;
        assert_eq!(answers.len(), 1, "{answers:?}");
        met.extend(answers.into_keys());
    }
    assert!(met.len() > 1, "{met:?}");
    // Whom its headers name does not matter.
    let mut client = Client::one(at(HTTP)).await.expect("a connection");
    let mut met = BTreeSet::new();
    for number in 1..=30 {
        let named = format!("10.9.8.{number}");
        let answer = client.get("web.shop", "/", &[("x-forwarded-for", &named)]).await.expect("an answer");
        met.insert(answer.who().to_owned());
    }
    assert_eq!(met.len(), 1, "{met:?}");
}

async fn a_client_can_neither_choose_its_endpoint_nor_do_endpoints_see_how_it_was_chosen(
    world: World,
    version: Version,
) {
    let servers = servers(2).await;
    let hidden = Server::start("127.0.1.99:9000").await;
    let _feeder =
        Feeder::ready(&world, &[Service::new("web", "10.96.0.10", [servers[0].address, dead()])], &[]).await;
    let envoy = http(&world, version).await;
    settles("every worker has the table", |answer| answer.status == 200).await;
    let mut client = Client::one(at(HTTP)).await.expect("a connection");
    let steering: Vec<_> = [
        "x-remora-endpoint-1",
        "x-remora-endpoint-2",
        "x-remora-endpoint-3",
        "X-Remora-Endpoint-1",
        "x-envoy-original-dst-host",
        "x-envoy-upstream-alt-stat-name",
    ]
    .map(|name| (name, "127.0.1.99:9000"))
    .into();
    for _ in 0..100 {
        let answer = client.get("web.shop", "/", &steering).await.expect("an answer");
        assert_eq!((answer.status, answer.who()), (200, "127.0.1.1:9000"), "{answer:?}");
        assert!(!answer.body.contains("x-remora"), "{answer:?}");
    }
    assert_eq!(hidden.requests(), 0);
    envoy.wait_number("remora_retries_total", |retries| retries > 0).await;
}

async fn changes_take_effect_and_a_feed_that_dies_leaves_the_table(world: World, version: Version) {
    let servers = servers(3).await;
    let mut feeder = Feeder::ready(&world, &[web(&servers[..1])], &[]).await;
    let envoy = http(&world, version).await;
    settles("the first endpoint serves", |answer| answer.who() == "127.0.1.1:9000").await;
    feeder.change(&[web(&servers[1..2])]);
    settles("the second serves alone", |answer| answer.who() == "127.0.1.2:9000").await;
    feeder.kill();
    envoy.wait_number("remora_source_errors_total", |errors| errors >= 2).await;
    let mut client = Client::one(at(HTTP)).await.expect("a connection");
    assert_eq!(spread(&mut client, "web.shop", 100).await.len(), 1, "the old table serves on");
    feeder.change(&[web(&servers[2..])]);
    feeder.restart(&world).await;
    settles("the third serves once the feed is back", |answer| answer.who() == "127.0.1.3:9000").await;
    envoy.wait_log("the stream of the feed is lost").await;
}

async fn an_answer_may_take_longer_than_envoys_own_timeout(world: World, version: Version) {
    let servers = servers(1).await;
    let _feeder = Feeder::ready(&world, &[web(&servers)], &[]).await;
    let _envoy = http(&world, version).await;
    settles("every worker has the table", |answer| answer.status == 200).await;
    let mut client = Client::one(at(HTTP)).await.expect("a connection");
    let answer = client.get("web.shop", "/slow/20000", &[]).await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
}

async fn a_wrong_configuration_and_a_missing_service_are_named_in_the_log(world: World, version: Version) {
    let servers = servers(1).await;
    let feeder = Feeder::ready(&world, &[web(&servers)], &[]).await;
    let right = envoy::configuration("http.yaml");
    for (wrong, words) in [
        (r#""fallbck": true"#, "unknown field fallbck"),
        (r#""fallback": "remora""#, "the field fallback of the configuration is wrong"),
        (r#""namespaces": ["shop", 7]"#, "the field namespaces of the configuration is wrong"),
        (r#""service": "web""#, "the field service of the configuration is wrong"),
    ] {
        let envoy = Envoy::start(&world, version, &replaced(&right, r#""fallback": true"#, wrong));
        // A plugin of Envoy's own configuration that is wrong ends it; it must have said why.
        envoy.program.wait(SOON).await;
        let log = envoy.program.output();
        assert!(log.contains(words), "{wrong}: {log}");
    }
    let missing = replaced(&right, r#""fallback": true"#, r#""service": "shop/later:80""#);
    let envoy = Envoy::ready(&world, version, &missing).await;
    envoy.wait_log("there is no Service shop/later with a port 80").await;
    feeder.change(&[web(&servers), Service::new("later", "10.96.0.12", [servers[0].address])]);
    envoy.wait_log("the Service shop/later has its port 80 now").await;
    settles("the Service serves", |answer| answer.status == 200).await;
}

async fn the_same_client_meets_the_same_endpoint_through_the_sidecar_and_through_envoy(
    world: World,
    version: Version,
) {
    let servers = servers(7).await;
    let service = Service { balance: "maglev", ..web(&servers) };
    let _feeder = Feeder::ready(&world, &[service], &["--listen", "127.0.0.1:8090=shop/web:80"]).await;
    let _envoy = http(&world, version).await;
    settles("every worker has the table", |answer| answer.status == 200).await;
    let mut met = BTreeSet::new();
    for number in 1..=100 {
        let from = at(&format!("127.0.3.{number}:0"));
        let mut answers = Vec::new();
        for to in [HTTP, "127.0.0.1:8090"] {
            let mut client = Client::one_from(from, at(to)).await.expect("a connection");
            answers.push(client.get("web.shop", "/", &[]).await.expect("an answer").who().to_owned());
        }
        assert_eq!(answers[0], answers[1], "{from}");
        met.insert(answers.remove(0));
    }
    assert_eq!(met.len(), 7, "{met:?}");
}

/// Servers that speak first, as a database does: TCP, and whose name is their number.
async fn greeters(world: &World, count: u8) -> (Vec<Program>, Vec<SocketAddr>) {
    let addresses: Vec<_> = (1..=count).map(|number| at(&format!("127.0.1.{number}:9001"))).collect();
    let mut programs = Vec::new();
    for (number, address) in addresses.iter().enumerate() {
        programs.push(greeter(world, &format!("web-{number}"), *address).await);
    }
    (programs, addresses)
}

async fn tcp(world: &World, version: Version, name: &str) -> Envoy {
    Envoy::ready(world, version, &envoy::configuration(name)).await
}

/// So many connections, one after the other: who answered how often, and how many were closed without an answer.
async fn dial(to: SocketAddr, connections: usize) -> (BTreeMap<String, usize>, usize) {
    let (mut answers, mut failed) = (BTreeMap::new(), 0);
    for _ in 0..connections {
        match connect(to).await {
            Ok(name) => *answers.entry(name).or_default() += 1,
            Err(_) => failed += 1,
        }
    }
    (answers, failed)
}

/// Dials until every connection of a few is answered by one of so many.
async fn served(to: SocketAddr, by: usize) {
    wait_until(SOON, "both workers have the table", async || match dial(to, 24).await {
        (answers, 0) if answers.len() == by && answers.keys().all(|name| name.starts_with("web")) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

async fn connections_spread_and_those_nobody_can_serve_are_closed(world: World, version: Version) {
    let (_programs, addresses) = greeters(&world, 3).await;
    let feeder = Feeder::ready(&world, &[Service::new("web", "10.96.0.10", addresses)], &[]).await;
    let envoy = tcp(&world, version, "tcp.yaml").await;
    served(at(TCP), 3).await;
    let (answers, failed) = dial(at(TCP), 60).await;
    assert_eq!(failed, 0);
    assert!(answers.len() == 3 && answers.values().all(|count| *count >= 18), "{answers:?}");
    let opened = envoy.wait_number("remora_connections_opened_total", |opened| opened >= 60).await;
    envoy.wait_number("remora_connections_closed_total", |closed| closed == opened).await;
    feeder.change(&[Service::new("web", "10.96.0.10", [])]);
    wait_until(SOON, "nobody serves", async || match dial(at(TCP), 12).await {
        (answers, 12) if answers.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    envoy.wait_number("remora_connections_unserved_total", |unserved| unserved >= 12).await;
}

async fn a_connection_to_no_known_service_goes_the_ordinary_way(world: World, version: Version) {
    let (_programs, addresses) = greeters(&world, 2).await;
    add_address("10.96.0.10");
    let _ordinary = greeter(&world, "ordinary", at("10.96.0.10:80")).await;
    let _feeder = Feeder::ready(&world, &[Service::new("other", "10.96.0.13", addresses.clone())], &[]).await;
    let envoy = tcp(&world, version, "tcp.yaml").await;
    wait_until(SOON, "the Service's own address serves", async || match dial(at(TCP), 12).await {
        (answers, 0) if answers.len() == 1 && answers.contains_key("ordinary") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    envoy.wait_number("remora_connections_passed_total", |passed| passed >= 12).await;
    _feeder.change(&[Service::new("web", "10.96.0.10", addresses)]);
    served(at(TCP), 2).await;
}

async fn a_dead_endpoint_costs_one_connection_and_is_put_aside(world: World, version: Version) {
    let (mut programs, addresses) = greeters(&world, 3).await;
    let _feeder = Feeder::ready(&world, &[Service::new("web", "10.96.0.10", addresses.clone())], &[]).await;
    let envoy = tcp(&world, version, "tcp.yaml").await;
    served(at(TCP), 3).await;
    programs.remove(0).kill();
    let killed = Instant::now();
    let (answers, failed) = dial(at(TCP), 60).await;
    assert_eq!(answers.len(), 2, "{answers:?}");
    // Each of two workers learns it by itself, and its trials after 1 s, 2 s, 4 s may fail again.
    let trials = 1 + (killed.elapsed().as_secs() + 1).ilog2() as usize;
    assert!((1..=2 * trials).contains(&failed), "{failed} connections failed");
    envoy.wait_number("remora_connect_failures_total", |failures| failures == failed as u64).await;
    envoy.wait_log(&format!("endpoint={}", addresses[0])).await;
    programs.push(greeter(&world, "web-again", addresses[0]).await);
    served(at(TCP), 3).await;
}

async fn connections_that_are_redirected_reach_endpoints_and_others_pass(world: World, version: Version) {
    let (_programs, addresses) = greeters(&world, 3).await;
    for ip in ["10.96.0.10", "10.96.0.20"] {
        add_address(ip);
    }
    let _others = [
        greeter(&world, "ordinary", at("10.96.0.20:80")).await,
        greeter(&world, "same", at("10.96.0.10:81")).await,
    ];
    let _feeder = Feeder::ready(&world, &[Service::new("web", "10.96.0.10", addresses)], &[]).await;
    let _envoy = tcp(&world, version, "original-destination.yaml").await;
    let text = envoy::configuration("original-destination.yaml");
    let rules: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("#   nft ")).collect();
    assert_eq!(rules.len(), 3, "the file says how to redirect");
    for rule in rules {
        run("nft", &[&rule.replace('\'', "")]);
    }
    served(at("10.96.0.10:80"), 3).await;
    for (address, name) in [("10.96.0.20:80", "ordinary"), ("10.96.0.10:81", "same")] {
        let (answers, failed) = dial(at(address), 10).await;
        assert_eq!((answers.get(name), failed), (Some(&10), 0), "{answers:?}");
    }
    run("nft", &["delete table ip remora-envoy"]);
}

async fn three_thousand_connections_at_once_are_served(world: World, version: Version) {
    const CONNECTIONS: usize = 3_000;
    let (_programs, addresses) = greeters(&world, 3).await;
    let _feeder = Feeder::ready(&world, &[Service::new("web", "10.96.0.10", addresses)], &[]).await;
    let envoy = tcp(&world, version, "tcp.yaml").await;
    served(at(TCP), 3).await;
    let opened = envoy.number("wasmcustom.remora_connections_opened_total").await.expect("a number");
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        open.push(tokio::net::TcpStream::connect(at(TCP)).await.expect("a connection"));
    }
    let mut names = BTreeMap::new();
    for stream in &mut open {
        let mut name = String::new();
        let mut reader = tokio::io::BufReader::new(stream);
        tokio::io::AsyncBufReadExt::read_line(&mut reader, &mut name).await.expect("a greeting");
        *names.entry(name.trim().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(names.values().sum::<usize>(), CONNECTIONS);
    assert!(names.len() == 3 && names.values().all(|count| *count > CONNECTIONS / 4), "{names:?}");
    envoy.wait_number("remora_connections_opened_total", |now| now >= opened + CONNECTIONS as u64).await;
    drop(open);
    let all = envoy.number("wasmcustom.remora_connections_opened_total").await.expect("a number");
    envoy.wait_number("remora_connections_closed_total", |closed| closed == all).await;
}

async fn the_module_is_small_and_takes_no_data(_: World) {
    let module = std::fs::read(envoy::filter()).expect("the module");
    let size = module.len();
    assert!(size <= 250 << 10, "{size} bytes");
    let has = |name: &str| module.windows(name.len()).any(|window| window == name.as_bytes());
    assert!(has("proxy_on_new_connection") && has("proxy_on_request_headers"));
    // Envoy would call these with every chunk of every connection.
    for callback in ["downstream_data", "upstream_data", "request_body", "response_body", "response_headers"]
    {
        assert!(!has(&format!("proxy_on_{callback}")), "{callback}");
    }
}

fn add_address(ip: &str) {
    run("ip", &["addr", "replace", &format!("{ip}/32"), "dev", "lo"]);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("iproute2 and nftables");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
