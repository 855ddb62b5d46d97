//! The promise of the whole: nobody notices that endpoints come and go.

use std::collections::BTreeMap;
use std::time::Instant;

use tests::{Cluster, Load, SOON, Shop, World, wait_until};

tests::tests! {
    no_connection_fails_while_twenty_rollouts_pass,
    an_endpoint_that_dies_unannounced_fails_no_new_connection,
    an_endpoint_that_falls_silent_fails_no_new_connection,
}

/// A little more than the 500 a second that are promised, so that the rate holds on a busy machine.
const RATE: u32 = 550;

async fn no_connection_fails_while_twenty_rollouts_pass(world: World) {
    const ROLLOUTS: usize = 20;
    const REPLICAS: usize = 3;
    let mut shop = Shop::open(&world, Cluster::shared().await, REPLICAS).await;
    let load = Load::start(shop.sidecar.address(8080), RATE);
    let mut counts = BTreeMap::new();
    let mut noticed = Vec::new();
    let started = Instant::now();
    for rollout in 1..=ROLLOUTS {
        for replica in 0..REPLICAS {
            // As a Deployment does it: one more, then one less.
            shop.add(&world, rollout * REPLICAS + replica).await;
            let old = shop.pods.remove(0);
            old.delete().await;
            let deleted = Instant::now();
            let address = old.address();
            wait_until(SOON, "the sidecar leaves a terminating endpoint", async || {
                match shop.sidecar.endpoints(&shop.service).await {
                    Ok(usable) if !usable.contains(&address) => Ok(()),
                    other => Err(format!("{address} is in {other:?}")),
                }
            })
            .await;
            noticed.push(deleted.elapsed());
            let name = old.name.clone();
            counts.insert(name, old.end().await);
        }
        eprintln!("roll-out {rollout} of {ROLLOUTS}: {} connections so far", load.done());
    }
    shop.wait_settled().await;
    let lasted = started.elapsed();
    let report = load.stop();
    for pod in shop.pods.drain(..) {
        counts.insert(pod.name.clone(), pod.end().await);
    }
    noticed.sort();
    eprintln!(
        "{ROLLOUTS} roll-outs in {:.1} s, {} connections ({:.0} a second), 99 % done within {:?}, all within {:?}; \
         a deleted Pod was left after {:?} (median), {:?} (at most)",
        lasted.as_secs_f32(),
        report.total(),
        report.rate(),
        report.within(0.99),
        report.within(1.0),
        noticed[noticed.len() / 2],
        noticed[noticed.len() - 1],
    );
    report.assert_none_failed();
    assert!(report.rate() >= 500.0, "only {:.0} connections a second", report.rate());
    for (name, count) in &counts {
        let answered = report.answered.get(name).copied().unwrap_or_default();
        assert_eq!(
            (count.accepted, count.served),
            (answered, answered),
            "{name}: endpoint and clients count alike"
        );
    }
    assert_eq!(counts.values().map(|count| count.served).sum::<u64>(), report.total());
}

async fn an_endpoint_that_dies_unannounced_fails_no_new_connection(world: World) {
    let shop = Shop::open(&world, Cluster::shared().await, 3).await;
    shop.assert_served_by(&["web-0", "web-1", "web-2"]).await;
    shop.pods[1].kill();
    shop.assert_served_by(&["web-0", "web-2"]).await;
}

async fn an_endpoint_that_falls_silent_fails_no_new_connection(world: World) {
    let shop = Shop::open(&world, Cluster::shared().await, 3).await;
    let silent = shop.pods[1].host.ip4();
    let _silence = shop.sidecar.host.cut_off(silent);
    let answers = shop.visit(60).await;
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["web-0", "web-2"], "{answers:?}");
}
