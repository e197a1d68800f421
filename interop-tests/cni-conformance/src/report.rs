//! Reports: a table for people, JSON for programs, Markdown to compare plugins.
//!
//! Invariant: everything printed comes from [`Report`], which is also the JSON; so a table can be made from a stored one.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::judgement::{Case, Finding, Level, Outcome, VERSIONS, Verdict};

/// The verdicts of one plugin.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The plugin's file name, or what it is to be called.
    pub(crate) plugin: String,
    /// What its VERSION says.
    pub(crate) supported_versions: Vec<String>,
    /// All cases, in order.
    pub(crate) cases: Vec<CaseReport>,
}

/// One case in all versions.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CaseReport {
    pub(crate) name: String,
    pub(crate) clause: String,
    /// By version; versions for which the clause says nothing, or that the plugin does not speak, are absent.
    pub(crate) outcomes: BTreeMap<String, Outcome>,
}

impl CaseReport {
    pub(crate) fn new(case: &Case) -> Self {
        Self {
            name: case.name.into(),
            clause: case.clause.into(),
            outcomes: BTreeMap::new(),
        }
    }

    fn worst(&self) -> Option<Verdict> {
        self.outcomes.values().map(|outcome| outcome.verdict).max()
    }
}

impl Report {
    /// How many outcomes there are of a kind.
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.cases
            .iter()
            .flat_map(|case| case.outcomes.values())
            .filter(|outcome| outcome.verdict == verdict)
            .count()
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{} (says it speaks {})\n\n",
            self.plugin,
            self.supported_versions.join(", ")
        );
        let _ = write!(text, "{:<30}", "case");
        for version in VERSIONS {
            let _ = write!(text, "{version:<7}");
        }
        text.push_str("clause\n");
        for case in &self.cases {
            let _ = write!(text, "{:<30}", case.name);
            for version in VERSIONS {
                match case.outcomes.get(version) {
                    Some(outcome) => drop(write!(text, "{:<7}", outcome.verdict)),
                    None => drop(write!(text, "{:<7}", "·")),
                }
            }
            let _ = writeln!(text, "{}", case.clause);
            for (versions, line) in findings_by_text(case) {
                let _ = writeln!(text, "      {versions}: {line}");
            }
        }
        let _ = writeln!(text, "\n{}", self.summary());
        text
    }

    fn summary(&self) -> String {
        format!(
            "{} pass, {} FAIL (a MUST does not hold), {} warn (a SHOULD does not hold), {} skip",
            self.count(Verdict::Pass),
            self.count(Verdict::Fail),
            self.count(Verdict::Warn),
            self.count(Verdict::Skip)
        )
    }
}

/// A Markdown table with a column for each report, and below it what was found.
pub(crate) fn compare(reports: &[Report]) -> String {
    let mut text = String::from("| case | clause |");
    for report in reports {
        let _ = write!(text, " {} |", report.plugin);
    }
    text.push_str("\n|---|---|");
    text.push_str(&"---|".repeat(reports.len()));
    text.push('\n');
    for case in reports.first().map(|report| &report.cases).into_iter().flatten() {
        let _ = write!(text, "| {} | {} |", case.name, case.clause);
        for report in reports {
            let same = report.cases.iter().find(|other| other.name == case.name);
            let _ = write!(text, " {} |", same.map_or_else(|| "–".into(), cell));
        }
        text.push('\n');
    }
    for report in reports {
        let _ = writeln!(text, "\n## {}\n", report.plugin);
        let _ = writeln!(
            text,
            "Says it speaks {}. {}.\n",
            report.supported_versions.join(", "),
            report.summary()
        );
        for case in &report.cases {
            for (versions, line) in findings_by_text(case) {
                let _ = writeln!(text, "- `{}` {versions}: {}", case.name, line.replace('|', "\\|"));
            }
        }
    }
    text
}

/// The verdict in a word, with the versions where they differ.
fn cell(case: &CaseReport) -> String {
    let Some(worst) = case.worst() else {
        return "–".into();
    };
    let with_worst: Vec<&str> = case
        .outcomes
        .iter()
        .filter(|(_, outcome)| outcome.verdict == worst)
        .map(|(version, _)| version.as_str())
        .collect();
    if with_worst.len() == case.outcomes.len() {
        worst.to_string()
    } else {
        format!("{worst} ({})", with_worst.join(", "))
    }
}

/// Findings and reasons, each once, with the versions in which they were seen. Findings that differ in numbers only
/// (addresses, process IDs) count as one.
fn findings_by_text(case: &CaseReport) -> Vec<(String, String)> {
    let mut lines: Vec<(Vec<&str>, String)> = Vec::new();
    for (version, outcome) in &case.outcomes {
        let skipped = outcome.reason.iter().map(|reason| format!("skipped: {reason}"));
        for line in outcome.findings.iter().map(describe).chain(skipped) {
            match lines
                .iter_mut()
                .find(|(_, known)| without_digits(known) == without_digits(&line))
            {
                Some((versions, _)) if versions.contains(&version.as_str()) => {}
                Some((versions, _)) => versions.push(version),
                None => lines.push((vec![version], line)),
            }
        }
    }
    lines
        .into_iter()
        .map(|(versions, line)| (versions.join(", "), line))
        .collect()
}

fn describe(finding: &Finding) -> String {
    let level = match finding.level {
        Level::Must => "MUST",
        Level::Should => "SHOULD",
    };
    format!("{level}: {}", finding.text)
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_ascii_digit()).collect()
}
