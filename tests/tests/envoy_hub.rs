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
use tests::{Cluster, Host, Namespace, Program, World, load, wait_until};

fn main() -> ExitCode {
    envoy::main(tests::in_both_envoys![
        a_hub_feeds_who_shows_a_good_token_by_tls_and_another_one_is_taken_without_a_restart,
        a_token_that_expires_is_no_error_where_another_one_is_in_the_file,
    ])
}

const PATIENCE: Duration = Duration::from_secs(120);
/// Seconds by which clocks may differ: a token is taken for so long after its end.
const LEEWAY: i64 = 30;
/// Of an Envoy with two workers: one for each, and one for its main thread.
const STREAMS: u64 = 3;

const AUDIENCE: &str = "remora_feed_refused_total{reason=\"audience\"}";
const EXPIRED: &str = "remora_feed_refused_total{reason=\"expired\"}";

/// What Envoy's log says of each stream that is refused, of each that is lost for whatever reason, and of each whose
/// token has expired.
const REFUSED: &str = "the hub takes no token of this Envoy";
const LOST: &str = "the stream of the feed is lost";
const EXPIRY: &str = "the token of the stream of the feed has expired";

/// A file of `envoy/`.
fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../envoy").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A folder of a volume, as a kubelet keeps it.
struct Volume(PathBuf);

impl Volume {
    fn new(world: &World, name: &str) -> Self {
        let folder = world.own_folder().join(name);
        std::fs::create_dir(&folder).expect("a folder");
        Self(folder)
    }

    /// These are its files: all of them change at once.
    fn put(&self, files: &[(&str, &str)]) {
        let Self(folder) = self;
        let number = std::fs::read_dir(folder).expect("a folder").count();
        let version = format!("..{number}");
        std::fs::create_dir(folder.join(&version)).expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.join(&version).join(name), text).expect("a file");
        }
        symlink(&version, folder.join("..data_tmp")).expect("a link");
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("a link");
        for (name, _) in files.iter().filter(|(name, _)| !folder.join(name).exists()) {
            symlink(Path::new("..data").join(name), folder.join(name)).expect("a link");
        }
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

/// What an Envoy shows.
enum Token {
    /// Good for somebody else.
    Foreign,
    /// Good for so many seconds.
    For(i64),
    /// Good for an hour.
    Long,
    /// The same, of a Pod on this node.
    OfPod(&'static str),
}

impl Token {
    async fn of(self, namespace: &Namespace) -> String {
        match self {
            Self::Foreign => tls_hub::foreign_token(namespace).await,
            Self::For(seconds) => {
                tls_hub::expiring(namespace, &tls_hub::token(namespace).await, seconds - LEEWAY)
            }
            Self::Long => tls_hub::token(namespace).await,
            Self::OfPod(node) => tls_hub::token_of_pod(namespace, node).await,
        }
    }
}

/// What of `text` is in the folders of a Pod, in these.
fn placed(text: &str, settings: &Volume, token: &Volume) -> String {
    text.replace("/etc/remora", &settings.path()).replace("/var/run/secrets/remora", &token.path())
}

/// The files that go with `hub.yaml`; `authority` is the certificate of who vouches for the hub.
fn put_settings(settings: &Volume, token: &Volume, authority: &str) {
    let [one, other] = ["token.yaml", "authority.yaml"].map(|name| placed(&file(name), settings, token));
    settings.put(&[("token.yaml", &one), ("authority.yaml", &other), ("ca.crt", authority)]);
}

/// An Envoy that a hub of this namespace is to feed, before a Service `web` with an endpoint in either zone.
struct Fed {
    namespace: Namespace,
    hub: TlsHub,
    envoy: Envoy,
    settings: Volume,
    token: Volume,
    _servers: (Program, Program),
}

impl Fed {
    /// Starts one that trusts whom `authority` vouches for, by default the hub, and shows `shown`.
    async fn start(world: &World, version: Version, authority: Option<&str>, shown: Token) -> Self {
        let namespace = Namespace::new(Cluster::shared().await).await;
        namespace.service("web", json!({"selector": null, "ports": [{"port": 80}]})).await;
        let (one, other) = (Host::new(world, "one"), Host::new(world, "other"));
        let servers = (
            tests::pods::serve(world, &one, "one", 9000).await,
            tests::pods::serve(world, &other, "other", 9000).await,
        );
        tls_hub::slice(&namespace, "web", [one.ip4(), other.ip4()], 9000).await;
        let hub = TlsHub::start(world, &namespace).await;
        let (settings, token) = (Volume::new(world, "settings"), Volume::new(world, "token"));
        token.put(&[("token", &shown.of(&namespace).await)]);
        put_settings(&settings, &token, authority.unwrap_or(&hub.authority()));
        let address = format!("address: {}, port_value", hub.host.ip4());
        let cluster = placed(&file("hub.yaml"), &settings, &token);
        let cluster = replaced(&cluster, &format!("address: {}, port_value", tls_hub::NAME), &address);
        let text = envoy::configuration("tcp.yaml");
        let text = replaced(&text, "shop/web:80", &format!("{}/web:80", namespace.name));
        let (text, plain) =
            text.split_once("  # Where `remora sidecar --feed`").expect("the cluster of the feed is last");
        assert!(plain.contains("name: remora-feed"), "{plain}");
        let text = format!("node: {{id: a, cluster: a}}\n{text}{cluster}");
        let envoy = Envoy::ready(world, version, &text).await;
        Self { namespace, hub, envoy, settings, token, _servers: servers }
    }

