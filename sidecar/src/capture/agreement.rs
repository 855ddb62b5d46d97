//! What the rules of `remora capture` and a capturing sidecar agree on: numbers, signals, names of sets. Values only;
//! both sides read them here, and neither ever writes one down again.
//!
//! ```text
//!  sidecar, as user 64102                            rules, in the same network namespace
//!    listens on 127.0.0.1:64101, [::1]:64101 ◀──────── route to lo, TPROXY
//!    a UDP datagram to a captured address ───────────▶ a set entry; the datagram is dropped, so sendto says EPERM
//! ```
//! The numbers keep clear of those of Istio, Linkerd, Calico and Cilium: ports 15001 and 4140, users 1337 and 2102,
//! low marks, table 100, preferences 99 and 100.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// The user that the sidecar runs as, unless `remora capture --user` says otherwise. Its own connections are not taken,
/// and only its signals count.
pub const USER: u32 = 64102;
/// The port of the sidecar's transparent TCP listeners.
pub const PORT: u16 = 64101;
/// Where captured IPv4 connections arrive: on loopback, so that nothing outside can connect to it.
pub const LISTENER_V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Where captured IPv6 connections arrive.
pub const LISTENER_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// The mark of packets that go to the node, in the bits of [`MARK_MASK`]; the other bits are left as they are.
pub const MARK: u32 = 0x6410_0000;
/// The bits of a mark that are ours.
pub const MARK_MASK: u32 = 0xfff0_0000;
/// The preference of the `ip rule` that has TCP without the mark looked up in [`ROUTING_TABLE`].
pub const RULE_PREFERENCE: u32 = 64;
/// The routing table in which the ranges of Service addresses are local.
pub const ROUTING_TABLE: u32 = 64102;

/// The nftables table, of family inet.
pub const TABLE: &str = "remora";

/// How long new connections are captured without another [`Signal::Alive`].
pub const ALIVE_LASTS: Duration = Duration::from_secs(3);
/// How often [`Signal::Alive`] is to be sent, to each captured family.
pub const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// How long a [`Signal::Serve`], [`Signal::Refuse`], [`Signal::Drop`] or [`Signal::Leave`] holds without another one.
pub const VERDICT_LASTS: Duration = Duration::from_secs(180);
/// How long a flow that is not captured is remembered after its last packet.
pub const PASSED_LASTS: Duration = Duration::from_secs(24 * 60 * 60);
/// The same after its client has said that it will send no more.
pub const CLOSING_LASTS: Duration = Duration::from_secs(10 * 60);

/// The set of families whose sidecar is alive; its keys are `meta nfproto`.
pub const ALIVE_SET: &str = "alive";
/// The set of families whose sidecar learns; its keys are those of [`ALIVE_SET`].
pub const LEARNING_SET: &str = "learning";
/// Without the family's number, 4 or 6: the sets of what is captured.
pub const SERVICES_SET: &str = "services";
/// Address and port of Service ports whose connections are captured.
pub const SERVED_SET: &str = "served";
/// Address and port of refused Service ports.
pub const REFUSED_SET: &str = "refused";
/// Address and port of Service ports whose connections are dropped.
pub const DROPPED_SET: &str = "dropped";
/// Address and port of what is the node's business though the sidecar learns.
pub const LEFT_SET: &str = "left";
/// Source port, address and port of flows that go to the node, those of [`CLOSING_SET`] among them.
pub const PASSED_SET: &str = "passed";
/// Those of them whose client has said that it will send no more.
pub const CLOSING_SET: &str = "closing";

/// What the sidecar tells the rules: a UDP datagram of its user, of any content, to an address in the captured ranges.
/// It concerns the datagram's own IP family alone. It never leaves: `sendto` fails with EPERM, as it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Here is somebody who takes connections; holds for [`ALIVE_LASTS`]. Address and port do not matter.
    Alive,
    /// And finds out whose an address and port are of which nothing has been said: capture new connections to them, too.
    /// Holds for [`ALIVE_LASTS`].
    Learn,
    /// Capture new connections to this address and port; holds for [`VERDICT_LASTS`], as the next three do. The last
    /// of the five that was said of a place counts.
    Serve,
    /// Refuse new connections to this address and port.
    Refuse,
    /// Drop new connections to this address and port.
    Drop,
    /// Leave new connections to this address and port to the node, though the sidecar learns.
    Leave,
    /// Leave new connections to this address and port to the node, as if nothing had been said of them.
    Pass,
}

impl Signal {
    /// Every signal.
    pub const ALL: [Self; 7] =
        [Self::Alive, Self::Learn, Self::Serve, Self::Refuse, Self::Drop, Self::Leave, Self::Pass];

    /// The six bits by which the rules know it: the upper ones of IPv4's type of service (`IP_TOS`) and of IPv6's
    /// traffic class (`IPV6_TCLASS`), so both options take this times four.
    pub const fn dscp(self) -> u8 {
        match self {
            Self::Alive => 0x2c,
            Self::Refuse => 0x2a,
            Self::Drop => 0x2d,
            Self::Serve => 0x2b,
            Self::Pass => 0x29,
            Self::Learn => 0x28,
            Self::Leave => 0x27,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signals_are_neighbours_so_that_one_rule_drops_them_all() {
        let mut dscp = Signal::ALL.map(Signal::dscp);
        dscp.sort();
        assert_eq!(dscp, [0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d]);
    }

    #[test]
    fn the_mark_lies_in_its_mask() {
        assert_eq!(MARK & !MARK_MASK, 0);
    }
}
