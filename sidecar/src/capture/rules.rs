//! The rules of capture, each with its words. In: a [`Plan`]. Out: chains and rules as values.
//! Never speaks to the kernel; [`super::table`] does.
//!
//! ```text
//! routing ─▶ TCP to the ranges: lo, unless it has the mark
//! output ─▶ outside the ranges: untouched
//!        ─▶ ipv4, ipv6 ─▶ TCP ─▶ first packet (SYN) ─▶ opening ─▶ the sidecar's own, skipped, not alive ─▶ leaving
//!                      │      │                               ─▶ served: untouched, and so captured
//!                      │      │                               ─▶ refused: reset; dropped: gone; any other ─▶ leaving
//!                      │      ─▶ remembered flow ─▶ passing ─▶ leave: the mark, and so the node
//!                      │      ─▶ any other: untouched
//!                      ─▶ signals of the sidecar's user ─▶ sets; dropped
//! prerouting ─▶ from lo to the ranges ─▶ the sidecar's listener; its absence drops the first packet of a connection
//! ```
//! A flow is captured or not by its SYN alone, so that a heartbeat that lapses or returns breaks nothing. What passes is
//! remembered rather than what is captured: that is little while the sidecar is alive. The sidecar's own flows are
//! remembered too, as the kernel no longer knows whose a connection is once its program has closed it, though it may
//! still have bytes to send.
//!
//! The socket of a captured connection has its route to lo from connect() on: its packets cost two looks at headers and
//! one into a set. To mark those that are captured, rather than those that are not, costs each of them a route anew.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::agreement::{
    ALIVE_LASTS, ALIVE_SET, CLOSING_LASTS, CLOSING_SET, DROPPED_SET, LEARNING_SET, LEFT_SET, LISTENER_V4,
    LISTENER_V6, MARK, PASSED_LASTS, PASSED_SET, PORT, REFUSED_SET, SERVED_SET, Signal, VERDICT_LASTS,
};
use super::expression::{
    ACK, Change, Comparison, Expression, FIN, FIRST, Fact, RST, SYN, TCP, UDP, Verdict, carries_data,
    destination_in, destination_within, dscp, family as is_family, flow, from_loopback, from_others, mark,
    place, port_in, protocol, segment, source_within, tcp_flags, user,
};
use super::family::{Family, octets};
use super::kernel::Segments;
use super::plan::Plan;
use super::sets::{ARRIVING_SET, PROBED_SET, SKIP_PORTS_SET, SKIP_SUBNETS_SET, named};

/// A chain of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// Where packets come in, unless they come from another chain.
    pub(super) hook: Option<Hook>,
    pub(super) rules: Vec<Rule>,
}

/// Where packets come into a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    /// `filter` or `route`.
    pub(super) kind: &'static str,
    /// Netfilter's number.
    pub(super) number: u32,
    pub(super) priority: i32,
}

/// A rule of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// What it does, to be read on its own.
    pub(super) words: String,
    pub(super) expressions: Vec<Expression>,
}

/// `NF_INET_PRE_ROUTING`.
const PREROUTING: u32 = 0;
/// `NF_INET_LOCAL_OUT`.
const OUTPUT: u32 = 3;
/// `NF_IP_PRI_MANGLE`.
const MANGLE: i32 = -150;

/// The chain that remembers the flows which begin while those that run are counted.
pub(super) fn arriving_chain(plan: &Plan) -> Chain {
    let rules = plan.families().into_iter().map(|family| {
        Rule::new(
            format!("{family}: a connection that begins is remembered, as capture begins in a moment"),
            [
                &is_family(family)[..],
                &destination_in(family, named(ARRIVING_SET, family)),
                &protocol(Comparison::Equal, TCP),
                &first(),
                &flow(family),
                &[Expression::Change(Change::Update, named(PASSED_SET, family))],
            ],
        )
    });
    let hook = Hook { kind: "filter", number: OUTPUT, priority: MANGLE - 1 };
    Chain { name: ARRIVING_SET.to_owned(), hook: Some(hook), rules: rules.collect() }
}

