//! Blocks, their owners and pools; and nodes that are no more.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use crate::affinity::AffinityState;
use crate::keys;

use super::finding::Finding;
use super::{Facts, Findings};

impl Facts<'_> {
    /// Blocks that overlap, lie outside all pools, or lack their affinity.
    pub(super) fn blocks(&self, findings: &mut Findings) {
        // In ascending order a block comes after all that contain it; CIDRs nest or are apart.
        let mut around: Vec<IpNetwork> = Vec::new();
        for (&cidr, block) in &self.inventory.blocks {
            while around.last().is_some_and(|outer| !outer.contains(cidr.ip())) {
                around.pop();
            }
            if let Some(&outer) = around.last() {
                findings.insert(Finding::OverlappingBlocks {
                    block: outer,
                    other: cidr,
                });
            }
            around.push(cidr);
            if !self.is_in_a_pool(cidr) {
                findings.insert(Finding::BlockOutsidePools {
                    block: cidr,
                    owner: block.owner().map(str::to_owned),
                    allocated: block.allocations().count(),
                });
            }
            if let Some(node) = block.host()
                && !self.has_affinity(node, cidr)
            {
                findings.insert(Finding::BlockWithoutAffinity {
                    block: cidr,
                    node: node.to_owned(),
                });
            }
        }
    }

    /// Affinities whose block is missing or somebody else's, and those between two states.
    pub(super) fn affinities(&self, findings: &mut Findings) {
        for ((node, block), state) in &self.inventory.affinities {
            let (node, block) = (node.clone(), *block);
            if !state.is_confirmed() {
                let state = match state {
                    AffinityState::Pending => "pending",
                    AffinityState::PendingDeletion => "pendingDeletion",
                    AffinityState::Other(other) => other,
                    AffinityState::Confirmed | AffinityState::Unstated => continue,
                };
                let state = state.to_owned();
                findings.insert(Finding::UnfinishedAffinity { node, block, state });
                continue;
            }
            match self.inventory.blocks.get(&block) {
                None if self.inventory.invalid_blocks.contains(&block) => {}
                None => {
                    findings.insert(Finding::AffinityWithoutBlock { node, block });
                }
                Some(stored) if stored.host() == Some(&node) => {}
                Some(stored) => {
                    let owner = stored.owner().map(str::to_owned);
                    findings.insert(Finding::AffinityToForeignBlock { node, block, owner });
                }
            }
        }
    }

    /// What belongs to nodes that do not exist.
    pub(super) fn unknown_nodes(&self, findings: &mut Findings) {
        let mut remains: BTreeMap<&str, Remains> = BTreeMap::new();
        for (node, block) in self.inventory.affinities.keys() {
            remains.entry(node).or_default().blocks.insert(*block);
        }
        for (&cidr, block) in &self.inventory.blocks {
            if let Some(node) = block.host() {
                remains.entry(node).or_default().blocks.insert(cidr);
            }
            for attribute in block.allocated_attributes() {
                if let Some(node) = attribute.secondary.get("node")
                    && !attribute.is_resting()
                {
                    remains.entry(node).or_default().allocations += 1;
                }
            }
        }
        for endpoint in self.inventory.endpoints.values() {
            remains.entry(&endpoint.node).or_default().endpoints += 1;
        }
        let unknown = remains
            .into_iter()
            .filter(|(node, _)| !node.is_empty() && !self.is_known_node(node));
        findings.extend(unknown.map(|(node, remains)| Finding::UnknownNode {
            node: node.to_owned(),
            blocks: remains.blocks.into_iter().collect(),
            allocations: remains.allocations,
            endpoints: remains.endpoints,
        }));
    }

    fn has_affinity(&self, node: &str, block: IpNetwork) -> bool {
        let known = self.inventory.affinities.contains_key(&(node.to_owned(), block));
        // One that is there and cannot be read has a finding of its own.
        known || self.is_unreadable(&keys::affinity(node, block))
    }

    pub(super) fn is_unreadable(&self, key: &str) -> bool {
        self.inventory.unreadable.iter().any(|value| value.key == key)
    }
}

#[derive(Default)]
struct Remains {
    blocks: BTreeSet<IpNetwork>,
    allocations: usize,
    endpoints: usize,
}
