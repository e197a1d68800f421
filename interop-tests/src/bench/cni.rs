//! CNI beside the reference plugins: pods added and deleted, some at a time.
//!
//! Every subject does the same in namespaces made beforehand: a runtime runs the plugin for ADD on all pods, then for
//! DEL on all pods, `parallel` at a time. Ours is the plugin with the agent, a real etcd and a BGP session to a BIRD
//! router; the others are `ptp` and `bridge` with `host-local`, which write files. A time is from the execution of the
//! plugin to its exit.
//!
//! Seen with 200 pods in one run on two processors; milliseconds, but for the rows a second:
//!
//! | | ours | `ptp` | `bridge` | `ptp` by ours |
//! |---|---|---|---|---|
//! | ADD, 1 at a time, p50 | 3.1 | 10.2 | 11.6 | 3.3 |
//! | DEL, 1 at a time, p50 | 4.3 | 24.0 | 24.2 | 5.6 |
//! | ADD, 16 at a time, p50 | 19.2 | 112 | 121 | 5.8 |
//! | ADD, 16 at a time, p99 | 26.0 | 199 | 171 | 7.6 |
//! | DEL, 16 at a time, p50 | 21.0 | 92.0 | 84.5 | 4.4 |
//! | ADD and DEL a second, 16 at a time | 384 | 74.8 | 77.6 | 5.1 more |
//! | ADD, 64 at a time, p50 | 57.3 | 304 | 512 | 5.3 |
//! | ADD, 64 at a time, p99 | 96.5 | 805 | 1,058 | 8.3 |
//! | ADD and DEL a second, 64 at a time | 445 | 83.5 | 67.5 | 5.3 more |
//! | processor time of the machine for both, 16 at a time | 4.5 | 25.8 | 25.1 | 5.7 |
//!
//! In the same run 500 pods of one node all answered another node 0.69 s after the first ADD began; the plugin's process alone
//! took 0.67 ms where `/bin/true` took 1.2 ms; the agent never had more than 34 MiB. The figures of one machine come and go with its
//! neighbours: in ten runs of two hours `ptp` took 8.8 to 11.7 ms alone and ours 2.5 to 3.1; 94 to 126 at 16, and ours 16.5 to 19.2.

mod alone;
mod burst;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::report::{Report, percentile};
use super::usage;
use crate::binaries::Binaries;
use crate::cluster::Cluster;
use crate::cni::{self, Attachment, Runtime};
use crate::eventually::Stopwatch;
use crate::lab::Lab;
use crate::netns::{self, Namespace};
use crate::pod::attachment;
use crate::progress::{Progress, Stream};
use crate::topology::{DEMO, Topology};

/// Where Debian puts the reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
/// The reference plugins measured, with what each needs beside its address management.
const REFERENCES: [&str; 2] = ["ptp", "bridge"];

/// Pods of the burst that are added at a time.
const BURST_PARALLEL: usize = 64;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Pods added and deleted in each run.
    pub pods: usize,
    /// How many at a time: one series each.
    pub parallel: Vec<usize>,
    /// Counted runs of each subject in each series.
    pub rounds: usize,
    /// Pods of the burst; 0: no burst.
    pub burst: usize,
    /// How often the plugin's process is measured alone; 0: not at all.
    pub alone: usize,
}

/// Who is measured.
struct Subject {
    name: &'static str,
    version: String,
    runtime: Runtime,
}

/// What one run showed; times in milliseconds, ascending.
struct Outcome {
    adds: Vec<f64>,
    dels: Vec<f64>,
    pairs_per_second: f64,
    /// Processor time of the whole machine for one ADD and DEL, in milliseconds: the runtime's, the plugin's, of whoever serves
    /// it, and the kernel's.
    cpu_per_pair: f64,
}

/// Measures everything and returns the rows.
///
/// # Errors
/// When the cluster does not come up, or a plugin refuses.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let mut topology = Topology::parse(DEMO)?;
    // The second node asks the pods of the burst.
    topology.scale(2)?;
    // As an operator's agent logs.
    "info".clone_into(&mut topology.log_level);
    let lab = Lab::create(&format!("bench-cni-{}", std::process::id()))?;
    let cluster = Cluster::start(lab, topology, Binaries::find()?, &Progress::start(Stream::Error))?;
    let result = measure(options, &cluster);
    cluster.lab.take_down()?;
    result
}

