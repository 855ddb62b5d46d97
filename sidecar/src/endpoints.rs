//! `remora endpoints`: which endpoints serve here, and why each other one does not. Asks the running sidecar, or
//! looks at a source by itself. Answers go to standard output, warnings to standard error.

mod columns;
mod report;

use std::fmt;

use selection::ServiceName;

use crate::arguments::OutputFormat;
use crate::config::{Ask, Endpoints};
use crate::{ask, look};

pub use report::{Live, Report};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody was there to ask, or it did not know.
    #[error(transparent)]
    Ask(#[from] ask::Error),
    /// The source gave nothing.
    #[error(transparent)]
    Look(#[from] look::Error),
    /// No such Service.
    #[error("{0}")]
    Unknown(Unknown),
    /// It cannot be printed.
    #[error("cannot print the answer: {0}; try -o text")]
    Print(#[from] serde_json::Error),
}

/// A Service that nobody knows of.
#[derive(Debug)]
pub struct Unknown {
    /// The name that was asked for.
    pub service: ServiceName,
    /// Where it was looked for.
    pub source: String,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, source } = self;
        write!(f, "{source} has no Service {service}; `remora endpoints` without a name lists those it has")
    }
}

/// Runs the command: the answer to print; warnings are printed at once.
///
/// # Errors
/// If there is no answer.
pub async fn run(config: Endpoints) -> Result<String, Error> {
    let (answer, warnings): (String, Vec<String>) = match config.ask {
        Ask::Sidecar(admin) => {
            let service = config.service.as_ref().map(ToString::to_string);
            let query: Vec<(&str, &str)> = service.iter().map(|name| ("service", &**name)).collect();
            let answer = ask::ask(admin, "/v1/endpoints", &query, config.output).await?;
            let warnings = ask::ask(admin, "/v1/warnings", &query, OutputFormat::Text).await?;
            (answer, warnings.lines().map(str::to_owned).collect())
        }
        Ask::Source(source, here) => {
            let name = source.to_string();
            let watch = look::start(source, look::scope(config.service.as_ref()), here).await?;
            let services = match config.service {
                None => watch.inspect_all().await,
                Some(service) => match watch.inspect(service.clone()).await {
                    Some(inspection) => vec![inspection],
                    None => return Err(Error::Unknown(Unknown { service, source: name })),
                },
            };
            let report = Report { services, live: None };
            (render(&report, config.output)?, report.warnings().map(str::to_owned).collect())
        }
    };
    if answer.is_empty() {
        eprintln!("no Services");
    }
    warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    Ok(answer)
}

/// The report as it was asked for.
///
/// # Errors
/// Never, as long as it fits into memory.
pub fn render(report: &Report, output: OutputFormat) -> Result<String, serde_json::Error> {
    match output {
        OutputFormat::Text => Ok(report.text()),
        OutputFormat::Json => report.json(),
    }
}
