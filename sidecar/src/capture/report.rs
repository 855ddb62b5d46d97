//! What `remora capture` tells: the ranges, each rule in words, what the sets hold. In: what is installed. Out: text or
//! JSON. Never asks the kernel, and never tells more than it was told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

use serde::Serialize;

use super::agreement::{
    ALIVE_SET, CLOSING_SET, DROPPED_SET, LEARNING_SET, LEFT_SET, MARK, MARK_MASK, PASSED_SET, REFUSED_SET,
    ROUTING_TABLE, RULE_PREFERENCE, SERVED_SET, TABLE,
};
use super::family::Family;
use super::kernel::Installed;
use super::probe::Probe;
use crate::arguments::OutputFormat;

/// What is installed, to be told.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether anything is captured.
    pub installed: bool,
    /// IPv4 and IPv6.
    pub families: Vec<FamilyReport>,
    /// Destination ports that are left alone, such as `443` or `8000-8010`.
    pub skip_ports: Vec<String>,
    /// The rules, chain by chain, in words.
    pub rules: BTreeMap<String, Vec<String>>,
    /// What became of the probes; `null` if there was none.
    pub probes: Option<Vec<Probe>>,
    /// What else is to be said.
    pub notes: Vec<String>,
}

/// One family's share.
#[derive(Debug, Serialize)]
pub struct FamilyReport {
    /// Which.
    pub family: Family,
    /// The captured ranges; none if the family is not captured.
    pub services: Vec<String>,
    /// What of them is left alone.
    pub skip_subnets: Vec<String>,
    /// Whether connections to the ranges find their way to lo.
    pub routed: bool,
    /// Whether a sidecar takes connections.
    pub alive: bool,
    /// And finds out whose other addresses are.
    pub learning: bool,
    /// Service ports whose connections are captured.
    pub served: usize,
    /// Service ports that are refused.
    pub refused: usize,
    /// Service ports whose connections are dropped.
    pub dropped: usize,
    /// Addresses and ports that are the node's, though it asks.
    pub left: usize,
    /// Connections that are let pass, those that close among them.
    pub passed: usize,
    /// Those of them whose client has said its last.
    pub closing: usize,
}

impl Report {
    /// Tells what is installed.
    pub(super) fn new(installed: &Installed, notes: Vec<String>, probes: Option<Vec<Probe>>) -> Self {
        let plan = installed.plan();
        let ranges = |family: Family, ranges: &[ipnet::IpNet]| -> Vec<String> {
            family.among(ranges).map(|range| range.to_string()).collect()
        };
        let families = Family::ALL.map(|family| FamilyReport {
            family,
            services: ranges(family, &plan.services),
            skip_subnets: ranges(family, &plan.skip_subnets),
            routed: installed.is_routed(family),
            alive: installed.has(ALIVE_SET, family),
            learning: installed.has(LEARNING_SET, family),
            served: installed.count(SERVED_SET, family),
            refused: installed.count(REFUSED_SET, family),
            dropped: installed.count(DROPPED_SET, family),
            left: installed.count(LEFT_SET, family),
            passed: installed.count(PASSED_SET, family),
            closing: installed.count(CLOSING_SET, family),
        });
        Self {
            installed: !installed.is_empty(),
            families: families.into(),
            skip_ports: plan.skip_ports.iter().map(ports).collect(),
            rules: installed.rules().map(|(chain, words)| (chain.to_owned(), words)).collect(),
            probes,
            notes,
        }
    }

    /// As it is printed.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn print(&self, output: OutputFormat) -> Result<String, serde_json::Error> {
        match output {
            OutputFormat::Json => Ok(serde_json::to_string_pretty(self)? + "\n"),
            OutputFormat::Text => Ok(self.text()),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        if self.installed {
            for family in &self.families {
                family.write(text)?;
            }
            if !self.skip_ports.is_empty() {
                writeln!(text, "ports left alone: {}", self.skip_ports.join(", "))?;
            }
            writeln!(text)?;
            writeln!(text, "nftables table inet {TABLE}:")?;
            for chain in in_order(self.rules.keys()) {
                writeln!(text, "  {chain}")?;
                for (number, words) in self.rules[chain].iter().enumerate() {
                    writeln!(text, "    {}. {words}", number + 1)?;
                }
            }
            writeln!(
                text,
                "routing: TCP from here is looked up in table {ROUTING_TABLE} (preference {RULE_PREFERENCE}), where the \
                 ranges are on lo, unless it has the mark {MARK:#x}/{MARK_MASK:#x}"
            )?;
        } else {
            writeln!(text, "nothing is captured in this network namespace; `remora capture up` begins to")?;
        }
        if !self.notes.is_empty() || self.probes.is_some() {
            writeln!(text)?;
        }
        for note in &self.notes {
            writeln!(text, "{note}")?;
        }
        for probe in self.probes.iter().flatten() {
            writeln!(text, "{probe}")?;
        }
        Ok(())
    }
}

impl FamilyReport {
    fn write(&self, text: &mut String) -> std::fmt::Result {
        let Self { family, services, skip_subnets, .. } = self;
        if services.is_empty() {
            return writeln!(text, "{family}: not captured");
        }
        write!(text, "{family}: {}", services.join(", "))?;
        if !skip_subnets.is_empty() {
            write!(text, " without {}", skip_subnets.join(", "))?;
        }
        writeln!(text)?;
        let alive = match (self.alive, self.learning) {
            (true, false) => "yes",
            (true, true) => "yes, and it asks whose an address is that it does not know",
            (false, _) => "no, so new connections go to the node",
        };
        writeln!(text, "  sidecar alive: {alive}")?;
        writeln!(
            text,
            "  Service ports captured: {}, refused: {}, dropped: {}, left: {}; connections let pass: {}, {} of them closing",
            self.served, self.refused, self.dropped, self.left, self.passed, self.closing
        )?;
        if !self.routed {
            writeln!(text, "  its routing rule or route is missing: run `remora capture up` again")?;
        }
        Ok(())
    }
}

/// Chains in the order in which a packet meets them.
fn in_order<'a>(chains: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    const ORDER: [&str; 10] = [
        "output",
        "ipv",
        "tcp",
        "opening",
        "leaving",
        "passing",
        "signals",
        "leave",
        "prerouting",
        "delivering",
    ];
    let place = |chain: &str| {
        let bare = chain.trim_end_matches(['4', '6']);
        (chain.ends_with('6'), ORDER.iter().position(|name| *name == bare).unwrap_or(ORDER.len()))
    };
    let mut chains: Vec<&String> = chains.collect();
    chains.sort_by_key(|chain| {
        let (is_v6, place) = place(chain);
        // What both families share comes before or after either.
        match place {
            0 => (0, place),
            7.. => (3, place),
            _ => (1 + u8::from(is_v6), place),
        }
    });
    chains
}

fn ports(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_installed_is_said_in_one_sentence() {
        let text = Report::new(&Installed::default(), Vec::new(), None).text();
        assert_eq!(text, "nothing is captured in this network namespace; `remora capture up` begins to\n");
    }

    #[test]
    fn chains_are_told_in_the_order_in_which_a_packet_meets_them() {
        let names =
            ["ipv4", "ipv6", "opening4", "opening6", "output", "prerouting", "leave"].map(str::to_owned);
        let order = in_order(names.iter());
        assert_eq!(order, ["output", "ipv4", "opening4", "ipv6", "opening6", "leave", "prerouting"]);
    }
}
