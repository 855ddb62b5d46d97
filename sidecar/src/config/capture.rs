//! What `remora capture` shall do.

use super::{Error, given, range, ranges};
use crate::arguments::{CaptureUpArguments, CaptureVerb, OutputFormat};
use crate::capture::{Plan, merged_ports};

/// What `remora capture` shall do.
#[derive(Debug)]
pub enum Capture {
    /// Begin.
    Up(CaptureUp),
    /// End.
    Down,
    /// Tell.
    Show(OutputFormat),
}

/// What `remora capture up` shall do.
#[derive(Debug)]
pub struct CaptureUp {
    /// What to capture; no ranges if the API server is to be asked for them.
    pub plan: Plan,
    /// Fail if it does not work.
    pub strict: bool,
    /// How to print it.
    pub output: OutputFormat,
}

impl Capture {
    /// Judges the command line of `remora capture`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(typed: CaptureVerb) -> Result<Self, Error> {
        match typed {
            CaptureVerb::Up(typed) => CaptureUp::new(typed).map(Self::Up),
            CaptureVerb::Down => Ok(Self::Down),
            CaptureVerb::Show { output } => Ok(Self::Show(output)),
        }
    }
}

impl CaptureUp {
    fn new(typed: CaptureUpArguments) -> Result<Self, Error> {
        let services = ranges("services", &typed.services)?;
        if let Some(range) = services.iter().find(|range| !range::can_be_services(range)) {
            return Err(Error::NoServices(*range));
        }
        let ports = |text: &String| range::ports(text).ok_or_else(|| Error::SkipPorts(text.clone()));
        let plan = Plan {
            services,
            skip_ports: merged_ports(given(&typed.skip_ports).map(ports).collect::<Result<_, _>>()?),
            skip_subnets: ranges("skip-subnets", &typed.skip_subnets)?,
            user: typed.user,
        };
        Ok(Self { plan, strict: typed.strict, output: typed.output })
    }
}
