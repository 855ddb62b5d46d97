//! What an nftables rule is made of: the kernel's expressions. In: values. Out: attributes as the kernel reads them.
//! Never knows why a rule is as it is; [`super::rules`] does.
//!
//! A packet runs through the expressions of a rule until one does not hold. They hand values on in registers of four
//! bytes, numbered from 8; a longer value takes as many as it needs, and a set's key is what lies side by side.

use std::time::Duration;

use ipnet::IpNet;

use super::agreement::{MARK, MARK_MASK};
use super::family::{Family, octets};
use super::message::{Attributes, milliseconds};

/// The index of `lo` in every network namespace.
pub(super) const LO: u32 = 1;

/// The first register.
pub(super) const FIRST: u32 = 8;
/// `IPPROTO_TCP`.
pub(super) const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub(super) const UDP: u8 = 17;

/// TCP's option of the maximum segment size, and what nftables calls such options.
const MAXIMUM_SEGMENT: u8 = 2;
const TCP_OPTION: u32 = 1;

/// Flags of a TCP header.
pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// Loads a fact about the packet into a register.
    Meta(Fact, u32),
    /// Loads bytes of a header: which, from where, how many, into which register.
    Payload(Header, u8, u8, u32),
    /// Keeps the bits of the first register that the mask has, then flips those of the other.
    Bits(Vec<u8>, Vec<u8>),
    /// Holds if the first register compares so.
    Compare(Comparison, Vec<u8>),
    /// Holds if the key from the first register on is in the set (or, with `false`, is not).
    Lookup(String, bool),
    /// Changes the set by the key from the first register on.
    Change(Change, String),
    /// Adds the key to the set, or makes it last anew, for so long rather than for the time of the set.
    Keep(Duration, String),
    /// Sets the packet's mark from the first register.
    SetMark,
    /// Lowers the largest segment that a SYN announces to that in the first register.
    Segment,
    /// Puts a value into a register.
    Value(Vec<u8>, u32),
    /// Hands the packet to the socket that listens at the address and port in the first two values' registers; does not
    /// hold if none does.
    Tproxy(Family, u32, u32),
    /// Answers with a TCP reset.
    Reset,
    /// Ends the rule.
    Verdict(Verdict),
}

/// Something that is known of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    Mark = 3,
    Input = 4,
    User = 10,
    Family = 15,
    Protocol = 16,
}

/// A header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    Network = 1,
    Transport = 2,
}

/// How a register is compared, byte by byte from the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal = 0,
    Unequal = 1,
    AtMost = 3,
    AtLeast = 5,
}

/// How a set is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Adds the key, or makes it last anew; does not hold if the set is full.
    Update = 1,
    Delete = 2,
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    /// Goes on in another chain and never comes back.
    Goto(String),
}

impl Expression {
    /// As the kernel reads it.
    pub(super) fn encode(&self) -> Attributes {
        let new = Attributes::default;
        let value = |bytes: &[u8]| new().bytes(1, bytes);
        let (name, data) = match self {
            Self::Meta(fact, register) => ("meta", new().number(1, *register).number(2, *fact as u32)),
            Self::Payload(header, offset, length, register) => {
                let from = new().number(1, *register).number(2, *header as u32);
                ("payload", from.number(3, (*offset).into()).number(4, (*length).into()))
            }
            Self::Bits(mask, flip) => {
                let registers = new().number(1, FIRST).number(2, FIRST).number(3, mask.len() as u32);
                ("bitwise", registers.nested(4, value(mask)).nested(5, value(flip)))
            }
            Self::Compare(comparison, with) => {
                ("cmp", new().number(1, FIRST).number(2, *comparison as u32).nested(3, value(with)))
            }
            Self::Lookup(set, present) => {
                let data = new().text(1, set).number(2, FIRST);
                ("lookup", if *present { data } else { data.number(5, 1) })
            }
            Self::Change(change, set) => {
                ("dynset", new().text(1, set).number(3, *change as u32).number(4, FIRST))
            }
            Self::Keep(lasts, set) => {
                let data = new().text(1, set).number(3, Change::Update as u32).number(4, FIRST);
                ("dynset", data.bytes(6, &milliseconds(*lasts)))
            }
            Self::SetMark => ("meta", new().number(2, Fact::Mark as u32).number(3, FIRST)),
            // Kind, offset and length of the option's value, of TCP's options, from which register.
            Self::Segment => {
                let option = new().bytes(2, &[MAXIMUM_SEGMENT]).number(3, 2).number(4, 2);
                ("exthdr", option.number(6, TCP_OPTION).number(7, FIRST))
            }
            Self::Value(bytes, register) => ("immediate", new().number(1, *register).nested(2, value(bytes))),
            Self::Tproxy(family, address, port) => {
                ("tproxy", new().number(1, family.number().into()).number(2, *address).number(3, *port))
            }
            // Type 1 is a reset; the code belongs to the other type, and is asked for all the same.
            Self::Reset => ("reject", new().number(1, 1).bytes(2, &[0])),
            Self::Verdict(verdict) => {
                let (code, chain) = verdict.code();
                let code = new().number(1, code as u32);
                let code = chain.iter().fold(code, |code, chain| code.text(2, chain));
                ("immediate", new().number(1, 0).nested(2, new().nested(2, code)))
            }
        };
        new().text(1, name).nested(2, data)
    }

