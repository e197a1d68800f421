//! `calidris ipam show`: pools, blocks, one address, one node, borrowed and kept addresses, the configuration.

mod address;
mod kept;
mod node;
mod usage;

use std::fmt;
use std::net::IpAddr;

use calidris_ipam::{Allocation, Inventory};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

pub(super) use address::users;

use crate::cli::Exit;
use crate::clock;

use super::table::{Table, or_dash};
use super::{CommonArgs, Failure, inventory};

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    view: View,
    #[command(flatten)]
    common: CommonArgs,
}

/// What to show; pools if nothing is said.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct View {
    /// Every block of every pool
    #[arg(long)]
    blocks: bool,
    /// Who has this address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<IpAddr>,
    /// Blocks and addresses of this node
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Addresses that nodes have from blocks of others
    #[arg(long)]
    borrowed: bool,
    /// Addresses that are kept for workloads which are not there at present
    #[arg(long)]
    kept: bool,
    /// The cluster-wide configuration
    #[arg(long)]
    configuration: bool,
}

pub(super) async fn run(args: &ShowArgs) -> Result<Exit, Failure> {
    let inventory = inventory(&args.common.ipam()?).await?;
    let view = &args.view;
    if let Some(ip) = view.ip {
        args.common.print(&address::AddressView::of(&inventory, ip));
    } else if let Some(node) = &view.node {
        args.common.print(&node::NodeView::of(&inventory, node));
    } else if view.borrowed {
        args.common.print(&Borrowed::of(&inventory));
    } else if view.kept {
        args.common.print(&kept::Kept::of(&inventory, clock::wall()));
    } else if view.configuration {
        args.common.print(&Configuration::of(&inventory));
    } else if view.blocks {
        args.common.print(&usage::Usage::of(&inventory));
    } else {
        args.common.print(&usage::Usage::of(&inventory).without_blocks());
    }
    Ok(Exit::Done)
}

/// Addresses that nodes have from blocks of others.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Borrowed {
    borrowed: Vec<BorrowedAddress>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct BorrowedAddress {
    address: IpAddr,
    borrowed_by: String,
    block: String,
    block_owner: Option<String>,
    handle_id: Option<String>,
    workload: Option<String>,
}

impl Borrowed {
    fn of(inventory: &Inventory) -> Self {
        let mut borrowed = Vec::new();
        for (cidr, block) in &inventory.blocks {
            for allocation in block.allocations() {
                let node = allocation.attribute.secondary.get("node");
                let Some(node) =
                    node.filter(|node| !allocation.attribute.is_resting() && block.host() != Some(node))
                else {
                    continue;
                };
                borrowed.push(BorrowedAddress {
                    address: allocation.address,
                    borrowed_by: node.clone(),
                    block: cidr.to_string(),
                    block_owner: block.owner().map(str::to_owned),
                    handle_id: allocation.attribute.handle().map(str::to_owned),
                    workload: workload(&allocation),
                });
            }
        }
        Self { borrowed }
    }
}

impl fmt::Display for Borrowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.borrowed.iter().map(|address| {
            vec![
                address.address.to_string(),
                address.borrowed_by.clone(),
                address.block.clone(),
                or_dash(address.block_owner.as_deref()),
                or_dash(address.handle_id.as_deref()),
                or_dash(address.workload.as_deref()),
            ]
        });
        let titles = &[
            "ADDRESS",
            "BORROWED BY",
            "BLOCK",
            "BLOCK OWNER",
            "HANDLE",
            "WORKLOAD",
        ];
        let rows = rows.collect();
        write!(f, "{}", Table { titles, rows })
    }
}

/// The cluster-wide configuration, with the defaults of what is not stored.
#[derive(Debug, PartialEq, Serialize)]
#[serde(transparent)]
struct Configuration {
    properties: serde_json::Map<String, Value>,
}

impl Configuration {
    fn of(inventory: &Inventory) -> Self {
        let config = &inventory.config;
        let mut properties = serde_json::Map::new();
        properties.insert("strict_affinity".to_owned(), config.strict_affinity.into());
        properties.insert(
            "auto_allocate_blocks".to_owned(),
            config.auto_allocate_blocks.into(),
        );
        properties.insert("max_blocks_per_host".to_owned(), config.block_limit().into());
        properties.extend(
            config
                .extra
                .iter()
                .map(|(key, value)| (key.clone(), value.clone())),
        );
        properties.insert("datastore_locked".to_owned(), inventory.locked.into());
        Self { properties }
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self
            .properties
            .iter()
            .map(|(key, value)| vec![key.clone(), value.to_string()]);
        let rows = rows.collect();
        let titles = &["PROPERTY", "VALUE"];
        write!(f, "{}", Table { titles, rows })
    }
}

/// `NAMESPACE/POD`, if it is a pod's.
fn workload(allocation: &Allocation) -> Option<String> {
    let notes = &allocation.attribute.secondary;
    Some(format!("{}/{}", notes.get("namespace")?, notes.get("pod")?))
}
