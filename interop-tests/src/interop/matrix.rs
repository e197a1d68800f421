//! Runs features against peers, a few at a time, each in a lab of its own.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;

use super::features::Feature;
use super::peer::{PeerCannot, WeCannot};
use super::peers::Kind;
use super::results::{Cell, State};
use super::site::{Contestants, Site};
use crate::daemon::seat::Installation;
use crate::progress::Progress;
use crate::signals;

/// Lines of every log that a failure shows.
const LOG_LINES: usize = 40;

/// The longest remark in the table.
const LONGEST_REMARK: usize = 400;

/// A daemon to run against.
#[derive(Clone, Debug)]
pub struct Opponent {
    /// Which.
    pub kind: Kind,
    /// Where its programs are.
    pub installation: Installation,
    /// Program, version and release: the column of the table.
    pub column: String,
}

impl Opponent {
    /// Looks what is installed; `None` when it is not.
    ///
    /// # Errors
    /// When it is there and does not tell its version.
    pub fn find(kind: Kind, installation: &Installation) -> anyhow::Result<Option<Self>> {
        if !kind.programs().iter().all(|program| installation.has(program)) {
            return Ok(None);
        }
        let version = kind.version(installation)?;
        Ok(Some(Self {
            kind,
            installation: installation.clone(),
            column: format!("{kind} {version} ({})", release(installation)),
        }))
    }
}

/// The Debian release of an installation.
fn release(installation: &Installation) -> String {
    let file = match installation {
        Installation::Machine => PathBuf::from("/etc/os-release"),
        Installation::Folder(root) => root.join("etc/os-release"),
    };
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.unwrap_or("unknown release").trim_matches('"').to_owned()
}

/// One cell to be filled.
#[derive(Clone)]
pub struct Pair {
    /// The row.
    pub feature: &'static Feature,
    /// The column.
    pub opponent: Opponent,
}

/// Runs the pairs, `jobs` at a time, and hands every cell to `done` as it is known.
pub fn run(
    pairs: &[Pair],
    jobs: usize,
    calidris: &Path,
    progress: &Progress,
    done: impl Fn(&Pair, Cell) + Sync,
) {
    let next = AtomicUsize::new(0);
    let printing = Mutex::new(());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some((number, pair)) = take(pairs, &next) {
                    let watch = crate::eventually::Stopwatch::start();
                    let (cell, details) = fill(pair, number, calidris);
                    let guard = printing.lock();
                    progress.step(format_args!(
                        "{:<11} {:<20} {} ({:.1} s){}{}",
                        cell.state.to_string(),
                        pair.feature.name,
                        pair.opponent.column,
                        watch.elapsed().as_secs_f64(),
                        if cell.remark.is_empty() { "" } else { ": " },
                        cell.remark
                    ));
                    if let Some(details) = details {
                        progress.line(details);
                    }
                    drop(guard);
                    done(pair, cell);
                }
            });
        }
    });
}

fn take<'a>(pairs: &'a [Pair], next: &AtomicUsize) -> Option<(usize, &'a Pair)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    if signals::interrupted() {
        return None;
    }
    pairs.get(number).map(|pair| (number, pair))
}

/// Runs one pair; with a failure come the whole message and the ends of all logs.
fn fill(pair: &Pair, number: usize, calidris: &Path) -> (Cell, Option<String>) {
    let name = format!("io-{}-{number}", std::process::id());
    let contestants = Contestants {
        calidris: calidris.to_owned(),
        kind: pair.opponent.kind,
        installation: pair.opponent.installation.clone(),
    };
    let outcome = Site::create(&name, &contestants).and_then(|site| {
        let outcome = (pair.feature.run)(&site);
        let logs = match &outcome {
            Err(error) if classify(error) == State::Fails => site.lab.log_tails(LOG_LINES),
            _ => String::new(),
        };
        let down = site.lab.take_down().context("take the lab down");
        match (outcome, down) {
            (Ok(remark), Ok(())) => Ok(remark),
            (Err(error), _) => Err(error.context(Logs(logs))),
            (_, Err(error)) => Err(error),
        }
    });
    match outcome {
        Ok(remark) => (cell(State::Works, &remark), None),
        Err(error) => {
            let state = classify(&error);
            let logs = error.downcast_ref::<Logs>().map(|Logs(text)| text.clone());
            let words: Vec<String> = error.chain().map(ToString::to_string).collect();
            let words = words
                .iter()
                .filter(|word| !word.is_empty())
                .cloned()
                .collect::<Vec<_>>()
                .join(": ");
            let details = (state == State::Fails).then(|| format!("{words}\n{}", logs.unwrap_or_default()));
            (cell(state, &words), details)
        }
    }
}

/// The ends of the logs, carried by an error.
#[derive(Debug)]
struct Logs(String);

impl std::fmt::Display for Logs {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}

fn classify(error: &anyhow::Error) -> State {
    if error.downcast_ref::<PeerCannot>().is_some() {
        State::PeerCannot
    } else if error.downcast_ref::<WeCannot>().is_some() {
        State::WeCannot
    } else {
        State::Fails
    }
}

/// A cell whose remark fits into a line.
fn cell(state: State, words: &str) -> Cell {
    let mut remark = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if remark.chars().count() > LONGEST_REMARK {
        remark = remark.chars().take(LONGEST_REMARK).collect::<String>() + " …";
    }
    Cell { state, remark }
}