const DELIVERING: &str = "delivering";

/// All chains. A chain comes before those that lead to it.
pub(super) fn chains(plan: &Plan, segments: &Segments) -> Vec<Chain> {
    let mut chains = vec![Chain {
        name: "leave".to_owned(),
        hook: None,
        rules: vec![Rule::new(
            format!(
                "gets the mark {:#x}, with which it is routed to the node as if nothing were captured",
                MARK
            ),
            [&mark()[..]],
        )],
    }];
    for family in plan.families() {
        chains.extend([
            leaving(family, segments.get(&family).copied()),
            passing(family),
            opening(family, plan),
            tcp(family),
            signals(family),
            ip(family, plan.user),
        ]);
    }
    chains.push(output(plan));
    chains.push(delivering(plan));
    chains.push(prerouting(plan, segments));
    chains
}

fn output(plan: &Plan) -> Chain {
    let rules = ranges(plan).map(|(family, range)| {
        let chain = named("ipv", family);
        Rule::new(
            format!("{family} to {range} goes through chain {chain}; everything else is untouched"),
            [&is_family(family)[..], &destination_within(range), &[goto(&chain)]],
        )
    });
    let hook = Hook { kind: "route", number: OUTPUT, priority: MANGLE };
    Chain { name: "output".to_owned(), hook: Some(hook), rules: rules.collect() }
}

fn ranges(plan: &Plan) -> impl Iterator<Item = (Family, IpNet)> + '_ {
    plan.services.iter().map(|range| (Family::of(range.addr()), *range))
}

fn ip(family: Family, sidecar: u32) -> Chain {
    let [tcp, signals] = ["tcp", "signals"].map(|name| named(name, family));
    let rules = vec![
        Rule::new(
            format!("TCP goes through chain {tcp}"),
            [&protocol(Comparison::Equal, TCP)[..], &[goto(&tcp)]],
        ),
        Rule::new(
            format!(
                "UDP of user {sidecar} may be a signal: see chain {signals}; everything else is untouched"
            ),
            [&protocol(Comparison::Equal, UDP)[..], &user(sidecar), &[goto(&signals)]],
        ),
    ];
    Chain { name: named("ipv", family), hook: None, rules }
}

fn tcp(family: Family) -> Chain {
    let [opening, passing] = ["opening", "passing"].map(|name| named(name, family));
    let rules = vec![
        Rule::new(
            format!("the first packet of a connection decides over all of it: see chain {opening}"),
            [&first()[..], &[goto(&opening)]],
        ),
        Rule::new(
            format!("a connection that was let pass goes on to: see chain {passing}; any other is captured"),
            [&flow(family)[..], &[Expression::Lookup(named(PASSED_SET, family), true), goto(&passing)]],
        ),
    ];
    Chain { name: named("tcp", family), hook: None, rules }
}

