//! Nothing is ever worse for a Pod with Remora in it than without: before it knows anything, after
//! its end, however it ends, and for what is not its business.
//!
//! In: a client with Remora. Never a failure that is hidden by trying again: where a moment of
//! failure is allowed, it is measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::timeout;

use crate::cluster::KUBERNETES;
use crate::inside::{self, ROOT};
use crate::{Client, Injected, Pod, SOON, wait_until};

/// How soon after the end of Remora new connections must work again.
const OPEN: Duration = Duration::from_secs(5);

/// How long one connection may take meanwhile before the next is tried.
const BRIEF: Duration = Duration::from_millis(500);

/// How long Remora stands still.
const PAUSE: Duration = Duration::from_secs(5);

/// Connections that are open meanwhile, each in both families.
const HELD: usize = 20;

/// A Service with an endpoint on each node, served: both its addresses.
async fn shop(client: &Client) -> ([SocketAddr; 2], [Pod; 2]) {
    let web = client.service("web", json!({})).await.port(80);
    let pods = [client.near("web", "near").await, client.far("web", "far").await];
    client.wait_served(&web, &["near", "far"], "by Remora").await;
    (web, pods)
}

/// Waits until connections are answered and checks that they then are for good: those that begin as long as they may
/// fail may fail, none of the later ones. When they begin counts, not when they are answered: a machine that stands still
/// has not broken the promise.
async fn assert_open_soon(client: &Client, addresses: &[SocketAddr], since: Instant) {
    for &address in addresses {
        while since.elapsed() < OPEN {
            // One that hangs, since Remora hangs, must not hide that the next would work.
            if let Ok(outcome) = timeout(BRIEF, client.try_once(address)).await
                && outcome.by().is_ok()
            {
                break;
            }
        }
    }
    eprintln!("connections worked again after {:?}", since.elapsed());
    for &address in addresses {
        for outcome in client.connect(address, 40).await {
            outcome.by().unwrap_or_else(|failed| panic!("{address} works no longer: {failed:?}"));
        }
    }
}

/// Capture is up, Remora runs, and has never reached the API server.
pub async fn before_its_first_table_everything_goes_the_nodes_way(client: &Client) {
    let (web, _pods) = shop(client).await;
    client.remora().kill();
    let [a, b, c, d] = KUBERNETES;
    let api = format!("{a}.{b}.{c}.{d}");
    let cut =
        client.pod.host.drop_packets(&format!("meta skuid 64102 ip daddr {api}"), &format!("ip saddr {api}"));
    let mut again = Injected::start_again(client, "remora-cut-off").await;
    wait_until(SOON, "it is ready without a table", async || match again.readiness().await {
        Ok(200) => Ok(()),
        other => Err(format!("{other:?}; {}", again.state())),
    })
    .await;
    client.wait_served(&web, &["near", "far"], "there is no table yet").await;
    assert_eq!(again.metric("remora_table_version").await, Ok(0));
    drop(cut);
    again.wait_taking(client).await;
    client.wait_served(&web, &["near", "far"], "by Remora").await;
    again.assert_taken().await;
}

/// SIGKILL, as the kernel does it when memory is short; then a restart, as a kubelet does it.
pub async fn after_a_kill_connections_work_again_within_five_seconds(client: &Client) {
    let (web, _pods) = shop(client).await;
    let held = client.hold(web[0], HELD).await;
    client.remora().kill();
    let killed = Instant::now();
    assert_eq!(held.let_go().await.len(), HELD, "what it relayed ends with it");
    assert_open_soon(client, &web, killed).await;
    let mut again = Injected::start_again(client, "remora-again").await;
    again.wait_taking(client).await;
    client.wait_served(&web, &["near", "far"], "by Remora again").await;
    again.assert_taken().await;
}

