//! `calidris ipam`: what an operator asks of address management, and what he has it do.
//!
//! Works on the datastore alone, with or without an agent. Invariants: `show` and `check` write nothing; `release` writes
//! nothing that it has not looked at just before, and refuses what is in use unless told `--force`.

mod check;
mod connect;
mod release;
mod show;
mod table;

use std::fmt;
use std::path::PathBuf;

use calidris_ipam::{Inventory, Ipam, ReadError, StoreError};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::{Exit, Output};
use crate::config::Environment;
use crate::datastore::store::AnyStore;

/// `calidris ipam …`
#[derive(Debug, Args)]
pub(super) struct IpamArgs {
    #[command(subcommand)]
    task: Task,
}

const DATASTORE: &str = "\
The datastore is that of --config; else of the environment, if it has ETCD_ENDPOINTS; else of
/etc/calidris/calidris.toml, if there is one; else http://127.0.0.1:2379. What a file leaves out is taken from the
environment (ETCD_ENDPOINTS, ETCD_CA_CERT_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE, ETCD_USERNAME, ETCD_PASSWORD, each also
with CALICO_ before it, as Calico has them). An embedded datastore that an agent has open is asked through the agent.";

#[derive(Debug, Subcommand)]
enum Task {
    /// Show pools, blocks and addresses
    #[command(after_help = format!("\
Examples:
  calidris ipam show                          every pool with its use
  calidris ipam show --blocks                 and every block
  calidris ipam show --ip 10.244.0.11         who has an address, and since when
  calidris ipam show --node node-a            blocks and addresses of a node
  calidris ipam show --borrowed -o json       addresses from blocks of other nodes
  calidris ipam show --kept                   addresses kept for workloads that will come again
  calidris ipam show --configuration

{DATASTORE}"))]
    Show(show::ShowArgs),
    /// Look for contradictions between blocks, affinities, handles, endpoints and what runs
    #[command(after_help = format!("\
Examples:
  calidris ipam check
  calidris ipam check -o json > report.json   for calidris ipam release --from-report
  calidris ipam check --this-node node-a      and compare with what runs on this machine

What runs on other nodes is known by their endpoints in the datastore: a node that is gone, an endpoint of a node that
is gone, an address without an endpoint and an endpoint without an address are found from anywhere; an endpoint whose
container is gone is found on its own node only (--this-node there, or that agent's collector). The report names the nodes
of which that was not looked at.

Nothing is changed. A container that is being started or stopped by Calico's own plugin can be a finding for a moment;
calidris itself never leaves one.

Exit status: 0 nothing found, 1 findings, 2 wrong usage, 5 the datastore does not answer.

{DATASTORE}"))]
    Check(check::CheckArgs),
    /// Release addresses, give back what a departed node had, or carry out the repairs of a report
    #[command(after_help = format!("\
Examples:
  calidris ipam release --ip 10.244.0.11 --ip 10.244.0.12
  calidris ipam release --handle k8s-pod-network.cb7d031eb0ba
  calidris ipam release --node node-c --dry-run
  calidris ipam release --from-report report.json

What is in use (an endpoint or a tunnel device has it) and nodes that exist are refused without --force. An address kept
for a workload is free after --ip or --handle; --node keeps it, since the workload may come again elsewhere. Of a report,
only what is still found is repaired; an address only if it was allocated longer than --grace ago.

Exit status: 0 done, 1 something was refused or failed, 2 wrong usage, 5 the datastore does not answer.

{DATASTORE}"))]
    Release(release::ReleaseArgs),
}

/// Which datastore, and how to print.
#[derive(Debug, Args)]
struct CommonArgs {
    /// Take the datastore from this configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: crate::cli::OutputArgs,
}

/// Why a command did not do what it should.
#[derive(Debug)]
enum Failure {
    /// The command line, the environment or a file is wrong.
    Usage(String),
    /// The datastore does not answer or refuses.
    Unavailable(StoreError),
    /// It failed.
    Failed(String),
}

/// Does what the command line says.
pub(super) fn run(args: &IpamArgs) -> Exit {
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start: {error}")))
        .and_then(|runtime| {
            runtime.block_on(async {
                match &args.task {
                    Task::Show(args) => show::run(args).await,
                    Task::Check(args) => check::run(args).await,
                    Task::Release(args) => release::run(args).await,
                }
            })
        });
    result.unwrap_or_else(|failure| {
        eprintln!("calidris: {failure}");
        match failure {
            Failure::Usage(_) => Exit::Usage,
            Failure::Unavailable(_) => Exit::Unavailable,
            Failure::Failed(_) => Exit::Failed,
        }
    })
}

impl CommonArgs {
    fn ipam(&self) -> Result<Ipam<AnyStore>, Failure> {
        let store = connect::open(self.config.as_deref(), &Environment::of_process())?;
        Ok(Ipam::new(store))
    }

    /// Prints `answer` as asked for.
    fn print<T: Serialize + fmt::Display>(&self, answer: &T) {
        match self.output.output {
            Output::Table => print!("{answer}"),
            // Plain structs with string keys: serialising them to memory cannot fail.
            Output::Json => println!("{}", serde_json::to_string_pretty(answer).unwrap_or_default()),
        }
    }
}

/// Everything, at one revision. What cannot be read is told on stderr: an answer without it may mislead.
async fn inventory(ipam: &Ipam<AnyStore>) -> Result<Inventory, Failure> {
    let inventory = ipam.inventory().await?;
    for value in &inventory.unreadable {
        eprintln!(
            "calidris: {}: not a valid {}: {}",
            value.key, value.what, value.why
        );
    }
    Ok(inventory)
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => Self::Unavailable(error),
            ReadError::Corrupt(error) => Self::Failed(error.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(why) | Self::Failed(why) => f.write_str(why),
            Self::Unavailable(error) => error.fmt(f),
        }
    }
}
