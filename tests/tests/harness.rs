//! What the other tests stand on, proved by itself: the control plane is real and answers as one.

use std::time::Duration;

use serde_json::json;
use tests::{Cluster, Load, Namespace, Pod, World, wait_until};

const SOON: Duration = Duration::from_secs(20);

tests::tests! {
    the_controller_makes_slices_of_the_pods_whose_status_the_test_writes,
    clients_and_endpoints_count_the_same_connections,
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
