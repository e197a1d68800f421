//! Addresses under an etcd that is maltreated: three members in namespaces of their own, clients on many nodes, and
//! somebody who kills, freezes, cuts off, compacts, fills up and moves the leader.
//!
//! What every client saw is written down. An address is owned from the moment when its assignment is answered until the
//! moment when its release is asked for: two such intervals of one address must not overlap (`history.rs`). An assignment
//! without a known outcome owns nothing and is released until that is settled. When everything is mended the datastore
//! has exactly what the clients hold, and `calidris ipam check` finds nothing; when they have given it back, nothing is left.
//!
//! A seed decides who asks for what and what is done to etcd when. The kernel and etcd have a say in it, too: a seed
//! brings about the same plan, not the same schedule.

mod history;
mod members;
mod nemesis;
mod verdict;
mod workload;

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::binaries::Binaries;
use crate::eventually::{Stopwatch, pace};
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::progress::Progress;
use history::History;
use members::Members;
use nemesis::Nemesis;
pub use nemesis::Times;
use workload::{Client, Counts};

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decides the plan.
    pub seed: u64,
    /// How long etcd is maltreated.
    pub duration: Duration,
    /// Nodes with a client each.
    pub nodes: usize,
    /// Requests that a client has under way at a time.
    pub workers: usize,
    /// How long a member is away at most.
    pub longest_fault: Duration,
}

/// Seeds that once brought a fault to light, ours or the lab's: they are run again. One a line, with what it was.
const KEPT_SEEDS: &str = include_str!("seeds.txt");

/// The kept seeds.
pub fn kept_seeds() -> impl Iterator<Item = u64> {
    let lines = KEPT_SEEDS.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_whitespace().next()?.parse().ok())
}

/// What happened.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The plan.
    pub seed: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What the clients did.
    pub counts: Counts,
    /// What was done to etcd, and how often.
    pub faults: std::collections::BTreeMap<String, Times>,
    /// How often another member led than before.
    pub leader_changes: u32,
    /// Intervals of ownership that were compared.
    pub intervals: usize,
    /// Distinct addresses in them.
    pub addresses: usize,
}

/// What the clients share.
pub(crate) struct Shared {
    pub(crate) history: Mutex<History>,
    pub(crate) counts: Mutex<Counts>,
    /// Set when the clients are to finish what they have begun.
    pub(crate) ending: AtomicBool,
    /// How far the wall clock of the nodes has jumped, in nanoseconds.
    pub(crate) clock_offset: AtomicI64,
    pub(crate) watch: Stopwatch,
}

impl Shared {
    /// Assignments answered so far.
    pub(crate) fn assigned(&self) -> u64 {
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .assigned
    }
}

/// Runs it and says what happened.
///
/// # Errors
/// What was found wrong, with the history of the addresses concerned; or what kept it from running.
pub fn run(options: &Options, binaries: &Binaries, progress: &Progress) -> anyhow::Result<Report> {
    let lab = Lab::create(&format!("chaos-{}", std::process::id()))?;
    let result = run_in(&lab, options, binaries, progress);
    if result.is_err() {
        eprintln!("{}", lab.log_tails(5));
    }
    lab.take_down()?;
    result.with_context(|| format!("seed {}", options.seed))
}

fn run_in(lab: &Lab, options: &Options, binaries: &Binaries, progress: &Progress) -> anyhow::Result<Report> {
    progress.step(format!(
        "three members and {} nodes, seed {}",
        options.nodes, options.seed
    ));
    let mut members = Members::start(lab)?;
    let nodes = members.plug_nodes(lab, options.nodes)?;
    workload::prepare(&members, options.nodes)?;
    let shared = Arc::new(Shared {
        history: Mutex::default(),
        counts: Mutex::default(),
        ending: AtomicBool::new(false),
        clock_offset: AtomicI64::new(0),
        watch: Stopwatch::start(),
    });
    let lone = first(&nodes)?;
    let mut nemesis = Nemesis::new(options.seed);
    let held = std::thread::scope(|scope| {
        let clients: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(number, namespace)| {
                let client = Client::new(number, options, members.endpoints());
                let shared = Arc::clone(&shared);
                scope.spawn(move || namespace.enter(|| client.run(&shared)))
            })
            .collect();
        let times = (options.duration, options.longest_fault);
        let harm = nemesis.harm((lab, &mut members), lone, &shared, times);
        let mended = members.mend(lab);
        shared.ending.store(true, Ordering::Relaxed);
        let mut held = Vec::new();
        for client in clients {
            let of_client = client
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))???;
            held.extend(of_client);
        }
        harm.context("harm etcd")?;
        mended.context("mend etcd")?;
        anyhow::Ok(held)
    })?;
    verdict::holds_what_the_clients_hold(&members, lone, &held)?;
    verdict::check_finds_nothing(binaries, lone, &members, "with addresses held")?;
    workload::give_back(&members, lone, &held)?;
    verdict::nothing_is_left(&members, lone)?;
    verdict::check_finds_nothing(binaries, lone, &members, "with all given back")?;
    let history = shared.history.lock().unwrap_or_else(PoisonError::into_inner);
    history.judge()?;
    let counts = shared
        .counts
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    ensure!(counts.assigned > 0, "nothing was assigned: nothing is proved");
    nemesis.has_done_everything()?;
    Ok(Report {
        seed: options.seed,
        seconds: shared.watch.elapsed().as_secs_f64(),
        counts,
        faults: nemesis.done().clone(),
        leader_changes: nemesis.leader_changes(),
        intervals: history.intervals(),
        addresses: history.addresses(),
    })
}

fn first(nodes: &[Namespace]) -> anyhow::Result<&Namespace> {
    nodes.first().context("no node")
}

/// A pause between two things that are done to etcd.
pub(crate) fn pause(time: Duration) {
    pace(time);
}
