//! `calidris ipam release`: addresses, handles, departed nodes, and the repairs of a report.
//!
//! What is to be done is planned from what the datastore says now, printed, and carried out step by step; every step is
//! guarded by what it was planned from. A step that is refused does not stop the others.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use calidris_ipam::{
    Allocation, AllocationBlock, AllocationId, Finding, Inventory, Ipam, KeepOnRelease, ReleaseError,
    ReleaseOnly, ReleaseRequest, RemovalStep, Repair, RepairError, RepairRequest, Repaired, Running,
    UnixNanos, audit, plan_node_removal,
};
use clap::Args;
use serde::Serialize;

use crate::cli::Exit;
use crate::datastore::store::AnyStore;
use crate::{clock, config};

use super::check::Report;
use super::show::users;
use super::table::{Table, or_dash};
use super::{CommonArgs, Failure, inventory};

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct ReleaseArgs {
    #[command(flatten)]
    subject: Subject,
    /// Also what is in use, a node that exists, or an address that was allocated just now
    #[arg(long)]
    force: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// How long ago an address of a report must have been allocated
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration)]
    grace: Duration,
    #[command(flatten)]
    common: CommonArgs,
}

/// What to release.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Subject {
    /// This address; can be given several times
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// Every address of this handle
    #[arg(long, value_name = "HANDLE")]
    handle: Option<String>,
    /// Every address, block and endpoint of a node that is gone
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// What a report of `calidris ipam check -o json` says can be repaired
    #[arg(long, value_name = "FILE")]
    from_report: Option<PathBuf>,
}

/// One thing to do, or why it is not done.
#[derive(Debug)]
struct Step {
    what: String,
    how: Result<RemovalStep, NotDone>,
}

/// Why a step is not carried out.
#[derive(Debug)]
enum NotDone {
    /// There is nothing to do.
    NotNeeded(String),
    /// It would be wrong, as far as can be seen.
    Refused(String),
}

/// What was done.
#[derive(Debug, Serialize)]
struct Outcome {
    dry_run: bool,
    steps: Vec<Done>,
}

#[derive(Debug, Serialize)]
struct Done {
    what: String,
    result: Outcomes,
    why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcomes {
    Done,
    NotNeeded,
    WouldBeDone,
    Refused,
    Failed,
}

pub(super) async fn run(args: &ReleaseArgs) -> Result<Exit, Failure> {
    let report = args.subject.from_report.as_deref().map(read_report).transpose()?;
    let ipam = args.common.ipam()?;
    let subject = &args.subject;
    let mut inventory = inventory(&ipam).await?;
    if let Some(node) = &subject.node {
        may_go(&inventory, node, Force(args.force))?;
        if !args.dry_run && !plan_node_removal(&inventory, node).is_empty() {
            inventory = shut_out(&ipam, node).await?;
        }
    }
    let planner = Planner {
        inventory: &inventory,
        force: Force(args.force),
        grace: args.grace,
        now: clock::wall(),
    };
    let steps = match (&subject.handle, &subject.node, &report) {
        (Some(handle_id), _, _) => planner.handle(handle_id),
        (_, Some(node), _) => planner.node(node),
        (_, _, Some(report)) => planner.report(report),
        (None, None, None) => subject.ip.iter().map(|&ip| planner.address(ip)).collect(),
    };
    let mut outcome = Outcome {
        dry_run: args.dry_run,
        steps: Vec::new(),
    };
    for Step { what, how } in steps {
        let (result, why) = match how {
            Err(NotDone::NotNeeded(why)) => (Outcomes::NotNeeded, Some(why)),
            Err(NotDone::Refused(why)) => (Outcomes::Refused, Some(why)),
            Ok(_) if args.dry_run => (Outcomes::WouldBeDone, None),
            Ok(step) => carry_out(&ipam, &step).await?,
        };
        outcome.steps.push(Done { what, result, why });
    }
    args.common.print(&outcome);
    let failed = |done: &Done| matches!(done.result, Outcomes::Refused | Outcomes::Failed);
    Ok(if outcome.steps.iter().any(failed) {
        Exit::Failed
    } else {
        Exit::Done
    })
}

/// Refuses to remove a node that exists, unless the operator insists.
fn may_go(inventory: &Inventory, node: &str, force: Force) -> Result<(), Failure> {
    if inventory.nodes.contains_key(node) && !force.0 {
        return Err(Failure::Failed(format!(
            "node {node} exists, and what it has may be in use; delete its Node resource first, or say --force"
        )));
    }
    Ok(())
}

/// Sees to it that nothing more comes of what `node` has under way, and returns what there is then.
async fn shut_out(ipam: &Ipam<AnyStore>, node: &str) -> Result<Inventory, Failure> {
    let request = RepairRequest::ShutOut {
        node: node.to_owned(),
        at: clock::wall(),
    };
    match ipam.repair(&request).await {
        Ok(_) => inventory(ipam).await,
        Err(RepairError::Store(error)) => Err(error.into()),
        Err(error) => Err(Failure::Failed(error.to_string())),
    }
}

/// Carries out one step. Only a datastore that does not answer stops everything.
async fn carry_out(ipam: &Ipam<AnyStore>, step: &RemovalStep) -> Result<(Outcomes, Option<String>), Failure> {
    match step {
        RemovalStep::Release(request) => match ipam.release(request, clock::wall()).await {
            Ok(released) if released.addresses.is_empty() && request.extra_deletes.is_empty() => {
                Ok((Outcomes::NotNeeded, None))
            }
            Ok(_) => Ok((Outcomes::Done, None)),
            Err(ReleaseError::Store(error)) => Err(error.into()),
            Err(error) => Ok((Outcomes::Failed, Some(error.to_string()))),
        },
        RemovalStep::Repair(request) => match ipam.repair(request).await {
            Ok(Repaired::Done) => Ok((Outcomes::Done, None)),
            Ok(Repaired::NotNeeded) => Ok((Outcomes::NotNeeded, None)),
            Err(RepairError::Store(error)) => Err(error.into()),
            Err(error) => Ok((Outcomes::Failed, Some(error.to_string()))),
        },
    }
}

/// Whether the operator insists.
#[derive(Debug, Clone, Copy)]
struct Force(bool);

/// Decides what to do from what the datastore says.
struct Planner<'a> {
    inventory: &'a Inventory,
    force: Force,
    grace: Duration,
    now: UnixNanos,
}

