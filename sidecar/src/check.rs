//! `remora check`: whether a cluster is fit for Remora, and whether what is installed there works. In: the Kubernetes API,
//! asked as whoever runs the command. Out: findings, each with what to do and where it is explained. Never changes
//! anything: the Pod that it creates is a dry run.

mod cluster;
mod finding;
mod installation;

use std::fmt;

use watcher::kubernetes::Cluster;

use crate::arguments::{CheckArguments, OutputFormat};

pub use finding::{Finding, Outcome, Report, Section};

/// Why nothing could be checked, or that something is wrong.
#[derive(Debug)]
pub enum Error {
    /// There is no cluster to ask.
    Kubernetes(watcher::kubernetes::Error),
    /// The findings cannot be printed.
    Print(serde_json::Error),
    /// So many findings are failures.
    Failed(usize),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes(watcher::kubernetes::Error::NoConfig(why)) => write!(
                f,
                "do not know which Kubernetes API to ask: {why}; set KUBECONFIG, or run in a Pod with a service account"
            ),
            Self::Kubernetes(error) => error.fmt(f),
            Self::Print(error) => write!(f, "cannot print the findings: {error}; try -o text"),
            Self::Failed(1) => f.write_str("1 check failed; what to do stands below it"),
            Self::Failed(number) => write!(f, "{number} checks failed; what to do stands below each"),
        }
    }
}

/// Runs the command, and prints by `print`.
///
/// # Errors
/// If there is no cluster to ask, or a check failed.
pub async fn run(typed: CheckArguments, print: impl FnOnce(&str)) -> Result<String, Error> {
    let cluster = Cluster::new().await.map_err(Error::Kubernetes)?;
    let mut findings = cluster::check(&cluster, typed.pre.then_some(&*typed.namespace)).await;
    // Without an answer to the first question there is none to the others.
    if !typed.pre && findings.first().is_some_and(|first| first.outcome == Outcome::Ok) {
        findings.extend(installation::check(&cluster).await);
    }
    let report = Report { findings };
    match typed.output {
        OutputFormat::Text => print(&report.to_string()),
        OutputFormat::Json => print(&(serde_json::to_string_pretty(&report).map_err(Error::Print)? + "\n")),
    }
    match report.failures() {
        0 => Ok(String::new()),
        number => Err(Error::Failed(number)),
    }
}
