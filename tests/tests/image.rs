//! The container image that `make image` builds: small, with one program and nothing else, and it runs as Kubernetes runs it.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::json;
use tests::container::{Container, File, Process};
use tests::{Host, Image, SOON, World, ask, wait_until};

tests::tests! {
    the_image_is_one_small_program_of_a_user_who_is_not_root,
    the_image_runs_where_a_pod_adds_a_capability_and_where_it_adds_none,
}

/// What an image may have at most, unpacked.
const BYTES: u64 = 20_000_000;

async fn the_image_is_one_small_program_of_a_user_who_is_not_root(world: World) {
    let image = Image::built(&world);
    assert_eq!(
        image.name,
        format!("remora:{}", env!("CARGO_PKG_VERSION")),
        "the default of `remora inject --image`"
    );
    let config = &image.config;
    assert_eq!((&config["User"], image.entrypoint()), (&json!("64102:64102"), vec!["/remora"]));
    assert_eq!(config["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(image.platform["os"], "linux");
    assert_eq!(image.layers.len(), 1, "{:?}", image.layers);

    let root = world.own_folder().join("root");
    std::fs::create_dir_all(&root).expect("a folder");
    image.lay(&root);
    let files: BTreeSet<_> = std::fs::read_dir(&root)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(files, BTreeSet::from(["remora".into()]));
    let program = root.join("remora");
    let about = std::fs::metadata(&program).expect("a file");
    assert_eq!(about.permissions().mode() & 0o7777, 0o755);
    assert!(about.len() <= BYTES, "{} bytes", about.len());
    let getcap = Command::new("getcap").arg(&program).output().expect("getcap, of libcap2-bin");
    let said = String::from_utf8_lossy(&getcap.stdout).into_owned();
    assert!(said.trim_end().ends_with(" cap_net_bind_service,cap_net_admin,cap_net_raw=p"), "{said}");
    let bytes = std::fs::read(&program).expect("a file");
    assert!(!contains(&bytes, b"/registry/src/"), "paths of the machine that built it are in it");
    assert!(!contains(&bytes, b"/lib64/ld-linux"), "it needs no library");
}

async fn the_image_runs_where_a_pod_adds_a_capability_and_where_it_adds_none(world: World) {
    let image = Image::built(&world);
    for (capabilities, permitted) in [(&["CAP_NET_RAW"][..], 1 << 13), (&[], 0)] {
        let host = Host::new(&world, "pod");
        let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/manifests/web.yaml");
        let content = std::fs::read_to_string(manifests).expect("the demo's manifests");
        let process = Process {
            image: Some(&image),
            user: 64102,
            capabilities,
            environment: &[],
            files: &[File { name: "/web.yaml", content }],
            arguments: &["sidecar", "--source", "manifests:/web.yaml", "--health", "0.0.0.0:64104"],
        };
        let container = Container::run(&world, &host, "-image", &process);
        wait_until(SOON, "the image's program is ready", async || {
            match ask::get((host.ip4(), 64104).into(), "/readyz").await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}; {}", container.program.state())),
            }
        })
        .await;
        let status = container.status().expect("its status");
        let set = |name: &str| u64::from_str_radix(&status[name], 16).expect("a set of capabilities");
        assert_eq!(status["Uid"].split_whitespace().next(), Some("64102"));
        assert_eq!((&*status["NoNewPrivs"], set("CapPrm"), set("CapAmb")), ("1", permitted, 0));
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}
