//! Handles: they must name exactly the blocks that hold their addresses, with their count.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use crate::handle::Handle;
use crate::keys;

use super::finding::Finding;
use super::{Facts, Findings};

/// Number of a handle's addresses by block.
type Counts = BTreeMap<IpNetwork, u64>;

impl Facts<'_> {
    /// Handles that are missing, empty or count wrongly.
    pub(super) fn handles(&self, findings: &mut Findings) {
        let mut in_blocks = self.counts();
        for (handle_id, handle) in &self.inventory.handles {
            let allocated = in_blocks.remove(handle_id.as_str()).unwrap_or_default();
            self.handle(handle_id, handle, &allocated, findings);
        }
        for (handle_id, allocated) in in_blocks {
            if !self.is_unreadable(&keys::handle(handle_id)) {
                findings.insert(Finding::MissingHandle {
                    handle_id: handle_id.to_owned(),
                    blocks: allocated.into_keys().collect(),
                });
            }
        }
    }

    fn handle(&self, handle_id: &str, handle: &Handle, allocated: &Counts, findings: &mut Findings) {
        let named: BTreeSet<IpNetwork> = handle.blocks().collect();
        let in_the_dark = |block: &IpNetwork| self.inventory.invalid_blocks.contains(block);
        if allocated.is_empty() && !named.iter().any(in_the_dark) {
            findings.insert(Finding::EmptyHandle {
                handle_id: handle_id.to_owned(),
            });
            return;
        }
        for block in named.iter().chain(allocated.keys()) {
            let (counted, has) = (handle.count(*block), allocated.get(block).copied().unwrap_or(0));
            if counted != has && !in_the_dark(block) {
                findings.insert(Finding::MiscountedHandle {
                    handle_id: handle_id.to_owned(),
                    block: *block,
                    counted,
                    allocated: has,
                });
            }
        }
    }

    fn counts(&self) -> BTreeMap<&str, Counts> {
        let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
        for (&cidr, block) in &self.inventory.blocks {
            for attribute in block.allocated_attributes() {
                if let Some(handle_id) = attribute.handle()
                    && !attribute.is_resting()
                    && !handle_id.is_empty()
                {
                    *counts.entry(handle_id).or_default().entry(cidr).or_default() += 1;
                }
            }
        }
        counts
    }
}
