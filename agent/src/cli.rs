//! The command line: what can be asked of `calidris`, and what its exit status means.
//!
//! Invariants: what goes to stdout is the answer and nothing else; errors go to stderr as one line that begins with
//! `calidris:`; `-o json` prints one JSON document.

mod bgp;
mod ipam;
mod node;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::ipam::IpamArgs;
use crate::config::{self, Config, Environment, SpeakerFile};
use crate::report::StatusReport;
use crate::{logging, status, wiring};

/// The node agent of a container network, and its operator's command line.
#[derive(Debug, Parser)]
#[command(name = "calidris", version, disable_help_subcommand = true, after_help = EXIT_STATUS)]
pub struct Cli {
    #[command(subcommand)]
    command: Task,
}

const EXIT_STATUS: &str = "\
Exit status:
  0  done
  1  it failed; findings (calidris ipam check)
  2  wrong usage or wrong configuration; trying again will not help
  3  the agent runs but is not ready (calidris status)
  4  no agent answers (calidris status, calidris bgp)
  5  the datastore does not answer or refuses (calidris ipam, calidris plan)
  6  something would be changed (calidris plan)";

#[derive(Debug, Subcommand)]
enum Task {
    /// Run the node agent in the foreground
    #[command(after_help = "\
Examples:
  calidris agent                                        with /etc/calidris/calidris.toml
  calidris agent --config ./node1.toml
  calidris agent --config ./node1.toml --check          only check the configuration
  calidris agent --dry-run                              the same as calidris plan

SIGTERM and SIGINT end the agent; the kernel's routes stay, and BGP peers with graceful restart keep theirs. SIGHUP reads
[bgp] again and applies it without resetting sessions; `calidris bgp plan` tells before what that would do.")]
    Agent(AgentArgs),
    /// Show what the agent of this node knows and does
    #[command(after_help = "\
Examples:
  calidris status
  calidris status -o json
  calidris status --socket /run/calidris/status.sock")]
    Status(StatusArgs),
    /// Show what the agent would change on this node right now, one line an operation, and change nothing
    #[command(after_help = "\
Examples:
  calidris plan                                         nothing is printed for a node that is as it should be
  calidris plan -o json
  calidris plan --config ./node1.toml

A running agent is asked. Where none runs, the datastore is read, and routes learned by BGP are not judged.
Exit status: 0 nothing would be changed, 6 something would be, 1 something could not be read.")]
    Plan(node::PlanArgs),
    /// Remove from this node everything that the agent made, and only that
    #[command(after_help = "\
Examples:
  calidris cleanup --dry-run                            only show
  calidris cleanup
  calidris cleanup -o json

Removed are routes with the agent's protocol numbers, links with its name and alias, and its nftables tables; pods that still
run lose their network. Kernel parameters of the whole node stay as they are, and so does the datastore.")]
    Cleanup(node::CleanupArgs),
    /// Show, check and release addresses, blocks and handles in the datastore
    #[command(after_help = "\
Examples:
  calidris ipam show --blocks
  calidris ipam check
  calidris ipam release --ip 10.244.0.11
  calidris ipam check --help")]
    Ipam(IpamArgs),
    /// Run the BGP speaker alone, without agent, routes in the kernel or etcd: a route reflector or a test peer
    #[command(after_help = "\
Examples:
  calidris speaker                                      with /etc/calidris/calidris-speaker.toml
  calidris speaker --config ./reflector.toml
  calidris speaker --config ./reflector.toml --check    only check the configuration

SIGHUP reads the configuration again and applies it without resetting sessions. SIGTERM ends the speaker, and peers with
graceful restart keep its routes; SIGINT ends it with a NOTIFICATION, and they forget them. Every key of the configuration is
described in calidris-speaker.toml, which comes with the program.

Exit status: 0 ended by a signal, or the configuration is right (--check); 1 it could not start; 2 the configuration is wrong.")]
    Speaker(SpeakerArgs),
    /// Ask the agent's or the speaker's BGP: peers, routes, and why
    #[command(after_help = "\
Examples:
  calidris bgp peers
  calidris bgp peer tor-a
  calidris bgp routes --in tor-a
  calidris bgp routes --out tor-a -o json
  calidris bgp route 10.244.1.0/26                      all candidates, and why the best is best
  calidris bgp route 10.244.1.7                         of the prefix that covers an address
  calidris bgp refresh tor-a
  calidris bgp plan                                     what a changed configuration would do, peer by peer
  calidris bgp plan -o json
  calidris bgp reload                                   read the configuration again and apply it
  calidris bgp peers --socket /run/calidris/speaker.sock

Plan and reload read the file the process was started with; SIGHUP is a reload too. Only a peer's address, AS numbers and
whether its segments are signed reset a session.

Exit status: 0 done, 1 refused (no such peer or route, a wrong configuration), 4 nobody answers at the socket.")]
    Bgp(bgp::BgpArgs),
    /// Run clusters in network namespaces on this machine
    #[command(
        disable_help_flag = true,
        after_help = "\
Examples:
  calidris lab run
  calidris lab clean
  calidris lab --help"
    )]
    Lab(LabArgs),
    /// Show the version
    #[command(after_help = "\
Examples:
  calidris version
  calidris version -o json")]
    Version(OutputArgs),
}

#[derive(Debug, Args)]
struct AgentArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
    /// Show what the agent would change on this node and exit, as `calidris plan`
    #[arg(long, conflicts_with = "check")]
    dry_run: bool,
    /// Form of the output of --dry-run
    #[arg(short, long, value_enum, default_value_t = Output::Table, requires = "dry_run")]
    output: Output,
}

