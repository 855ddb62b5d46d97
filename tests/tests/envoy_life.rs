//! What an Envoy with the filter lives through, under load: its module comes over the network, endpoints are rolled and
//! killed, the feed's server is killed. Two workers, the newest Envoy and the oldest that `envoy/` is for.

use std::process::ExitCode;

use tests::envoy::{self, Envoy, Version, replaced};
use tests::feeder::{FEED, Feeder, Service};
use tests::gateway::{Gateway, HTTP, Requests, TCP, at};
use tests::http::{Client, Server};
use tests::{Load, SOON, World, ask, wait_until};

fn main() -> ExitCode {
    envoy::main(tests::in_both_envoys![
        the_module_may_be_fetched_from_the_hub_and_no_other_one_is_taken,
        nothing_fails_while_endpoints_are_rolled,
        no_request_fails_while_endpoints_are_killed_and_few_connections_do,
        nothing_fails_while_the_server_of_the_feed_is_killed_and_started_again,
    ])
}

/// Connections a second.
const RATE: u32 = 100;
/// Clients of requests.
const CLIENTS: usize = 8;
/// How long half of the requests take, in milliseconds.
const SLOW: u64 = 20;

/// Waits until so many connections and requests more have ended.
async fn wait_more(load: &Load, requests: &Requests, more: u64) {
    let (connections, asked) = (load.done() + more, requests.done() + more);
    wait_until(SOON, &format!("{more} more connections and requests"), async || {
        match (load.done(), requests.done()) {
            (done, answered) if done >= connections && answered >= asked => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn the_module_may_be_fetched_from_the_hub_and_no_other_one_is_taken(world: World, version: Version) {
    let server = Server::start("127.0.1.1:9000").await;
    let module = envoy::filter();
    let folder = module.parent().expect("it is in a folder").to_str().expect("a path in UTF-8");
    let service = Service::new("web", "10.96.0.10", [server.address]);
    let _hub = Feeder::hub(&world, &[service], &["--assets", folder]).await;
    let (status, sum) = ask::get(at(FEED), "/filter.wasm.sha256").await.expect("the hub answers");
    assert_eq!((status, sum.trim().len()), (200, 64), "{sum}");
    // What people copy is what is run.
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../envoy/README.md"));
    let readme = readme.expect("envoy/README.md");
    let remote = readme.lines().find(|line| line.starts_with("code: {remote: ")).expect("it tells how");
    let local = format!("code: {{local: {{filename: {}}}}}", module.display());
    let text = replaced(&envoy::configuration("http.yaml"), &local, remote);
    let envoy = Envoy::ready(&world, version, &replaced(&text, "SHA256", sum.trim())).await;
    let asks = async || Client::one(at(HTTP)).await?.get("web.shop", "/", &[]).await;
    wait_until(SOON, "the module that was fetched serves", async || match asks().await {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}; {}", envoy.program.state())),
    })
    .await;
    drop(envoy);
    let envoy = Envoy::ready(&world, version, &replaced(&text, "SHA256", &"0".repeat(64))).await;
    envoy.wait_log("failed to load").await;
    let before = server.requests();
    for _ in 0..8 {
        assert!(!asks().await.is_ok_and(|answer| answer.status == 200), "{}", envoy.program.state());
    }
    assert_eq!(server.requests(), before);
}

async fn nothing_fails_while_endpoints_are_rolled(world: World, version: Version) {
    const ROUNDS: usize = 8;
    const ENDPOINTS: usize = 5;
    // Three of them at a time.
    let used = |round: usize| [0, 1, 2].map(|n| (round + n) % ENDPOINTS);
    let mut gateway = Gateway::open(&world, version, ENDPOINTS, &used(0)).await;
    let (load, requests) = (Load::start(at(TCP), RATE), Requests::start(CLIENTS, SLOW));
    for round in 1..=ROUNDS {
        gateway.change(&used(round));
        gateway.wait_used(&used(round)).await;
        // It left both Services, so that nothing new comes to it; what it has, it may finish.
        let left = (round - 1) % ENDPOINTS;
        load.wait_through().await;
        requests.wait_through().await;
        gateway.end(left).await;
        wait_more(&load, &requests, 20).await;
        gateway.start(&world, left).await;
    }
    let (report, answers) = (load.stop(), requests.stop().await);
    report.assert_none_failed();
    answers.assert_none_failed();
    assert_eq!(
        (report.answered.len(), answers.answered.len()),
        (ENDPOINTS, ENDPOINTS),
        "{report:?} {answers:?}"
    );
    eprintln!(
        "{ROUNDS} rounds, {} connections, {} requests",
        report.total(),
        answers.answered.values().sum::<u64>()
    );
}

async fn no_request_fails_while_endpoints_are_killed_and_few_connections_do(world: World, version: Version) {
    const ENDPOINTS: usize = 5;
    // More than Envoy would try again at a time of its own accord.
    const ON_THEIR_WAY: u64 = 5;
    let all: Vec<_> = (0..ENDPOINTS).collect();
    let mut gateway = Gateway::open(&world, version, ENDPOINTS, &all).await;
    let (load, requests) = (Load::start(at(TCP), RATE), Requests::start(4 * CLIENTS, SLOW));
    wait_more(&load, &requests, 100).await;
    let (mut unanswered, mut open) = (0, 0);
    for number in [1, 3] {
        let met = gateway.kill(number, ON_THEIR_WAY, &load).await;
        (unanswered, open) = (unanswered + met.0, open + met.1);
        wait_more(&load, &requests, 300).await;
    }
    for number in [1, 3] {
        gateway.start(&world, number).await;
    }
    let (report, answers) = (load.stop(), requests.stop().await);
    let failed_connects =
        gateway.envoy.number("cluster.remora-tcp.upstream_cx_connect_fail").await.expect("a number");
    gateway.wait_used(&all).await;
    assert!(unanswered > 0, "none was on its way to who was killed: this proves nothing");
    answers.assert_none_failed();
    // A connection fails if its endpoint died while it was open, or if it was dialled before the death was known: by
    // each worker once, and once more with each trial, after 1 s, 2 s, 4 s.
    let failed = report.failures.len() as u64;
    let trials = 2 + u64::from((report.lasted.as_secs() + 1).ilog2());
    eprintln!(
        "of {} connections {failed} failed: {failed_connects} that were dialled to the dead, and of the {open} that \
         were open; of {} requests, {unanswered} on their way to the dead, none",
        report.total(),
        answers.answered.values().sum::<u64>(),
    );
    assert!((1..=2 * 2 * trials).contains(&failed_connects), "{failed_connects} connects failed");
    assert!((failed_connects..=failed_connects + open).contains(&failed), "{:#?}", report.failures);
}

async fn nothing_fails_while_the_server_of_the_feed_is_killed_and_started_again(
    world: World,
    version: Version,
) {
    let mut gateway = Gateway::open(&world, version, 4, &[0, 1]).await;
    let (load, requests) = (Load::start(at(TCP), RATE), Requests::start(CLIENTS, SLOW));
    for (round, used) in [[2, 3], [0, 1], [1, 2]].iter().enumerate() {
        wait_more(&load, &requests, 50).await;
        gateway.feeder.kill();
        // The streams of both workers break, and more attempts fail.
        let broken = 4 * (round as u64 + 1);
        gateway.envoy.wait_number("remora_source_errors_total", |errors| errors >= broken).await;
        wait_more(&load, &requests, 50).await;
        gateway.change(used);
        gateway.feeder.restart(&world).await;
        gateway.wait_used(used).await;
    }
    load.stop().assert_none_failed();
    requests.stop().await.assert_none_failed();
}
