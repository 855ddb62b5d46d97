//! A child program: started with its output in a file, stopped by its own process id.
//!
//! In: a command. Out: a handle that owns the process; dropping it kills. It never touches a
//! process that it did not start, and never starts one again.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::{World, wait_until};

/// Owning one means that the process runs until it ends by itself, is stopped, or this is dropped.
pub struct Program {
    name: String,
    log: PathBuf,
    child: Mutex<Child>,
}

impl Program {
    /// Starts `command` with both its outputs in the file `NAME.log` of the world's folder.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(world: &World, name: &str, mut command: Command) -> Program {
        let log = world.log(name);
        let file =
            File::create(&log).unwrap_or_else(|error| panic!("cannot create {}: {error}", log.display()));
        let errors = file.try_clone().expect("a second handle of the log");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        Program { name: name.to_owned(), log, child: Mutex::new(child) }
    }

    /// All that it has written so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().expect("no panic holds it").try_wait().expect("the state of a child")
    }

    /// Its memory that is resident, in bytes.
    ///
    /// # Panics
    /// When it has ended.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most of its memory that was resident at any moment, in bytes.
    ///
    /// # Panics
    /// When it has ended.
    pub fn most_resident(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(self.outside().join("status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("resident memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// The CPU time of all its threads so far, in nanoseconds.
    ///
    /// # Panics
    /// When it has ended.
    pub fn cpu(&self) -> u64 {
        let tasks = fs::read_dir(self.outside().join("task")).expect("it runs").flatten();
        let spent = tasks.map(|task| fs::read_to_string(task.path().join("schedstat")).unwrap_or_default());
        spent.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// Its folder in /proc, which is the one outside of the world and numbers processes differently.
    fn outside(&self) -> PathBuf {
        let inner = self.child.lock().expect("no panic holds it").id().to_string();
        let world = fs::read_link("/proc/self/ns/pid").expect("a world of processes");
        let mine = |process: &PathBuf| {
            let status = fs::read_to_string(process.join("status")).unwrap_or_default();
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            ids.is_some_and(|ids| ids.split_whitespace().last() == Some(&inner))
                && fs::read_link(process.join("ns/pid")).is_ok_and(|theirs| theirs == world)
        };
        let processes = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
        processes.into_iter().find(mine).unwrap_or_else(|| panic!("{} has ended", self.name))
    }

    /// Sends a signal, whatever the process makes of it. Nothing happens to one that has ended.
    pub fn signal(&self, signal: Signal) {
        let mut child = self.child.lock().expect("no panic holds it");
        // A child that was not waited for keeps its id, so the id cannot be somebody else's.
        if child.try_wait().expect("the state of a child").is_none() {
            let pid = Pid::from_child(&child);
            kill_process(pid, signal).unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
        }
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Panics
    /// When it has not ended within `deadline`.
    pub async fn stop(&self, deadline: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(deadline).await
    }

    /// Ends it at once (SIGKILL) and waits until the kernel has taken it away.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        self.child.lock().expect("no panic holds it").wait().expect("the end of a child");
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// When it has not ended within `deadline`.
    pub async fn wait(&self, deadline: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        wait_until(deadline, &what, async || self.ended().ok_or_else(|| "it runs".to_owned())).await
    }

    /// Its state in a few words and the last lines of its log, to say why something did not happen.
    pub fn state(&self) -> String {
        let state = match self.ended() {
            None => "runs".to_owned(),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("has ended with exit code {code}"),
                (_, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
            },
        };
        format!("{} {state}; its log ends with\n{}", self.name, tail(&self.log, 8))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A poisoned lock belongs to a test that failed already.
        let child = self.child.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The last `lines` lines of a file, indented.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    let last: Vec<String> =
        all[all.len().saturating_sub(lines)..].iter().map(|line| format!("    {line}")).collect();
    last.join("\n")
}
