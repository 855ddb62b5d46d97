//! What the other tests stand on, proved by itself: the control plane is real and answers as one.

use serde_json::json;
use tests::cluster::Etcd;
use tests::load::connect;
use tests::{Cluster, Host, Load, Namespace, Pod, Program, SOON, World, wait_until};

tests::tests! {
    the_controller_makes_slices_of_the_pods_whose_status_the_test_writes,
    clients_and_endpoints_count_the_same_connections,
    packets_are_dropped_for_one_host_alone,
    a_connection_can_fall_silent_alone,
    a_compacted_past_is_gone_once_the_api_server_has_restarted,
    an_old_etcd_makes_the_api_server_refuse_streaming_lists,
}

async fn the_controller_makes_slices_of_the_pods_whose_status_the_test_writes(world: World) {
    let shop = Namespace::new(Cluster::shared().await).await;
    shop.service("web", json!({"ipFamilyPolicy": "RequireDualStack"})).await;
    let one = Pod::ready(&world, &shop, "web", "one", "node-a").await;
    let two = Pod::start(&world, &shop, "web", "two", "node-b").await;
    let ready = async |expected: Vec<String>| {
        wait_until(SOON, &format!("the slices call {expected:?} ready"), async || {
            match shop.ready("web").await {
                Ok(ready) if ready == expected => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    };
    let both = |pod: &Pod| vec![pod.address(), format!("[{}]:8080", pod.host.ip6())];
    ready(both(&one)).await;
    two.set_ready(true).await;
    let mut all = [both(&one), both(&two)].concat();
    all.sort();
    ready(all).await;
    one.delete().await;
    ready(both(&two)).await;
    one.end().await;
    two.set_ready(false).await;
    ready(vec![]).await;
}

async fn clients_and_endpoints_count_the_same_connections(world: World) {
    let shop = Namespace::new(Cluster::shared().await).await;
    let pod = Pod::ready(&world, &shop, "web", "only", "node-a").await;
    let address = pod.address().parse().expect("an address");
    let load = Load::start(address, 500);
    wait_until(SOON, "a thousand connections", async || match load.done() {
        1000.. => Ok(()),
        done => Err(format!("{done}")),
    })
    .await;
    let report = load.stop();
    report.assert_none_failed();
    let counts = pod.end().await;
    assert_eq!((counts.accepted, counts.served), (report.total(), report.answered["only"]));
}

/// Whether a host can open a connection to the API server.
fn reaches(host: &Host, cluster: &Cluster) -> bool {
    let port = format!("exec 3<>/dev/tcp/{}/6443", cluster.address());
    host.command("timeout").args(["2", "bash", "-c", &port]).output().expect("bash").status.success()
}

async fn packets_are_dropped_for_one_host_alone(world: World) {
    let cluster = Cluster::shared().await;
    let (one, other) = (Host::new(&world, "one"), Host::new(&world, "other"));
    assert!(reaches(&one, &cluster));
    let cut = one.cut_off(cluster.address());
    assert!(!reaches(&one, &cluster));
    assert!(reaches(&other, &cluster));
    drop(cut);
    assert!(reaches(&one, &cluster));
}

async fn a_connection_can_fall_silent_alone(world: World) {
    let (host, server) = (Host::new(&world, "host"), Host::new(&world, "server"));
    let echo = tests::pods::serve(&world, &server, "echo", 8080).await;
    let dial = format!("exec 3<>/dev/tcp/{}/8080; read -u 3 name; echo $name", server.ip4());
    let mut command = host.command("bash");
    command.args(["-c", &format!("{dial}; read -u 3")]);
    let client = Program::start(&world, "client", command);
    wait_until(SOON, "the client is greeted", async || match client.output().as_str() {
        "echo\n" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    let silence = host.silence(server.ip4());
    let fresh = host.command("timeout").args(["5", "bash", "-c", &dial]).output().expect("bash");
    assert!(fresh.status.success(), "new connections pass");
    echo.kill();
    connect((server.ip4(), 8080).into()).await.expect_err("the server is dead");
    assert!(client.ended().is_none(), "the server's end has not come through; {}", client.state());
    drop(silence);
    client.wait(SOON).await;
}

async fn a_compacted_past_is_gone_once_the_api_server_has_restarted(_: World) {
    let cluster = Cluster::shared().await;
    let shop = Namespace::new(cluster.clone()).await;
    let past = shop.service("web", json!({})).await.metadata.resource_version.expect("a version");
    shop.service("other", json!({})).await;
    let changes = cluster.changes_since(&past).await.expect("the past is known");
    assert!(changes.contains(r#""name":"other""#), "{changes}");
    cluster.compact().await;
    cluster.kill_api();
    cluster.start_api().await;
    let gone = cluster.changes_since(&past).await.unwrap_or_else(|error| error);
    assert!(gone.contains("410"), "{gone}");
}

async fn an_old_etcd_makes_the_api_server_refuse_streaming_lists(_: World) {
    let events = Cluster::shared().await.streaming_list().await.expect("a stream");
    assert!(events.contains("k8s.io/initial-events-end"), "{events}");
    let old = Cluster::start("old-cluster", Etcd::Old).await;
    let refusal = old.streaming_list().await.expect_err("no stream");
    assert!(refusal.contains("RequestWatchProgress is disabled"), "{refusal}");
}
