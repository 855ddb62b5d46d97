//! A stand where connections are captured: a Pod's host, Services that the node serves, and somebody in the Pod who takes
//! what is captured.
//!
//! ```text
//!   host "pod" ──default route──▶ the test's own end, "the node", where the Service addresses are local
//!     └── 127.0.0.1:64101, [::1]:64101: the captor
//! ```
//! In: a world. Out: connections that tell who answered, `node` or `captor ADDRESS:PORT`. It never makes a rule of
//! capture: the program under test does.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::interval;

use crate::inside::{self, Client, ROOT};
use crate::{Host, Program, SOON, World, remora, tools, wait_until};

/// The user that the sidecar runs as.
pub const SIDECAR: u32 = 64102;
/// The Service's address of either family.
pub const SERVICE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10))];
/// The ranges, as `--services` takes them.
pub const RANGES: &str = "10.96.0.0/16,fd00:96::/112";
/// What the datagrams mean.
pub const ALIVE: u8 = 0x2c;
/// Capture what goes to the address and port.
pub const SERVE: u8 = 0x2b;
/// Refuse it.
pub const REFUSE: u8 = 0x2a;
/// Drop it.
pub const DROP: u8 = 0x2d;
/// Leave it to the node.
pub const PASS: u8 = 0x29;
/// Every signal.
pub const SIGNALS: [u8; 5] = [ALIVE, SERVE, REFUSE, DROP, PASS];

/// So long after the last heartbeat, nothing is captured any more.
const LAPSED: Duration = Duration::from_secs(5);

/// A Pod and the node that it is on.
pub struct Stand {
    /// The Pod's network.
    pub pod: Host,
    /// The server behind the Service, by the node's own means.
    pub node: Program,
    /// Somebody tells the rules all the time that the sidecar is alive.
    beats: Arc<AtomicBool>,
}

/// Owning one means that captured connections are taken; dropping it is the sidecar's death.
pub struct Captor(JoinHandle<()>);

/// Owning one means that the rules are told that the sidecar is alive.
pub struct Heartbeat(JoinHandle<()>, Arc<AtomicBool>);

/// The Service at a port, in both families.
pub fn service(port: u16) -> [SocketAddr; 2] {
    SERVICE.map(|ip| SocketAddr::new(ip, port))
}

impl Stand {
    /// A Pod, and a node that serves the Service at ports 80 and 81.
    pub async fn new(world: &World) -> Stand {
        let pod = Host::new(world, "pod");
        let route = pod.command("ip").args(["-6", "route", "add", "default", "via", "fd00:244::1"]).status();
        assert!(route.expect("ip, of iproute2").success(), "a default route of IPv6");
        let mut command = Command::new(tools::own("remora-test-endpoint", "tests"));
        command.arg("node");
        for ip in SERVICE {
            change_address("replace", ip);
            command.args([80, 81].map(|port| SocketAddr::new(ip, port).to_string()));
        }
        let node = Program::start(world, "node", command);
        wait_until(SOON, "the node serves", async || match node.output().starts_with("listening") {
            true => Ok(()),
            false => Err(node.state()),
        })
        .await;
        Stand { pod, node, beats: Arc::default() }
    }

    /// Runs `remora capture` in the Pod.
    pub async fn capture(&self, arguments: &[&str]) -> Result<String, String> {
        remora::run(&self.pod, &[&["capture"], arguments].concat(), None).await
    }

    /// `remora capture up` for the ranges of this stand, and more arguments.
    pub async fn up(&self, more: &[&str]) -> String {
        let arguments = [&["up", "--services", RANGES, "--strict"], more].concat();
        self.capture(&arguments).await.expect("capture works in a namespace of ours")
    }

    /// What `remora capture show` says of a family, 0 for IPv4 and 1 for IPv6.
    pub async fn show(&self, family: usize) -> Value {
        let shown = self.capture(&["show", "-o", "json"]).await.expect("it is shown");
        let mut shown: Value = serde_json::from_str(&shown).expect("JSON");
        shown["families"][family].take()
    }

    /// Waits until what is shown of both families has this value.
    pub async fn wait_shown(&self, field: &str, expected: impl Into<Value>) {
        let expected = expected.into();
        wait_until(SOON, &format!("{field} is {expected}"), async || {
            for family in 0..2 {
                let shown = self.show(family).await;
                if shown[field] != expected {
                    return Err(shown.to_string());
                }
            }
            Ok(())
        })
        .await;
    }