    /// The kernel module that it needs besides nf_tables itself.
    pub(super) fn module(&self) -> Option<&'static str> {
        match self {
            Self::Tproxy(Family::IPv4, ..) => Some("nft_tproxy (and nf_tproxy_ipv4)"),
            Self::Tproxy(Family::IPv6, ..) => Some("nft_tproxy (and nf_tproxy_ipv6)"),
            Self::Reset => Some("nft_reject_inet"),
            _ => None,
        }
    }
}

impl Verdict {
    fn code(&self) -> (i32, Option<&str>) {
        match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Goto(chain) => (-4, Some(chain)),
        }
    }
}

/// Holds if the packet is of this IP family.
pub(super) fn family(family: Family) -> [Expression; 2] {
    [Expression::Meta(Fact::Family, FIRST), Expression::Compare(Comparison::Equal, vec![family.number()])]
}

/// Holds if the packet's protocol compares so.
pub(super) fn protocol(comparison: Comparison, protocol: u8) -> [Expression; 2] {
    [Expression::Meta(Fact::Protocol, FIRST), Expression::Compare(comparison, vec![protocol])]
}

/// Holds if the packet was sent through a socket of this user. It does not for what the kernel sends by itself, for a
/// connection whose program has closed it too.
pub(super) fn user(user: u32) -> [Expression; 2] {
    [Expression::Meta(Fact::User, FIRST), Expression::Compare(Comparison::Equal, user.to_ne_bytes().to_vec())]
}

/// Holds if the destination is in a set.
pub(super) fn destination_in(family: Family, set: String) -> [Expression; 2] {
    [
        Expression::Payload(Header::Network, family.destination(), family.length(), FIRST),
        Expression::Lookup(set, true),
    ]
}

/// Holds if the destination port is in a set.
pub(super) fn port_in(set: String) -> [Expression; 2] {
    [Expression::Payload(Header::Transport, 2, 2, FIRST), Expression::Lookup(set, true)]
}

/// Holds if, of the TCP flags in `mask`, exactly `flags` are set.
pub(super) fn tcp_flags(mask: u8, flags: u8) -> [Expression; 3] {
    [
        Expression::Payload(Header::Transport, 13, 1, FIRST),
        Expression::Bits(vec![mask], vec![0]),
        Expression::Compare(Comparison::Equal, vec![flags]),
    ]
}

/// Holds if the packet's six bits lie in a range.
pub(super) fn dscp(family: Family, from: u8, to: u8) -> Vec<Expression> {
    // IPv4: the upper six bits of the second byte. IPv6: after four bits of version.
    let (offset, length, shift) = match family {
        Family::IPv4 => (1, 1, 2),
        Family::IPv6 => (0, 2, 6),
    };
    let bytes = |dscp: u8| (u16::from(dscp) << shift).to_be_bytes()[2 - usize::from(length)..].to_vec();
    let mut expressions = vec![
        Expression::Payload(Header::Network, offset, length, FIRST),
        Expression::Bits(bytes(0x3f), vec![0; length.into()]),
    ];
    if from == to {
        expressions.push(Expression::Compare(Comparison::Equal, bytes(from)));
    } else {
        expressions.push(Expression::Compare(Comparison::AtLeast, bytes(from)));
        expressions.push(Expression::Compare(Comparison::AtMost, bytes(to)));
    }
    expressions
}

/// Loads destination address and port.
pub(super) fn place(family: Family) -> [Expression; 2] {
    let registers = u32::from(family.length() / 4);
    [
        Expression::Payload(Header::Network, family.destination(), family.length(), FIRST),
        Expression::Payload(Header::Transport, 2, 2, FIRST + registers),
    ]
}

/// Loads source port, destination address and port: with the Pod's one address, this is the flow.
pub(super) fn flow(family: Family) -> [Expression; 3] {
    let registers = u32::from(family.length() / 4);
    [
        Expression::Payload(Header::Transport, 0, 2, FIRST),
        Expression::Payload(Header::Network, family.destination(), family.length(), FIRST + 1),
        Expression::Payload(Header::Transport, 2, 2, FIRST + 1 + registers),
    ]
}

/// Holds if the packet came in over loopback.
pub(super) fn from_loopback() -> [Expression; 2] {
    [Expression::Meta(Fact::Input, FIRST), Expression::Compare(Comparison::Equal, LO.to_ne_bytes().to_vec())]
}

