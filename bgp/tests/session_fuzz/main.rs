//! Whole sessions against a legality model of the state machine: one hostile peer says and does anything, on virtual time, while an
//! honest one watches.
//!
//! A run is a seed. [`script`] draws what the hostile peer does next; [`model`] is a second, independent and small account of RFC 4271
//! §8, which says what the speaker may answer. After each act: nothing panicked; the answer is the one the model names, down to code
//! and subcode of a NOTIFICATION; everything the speaker ever said on a connection is a legal conversation; actions, log events,
//! bytes and routes are within bounds; the honest peer's session stands. At the end the hostile peer leaves nothing behind,
//! and an ordinary session with it comes up.
//!
//! `CALIDRIS_FUZZ_SEED` is the first seed and `CALIDRIS_FUZZ_ROUNDS` how many follow (`make fuzz` runs on). A failing seed is printed,
//! and appended to the file that `CALIDRIS_FUZZ_KEEP` names; those in `corpus.txt` are run every time.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic"
)]

mod arena;
mod model;
mod script;

use std::io::Write;

use arena::Arena;
use script::Script;

/// Acts of one run.
const ACTS: usize = 120;

/// Seeds that once failed, or that reach something rare: a number a line, with the reason behind `#`.
const CORPUS: &str = include_str!("corpus.txt");

#[test]
fn seeds_that_once_failed_are_legal() {
    for line in CORPUS.lines() {
        let seed = line.split('#').next().unwrap_or_default().trim();
        if !seed.is_empty() {
            run(seed.parse().expect("a number"));
        }
    }
}

#[test]
fn whatever_a_peer_does_is_answered_legally() {
    let first = from_environment("CALIDRIS_FUZZ_SEED").unwrap_or(1);
    let rounds = from_environment("CALIDRIS_FUZZ_ROUNDS").unwrap_or(250);
    let mut reached = arena::Reached::default();
    for seed in first..first.saturating_add(rounds) {
        reached.add(run(seed));
    }
    println!("{reached:?}");
    // The scripts must come everywhere, or the test shows nothing.
    if rounds >= 200 {
        for (what, count) in reached.all() {
            assert!(count > 10, "{what} was reached {count} times: {reached:?}");
        }
    }
}

fn run(seed: u64) -> arena::Reached {
    let guard = Failing(seed);
    let mut script = Script::new(seed);
    let mut arena = Arena::new(seed);
    for _ in 0..ACTS {
        let act = script.next(&arena.view());
        arena.perform(&act);
    }
    let reached = arena.end();
    std::mem::forget(guard);
    reached
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

/// Tells, when a run panics, which it was.
struct Failing(u64);

impl Drop for Failing {
    fn drop(&mut self) {
        println!("failing seed {}", self.0);
        let kept = std::env::var_os("CALIDRIS_FUZZ_KEEP")
            .map(|path| std::fs::File::options().append(true).open(path));
        if let Some(Ok(mut file)) = kept {
            // Whatever cannot be kept was printed.
            let _lost = writeln!(file, "{}", self.0);
        }
    }
}
