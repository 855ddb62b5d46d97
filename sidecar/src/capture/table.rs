//! The nftables table as the kernel writes it. In: sets, chains, flows, or what a dump says. Out: messages of a batch,
//! or what is installed. Never sends anything; [`super::kernel`] does.
//!
//! Beside its words, each rule carries a sum over what it does. A rule whose words and sum are the wanted ones is the
//! wanted one; the kernel's own way of writing it back differs from kernel to kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::agreement::TABLE;
use super::flows::Flow;
use super::message::{
    APPEND, Attributes, CREATE, DUMP, Message, attribute, attributes, milliseconds, number, text,
};
use super::rules::{Chain, Rule};
use super::sets::{Contents, Set};

/// The part of netlink's netfilter that is nftables.
const NFTABLES: u16 = 10;
/// `NFPROTO_INET`: both IP families.
const INET: u8 = 1;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// The kernel's names for messages.
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const GET_SET: u16 = 10;
const DELETE_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
const DELETE_ELEMENT: u16 = 14;

/// Flags of a set.
const INTERVAL: u32 = 0x04;
const TIMEOUT: u32 = 0x10;
/// Milliseconds between two sweeps of what has faded in a set, which hold nothing by then. The kernel's own second
/// would have it walk over every Service port of the cluster again and again, in every Pod.
const SWEEP: u32 = 30_000;
const DYNAMIC: u32 = 0x20;

/// Elements in a message; an attribute holds 64 KiB.
const ELEMENTS: usize = 500;
/// What a rule's notes are made of: its words, as nft prints them, and our sum.
const WORDS: u8 = 0;
const SUM: u8 = 100;

/// One step of a change.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) message: Message,
    /// What it is about, to tell when it is refused.
    pub(super) about: &'static str,
    /// The kernel module that it needs besides nf_tables.
    pub(super) module: Option<&'static str>,
}

/// A chain as it is installed: its name, and the notes of each rule.
pub(super) type InstalledChain = (String, Vec<Vec<u8>>);

/// The steps as a batch: all are done or none is.
pub(super) fn batch(steps: impl IntoIterator<Item = Step>) -> Vec<Step> {
    let edge = |kind| Step {
        // The number of the subsystem, in the order of the network.
        message: Message::new(kind, 0, &[0, 0, 0, NFTABLES as u8]),
        about: "the batch",
        module: None,
    };
    let mut batch = vec![edge(BATCH_BEGIN)];
    batch.extend(steps);
    if let Some(last) = batch.last_mut() {
        last.message = last.message.clone().acknowledged();
    }
    batch.push(edge(BATCH_END));
    batch
}

/// Makes the table, unless it is there.
pub(super) fn make_table() -> Step {
    step("the table", NEW_TABLE, CREATE, Attributes::default().text(1, TABLE))
}

/// Removes the table and all that is in it.
pub(super) fn delete_table() -> Step {
    step("the table", DELETE_TABLE, 0, Attributes::default().text(1, TABLE))
}

/// Makes a set, unless it is there.
pub(super) fn make_set(set: &Set) -> Step {
    let length: u32 = set.parts.iter().map(|part| u32::from(*part).next_multiple_of(4)).sum();
    let length = if let [only] = *set.parts { only.into() } else { length };
    let attributes =
        named_set(&set.name).number(3, flags(set)).number(4, set.datatype).number(5, length).number(10, 1);
    let attributes = match &set.contents {
        Contents::Fixed(_) => attributes,
        Contents::Moving(lasts, most) => attributes
            .nested(9, Attributes::default().number(1, *most))
            .bytes(11, &milliseconds(*lasts))
            .number(12, SWEEP),
    };
    step("a set", NEW_SET, CREATE, attributes)
}

/// Removes a set that no rule uses.
pub(super) fn delete_set(name: &str) -> Step {
    step("a set", DELETE_SET, 0, named_set(name))
}

