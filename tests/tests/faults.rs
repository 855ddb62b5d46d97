//! What goes wrong between Remora and a real API server. Always the same promise: the last good table
//! serves on, and what changed meanwhile arrives by itself when the fault is over.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tests::cluster::Etcd;
use tests::{Cluster, Load, Namespace, Pod, SOON, Shop, Sidecar, World, load, wait_until};

tests::tests! {
    a_stopped_api_server_stops_nobody,
    a_killed_api_server_is_found_again_when_it_is_back,
    a_compacted_past_is_no_loss,
    a_watch_that_falls_silent_is_noticed,
    an_api_server_unreachable_at_start_is_waited_for,
    a_missing_permission_is_named_and_waited_for,
    an_api_server_that_streams_lists_is_asked_to,
    an_old_etcd_without_streaming_lists_serves_just_as_well,
}

/// Backoffs grow while a fault lasts; after it, this much may pass.
const RECOVERY: Duration = Duration::from_secs(180);

/// Connections a second while a fault lasts.
const RATE: u32 = 100;

/// Lets some connections pass, and no more than a little time.
async fn some_connections(load: &Load) {
    let before = load.done();
    wait_until(SOON, "200 more connections", async || match load.done() - before {
        200.. => Ok(()),
        done => Err(format!("{done}")),
    })
    .await;
}

/// Replaces the first Pod of a shop; the server of the old one runs on, since who does not know the
/// news yet still uses it.
async fn change(world: &World, shop: &mut Shop, number: usize) -> Pod {
    shop.add(world, number).await;
    let old = shop.pods.remove(0);
    old.delete().await;
    shop.wait_controller().await;
    old
}

/// Waits until the change has arrived, and checks that it is served.
async fn assert_arrived(shop: &Shop) {
    shop.sidecar.wait_endpoints(RECOVERY, &shop.service, &shop.addresses()).await;
    let mut names: Vec<&str> = shop.pods.iter().map(|pod| pod.name.as_str()).collect();
    names.sort();
    shop.assert_served_by(&names).await;
}

async fn a_stopped_api_server_stops_nobody(world: World) {
    let cluster = Cluster::shared().await;
    let mut shop = Shop::open(&world, cluster.clone(), 2).await;
    let load = Load::start(shop.sidecar.address(8080), RATE);
    cluster.stop_api();
    some_connections(&load).await;
    cluster.continue_api();
    let _old = change(&world, &mut shop, 2).await;
    assert_arrived(&shop).await;
    load.stop().assert_none_failed();
}

async fn a_killed_api_server_is_found_again_when_it_is_back(world: World) {
    let cluster = Cluster::shared().await;
    let mut shop = Shop::open(&world, cluster.clone(), 2).await;
    let load = Load::start(shop.sidecar.address(8080), RATE);
    cluster.kill_api();
    some_connections(&load).await;
    assert_eq!(
        shop.sidecar.get("/readyz").await.map(|(status, _)| status),
        Ok(200),
        "the last table is good"
    );
    assert_eq!(shop.sidecar.endpoints(&shop.service).await, Ok(shop.addresses()));
    cluster.start_api().await;
    let _old = change(&world, &mut shop, 2).await;
    assert_arrived(&shop).await;
    load.stop().assert_none_failed();
}

async fn a_compacted_past_is_no_loss(world: World) {
    let cluster = Cluster::shared().await;
    let mut shop = Shop::open(&world, cluster.clone(), 2).await;
    let before = shop.addresses();
    let past = shop.namespace.services().get("web").await.expect("the Service").metadata.resource_version;
    let load = Load::start(shop.sidecar.address(8080), RATE);
    let cut = shop.sidecar.host.cut_off(cluster.address());
    let _old = change(&world, &mut shop, 2).await;
    // An API server keeps a window of the past in memory: only a new one has to ask etcd.
    cluster.compact().await;
    cluster.kill_api();
    cluster.start_api().await;
    let gone = cluster.changes_since(&past.expect("a version")).await.unwrap_or_else(|error| error);
    assert!(gone.contains("410"), "this is what the sidecar must cope with: {gone}");
    some_connections(&load).await;
    assert_eq!(shop.sidecar.endpoints(&shop.service).await, Ok(before), "the old table serves on");
    drop(cut);
    assert_arrived(&shop).await;
    load.stop().assert_none_failed();
}

async fn a_watch_that_falls_silent_is_noticed(world: World) {
    let cluster = Cluster::shared().await;
    let mut shop = Shop::open(&world, cluster.clone(), 2).await;
    let before = shop.addresses();
    let load = Load::start(shop.sidecar.address(8080), RATE);
    let _silence = shop.sidecar.host.silence(cluster.address());
    let _old = change(&world, &mut shop, 2).await;
    some_connections(&load).await;
    assert_eq!(shop.sidecar.endpoints(&shop.service).await, Ok(before), "nothing has come through");
    assert_arrived(&shop).await;
    load.stop().assert_none_failed();
}

