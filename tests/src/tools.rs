//! Where the programs are that the tests run.
//!
//! In: a program's name. Out: its path, or a panic that names the command which makes it. It never
//! builds or installs anything: `tests/tools` and `cargo build` do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// A program that `tests/tools` builds or installs: `etcd`, `kube-apiserver`,
/// `kube-controller-manager`, `kube-proxy`, `old-etcd`, `envoy`, `old-envoy`.
///
/// # Panics
/// When it is not there, with what `tests/tools` says about it.
pub fn built(name: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools");
    let output = Command::new(&script).args(["where", name]).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {}: {error}", script.display()));
    if !output.status.success() {
        panic!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// A program of this workspace, built in the same profile as the running test.
/// `REMORA_BIN` names another `remora`.
///
/// # Panics
/// When it is not there, with the command that builds it.
pub fn own(name: &str, package: &str) -> PathBuf {
    if name == "remora"
        && let Some(path) = std::env::var_os("REMORA_BIN")
    {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("the path of the running test");
    let folder = test.ancestors().nth(2).expect("tests run from target/PROFILE/deps");
    let path = folder.join(name);
    assert!(path.exists(), "{} is not there: cargo build -p {package}", path.display());
    path
}

/// As [`own`], but a copy in the world's own `/run`: other users may not enter the folder of the
/// build.
///
/// # Panics
/// When the program is not there or cannot be copied.
pub fn for_everybody(name: &str, package: &str) -> PathBuf {
    // One at a time: what is half a copy must not be started.
    static COPYING: Mutex<()> = Mutex::new(());
    let _copying = COPYING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let copy = Path::new("/run/programs").join(name);
    if !copy.exists() {
        fs::create_dir_all("/run/programs").expect("a folder in memory");
        copy_program(&own(name, package), &copy);
    }
    copy
}

/// Copies a program. A process of its own does it: a file that this process has open for writing may
/// be open in a child that another thread is starting, and such a file cannot be started.
///
/// # Panics
/// When it cannot be copied.
pub fn copy_program(from: &Path, to: &Path) {
    let output = Command::new("cp").arg(from).arg(to).output().expect("cp, of coreutils");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
}
