//! An Envoy, with two workers, that knows a large cluster: both serve, and what that takes of memory.

use std::process::ExitCode;
use std::time::Duration;

use tests::envoy::{self, Envoy, Version, replaced};
use tests::feeder::{Feeder, Service};
use tests::gateway::{HTTP, at};
use tests::http::{Client, Server};
use tests::scale::{Cluster, ENDPOINTS};
use tests::world::Test;
use tests::{World, wait_until};

/// The Services of the cluster, beside the one that is asked.
const SERVICES: usize = 10_000;
/// A VM for each worker, and one of the main thread.
const VMS: u64 = 3;
/// What all these Services may take in each.
const A_VM: u64 = 30_000_000;
/// What one Service may take in each, beside what every VM does: a frame of the feed, mostly.
const A_SERVICE: u64 = 1_000_000;
/// Thousands of files are read by a program that was not built to be fast.
const PATIENCE: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    envoy::main(vec![Test {
        name: "both_workers_know_ten_thousand_services_and_who_wants_one_holds_one",
        run: |world| Box::pin(both_workers_know_ten_thousand_services_and_who_wants_one_holds_one(world)),
    }])
}

async fn both_workers_know_ten_thousand_services_and_who_wants_one_holds_one(world: World) {
    let server = Server::start("127.0.1.1:9000").await;
    let feeder = Feeder::ready(&world, &[Service::new("web", "10.96.0.10", [server.address])], &[]).await;
    let text = envoy::configuration("http.yaml");
    let envoy = Envoy::ready(&world, Version::Newest, &text).await;
    know(&envoy, 1).await;
    every_worker_says("web.shop", 200, "127.0.1.1:9000").await;
    let before = settled(&envoy).await;
    let _cluster = Cluster::write(&feeder.manifests, SERVICES);
    know(&envoy, SERVICES as u64 + 1).await;
    every_worker_says("web.shop", 200, "127.0.1.1:9000").await;
    // Nobody listens there, and nothing leads there; but it is known.
    let last = format!("service-{}.namespace-{}", SERVICES - 1, (SERVICES - 1) % 100);
    every_worker_says(&last, 503, "upstream connect error").await;
    every_worker_says("service-0.namespace-1", 503, "no such Service").await;
    let large = settled(&envoy).await;
    drop(envoy);

    let one = replaced(&text, r#""fallback": true"#, r#""service": "shop/web:80""#);
    let envoy = Envoy::ready(&world, Version::Newest, &one).await;
    know(&envoy, 1).await;
    every_worker_says("anything", 200, "127.0.1.1:9000").await;
    let small = settled(&envoy).await;
    let each = |memory: u64| memory.saturating_sub(before) / VMS;
    println!(
        "{SERVICES} Services, {} endpoints: {:.1} MB in each VM (resident memory of Envoy {:.1} MB, {:.1} MB with one \
         Service); with a subscription to one of them {:.1} MB in each VM",
        SERVICES * ENDPOINTS,
        each(large) as f64 / 1e6,
        large as f64 / 1e6,
        before as f64 / 1e6,
        each(small) as f64 / 1e6,
    );
    assert!(each(large) <= A_VM, "{} bytes in each VM", each(large));
    assert!(each(small) <= A_SERVICE, "{} bytes in each VM for one Service", each(small));
}

/// Waits until it knows so many Services.
async fn know(envoy: &Envoy, services: u64) {
    wait_until(PATIENCE, &format!("{services} Services are known"), async || {
        match envoy.number("wasmcustom.remora_services").await {
            Ok(known) if known == services => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Waits until connections to both workers get this answer.
async fn every_worker_says(authority: &str, status: u16, words: &str) {
    wait_until(PATIENCE, &format!("{authority} is answered with {status} and {words:?}"), async || {
        for _ in 0..24 {
            let answer = Client::one(at(HTTP)).await?.get(authority, "/", &[]).await?;
            if answer.status != status || !answer.body.starts_with(words) {
                return Err(format!("{answer:?}"));
            }
        }
        Ok(())
    })
    .await;
}

/// Waits until its memory grows no more, and tells how much that is.
async fn settled(envoy: &Envoy) -> u64 {
    let (mut last, mut same) = (0, 0);
    wait_until(PATIENCE, "the memory of Envoy grows no more", async || {
        let memory = envoy.program.resident();
        same = if memory > last { 0 } else { same + 1 };
        last = last.max(memory);
        if same >= 40 { Ok(memory) } else { Err(format!("{memory} bytes")) }
    })
    .await
}
