//! Blocks and addresses of one node.

use std::fmt;
use std::net::IpAddr;

use calidris_ipam::{AffinityState, AllocationBlock, Inventory};
use serde::Serialize;

use super::super::table::{Table, or_dash};
use super::address::users;
use super::workload;

/// One node.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct NodeView {
    node: String,
    /// Whether there is a Node resource.
    exists: bool,
    blocks: Vec<NodeBlock>,
    addresses: Vec<NodeAddress>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct NodeBlock {
    cidr: String,
    /// State of the affinity; `None` if there is none.
    affinity: Option<String>,
    in_use: usize,
    free: usize,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct NodeAddress {
    address: IpAddr,
    block: String,
    /// Whether the block is another's.
    borrowed: bool,
    handle_id: Option<String>,
    workload: Option<String>,
    allocated_at: Option<String>,
    used_by: Vec<String>,
}

impl NodeView {
    pub(super) fn of(inventory: &Inventory, node: &str) -> Self {
        let blocks = inventory.blocks_of(node).into_iter().map(|cidr| {
            let affinity = inventory.affinities.get(&(node.to_owned(), cidr));
            let block = inventory.blocks.get(&cidr);
            NodeBlock {
                cidr: cidr.to_string(),
                affinity: affinity.map(|state| state_name(state).to_owned()),
                in_use: block.map_or(0, |block| block.allocations().count()),
                free: block.map_or(0, |block| block.free().count()),
            }
        });
        let all = inventory.blocks.values().flat_map(AllocationBlock::allocations);
        let here = all.filter(|allocation| {
            let on = allocation.attribute.secondary.get("node").map(String::as_str);
            on == Some(node) && !allocation.attribute.is_resting()
        });
        let addresses = here.map(|allocation| NodeAddress {
            address: allocation.address,
            block: allocation.block.to_string(),
            borrowed: inventory
                .blocks
                .get(&allocation.block)
                .and_then(AllocationBlock::host)
                != Some(node),
            handle_id: allocation.attribute.handle().map(str::to_owned),
            workload: workload(&allocation),
            allocated_at: allocation.attribute.secondary.get("timestamp").cloned(),
            used_by: users(inventory, allocation.address),
        });
        Self {
            node: node.to_owned(),
            exists: inventory.nodes.contains_key(node),
            blocks: blocks.collect(),
            addresses: addresses.collect(),
        }
    }
}

fn state_name(state: &AffinityState) -> &str {
    match state {
        AffinityState::Confirmed | AffinityState::Unstated => "confirmed",
        AffinityState::Pending => "pending",
        AffinityState::PendingDeletion => "pendingDeletion",
        AffinityState::Other(state) => state,
    }
}

impl fmt::Display for NodeView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exists = if self.exists { "" } else { " (DOES NOT EXIST)" };
        writeln!(
            f,
            "node {}{exists}: {} blocks, {} addresses",
            self.node,
            self.blocks.len(),
            self.addresses.len()
        )?;
        let blocks = self.blocks.iter().map(|block| {
            vec![
                block.cidr.clone(),
                or_dash(block.affinity.as_deref()),
                block.in_use.to_string(),
                block.free.to_string(),
            ]
        });
        let rows = blocks.collect();
        let titles = &["BLOCK", "AFFINITY", "IN USE", "FREE"];
        write!(f, "\n{}", Table { titles, rows })?;
        let addresses = self.addresses.iter().map(|address| {
            let borrowed = if address.borrowed { " (borrowed)" } else { "" };
            vec![
                address.address.to_string(),
                format!("{}{borrowed}", address.block),
                or_dash(address.handle_id.as_deref()),
                or_dash(address.workload.as_deref()),
                or_dash(address.allocated_at.as_deref()),
                or_dash(Some(&address.used_by.join(", "))),
            ]
        });
        let rows = addresses.collect();
        let titles = &["ADDRESS", "BLOCK", "HANDLE", "WORKLOAD", "SINCE", "USED BY"];
        write!(f, "\n{}", Table { titles, rows })
    }
}