impl Planner<'_> {
    fn address(&self, address: IpAddr) -> Step {
        let how = match self.inventory.allocation_of(address) {
            Some(allocation) if allocation.attribute.is_resting() => {
                Err(NotDone::NotNeeded("it is released already, and rests".to_owned()))
            }
            Some(allocation) => self
                .not_in_use([&allocation].into_iter())
                .map(|()| release_of(&allocation)),
            None => Err(NotDone::NotNeeded("it is not allocated".to_owned())),
        };
        Step {
            what: format!("release {address}"),
            how,
        }
    }

    fn handle(&self, handle_id: &str) -> Vec<Step> {
        let all = self
            .inventory
            .blocks
            .values()
            .flat_map(AllocationBlock::allocations);
        let its: Vec<Allocation> = all
            .filter(|allocation| {
                allocation.attribute.belongs_to(handle_id) && !allocation.attribute.is_resting()
            })
            .collect();
        if its.is_empty() && !self.inventory.handles.contains_key(handle_id) {
            let what = format!("release handle {handle_id}");
            let how = Err(NotDone::NotNeeded("there is no such handle".to_owned()));
            return vec![Step { what, how }];
        }
        let addresses: Vec<String> = its
            .iter()
            .map(|allocation| allocation.address.to_string())
            .collect();
        // A handle that does not name all of its blocks would not find them.
        let mut blocks: Vec<_> = its.iter().map(|allocation| allocation.block).collect();
        blocks.dedup();
        let recount = RepairRequest::RecountHandle {
            handle_id: handle_id.to_owned(),
            blocks,
        };
        let mut steps = Vec::new();
        if !self.is_well_counted(handle_id, &its) {
            steps.push(Step {
                what: recount.to_string(),
                how: Ok(RemovalStep::Repair(recount)),
            });
        }
        if !its.is_empty() {
            let request = ReleaseRequest {
                handle_id: handle_id.to_owned(),
                only: its.iter().map(only).collect(),
                keep: KeepOnRelease::Nothing,
                ..ReleaseRequest::default()
            };
            steps.push(Step {
                what: format!("release {} of handle {handle_id}", addresses.join(", ")),
                how: self
                    .not_in_use(its.iter())
                    .map(|()| RemovalStep::Release(request)),
            });
        }
        steps
    }

    fn is_well_counted(&self, handle_id: &str, its: &[Allocation]) -> bool {
        let handle = self.inventory.handles.get(handle_id);
        !its.is_empty()
            && its
                .iter()
                .all(|allocation| handle.is_some_and(|handle| handle.count(allocation.block) > 0))
    }

    fn node(&self, node: &str) -> Vec<Step> {
        let steps = plan_node_removal(self.inventory, node).into_iter();
        steps
            .map(|step| Step {
                what: describe(&step),
                how: Ok(step),
            })
            .collect()
    }

    /// What the report says and is still so.
    fn report(&self, report: &Report) -> Vec<Step> {
        let present: BTreeSet<Finding> = audit(self.inventory, &Running::new()).into_iter().collect();
        let reported = report.findings.iter().map(|reported| &reported.finding);
        reported
            .map(|finding| Step {
                what: finding.to_string(),
                how: if present.contains(finding) {
                    self.repair(finding)
                } else {
                    Err(NotDone::NotNeeded("it is no longer so".to_owned()))
                },
            })
            .collect()
    }

    fn repair(&self, finding: &Finding) -> Result<RemovalStep, NotDone> {
        if let Finding::AllocatedNotInUse { allocated_at, .. } = finding
            && !self.force.0
        {
            let at = allocated_at.as_deref().and_then(UnixNanos::parse_go_string);
            let at = at.ok_or_else(|| {
                NotDone::Refused("when it was allocated is not noted; look, then say --force".to_owned())
            })?;
            let age = Duration::from_nanos(u64::try_from(self.now.0.saturating_sub(at.0)).unwrap_or(0));
            if age < self.grace {
                let (age, grace) = (age.as_secs(), self.grace.as_secs());
                return Err(NotDone::Refused(format!(
                    "it was allocated {age} s ago, less than {grace} s: its container may be starting"
                )));
            }
        }
        match finding.repair() {
            Repair::Release(allocation) => Ok(RemovalStep::Release(release(&allocation))),
            Repair::Mend(request) => Ok(RemovalStep::Repair(request)),
            Repair::ByHand(how) => Err(NotDone::Refused(format!("by hand: {how}"))),
        }
    }

    fn not_in_use<'a>(&self, mut allocations: impl Iterator<Item = &'a Allocation>) -> Result<(), NotDone> {
        if self.force.0 {
            return Ok(());
        }
        let in_use = |allocation: &Allocation| {
            let users = users(self.inventory, allocation.address);
            let user = users.first()?;
            Some(NotDone::Refused(format!(
                "{} is in use by {user}; if that is not so, say --force",
                allocation.address
            )))
        };
        allocations.find_map(in_use).map_or(Ok(()), Err)
    }
}