fn measure(options: &Options, cluster: &Cluster) -> anyhow::Result<Report> {
    let mut report = Report::new("cni");
    let node = cluster.node("node1")?;
    let mut subjects = vec![Subject {
        name: "calidris",
        version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime: node.runtime.clone(),
    }];
    for plugin in REFERENCES {
        subjects.push(reference(&cluster.lab, plugin)?);
    }
    let mut pods = Vec::new();
    for number in 0..options.pods.max(options.burst) {
        let name = format!("pod{number}");
        let namespace = cluster.lab.namespace(&name)?;
        pods.push((name, namespace));
    }
    let agent = node.agent_pid().context("the agent runs")?;
    let cpu_before = usage::cpu_seconds(agent)?;
    for &parallel in &options.parallel {
        let mut outcomes: Vec<Vec<Outcome>> = subjects.iter().map(|_| Vec::new()).collect();
        for round in 0..options.rounds {
            // In turn, and each time another one first: a drifting machine drifts for all.
            for turn in 0..subjects.len() {
                let at = (turn + round) % subjects.len();
                let (Some(subject), Some(outcomes)) = (subjects.get(at), outcomes.get_mut(at)) else {
                    continue;
                };
                let attachments = attachments(pods.iter().take(options.pods))?;
                let outcome = run_once(&subject.runtime, &attachments, parallel)
                    .with_context(|| format!("{} with {parallel} at a time", subject.name))?;
                eprintln!(
                    "{:>9}: {parallel} at a time: ADD p50 {:.2} ms, {:.0} ADD+DEL/s",
                    subject.name,
                    percentile(&outcome.adds, 50),
                    outcome.pairs_per_second
                );
                outcomes.push(outcome);
            }
        }
        for (subject, outcomes) in subjects.iter().zip(&outcomes) {
            add_rows(&mut report, subject, parallel, outcomes);
        }
    }
    let pairs = (options.pods * options.parallel.len() * options.rounds) as f64;
    let version = env!("CARGO_PKG_VERSION");
    let mut add = |metric: &str, unit: &str, values: &[f64]| {
        report.add(("calidris", version), (metric, unit), values);
    };
    let cpu = (usage::cpu_seconds(agent)? - cpu_before) / pairs * 1000.0;
    add("agent-cpu-per-add-and-del", "ms", &[cpu]);
    if options.burst > 0 {
        let (mut all, mut after_add) = (Vec::new(), Vec::new());
        let asker = &cluster.node("node2")?.namespace;
        for _ in 0..options.rounds {
            let attachments = attachments(pods.iter().take(options.burst))?;
            let burst = burst::run(&node.runtime, &attachments, BURST_PARALLEL, asker)?;
            in_parallel(&node.namespace, &attachments, BURST_PARALLEL, |pod| {
                node.runtime.del(pod, None)
            })?;
            eprintln!("    burst: all reachable after {:.2} s", burst.all_reachable);
            all.push(burst.all_reachable);
            after_add.push(percentile(&burst.after_add, 99));
        }
        add(&format!("burst-of-{}-all-reachable", options.burst), "s", &all);
        add("burst-reachable-after-add-p99", "ms", &after_add);
    }
    if let (Some((name, namespace)), 1..) = (pods.first(), options.alone) {
        let attachment = attachment(name, namespace)?;
        let folder = cluster.lab.folder("alone")?;
        let (plugin, nothing) = alone::run(&node.runtime, &attachment, &folder, options.alone)?;
        for (subject, times) in [(("calidris", version), plugin), (("true", "coreutils"), nothing)] {
            report.add(subject, ("process-alone-p50", "ms"), &[percentile(&times, 50)]);
            report.add(subject, ("process-alone-p99", "ms"), &[percentile(&times, 99)]);
        }
    }
    report.add(
        ("calidris", version),
        ("agent-peak-memory", "MiB"),
        &[usage::peak_mib(agent)?],
    );
    Ok(report)
}

