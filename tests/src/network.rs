//! Hosts: network namespaces with an address of either family, on one bridge or behind a router.
//!
//! ```text
//!   the test itself, 10.244.0.1 fd00:244::1
//!   ───────────┬────────────────┬──────────────── bridge
//!         eth0 │           eth0 │
//!      host a: 10.244.0.2    host b: 10.244.0.3
//!              fd00:244::2          fd00:244::3
//! ```
//!
//! A host behind a router (a Pod on a [`crate::Node`]) has a cable of its own to it and no bridge:
//! every packet of it is routed, also to its neighbour.
//!
//! In: names. Out: places to start programs in, whose packets can be dropped. It never touches the
//! network of the machine: all of this is inside the world's own namespaces.

use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use crate::World;

/// The bridge of the world; its addresses are the test's own.
const BRIDGE: &str = "remora0";

/// Given, since a bridge without one takes that of a port: when the host of that port goes, at a moment of the kernel's
/// choice, everybody else would go on sending to an address that is nobody's.
const BRIDGE_MAC: &str = "02:52:65:6d:6f:72";

/// The last number given to a host. Addresses are never given twice: a stale connection must not
/// find a new server by chance, unless a test wants that and asks for it.
static LAST: AtomicU16 = AtomicU16::new(1);

/// Owning one means that the network namespace and its addresses exist; dropping it takes them away,
/// as the end of a Pod does: packets for it are no longer answered at all.
pub struct Host {
    name: String,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
}

/// What a host behind a router is told: its own addresses, and the router's as it sees them.
pub(crate) struct Lease {
    pub(crate) ip4: Ipv4Addr,
    pub(crate) ip6: Ipv6Addr,
    pub(crate) gateway: Ipv4Addr,
}

impl Host {
    /// Makes a host on the bridge. `name` is for people; it is made unique.
    pub fn new(world: &World, name: &str) -> Host {
        let number = number();
        let host = Host { name: format!("{name}-{number}"), ip4: v4(number), ip6: v6(number) };
        let Host { name, ip4, ip6 } = &host;
        run(Command::new("ip").args(["netns", "add", name]));
        batch(
            &[],
            &format!(
                "link add veth{number} type veth peer name eth0 netns {name}\n\
                 link set veth{number} master {BRIDGE} up\n"
            ),
        );
        batch(
            &["-netns", name],
            &format!(
                "link set lo up\nlink set eth0 up\n\
                 addr add {ip4}/16 dev eth0\naddr add {ip6}/64 dev eth0 nodad\n\
                 route add default via {}\n",
                v4(1),
            ),
        );
        run(host.command("sh").args(["-c", PORTS]));
        world.remember(&host.name);
        host
    }

    /// Makes a host behind `router`, as most network plugins make a Pod's: its addresses are alone
    /// in their subnets, and the router's end of the cable is the way to everybody else.
    pub(crate) fn behind(world: &World, name: &str, router: &Host, lease: &Lease) -> Host {
        let number = number();
        let host = Host { name: format!("{name}-{number}"), ip4: lease.ip4, ip6: lease.ip6 };
        let (Host { name, ip4, ip6 }, gateway) = (&host, lease.gateway);
        run(Command::new("ip").args(["netns", "add", name]));
        batch(
            &["-netns", &router.name],
            &format!(
                "link add veth{number} type veth peer name eth0 netns {name}\nlink set veth{number} up\n\
                 addr add {gateway}/32 dev veth{number}\naddr add {GATEWAY6}/64 dev veth{number} nodad\n\
                 route add {ip4}/32 dev veth{number}\nroute add {ip6}/128 dev veth{number}\n"
            ),
        );
        batch(
            &["-netns", name],
            &format!(
                "link set lo up\nlink set eth0 up\n\
                 addr add {ip4}/32 dev eth0\naddr add {ip6}/128 dev eth0 nodad\n\
                 route add {gateway} dev eth0 scope link\nroute add default via {gateway}\n\
                 route add default via {GATEWAY6} dev eth0\n"
            ),
        );
        run(host.command("sh").args(["-c", PORTS]));
        world.remember(&host.name);
        host
    }

    /// Lets this host pass on what is not for itself, with a way for every destination in either
    /// family: a packet without one would end before any rule about forwarding sees it.
    pub(crate) fn forward(&self) {
        run(self.command("sh").args(["-c", FORWARD]));
        self.route(&[format!("default via {}", v6(1))]);
    }

