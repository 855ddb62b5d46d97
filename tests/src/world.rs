//! Worlds: namespaces of network, mounts and processes that belong to one test binary alone.
//!
//! In: the tests of a binary. Out: its exit code. Root makes the namespaces directly, everybody
//! else through a user namespace; a test that needs a second user in it needs `newuidmap` too. When the binary ends, however it ends, the kernel takes away all
//! processes, networks and mounts of its world. It never changes anything outside.
//!
//! ```text
//!  cargo test ─▶ the binary ─exec▶ unshare ─fork▶ the binary again, process 1 of its world ─▶ tests
//! ```

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use libtest_mimic::{Arguments, Trial};

use crate::{Cluster, network, program};

/// A test: its name, which is a sentence of behaviour, and what it does in its world.
pub struct Test {
    /// With underscores, so that `cargo test` can filter by it.
    pub name: &'static str,
    /// The sentence's proof.
    pub run: fn(World) -> Pin<Box<dyn Future<Output = ()>>>,
}

/// Runs each of the named `async fn(World)` as a test of this binary.
#[macro_export]
macro_rules! tests {
    ($($test:ident),+ $(,)?) => {
        fn main() -> std::process::ExitCode {
            $crate::world::main(vec![$($crate::world::Test {
                name: stringify!($test),
                run: |world| Box::pin($test(world)),
            }),+])
        }
    };
}

/// Whether the process is inside its world already.
const INSIDE: &str = "REMORA_TEST_WORLD";

/// Set to keep a failed test's world alive, to be looked into, until the test is interrupted.
const HOLD: &str = "REMORA_TEST_HOLD";

/// The main function of a test binary: enters a world of its own, then runs the tests in it.
///
/// Tests run at the same time only if asked to (`--test-threads`): most of them measure or break
/// something that others would feel.
pub fn main(tests: Vec<Test>) -> ExitCode {
    main_of(vec![(1, tests)])
}

/// As [`main`], but for several groups of tests, one group after the other: how many of each run at
/// the same time, if the command line does not say.
pub fn main_of(groups: Vec<(usize, Vec<Test>)>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // What `cargo bench` runs in a world is run as tests are.
    arguments.bench = false;
    if !arguments.list {
        // Where an ordinary user does not look for them.
        let path = env::var("PATH").unwrap_or_default();
        if !is_inside() {
            return enter(&format!("{path}:/usr/sbin:/sbin"));
        }
        end_on_signals();
        settle();
    }
    let asked = arguments.test_threads;
    let mut failed = false;
    for (threads, tests) in groups.into_iter().filter(|(_, tests)| !tests.is_empty()) {
        arguments.test_threads = asked.or(Some(threads));
        let trials = tests.into_iter().map(|Test { name, run }| {
            Trial::test(name, move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(run(World::new(name)));
                Ok(())
            })
        });
        failed |= libtest_mimic::run(&arguments, trials.collect()).has_failed();
    }
    Cluster::end_shared();
    if failed { ExitCode::from(101) } else { ExitCode::SUCCESS }
}

/// Whether the process is in its world already.
pub fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Becomes `unshare`, which starts this program again inside new namespaces.
fn enter(path: &str) -> ExitCode {
    let root = rustix::process::geteuid().is_root();
    let direct = ["-n", "-m", "-p", "--fork", "--kill-child"];
    // With the users that /etc/subuid gives this one, or as the only user that there is.
    let with_users = ["-U", "-r", "--map-auto", "-n", "-m", "-p", "--fork", "--kill-child"];
    let through_user = ["-U", "-r", "-n", "-m", "-p", "--fork", "--kill-child"];
    let ways: &[&[&str]] = if root { &[&direct, &through_user] } else { &[&with_users, &through_user] };
    let mut refusals = String::new();
    for way in ways {
        match Command::new("unshare").args(*way).arg("true").env("PATH", path).output() {
            Ok(output) if output.status.success() => {
                let program = env::current_exe().expect("the path of the running test");
                let mut command = Command::new("unshare");
                command.args(*way).arg("--").arg(program).args(env::args_os().skip(1));
                let error = command.env("PATH", path).env(INSIDE, "1").exec();
                refusals = format!("cannot run unshare: {error}");
            }
            Ok(output) => refusals = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => refusals = format!("cannot run unshare (of util-linux): {error}"),
        }
    }
    eprintln!(
        "The end-to-end tests need network namespaces, and this system refuses them: {refusals}.\n\
         Run them as root, or allow user namespaces: \
         sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0"
    );
    ExitCode::FAILURE
}