#[derive(Debug, Args)]
struct SpeakerArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = SpeakerFile::DEFAULT_FILE)]
    config: PathBuf,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// The agent's status socket
    #[arg(long, value_name = "PATH", default_value = config::DEFAULT_STATUS_SOCKET)]
    socket: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct LabArgs {
    /// Arguments for `calidris-lab`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<std::ffi::OsString>,
}

/// How to print.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

/// Form of what a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// One JSON document.
    Json,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0
    Done,
    /// 1
    Failed,
    /// 2
    Usage,
    /// 3
    NotReady,
    /// 4
    NoAgent,
    /// 5
    Unavailable,
    /// 6
    Changes,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotReady => 3,
            Exit::NoAgent => 4,
            Exit::Unavailable => 5,
            Exit::Changes => 6,
        })
    }
}

/// Does what the command line says.
pub fn run(cli: Cli) -> Exit {
    match cli.command {
        Task::Agent(args) => agent(&args),
        Task::Status(args) => show_status(&args),
        Task::Plan(args) => node::plan(&args),
        Task::Cleanup(args) => node::cleanup(&args),
        Task::Ipam(args) => ipam::run(&args),
        Task::Speaker(args) => speaker(&args),
        Task::Bgp(args) => bgp::run(&args),
        Task::Lab(args) => lab(&args),
        Task::Version(args) => version(args.output),
    }
}

fn agent(args: &AgentArgs) -> Exit {
    if args.dry_run {
        return node::plan(&node::PlanArgs {
            config: args.config.clone(),
            output: OutputArgs { output: args.output },
        });
    }
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => return complain(&error, Exit::Usage),
    };
    if let Err(error) = config.read_secrets(&Environment::of_process()) {
        return complain(&error, Exit::Usage);
    }
    let speaker = config.bgp.as_ref().zip(config.router_id());
    if let Some(Err(error)) = speaker.map(|(bgp, router_id)| bgp.speaker(router_id).check()) {
        return complain(&format!("{}: {error}", args.config.display()), Exit::Usage);
    }
    if args.check {
        return checked(&args.config, config.bgp.as_ref());
    }
    logging::start(&config.log);
    match wiring::run(config, &args.config) {
        Ok(()) => Exit::Done,
        Err(error) => complain(&format!("{error:#}"), Exit::Failed),
    }
}

fn speaker(args: &SpeakerArgs) -> Exit {
    let config = match SpeakerFile::load(&args.config) {
        Ok(config) => config,
        Err(error) => return complain(&error, Exit::Usage),
    };
    if let Err(error) = config.speaker().check() {
        return complain(&format!("{}: {error}", args.config.display()), Exit::Usage);
    }
    if args.check {
        return checked(&args.config, Some(&config.bgp));
    }
    logging::start(&config.log);
    match crate::speaker::run(config, &args.config) {
        Ok(()) => Exit::Done,
        Err(error) => complain(&format!("{error:#}"), Exit::Failed),
    }
}

/// The end of a check: the file is right; what it refers to may be missing.
fn checked(file: &std::path::Path, bgp: Option<&config::Bgp>) -> Exit {
    match bgp.and_then(|bgp| bgp.missing_secrets().into_iter().next()) {
        Some(why) => complain(&format!("{}: {why}", file.display()), Exit::Usage),
        None => {
            println!("{}: valid", file.display());
            Exit::Done
        }
    }
}

fn show_status(args: &StatusArgs) -> Exit {
    let report = match status::fetch(&args.socket) {
        Ok(report) => report,
        Err(error @ status::FetchError::NoAgent { .. }) => return complain(&error, Exit::NoAgent),
        Err(error) => return complain(&error, Exit::Failed),
    };
    match args.output.output {
        Output::Table => print!("{report}"),
        Output::Json => println!("{}", json(&report)),
    }
    if report.not_ready.is_empty() {
        Exit::Done
    } else {
        Exit::NotReady
    }
}

/// Becomes `calidris-lab`: the lab is a program of its own, so that a node without it carries no test code.
fn lab(args: &LabArgs) -> Exit {
    use std::os::unix::process::CommandExt as _;

    let beside_us = std::env::current_exe()
        .ok()
        .map(|path| path.with_file_name("calidris-lab"));
    let program = beside_us
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("calidris-lab"));
    let error = Command::new(&program).args(&args.arguments).exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        complain(
            &"calidris-lab is neither beside this program nor in PATH; build it with `make release`",
            Exit::Failed,
        )
    } else {
        complain(
            &format!("cannot run {}: {error}", program.display()),
            Exit::Failed,
        )
    }
}

fn version(output: Output) -> Exit {
    let version = env!("CARGO_PKG_VERSION");
    let contract = calidris_cni::contract::CONTRACT_VERSION;
    match output {
        Output::Table => println!("calidris {version} (CNI plugin contract {contract})"),
        Output::Json => println!(
            "{}",
            serde_json::json!({ "version": version, "cni_contract": contract, "report": StatusReport::FORMAT })
        ),
    }
    Exit::Done
}

fn json(report: &impl serde::Serialize) -> String {
    // Plain structs with string keys: serialising them to memory cannot fail.
    serde_json::to_string_pretty(report).unwrap_or_default()
}

fn complain(error: &dyn std::fmt::Display, exit: Exit) -> Exit {
    eprintln!("calidris: {error}");
    exit
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains("Examples:"),
                "{} has no examples",
                command.get_name()
            );
        }
    }

    #[test]
    fn everything_behind_lab_goes_to_the_lab() {
        let cli =
            Cli::try_parse_from(["calidris", "lab", "run", "--name", "x", "--help", "-o", "json"]).unwrap();
        let Task::Lab(args) = cli.command else {
            panic!("not lab")
        };
        assert_eq!(args.arguments, ["run", "--name", "x", "--help", "-o", "json"]);
    }
}
