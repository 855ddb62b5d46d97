//! Node ports as clients meet them. In: a `remora node` and a Service. Out: who answers there, or how nobody does.
//! Never tries a connection twice.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;
use serde_json::json;

use crate::{Host, Namespace, SOON, Sidecar, load, wait_until};

/// Who answered a new connection, or what the system said; `None` if that was something else.
pub type Met = Result<String, Option<Errno>>;

/// What a new connection to an address meets.
pub async fn met(address: SocketAddr) -> Met {
    match tokio::time::timeout(Duration::from_secs(3), load::connect(address)).await {
        Ok(Ok(name)) => Ok(name),
        Ok(Err(error)) => {
            // The load puts words around the system's error.
            let kinds = [
                (std::io::ErrorKind::ConnectionRefused, Errno::CONNREFUSED),
                (std::io::ErrorKind::ConnectionReset, Errno::CONNRESET),
            ];
            Err(kinds.into_iter().find(|(kind, _)| *kind == error.kind()).map(|(_, errno)| errno))
        }
        Err(_) => Err(Some(Errno::TIMEDOUT)),
    }
}

/// Waits until a new connection to an address meets what `is_it` says.
pub async fn wait_met(node: &Sidecar, address: SocketAddr, what: &str, is_it: impl Fn(&Met) -> bool) {
    wait_until(SOON, &format!("{address}: {what}"), async || match met(address).await {
        met if is_it(&met) => Ok(()),
        other => Err(format!("{other:?}; {}", node.program.state())),
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

/// Who answers a client on a host.
pub async fn from(host: &Host, address: SocketAddr) -> String {
    let mut command = host.command("python3");
    let script = "import socket, sys\n\
                  s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)\n\
                  print(s.makefile().readline().strip(), end=\"\")";
    command.args(["-c", script, &address.ip().to_string(), &address.port().to_string()]);
    let output = tokio::process::Command::from(command).output().await.expect("python3");
    assert!(output.status.success(), "{address}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
