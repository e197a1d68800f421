//! The short features against every daemon: what `interop-tests/RESULTS.md` calls "works" must work.
//!
//! `make interop` runs all features and writes the table.

use std::sync::Mutex;

use anyhow::{Context, ensure};
use calidris_interop::binaries::Binaries;
use calidris_interop::daemon::seat::Installation;
use calidris_interop::interop::features;
use calidris_interop::interop::matrix::{Opponent, Pair, run};
use calidris_interop::interop::peers::Kind;
use calidris_interop::interop::results::{Cell, Results, State};
use calidris_interop::progress::{Progress, Stream};
use calidris_interop::require;

use super::NEEDS;

const RESULTS: &str = include_str!("../../RESULTS.md");

#[test]
fn what_the_table_says_works_works() -> anyhow::Result<()> {
    require!(NEEDS);
    let table = Results::parse(RESULTS)?;
    let mut pairs = Vec::new();
    for kind in Kind::ALL {
        let opponent = Opponent::find(kind, &Installation::Machine)?.context("installed")?;
        for feature in features::all().filter(|feature| feature.quick) {
            let works = |cell: &Cell| cell.state == State::Works;
            // A version that has no column is held to those that have.
            let works = match table.get(feature.name, &opponent.column) {
                Some(cell) => works(cell),
                None => {
                    let name = kind.to_string();
                    let columns = table.columns.iter().filter(|column| column.starts_with(&name));
                    columns
                        .filter_map(|column| table.get(feature.name, column))
                        .any(works)
                }
            };
            if works {
                pairs.push(Pair {
                    feature,
                    opponent: opponent.clone(),
                });
            }
        }
    }
    ensure!(
        pairs.len() > 40,
        "only {} cells are held to the table",
        pairs.len()
    );
    let failed = Mutex::new(Vec::new());
    let calidris = Binaries::find()?.agent;
    // Most of a case is waiting, so more run at a time than there are processors.
    run(
        &pairs,
        6,
        &calidris,
        &Progress::start(Stream::Error),
        |pair, cell| {
            if cell.state != State::Works
                && let Ok(mut failed) = failed.lock()
            {
                failed.push(format!(
                    "{} with {}: {}: {}",
                    pair.feature.name, pair.opponent.column, cell.state, cell.remark
                ));
            }
        },
    );
    let failed = failed.into_inner().unwrap_or_default();
    ensure!(
        failed.is_empty(),
        "{} of {}:\n{}",
        failed.len(),
        pairs.len(),
        failed.join("\n")
    );
    Ok(())
}

#[test]
fn every_cell_of_the_table_is_filled_and_what_does_not_work_is_explained() -> anyhow::Result<()> {
    let table = Results::parse(RESULTS)?;
    for (feature, column) in features::all().flat_map(|f| table.columns.iter().map(move |c| (f.name, c))) {
        let cell = table.get(feature, column);
        let cell = cell.with_context(|| format!("{feature} was not run with {column}"))?;
        ensure!(
            cell.state == State::Works || !cell.remark.is_empty(),
            "{feature} with {column}: {} without explanation",
            cell.state
        );
    }
    Ok(())
}

/// Files are read by the names of features; two of one name would hide each other.
#[test]
fn features_have_names_of_their_own() {
    let mut names: Vec<&str> = features::all().map(|feature| feature.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