fn release_of(allocation: &Allocation) -> RemovalStep {
    let id = AllocationId::of(allocation);
    if id.handle_id.is_empty() {
        return RemovalStep::Repair(RepairRequest::FreeAddress {
            block: id.block,
            address: id.address,
            sequence_number: id.sequence_number,
        });
    }
    RemovalStep::Release(ReleaseRequest {
        keep: KeepOnRelease::Nothing,
        ..release(&id)
    })
}

fn release(id: &AllocationId) -> ReleaseRequest {
    ReleaseRequest {
        handle_id: id.handle_id.clone(),
        only: vec![ReleaseOnly {
            address: id.address,
            sequence_number: Some(id.sequence_number),
        }],
        ..ReleaseRequest::default()
    }
}

fn only(allocation: &Allocation) -> ReleaseOnly {
    ReleaseOnly {
        address: allocation.address,
        sequence_number: Some(allocation.sequence_number),
    }
}

fn describe(step: &RemovalStep) -> String {
    match step {
        RemovalStep::Repair(request) => request.to_string(),
        RemovalStep::Release(request) => {
            let addresses: Vec<String> = request.only.iter().map(|only| only.address.to_string()).collect();
            let endpoints = match request.extra_deletes.len() {
                0 => String::new(),
                1 => ", with its endpoint".to_owned(),
                count => format!(", with {count} endpoints"),
            };
            format!(
                "release {} of handle {}{endpoints}",
                addresses.join(", "),
                request.handle_id
            )
        }
    }
}

fn read_report(file: &Path) -> Result<Report, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::Usage(format!("{}: cannot read the report: {error}", file.display())))?;
    let report: Report = serde_json::from_str(&text).map_err(|error| {
        Failure::Usage(format!(
            "{}: not a report of `calidris ipam check -o json`: {error}",
            file.display()
        ))
    })?;
    if report.format != Report::FORMAT {
        return Err(Failure::Usage(format!(
            "{}: a report of format {}, expected {}",
            file.display(),
            report.format,
            Report::FORMAT
        )));
    }
    Ok(report)
}

fn duration(text: &str) -> Result<Duration, String> {
    config::parse_duration(text)
        .ok_or_else(|| "expected a duration with a unit, such as 500ms, 30s, 15m or 1h".to_owned())
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.steps.is_empty() {
            return writeln!(f, "nothing to do");
        }
        let rows = self.steps.iter().map(|step| {
            let result = match step.result {
                Outcomes::Done => "done",
                Outcomes::NotNeeded => "not needed",
                Outcomes::WouldBeDone => "would be done",
                Outcomes::Refused => "REFUSED",
                Outcomes::Failed => "FAILED",
            };
            vec![result.to_owned(), step.what.clone(), or_dash(step.why.as_deref())]
        });
        let rows = rows.collect();
        let titles = &["RESULT", "WHAT", "WHY NOT"];
        write!(f, "{}", Table { titles, rows })
    }
}
