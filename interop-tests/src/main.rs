//! `calidris-lab`: runs a cluster in network namespaces, proves that it works, and cleans up.
//!
//! Exit status: 0 when the proof holds (or there was nothing to prove), 1 when something failed, 2 for wrong usage.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use calidris_interop::bench::command as bench;
use calidris_interop::binaries::Binaries;
use calidris_interop::cluster::{Cluster, LOG_LINES};
use calidris_interop::conformance::Another;
use calidris_interop::interop::command as interop;
use calidris_interop::lab::{self, Lab};
use calidris_interop::overlay::{self, Tour};
use calidris_interop::programs::Programs;
use calidris_interop::progress::{Progress, Stream};
use calidris_interop::proof::{self, Proof};
use calidris_interop::require;
use calidris_interop::topology::{DEMO, Topology};
use calidris_interop::{calico_turns, conformance, http, ipam_chaos, kubernetes, signals, vm};

/// Clusters in network namespaces: real agents, real etcd, real routers, on one machine.
#[derive(Parser)]
#[command(name = "calidris-lab", bin_name = "calidris lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a cluster up, prove that it works, take it down
    #[command(after_help = "\
Examples:
  calidris lab run
  calidris lab run --nodes 5 --pods 4
  calidris lab run --keep --name mine
  calidris lab run --topology my.toml -o json >report.json")]
    Run(RunArgs),
    /// Remove labs that were kept or left by a crash, and only what they made
    #[command(after_help = "\
Examples:
  calidris lab clean              all labs that nobody runs any more
  calidris lab clean --name mine")]
    Clean(CleanArgs),
    /// Show the labs of this machine
    List,
    /// Measure beside other programs, in turn on this machine
    #[command(after_help = "\
Examples:
  calidris lab bench cni --pods 50 --parallel 16
  calidris lab bench routes
  calidris lab bench bgp
  calidris lab bench bgp --prefixes 100000 --fanout-prefixes 0 --rounds 1
  calidris lab bench all")]
    Bench(bench::BenchArgs),
    /// Walk our CNI plugin and the reference plugins through the specification, clause by clause
    #[command(after_help = "\
Examples, at the top of the repository:
  calidris lab conformance
  calidris lab conformance --also 'ptp 1.9.1=/tmp/plugins/ptp' --write interop-tests/cni-conformance/RESULTS.md")]
    Conformance(ConformanceArgs),
    /// Run our speaker against BIRD, FRR, GoBGP, OpenBGPD and ExaBGP, feature by feature (`make interop`)
    #[command(after_help = "\
Examples:
  calidris lab interop
  calidris lab interop --peer bird,frr --feature md5,roles
  calidris lab interop --results interop-tests/RESULTS.md")]
    Interop(interop::InteropArgs),
    /// Give and take addresses while etcd is maltreated, and prove that none ever had two owners (`make ipam-chaos`)
    #[command(hide = true)]
    IpamChaos(IpamChaosArgs),
    /// Bring up a real Kubernetes with Calidris as its network, and prove that it works (`make test-kubernetes`)
    #[command(hide = true)]
    Kubernetes(KubernetesArgs),
    /// Run a real Calico turn about with ours on one etcd, and prove that they agree (`make test-calico`)
    #[command(hide = true)]
    Calico(CalicoArgs),
    /// Prove the overlays: three nodes in two subnets, taken through the modes of their pools
    #[command(hide = true)]
    Overlay {
        #[command(flatten)]
        tour: Tour,
        /// Milliseconds between two datagrams of the floods
        #[arg(long, default_value_t = 10)]
        pace_millis: u64,
        /// Not here, but in a virtual machine with a kernel that has IPIP
        #[arg(long)]
        virtual_machine: bool,
    },
    /// Answer HTTP on port 80 and UDP echo on port 7: what runs in each pod
    #[command(hide = true)]
    Serve {
        /// The name to answer with
        #[arg(long)]
        name: String,
    },
}

#[derive(Args)]
struct RunArgs {
    /// What to build; the demo's topology by default
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// The lab's name: its namespaces are `cal-NAME-…`, its files are in /run/calidris-lab/NAME
    #[arg(long, default_value = "demo")]
    name: String,
    /// Use the first N nodes of the topology, or add copies of them
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Pods on each node
    #[arg(long, value_name = "N")]
    pods: Option<usize>,
    /// Leave the lab up and tell how to look inside
    #[arg(long)]
    keep: bool,
    /// How to report
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Args)]
struct IpamChaosArgs {
    /// The first seed; each further round has the next. Left out: the kept seeds first, then from 100 on
    #[arg(long)]
    seed: Option<u64>,
    /// How many rounds
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: u64,
    /// How long etcd is maltreated in a round, in seconds
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u64,
    /// Nodes with a client each
    #[arg(long, value_name = "N", default_value_t = 10)]
    nodes: usize,
}