/// Containers as a runtime makes them, each with an ID of its own, in these namespaces.
fn attachments<'a>(pods: impl Iterator<Item = &'a (String, Namespace)>) -> anyhow::Result<Vec<Attachment>> {
    pods.map(|(name, namespace)| attachment(name, namespace))
        .collect()
}

fn add_rows(report: &mut Report, subject: &Subject, parallel: usize, outcomes: &[Outcome]) {
    let mut add = |metric: &str, unit: &str, value: &dyn Fn(&Outcome) -> f64| {
        let values: Vec<f64> = outcomes.iter().map(value).collect();
        let metric = format!("{metric}-{parallel}-at-a-time");
        report.add((subject.name, &subject.version), (&metric, unit), &values);
    };
    add("add-p50", "ms", &|outcome| percentile(&outcome.adds, 50));
    add("add-p99", "ms", &|outcome| percentile(&outcome.adds, 99));
    add("del-p50", "ms", &|outcome| percentile(&outcome.dels, 50));
    add("del-p99", "ms", &|outcome| percentile(&outcome.dels, 99));
    add("add-and-del", "1/s", &|outcome| outcome.pairs_per_second);
    add("machine-cpu-per-add-and-del", "ms", &|outcome| {
        outcome.cpu_per_pair
    });
}

fn run_once(runtime: &Runtime, attachments: &[Attachment], parallel: usize) -> anyhow::Result<Outcome> {
    let cpu_before = usage::machine_cpu_seconds()?;
    let watch = Stopwatch::start();
    let added = in_parallel(&runtime.namespace, attachments, parallel, |attachment| {
        runtime.add(attachment)
    })?;
    let dels = in_parallel(&runtime.namespace, attachments, parallel, |attachment| {
        let watch = Stopwatch::start();
        runtime.del(attachment, None)?;
        Ok(watch.elapsed())
    })?;
    let seconds = watch.elapsed().as_secs_f64();
    let cpu = usage::machine_cpu_seconds()? - cpu_before;
    Ok(Outcome {
        adds: sorted(added.iter().map(|added| added.took)),
        dels: sorted(dels.into_iter()),
        pairs_per_second: attachments.len() as f64 / seconds,
        cpu_per_pair: cpu * 1000.0 / attachments.len() as f64,
    })
}

/// Does `work` for all attachments, `parallel` at a time, by threads in the node's namespace: starting a plugin there costs what
/// it costs a runtime.
fn in_parallel<T: Send>(
    node: &Namespace,
    attachments: &[Attachment],
    parallel: usize,
    work: impl Fn(&Attachment) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let worker = || -> anyhow::Result<Vec<T>> {
            let mut done = Vec::new();
            while let Some(attachment) = attachments.get(next.fetch_add(1, Ordering::Relaxed)) {
                done.push(work(attachment)?);
            }
            Ok(done)
        };
        let workers: Vec<_> = (0..parallel.max(1))
            .map(|_| scope.spawn(move || node.enter(worker)))
            .collect();
        let mut all = Vec::with_capacity(attachments.len());
        for worker in workers {
            let done: anyhow::Result<anyhow::Result<Vec<T>>> =
                worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?;
            all.extend(done??);
        }
        Ok(all)
    })
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1000.0).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// A reference plugin with `host-local`, on a node of its own.
fn reference(lab: &Lab, plugin: &'static str) -> anyhow::Result<Subject> {
    let namespace = lab.namespace(plugin)?;
    let folder = lab.folder(plugin)?;
    let configurations = folder.join("net.d");
    cni::write_configuration(&configurations, plugin, &reference_configuration(plugin, &folder))?;
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Version}", "containernetworking-plugins"]);
    Ok(Subject {
        name: plugin,
        version: netns::run(&mut query).unwrap_or_else(|_| "unknown".to_owned()),
        runtime: Runtime {
            namespace,
            configurations,
            plugins: vec![REFERENCE_PLUGINS.into()],
            capability_arguments: serde_json::Map::new(),
        },
    })
}

fn reference_configuration(plugin: &str, folder: &Path) -> Value {
    let mut configuration = json!({
        "type": plugin,
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": "10.250.0.0/16" }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
            "dataDir": folder.join("addresses"),
        },
    });
    if plugin == "bridge" {
        configuration["isGateway"] = Value::Bool(true);
    }
    configuration
}