/// Holds if it came in otherwise.
pub(super) fn from_others() -> [Expression; 2] {
    [
        Expression::Meta(Fact::Input, FIRST),
        Expression::Compare(Comparison::Unequal, LO.to_ne_bytes().to_vec()),
    ]
}

/// Holds if the destination is in `range`.
pub(super) fn destination_within(range: IpNet) -> Vec<Expression> {
    within(range, Family::of(range.addr()).destination())
}

/// Holds if the source is in `range`.
pub(super) fn source_within(range: IpNet) -> Vec<Expression> {
    within(range, Family::of(range.addr()).source())
}

/// Every packet of the Pod is asked, and this is a third of a lookup in a set.
fn within(range: IpNet, offset: u8) -> Vec<Expression> {
    let (whole, rest) = (range.prefix_len() / 8, range.prefix_len() % 8);
    let length = whole + u8::from(rest > 0);
    if length == 0 {
        return Vec::new();
    }
    let mut expressions = vec![Expression::Payload(Header::Network, offset, length, FIRST)];
    if rest > 0 {
        let mut mask = vec![u8::MAX; whole.into()];
        mask.push(!(u8::MAX >> rest));
        expressions.push(Expression::Bits(mask, vec![0; length.into()]));
    }
    let prefix = octets(range.network())[..length.into()].to_vec();
    expressions.push(Expression::Compare(Comparison::Equal, prefix));
    expressions
}

/// Lowers the largest segment that a SYN announces.
pub(super) fn segment(most: u16) -> [Expression; 2] {
    [Expression::Value(most.to_be_bytes().to_vec(), FIRST), Expression::Segment]
}

/// Holds if what the packet carries is more than headers of any length, so that it cannot be an acknowledgement alone.
pub(super) fn carries_data(family: Family) -> [Expression; 2] {
    // IPv4: the length of all; IPv6: of what comes after its own header.
    let (offset, most) = match family {
        Family::IPv4 => (2, 60u16 + 60),
        Family::IPv6 => (4, 60),
    };
    [
        Expression::Payload(Header::Network, offset, 2, FIRST),
        Expression::Compare(Comparison::AtLeast, (most + 1).to_be_bytes().to_vec()),
    ]
}

/// Sets our bits of the mark, and leaves the others.
pub(super) fn mark() -> [Expression; 3] {
    [
        Expression::Meta(Fact::Mark, FIRST),
        Expression::Bits((!MARK_MASK).to_ne_bytes().to_vec(), MARK.to_ne_bytes().to_vec()),
        Expression::SetMark,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_compared_where_its_family_has_the_six_bits() {
        let v4 = dscp(Family::IPv4, 0x2c, 0x2c);
        assert_eq!(v4[1], Expression::Bits(vec![0xfc], vec![0]));
        assert_eq!(v4[2], Expression::Compare(Comparison::Equal, vec![0xb0]));
        let v6 = dscp(Family::IPv6, 0x2a, 0x2d);
        assert_eq!(v6[1], Expression::Bits(vec![0x0f, 0xc0], vec![0, 0]));
        assert_eq!(v6[2], Expression::Compare(Comparison::AtLeast, vec![0x0a, 0x80]));
        assert_eq!(v6[3], Expression::Compare(Comparison::AtMost, vec![0x0b, 0x40]));
    }

    #[test]
    fn a_range_is_compared_by_its_own_bytes() {
        let within = |range: &str| destination_within(range.parse().unwrap());
        let equal = |bytes: &[u8]| Expression::Compare(Comparison::Equal, bytes.to_vec());
        assert_eq!(
            within("10.96.0.0/16"),
            [Expression::Payload(Header::Network, 16, 2, FIRST), equal(&[10, 96])]
        );
        let v4 = within("10.96.0.0/12");
        assert_eq!(v4[1..], [Expression::Bits(vec![0xff, 0xf0], vec![0; 2]), equal(&[10, 96])]);
        let v6 = within("fd00:96::/112");
        assert_eq!(v6[0], Expression::Payload(Header::Network, 24, 14, FIRST));
        assert_eq!(within("0.0.0.0/0"), []);
    }

    #[test]
    fn the_parts_of_a_key_lie_side_by_side() {
        let registers = |expressions: &[Expression]| -> Vec<u32> {
            let register = |e: &Expression| match e {
                Expression::Payload(.., register) => Some(*register),
                _ => None,
            };
            expressions.iter().filter_map(register).collect()
        };
        assert_eq!(registers(&flow(Family::IPv4)), [8, 9, 10]);
        assert_eq!(registers(&flow(Family::IPv6)), [8, 9, 13]);
        assert_eq!(registers(&place(Family::IPv6)), [8, 12]);
    }
}