/// Gives a fixed set its contents in place of those it has. Nothing for other sets.
pub(super) fn fill(set: &Set) -> Vec<Step> {
    let Contents::Fixed(bounds) = &set.contents else { return Vec::new() };
    let element = |(key, is_end): &(Vec<u8>, bool)| {
        let element = Attributes::default().nested(1, Attributes::default().bytes(1, key));
        if *is_end { element.number(3, 1) } else { element }
    };
    let mut steps = vec![step("the elements of a set", DELETE_ELEMENT, 0, named_set(&set.name))];
    steps.extend(elements(&set.name, bounds.iter().map(element)));
    steps
}

/// Remembers flows.
pub(super) fn remember<'a>(set: &str, flows: impl Iterator<Item = &'a Flow>) -> Vec<Step> {
    elements(
        set,
        flows.map(|flow| Attributes::default().nested(1, Attributes::default().bytes(1, &flow.key()))),
    )
}

/// Forgets a flow.
pub(super) fn forget(set: &str, flow: &Flow) -> Step {
    let key = Attributes::default().nested(1, Attributes::default().bytes(1, &flow.key()));
    let list = named_set(set).nested(3, Attributes::default().nested(1, key));
    step("the elements of a set", DELETE_ELEMENT, 0, list)
}

fn elements(set: &str, elements: impl Iterator<Item = Attributes>) -> Vec<Step> {
    let elements: Vec<Attributes> = elements.collect();
    let message = |some: &[Attributes]| {
        let list = some.iter().fold(Attributes::default(), |list, element| list.nested(1, element.clone()));
        step("the elements of a set", NEW_ELEMENT, CREATE, named_set(set).nested(3, list))
    };
    elements.chunks(ELEMENTS).map(message).collect()
}

/// Makes a chain and its rules. The chain must not be there.
pub(super) fn make_chain(chain: &Chain) -> Vec<Step> {
    let mut attributes = Attributes::default().text(1, TABLE).text(3, &chain.name);
    if let Some(hook) = chain.hook {
        let place = Attributes::default().number(1, hook.number).number(2, hook.priority as u32);
        // The policy: what no rule decides is accepted.
        attributes = attributes.nested(4, place).number(5, 1).text(7, hook.kind);
    }
    let mut steps = vec![Step {
        module: chain.hook.filter(|hook| hook.kind == "route").map(|_| "nft_chain_route"),
        ..step("a chain", NEW_CHAIN, CREATE, attributes)
    }];
    steps.extend(chain.rules.iter().map(|rule| make_rule(&chain.name, rule)));
    steps
}

fn make_rule(chain: &str, rule: &Rule) -> Step {
    let list = rule
        .expressions
        .iter()
        .fold(Attributes::default(), |list, expression| list.nested(1, expression.encode()));
    let attributes =
        Attributes::default().text(1, TABLE).text(2, chain).nested(4, list).bytes(7, &notes(rule));
    Step {
        module: rule.expressions.iter().find_map(super::expression::Expression::module),
        ..step("a rule", NEW_RULE, CREATE | APPEND, attributes)
    }
}

/// Removes the rules of a chain, so that chains can be removed in any order after.
pub(super) fn empty_chain(name: &str) -> Step {
    step("the rules of a chain", DELETE_RULE, 0, Attributes::default().text(1, TABLE).text(2, name))
}

/// Removes a chain without rules.
pub(super) fn delete_chain(name: &str) -> Step {
    step("a chain", DELETE_CHAIN, 0, Attributes::default().text(1, TABLE).text(3, name))
}

fn step(about: &'static str, kind: u16, flags: u16, attributes: Attributes) -> Step {
    Step { message: message(kind, flags, attributes), about, module: None }
}

fn message(kind: u16, flags: u16, attributes: Attributes) -> Message {
    Message::new(NFTABLES << 8 | kind, flags, &[INET, 0, 0, 0]).with(attributes)
}

fn named_set(name: &str) -> Attributes {
    Attributes::default().text(1, TABLE).text(2, name)
}