/// Process 1 of a process namespace ignores signals that it does not ask for, Control-C too.
fn end_on_signals() {
    use tokio::signal::unix::{SignalKind, signal};
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt()).expect("a handler of SIGINT");
            let mut terminate = signal(SignalKind::terminate()).expect("a handler of SIGTERM");
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
            std::process::exit(130);
        });
    });
}

/// Makes the new namespaces usable: a place for names of networks and for databases in memory, and
/// the bridge.
fn settle() {
    let mount = Command::new("mount").args(["-t", "tmpfs", "remora-test", "/run"]).output();
    let mount = mount.expect("mount, of util-linux");
    assert!(mount.status.success(), "cannot mount /run: {}", String::from_utf8_lossy(&mount.stderr));
    fs::create_dir_all("/run/netns").expect("a folder in a file system of our own");
    network::bridge();
}

/// Owning one means being the one test that may use its folder and its hosts; dropping it after a
/// failure tells where to look, after a success it removes the folder.
pub struct World {
    name: String,
    folder: PathBuf,
    hosts: Mutex<Vec<String>>,
    /// Somebody was told to look into the folder.
    told: AtomicBool,
}

impl World {
    /// A world for something with a name: a test, or a cluster that tests share.
    pub fn new(name: &str) -> World {
        let test = env::current_exe().expect("the path of the running test");
        let target = test.ancestors().nth(3).expect("tests run from target/PROFILE/deps");
        let folder = target.join("tmp").join(format!("{name}-{}", outer_pid()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)
            .unwrap_or_else(|error| panic!("cannot create {}: {error}", folder.display()));
        World { name: name.to_owned(), folder, hosts: Mutex::default(), told: AtomicBool::new(false) }
    }

    /// Where files of this test go.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where files of this test go that other users must reach: in memory, gone with the world.
    pub fn own_folder(&self) -> PathBuf {
        let folder = Path::new("/run/worlds").join(&self.name);
        fs::create_dir_all(&folder)
            .unwrap_or_else(|error| panic!("cannot create {}: {error}", folder.display()));
        folder
    }

    /// The log file of a program.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    /// Takes note of a host, to name it when the test has failed.
    pub(crate) fn remember(&self, host: &str) {
        self.hosts.lock().expect("no panic holds it").push(host.to_owned());
    }

    /// Prints the ends of the logs and how to look inside.
    pub(crate) fn tell(&self) {
        self.told.store(true, Ordering::Relaxed);
        eprintln!("--- {}: the ends of its logs in {}", self.name, self.folder.display());
        let mut logs: Vec<PathBuf> =
            fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        for log in logs {
            eprintln!("  {}:\n{}", log.file_name().unwrap_or_default().display(), program::tail(&log, 15));
        }
        let hosts = self.hosts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        eprintln!("  hosts: {}", hosts.join(" "));
        eprintln!("  {}", look_inside());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !thread::panicking() {
            if !self.told.load(Ordering::Relaxed) {
                let _ = fs::remove_dir_all(&self.folder);
            }
            return;
        }
        self.tell();
        if env::var_os(HOLD).is_some() {
            eprintln!("  held, because {HOLD} is set: interrupt the test when done");
            loop {
                thread::park();
            }
        }
    }
}

/// The command that looks into this world while it lives.
fn look_inside() -> String {
    let user = if fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295")) {
        ""
    } else {
        "-U --preserve-credentials "
    };
    format!(
        "to look inside, run the test with {HOLD}=1, then: nsenter -t {} {user}-n -m ip netns exec HOST sh",
        outer_pid()
    )
}

/// The id of this process outside of its world: /proc is the one of the outside.
pub(crate) fn outer_pid() -> String {
    fs::read_link("/proc/self").map(|pid| pid.display().to_string()).unwrap_or_default()
}
