//! The routing rule that marked packets follow, and the route that makes every address local to them. In: a family, or
//! what a dump says. Out: messages, or whether something is ours. Never sends anything; [`super::kernel`] does.

use super::agreement::{MARK, MARK_MASK, ROUTING_TABLE, RULE_PREFERENCE};
use super::family::Family;
use super::message::{Attributes, CREATE, DUMP, EXCLUSIVE, Message, attribute, number};

/// The kernel's names for messages.
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const GET_ADDRESS: u16 = 22;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;

/// Attributes of a rule.
const RULE_PRIORITY: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_TABLE: u16 = 15;
const RULE_MASK: u16 = 16;
/// A rule that leads to a table.
const TO_TABLE: u8 = 1;

/// Attributes of a route.
const ROUTE_DEVICE: u16 = 4;
const ROUTE_TABLE: u16 = 15;
/// Who made a route: an administrator.
const STATIC: u8 = 4;
/// Only for this machine.
const SCOPE_HOST: u8 = 254;
/// The first scope that does not reach beyond a link.
const SCOPE_LINK: u8 = 253;
/// A route to this machine itself.
const LOCAL: u8 = 2;
/// The index of `lo` in every network namespace.
const LO: u32 = 1;

/// Something to have for a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thing {
    /// `ip route add local default dev lo table 64102`.
    Route,
    /// `ip rule add pref 64 fwmark 0x64100000/0xfff00000 lookup 64102`.
    Rule,
}

impl Thing {
    /// Both. The route comes first: a rule without it would lead nowhere.
    pub(super) const ALL: [Self; 2] = [Self::Route, Self::Rule];

    /// Makes it; refused if it is there.
    pub(super) fn make(self, family: Family) -> Message {
        let kind = match self {
            Self::Route => NEW_ROUTE,
            Self::Rule => NEW_RULE,
        };
        self.message(family, kind, CREATE | EXCLUSIVE)
    }

    /// Removes it; refused if it is not there.
    pub(super) fn delete(self, family: Family) -> Message {
        let kind = match self {
            Self::Route => DELETE_ROUTE,
            Self::Rule => DELETE_RULE,
        };
        self.message(family, kind, 0)
    }

    fn message(self, family: Family, kind: u16, flags: u16) -> Message {
        let (header, attributes) = match self {
            Self::Route => (
                // Family, lengths of destination and source, TOS, table (below), who, scope, type, flags.
                [family.number(), 0, 0, 0, 0, STATIC, SCOPE_HOST, LOCAL, 0, 0, 0, 0],
                Attributes::default().native(ROUTE_TABLE, ROUTING_TABLE).native(ROUTE_DEVICE, LO),
            ),
            Self::Rule => (
                // Family, lengths of destination and source, TOS, table (below), two unused, action, flags.
                [family.number(), 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0],
                Attributes::default()
                    .native(RULE_PRIORITY, RULE_PREFERENCE)
                    .native(RULE_MARK, MARK)
                    .native(RULE_MASK, MARK_MASK)
                    .native(RULE_TABLE, ROUTING_TABLE),
            ),
        };
        Message::new(kind, flags, &header).with(attributes).acknowledged()
    }

    /// Asks for all of a family.
    pub(super) fn ask(self, family: Family) -> Message {
        let kind = match self {
            Self::Route => GET_ROUTE,
            Self::Rule => GET_RULE,
        };
        Message::new(kind, DUMP, &[family.number(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// Whether an answer to [`Self::ask`] is ours.
    pub(super) fn is(self, family: Family, item: &[u8]) -> bool {
        let Some((header, rest)) = item.split_at_checked(12) else { return false };
        let has = |kind, value| attribute(rest, kind).and_then(|bytes| number(bytes, 0)) == Some(value);
        let ours = match self {
            Self::Route => {
                header[1] == 0
                    && header[7] == LOCAL
                    && has(ROUTE_TABLE, ROUTING_TABLE)
                    && has(ROUTE_DEVICE, LO)
            }
            Self::Rule => {
                has(RULE_PRIORITY, RULE_PREFERENCE)
                    && has(RULE_MARK, MARK)
                    && has(RULE_MASK, MARK_MASK)
                    && has(RULE_TABLE, ROUTING_TABLE)
            }
        };
        header[0] == family.number() && ours
    }
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
