//! `calidris-lab bench`: one subcommand for each benchmark, and all of them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};

use super::bgp::{self, Kind};
use super::report::Report;
use super::{cni, ipam, routes};
use crate::require::{LAB, Need};
use crate::signals;

/// Where the rows go.
const FOLDER: &str = "target/bench";

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    bench: Bench,
    /// Where to write the rows, a JSON file for each benchmark
    #[arg(long, global = true, value_name = "DIR", default_value = FOLDER)]
    folder: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Every benchmark with its defaults
    All,
    /// A BGP table in from one peer and out to others, beside BIRD 2 and FRR
    Bgp(BgpArgs),
    /// Pods added and deleted, beside the reference plugins
    Cni(CniArgs),
    /// Routes into the kernel and out of it, beside raw netlink, `ip -batch` and BIRD 2
    Routes(RoutesArgs),
    /// Addresses given and blocks claimed, beside etcd's own puts and transactions
    Ipam(IpamArgs),
}

#[derive(Debug, Args)]
struct BgpArgs {
    /// Prefixes from one peer to one other
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    prefixes: usize,
    /// Prefixes from one peer to many; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 500_000)]
    fanout_prefixes: usize,
    /// How many peers that is
    #[arg(long, value_name = "N", default_value_t = 10)]
    fanout_peers: usize,
    /// Prefixes that a route reflector is fed; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 1000)]
    reflected_prefixes: usize,
    /// How many clients it has
    #[arg(long, value_name = "N", default_value_t = 1000)]
    clients: usize,
    /// Prefixes that share their path attributes
    #[arg(long, value_name = "N", default_value_t = 10)]
    prefixes_per_path: usize,
    /// Runs of each
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Who is measured
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',', default_values_t = [Kind::Calidris, Kind::Bird, Kind::Frr])]
    subjects: Vec<Kind>,
}

#[derive(Debug, Args)]
struct CniArgs {
    /// Pods of each run
    #[arg(long, value_name = "N", default_value_t = 200)]
    pods: usize,
    /// How many at a time: one series each
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_values_t = [1, 16, 64])]
    parallel: Vec<usize>,
    /// Runs of each
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Pods of a burst that another node must reach; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 500)]
    burst: usize,
    /// How often the plugin's process is measured alone; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 200)]
    alone: usize,
}

#[derive(Debug, Args)]
struct RoutesArgs {
    /// Routes in and out
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    routes: u32,
    /// Routes of a resync with nothing to do
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    resync_routes: u32,
    /// Endpoints beside the one that is added
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    endpoints: u32,
    /// Endpoints in the nftables tables
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    nftables_endpoints: u32,
    /// Runs of each
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
}

#[derive(Debug, Args)]
struct IpamArgs {
    /// Requests of each series
    #[arg(long, value_name = "N", default_value_t = 400)]
    requests: usize,
    /// Nodes that allocate at once
    #[arg(long, value_name = "N", default_value_t = 50)]
    nodes: usize,
    /// Blocks in the cluster when claims are measured
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_values_t = [10, 5_000, 100_000])]
    blocks: Vec<usize>,
    /// Claims of each
    #[arg(long, value_name = "N", default_value_t = 100)]
    claims: usize,
    /// Runs of each series
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
}

impl Default for RoutesArgs {
    fn default() -> Self {
        Self {
            routes: 200_000,
            resync_routes: 100_000,
            endpoints: 1_000,
            nftables_endpoints: 2_000,
            rounds: 3,
        }
    }
}

impl Default for IpamArgs {
    fn default() -> Self {
        Self {
            requests: 400,
            nodes: 50,
            blocks: vec![10, 5_000, 100_000],
            claims: 100,
            rounds: 3,
        }
    }
}

impl Default for CniArgs {
    fn default() -> Self {
        Self {
            pods: 200,
            parallel: vec![1, 16, 64],
            rounds: 3,
            burst: 500,
            alone: 200,
        }
    }
}

