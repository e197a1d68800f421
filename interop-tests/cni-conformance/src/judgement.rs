//! Cases and what they find.
//!
//! Invariants: a case names its clause; it fails only for what the specification says plugins MUST do (or for being
//! impossible to judge), and warns for what they SHOULD do; a case that does not apply says why it was skipped.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::lab::{Lab, Output, Pod};

/// A version of the specification. They compare by age, which for these few is also their alphabetical order.
pub(crate) type Version = &'static str;

/// The versions that the cases know, oldest first.
pub(crate) const VERSIONS: [Version; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// One fact about plugins, from one clause.
pub(crate) struct Case {
    /// `group.fact`
    pub(crate) name: &'static str,
    /// Where the specification says so, and in short what.
    pub(crate) clause: &'static str,
    /// The first version it holds for.
    pub(crate) since: Version,
    /// The first version it no longer holds for, if any.
    pub(crate) before: Option<Version>,
    /// Looks.
    pub(crate) judge: fn(&Trial<'_>, &mut Judgement) -> Result<()>,
}

/// One case in one version.
pub(crate) struct Trial<'l> {
    pub(crate) lab: &'l Lab,
    pub(crate) version: Version,
}

/// A container with a successful ADD behind it.
pub(crate) struct Attached {
    pub(crate) pod: Pod,
    pub(crate) result: Value,
}

/// What a case has found so far.
#[derive(Default)]
pub(crate) struct Judgement {
    findings: Vec<Finding>,
    skipped: Option<String>,
}

/// Something that is not as the specification says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    pub(crate) text: String,
}

/// How strongly the specification says so (RFC 2119).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Level {
    Must,
    Should,
}

/// What became of a case in one version.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) findings: Vec<Finding>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// The outcome in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Skip,
    Pass,
    Warn,
    Fail,
}

impl Case {
    /// Whether the case says anything about `version`.
    pub(crate) fn holds_for(&self, version: Version) -> bool {
        version >= self.since && self.before.is_none_or(|before| version < before)
    }

    /// Judges in `version`, and cleans up.
    pub(crate) fn try_in(&self, lab: &Lab, version: Version) -> Outcome {
        let mut judgement = Judgement::default();
        let judged = (self.judge)(&Trial { lab, version }, &mut judgement);
        lab.sweep();
        if let Err(error) = judged {
            judgement.must(false, || format!("cannot be judged: {error:#}"));
        }
        let mut outcome = judgement.outcome();
        let scratch = lab.scratch().to_string_lossy();
        for finding in &mut outcome.findings {
            finding.text = finding.text.replace(&*scratch, "{scratch}");
        }
        outcome
    }
}

impl Trial<'_> {
    /// A container attached to nothing.
    pub(crate) fn pod(&self) -> Result<Pod> {
        self.lab.pod(self.version)
    }

    /// A container attached to the network.
    pub(crate) fn attached(&self) -> Result<Attached> {
        let pod = self.pod()?;
        let result = self.add(&pod)?;
        Ok(Attached { pod, result })
    }

    /// Runs ADD, which has to succeed for the case to make sense.
    pub(crate) fn add(&self, pod: &Pod) -> Result<Value> {
        let output = self.lab.run("ADD", pod)?;
        if !output.succeeded() {
            bail!("ADD failed: {}", output.summary());
        }
        output
            .json()
            .with_context(|| format!("ADD printed no JSON: {}", output.summary()))
    }

    /// The request for DEL or CHECK after that ADD: from 0.4.0 on it carries the result.
    pub(crate) fn follow_up(&self, attached: &Attached) -> Pod {
        if self.version < "0.4.0" {
            return attached.pod.clone();
        }
        attached
            .pod
            .with(|call| call.key("prevResult", attached.result.clone()))
    }

    /// Runs CHECK for that ADD.
    pub(crate) fn check(&self, attached: &Attached) -> Result<Output> {
        self.lab.run("CHECK", &self.follow_up(attached))
    }

    /// Runs DEL for that ADD.
    pub(crate) fn del(&self, attached: &Attached) -> Result<Output> {
        self.lab.run("DEL", &self.follow_up(attached))
    }
}

impl Attached {
    /// The name of the interface in the container.
    pub(crate) fn ifname(&self) -> &str {
        self.pod.call.get("CNI_IFNAME")
    }
}

impl Judgement {
    /// Notes a MUST that does not hold.
    pub(crate) fn must(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        self.note(Level::Must, holds, otherwise);
    }

    /// Notes a SHOULD that does not hold.
    pub(crate) fn should(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        self.note(Level::Should, holds, otherwise);
    }

    /// Notes that the case does not apply.
    pub(crate) fn skip(&mut self, reason: &str) {
        self.skipped = Some(reason.to_owned());
    }

    fn note(&mut self, level: Level, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.findings.push(Finding {
                level,
                text: otherwise(),
            });
        }
    }

    fn outcome(self) -> Outcome {
        let verdict = if self.findings.iter().any(|finding| finding.level == Level::Must) {
            Verdict::Fail
        } else if !self.findings.is_empty() {
            Verdict::Warn
        } else if self.skipped.is_some() {
            Verdict::Skip
        } else {
            Verdict::Pass
        };
        Outcome {
            verdict,
            findings: self.findings,
            reason: self.skipped,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Skip => "skip",
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}