    /// Adds routes, each a line as `ip route add` takes it.
    pub(crate) fn route(&self, routes: &[String]) {
        batch(&["-netns", &self.name], &lines(routes));
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> Ipv4Addr {
        self.ip4
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> Ipv6Addr {
        self.ip6
    }

    /// Both its addresses, IPv4 first.
    pub fn ips(&self) -> [IpAddr; 2] {
        [self.ip4().into(), self.ip6().into()]
    }

    /// A command that runs `program` in this host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        inside(&self.name, program)
    }

    /// A command that runs `program` in this host as an ordinary user, who has no capability but
    /// those that `capabilities` names, such as `net_raw`, and can gain none.
    ///
    /// # Panics
    /// When this world has no such user.
    pub fn command_as(&self, user: u32, capabilities: &[&str], program: impl AsRef<Path>) -> Command {
        let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        assert!(
            has_user(&users, user),
            "there is no user {user} in the user namespace of this test: run it as root, or install \
             newuidmap (Debian: uidmap) and give yourself a range in /etc/subuid and /etc/subgid"
        );
        let held: String = capabilities.iter().map(|capability| format!(",+{capability}")).collect();
        let mut command = self.command("setpriv");
        command
            .args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()])
            // In this order a process of root gives up what it may not keep.
            .args([format!("--inh-caps=-all{held}"), format!("--ambient-caps=-all{held}")])
            .args([format!("--bounding-set=-all{held}"), "--no-new-privs".to_owned(), "--".to_owned()])
            .arg(program.as_ref());
        command
    }

    /// The ports from which this host has TCP connections to `remote` open, as the kernel sees it.
    pub fn ports_to(&self, remote: Ipv4Addr) -> Vec<u16> {
        let output =
            self.command("ss").args(["-Htn", "state", "established", "dst", &remote.to_string()]).output();
        let text = String::from_utf8(output.expect("ss, of iproute2").stdout).expect("ss prints text");
        text.lines()
            .filter_map(|line| line.split_whitespace().nth(2)?.rsplit(':').next()?.parse().ok())
            .collect()
    }

    /// Drops, in silence and in both directions, what matches an nftables expression, until the
    /// returned value is dropped.
    pub fn drop_packets(&self, towards: &str, from: &str) -> Dropped {
        let rules = format!(
            "table inet remora_test {{\n\
             chain out {{ type filter hook output priority 0; {towards} drop; }}\n\
             chain in {{ type filter hook input priority 0; {from} drop; }}\n}}\n"
        );
        run(self.command("nft").arg(rules));
        Dropped { host: self.name.clone() }
    }

    /// Drops all packets between this host and `remote`.
    pub fn cut_off(&self, remote: Ipv4Addr) -> Dropped {
        self.drop_packets(&format!("ip daddr {remote}"), &format!("ip saddr {remote}"))
    }

    /// Drops all packets of the connections that this host has open to `remote`; new ones pass. So a
    /// connection falls silent without an end, as when a load balancer between has lost its state.
    pub fn silence(&self, remote: Ipv4Addr) -> Dropped {
        let ports = self.ports_to(remote);
        assert!(!ports.is_empty(), "{} has no connection to {remote} that could fall silent", self.name);
        let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        self.drop_packets(
            &format!("ip daddr {remote} tcp sport {{ {ports} }}"),
            &format!("ip saddr {remote} tcp dport {{ {ports} }}"),
        )
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

/// Owning one means that the packets are being dropped.
pub struct Dropped {
    host: String,
}

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = inside(&self.host, "nft").arg("delete table inet remora_test").stderr(Stdio::null()).status();
    }
}

/// Sets up the test's own end: loopback, the bridge and its addresses. Once a world.
pub(crate) fn bridge() {
    batch(
        &[],
        &format!(
            "link set lo up\nlink add {BRIDGE} address {BRIDGE_MAC} type bridge\nlink set {BRIDGE} up\n\
             addr add {}/16 dev {BRIDGE}\naddr add {}/64 dev {BRIDGE} nodad\n",
            v4(1),
            v6(1)
        ),
    );
    run(Command::new("sh").args(["-c", PORTS]));
}

/// Room for many short connections between two addresses: 28,000 ports that rest for a minute each
/// would end a test of 500 connections a second after 56 seconds. No port on which a program of a
/// test listens is among them, since a connection could have it when the program starts.
const PORTS: &str = "echo 16000 64000 >/proc/sys/net/ipv4/ip_local_port_range && \
                     echo 30000-32767 >/proc/sys/net/ipv4/ip_local_reserved_ports && \
                     echo 1 >/proc/sys/net/ipv4/tcp_tw_reuse";

/// What makes a host a router.
const FORWARD: &str = "echo 1 >/proc/sys/net/ipv4/ip_forward && \
                       echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";

/// The router's address on each of its cables, as the hosts behind it know it.
const GATEWAY6: &str = "fe80::1";

/// Adds routes to the test's own end, as [`Host::route`] does to a host.
pub(crate) fn route(routes: &[String]) {
    batch(&[], &lines(routes));
}

/// Whether a user is in a table of users: first here, first outside, how many.
fn has_user(table: &str, user: u32) -> bool {
    table.lines().any(|line| {
        let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        matches!(numbers[..], [first, _, count] if user.checked_sub(first).is_some_and(|from| from < count))
    })
}

fn lines(routes: &[String]) -> String {
    routes.iter().map(|route| format!("route add {route}\n")).collect()
}

fn number() -> u16 {
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

fn v4(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 244, high, low)
}

fn v6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, number)
}

fn inside(host: &str, program: impl AsRef<OsStr>) -> Command {
    // Not `ip netns exec`: that mounts a new /sys, which not every container allows.
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{host}")).arg("--").arg(program);
    command
}

fn run(command: &mut Command) {
    let output =
        command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}; run tests/tools"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
}

/// Many `ip` commands in one process.
fn batch(arguments: &[&str], commands: &str) {
    use std::io::Write;
    let mut child = Command::new("ip")
        .args(arguments)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run ip: {error}; run tests/tools"));
    child.stdin.take().expect("a pipe").write_all(commands.as_bytes()).expect("ip reads its commands");
    let output = child.wait_with_output().expect("the end of ip");
    assert!(output.status.success(), "ip: {}\n{commands}", String::from_utf8_lossy(&output.stderr).trim());
}