#[derive(Args)]
struct CleanArgs {
    /// Only this lab
    #[arg(long)]
    name: Option<String>,
}

#[derive(Args)]
struct ConformanceArgs {
    /// Another build of a reference plugin
    #[arg(long, value_name = "LABEL=PATH")]
    also: Vec<Another>,
    /// Put the table in the place of the one in this file, instead of printing it
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

#[derive(Args)]
struct KubernetesArgs {
    /// The folder with kubelet, kube-apiserver and so on
    #[arg(long, value_name = "FOLDER")]
    programs: PathBuf,
    /// The lab's name
    #[arg(long, default_value = "kubernetes")]
    name: String,
    /// Leave the lab up and tell how to look inside
    #[arg(long)]
    keep: bool,
}

#[derive(Args)]
struct CalicoArgs {
    /// The folder with calicoctl, calico and calico-ipam
    #[arg(long, value_name = "FOLDER")]
    programs: PathBuf,
    /// Decides who adds and deletes what where
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The lab's name
    #[arg(long, default_value = "calico")]
    name: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON document on standard output, the progress on standard error
    Json,
}

/// The group of checks that concern the lab itself.
const THE_LAB: &str = "the lab";

/// The report for programs.
#[derive(Serialize)]
struct Report<'a> {
    lab: &'a str,
    passed: usize,
    total: usize,
    elapsed_ms: u128,
    #[serde(flatten)]
    proof: &'a Proof,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Clean(args) => clean(args.name),
        Command::List => list(),
        Command::Bench(args) => bench::run(&args),
        Command::Conformance(args) => judge(&args),
        Command::Interop(args) => interop::run(&args),
        Command::IpamChaos(args) => maltreat_etcd(&args),
        Command::Kubernetes(args) => prove_kubernetes(&args),
        Command::Calico(args) => prove_calico(&args),
        Command::Overlay {
            tour,
            pace_millis,
            virtual_machine: false,
        } => overlay::prove(
            &tour,
            Duration::from_millis(pace_millis),
            &Progress::start(Stream::Output),
        )
        .map(|()| ExitCode::SUCCESS),
        Command::Overlay { tour, .. } => vm::prove(&tour).map(|said| {
            println!("{said}");
            ExitCode::SUCCESS
        }),
        Command::Serve { name } => http::serve(&name).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("calidris-lab: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let mut topology = match &args.topology {
        Some(path) => Topology::read(path)?,
        None => Topology::parse(DEMO).context("the demo's topology")?,
    };
    if let Some(nodes) = args.nodes {
        topology.scale(nodes)?;
    }
    topology.pods_per_node = args.pods.unwrap_or(topology.pods_per_node);
    if let Some(missing) = require::LAB.iter().find_map(|need| need.missing()) {
        bail!("a lab needs {missing} (`make setup` installs programs that are missing)");
    }
    let binaries = Binaries::find()?;
    signals::catch();

