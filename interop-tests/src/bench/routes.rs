//! Routes into the kernel and out of it: the agent's dataplane beside raw batched netlink, `ip -batch` and BIRD's kernel
//! protocol, in a namespace of their own each time.
//!
//! Every subject makes and removes the same routes, /32s through one gateway. `raw-netlink` sends datagrams made beforehand
//! and stands for what the kernel can do; `calidris-writer` is the agent's batching writer alone, from a list of changes to the
//! kernel's answers; `calidris` is a whole turn with read-back, difference and bookkeeping. What only the agent has is
//! measured without a peer: a resync with nothing to do, an endpoint from known to reachable, nftables.
//!
//! Seen with 200,000 routes in three rounds on two processors, 30 seconds for the whole run. Medians: to what `raw-netlink` does a second
//! in the same round, and seconds of processor time (of `raw-netlink` 0.41 and 0.34); the most memory, in MiB.
//!
//! | subject | in | out | in, processor | out, processor | memory |
//! |---|---|---|---|---|---|
//! | `calidris-writer` | 1.07 | 1.02 | 0.39 | 0.31 | 137 |
//! | `calidris` | 0.82 | 0.84 | 0.49 | 0.39 | 95 |
//! | `ip-batch` | 0.29 | 0.28 | 1.43 | 1.38 | – |
//! | `bird2` | 0.49 | 0.85 | 0.84 | 0.46 | 55 |
//!
//! A resync of 100,000 routes 103 ms; an endpoint beside 1,000 0.42 ms; nftables beside 2,000 endpoints: add 2.4 ms. The kernel has eight to
//! nine tenths of a whole turn's time; the ratio of its median goes from run to run between 0.72 and 0.89, most when memory is dear.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::report::Report;
use super::usage::{cpu_seconds, ended_children_cpu_seconds, peak_mib};
use crate::eventually::{Stopwatch, closely, eventually};
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::process::Process;

/// How long one step of one subject may take.
const STEP_WITHIN: Duration = Duration::from_secs(120);
/// Endpoints added one by one by the measuring program.
const MEASURED_ENDPOINTS: u32 = 20;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Routes in and out.
    pub routes: u32,
    /// Routes of the resync that finds nothing to do.
    pub resync_routes: u32,
    /// Endpoints beside the one that is added.
    pub endpoints: u32,
    /// Endpoints in the nftables tables.
    pub nftables_endpoints: u32,
    /// Counted runs of each.
    pub rounds: usize,
}

