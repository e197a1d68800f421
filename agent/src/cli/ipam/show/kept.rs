//! Addresses that are kept for workloads which are not there at present.

use std::fmt;
use std::net::IpAddr;

use calidris_ipam::{AllocationBlock, Inventory, UnixNanos};
use serde::Serialize;

use super::super::table::{Table, or_dash};
use super::workload;

/// All of them.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Kept {
    kept: Vec<KeptAddress>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct KeptAddress {
    address: IpAddr,
    workload: Option<String>,
    /// RFC 3339.
    until: String,
    /// Whether the time is over: the collector of the block's node frees it at its next looks.
    over: bool,
    block: String,
    block_owner: Option<String>,
    /// For `calidris ipam release --handle`.
    handle_id: Option<String>,
}

impl Kept {
    pub(super) fn of(inventory: &Inventory, now: UnixNanos) -> Self {
        let blocks = inventory.blocks.iter();
        let allocations = blocks.flat_map(|(cidr, block): (_, &AllocationBlock)| {
            block
                .allocations()
                .map(move |allocation| (cidr, block, allocation))
        });
        let kept = allocations.filter_map(|(cidr, block, allocation)| {
            let until = allocation.attribute.kept_until()?;
            Some(KeptAddress {
                address: allocation.address,
                workload: workload(&allocation),
                until: until.rfc3339(),
                over: until <= now,
                block: cidr.to_string(),
                block_owner: block.owner().map(str::to_owned),
                handle_id: allocation.attribute.handle().map(str::to_owned),
            })
        });
        Self { kept: kept.collect() }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.kept.iter().map(|kept| {
            vec![
                kept.address.to_string(),
                or_dash(kept.workload.as_deref()),
                format!("{}{}", kept.until, if kept.over { " (over)" } else { "" }),
                kept.block.clone(),
                or_dash(kept.block_owner.as_deref()),
                or_dash(kept.handle_id.as_deref()),
            ]
        });
        let titles = &[
            "ADDRESS",
            "WORKLOAD",
            "KEPT UNTIL",
            "BLOCK",
            "BLOCK OWNER",
            "HANDLE",
        ];
        let rows = rows.collect();
        write!(f, "{}", Table { titles, rows })
    }
}
