//! `calidris lab interop`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context, bail};
use clap::Args;

use super::features;
use super::matrix::{Opponent, Pair, run as run_pairs};
use super::peers::Kind;
use super::results::{Results, State};
use crate::binaries::Binaries;
use crate::daemon::seat::Installation;
use crate::progress::{Progress, Stream};
use crate::require::Need;
use crate::signals;

/// Options of `calidris lab interop`.
#[derive(Args)]
pub struct InteropArgs {
    /// Only these peers
    #[arg(long, value_name = "PEER", value_delimiter = ',')]
    peer: Vec<Kind>,
    /// Only these features, by the names in the table
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    feature: Vec<String>,
    /// Run the peers of another Debian in this folder, instead of this machine's (`make interop-newer`)
    #[arg(long, value_name = "FOLDER")]
    newer: Option<PathBuf>,
    /// How many cases run at a time
    #[arg(long, value_name = "N", default_value_t = 3)]
    jobs: usize,
    /// Write what was found into this table; what was not run stays as it is
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// List the features and end
    #[arg(long)]
    list: bool,
}

/// Runs what was asked for. The exit status is 1 when a cell that the table calls "works" does not, or, without table, when
/// any fails.
///
/// # Errors
/// When nothing can be run.
pub fn run(args: &InteropArgs) -> anyhow::Result<ExitCode> {
    if args.list {
        features::all().for_each(|feature| println!("{:<22} {}", feature.name, feature.title));
        return Ok(ExitCode::SUCCESS);
    }
    for need in [Need::Root, Need::Iproute2, Need::Bird] {
        if let Some(missing) = need.missing() {
            bail!("a lab needs {missing} (`make setup` installs programs that are missing)");
        }
    }
    let opponents = opponents(args)?;
    let pairs = pairs(args, &opponents)?;
    let binaries = Binaries::find()?;
    signals::catch();
    let progress = Progress::start(Stream::Output);
    let before = match &args.results {
        Some(file) if file.exists() => Results::parse(&std::fs::read_to_string(file)?)?,
        _ => Results::default(),
    };
    let results = Mutex::new(before.clone());
    run_pairs(&pairs, args.jobs, &binaries.agent, &progress, |pair, cell| {
        if let Ok(mut results) = results.lock() {
            results.put(pair.feature.name, &pair.opponent.column, cell);
        }
    });
    let results = results.into_inner().unwrap_or_default();
    if signals::interrupted() {
        bail!("interrupted; nothing is written");
    }
    if let Some(file) = &args.results {
        std::fs::write(file, results.render()).with_context(|| format!("write {}", file.display()))?;
        progress.line(format_args!("written: {}", file.display()));
    }
    let count = |state: State| {
        let cells = pairs
            .iter()
            .filter_map(|pair| results.get(pair.feature.name, &pair.opponent.column));
        cells.filter(|cell| cell.state == state).count()
    };
    progress.line(format_args!(
        "{} work, {} the peer cannot, {} we cannot, {} fail",
        count(State::Works),
        count(State::PeerCannot),
        count(State::WeCannot),
        count(State::Fails)
    ));
    let lost = pairs.iter().any(|pair| {
        let now = results
            .get(pair.feature.name, &pair.opponent.column)
            .map(|cell| cell.state);
        let then = before
            .get(pair.feature.name, &pair.opponent.column)
            .map(|cell| cell.state);
        now == Some(State::Fails) && (then == Some(State::Works) || args.results.is_none())
    });
    Ok(if lost {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn opponents(args: &InteropArgs) -> anyhow::Result<Vec<Opponent>> {
    let installation = match &args.newer {
        None => Installation::Machine,
        Some(folder) => {
            let folder = folder.canonicalize().with_context(|| {
                format!("there is no {}; `make interop-newer` makes it", folder.display())
            })?;
            Installation::Folder(folder)
        }
    };
    let mut found = Vec::new();
    for kind in Kind::ALL {
        if !args.peer.is_empty() && !args.peer.contains(&kind) {
            continue;
        }
        match Opponent::find(kind, &installation)? {
            Some(opponent) => found.push(opponent),
            None => bail!("{kind} is not installed there (`make setup` installs what is missing)"),
        }
    }
    Ok(found)
}

fn pairs(args: &InteropArgs, opponents: &[Opponent]) -> anyhow::Result<Vec<Pair>> {
    for name in &args.feature {
        if !features::all().any(|feature| feature.name == name) {
            bail!("there is no feature {name:?}; see `calidris lab interop --list`");
        }
    }
    let wanted = features::all()
        .filter(|feature| args.feature.is_empty() || args.feature.iter().any(|name| name == feature.name));
    Ok(wanted
        .flat_map(|feature| {
            opponents.iter().map(move |opponent| Pair {
                feature,
                opponent: opponent.clone(),
            })
        })
        .collect())
}
