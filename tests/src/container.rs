//! A container as a CRI makes it for a Pod, run by runc: a root file system that is only read, a
//! user that is not root, the capabilities of the bounding set and no ambient ones, no new
//! privileges, /proc/sys only read.
//!
//! In: a host, whose network it joins, and what `remora` shall do. Out: `remora` running there, and
//! what the kernel says about it. It never gives the process more than a kubelet could be asked for:
//! `capabilities: {drop: [ALL], add: […]}`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::{Host, Image, Program, World, tools};

/// What the program may be given at all; it takes what the container has of it.
const FILE_CAPABILITIES: &str = "cap_net_raw,cap_net_bind_service,cap_net_admin+p";

/// The user of the container.
const USER: u32 = 64102;

/// Where runc keeps its own state: in the world's memory.
const STATE: &str = "/run/runc";

/// Owning one means that it runs until its process ends by itself; dropping it ends and removes it.
pub struct Container {
    /// runc, whose output is the process's and which passes on signals.
    pub program: Program,
    name: String,
}

/// What a container runs, and as whom.
pub struct Process<'a> {
    /// What its root file system and its program are from; without one, the program of the test's build and this system's
    /// libraries.
    pub image: Option<&'a Image>,
    /// The user, and its group.
    pub user: u32,
    /// The bounding set, such as `CAP_NET_RAW`.
    pub capabilities: &'a [&'a str],
    /// Each `NAME=VALUE`.
    pub environment: &'a [&'a str],
    /// What is in its root, beside the program.
    pub files: &'a [File<'a>],
    /// Of `remora`.
    pub arguments: &'a [&'a str],
}

/// A file in a container.
pub struct File<'a> {
    /// Its path, from `/`.
    pub name: &'a str,
    /// What is in it; only the container's user reads it.
    pub content: String,
}

impl Container {
    /// Starts `remora` with `arguments` on a host's network, with these capabilities in the bounding
    /// set, such as `CAP_NET_RAW`.
    pub fn start(
        world: &World,
        host: &Host,
        capabilities: &[&str],
        environment: &[&str],
        files: &[File<'_>],
        arguments: &[&str],
    ) -> Container {
        let process = Process { image: None, user: USER, capabilities, environment, files, arguments };
        Container::run(world, host, "", &process)
    }

    /// The same for any user; `name` tells apart the containers on a host.
    pub fn run(world: &World, host: &Host, name: &str, process: &Process<'_>) -> Container {
        let name = format!("{}{name}-{}", host.name(), crate::world::outer_pid());
        let bundle = world.own_folder().join(&name);
        let root = bundle.join("rootfs");
        fs::create_dir_all(&root).expect("a folder in memory");
        match process.image {
            Some(image) => image.lay(&root),
            None => install(&root),
        }
        for File { name, content } in process.files {
            let path = root.join(name.trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("a path below a root"))
                .and_then(|()| fs::write(&path, content))
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o400)))
                .and_then(|()| chown(&path, Some(process.user), Some(process.user)))
                .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        }
        let config = config(host, process);
        fs::write(bundle.join("config.json"), config.to_string()).expect("a file in memory");
        let mut command = runc();
        command.arg("run").arg("--bundle").arg(&bundle).arg(&name);
        Container { program: Program::start(world, &format!("runc-{name}"), command), name }
    }

    /// What the kernel says about its process, line by line of `/proc/PID/status`.
    pub fn status(&self) -> Result<BTreeMap<String, String>, String> {
        let state = output(runc().args(["state", &self.name]))?;
        let state: Value = serde_json::from_str(&state).map_err(|error| format!("{error}: {state}"))?;
        let text =
            output(with_proc("exec cat \"/proc/$1/status\"").args(["cat", &state["pid"].to_string()]))?;
        let line = |line: &str| line.split_once(':').map(|(name, value)| (name.into(), value.trim().into()));
        Ok(text.lines().filter_map(line).collect())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = runc().args(["delete", "--force", &self.name]).stderr(Stdio::null()).status();
    }
}

fn runc() -> Command {
    let mut command = with_proc("exec runc \"$@\"");
    command.args(["runc", "--root", STATE]);
    command
}

/// A shell's command with a view of mounts of its own: /proc in a world is the one of the outside, and this one is of the
/// world's processes.
fn with_proc(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &format!("mount -t proc proc /proc && {script}")]);
    command
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// Puts the program into a root file system, with its file capabilities.
fn install(root: &Path) {
    let program = root.join("remora");
    tools::copy_program(&tools::own("remora", "sidecar"), &program);
    let output = Command::new("setcap").arg(FILE_CAPABILITIES).arg(&program).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run setcap: {error}; run tests/tools"));
    assert!(output.status.success(), "setcap: {}", String::from_utf8_lossy(&output.stderr).trim());
}

/// What a CRI writes, without what needs the machine: limits of cgroups, and the profile of seccomp.
fn config(host: &Host, process: &Process<'_>) -> Value {
    let Process { image, user, capabilities, environment, arguments, .. } = process;
    let program = image.map_or_else(|| vec!["/remora"], Image::entrypoint);
    let arguments: Vec<&str> = program.iter().chain(*arguments).copied().collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": user, "gid": user, "additionalGids": [user]},
            "cwd": "/",
            "args": arguments,
            "env": environment,
            // A CRI puts the same into these three, and nothing into the inheritable and ambient sets.
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": mounts(image.is_none()),
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network", "path": format!("/run/netns/{}", host.name())},
            ],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// The usual ones, and this system's libraries where the program is not linked statically.
fn mounts(with_libraries: bool) -> Vec<Value> {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
    ];
    if !with_libraries {
        return mounts;
    }
    for folder in ["/usr", "/bin", "/lib", "/lib64"].map(PathBuf::from) {
        if folder.is_dir() {
            let options = ["rbind", "ro", "nosuid", "nodev"];
            mounts.push(json!({"destination": folder, "type": "bind", "source": folder, "options": options}));
        }
    }
    mounts
}
