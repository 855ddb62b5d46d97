//! Tokens end, and readers of a hub go on. And they say where their readers are.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};
use tests::cluster::NODES;
use tests::remora::run;
use tests::tls_hub::{self, TlsHub};
use tests::{Cluster, Namespace, World, wait_until};

tests::tests! {
    nobody_reads_on_with_a_token_that_has_expired,
    another_token_in_the_file_is_shown_before_the_old_one_is_refused,
    who_shows_the_token_of_a_pod_is_told_its_node_and_zone,
}

/// A reader looks for another token once a minute.
const PATIENCE: Duration = Duration::from_secs(180);

const BROKEN: &str = "remora_source_streams_broken";
const EXPIRED: &str = "remora_feed_refused_total{reason=\"expired\"}";

async fn nobody_reads_on_with_a_token_that_has_expired(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    namespace.service("web", json!({"ports": [{"port": 80}]})).await;
    let hub = TlsHub::start(&world, &namespace).await;
    let path = world.own_folder().join("short.token");
    let fresh = tls_hub::token(&namespace).await;
    // Clocks may differ by half a minute: it is good for ten seconds.
    std::fs::write(&path, tls_hub::expiring(&namespace, &fresh, -20)).expect("a file");
    let reader = hub.reader(&world, &[&format!("{}/web", namespace.name)], &path);
    wait_until(PATIENCE, "it reads", async || match reader.ready().await? {
        (200, _) => Ok(()),
        other => {
            // A machine that stood still has let it expire before anybody has seen it.
            std::fs::write(&path, tls_hub::expiring(&namespace, &fresh, -20)).expect("a file");
            Err(format!("{other:?}; {}", reader.program.state()))
        }
    })
    .await;
    wait_until(PATIENCE, "it is refused", async || {
        match (
            hub.metric(EXPIRED).await?,
            reader.metric(BROKEN).await?,
            hub.metric("remora_feed_readers").await?,
        ) {
            (1.., 1.., 0) => Ok(()),
            other => Err(format!("{other:?}; {}", reader.program.state())),
        }
    })
    .await;
    assert_eq!(reader.ready().await.expect("an answer").0, 200, "what it knows serves on");
    std::fs::write(&path, fresh).expect("a file");
    wait_until(PATIENCE, "it reads again", async || match reader.metric(BROKEN).await? {
        0 => Ok(()),
        broken => Err(format!("{broken} streams are broken; {}", reader.program.state())),
    })
    .await;
}

async fn another_token_in_the_file_is_shown_before_the_old_one_is_refused(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    namespace.service("web", json!({"ports": [{"port": 80}]})).await;
    let hub = TlsHub::start(&world, &namespace).await;
    let path = world.own_folder().join("lasting.token");
    std::fs::write(&path, tls_hub::token(&namespace).await).expect("a file");
    let reader = hub.reader(&world, &[&format!("{}/web", namespace.name)], &path);
    wait_until(PATIENCE, "it reads", async || match reader.ready().await? {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}; {}", reader.program.state())),
    })
    .await;
    let (snapshots, losses) =
        (hub.metric("remora_feed_snapshots_total").await.expect("it is counted"), async || {
            let (mut losses, page) = (0, reader.metrics().await?);
            for line in page.lines().filter(|line| line.starts_with("remora_source_errors_total")) {
                losses +=
                    line.rsplit(' ').next().and_then(|number| number.parse::<u64>().ok()).ok_or(line)?;
            }
            Ok::<_, String>(losses)
        });
    let before = losses().await.expect("it is counted");
    // As a kubelet puts it there: at once.
    let draft = path.with_extension("draft");
    std::fs::write(&draft, tls_hub::token(&namespace).await).expect("a file");
    std::fs::rename(draft, &path).expect("a file");
    wait_until(PATIENCE, "it has shown another token", async || {
        match (hub.metric("remora_feed_snapshots_total").await?, hub.metric("remora_feed_readers").await?) {
            (now, 1) if now > snapshots => Ok(()),
            other => Err(format!("{other:?}; {}", reader.program.state())),
        }
    })
    .await;
    assert_eq!(losses().await.expect("it is counted"), before, "{}", reader.program.state());
}

async fn who_shows_the_token_of_a_pod_is_told_its_node_and_zone(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let local = json!({"selector": null, "internalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    namespace.service("local", local).await;
    namespace.service("web", json!({"selector": null, "ports": [{"port": 80}]})).await;
    let addresses = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
    for service in ["local", "web"] {
        tls_hub::slice(&namespace, service, addresses, 9000).await;
    }
    let hub = TlsHub::start(&world, &namespace).await;
    let [local, web] = ["local", "web"].map(|service| format!("{}/{service}", namespace.name));
    let path = world.own_folder().join("pod.token");
    let [_, (node, _)] = NODES;
    std::fs::write(&path, tls_hub::token_of_pod(&namespace, node).await).expect("a file");
    let reader = hub.reader(&world, &[&local, &web], &path);
    let there = json!(["192.0.2.2:9000"]);
    wait_until(PATIENCE, "it picks what is on its node, and for its zone", async || {
        let rows = async |service: &str| {
            let printed = run(&hub.host, &["endpoints", service, "-o", "json"], None).await?;
            serde_json::from_str::<Value>(&printed).map_err(|error| error.to_string())
        };
        match (&rows(&local).await?[0]["local"], &rows(&web).await?[0]["cluster"]) {
            (local, web) if *local == there && *web == there => Ok(()),
            other => Err(format!("{other:?}; {}", reader.program.state())),
        }
    })
    .await;
}