impl Default for BgpArgs {
    fn default() -> Self {
        Self {
            prefixes: 1_000_000,
            fanout_prefixes: 500_000,
            fanout_peers: 10,
            reflected_prefixes: 1000,
            clients: 1000,
            prefixes_per_path: 10,
            rounds: 3,
            subjects: vec![Kind::Calidris, Kind::Bird, Kind::Frr],
        }
    }
}

/// Measures, prints the tables and writes the rows.
///
/// # Errors
/// What kept a benchmark from its end.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    signals::catch();
    match &args.bench {
        Bench::All => {
            run_routes(&RoutesArgs::default(), &args.folder)?;
            run_cni(&CniArgs::default(), &args.folder)?;
            run_bgp(&BgpArgs::default(), &args.folder)?;
            run_ipam(&IpamArgs::default(), &args.folder)?;
        }
        Bench::Cni(cni) => run_cni(cni, &args.folder)?,
        Bench::Ipam(ipam) => run_ipam(ipam, &args.folder)?,
        Bench::Bgp(bgp) => run_bgp(bgp, &args.folder)?,
        Bench::Routes(routes) => run_routes(routes, &args.folder)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run_bgp(args: &BgpArgs, folder: &Path) -> anyhow::Result<()> {
    demand(&[Need::Root, Need::Iproute2, Need::Bird, Need::Frr])?;
    let options = bgp::Options {
        prefixes: args.prefixes,
        fanout_prefixes: args.fanout_prefixes,
        fanout_peers: args.fanout_peers,
        reflected_prefixes: args.reflected_prefixes,
        clients: args.clients,
        prefixes_per_path: args.prefixes_per_path,
        rounds: args.rounds.max(1),
        subjects: args.subjects.clone(),
    };
    show(&bgp::run(&options, &calidris()?)?, folder)
}

fn run_routes(args: &RoutesArgs, folder: &Path) -> anyhow::Result<()> {
    demand(&[Need::Root, Need::Iproute2, Need::Bird, Need::Nftables])?;
    let options = routes::Options {
        routes: args.routes.max(1),
        resync_routes: args.resync_routes.max(1),
        endpoints: args.endpoints,
        nftables_endpoints: args.nftables_endpoints,
        rounds: args.rounds.max(1),
    };
    let probe = calidris()?.with_file_name("examples").join("dataplane_bench");
    ensure!(
        probe.exists(),
        "there is no {}; `make bench-routes` builds it",
        probe.display()
    );
    show(&routes::run(&options, &probe)?, folder)
}

fn run_cni(args: &CniArgs, folder: &Path) -> anyhow::Result<()> {
    demand(LAB)?;
    demand(&[Need::ReferencePlugins])?;
    let options = cni::Options {
        pods: args.pods.max(1),
        parallel: args.parallel.clone(),
        rounds: args.rounds.max(1),
        burst: args.burst,
        alone: args.alone,
    };
    show(&cni::run(&options)?, folder)
}

fn run_ipam(args: &IpamArgs, folder: &Path) -> anyhow::Result<()> {
    demand(&[Need::Root, Need::Iproute2, Need::Etcd])?;
    let mut blocks = args.blocks.clone();
    blocks.sort_unstable();
    let options = ipam::Options {
        requests: args.requests.max(1),
        nodes: args.nodes.max(1),
        blocks,
        claims: args.claims.max(1),
        rounds: args.rounds.max(1),
    };
    show(&ipam::run(&options)?, folder)
}

fn demand(needs: &[Need]) -> anyhow::Result<()> {
    if let Some(missing) = needs.iter().find_map(|need| need.missing()) {
        bail!("the benchmark needs {missing} (`make setup` as root installs what is missing)");
    }
    Ok(())
}

/// Our binary, beside this one.
fn calidris() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find the running program")?;
    let path = own.with_file_name("calidris");
    ensure!(
        path.exists(),
        "there is no {}; `make release` builds it",
        path.display()
    );
    Ok(path)
}

fn show(report: &Report, folder: &Path) -> anyhow::Result<()> {
    print!("{}", report.table());
    let file = report
        .write(folder)
        .with_context(|| format!("write rows to {}", folder.display()))?;
    println!("rows: {}", file.display());
    Ok(())
}
