//! BGP beside BIRD 2 and FRR: a table in from one peer and out to one, to many, and to the clients of a route reflector.
//!
//! The subject runs alone in a namespace as a bare speaker that accepts and exports everything and writes nothing to the
//! kernel (BIRD without the kernel protocol, bgpd without zebra). A second namespace, on the other end of one veth pair,
//! holds the peers: a feeder that sends UPDATEs encoded beforehand as fast as TCP takes them, and sinks that count
//! prefixes. Both are the same for every subject, and share the machine's cores with it.
//!
//! A run begins with all sessions up and ends when every sink has been told of every prefix. Measured are the time between, the
//! processor time that the subject used meanwhile (user and system), and the most memory it ever had resident.
//!
//! Seen in one run on two processors:
//!
//! | | ours | BIRD 2.0.12 | FRR 8.4.4 |
//! |---|---|---|---|
//! | 1,000,000 prefixes to one | 1.02 s, 168 MiB | 1.15 s, 126 MiB | 7.51 s, 796 MiB |
//! | 500,000 prefixes to ten | 1.80 s, 94 MiB | 2.92 s, 67 MiB | 4.29 s, 430 MiB |
//! | 1,000 prefixes to 1,000 clients | 0.13 s, 75 MiB | 1.06 s, 86 MiB | 7.92 s, 695 MiB |

mod subject;
mod table;
mod traffic;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::report::Report;
use crate::eventually::Stopwatch;
use crate::lab::Lab;
use crate::netns::Namespace;
use subject::Subject;
use table::Table;
use traffic::{Feeder, Sink, Sinks};

pub use subject::Kind;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Prefixes of the scenario with one sink, one at least.
    pub prefixes: usize,
    /// Prefixes of the scenario with many sinks; 0 leaves it out.
    pub fanout_prefixes: usize,
    /// Sinks of the scenario with many, 1 to 2000.
    pub fanout_peers: usize,
    /// Prefixes that a route reflector is fed; 0 leaves the scenario out.
    pub reflected_prefixes: usize,
    /// Its clients, 1 to 2000.
    pub clients: usize,
    /// Prefixes that share their path attributes.
    pub prefixes_per_path: usize,
    /// Counted runs of each subject in each scenario.
    pub rounds: usize,
    /// Who is measured.
    pub subjects: Vec<Kind>,
}

/// How long one run may take.
const RUN_WITHIN: Duration = Duration::from_secs(600);

/// Measures everything and returns the rows; `calidris` is our binary.
///
/// # Errors
/// When the namespaces cannot be made, a subject does not start, or a table does not come through.
pub fn run(options: &Options, calidris: &Path) -> anyhow::Result<Report> {
    let mut report = Report::new("bgp");
    let scenarios = [
        (options.prefixes, 1, Sinks::External),
        (options.fanout_prefixes, options.fanout_peers, Sinks::External),
        (options.reflected_prefixes, options.clients, Sinks::Clients),
    ];
    for (prefixes, sinks, are) in scenarios.into_iter().filter(|(prefixes, ..)| *prefixes > 0) {
        let to = match are {
            Sinks::External => "to",
            Sinks::Clients => "reflected-to",
        };
        let table = Table::new(prefixes, options.prefixes_per_path);
        let mut results: Vec<(Kind, String, Vec<Outcome>)> = options
            .subjects
            .iter()
            .map(|kind| Ok((*kind, kind.version(calidris)?, Vec::new())))
            .collect::<anyhow::Result<_>>()?;
        for round in 0..options.rounds {
            // In turn, and each time another one first: a drifting machine drifts for all.
            let count = results.len();
            for turn in 0..count {
                let (kind, _, outcomes) = &mut results[(turn + round) % count];
                let outcome = run_once(*kind, calidris, &table, (sinks, are))
                    .with_context(|| format!("{} with {prefixes} prefixes to {sinks}", kind.name()))?;
                eprintln!(
                    "{:>9}: {prefixes} prefixes {to} {sinks}: {:.3} s, {:.2} s CPU, {:.1} MiB",
                    kind.name(),
                    outcome.seconds,
                    outcome.cpu_seconds,
                    outcome.peak_mib
                );
                outcomes.push(outcome);
            }
        }
        for (kind, version, outcomes) in &results {
            let subject = (kind.name(), version.as_str());
            let mut add = |metric: &str, unit: &str, value: fn(&Outcome) -> f64| {
                let values: Vec<f64> = outcomes.iter().map(value).collect();
                report.add(
                    subject,
                    (&format!("{metric}-{prefixes}-{to}-{sinks}"), unit),
                    &values,
                );
            };
            add("time", "s", |outcome| outcome.seconds);
            add("cpu", "s", |outcome| outcome.cpu_seconds);
            add("peak-memory", "MiB", |outcome| outcome.peak_mib);
        }
    }
    Ok(report)
}

/// What one run showed.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    seconds: f64,
    cpu_seconds: f64,
    peak_mib: f64,
}

fn run_once(
    kind: Kind,
    calidris: &Path,
    table: &Table,
    (sinks, are): (usize, Sinks),
) -> anyhow::Result<Outcome> {
    ensure!(
        (1..=traffic::MAX_SINKS).contains(&sinks),
        "1 to {} sinks",
        traffic::MAX_SINKS
    );
    let lab = Lab::create(&format!("bench-bgp-{}", std::process::id()))?;
    let (inside, outside) = (lab.namespace("subject")?, lab.namespace("peers")?);
    connect(&inside, &outside, sinks)?;
    let mut subject = Subject::start(&lab, kind, calidris, &inside, (sinks, are))?;
    let mut feeder = outside.enter(Feeder::connect)??;
    let mut counting = Vec::new();
    for number in 0..sinks {
        counting.push(outside.enter(|| Sink::connect(number, are))??);
    }
    let before = subject.cpu_seconds()?;
    let watch = Stopwatch::start();
    let total = table.prefixes;
    std::thread::scope(|scope| {
        let feeding = scope.spawn(|| feeder.send(table));
        let sinks: Vec<_> = counting
            .iter_mut()
            .map(|sink| scope.spawn(move || sink.count_to(total, RUN_WITHIN)))
            .collect();
        for sink in sinks {
            sink.join().map_err(|_| anyhow::anyhow!("a sink panicked"))??;
        }
        feeding
            .join()
            .map_err(|_| anyhow::anyhow!("the feeder panicked"))?
    })
    .map_err(|error| error.context(lab.log_tails(10)))?;
    let seconds = watch.elapsed().as_secs_f64();
    let outcome = Outcome {
        seconds,
        cpu_seconds: subject.cpu_seconds()? - before,
        peak_mib: subject.peak_mib()?,
    };
    subject.kill()?;
    lab.take_down()?;
    Ok(outcome)
}

/// One cable, and an address for each peer on its outer end.
fn connect(inside: &Namespace, outside: &Namespace, sinks: usize) -> anyhow::Result<()> {
    inside.ip(&format!(
        "link add wire up type veth peer name wire netns {}",
        outside.name()
    ))?;
    outside.ip("link set wire up")?;
    inside.ip(&format!("addr add {}/16 dev wire", traffic::SUBJECT))?;
    outside.ip(&format!("addr add {}/16 dev wire", traffic::FEEDER))?;
    for number in 0..sinks {
        outside.ip(&format!("addr add {}/16 dev wire", traffic::sink_address(number)))?;
    }
    Ok(())
}