fn signals(family: Family) -> Chain {
    let is = |signal: Signal| dscp(family, signal.dscp(), signal.dscp());
    let places = [
        (Signal::Serve, SERVED_SET),
        (Signal::Refuse, REFUSED_SET),
        (Signal::Drop, DROPPED_SET),
        (Signal::Leave, LEFT_SET),
    ];
    // Leaves a place in one set at most.
    let move_to = |kept: Option<&str>| {
        let change = |change, set| Expression::Change(change, named(set, family));
        let gone = places.iter().filter(|(_, set)| Some(*set) != kept);
        let mut changes: Vec<Expression> = gone.map(|(_, set)| change(Change::Delete, *set)).collect();
        changes.extend(kept.map(|set| change(Change::Update, set)));
        changes
    };
    let seconds = VERDICT_LASTS.as_secs();
    let states = [(Signal::Alive, ALIVE_SET, "is alive"), (Signal::Learn, LEARNING_SET, "learns")];
    let lasts = ALIVE_LASTS.as_secs();
    let mut rules: Vec<Rule> = states
        .map(|(signal, set, is_so)| {
            let is_known = Expression::Change(Change::Update, set.to_owned());
            Rule::new(
                format!("DSCP {:#04x}: the sidecar {is_so}, for the next {lasts} s", signal.dscp()),
                [&is(signal)[..], &[Expression::Meta(Fact::Family, FIRST), is_known]],
            )
        })
        .into();
    rules.extend(places.map(|(signal, set)| {
        Rule::new(
            format!("DSCP {:#04x}: this address and port is {set}, for {seconds} s", signal.dscp()),
            [&is(signal)[..], &place(family), &move_to(Some(set))],
        )
    }));
    let (lowest, highest) = Signal::ALL.iter().fold((u8::MAX, 0), |(lowest, highest), signal| {
        (signal.dscp().min(lowest), signal.dscp().max(highest))
    });
    rules.extend([
        Rule::new(
            format!("DSCP {:#04x}: this address and port is none of these any more", Signal::Pass.dscp()),
            [&is(Signal::Pass)[..], &place(family), &move_to(None)],
        ),
        Rule::new(
            "a signal never leaves",
            [&dscp(family, lowest, highest)[..], &[Expression::Verdict(Verdict::Drop)]],
        ),
    ]);
    Chain { name: named("signals", family), hook: None, rules }
}

fn opening(family: Family, plan: &Plan) -> Chain {
    let sidecar = plan.user;
    let leaving = named("leaving", family);
    let in_set =
        |loads: &[Expression], set: &str| [loads, &[Expression::Lookup(named(set, family), true)]].concat();
    let forget = |set: &str| Expression::Change(Change::Delete, named(set, family));
    let captured = [Expression::Verdict(Verdict::Accept)];
    let mut rules = vec![Rule::new(
        format!("user {sidecar} connects to the node: see chain {leaving}"),
        [&user(sidecar)[..], &[goto(&leaving)]],
    )];
    if !plan.skip_ports.is_empty() {
        rules.push(Rule::new(
            "skipped ports go there too",
            [&port_in(SKIP_PORTS_SET.to_owned())[..], &[goto(&leaving)]],
        ));
    }
    if !plan.skip_subnets.is_empty() {
        rules.push(Rule::new(
            "so do skipped subnets",
            [&destination_in(family, named(SKIP_SUBNETS_SET, family))[..], &[goto(&leaving)]],
        ));
    }
    rules.extend([
        Rule::new(
            "a probe of `remora capture` is captured, whoever is alive",
            [&in_set(&flow(family), PROBED_SET)[..], &captured],
        ),
        Rule::new(
            format!("without a living sidecar, a connection goes to the node: see chain {leaving}"),
            [&[
                Expression::Meta(Fact::Family, FIRST),
                Expression::Lookup(ALIVE_SET.to_owned(), false),
                goto(&leaving),
            ][..]],
        ),
        Rule::new(
            "an earlier connection from the same port is forgotten",
            [&flow(family)[..], &[forget(PASSED_SET), forget(CLOSING_SET)]],
        ),
        Rule::new(
            "a Service port that the sidecar serves is captured",
            [&in_set(&place(family), SERVED_SET)[..], &captured],
        ),
        Rule::new(
            "one that it refuses answers with a reset",
            [&in_set(&place(family), REFUSED_SET)[..], &[Expression::Reset]],
        ),
        Rule::new(
            "one that it drops does not answer",
            [&in_set(&place(family), DROPPED_SET)[..], &[Expression::Verdict(Verdict::Drop)]],
        ),
        Rule::new(
            format!("one that was left to the node goes there: see chain {leaving}"),
            [&in_set(&place(family), LEFT_SET)[..], &[goto(&leaving)]],
        ),
        Rule::new(
            "any other is captured while the sidecar learns",
            [
                &[Expression::Meta(Fact::Family, FIRST), Expression::Lookup(LEARNING_SET.to_owned(), true)],
                &captured[..],
            ],
        ),
        Rule::new(
            format!("any other address and port is the node's business: see chain {leaving}"),
            [&[goto(&leaving)][..]],
        ),
    ]);
    Chain { name: named("opening", family), hook: None, rules }
}