    let stream = if args.output == Output::Json {
        Stream::Error
    } else {
        Stream::Output
    };
    let progress = Progress::start(stream);
    let lab = Lab::create(&args.name)?;
    if args.keep {
        lab.keep();
    }
    progress.step(format_args!(
        "lab {} in {}",
        lab.name(),
        lab.directory().display()
    ));
    let mut proof = Proof::default();
    let completed = Cluster::start(lab, topology, binaries, &progress)
        .and_then(|cluster| prove(cluster, args, &progress, &mut proof));
    proof.check_completed(&progress, THE_LAB, completed);
    if args.output == Output::Json {
        let (passed, total) = (proof.passed(), proof.checks.len());
        let elapsed_ms = progress.elapsed().as_millis();
        let report = Report {
            lab: &args.name,
            passed,
            total,
            elapsed_ms,
            proof: &proof,
        };
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    progress.line(proof.verdict());
    Ok(if proof.holds() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Proves what there is to prove, and takes the lab down or tells how to look inside.
fn prove(mut cluster: Cluster, args: &RunArgs, progress: &Progress, proof: &mut Proof) -> anyhow::Result<()> {
    let completed = proof::prove_running(&mut cluster, progress, proof)
        .and_then(|()| proof::overlay_beside_bgp(&mut cluster, progress, proof))
        .and_then(|()| proof::delete_one(&mut cluster, progress, proof))
        .and_then(|()| {
            if args.keep {
                Ok(())
            } else {
                proof::delete_the_rest(&mut cluster, progress, proof)
            }
        });
    if completed.is_err() || !proof.holds() {
        progress.line(cluster.lab.log_tails(LOG_LINES));
    }
    if args.keep && !signals::interrupted() {
        show_how_to_look_inside(&cluster, progress);
    } else {
        let fact = "nothing of it is left".to_owned();
        proof.check(progress, (THE_LAB, fact), cluster.lab.take_down());
        progress.step("the lab is taken down");
    }
    completed
}

fn show_how_to_look_inside(cluster: &Cluster, progress: &Progress) {
    progress.line("\nThe lab is left up. Look inside:");
    for command in cluster.look_inside() {
        progress.line(format_args!("  {command}"));
    }
    progress.line(format_args!(
        "Logs: {}/*/*.log",
        cluster.lab.directory().display()
    ));
    progress.line(format_args!(
        "Remove it: calidris lab clean --name {}\n",
        cluster.lab.name()
    ));
}

fn judge(args: &ConformanceArgs) -> anyhow::Result<ExitCode> {
    let needs = require::LAB.iter().chain(&[require::Need::ReferencePlugins]);
    if let Some(missing) = needs.into_iter().find_map(|need| need.missing()) {
        bail!("the suite needs {missing} (`make setup` as root installs what is missing)");
    }
    signals::catch();
    let table = conformance::table(&args.also)?;
    match &args.write {
        Some(file) => conformance::write(file, &table)?,
        None => print!("{table}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a line of JSON for each round. Ends with the first that finds something; its seed is in the message.
fn maltreat_etcd(args: &IpamChaosArgs) -> anyhow::Result<ExitCode> {
    signals::catch();
    let binaries = Binaries::find()?;
    let progress = Progress::start(Stream::Error);
    let rounds = usize::try_from(args.rounds)?;
    let seeds: Vec<u64> = match args.seed {
        Some(first) => (first..).take(rounds).collect(),
        None => ipam_chaos::kept_seeds().chain(100..).take(rounds).collect(),
    };
    for seed in seeds {
        let options = ipam_chaos::Options {
            seed,
            duration: Duration::from_secs(args.seconds),
            nodes: args.nodes,
            workers: 3,
            longest_fault: Duration::from_millis(2600),
        };
        let report = ipam_chaos::run(&options, &binaries, &progress)?;
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn prove_kubernetes(args: &KubernetesArgs) -> anyhow::Result<ExitCode> {
    if let Some(missing) = require::KUBERNETES.iter().find_map(|need| need.missing()) {
        bail!("this test needs {missing} (`make setup` as root installs what is missing)");
    }
    let programs = Programs::of_kubernetes(&args.programs)?;
    let binaries = Binaries::find()?;
    signals::catch();
    let progress = Progress::start(Stream::Output);
    let lab = Lab::create(&args.name)?;
    let mut proof = kubernetes::prove(&lab, (&binaries, &programs), &progress);
    if args.keep && !signals::interrupted() {
        lab.keep();
        progress.line(format_args!(
            "The lab is left up. Remove it: calidris lab clean --name {}",
            lab.name()
        ));
    } else {
        let fact = "nothing of it is left".to_owned();
        proof.check(&progress, (THE_LAB, fact), lab.take_down());
        progress.step("the lab is taken down");
    }
    progress.line(proof.verdict());
    Ok(if proof.holds() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn prove_calico(args: &CalicoArgs) -> anyhow::Result<ExitCode> {
    if let Some(missing) = require::CALICO.iter().find_map(|need| need.missing()) {
        bail!("this test needs {missing} (`make setup` as root installs what is missing)");
    }
    let programs = Programs::of_calico(&args.programs)?;
    let binaries = Binaries::find()?;
    signals::catch();
    let progress = Progress::start(Stream::Output);
    let lab = Lab::create(&args.name)?;
    let mut proof = calico_turns::prove(&lab, (&binaries, &programs), args.seed, &progress);
    let fact = "nothing of it is left".to_owned();
    proof.check(&progress, (THE_LAB, fact), lab.take_down());
    progress.line(proof.verdict());
    Ok(if proof.holds() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn clean(name: Option<String>) -> anyhow::Result<ExitCode> {
    if let Some(name) = name {
        lab::clean(&name)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut status = ExitCode::SUCCESS;
    for name in lab::list()? {
        if lab::is_running(&name)? {
            println!("{name}: in use, left alone");
            continue;
        }
        match lab::clean(&name) {
            Ok(()) => println!("{name}: removed"),
            Err(error) => {
                println!("{name}: {error:#}");
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

fn list() -> anyhow::Result<ExitCode> {
    for name in lab::list()? {
        println!("{name}{}", if lab::is_running(&name)? { " (in use)" } else { "" });
    }
    Ok(ExitCode::SUCCESS)
}
