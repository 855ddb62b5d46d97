//! Node ports as clients meet them. In: a `remora node` and a Service. Out: who answers there, or how nobody does.
//! Never tries a connection twice.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;
use serde_json::json;

use crate::{Host, Namespace, SOON, Sidecar, load, wait_until};

/// Who answered a new connection, or what the system said; `None` if that was something else.
pub type Met = Result<String, Option<Errno>>;

/// Who comes again takes silence for an answer after this: a SYN was repeated meanwhile.
const BRIEF: Duration = Duration::from_secs(3);

/// What a new connection to an address meets, given the time of a machine that stands still now and then.
pub async fn met(address: SocketAddr) -> Met {
    load::connect(address).await.map_err(|error| {
        // The load puts words around the system's error.
        let kinds = [
            (std::io::ErrorKind::ConnectionRefused, Errno::CONNREFUSED),
            (std::io::ErrorKind::ConnectionReset, Errno::CONNRESET),
            (std::io::ErrorKind::TimedOut, Errno::TIMEDOUT),
        ];
        kinds.into_iter().find(|(kind, _)| *kind == error.kind()).map(|(_, errno)| errno)
    })
}

/// Waits until a new connection to an address meets what `is_it` says.
pub async fn wait_met(node: &Sidecar, address: SocketAddr, what: &str, is_it: impl Fn(&Met) -> bool) {
    wait_until(SOON, &format!("{address}: {what}"), async || {
        let met = tokio::time::timeout(BRIEF, met(address)).await;
        match met.unwrap_or(Err(Some(Errno::TIMEDOUT))) {
            met if is_it(&met) => Ok(()),
            other => Err(format!("{other:?}; {}", node.program.state())),
        }
    })
    .await;
}

/// Makes the Service `web` of type NodePort; its node port.
pub async fn node_port(namespace: &Namespace, mut spec: serde_json::Value) -> u16 {
    spec["type"] = json!("NodePort");
    namespace.service("web", spec).await;
    number(namespace).await
}

/// The node port of `web`.
pub async fn number(namespace: &Namespace) -> u16 {
    let spec = namespace.services().get("web").await.expect("the Service").spec.expect("a spec");
    let port = spec.ports.expect("ports").remove(0);
    port.node_port.and_then(|port| u16::try_from(port).ok()).expect("a node port")
}

/// The node port at both addresses of a node.
pub fn at(node: &Sidecar, port: u16) -> [SocketAddr; 2] {
    node.host.ips().map(|ip| SocketAddr::new(ip, port))
}

/// Whether nobody listened.
pub fn refused(met: &Met) -> bool {
    *met == Err(Some(Errno::CONNREFUSED))
}

/// Waits until a client on a host is answered by `name`.
pub async fn wait_from(host: &Host, address: SocketAddr, name: &str, why: &str) {
    wait_until(SOON, &format!("{name} answers at {address}: {why}"), async || {
        match from(host, address).await? {
            met if met == name => Ok(()),
            met => Err(met),
        }
    })
    .await;
}

async fn from(host: &Host, address: SocketAddr) -> Result<String, String> {
    let mut command = host.command("python3");
    let script = "import socket, sys\n\
                  s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)\n\
                  print(s.makefile().readline().strip(), end=\"\")";
    command.args(["-c", script, &address.ip().to_string(), &address.port().to_string()]);
    let output = tokio::process::Command::from(command).kill_on_drop(true).output().await.expect("python3");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{address}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}
