//! The sets of capture. In: a [`Plan`]. Out: what each is and holds, as values. Never speaks to the kernel;
//! [`super::table`] does.
//!
//! | set | of a key | written by |
//! |---|---|---|
//! | `services4`, `services6`, `skip_ports`, `skip_subnets4`, `skip_subnets6` | address or port | `up` |
//! | `alive`, `learning` | IP family | signals |
//! | `served4`, `refused4`, `dropped4`, `left4`, and 6 | address, port | signals |
//! | `passed4`, `closing4` (its part), and 6 | source port, address, port | packets that pass, and `up` |
//! | `probed4`, and 6 | source port, address, port | the probe of `up` |
//! | `arriving4`, and 6; only while `up` runs | address | `up` |

use std::time::Duration;

use super::agreement::{
    ALIVE_LASTS, ALIVE_SET, CLOSING_LASTS, CLOSING_SET, DROPPED_SET, LEARNING_SET, LEFT_SET, PASSED_LASTS,
    PASSED_SET, REFUSED_SET, SERVED_SET, SERVICES_SET, VERDICT_LASTS,
};
use super::family::Family;
use super::plan::{Bound, Plan, address_bounds, port_bounds};

/// The set of skipped ports.
pub(super) const SKIP_PORTS_SET: &str = "skip_ports";
/// Without the family's number: the set of skipped subnets.
pub(super) const SKIP_SUBNETS_SET: &str = "skip_subnets";
/// Without the family's number: the set of flows that are captured whoever is alive, to try whether that works.
pub(super) const PROBED_SET: &str = "probed";
/// Without the family's number: the set of what will be captured in a moment.
pub(super) const ARRIVING_SET: &str = "arriving";
/// How long the flow of a probe is known.
const PROBED_LASTS: Duration = Duration::from_secs(10);
/// Flows that can be remembered at once. They are 28,000 at most to one address and port, by the ports of the Pod.
const FLOWS_MOST: u32 = 1 << 20;
/// Families that can be alive at once. There are two, but one that has lapsed takes its place until the kernel finds
/// time to sweep, and it must be able to come back at once.
const FAMILIES_MOST: u32 = 64;
/// Service ports of which something can be said at once; those that come after are left to the node.
const PORTS_MOST: u32 = 1 << 18;

/// The numbers by which nft knows what a key is made of.
const DATATYPE_FAMILY: u32 = 2;
const DATATYPE_PORT: u32 = 13;

/// A set of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: String,
    /// What nft calls its type.
    pub(super) datatype: u32,
    /// Bytes of each part of its keys.
    pub(super) parts: Vec<u8>,
    pub(super) contents: Contents,
}

/// What a set holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// Intervals, which `up` writes.
    Fixed(Vec<Bound>),
    /// Keys that packets bring, each for a while, and how many at most.
    Moving(Duration, u32),
}

/// The name of a set or chain of one family.
pub(super) fn named(name: &str, family: Family) -> String {
    format!("{name}{}", family.digit())
}

/// All sets. They are there for both families, so that they outlast a change of the ranges.
pub(super) fn sets(plan: &Plan) -> Vec<Set> {
    let mut sets = vec![
        families(ALIVE_SET),
        families(LEARNING_SET),
        Set {
            name: SKIP_PORTS_SET.to_owned(),
            datatype: DATATYPE_PORT,
            parts: vec![2],
            contents: Contents::Fixed(port_bounds(&plan.skip_ports)),
        },
    ];
    for family in Family::ALL {
        sets.extend([
            addresses(SERVICES_SET, family, &plan.services),
            addresses(SKIP_SUBNETS_SET, family, &plan.skip_subnets),
            places(SERVED_SET, family),
            places(REFUSED_SET, family),
            places(DROPPED_SET, family),
            places(LEFT_SET, family),
            flows(PASSED_SET, family, PASSED_LASTS),
            flows(CLOSING_SET, family, CLOSING_LASTS),
            flows(PROBED_SET, family, PROBED_LASTS),
        ]);
    }
    sets
}

/// The sets of what will be captured in a moment.
pub(super) fn arriving_sets(plan: &Plan) -> Vec<Set> {
    plan.families().into_iter().map(|family| addresses(ARRIVING_SET, family, &plan.services)).collect()
}

fn families(name: &str) -> Set {
    Set {
        name: name.to_owned(),
        datatype: DATATYPE_FAMILY,
        parts: vec![1],
        contents: Contents::Moving(ALIVE_LASTS, FAMILIES_MOST),
    }
}

fn addresses(name: &str, family: Family, ranges: &[ipnet::IpNet]) -> Set {
    Set {
        name: named(name, family),
        datatype: family.datatype(),
        parts: vec![family.length()],
        contents: Contents::Fixed(address_bounds(family.among(ranges))),
    }
}

fn places(name: &str, family: Family) -> Set {
    Set {
        name: named(name, family),
        datatype: family.datatype() << 6 | DATATYPE_PORT,
        parts: vec![family.length(), 2],
        contents: Contents::Moving(VERDICT_LASTS, PORTS_MOST),
    }
}

fn flows(name: &str, family: Family, lasts: Duration) -> Set {
    Set {
        name: named(name, family),
        datatype: DATATYPE_PORT << 12 | family.datatype() << 6 | DATATYPE_PORT,
        parts: vec![2, family.length(), 2],
        contents: Contents::Moving(lasts, FLOWS_MOST),
    }
}