    /// Puts a token in the place of the one that is there.
    async fn show(&self, token: Token) {
        self.token.put(&[("token", &token.of(&self.namespace).await)]);
    }

    fn state(&self) -> String {
        format!("{}; {}", self.envoy.program.state(), self.hub.program.state())
    }

    /// Lines of Envoy's log that have these words.
    fn lines(&self, words: &str) -> usize {
        self.envoy.program.output().lines().filter(|line| line.contains(words)).count()
    }

    async fn wait_counted(&self, name: &str) {
        wait_until(PATIENCE, &format!("{name} grows"), async || match self.hub.metric(name).await {
            Ok(1..) => Ok(()),
            other => Err(format!("{other:?}; {}", self.state())),
        })
        .await;
    }
}

async fn a_hub_feeds_who_shows_a_good_token_by_tls_and_another_one_is_taken_without_a_restart(
    world: World,
    version: Version,
) {
    let fed = Fed::start(&world, version, Some(&tls_hub::foreign_authority()), Token::Foreign).await;
    let Fed { hub, envoy, .. } = &fed;
    let untrusted = "cluster.remora-feed.ssl.fail_verify_error";
    wait_until(PATIENCE, "Envoy does not trust the hub", async || match envoy.number(untrusted).await {
        Ok(1..) => Ok(()),
        other => Err(format!("{other:?}; {}", fed.state())),
    })
    .await;
    assert_eq!(hub.metric(AUDIENCE).await, Ok(0), "no token is shown to who is not trusted");

    put_settings(&fed.settings, &fed.token, &hub.authority());
    fed.wait_counted(AUDIENCE).await;
    envoy.wait_log(REFUSED).await;
    assert_eq!(hub.metric("remora_feed_readers").await, Ok(0));

    fed.show(Token::For(10)).await;
    wait_until(PATIENCE, "it is fed", async || {
        if envoy.number("wasmcustom.remora_table_version").await? > 0 {
            return Ok(());
        }
        // A machine that stood still has let it expire before anybody has seen it.
        if hub.metric(EXPIRED).await? > 0 {
            fed.show(Token::For(10)).await;
        }
        Err(fed.state())
    })
    .await;
    fed.wait_counted(EXPIRED).await;
    assert!(load::connect(at(TCP)).await.is_ok(), "what it knows serves on; {}", fed.state());

    // That of a Pod says where it is.
    let [_, (node, _)] = NODES;
    fed.show(Token::OfPod(node)).await;
    wait_until(PATIENCE, "it picks for the zone of its Pod's node", async || {
        for _ in 0..16 {
            match load::connect(at(TCP)).await {
                Ok(name) if name == "other" => {}
                other => return Err(format!("{other:?}; {}", fed.state())),
            }
        }
        Ok(())
    })
    .await;
}

async fn a_token_that_expires_is_no_error_where_another_one_is_in_the_file(world: World, version: Version) {
    let fed = Fed::start(&world, version, None, Token::For(30)).await;
    let Fed { hub, envoy, .. } = &fed;
    let wait_open = async || {
        let readers = async || match hub.metric("remora_feed_readers").await {
            Ok(STREAMS) => Ok(()),
            other => Err(format!("{other:?}; {}", fed.state())),
        };
        wait_until(PATIENCE, "every stream is open", readers).await;
    };
    wait_open().await;
    fed.show(Token::Long).await;
    wait_until(PATIENCE, "every stream has ended with its token", async || match fed.lines(EXPIRY) {
        lines if lines as u64 >= STREAMS => Ok(()),
        lines => Err(format!("{lines} have; {}", fed.state())),
    })
    .await;
    wait_open().await;
    // On a machine that stood still, the old token may have been shown too late.
    assert_eq!(Ok(fed.lines(REFUSED) as u64), hub.metric(EXPIRED).await, "{}", fed.state());
    let lost = fed.lines(LOST) as u64;
    envoy.wait_number("remora_source_errors_total", |errors| errors == lost).await;
}