fn leaving(family: Family, most: Option<u16>) -> Chain {
    // The socket believes that it sends over lo.
    let announces = most.map(|most| {
        Rule::new(
            format!("announces segments of {most} bytes at most, which the way to the node allows"),
            [&segment(most)[..]],
        )
    });
    let rule = Rule::new(
        "is remembered, so that its later packets go the same way",
        [
            &flow(family)[..],
            &[
                Expression::Change(Change::Delete, named(CLOSING_SET, family)),
                Expression::Change(Change::Update, named(PASSED_SET, family)),
                goto("leave"),
            ],
        ],
    );
    // What cannot be remembered at this moment is lost, but must not be taken for captured.
    let full = Rule::new("also if there is no room to remember it", [&[goto("leave")][..]]);
    Chain {
        name: named("leaving", family),
        hook: None,
        rules: announces.into_iter().chain([rule, full]).collect(),
    }
}

fn passing(family: Family) -> Chain {
    let [passed, closing] = [PASSED_SET, CLOSING_SET].map(|set| named(set, family));
    let forget = |set: &String| Expression::Change(Change::Delete, set.clone());
    let closes = [
        Expression::Change(Change::Update, closing.clone()),
        Expression::Keep(CLOSING_LASTS, passed.clone()),
        goto("leave"),
    ];
    let minutes = |lasts: Duration| lasts.as_secs() / 60;
    let rules = vec![
        Rule::new(
            "a reset ends it: forgotten",
            [&tcp_flags(RST, RST)[..], &flow(family), &[forget(&closing), forget(&passed), goto("leave")]],
        ),
        Rule::new(
            format!("FIN is the client's last: remembered for {} min", minutes(CLOSING_LASTS)),
            [&tcp_flags(FIN, FIN)[..], &flow(family), &closes],
        ),
        Rule::new(
            format!("after its last it is remembered for {} min from here on", minutes(CLOSING_LASTS)),
            [&flow(family)[..], &[Expression::Lookup(closing.clone(), true)], &closes],
        ),
        Rule::new(
            format!("any other is remembered for {} h from here on", minutes(PASSED_LASTS) / 60),
            [&flow(family)[..], &[Expression::Change(Change::Update, passed.clone()), goto("leave")]],
        ),
    ];
    Chain { name: named("passing", family), hook: None, rules }
}

fn prerouting(plan: &Plan, segments: &Segments) -> Chain {
    let answers = ranges(plan).filter_map(|(family, range)| {
        let most = *segments.get(&family)?;
        Some(Rule::new(
            format!(
                "answers from {range} to a first packet announce segments of {most} bytes at most here too"
            ),
            [
                &is_family(family)[..],
                &source_within(range),
                &protocol(Comparison::Equal, TCP),
                &tcp_flags(SYN | ACK, SYN | ACK),
                &from_others(),
                &segment(most),
            ],
        ))
    });
    let rules = ranges(plan).map(|(family, range)| {
        Rule::new(
            format!("what comes from here to {range} goes through chain {DELIVERING}; everything else is untouched"),
            [&from_loopback()[..], &is_family(family), &destination_within(range), &[goto(DELIVERING)]],
        )
    });
    let hook = Hook { kind: "filter", number: PREROUTING, priority: MANGLE };
    Chain { name: "prerouting".to_owned(), hook: Some(hook), rules: rules.chain(answers).collect() }
}

