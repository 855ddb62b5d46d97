//! A real Envoy with Remora's filter in it, configured by the files that people copy.
//!
//! In: a file of `envoy/`, and what to replace in it. Out: a running Envoy, asked only through its ports, its
//! admin interface and its log. Everything listens on loopback, at the ports that the files name.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Program, SOON, World, ask, tools, wait_until};

/// Which Envoy.
#[derive(Clone, Copy, Debug)]
pub enum Version {
    /// The newest.
    Newest,
    /// The oldest that `envoy/` is for.
    Oldest,
}

/// Where the files have Envoy's admin interface.
pub const ADMIN: &str = "127.0.0.1:9901";

/// Where the files expect the filter.
const INSTALLED: &str = "/etc/remora/filter.wasm";

/// Owning one means that it runs.
pub struct Envoy {
    /// The process.
    pub program: Program,
}

/// Builds the filter, as its users do, and tells how that goes. To be called before the world is entered: nothing can
/// be downloaded inside.
///
/// # Panics
/// When it does not build.
pub fn build_filter() {
    let status = Command::new(root().join("filter/build")).stdout(Stdio::null()).status();
    assert!(status.expect("bash").success(), "the filter does not build; filter/build has said why");
}

/// The filter that [`build_filter`] built.
///
/// # Panics
/// When it is not there.
pub fn filter() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the running test");
    let target = test.ancestors().nth(3).expect("tests run from target/PROFILE/deps");
    let path = target.join("filter.wasm");
    assert!(path.exists(), "{} is not there: filter/build makes it", path.display());
    path
}

/// The text of a file of `envoy/`, with the filter of this build in it.
///
/// # Panics
/// When there is no such file.
pub fn configuration(name: &str) -> String {
    let path = root().join("envoy").join(name);
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    replaced(&text, INSTALLED, &filter().display().to_string())
}

/// `text` with every `from` replaced.
///
/// # Panics
/// When there is none: what a test relies on has changed.
pub fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the configuration has no {from:?}");
    text.replace(from, to)
}

impl Envoy {
    /// Starts one with two workers, without waiting for it.
    pub fn start(world: &World, version: Version, configuration: &str) -> Envoy {
        let file = world.own_folder().join("envoy.yaml");
        fs::write(&file, configuration).expect("the folder of the world");
        let name = match version {
            Version::Newest => "envoy",
            Version::Oldest => "old-envoy",
        };
        let mut command = Command::new(tools::built(name));
        command.args(["--concurrency", "2", "--disable-hot-restart", "-l", "warning"]);
        command.args(["--component-log-level", "wasm:info", "-c"]).arg(file);
        Envoy { program: Program::start(world, "envoy", command) }
    }

    /// Starts one and waits until it takes connections.
    pub async fn ready(world: &World, version: Version, configuration: &str) -> Envoy {
        let envoy = Envoy::start(world, version, configuration);
        wait_until(SOON, "Envoy is ready", async || match envoy.ask("/ready").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}; {}", envoy.program.state())),
        })
        .await;
        envoy
    }

    /// Asks its admin interface: status and body.
    pub async fn ask(&self, path: &str) -> Result<(u16, String), String> {
        ask::get(ADMIN.parse::<SocketAddr>().expect("an address"), path).await
    }

    /// One of its numbers, 0 if it has none of this name.
    pub async fn number(&self, name: &str) -> Result<u64, String> {
        let (_, page) = self.ask(&format!("/stats?filter={name}")).await?;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.map_or(Ok(0), |number| number.parse().map_err(|error| format!("{error}: {page}")))
    }

    /// Waits until one of the filter's numbers is as wished.
    pub async fn wait_number(&self, name: &str, is_it: impl Fn(u64) -> bool) -> u64 {
        let what = format!("{name} is as it should be");
        wait_until(SOON, &what, async || match self.number(&format!("wasmcustom.{name}")).await {
            Ok(number) if is_it(number) => Ok(number),
            other => Err(format!("{other:?}; {}", self.program.state())),
        })
        .await
    }

    /// Waits until every one of its VMs that serves has a table; the number of VMs is that of workers, and one more.
    pub async fn wait_table(&self) {
        self.wait_number("remora_table_version", |version| version > 0).await;
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the folder of the workspace")
}
