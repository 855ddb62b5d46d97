//! A server that speaks first, as a database does: TCP, at an address of the test's own end.
//!
//! In: a name and an address. Out: a process that greets with the name, listening. It never tells more.

use std::net::SocketAddr;
use std::process::Command;

use crate::{Program, SOON, World, tools, wait_until};

/// Starts one, and waits until it listens: who is refused before that has met a failure of the test's, and an Envoy that
/// is told so puts the endpoint aside.
pub async fn greeter(world: &World, name: &str, address: SocketAddr) -> Program {
    let mut command = Command::new(tools::own("remora-test-endpoint", "tests"));
    command.args([name, &address.to_string()]);
    let program = Program::start(world, name, command);
    wait_until(SOON, &format!("{name} listens"), async || match program.output().starts_with("listening") {
        true => Ok(()),
        false => Err(program.state()),
    })
    .await;
    program
}
