//! A captured Pod that a hub feeds knows the Services that it uses, and no others: what becomes of the first connection
//! to one, of Services that are used no more, and of a hub that does not answer.

use std::net::SocketAddr;

use serde_json::json;
use tests::remora::run;
use tests::{Client, Injected, Pod, SOON, Way, World, wait_until};

tests::tests! {
    a_service_is_known_from_its_first_connection_until_it_is_used_no_more,
    an_address_of_nobody_is_asked_for_once,
    nobody_waits_for_a_hub_that_is_gone,
    a_hub_that_stands_still_is_waited_for_once,
}

/// What came of connections to addresses that were not known.
async fn questions(remora: &Injected, outcome: &str) -> u64 {
    let name = format!("remora_demand_questions_total{{outcome=\"{outcome}\"}}");
    remora.metric(&name).await.expect("it is counted")
}

/// A Service with one Pod, which is not used yet: its IPv4 address.
async fn service(client: &Client, name: &str) -> (SocketAddr, Pod) {
    let [address, _] = client.service(name, json!({})).await.port(80);
    (address, client.far(name, name).await)
}

/// Waits until the sidecar knows so many Services.
async fn wait_known(client: &Client, number: u64, why: &str) {
    wait_until(SOON, &format!("{number} Services are known: {why}"), async || {
        match client.remora().metric("remora_services").await? {
            known if known == number => Ok(()),
            known => Err(format!("{known}; {}", client.remora().state())),
        }
    })
    .await;
}

async fn assert_answered(client: &Client, address: SocketAddr, by: &str) {
    let outcome = client.connect(address, 1).await.remove(0);
    assert_eq!(outcome.by(), Ok(by), "{}; {}", client.remora().state(), client.hub().program.state());
}

async fn a_service_is_known_from_its_first_connection_until_it_is_used_no_more(world: World) {
    let mut client = Client::start(world, Way::KubeProxy).await;
    let (web, _web) = service(&client, "web").await;
    let (_, _other) = service(&client, "other").await;
    client.wait_served(&[web], &["web"], "the node has its endpoint").await;
    client.feed(&["--on-demand-idle", "2s"]).await;
    wait_known(&client, 0, "none is used").await;
    let name = format!("{}/web", client.namespace.name);
    let unknown = run(&client.pod.host, &["endpoints", &name], None).await.expect_err("none is used");
    assert!(unknown.contains("connect to it once"), "{unknown}");
    let story = run(&client.pod.host, &["explain", &web.to_string()], None).await.expect("a story");
    assert!(story.contains("a first connection asks the hub"), "{story}");
    for round in 1..=2 {
        let held = client.hold(web, 1).await;
        wait_known(&client, 1, "one is used").await;
        assert_answered(&client, web, "web").await;
        // What is told of it arrives.
        let more = client.near("web", &format!("more-{round}")).await;
        client.wait_served(&[web], &["web", &more.name], "it is followed").await;
        more.delete().await;
        client.wait_served(&[web], &["web"], "it is followed").await;
        assert_eq!(
            client.remora().metric("remora_services").await,
            Ok(1),
            "a connection is open all the while"
        );
        assert_eq!(held.let_go().await, []);
        wait_known(&client, 0, "it is used no more").await;
    }
    assert!(questions(client.remora(), "found").await >= 2, "it was asked for each time");
    let missed = client.remora().metric("remora_source_missed_events_total").await;
    assert_eq!(missed, Ok(0), "what was asked for was not missed before");
}

async fn an_address_of_nobody_is_asked_for_once(world: World) {
    let client = Client::start(world, Way::OnDemand).await;
    let nobody = SocketAddr::from(([10, 96, 250, 250], 80));
    client.wait_dropped(&[nobody], "nobody has it, as the node says").await;
    let asked = questions(client.remora(), "unknown").await;
    assert!(asked >= 1, "{}", client.remora().state());
    let opened = client.remora().metric("remora_connections_opened_total").await;
    client.wait_dropped(&[nobody], "nobody has it, as the node says").await;
    assert_eq!(questions(client.remora(), "unknown").await, asked, "it is the node's from here on");
    assert_eq!(client.remora().metric("remora_connections_opened_total").await, opened);
}

async fn nobody_waits_for_a_hub_that_is_gone(world: World) {
    let client = Client::start(world, Way::OnDemand).await;
    let (web, _web) = service(&client, "web").await;
    client.wait_served(&[web], &["web"], "it is known").await;
    let (unknown, _unknown) = service(&client, "unknown").await;
    let found = questions(client.remora(), "found").await;
    client.hub().program.kill();
    wait_until(SOON, "the feed is lost", async || {
        match client.remora().metric("remora_source_streams_broken").await? {
            0 => Err(client.remora().state()),
            _ => Ok(()),
        }
    })
    .await;
    client.wait_served(&[unknown], &["unknown"], "by the node").await;
    assert_eq!(
        [questions(client.remora(), "found").await, questions(client.remora(), "late").await],
        [found, 0]
    );
    let opened = client.remora().metric("remora_connections_opened_total").await.expect("it is counted");
    assert_answered(&client, web, "web").await;
    let after = client.remora().metric("remora_connections_opened_total").await.expect("it is counted");
    assert!(after > opened, "what is known is served on");
}

async fn a_hub_that_stands_still_is_waited_for_once(world: World) {
    let client = Client::start(world, Way::OnDemand).await;
    let (web, _web) = service(&client, "web").await;
    // The node has it, too.
    client.wait_served(&[web], &["web"], "it is known").await;
    let (unknown, _unknown) = service(&client, "unknown").await;
    let (later, _later) = service(&client, "later").await;
    client.hub().program.signal(rustix::process::Signal::STOP);
    client.wait_served(&[unknown], &["unknown"], "by the node").await;
    assert_eq!(questions(client.remora(), "late").await, 1, "{}", client.remora().state());
    client.hub().program.signal(rustix::process::Signal::CONT);
    let before = questions(client.remora(), "found").await;
    wait_until(SOON, "it answers again", async || {
        client.touch(later).await;
        match questions(client.remora(), "found").await {
            found if found > before => Ok(()),
            found => Err(format!("{found}; {}", client.remora().state())),
        }
    })
    .await;
}
