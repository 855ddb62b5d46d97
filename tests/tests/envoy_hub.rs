//! An Envoy that hubs feed: by TLS, with the token of a ServiceAccount, which is wrong, expires and is renewed. What people
//! copy is what is run, in the newest Envoy and in the oldest that `envoy/` is for.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use tests::cluster::NODES;
use tests::envoy::{self, Envoy, Version, replaced};
use tests::gateway::{TCP, at};
use tests::tls_hub::{self, TlsHub};
use tests::{Cluster, Host, Namespace, World, load, wait_until};

fn main() -> ExitCode {
    envoy::main(tests::in_both_envoys![
        a_hub_feeds_who_shows_a_good_token_by_tls_and_another_one_is_taken_without_a_restart
    ])
}

/// A token expires after half a minute that clocks may differ by.
const PATIENCE: Duration = Duration::from_secs(120);

const AUDIENCE: &str = "remora_feed_refused_total{reason=\"audience\"}";
const EXPIRED: &str = "remora_feed_refused_total{reason=\"expired\"}";

/// A file of `envoy/`.
fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../envoy").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A folder of a projected volume, as a kubelet keeps it.
struct Projected(PathBuf);

impl Projected {
    /// Puts `token` there: all files of the volume change at once.
    fn put(&self, token: &str) {
        let Self(folder) = self;
        let number = std::fs::read_dir(folder).expect("a folder").count();
        let version = format!("..{number}");
        std::fs::create_dir(folder.join(&version)).expect("a folder");
        std::fs::write(folder.join(&version).join("token"), token).expect("a file");
        symlink(&version, folder.join("..data_tmp")).expect("a link");
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("a link");
    }
}

async fn a_hub_feeds_who_shows_a_good_token_by_tls_and_another_one_is_taken_without_a_restart(
    world: World,
    version: Version,
) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    namespace.service("web", json!({"selector": null, "ports": [{"port": 80}]})).await;
    let (one, other) = (Host::new(&world, "one"), Host::new(&world, "other"));
    let _servers = (
        tests::pods::serve(&world, &one, "one", 9000).await,
        tests::pods::serve(&world, &other, "other", 9000).await,
    );
    tls_hub::slice(&namespace, "web", [one.ip4(), other.ip4()], 9000).await;
    let hub = TlsHub::start(&world, &namespace).await;

    let volume = Projected(world.own_folder().join("volume"));
    std::fs::create_dir(&volume.0).expect("a folder");
    symlink("..data/token", volume.0.join("token")).expect("a link");
    volume.put(&tls_hub::foreign_token(&namespace).await);
    let there = |text: &str| replaced(text, "/var/run/secrets/remora", &volume.0.display().to_string());
    let secret = world.own_folder().join("token.yaml");
    std::fs::write(&secret, there(&file("token.yaml"))).expect("a file");
    let cluster = there(&file("hub.yaml"));
    let cluster = replaced(&cluster, "/etc/remora/token.yaml", &secret.display().to_string());
    let cluster = replaced(&cluster, "/etc/remora/ca.crt", &hub.authority.display().to_string());
    let address = format!("address: {}, port_value", hub.host.ip4());
    let cluster = replaced(&cluster, &format!("address: {}, port_value", tls_hub::NAME), &address);
    let text =
        replaced(&envoy::configuration("tcp.yaml"), "shop/web:80", &format!("{}/web:80", namespace.name));
    let (text, plain) =
        text.split_once("  # Where `remora sidecar --feed`").expect("the cluster of the feed is last");
    assert!(plain.contains("name: remora-feed"), "{plain}");
    let envoy = Envoy::ready(&world, version, &format!("node: {{id: a, cluster: a}}\n{text}{cluster}")).await;
    let state = || format!("{}; {}", envoy.program.state(), hub.program.state());
    let wait_refused = async |counted: &str| {
        wait_until(PATIENCE, &format!("{counted} grows"), async || match hub.metric(counted).await {
            Ok(1..) => Ok(()),
            other => Err(format!("{other:?}; {}", state())),
        })
        .await;
    };

    wait_refused(AUDIENCE).await;
    envoy.wait_log("the hub takes no token of this Envoy").await;
    assert_eq!(hub.metric("remora_feed_readers").await, Ok(0));

    // Good for ten seconds, unless the machine stands still meanwhile: then once more.
    let fresh = tls_hub::token(&namespace).await;
    volume.put(&tls_hub::expiring(&namespace, &fresh, -20));
    wait_until(PATIENCE, "it is fed", async || {
        if envoy.number("wasmcustom.remora_table_version").await? > 0 {
            return Ok(());
        }
        if hub.metric(EXPIRED).await? > 0 {
            volume.put(&tls_hub::expiring(&namespace, &fresh, -20));
        }
        Err(state())
    })
    .await;
    wait_refused(EXPIRED).await;
    assert!(load::connect(at(TCP)).await.is_ok(), "what it knows serves on; {}", state());

    // That of a Pod says where it is.
    let [_, (node, _)] = NODES;
    volume.put(&tls_hub::token_of_pod(&namespace, node).await);
    wait_until(PATIENCE, "it picks for the zone of its Pod's node", async || {
        for _ in 0..16 {
            match load::connect(at(TCP)).await {
                Ok(name) if name == "other" => {}
                other => return Err(format!("{other:?}; {}", state())),
            }
        }
        Ok(())
    })
    .await;
}