/// One figure: what, in which unit, how much.
type Figure = (String, &'static str, f64);

/// What one step of a subject took.
struct Step {
    metric: String,
    seconds: f64,
    cpu_seconds: f64,
    /// The most memory that the process ever had until then; not known of a process that has ended.
    peak_mib: Option<f64>,
}

const RAW: &str = "raw-netlink";
const OURS: &str = "calidris";
const SUBJECTS: [&str; 5] = [RAW, "calidris-writer", OURS, "ip-batch", "bird2"];

/// Measures everything and returns the rows. `probe` is the agent's measuring program.
///
/// # Errors
/// When a subject does not do what it should in time.
pub fn run(options: &Options, probe: &Path) -> anyhow::Result<Report> {
    let mut rows: Vec<(&str, Vec<Figure>)> = SUBJECTS.iter().map(|name| (*name, Vec::new())).collect();
    for round in 0..options.rounds {
        let mut raw = Vec::new();
        // Raw netlink first, since the others are compared with it. The others in turn, and each time another one first: a
        // drifting machine drifts for all.
        let others = 1..rows.len();
        let in_turn = others.clone().map(|turn| 1 + (turn - 1 + round) % others.len());
        for at in std::iter::once(0).chain(in_turn) {
            let (name, figures) = &mut rows[at];
            let steps = measure(name, options.routes, probe)?;
            if *name == RAW {
                raw = steps.iter().map(|step| step.seconds).collect();
            }
            for (step, raw) in steps.iter().zip(&raw) {
                let Step { metric, seconds, .. } = step;
                let part = raw / seconds;
                eprintln!("{name:>16}: {metric} {seconds:.3} s, {part:.2} of {RAW}");
                figures.extend(step.figures(options.routes));
                figures.push((format!("routes-{metric}-to-raw"), "ratio", part));
            }
        }
        own_figures("resync", options.resync_routes, probe, &mut rows)?;
    }
    own_figures("endpoint", options.endpoints, probe, &mut rows)?;
    own_figures("nftables", options.nftables_endpoints, probe, &mut rows)?;
    let mut report = Report::new("routes");
    for (name, figures) in rows {
        let version = version(name)?;
        let mut metrics: Vec<(&str, &str)> = Vec::new();
        for (metric, unit, _) in &figures {
            if !metrics.contains(&(metric, unit)) {
                metrics.push((metric, unit));
            }
        }
        for (metric, unit) in metrics {
            let of_metric = figures.iter().filter(|(other, _, _)| other == metric);
            let values: Vec<f64> = of_metric.map(|(_, _, value)| *value).collect();
            report.add((name, &version), (metric, unit), &values);
        }
    }
    Ok(report)
}

impl Step {
    fn figures(&self, routes: u32) -> Vec<Figure> {
        let name = format!("routes-{}", self.metric);
        let mut figures = vec![
            (name.clone(), "1/s", f64::from(routes) / self.seconds),
            (format!("{name}-cpu"), "s", self.cpu_seconds),
        ];
        figures.extend(self.peak_mib.map(|peak| (format!("{name}-peak"), "MiB", peak)));
        figures
    }
}

/// Routes in and out again, by one subject.
fn measure(subject: &str, routes: u32, probe: &Path) -> anyhow::Result<Vec<Step>> {
    let ground = Ground::new()?;
    let steps = match subject {
        RAW => ground.probe(probe, "raw", routes),
        "calidris-writer" => ground.probe(probe, "writer", routes),
        OURS => ground.probe(probe, "apply", routes),
        "ip-batch" => ground.ip_batch(routes),
        _ => ground.bird(routes),
    }
    .with_context(|| format!("{subject}, {routes} routes"))?;
    ground.lab.take_down()?;
    Ok(steps)
}

/// What has no peer.
fn own_figures(what: &str, count: u32, probe: &Path, rows: &mut [(&str, Vec<Figure>)]) -> anyhow::Result<()> {
    let ground = Ground::new()?;
    if what == "endpoint" {
        ground.make_host_ends(count + MEASURED_ENDPOINTS)?;
    }
    let steps = ground.probe(probe, what, count)?;
    ground.lab.take_down()?;
    let named = steps.into_iter().map(|step| {
        (
            format!("{what}-{count}-{}", step.metric),
            "ms",
            step.seconds * 1e3,
        )
    });
    if let Some((_, figures)) = rows.iter_mut().find(|(name, _)| *name == OURS) {
        figures.extend(named);
    }
    Ok(())
}

fn version(subject: &str) -> anyhow::Result<String> {
    let (program, argument) = match subject {
        "ip-batch" => ("ip", "-V"),
        "bird2" => ("bird", "--version"),
        _ => return Ok(env!("CARGO_PKG_VERSION").to_owned()),
    };
    let output = Command::new(program).arg(argument).output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let version = text.split_whitespace().find(|word| word.contains('.'));
    Ok(version.unwrap_or("?").trim_end_matches(',').to_owned())
}

/// A namespace with an uplink.
struct Ground {
    lab: Lab,
    namespace: Namespace,
}

impl Ground {
    fn new() -> anyhow::Result<Self> {
        let lab = Lab::create(&format!("bench-routes-{}", std::process::id()))?;
        let namespace = lab.namespace("subject")?;
        for words in [
            "link add up0 type veth peer name up1",
            "link set up1 up",
            "link set up0 up",
            "addr add 192.0.2.1/24 dev up0",
        ] {
            namespace.ip(words)?;
        }
        Ok(Self { lab, namespace })
    }

    /// What the measuring program says.
    fn probe(&self, probe: &Path, what: &str, count: u32) -> anyhow::Result<Vec<Step>> {
        let text = self
            .namespace
            .run(Command::new(probe).args([what, &count.to_string()]))?;
        text.lines()
            .map(|line| {
                let value: Value = serde_json::from_str(line).with_context(|| format!("{line:?}"))?;
                let number = |name: &str| {
                    value[name]
                        .as_f64()
                        .with_context(|| format!("no {name}: {line:?}"))
                };
                Ok(Step {
                    metric: value["metric"].as_str().context("no metric")?.to_owned(),
                    seconds: number("seconds")?,
                    cpu_seconds: number("cpu_seconds")?,
                    peak_mib: Some(number("peak_mib")?),
                })
            })
            .collect()
    }

    fn make_host_ends(&self, count: u32) -> anyhow::Result<()> {
        let links = (0..count).map(|number| format!("link add cali{number} type veth peer name pod{number}"));
        self.batch(&links.collect::<Vec<_>>())
    }

    fn batch(&self, lines: &[String]) -> anyhow::Result<()> {
        let file = self.lab.folder("batch")?.join("lines");
        std::fs::write(&file, lines.join("\n"))?;
        self.namespace.run(Command::new("ip").arg("-batch").arg(&file))?;
        Ok(())
    }

    fn ip_batch(&self, routes: u32) -> anyhow::Result<Vec<Step>> {
        let mut measured = Vec::new();
        for (metric, verb) in [("in", "add"), ("out", "del")] {
            let line =
                |address| format!("route {verb} {address}/32 via 192.0.2.2 dev up0 proto 203 metric 1024");
            let lines: Vec<String> = addresses(routes).map(line).collect();
            let file = self.lab.folder("batch")?.join("lines");
            std::fs::write(&file, lines.join("\n"))?;
            let cpu_seconds = ended_children_cpu_seconds()?;
            let watch = Stopwatch::start();
            self.namespace.run(Command::new("ip").arg("-batch").arg(&file))?;
            measured.push(Step {
                metric: metric.to_owned(),
                seconds: watch.elapsed().as_secs_f64(),
                cpu_seconds: ended_children_cpu_seconds()? - cpu_seconds,
                peak_mib: None,
            });
        }
        Ok(measured)
    }

    /// BIRD has read its configuration before; then its kernel protocol is switched on and off.
    fn bird(&self, routes: u32) -> anyhow::Result<Vec<Step>> {
        let folder = self.lab.folder("bird")?;
        let (config, socket) = (folder.join("bird.conf"), folder.join("bird.ctl"));
        let mut text = String::from(
            "router id 192.0.2.1;\nprotocol device {}\nprotocol kernel kernel1 { disabled; ipv4 { import none; export all; }; }\nprotocol static static1 { ipv4;\n",
        );
        for address in addresses(routes) {
            let _ = writeln!(text, "route {address}/32 via 192.0.2.2;");
        }
        text.push_str("}\n");
        std::fs::write(&config, text)?;
        let mut command = Command::new("bird");
        command.arg("-f").arg("-c").arg(&config).arg("-s").arg(&socket);
        let bird = Process::start("bird", &self.namespace, &mut command, &folder.join("log"))?;
        let birdc = |words: &str| -> anyhow::Result<String> {
            let mut command = Command::new("birdc");
            command.arg("-s").arg(&socket).args(words.split(' '));
            self.namespace.run(&mut command)
        };
        let wanted = format!("{routes} of {routes} routes");
        eventually("BIRD knows its routes", STEP_WITHIN, || {
            let answer = birdc("show route count")?;
            ensure!(answer.contains(&wanted), "{answer}");
            Ok(())
        })?;
        let prefixes = self.namespace.enter(count_prefixes)??;
        let mut measured = Vec::new();
        for (metric, words, more) in [("in", "enable kernel1", routes), ("out", "disable kernel1", 0)] {
            let pid = bird.id().pid;
            let cpu_before = cpu_seconds(pid)?;
            let watch = Stopwatch::start();
            birdc(words)?;
            let target = prefixes + u64::from(more);
            let took = self.namespace.enter(|| {
                closely("the kernel has followed", STEP_WITHIN, || {
                    let there = count_prefixes()?;
                    ensure!(there == target, "{there} prefixes, expected {target}");
                    Ok(watch.elapsed())
                })
            })??;
            measured.push(Step {
                metric: metric.to_owned(),
                seconds: took.as_secs_f64(),
                cpu_seconds: cpu_seconds(pid)? - cpu_before,
                peak_mib: Some(peak_mib(pid)?),
            });
        }
        bird.terminate()?;
        Ok(measured)
    }
}

fn addresses(count: u32) -> impl Iterator<Item = std::net::Ipv4Addr> {
    (0..count).map(|number| std::net::Ipv4Addr::from(0x0a00_0000 + number))
}

/// Prefixes in the main table of the thread's namespace, by `/proc/net/fib_triestat`, which costs nothing to read.
fn count_prefixes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/fib_triestat")?;
    let main = text.split("Main:").nth(1).unwrap_or(&text);
    for line in main.lines() {
        if let Some(count) = line.trim().strip_prefix("Prefixes:") {
            return Ok(count.trim().parse()?);
        }
    }
    bail!("no number of prefixes in {text:?}")
}
