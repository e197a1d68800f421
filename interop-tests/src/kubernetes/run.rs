//! The test itself, from the first step to the verdict.

use std::path::Path;

use crate::binaries::Binaries;
use crate::lab::Lab;
use crate::progress::{Progress, Stream};
use crate::proof::Proof;

use super::cluster::Kubernetes;
use super::programs::Programs;

/// How many lines of each log are shown when something fails.
const LOG_LINES: usize = 30;

/// Brings Kubernetes up with the programs in a folder, runs all cases and takes everything down. Whether all passed.
///
/// # Errors
/// When a lab cannot be made here.
pub fn run(name: &str, programs: &Path, keep: bool) -> anyhow::Result<bool> {
    let programs = Programs::in_folder(programs)?;
    let binaries = Binaries::find()?;
    let progress = Progress::start(Stream::Output);
    let lab = Lab::create(name)?;
    if keep { lab.keep(); }
    let mut proof = Proof::default();
    let k = Kubernetes::start(lab, &binaries, &programs, &progress);
    match k { Ok(k) => { progress.line(k.control.look_inside()); },
     Err(e) => proof.check(&progress, ("lab", "starts".into()), Err(e)) };
    progress.line(proof.verdict());
    Ok(proof.holds())
}