    /// Connects from the Pod as an application does, to either family.
    pub async fn clients(&self, port: u16) -> Vec<Client> {
        let mut clients = Vec::new();
        for to in service(port) {
            self.beat();
            let client = Client::open(&self.pod, ROOT, to).await;
            clients.push(client.unwrap_or_else(|error| panic!("{to}: {error}")));
        }
        clients
    }

    /// Connects, and tells who answers.
    pub async fn who(&self, port: u16) -> Vec<String> {
        self.clients(port).await.into_iter().map(|client| client.who).collect()
    }

    /// Sends a signal to the Service in both families.
    pub fn signal(&self, dscp: u8, port: u16) {
        for to in service(port) {
            let sent = inside::send(&self.pod, SIDECAR, to, dscp);
            let error = sent.expect_err("a signal does not leave");
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{to}: {error}");
        }
    }

    /// Beats once more, if there is a heartbeat: one that is late, on a machine that stood still, has lapsed for whoever
    /// connects right then.
    pub fn beat(&self) {
        if self.beats.load(Ordering::Relaxed) {
            for to in service(9) {
                // EPERM where the family is captured.
                let _ = inside::send(&self.pod, SIDECAR, to, ALIVE);
            }
        }
    }

    /// Begins to take what is captured.
    pub fn captor(&self) -> Captor {
        let listeners: Vec<TcpListener> = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]
            .into_iter()
            .map(|ip| {
                let socket = inside::within(&self.pod, ROOT, move || listen(SocketAddr::new(ip, 64101)));
                TcpListener::from_std(socket.expect("a transparent listener").into()).expect("a listener")
            })
            .collect();
        Captor(tokio::spawn(async move {
            let mut taken = JoinSet::new();
            loop {
                let accepts = listeners.iter().map(|listener| Box::pin(listener.accept()));
                let (accepted, ..) = futures::future::select_all(accepts).await;
                if let Ok((stream, _)) = accepted {
                    taken.spawn(converse(stream));
                }
            }
        }))
    }

    /// Begins to tell the rules that the sidecar is alive, and serves ports 80 and 81; returns when they know.
    pub async fn heartbeat(&self) -> Heartbeat {
        let sockets = service(9).map(|to| {
            (to, inside::udp(&self.pod, SIDECAR, to.ip(), ALIVE).expect("a socket of the sidecar's user"))
        });
        let beating = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1));
            loop {
                ticks.tick().await;
                for (to, socket) in &sockets {
                    // EPERM, as it must be.
                    let _ = socket.send_to(b"", to);
                }
            }
        });
        self.beats.store(true, Ordering::Relaxed);
        let heartbeat = Heartbeat(beating, self.beats.clone());
        self.wait_shown("alive", true).await;
        [80, 81].into_iter().for_each(|port| self.signal(SERVE, port));
        heartbeat
    }

    /// Ends a heartbeat, and returns when the rules have noticed.
    ///
    /// # Panics
    /// When who looks five seconds later still sees it alive.
    pub async fn lapse(&self, heartbeat: Heartbeat) {
        drop(heartbeat);
        let last = Instant::now();
        for family in 0..2 {
            loop {
                let looked = last.elapsed();
                let shown = self.show(family).await;
                if shown["alive"] == false {
                    break;
                }
                assert!(looked < LAPSED, "after {looked:?}: {shown}");
            }
        }
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for ip in SERVICE {
            change_address("del", ip);
        }
    }
}

impl Drop for Captor {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.1.store(false, Ordering::Relaxed);
        self.0.abort();
    }
}

/// Adds or removes an address of the node's own.
fn change_address(deed: &str, ip: IpAddr) {
    let address = format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 });
    let mut command = Command::new("ip");
    command.args(["addr", deed, &address, "dev", "lo"]);
    if deed != "del" && ip.is_ipv6() {
        command.arg("nodad");
    }
    let output = command.output().expect("ip, of iproute2");
    assert!(output.status.success(), "{deed} {address}: {}", String::from_utf8_lossy(&output.stderr));
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Greets with the address that was dialled, echoes until the client's end, ends.
async fn converse(mut stream: TcpStream) -> io::Result<()> {
    let greeting = format!("captor {}\n", stream.local_addr()?);
    stream.write_all(greeting.as_bytes()).await?;
    let (mut read, mut write) = stream.split();
    copy(&mut read, &mut write).await?;
    write.shutdown().await
}
