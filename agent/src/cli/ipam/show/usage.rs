//! How much of pools and blocks is used.

use std::fmt;

use calidris_ipam::{AllocationBlock, Inventory};
use ipnetwork::IpNetwork;
use serde::Serialize;

use super::super::table::Table;

/// All pools, and the blocks that lie in none.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    pools: Vec<PoolUsage>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    blocks_outside_pools: Vec<BlockUsage>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct PoolUsage {
    name: String,
    cidr: String,
    disabled: bool,
    #[serde(flatten)]
    counts: Counts,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    blocks: Vec<BlockUsage>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct BlockUsage {
    cidr: String,
    owner: Option<String>,
    #[serde(flatten)]
    counts: Counts,
}

/// Numbers of addresses. Of the 2^128 of an IPv6 pool of everything, one is lost.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    total: u128,
    in_use: u128,
    /// Released and not to be given yet.
    resting: u128,
    /// Not given automatically, and not in use either.
    reserved: u128,
    free: u128,
}

impl Usage {
    pub(super) fn of(inventory: &Inventory) -> Self {
        let reserved = outermost(&inventory.reservations);
        let pools = inventory.pools.iter().map(|(name, pool)| {
            let mut blocks = Vec::new();
            for (cidr, block) in &inventory.blocks {
                if is_within(*cidr, pool.cidr) {
                    blocks.push((*cidr, block));
                }
            }
            PoolUsage {
                name: name.clone(),
                cidr: pool.cidr.to_string(),
                disabled: pool.spec.disabled,
                counts: Counts::of(pool.cidr, blocks.iter().map(|(_, block)| *block), &reserved),
                blocks: blocks
                    .iter()
                    .map(|(cidr, block)| BlockUsage::of(*cidr, block, &reserved))
                    .collect(),
            }
        });
        let in_no_pool = |cidr: &IpNetwork| !inventory.pools.values().any(|pool| is_within(*cidr, pool.cidr));
        let outside = inventory.blocks.iter().filter(|(cidr, _)| in_no_pool(cidr));
        Self {
            pools: pools.collect(),
            blocks_outside_pools: outside
                .map(|(cidr, block)| BlockUsage::of(*cidr, block, &reserved))
                .collect(),
        }
    }

    pub(super) fn without_blocks(mut self) -> Self {
        self.pools.iter_mut().for_each(|pool| pool.blocks.clear());
        self.blocks_outside_pools.clear();
        self
    }
}

impl BlockUsage {
    fn of(cidr: IpNetwork, block: &AllocationBlock, reserved: &[IpNetwork]) -> Self {
        Self {
            cidr: cidr.to_string(),
            owner: block.owner().map(str::to_owned),
            counts: Counts::of(cidr, [block].into_iter(), reserved),
        }
    }
}

impl Counts {
    /// The addresses of `cidr`, of which those in `blocks` may be allocated. No two of `reserved` overlap.
    pub(super) fn of<'a>(
        cidr: IpNetwork,
        blocks: impl Iterator<Item = &'a AllocationBlock>,
        reserved: &[IpNetwork],
    ) -> Self {
        let mut counts = Self {
            total: size(cidr),
            ..Self::default()
        };
        for range in reserved {
            if is_within(*range, cidr) {
                counts.reserved = counts.reserved.saturating_add(size(*range));
            } else if is_within(cidr, *range) {
                counts.reserved = counts.total;
            }
        }
        for allocation in blocks.flat_map(AllocationBlock::allocations) {
            if allocation.attribute.is_resting() {
                counts.resting += 1;
            } else {
                counts.in_use += 1;
            }
            if reserved.iter().any(|range| range.contains(allocation.address)) {
                counts.reserved = counts.reserved.saturating_sub(1);
            }
        }
        let not_free = counts
            .in_use
            .saturating_add(counts.resting)
            .saturating_add(counts.reserved);
        counts.free = counts.total.saturating_sub(not_free);
        counts
    }

    fn cells(&self) -> [String; 5] {
        [self.total, self.in_use, self.resting, self.reserved, self.free].map(|count| count.to_string())
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = Vec::new();
        let block_row = |block: &BlockUsage| {
            let owner = block.owner.clone().unwrap_or_else(|| "nobody".to_owned());
            let mut row = vec![format!("  block of {owner}"), block.cidr.clone()];
            row.extend(block.counts.cells());
            row
        };
        for pool in &self.pools {
            let disabled = if pool.disabled { " (disabled)" } else { "" };
            let mut row = vec![format!("{}{disabled}", pool.name), pool.cidr.clone()];
            row.extend(pool.counts.cells());
            rows.push(row);
            rows.extend(pool.blocks.iter().map(block_row));
        }
        if !self.blocks_outside_pools.is_empty() {
            rows.push(vec!["(in no pool)".to_owned()]);
            rows.extend(self.blocks_outside_pools.iter().map(block_row));
        }
        let titles = &["POOL", "CIDR", "TOTAL", "IN USE", "RESTING", "RESERVED", "FREE"];
        write!(f, "{}", Table { titles, rows })
    }
}

/// Those that lie in no other.
fn outermost(ranges: &[IpNetwork]) -> Vec<IpNetwork> {
    let mut sorted: Vec<IpNetwork> = ranges
        .iter()
        .filter_map(|range| IpNetwork::new(range.network(), range.prefix()).ok())
        .collect();
    // In ascending order a range comes after all that contain it.
    sorted.sort();
    let mut outermost: Vec<IpNetwork> = Vec::new();
    for range in sorted {
        if !outermost.last().is_some_and(|outer| is_within(range, *outer)) {
            outermost.push(range);
        }
    }
    outermost
}

fn is_within(inner: IpNetwork, outer: IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.ip())
}

fn size(cidr: IpNetwork) -> u128 {
    let width = if cidr.is_ipv4() { 32 } else { 128 };
    let bits = u32::from(cidr.prefix()).abs_diff(width);
    1u128.checked_shl(bits).unwrap_or(u128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_addresses_count_once_however_often_they_are_reserved() {
        let cidr = |text: &str| text.parse::<IpNetwork>().unwrap();
        let reserved = outermost(&[
            cidr("10.0.0.8/30"),
            cidr("10.0.0.9/32"),
            cidr("10.0.0.8/30"),
            cidr("10.0.1.77/24"),
        ]);
        assert_eq!(reserved, [cidr("10.0.0.8/30"), cidr("10.0.1.0/24")]);
        let counts = Counts::of(cidr("10.0.0.0/28"), std::iter::empty(), &reserved);
        assert_eq!((counts.total, counts.reserved, counts.free), (16, 4, 12));
        let counts = Counts::of(cidr("10.0.1.16/28"), std::iter::empty(), &reserved);
        assert_eq!((counts.total, counts.reserved, counts.free), (16, 16, 0));
    }

    #[test]
    fn the_largest_pools_have_a_size() {
        for (cidr, expected) in [
            ("::/0", u128::MAX),
            ("fd00::/48", 1 << 80),
            ("0.0.0.0/0", 1 << 32),
            ("10.0.0.1/32", 1),
        ] {
            assert_eq!(size(cidr.parse().unwrap()), expected, "{cidr}");
        }
    }
}