fn delivering(plan: &Plan) -> Chain {
    let mut rules = Vec::new();
    for family in plan.families() {
        let listener = listener(family);
        let address = FIRST;
        let port = FIRST + u32::from(family.length() / 4);
        rules.push(Rule::new(
            format!(
                "{family} with data belongs to a connection that the sidecar has, and the kernel finds it"
            ),
            [&is_family(family)[..], &carries_data(family), &[Expression::Verdict(Verdict::Accept)]],
        ));
        rules.push(Rule::new(
            format!("captured {family} goes to the sidecar at {}", SocketAddr::new(listener, PORT)),
            [
                &is_family(family)[..],
                &protocol(Comparison::Equal, TCP),
                &[
                    Expression::Value(octets(listener), address),
                    Expression::Value(PORT.to_be_bytes().to_vec(), port),
                    Expression::Tproxy(family, address, port),
                    Expression::Verdict(Verdict::Accept),
                ],
            ],
        ));
    }
    rules.push(Rule::new(
        "nobody listens there: the client tries again, and goes to the node when the heartbeat has lapsed",
        [&protocol(Comparison::Equal, TCP)[..], &first(), &[Expression::Verdict(Verdict::Drop)]],
    ));
    Chain { name: DELIVERING.to_owned(), hook: None, rules }
}

/// Where captured connections of a family arrive.
pub(super) fn listener(family: Family) -> IpAddr {
    match family {
        Family::IPv4 => LISTENER_V4,
        Family::IPv6 => LISTENER_V6,
    }
}

/// Holds for the first packet of a connection: SYN without ACK.
fn first() -> [Expression; 3] {
    tcp_flags(FIN | SYN | RST | ACK, SYN)
}

fn goto(chain: &str) -> Expression {
    Expression::Verdict(Verdict::Goto(chain.to_owned()))
}

impl Rule {
    fn new<'a>(words: impl Into<String>, parts: impl IntoIterator<Item = &'a [Expression]>) -> Self {
        let parts: Vec<&[Expression]> = parts.into_iter().collect();
        Self { words: words.into(), expressions: parts.concat() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sets::sets;
    use super::*;

    fn plan(services: &str) -> Plan {
        let services = services.split_whitespace().map(|range| range.parse().unwrap()).collect();
        Plan { services, user: 64102, ..Plan::default() }
    }

    #[test]
    fn every_chain_and_set_that_a_rule_names_is_there_and_before_it() {
        let plan = plan("10.96.0.0/16 fd00:96::/112");
        let sets: Vec<String> = sets(&plan).into_iter().map(|set| set.name).collect();
        let mut before: Vec<String> = Vec::new();
        for chain in chains(&plan, &Segments::default()) {
            for rule in &chain.rules {
                for expression in &rule.expressions {
                    match expression {
                        Expression::Verdict(Verdict::Goto(to)) => assert!(before.contains(to), "{to}"),
                        Expression::Lookup(set, _)
                        | Expression::Change(_, set)
                        | Expression::Keep(_, set) => {
                            assert!(sets.contains(set), "{set}");
                        }
                        _ => {}
                    }
                }
            }
            before.push(chain.name);
        }
    }

    #[test]
    fn a_rule_has_words_that_fit_beside_it() {
        let plan = plan("10.96.0.0/16 fd00:96::/112");
        for chain in chains(&plan, &Segments::default()).iter().chain([&arriving_chain(&plan)]) {
            for rule in &chain.rules {
                assert!((10..200).contains(&rule.words.len()) && !rule.words.contains('"'), "{}", rule.words);
            }
        }
    }

    #[test]
    fn a_family_without_ranges_has_no_rules_but_keeps_its_sets() {
        let plan = plan("10.96.0.0/16");
        assert!(chains(&plan, &Segments::default()).iter().all(|chain| !chain.name.ends_with('6')));
        assert!(sets(&plan).iter().any(|set| set.name == "passed6"));
    }
}
