//! A real Envoy with Remora's filter in it, configured by the files that people copy.
//!
//! In: a file of `envoy/`, and what to replace in it. Out: a running Envoy, asked only through its ports, its
//! admin interface and its log. Everything listens on loopback, at the ports that the files name.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::world::{self, Test};
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
pub(crate) const INSTALLED: &str = "/etc/remora/filter.wasm";

/// Owning one means that it runs.
pub struct Envoy {
    /// The process.
    pub program: Program,
}

/// Runs each of the named `async fn(World, Version)` as two tests: in the newest Envoy, and in the oldest.
#[macro_export]
macro_rules! in_both_envoys {
    ($($test:ident),+ $(,)?) => {
        vec![$(
            $crate::world::Test {
                name: concat!(stringify!($test), "_in_the_newest"),
                run: |world| Box::pin($test(world, $crate::envoy::Version::Newest)),
            },
            $crate::world::Test {
                name: concat!(stringify!($test), "_in_the_oldest"),
                run: |world| Box::pin($test(world, $crate::envoy::Version::Oldest)),
            },
        )+]
    };
}

/// The main function of a test binary whose tests load the filter into Envoys.
pub fn main(tests: Vec<Test>) -> ExitCode {
    if !world::is_inside() && !std::env::args().any(|argument| argument == "--list") {
        build_filter();
    }
    world::main(tests)
}

/// Builds the filter, as its users do, and tells how that goes. To be called before the world is entered: nothing can
/// be downloaded inside.
///
/// # Panics
/// When it does not build.
pub fn build_filter() {
    run_build(&[]);
}

/// The filter that [`build_filter`] built.
///
/// # Panics
/// When it is not there.
pub fn filter() -> PathBuf {
    built("filter.wasm")
}

/// As [`build_filter`], but with what answers the cases of [`crate::sameness`].
///
/// # Panics
/// When it does not build.
pub fn build_filter_with_cases() {
    run_build(&["cases"]);
}

/// The filter that [`build_filter_with_cases`] built.
///
/// # Panics
/// When it is not there.
pub fn filter_with_cases() -> PathBuf {
    built("cases/filter.wasm")
}

/// Runs `filter/build`.
pub(crate) fn run_build(words: &[&str]) {
    let status = Command::new(root().join("filter/build")).args(words).stdout(Stdio::null()).status();
    assert!(status.expect("bash").success(), "the filter does not build; filter/build has said why");
}

fn built(name: &str) -> PathBuf {
    let path = target().join(name);
    assert!(path.exists(), "{} is not there: filter/build makes it", path.display());
    path
}

/// The filter as it is built, but for a trap: a request with more than forty headers breaks its VM, and so does
/// every tenth connection. Nothing in the module itself can be made to from outside.
///
/// # Panics
/// When Binaryen fails.
pub fn brittle_filter(world: &World) -> PathBuf {
    let (text, built) = (world.own_folder().join("brittle.wat"), world.own_folder().join("brittle.wasm"));
    let run = |program: &str, from: &Path, to: &Path| {
        // Rust's target has them.
        let features = ["--enable-bulk-memory", "--enable-sign-ext", "--enable-mutable-globals"];
        let mut command = Command::new(program);
        command.args(features).args(["--enable-nontrapping-float-to-int", "--enable-multivalue"]);
        let output = command.arg("--enable-reference-types").arg(from).arg("-o").arg(to).output();
        let output = output.unwrap_or_else(|error| panic!("{program}, of binaryen: {error}"));
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("wasm-dis", &filter(), &text);
    let mut module = fs::read_to_string(&text).expect("the module as text");
    let mut take = |export: &str, trap: &str| {
        let (before, rest) =
            module.split_once(&format!("(export \"{export}\" (func ")).expect("the module has its exports");
        let (function, after) = rest.split_once(')').expect("an export names a function");
        let trap = trap.replace("$original", function);
        module = format!("{before}(export \"{export}\" (func $brittle-{export}){after}");
        let end = module.trim_end().len() - 1;
        module.insert_str(end, &trap);
    };
    take(
        "proxy_on_request_headers",
        "(func $brittle-proxy_on_request_headers (param i32 i32 i32) (result i32)
          (if (i32.gt_s (local.get 1) (i32.const 40)) (unreachable))
          (call $original (local.get 0) (local.get 1) (local.get 2)))",
    );
    take(
        "proxy_on_new_connection",
        "(global $brittle-connections (mut i32) (i32.const 0))
         (func $brittle-proxy_on_new_connection (param i32) (result i32)
          (global.set $brittle-connections (i32.add (global.get $brittle-connections) (i32.const 1)))
          (if (i32.eq (global.get $brittle-connections) (i32.const 10)) (unreachable))
          (call $original (local.get 0)))",
    );
    fs::write(&text, module).expect("the folder of the world");
    run("wasm-as", &text, &built);
    built
}

/// Where everything is built.
pub(crate) fn target() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the running test");
    test.ancestors().nth(3).expect("tests run from target/PROFILE/deps").to_owned()
}

/// The text of a file of `envoy/`, with the filter of this build in it, and connects that may take ten seconds: on a busy
/// machine a worker may stand still for longer than the one second of the files, and then takes every endpoint for dead.
///
/// # Panics
/// When there is no such file.
pub fn configuration(name: &str) -> String {
    let path = root().join("envoy").join(name);
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    let text = replaced(&text, INSTALLED, &filter().display().to_string());
    let text = replaced(&text, "connect_timeout: 1s", "connect_timeout: 10s");
    replaced(&text, r#""connectTimeout": 1,"#, r#""connectTimeout": 10,"#)
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
        Self::start_as(world, "envoy", version, configuration)
    }

    /// As [`Envoy::start`], under a name of its own: another one beside it.
    pub fn start_as(world: &World, called: &str, version: Version, configuration: &str) -> Envoy {
        let file = world.own_folder().join(format!("{called}.yaml"));
        fs::write(&file, configuration).expect("the folder of the world");
        let name = match version {
            Version::Newest => "envoy",
            Version::Oldest => "old-envoy",
        };
        let mut command = Command::new(tools::built(name));
        command.args(["--concurrency", "2", "--disable-hot-restart", "-l", "warning"]);
        // A listener that was taken away lives on for so long; by default for ten minutes.
        command.args(["--drain-time-s", "1"]);
        command.args(["--component-log-level", "wasm:info", "-c"]).arg(file);
        Envoy { program: Program::start(world, called, command) }
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

    /// Waits until its log has these words: a number may be seen before the line that tells of the same.
    pub async fn wait_log(&self, words: &str) {
        wait_until(SOON, &format!("Envoy's log says {words:?}"), async || match self.program.output() {
            log if log.contains(words) => Ok(()),
            _ => Err(self.program.state()),
        })
        .await;
    }

    /// Waits until every one of its VMs that serves has a table; the number of VMs is that of workers, and one more.
    pub async fn wait_table(&self) {
        self.wait_number("remora_table_version", |version| version > 0).await;
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the folder of the workspace")
}
