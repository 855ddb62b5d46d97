//! The `remora` program: from the command line to the verb that does the work, and from an error to one sentence.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use sidecar::arguments::{Arguments, Verb};
use sidecar::{capture, check, config, endpoints, explain, hub, inject, logs};

/// A wrong command line.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match Arguments::parse().verb {
        Verb::Sidecar(typed) => match config::Sidecar::new(*typed, in_pod()) {
            Ok(config) => end(sidecar::sidecar::run(config).map(|()| String::new())),
            Err(error) => usage(&error),
        },
        Verb::Node(typed) => match config::Sidecar::node(*typed, in_pod()) {
            Ok(config) => end(sidecar::sidecar::run(config).map(|()| String::new())),
            Err(error) => usage(&error),
        },
        Verb::Loadbalancer(typed) => match config::Sidecar::loadbalancer(*typed, in_pod()) {
            Ok(config) => end(sidecar::sidecar::run(config).map(|()| String::new())),
            Err(error) => usage(&error),
        },
        Verb::Hub(typed) => match config::Hub::new(*typed, in_pod()) {
            Ok(config) => end(hub::run(config).map(|()| String::new())),
            Err(error) => usage(&error),
        },
        Verb::Capture { verb } => match config::Capture::new(verb) {
            Ok(config) => end(answer(capture::run(config))),
            Err(error) => usage(&error),
        },
        Verb::Inject(typed) => match config::Inject::new(typed) {
            Ok(config) => end(change(config)),
            Err(error) => usage(&error),
        },
        Verb::Uninject(typed) => end(change(config::Inject::un(typed))),
        Verb::Endpoints(typed) => match config::Endpoints::new(typed) {
            Ok(config) => end(answer(endpoints::run(config))),
            Err(error) => usage(&error),
        },
        Verb::Explain(typed) => match config::Explain::new(typed) {
            Ok(config) => end(answer(explain::run(config))),
            Err(error) => usage(&error),
        },
        Verb::Check(typed) => end(answer(check::run(typed, |text| print(text.as_bytes())))),
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "remora", &mut script);
            print(&script);
            ExitCode::SUCCESS
        }
    }
}

fn change(config: config::Inject) -> Result<String, inject::Error> {
    let config::Inject { way, file, output } = config;
    inject::run(&way, file, output, |text| print(text.as_bytes())).map(|()| String::new())
}

fn in_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty())
}

/// Runs a command that ends by itself.
fn answer<E: ToString>(command: impl Future<Output = Result<String, E>>) -> Result<String, String> {
    logs::start_for_answer();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}; raise the limit on open files"))?;
    runtime.block_on(command).map_err(|error| error.to_string())
}

fn end(result: Result<String, impl std::fmt::Display>) -> ExitCode {
    match result {
        Ok(text) => {
            print(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("remora: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(error: &config::Error) -> ExitCode {
    eprintln!("remora: {error}");
    ExitCode::from(USAGE)
}

/// Whoever reads may have enough before the end, as `head` does.
fn print(text: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text).and_then(|()| out.flush());
}
