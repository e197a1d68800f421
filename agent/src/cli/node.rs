//! `calidris plan` and `calidris cleanup`: what the agent would change on this node, and taking away what it made.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::Args;

use super::{Exit, Output, OutputArgs, complain, json};
use crate::cleanup::{self, Mode};
use crate::config::{self, Config};
use crate::control::{Answer, AskError, Request, ask};
use crate::kernel::Linux;
use crate::offline_plan;
use crate::plan::PlanReport;

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// The agent's configuration
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    pub(super) config: PathBuf,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct CleanupArgs {
    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Remove even if an agent runs, which makes again what it wants to be there
    #[arg(long)]
    force: bool,
    /// The agent's status socket, where it is looked for
    #[arg(long, value_name = "PATH", default_value = config::DEFAULT_STATUS_SOCKET)]
    socket: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn plan(args: &PlanArgs) -> Exit {
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => return complain(&error, Exit::Usage),
    };
    let report = match ask_agent(&config) {
        Ok(report) => report,
        Err(AskError::NoAgent { .. }) => match ask_datastore(&config) {
            Ok(report) => report,
            Err(error) => return complain(&format!("{error:#}"), Exit::Unavailable),
        },
        Err(error) => return complain(&error, Exit::Failed),
    };
    for source in &report.waiting_for {
        eprintln!(
            "calidris: {source} is not in sync: what follows from it would only be created, not changed or deleted"
        );
    }
    for unread in &report.unread {
        eprintln!("calidris: cannot read back {unread}");
    }
    match args.output.output {
        Output::Table => print!("{report}"),
        Output::Json => println!("{}", json(&report)),
    }
    if !report.unread.is_empty() {
        Exit::Failed
    } else if report.is_settled() {
        Exit::Done
    } else {
        Exit::Changes
    }
}

fn ask_agent(config: &Config) -> Result<PlanReport, AskError> {
    let mut report = None;
    ask(config.control.socket.as_path(), &Request::NodePlan, |answer| {
        if let Answer::NodePlan(plan) = answer {
            report = Some(plan);
        }
    })?;
    report.ok_or_else(|| AskError::Refused("the agent answered, but said nothing".to_owned()))
}

fn ask_datastore(config: &Config) -> anyhow::Result<PlanReport> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(offline_plan::without_agent(config))
}

pub(super) fn cleanup(args: &CleanupArgs) -> Exit {
    if !args.dry_run && !args.force && UnixStream::connect(&args.socket).is_ok() {
        let why = format!(
            "an agent answers at {}: stop it first, or it makes everything again (--force removes nevertheless)",
            args.socket.display()
        );
        return complain(&why, Exit::Failed);
    }
    let mode = if args.dry_run { Mode::DryRun } else { Mode::Remove };
    let report = match Linux::open().and_then(|mut kernel| cleanup::clean(&mut kernel, mode)) {
        Ok(report) => report,
        Err(error) => return complain(&error, Exit::Failed),
    };
    match args.output.output {
        Output::Table => {
            print!("{report}");
            for line in &report.left {
                eprintln!("calidris: left: {line}");
            }
            for line in &report.failed {
                eprintln!("calidris: not removed: {line}");
            }
        }
        Output::Json => println!("{}", json(&report)),
    }
    if report.failed.is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    }
}
