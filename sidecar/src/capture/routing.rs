//! The routing rule that TCP without the mark follows, and the routes that make Service addresses local to it. In: a
//! family or a range, or what the kernel says. Out: messages, or what they say. Never sends anything;
//! [`super::kernel`] does.
//!
//! ```text
//! ip rule add pref 64 iif lo ipproto tcp fwmark 0/0xfff00000 lookup 64102
//! ip route add local 10.96.0.0/16 dev lo table 64102 src 10.244.0.7
//! ```
//! `iif lo` means: sent from here. With it the kernel leaves the protocol out when it checks whether the sender of what
//! arrives is where it should be, so that the node's answers from Service addresses pass this check, `rp_filter` too.
//! The source is that of the way to the node: a connection may leave by it after all.

use std::net::IpAddr;

use ipnet::IpNet;

use super::agreement::{MARK_MASK, ROUTING_TABLE, RULE_PREFERENCE};
use super::expression::{LO, TCP};
use super::family::{Family, octets};
use super::message::{Attributes, CREATE, DUMP, EXCLUSIVE, Message, REPLACE, attribute, number, text};
use super::table::address;

/// The kernel's names for messages.
const GET_LINK: u16 = 18;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;

/// Attributes of a rule.
const RULE_INPUT: u16 = 3;
const RULE_PRIORITY: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_TABLE: u16 = 15;
const RULE_MASK: u16 = 16;
const RULE_PROTOCOL: u16 = 22;
/// Protocol, range of source ports, range of destination ports.
const RULE_LOOKS: [u16; 3] = [RULE_PROTOCOL, 23, 24];
/// A rule that leads to a table.
const TO_TABLE: u8 = 1;

/// Attributes of a route.
const ROUTE_DESTINATION: u16 = 1;
const ROUTE_DEVICE: u16 = 4;
const ROUTE_SOURCE: u16 = 7;
const ROUTE_METRICS: u16 = 8;
const ROUTE_TABLE: u16 = 15;
/// Within its metrics.
const METRIC_MTU: u16 = 2;
/// Who made a route: an administrator.
const STATIC: u8 = 4;
/// Only for this machine.
const SCOPE_HOST: u8 = 254;
/// The first scope that does not reach beyond a link.
const SCOPE_LINK: u8 = 253;
/// A route to this machine itself.
const LOCAL: u8 = 2;

/// An attribute of a link.
const LINK_MTU: u16 = 4;

/// A range of Service addresses, made local.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The addresses.
    pub(super) range: IpNet,
    /// The address that connections to them come from.
    pub(super) source: IpAddr,
}

impl Route {
    /// Makes it, in place of another one of the range.
    pub(super) fn make(&self) -> Message {
        self.message(NEW_ROUTE, CREATE | REPLACE)
    }

    /// Removes it; refused if it is not there.
    pub(super) fn delete(&self) -> Message {
        self.message(DELETE_ROUTE, 0)
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let family = Family::of(self.source);
        // Family, lengths of destination and source, TOS, table (below), who, scope, type, flags.
        let header =
            [family.number(), self.range.prefix_len(), 0, 0, 0, STATIC, SCOPE_HOST, LOCAL, 0, 0, 0, 0];
        let attributes = Attributes::default()
            .bytes(ROUTE_DESTINATION, &octets(self.range.network()))
            .native(ROUTE_TABLE, ROUTING_TABLE)
            .native(ROUTE_DEVICE, LO)
            .bytes(ROUTE_SOURCE, &octets(self.source));
        Message::new(kind, flags, &header).with(attributes).acknowledged()
    }

    /// A route of ours, from an answer to [`ask_routes`].
    pub(super) fn read(item: &[u8]) -> Option<Self> {
        let (header, rest) = item.split_at_checked(12)?;
        let is_ours = header[7] == LOCAL
            && native(rest, ROUTE_TABLE) == Some(ROUTING_TABLE)
            && native(rest, ROUTE_DEVICE) == Some(LO);
        let source = address(attribute(rest, ROUTE_SOURCE)?)?;
        let network = match attribute(rest, ROUTE_DESTINATION) {
            Some(destination) => address(destination)?,
            None => Family::of(source).unspecified(),
        };
        let range = IpNet::new(network, header[1]).ok()?;
        is_ours.then_some(Self { range, source })
    }
}