fn flags(set: &Set) -> u32 {
    match set.contents {
        Contents::Fixed(_) => INTERVAL,
        Contents::Moving(..) => TIMEOUT | DYNAMIC,
    }
}

/// What is noted beside a rule: type, length, value; twice.
pub(super) fn notes(rule: &Rule) -> Vec<u8> {
    let mut words = rule.words.clone().into_bytes();
    words.push(0);
    let sum = sum(rule).to_be_bytes();
    [&[WORDS, words.len() as u8], &words[..], &[SUM, sum.len() as u8], &sum].concat()
}

/// The words in a rule's notes.
pub(super) fn words(notes: &[u8]) -> Option<String> {
    let [WORDS, length, rest @ ..] = notes else { return None };
    let words = rest.get(..usize::from(*length))?;
    Some(String::from_utf8_lossy(words.strip_suffix(&[0]).unwrap_or(words)).into_owned())
}

/// FNV-1a over what the rule does.
fn sum(rule: &Rule) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325;
    for expression in &rule.expressions {
        for byte in expression.encode().as_bytes() {
            sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    sum
}

/// Asks for the chains of all tables.
pub(super) fn ask_chains() -> Message {
    message(GET_CHAIN, DUMP, Attributes::default())
}

/// Asks for the rules of the table.
pub(super) fn ask_rules() -> Message {
    message(GET_RULE, DUMP, Attributes::default().text(1, TABLE))
}

/// Asks for the sets of the table.
pub(super) fn ask_sets() -> Message {
    message(GET_SET, DUMP, Attributes::default().text(1, TABLE))
}

/// Asks for the elements of a set.
pub(super) fn ask_elements(set: &str) -> Message {
    message(GET_ELEMENT, DUMP, named_set(set))
}

/// The name of a chain of ours, from an answer to [`ask_chains`].
pub(super) fn read_chain(item: &[u8]) -> Option<String> {
    let item = ours(item)?;
    text(item, 3)
}

/// The chain and notes of a rule of ours, from an answer to [`ask_rules`].
pub(super) fn read_rule(item: &[u8]) -> Option<(String, Vec<u8>)> {
    let item = ours(item)?;
    Some((text(item, 2)?, attribute(item, 7).unwrap_or_default().to_vec()))
}

/// The name of a set of ours and what its keys are, from an answer to [`ask_sets`].
pub(super) fn read_set(item: &[u8]) -> Option<(String, (u32, u32))> {
    let item = ours(item)?;
    let read = |kind| attribute(item, kind).and_then(|value| number(value, 0)).map(u32::from_be);
    Some((text(item, 2)?, (read(3).unwrap_or(0), read(4)?)))
}

/// What [`read_set`] would say of a set.
pub(super) fn nature(set: &Set) -> (u32, u32) {
    (flags(set), set.datatype)
}

/// The keys in an answer to [`ask_elements`], each with whether it ends an interval.
pub(super) fn read_elements(item: &[u8]) -> Vec<(Vec<u8>, bool)> {
    let Some(list) = ours(item).and_then(|item| attribute(item, 3)) else { return Vec::new() };
    let read = |(_, element): (u16, &[u8])| {
        let key = attribute(attribute(element, 1)?, 1)?;
        let flags = attribute(element, 3).and_then(|flags| number(flags, 0)).map_or(0, u32::from_be);
        Some((key.to_vec(), flags & 1 != 0))
    };
    attributes(list).filter_map(read).collect()
}

/// The attributes of an answer, if it is about our table.
fn ours(item: &[u8]) -> Option<&[u8]> {
    let (header, rest) = item.split_at_checked(4)?;
    (header.first() == Some(&INET) && text(rest, 1)? == TABLE).then_some(rest)
}

/// An address as it is in a key.
pub(super) fn address(key: &[u8]) -> Option<IpAddr> {
    match key.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(key).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(key).ok()?).into()),
        _ => None,
    }
}
