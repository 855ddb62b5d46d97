//! Every command in a `sh` block of the README runs here, as it stands, in the root of the project. `make test` is
//! what runs this; `console` blocks need a cluster, and the end-to-end tests run what they show.

#![allow(clippy::unwrap_used, reason = "a failure is the test's failure")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn commands() -> Vec<String> {
    let readme = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let mut blocks = readme.split("```sh\n").skip(1).collect::<Vec<_>>();
    blocks.iter_mut().for_each(|block| *block = block.split("```").next().unwrap());
    let lines = blocks.iter().flat_map(|block| block.lines());
    lines.map(|line| line.split(" # ").next().unwrap().trim().to_owned()).filter(|l| !l.is_empty()).collect()
}

fn start(command: &str) -> Child {
    let remora = Path::new(env!("CARGO_BIN_EXE_remora")).parent().unwrap();
    let path = format!("{}:{}", remora.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    // The demo builds what it runs; the build of this very test has the lock on its folder no longer.
    shell.args(["-c", &format!("exec {command}")]).current_dir(ROOT).env("PATH", path);
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
}

#[test]
fn every_command_of_the_readme_runs() {
    let commands = commands();
    assert!(commands.len() >= 5, "the README shows few commands: {commands:?}");
    for command in commands.iter().filter(|command| *command != "make test") {
        println!("$ {command}");
        let mut child = start(command);
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        let serves = [
            ("remora sidecar", ["listen ", "dns "]),
            ("remora node", ["node ", "dns "]),
            ("remora hub", ["feed ", "feed "]),
        ];
        if let Some((_, says)) = serves.iter().find(|(program, _)| command.starts_with(program)) {
            // It serves until it is asked to end: once it has said where, it is.
            out.read_line(&mut said).unwrap();
            assert!(says.iter().any(|word| said.starts_with(word)), "{command} said {said:?}");
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        }
        out.read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{command}: {status}\n{said}");
        assert!(!said.trim().is_empty(), "{command} prints nothing");
    }
}