async fn an_api_server_unreachable_at_start_is_waited_for(world: World) {
    let cluster = Cluster::shared().await;
    let shop = Shop::open(&world, cluster.clone(), 1).await;
    cluster.kill_api();
    let listen = format!("8080={}:80", shop.service);
    let late = Sidecar::start(&world, &cluster.kubeconfig(), &[&listen], &[]);
    wait_until(SOON, "the sidecar is alive", async || match late.get("/livez").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}; {}", late.program.state())),
    })
    .await;
    let ready = late.get("/readyz").await.map(|(status, _)| status);
    assert!(matches!(ready, Ok(500..)), "without a first table it is not ready: {ready:?}");
    load::connect(late.address(8080)).await.expect_err("there is no table yet");
    wait_until(SOON, "it says whom it cannot reach", async || {
        let said = late.program.output();
        if said.contains(&cluster.address().to_string()) { Ok(()) } else { Err(said) }
    })
    .await;
    cluster.start_api().await;
    late.wait_ready(RECOVERY).await;
    assert_eq!(load::connect(late.address(8080)).await.expect("an answer"), "web-0");
}

async fn a_missing_permission_is_named_and_waited_for(world: World) {
    let cluster = Cluster::shared().await;
    let shop = Shop::open(&world, cluster.clone(), 1).await;
    let verbs = ["get", "list", "watch"];
    let services = json!({"apiGroups": [""], "resources": ["services", "nodes"], "verbs": verbs});
    let slices = json!({"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": verbs});
    let kubeconfig = cluster.user_with("forgotten", json!([services])).await;
    let listen = format!("8080={}:80", shop.service);
    let sidecar = Sidecar::start(&world, &kubeconfig, &[&listen], &[]);
    wait_until(SOON, "it names the permission that is missing", async || {
        let said = sidecar.program.output();
        let named = ["endpointslices", "discovery.k8s.io", "list"].iter().all(|word| said.contains(word));
        if named { Ok(()) } else { Err(said) }
    })
    .await;
    cluster.grant("forgotten", json!([services, slices])).await;
    sidecar.wait_ready(RECOVERY).await;
    assert_eq!(load::connect(sidecar.address(8080)).await.expect("an answer"), "web-0");
}

/// How many streaming lists of EndpointSlices an API server has served.
async fn streamed(cluster: &Cluster) -> u64 {
    // An API server that was killed and started again has been seen to sit on this request for its full minute.
    let metrics = wait_until(RECOVERY, "the API server tells its metrics", async || {
        let asked = tokio::time::timeout(Duration::from_secs(10), cluster.get("/metrics")).await;
        asked.unwrap_or_else(|_| Err("no answer within 10 s".to_owned()))
    })
    .await;
    let ours = |line: &&str| {
        line.starts_with("apiserver_watch_list_duration_seconds_count")
            && line.contains(r#"resource="endpointslices""#)
    };
    metrics.lines().filter(ours).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

async fn an_api_server_that_streams_lists_is_asked_to(world: World) {
    let cluster = Cluster::shared().await;
    let namespace = Namespace::new(cluster.clone()).await;
    let before = streamed(&cluster).await;
    let listen = format!("8080={}/web:80", namespace.name);
    let sidecar = Sidecar::ready(&world, &cluster.kubeconfig(), &[&listen]).await;
    // It is counted when all of it was sent, which may be after the sidecar has used it.
    wait_until(RECOVERY, "the list was streamed", async || match streamed(&cluster).await {
        after if after > before => Ok(()),
        after => Err(format!("{before} streaming lists before, {after} after; {}", sidecar.program.state())),
    })
    .await;
}

async fn an_old_etcd_without_streaming_lists_serves_just_as_well(world: World) {
    let cluster: Arc<Cluster> = Cluster::start("old-cluster", Etcd::Old).await;
    cluster.streaming_list().await.expect_err("this API server refuses streaming lists");
    let mut shop = Shop::open(&world, cluster.clone(), 2).await;
    let load = Load::start(shop.sidecar.address(8080), RATE);
    let _old = change(&world, &mut shop, 2).await;
    assert_arrived(&shop).await;
    cluster.kill_api();
    some_connections(&load).await;
    cluster.start_api().await;
    let _older = change(&world, &mut shop, 3).await;
    assert_arrived(&shop).await;
    load.stop().assert_none_failed();
}
