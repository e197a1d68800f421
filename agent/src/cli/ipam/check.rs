//! `calidris ipam check`: the audit, as a report for people, or as JSON that `calidris ipam release --from-report` reads.

use std::fmt;

use calidris_ipam::{AllocationBlock, Finding, Inventory, Running, audit};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::cli::Exit;
use crate::host_routes;

use super::{CommonArgs, Failure};

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// This machine is NODE: compare the datastore with what runs here
    #[arg(long, value_name = "NODE")]
    this_node: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

/// What was found.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// [`Report::FORMAT`] of whoever wrote this.
    pub(super) format: u32,
    /// Revision of the datastore that was looked at.
    pub(super) revision: i64,
    /// How much was looked at.
    pub(super) looked_at: LookedAt,
    /// Nodes of which it was not looked at what runs there: their endpoints stand for it.
    #[serde(default)]
    not_compared: Vec<String>,
    /// What is wrong.
    pub(super) findings: Vec<Reported>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LookedAt {
    blocks: usize,
    allocations: usize,
    affinities: usize,
    handles: usize,
    pools: usize,
    nodes: usize,
    endpoints: usize,
    running: usize,
}

/// A finding with what it means.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reported {
    #[serde(flatten)]
    pub(super) finding: Finding,
    /// The key that is wrong, or where to look first.
    at: String,
    /// What is wrong, for people.
    what: String,
    /// What would repair it, for people.
    repair: String,
}

impl Report {
    /// Version of the form.
    pub(super) const FORMAT: u32 = 1;

    pub(super) fn of(inventory: &Inventory, running: &Running) -> Self {
        let allocations = inventory.blocks.values().flat_map(AllocationBlock::allocations);
        let findings = audit(inventory, running).into_iter().map(|finding| Reported {
            at: finding.key(),
            what: finding.to_string(),
            repair: finding.repair().to_string(),
            finding,
        });
        Self {
            format: Self::FORMAT,
            revision: inventory.revision,
            looked_at: LookedAt {
                blocks: inventory.blocks.len() + inventory.invalid_blocks.len(),
                allocations: allocations.count(),
                affinities: inventory.affinities.len(),
                handles: inventory.handles.len(),
                pools: inventory.pools.len(),
                nodes: inventory.nodes.len(),
                endpoints: inventory.endpoints.len(),
                running: running.values().map(|addresses| addresses.len()).sum(),
            },
            not_compared: inventory
                .nodes
                .keys()
                .filter(|node| !running.contains_key(*node))
                .cloned()
                .collect(),
            findings: findings.collect(),
        }
    }
}

pub(super) async fn run(args: &CheckArgs) -> Result<Exit, Failure> {
    let ipam = args.common.ipam()?;
    // What runs is read before the datastore: what is attached in between is then only in the datastore, which says so.
    let mut running = Running::new();
    if let Some(node) = &args.this_node {
        let addresses = host_routes::workload_addresses()
            .map_err(|error| Failure::Failed(format!("cannot read this machine's routes: {error}")))?;
        let addresses = addresses
            .into_iter()
            .map(|(a, link)| (a, format!("interface {link}")));
        running.insert(node.clone(), addresses.collect());
    }
    let inventory = ipam.inventory().await?;
    if let Some(node) = args
        .this_node
        .as_ref()
        .filter(|node| !inventory.nodes.contains_key(*node))
    {
        return Err(Failure::Usage(format!(
            "there is no node {node} in the datastore"
        )));
    }
    let report = Report::of(&inventory, &running);
    args.common.print(&report);
    Ok(if report.findings.is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let looked_at = &self.looked_at;
        writeln!(
            f,
            "looked at revision {}: {} pools, {} nodes, {} blocks, {} affinities, {} addresses, {} handles, {} endpoints",
            self.revision,
            looked_at.pools,
            looked_at.nodes,
            looked_at.blocks,
            looked_at.affinities,
            looked_at.allocations,
            looked_at.handles,
            looked_at.endpoints
        )?;
        if let Some((first, others)) = self.not_compared.split_first() {
            let others = match others.len() {
                0 => String::new(),
                1 => " and one other node".to_owned(),
                count => format!(" and {count} other nodes"),
            };
            writeln!(
                f,
                "not looked at: what runs on {first}{others}; their endpoints stand for it (--this-node, on each)"
            )?;
        }
        for reported in &self.findings {
            writeln!(f, "\n{}", reported.what)?;
            writeln!(f, "  at      {}", reported.at)?;
            writeln!(f, "  repair  {}", reported.repair)?;
        }
        match self.findings.len() {
            0 => writeln!(f, "nothing is wrong"),
            1 => writeln!(f, "\n1 finding"),
            count => writeln!(f, "\n{count} findings"),
        }
    }
}
