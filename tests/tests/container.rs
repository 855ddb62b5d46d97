//! What a container as a CRI makes it lets Remora do: as a user that is not root, with the
//! capabilities that the Pod's manifest adds, and no more.

use std::collections::BTreeMap;
use std::path::Path;

use tests::container::{Container, File};
use tests::{Host, SOON, World, ask, wait_until};

tests::tests! {
    one_capability_is_there_to_be_raised_without_root_or_ambient_capabilities,
    without_a_capability_the_same_program_runs_all_the_same,
}

const NET_RAW: u64 = 1 << 13;

/// Starts a sidecar over the demo's manifests with these capabilities, and returns it with what the
/// kernel says about it, once it serves.
async fn serving(world: &World, capabilities: &[&str]) -> (Host, Container, BTreeMap<String, String>) {
    let host = Host::new(world, "pod");
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/manifests/web.yaml");
    let content = std::fs::read_to_string(&manifests).expect("the demo's manifests");
    let container = Container::start(
        world,
        &host,
        capabilities,
        &["RUST_BACKTRACE=1"],
        &[File { name: "/web.yaml", content }],
        &[
            "sidecar",
            "--source",
            "manifests:/web.yaml",
            "--listen",
            "127.0.0.1:8080=shop/web:80",
            "--health",
            "0.0.0.0:64104",
        ],
    );
    wait_until(SOON, "the sidecar in the container is ready", async || {
        match ask::get((host.ip4(), 64104).into(), "/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}; {}", container.program.state())),
        }
    })
    .await;
    let status = container.status().expect("its status");
    (host, container, status)
}

fn set(status: &BTreeMap<String, String>, name: &str) -> u64 {
    u64::from_str_radix(&status[name], 16).expect("a set of capabilities")
}

async fn one_capability_is_there_to_be_raised_without_root_or_ambient_capabilities(world: World) {
    let (_host, _container, status) = serving(&world, &["CAP_NET_RAW"]).await;
    assert_eq!(status["Uid"].split_whitespace().next(), Some("64102"), "it is not root");
    assert_eq!(status["NoNewPrivs"], "1");
    assert_eq!((set(&status, "CapBnd"), set(&status, "CapAmb"), set(&status, "CapInh")), (NET_RAW, 0, 0));
    assert_eq!(set(&status, "CapPrm"), NET_RAW, "the file's capabilities, as far as the container has them");
    assert_eq!(set(&status, "CapEff") & !NET_RAW, 0, "it has raised none but that");
}

async fn without_a_capability_the_same_program_runs_all_the_same(world: World) {
    let (_host, _container, status) = serving(&world, &[]).await;
    assert_eq!((set(&status, "CapBnd"), set(&status, "CapPrm"), set(&status, "CapEff")), (0, 0, 0));
}