/// A Service without endpoints is refused by Remora's order; the order dies with it.
pub async fn after_a_kill_nothing_is_refused_any_more_but_by_the_node(client: &Client) {
    let web = client.service("web", json!({})).await.port(80);
    client.wait_refused(&web, "there is no endpoint, says Remora").await;
    client.remora().kill();
    let killed = Instant::now();
    let _pod = client.far("web", "pod").await;
    // On the same node, without Remora.
    let witness = client.near("witness", "witness").await;
    for address in web {
        wait_until(SOON, &format!("kube-proxy knows the endpoint at {address}"), async || {
            inside::Client::open(&witness.host, ROOT, address)
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .await;
    }
    assert_open_soon(client, &web, killed).await;
}

/// SIGTERM without open connections.
pub async fn after_a_clean_stop_everything_goes_the_nodes_way(client: &Client) {
    let (web, _pods) = shop(client).await;
    let stopped = client.remora().stop().await;
    assert!(stopped.success(), "{stopped}; {}", client.remora().state());
    assert_open_soon(client, &web, Instant::now()).await;
}

/// SIGSTOP for longer than a heartbeat lasts, with connections open that Remora relays and others
/// that went to the node meanwhile.
pub async fn no_connection_breaks_while_heartbeats_lapse_and_return(client: &Client) {
    let (web, _pods) = shop(client).await;
    let mut held = Vec::new();
    for address in web {
        held.push(client.hold(address, HELD).await);
    }
    client.remora().pause();
    let paused = Instant::now();
    assert_open_soon(client, &web, paused).await;
    for address in web {
        held.push(client.hold(address, HELD).await);
    }
    wait_until(SOON, "the pause has lasted", async || match paused.elapsed() {
        elapsed if elapsed >= PAUSE => Ok(()),
        elapsed => Err(format!("{elapsed:?}")),
    })
    .await;
    client.remora().resume();
    let opened = async || client.remora().metric("remora_connections_opened_total").await;
    let before = opened().await.expect("it tells");
    wait_until(SOON, "Remora takes connections again", async || {
        for address in web {
            client.try_once(address).await.by().map_err(|failed| format!("{failed:?}"))?;
        }
        if opened().await? > before { Ok(()) } else { Err(format!("still {before}")) }
    })
    .await;
    for held in held {
        assert_eq!(held.let_go().await, [], "no connection broke");
    }
}

/// Clients that say nothing hold every descriptor that Remora may have: more of them is the node's to serve.
pub async fn without_descriptors_new_connections_go_the_nodes_way(client: &Client) {
    let (web, _pods) = shop(client).await;
    client.remora().kill();
    let mut few = Injected::start_with_descriptors(client, "remora-few", 96).await;
    few.wait_taking(client).await;
    let held = client.hold(web[0], 5).await;
    let mut clog = client.clog(web[0], 40);
    wait_until(SOON, "its descriptors are used up", async || {
        match few.metric("remora_accept_failures_total").await {
            Ok(1..) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_open_soon(client, &web, Instant::now()).await;
    clog.kill().await.expect("the end of a child");
    assert_eq!(held.let_go().await, [], "no established connection broke");
    let before = few.metric("remora_connections_opened_total").await.expect("it tells");
    wait_until(SOON, "Remora takes connections again", async || {
        client.try_once(web[0]).await.by().map_err(|failed| format!("{failed:?}"))?;
        match few.metric("remora_connections_opened_total").await? {
            now if now > before + 40 => Ok(()),
            now => Err(format!("{now} after {before}")),
        }
    })
    .await;
}

/// Rules that were taken away and made anew know nothing: Remora notices, and tells them all over.
pub async fn rules_made_anew_are_told_everything_again(client: &Client) {
    let (web, _pods) = shop(client).await;
    client.remora().assert_taken().await;
    let alive = async |expected| {
        wait_until(SOON, &format!("the rules of {expected} families hear"), async || {
            match client.remora().metric("remora_capture_alive").await? {
                families if families == expected => Ok(()),
                families => Err(format!("of {families}; {}", client.remora().state())),
            }
        })
        .await;
    };
    crate::injected::unprepare(&client.pod.host).await;
    alive(0).await;
    client.wait_served(&web, &["near", "far"], "by the node").await;
    crate::injected::prepare(&client.pod.host).await;
    alive(2).await;
    let opened = async || client.remora().metric("remora_connections_opened_total").await;
    let before = opened().await.expect("it tells");
    wait_until(SOON, "Remora takes connections again", async || {
        client.try_once(web[0]).await.by().map_err(|failed| format!("{failed:?}"))?;
        if opened().await? > before { Ok(()) } else { Err(format!("still {before}")) }
    })
    .await;
}

/// `remora.dev/balance: off` is the node's business, live.
pub async fn a_service_whose_balance_is_off_goes_the_nodes_way(client: &Client) {
    let (web, _pods) = shop(client).await;
    let balance = |how| json!({"metadata": {"annotations": {"remora.dev/balance": how}}});
    client.namespace.patch_service("web", balance(json!("off"))).await;
    client.wait_served(&web, &["near", "far"], "by kube-proxy").await;
    client.namespace.patch_service("web", balance(json!(null))).await;
    client.wait_served(&web, &["near", "far"], "by Remora again").await;
}

/// A restart in a Pod where everything that is for the Service `kubernetes` is taken already.
pub async fn remora_reaches_the_api_server_through_the_service_that_it_serves(client: &Client) {
    client.remora().kill();
    let mut again = Injected::start_again(client, "remora-again").await;
    again.wait_taking(client).await;
    let (_web, _pods) = shop(client).await;
    again.assert_taken().await;
}
