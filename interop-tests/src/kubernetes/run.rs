//! The test itself, from the first step to the last case.

use super::cases::CASES;
use super::cluster::Kubernetes;
use crate::binaries::Binaries;
use crate::lab::Lab;
use crate::programs::Programs;
use crate::progress::Progress;
use crate::proof::Proof;

/// How many lines of each log are shown when something fails.
const LOG_LINES: usize = 20;
/// The group of all facts.
const GROUP: &str = "kubernetes";

/// Brings Kubernetes up in a lab and runs all cases. A case that fails does not keep the others from running.
pub fn prove(lab: &Lab, (binaries, programs): (&Binaries, &Programs), progress: &Progress) -> Proof {
    let mut proof = Proof::default();
    let started = Kubernetes::start(lab, binaries, programs, progress);
    let completed = started.and_then(|mut kubernetes| {
        progress.line(format_args!(
            "  look inside: {}",
            kubernetes.control.look_inside()
        ));
        proof.run_cases(progress, GROUP, CASES, &mut kubernetes)
    });
    proof.check_completed(progress, GROUP, completed);
    if !proof.holds() {
        progress.line(lab.log_tails(LOG_LINES));
    }
    proof
}