/// How packets to some address leave, as the kernel says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) source: IpAddr,
    /// The index of the link.
    pub(super) device: u32,
    /// If the route itself says it; else it is that of the link.
    pub(super) mtu: Option<u32>,
}

impl Way {
    /// From an answer to [`ask_way`].
    pub(super) fn read(item: &[u8]) -> Option<Self> {
        let (_, rest) = item.split_at_checked(12)?;
        Some(Self {
            source: address(attribute(rest, ROUTE_SOURCE)?)?,
            device: native(rest, ROUTE_DEVICE)?,
            mtu: attribute(rest, ROUTE_METRICS).and_then(|metrics| native(metrics, METRIC_MTU)),
        })
    }
}

/// Asks how packets to an address leave. The protocol is UDP if none is named, so our own rule does not count.
pub(super) fn ask_way(to: IpAddr) -> Message {
    let family = Family::of(to);
    let header = [family.number(), family.length() * 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let attributes = Attributes::default().bytes(ROUTE_DESTINATION, &octets(to));
    Message::new(GET_ROUTE, 0, &header).with(attributes).acknowledged()
}

/// Asks about a link.
pub(super) fn ask_link(index: u32) -> Message {
    // Family, type, index, flags, change.
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    Message::new(GET_LINK, 0, &header).acknowledged()
}

/// The MTU in an answer to [`ask_link`].
pub(super) fn read_mtu(item: &[u8]) -> Option<u32> {
    native(item.get(16..)?, LINK_MTU)
}

/// Asks for all routes of a family.
pub(super) fn ask_routes(family: Family) -> Message {
    Message::new(GET_ROUTE, DUMP, &[family.number(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// Makes the rule of a family; refused if it is there.
pub(super) fn make_rule(family: Family) -> Message {
    rule(family, NEW_RULE, CREATE | EXCLUSIVE)
}

/// Removes it; refused if it is not there.
pub(super) fn delete_rule(family: Family) -> Message {
    rule(family, DELETE_RULE, 0)
}

fn rule(family: Family, kind: u16, flags: u16) -> Message {
    // Family, lengths of destination and source, TOS, table (below), two unused, action, flags.
    let header = [family.number(), 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0];
    let attributes = Attributes::default()
        .native(RULE_PRIORITY, RULE_PREFERENCE)
        .text(RULE_INPUT, "lo")
        .bytes(RULE_PROTOCOL, &[TCP])
        .native(RULE_MARK, 0)
        .native(RULE_MASK, MARK_MASK)
        .native(RULE_TABLE, ROUTING_TABLE);
    Message::new(kind, flags, &header).with(attributes).acknowledged()
}

/// Asks for all rules of a family.
pub(super) fn ask_rules(family: Family) -> Message {
    Message::new(GET_RULE, DUMP, &[family.number(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// Whether an answer to [`ask_rules`] is our rule.
pub(super) fn is_rule(item: &[u8]) -> bool {
    let rest = item.get(12..).unwrap_or_default();
    native(rest, RULE_PRIORITY) == Some(RULE_PREFERENCE)
        && native(rest, RULE_MASK) == Some(MARK_MASK)
        && attribute(rest, RULE_PROTOCOL) == Some(&[TCP])
        && native(rest, RULE_TABLE) == Some(ROUTING_TABLE)
}

/// Whether an answer to [`ask_rules`] is a rule that makes the kernel look at the protocol of what arrives when it checks
/// its sender: then our own rule would count there, and the node's answers would not pass.
pub(super) fn looks_into_arrivals(item: &[u8]) -> bool {
    let rest = item.get(12..).unwrap_or_default();
    let looks = RULE_LOOKS.iter().any(|kind| attribute(rest, *kind).is_some());
    looks && text(rest, RULE_INPUT).as_deref() != Some("lo")
}

/// Asks for all addresses of a family.
pub(super) fn ask_addresses(family: Family) -> Message {
    Message::new(GET_ADDRESS, DUMP, &[family.number(), 0, 0, 0, 0, 0, 0, 0])
}

/// Whether an answer to [`ask_addresses`] is an address with which somebody else can be reached.
pub(super) fn is_address(family: Family, item: &[u8]) -> bool {
    // Family, length of the prefix, flags, scope, device.
    matches!(item, [found, _, _, scope, ..] if *found == family.number() && *scope < SCOPE_LINK)
}

fn native(attributes: &[u8], kind: u16) -> Option<u32> {
    number(attribute(attributes, kind)?, 0)
}
