//! A real Calico turn about with ours on one etcd: `make test-calico`.
//!
//! Two nodes, each with our agent and both CNI plugins, Calico's and ours, as while a cluster is taken over. Either plugin
//! adds containers, either deletes them, whoever added them; `calicoctl` and `calidris ipam` look at what the other wrote
//! and change it. After every few steps what is stored is exactly what the containers have, and neither `calicoctl ipam
//! check` nor `calidris ipam check` finds anything: the judge of our data is a program that nobody here wrote.

mod cases;
mod said;
mod site;

use crate::binaries::Binaries;
use crate::lab::Lab;
use crate::programs::Programs;
use crate::progress::Progress;
use crate::proof::Proof;
use cases::CASES;
use site::Site;

/// The group of all facts.
const GROUP: &str = "calico";
/// How many lines of each log are shown when something fails.
const LOG_LINES: usize = 20;

/// Brings the nodes up in a lab and runs all cases. `seed` decides who adds and deletes what where.
pub fn prove(
    lab: &Lab,
    (binaries, programs): (&Binaries, &Programs),
    seed: u64,
    progress: &Progress,
) -> Proof {
    let mut proof = Proof::default();
    let completed = Site::start(lab, (binaries, programs), seed, progress)
        .and_then(|mut site| proof.run_cases(progress, GROUP, CASES, &mut site));
    proof.check_completed(progress, GROUP, completed);
    if !proof.holds() {
        progress.line(lab.log_tails(LOG_LINES));
    }
    proof
}
