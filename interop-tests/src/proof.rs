//! The proof that a cluster works: a list of single facts, each of which holds or says why it does not.
//!
//! Pods are added, everybody's routes are waited for, then everybody asks everybody; at the end pods are deleted.
//! After the routes are there nothing is tried twice: an answer comes at once or the check has failed.

use std::net::IpAddr;

use anyhow::{bail, ensure};
use serde::Serialize;

use crate::cluster::Cluster;
use crate::progress::Progress;
use crate::signals;

mod deletion;
mod matrix;
mod overlay;
mod pods;
mod reachability;
mod routes;

pub use deletion::{delete_one, delete_the_rest};
pub use overlay::overlay_beside_bgp;
pub use pods::{add_pods, runtimes_check};
pub use reachability::{nodes_and_outside, pod_to_pod};
pub use routes::routes_everywhere;

/// What was checked so far.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Proof {
    /// The pods that were added.
    pub pods: Vec<PodTimes>,
    /// The facts, in the order of checking.
    pub checks: Vec<Check>,
}

/// One fact.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Which part of the proof it belongs to.
    pub group: &'static str,
    /// What must hold.
    pub name: String,
    /// Why it does not; nothing when it holds.
    pub failure: Option<String>,
}

/// How fast a pod came up.
#[derive(Clone, Debug, Serialize)]
pub struct PodTimes {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its address.
    pub address: IpAddr,
    /// From executing the plugin for ADD to its exit, milliseconds.
    pub add_ms: f64,
    /// From the end of ADD to the first answer to a client on another node, milliseconds.
    pub answered_ms: Option<f64>,
}

impl Proof {
    /// Notes whether a fact holds; tells at once when it does not.
    pub fn check(
        &mut self,
        progress: &Progress,
        (group, name): (&'static str, String),
        result: anyhow::Result<()>,
    ) {
        let failure = result.err().map(|error| format!("{error:#}"));
        if let Some(failure) = &failure {
            progress.step(format_args!("FAILED {group}: {name}: {failure}"));
        }
        self.checks.push(Check { group, name, failure });
    }

    /// Notes why not everything could be checked, if that is so.
    pub fn check_completed(
        &mut self,
        progress: &Progress,
        group: &'static str,
        completed: anyhow::Result<()>,
    ) {
        if completed.is_err() {
            let fact = "everything could be checked".to_owned();
            self.check(progress, (group, fact), completed);
        }
    }

    /// Checks the facts of a group in turn, each as it is proved. One that does not hold does not keep the others from being checked.
    ///
    /// # Errors
    /// When the user interrupts.
    pub fn run_cases<T, F: Fn(&mut T) -> anyhow::Result<()>>(
        &mut self,
        progress: &Progress,
        group: &'static str,
        cases: &[(&'static str, F)],
        subject: &mut T,
    ) -> anyhow::Result<()> {
        for (fact, case) in cases {
            let result = case(subject);
            ensure!(!signals::interrupted(), "interrupted");
            let holds = result.is_ok();
            self.check(progress, (group, (*fact).to_owned()), result);
            if holds {
                progress.step(format_args!("ok: {fact}"));
            }
        }
        Ok(())
    }

    /// How many facts hold.
    #[must_use]
    pub fn passed(&self) -> usize {
        self.checks.iter().filter(|check| check.failure.is_none()).count()
    }

    /// Whether all facts hold, and there are any.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.checks.is_empty() && self.passed() == self.checks.len()
    }

    /// Fails with all facts that do not hold.
    ///
    /// # Errors
    /// See above.
    pub fn into_result(self) -> anyhow::Result<()> {
        if self.holds() {
            return Ok(());
        }
        let failed = self
            .checks
            .iter()
            .filter_map(|check| Some((check, check.failure.as_ref()?)));
        let lines: Vec<String> = failed
            .map(|(check, why)| format!("{}: {}: {why}", check.group, check.name))
            .collect();
        bail!("{}:\n  {}", self.verdict(), lines.join("\n  "))
    }

    /// The last line: `PASS n/n` or `FAIL m/n`.
    #[must_use]
    pub fn verdict(&self) -> String {
        let word = if self.holds() { "PASS" } else { "FAIL" };
        format!("{word} {}/{}", self.passed(), self.checks.len())
    }

    /// `m of n` for one group.
    fn score(&self, group: &str) -> String {
        let of_group = || self.checks.iter().filter(|check| check.group == group);
        let passed = of_group().filter(|check| check.failure.is_none()).count();
        format!("{passed} of {}", of_group().count())
    }
}

/// Adds the pods and checks everything that does not take any away.
///
/// # Errors
/// When a pod cannot be added.
pub fn prove_running(cluster: &mut Cluster, progress: &Progress, proof: &mut Proof) -> anyhow::Result<()> {
    add_pods(cluster, progress, proof)?;
    runtimes_check(cluster, progress, proof);
    routes_everywhere(cluster, progress, proof)?;
    pod_to_pod(cluster, progress, proof);
    nodes_and_outside(cluster, progress, proof);
    Ok(())
}
