//! `remora capture`: prepares a network namespace so that connections to Services come to the sidecar in it, undoes it,
//! tells what is there. In: ranges, or an API server that knows them. Out: nftables, a routing rule and a route by
//! netlink, and what they do in words. Never touches a packet: the kernel does, by these rules.
//!
//! ```text
//! plan ──▶ rules, each with its words ──▶ table ──messages──▶ kernel ──▶ installed ──▶ report
//! ```
//! The numbers and names that a sidecar must know are in [`agreement`].

pub mod agreement;
mod expression;
mod family;
mod flows;
mod kernel;
mod plan;
mod probe;
mod report;
mod routing;
mod rules;
mod sets;
mod table;

use std::time::Duration;

use watcher::kubernetes::ranges;

use crate::arguments::OutputFormat;
use crate::config;
use crate::netlink::{message, socket};
use kernel::Kernel;

pub use family::Family;
pub use kernel::Error as KernelError;
pub use plan::{Plan, merged, merged_ports};
pub use probe::{Outcome, Probe};
pub use report::{FamilyReport, Report};

/// How long the API server is asked.
const ASKED: Duration = Duration::from_secs(10);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel did not do it.
    #[error("cannot {0}: {1}")]
    Kernel(&'static str, kernel::Error),
    /// `--strict`, and capture does not work.
    #[error("{0}; without --strict this is told and no failure")]
    Probe(Probe),
    /// `--strict`, and nothing is captured.
    #[error("{0}; without --strict this is told and no failure")]
    Nothing(String),
    /// It cannot be printed.
    #[error("cannot print the answer: {0}; try -o text")]
    Print(#[from] serde_json::Error),
}

/// Runs the command: what is to be printed.
///
/// # Errors
/// If it could not be done.
pub async fn run(config: config::Capture) -> Result<String, Error> {
    match config {
        config::Capture::Up(up) => self::up(up).await,
        config::Capture::Down => down(),
        config::Capture::Show(output) => {
            let installed = Kernel::open().and_then(|kernel| kernel.installed());
            let installed = installed.map_err(|error| Error::Kernel("show what is captured", error))?;
            Ok(Report::new(&installed, Vec::new(), None).print(output)?)
        }
    }
}

/// The ranges that are captured in this network namespace, as the kernel routes them; none if it does not say. Takes no
/// rights.
pub fn routed() -> Vec<ipnet::IpNet> {
    let mut ranges = Vec::new();
    let Ok(socket) = socket::Socket::route() else { return ranges };
    for family in Family::ALL {
        // A kernel without the family has none.
        let _ = socket.dump(&routing::ask_routes(family), |_, item| {
            ranges.extend(routing::Route::read(item).map(|route| route.range));
        });
    }
    ranges
}

/// Begins to capture.
async fn up(config: config::CaptureUp) -> Result<String, Error> {
    let failed = |error| Error::Kernel("capture", error);
    let mut plan = config.plan.clone();
    let mut unknown = None;
    if plan.services.is_empty() {
        match ranges::service_ranges(ASKED).await {
            Ok(ranges) => plan.services = merged(ranges),
            Err(error) => unknown = Some(error),
        }
    }
    let kernel = Kernel::open().map_err(failed)?;
    if let Some(error) = unknown {
        let why = format!("no range of Service addresses is known: {error}; name them with --services");
        return nothing(why, &kernel, &config);
    }

    let mut notes = Vec::new();
    for family in Family::ALL {
        if let Some(why) = obstacle(family, &kernel, &plan) {
            notes.push(format!("{family} is not captured: {why}"));
            plan = plan.without(family);
        }
    }
    if plan.families().is_empty() {
        return nothing(notes.join("; "), &kernel, &config);
    }
    kernel.install(&plan, &kernel.routes(&plan)).map_err(failed)?;
    let known = probe::kubernetes();
    let probes: Vec<Probe> =
        plan.families().into_iter().map(|family| probe::run(&kernel, &plan, family, known)).collect();
    let bad = probes.iter().find(|probe| !probe.is_good()).cloned();
    let installed = kernel.installed().map_err(failed)?;
    let text = Report::new(&installed, notes, Some(probes)).print(config.output)?;
    match bad {
        Some(probe) if config.strict => Err(Error::Probe(probe)),
        _ => Ok(text),
    }
}

/// Why a family is not captured.
fn obstacle(family: Family, kernel: &Kernel, plan: &Plan) -> Option<String> {
    if family.among(&plan.services).next().is_none() {
        return Some(format!("no range of Service addresses is {family}"));
    }
    if !kernel.has_address(family) {
        return Some(format!("this network namespace has no {family} address"));
    }
    if kernel.looks_into_arrivals(family) {
        return Some(
            "a routing rule by protocol or port (`ip rule`) would keep out what the node answers; remove it, or restrict \
             it to `iif lo`"
                .to_owned(),
        );
    }
    let routes = kernel.routes(plan).local;
    let unrouted =
        family.among(&plan.services).find(|range| !routes.iter().any(|route| route.range == *range));
    unrouted.map(|range| format!("this network namespace has no route to {range}"))
}

/// There is nothing to begin with. What is installed stays: it was right when it was made.
fn nothing(why: String, kernel: &Kernel, config: &config::CaptureUp) -> Result<String, Error> {
    let installed = kernel.installed().map_err(|error| Error::Kernel("capture", error))?;
    let what = if installed.is_empty() { "nothing is captured" } else { "capture stays as it is" };
    let note = format!("{what}: {why}");
    if config.strict {
        return Err(Error::Nothing(note));
    }
    match config.output {
        OutputFormat::Text => Ok(note + "\n"),
        OutputFormat::Json => Ok(Report::new(&installed, vec![note], None).print(config.output)?),
    }
}

/// Undoes it.
fn down() -> Result<String, Error> {
    let removed = Kernel::open().and_then(|kernel| kernel.remove());
    let removed = removed.map_err(|error| Error::Kernel("undo capture", error))?;
    Ok(if removed {
        "capture is undone: the rules, the routing rule and the route are gone\n".to_owned()
    } else {
        "nothing was captured in this network namespace\n".to_owned()
    })
}
