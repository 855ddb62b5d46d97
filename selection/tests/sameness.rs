//! The native build and both wasm builds pick the same endpoints: 100,000 cases, compared by digest. The wasm
//! modules run under Node, and can reach nothing outside but what the test lists.
#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]

use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../examples/sameness.rs"]
#[allow(unreachable_pub, reason = "a module here, a crate as wasm")]
mod sameness;

const CASES: u32 = 100_000;

/// Runs `digest(cases)` of a module, and prints it after the module's imports. An import that is called ends it:
/// what picks asks nobody for anything.
const RUN: &str = "
const [file, cases] = process.argv.slice(1);
const module = new WebAssembly.Module(require('fs').readFileSync(file));
const imports = {};
for (const { module: from, name } of WebAssembly.Module.imports(module)) {
    imports[from] ??= {};
    imports[from][name] = () => { throw new Error(`${from}.${name} was called`); };
    console.log(`${from}.${name}`);
}
const { exports } = new WebAssembly.Instance(module, imports);
exports._initialize?.();
console.log(BigInt.asUintN(64, exports.digest(Number(cases))).toString());
";

/// The output of `command`; `remedy` says what to do if it cannot be run.
#[track_caller]
fn output(command: &mut Command, remedy: &str) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}; {remedy}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?} failed; {remedy}\n{}", text(&output.stderr));
    text(&output.stdout)
}

/// Builds the example for `target` and returns the module's path.
fn module(target: &str) -> PathBuf {
    // A folder of its own: the cargo that runs this test holds the lock of the other one.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("wasm");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--package", "selection", "--example", "sameness", "--release", "--locked"]);
    cargo.args(["--target", target, "--target-dir"]).arg(&folder).current_dir(env!("CARGO_MANIFEST_DIR"));
    // Flags meant for the native build do not fit here.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    output(&mut cargo, &format!("install the target with: rustup target add {target}"));
    folder.join(target).join("release/examples/sameness.wasm")
}

/// The imports of the module for `target`, and its digest of `cases`.
fn run(target: &str, cases: u32) -> (Vec<String>, u64) {
    let module = module(target);
    let mut node = Command::new("node");
    node.args(["--eval", RUN, "--"]).arg(module).arg(cases.to_string());
    let printed = output(&mut node, "install Node 18 or later, on Debian with: apt-get install nodejs");
    let mut lines: Vec<String> = printed.lines().map(String::from).collect();
    let digest = lines.pop().and_then(|line| line.parse().ok());
    (lines, digest.unwrap_or_else(|| panic!("no digest in {printed:?}")))
}

#[test]
fn the_digest_tells_cases_apart() {
    let digests = [0, 1, 2, 1_000].map(|cases| sameness::digest(cases));
    assert_eq!(digests[0], 0, "nothing");
    assert!(digests.iter().enumerate().all(|(i, digest)| !digests[..i].contains(digest)), "{digests:?}");
    assert_eq!(sameness::digest(1_000), digests[3], "a function of its input");
}

#[test]
fn wasm32_unknown_unknown_picks_as_the_native_build_and_imports_nothing() {
    let (imports, digest) = run("wasm32-unknown-unknown", CASES);
    assert_eq!(imports, Vec::<String>::new());
    assert_eq!(digest, sameness::digest(CASES));
}

#[test]
fn wasm32_wasip1_picks_as_the_native_build_and_imports_what_a_panic_needs() {
    let (imports, digest) = run("wasm32-wasip1", CASES);
    let wasi = ["environ_get", "environ_sizes_get", "fd_write", "proc_exit"];
    let known = wasi.map(|name| format!("wasi_snapshot_preview1.{name}"));
    let unknown: Vec<&String> = imports.iter().filter(|import| !known.contains(import)).collect();
    assert!(unknown.is_empty(), "{unknown:?} beside {known:?}");
    assert_eq!(digest, sameness::digest(CASES));
}
