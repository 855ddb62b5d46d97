//! What a check found, and how it is printed. Values only.

use std::fmt;

use serde::Serialize;

/// Where each finding is explained, under its name.
const PAGE: &str = "docs/check.md";

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// In the order of the checks.
    pub findings: Vec<Finding>,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub section: Section,
    /// A stable word, and the heading in the documentation.
    pub name: &'static str,
    /// How it is.
    pub outcome: Outcome,
    /// What was found.
    pub says: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Where it is explained.
    pub page: String,
}

/// What findings are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    /// The cluster, with or without Remora.
    Kubernetes,
    /// What is installed.
    Remora,
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It works, with what the finding says; or it could not be checked.
    Warning,
    /// It does not work.
    Failed,
}

impl Section {
    pub(super) fn ok(self, name: &'static str, says: impl Into<String>) -> Finding {
        self.finding(name, Outcome::Ok, says.into(), None)
    }

    pub(super) fn warning(
        self,
        name: &'static str,
        says: impl Into<String>,
        next: impl Into<String>,
    ) -> Finding {
        self.finding(name, Outcome::Warning, says.into(), Some(next.into()))
    }

    pub(super) fn failed(
        self,
        name: &'static str,
        says: impl Into<String>,
        next: impl Into<String>,
    ) -> Finding {
        self.finding(name, Outcome::Failed, says.into(), Some(next.into()))
    }

    /// What could not be looked at.
    pub(super) fn unknown(self, name: &'static str, why: impl fmt::Display) -> Finding {
        self.warning(name, format!("not checked: {why}"), "run it as somebody who may read that")
    }

    fn finding(self, name: &'static str, outcome: Outcome, says: String, next: Option<String>) -> Finding {
        Finding { section: self, name, outcome, says, next, page: format!("{PAGE}#{name}") }
    }
}

impl Report {
    /// How many findings are failures.
    pub fn failures(&self) -> usize {
        self.count(Outcome::Failed)
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.findings.iter().filter(|finding| finding.outcome == outcome).count()
    }
}

/// For people:
///
/// ```text
/// kubernetes
///   √ version      Kubernetes 1.37.2
///   × cni          Cilium translates at the socket: …
///                  → set socketLB.hostNamespaceOnly: true; docs/check.md#cni
/// ```
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.findings.iter().map(|finding| finding.name.len()).max().unwrap_or_default();
        let mut section = None;
        for finding in &self.findings {
            if section.replace(finding.section) != Some(finding.section) {
                let title = match finding.section {
                    Section::Kubernetes => "kubernetes",
                    Section::Remora => "remora",
                };
                writeln!(f, "{title}")?;
            }
            let mark = match finding.outcome {
                Outcome::Ok => '√',
                Outcome::Warning => '!',
                Outcome::Failed => '×',
            };
            writeln!(f, "  {mark} {:width$}  {}", finding.name, finding.says)?;
            if let Some(next) = &finding.next {
                writeln!(f, "    {:width$}  → {next}; {}", "", finding.page)?;
            }
        }
        match (self.failures(), self.count(Outcome::Warning)) {
            (0, 0) => writeln!(f, "all is well"),
            (0, warnings) => writeln!(f, "nothing failed, {warnings} to look at"),
            (failed, 0) => writeln!(f, "{failed} failed"),
            (failed, warnings) => writeln!(f, "{failed} failed, {warnings} to look at"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let findings = vec![
            Section::Kubernetes.ok("version", "Kubernetes 1.37.2"),
            Section::Kubernetes.failed("cni", "it hides connections", "switch it off"),
            Section::Remora.unknown("hub", "you may not"),
        ];
        Report { findings }
    }

    #[test]
    fn people_read_what_to_do_below_what_is_wrong() {
        assert_eq!(
            report().to_string(),
            "kubernetes\n  √ version  Kubernetes 1.37.2\n  × cni      it hides connections\n             → switch it off; \
             docs/check.md#cni\nremora\n  ! hub      not checked: you may not\n             → run it as somebody who may \
             read that; docs/check.md#hub\n1 failed, 1 to look at\n"
        );
    }

    #[test]
    fn programs_read_stable_words() {
        let json = serde_json::to_value(report()).expect("JSON");
        assert_eq!(json["findings"][0]["outcome"], "ok");
        assert_eq!(json["findings"][1]["section"], "kubernetes");
        assert_eq!(json["findings"][2]["page"], "docs/check.md#hub");
    }
}
