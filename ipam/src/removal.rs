//! Removal of a node that is gone for good: what must be done so that nothing of it is left in the datastore.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use crate::block::Allocation;
use crate::inventory::Inventory;
use crate::plan::{Expect, ExtraDelete, ReleaseOnly, ReleaseRequest, RepairRequest};

/// Endpoints deleted together with a handle's addresses, at most.
const MAX_ENDPOINTS: usize = 32;

/// One step, one transaction (or few, for a handle with very many blocks).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemovalStep {
    /// Release the addresses of a handle, with the endpoints that have them.
    Release(ReleaseRequest),
    /// Something that prepares a release, or the return of a block.
    Repair(RepairRequest),
}

/// The steps that give back all addresses and blocks of `node` and delete its endpoints and its fence, in the order in
/// which they are to be done. Each stands for itself: after a failure a new plan goes on where this one stopped. Addresses of
/// other nodes' workloads in its blocks stay theirs; those that are to be kept for a workload are kept.
///
/// What the node may still have under way must be shut out ([`RepairRequest::ShutOut`]) before the inventory is read.
pub fn plan_node_removal(inventory: &Inventory, node: &str) -> Vec<RemovalStep> {
    let mut steps = Vec::new();
    let mut endpoints: BTreeSet<&String> = inventory
        .endpoints
        .iter()
        .filter_map(|(key, endpoint)| (endpoint.node == node).then_some(key))
        .collect();
    for (handle_id, allocations) in allocations_by_handle(inventory, node) {
        if handle_id.is_empty() {
            steps.extend(allocations.iter().map(free));
            continue;
        }
        steps.extend(recount_if_needed(inventory, &handle_id, &allocations).map(RemovalStep::Repair));
        let has = |key: &&String| {
            let addresses = inventory.endpoints.get(*key).map(|endpoint| &endpoint.addresses);
            let mut given = allocations.iter().map(|allocation| allocation.address);
            given.any(|address| addresses.is_some_and(|addresses| addresses.contains(&address)))
        };
        let its: Vec<&String> = endpoints
            .iter()
            .copied()
            .filter(has)
            .take(MAX_ENDPOINTS)
            .collect();
        endpoints.retain(|key| !its.contains(key));
        steps.push(RemovalStep::Release(ReleaseRequest {
            handle_id,
            only: allocations.iter().map(only).collect(),
            extra_deletes: its.iter().map(|key| extra_delete(inventory, key)).collect(),
            ..ReleaseRequest::default()
        }));
    }
    steps.extend(endpoints.into_iter().map(|key| {
        let ExtraDelete { key, expect } = extra_delete(inventory, key);
        RemovalStep::Repair(RepairRequest::DeleteEndpoint { key, expect })
    }));
    let blocks = inventory.blocks_of(node).into_iter();
    steps.extend(blocks.map(|block| {
        let node = node.to_owned();
        RemovalStep::Repair(RepairRequest::TakeBlock { node, block })
    }));
    if inventory.fences.contains(node) && !inventory.nodes.contains_key(node) {
        let node = node.to_owned();
        steps.push(RemovalStep::Repair(RepairRequest::ForgetFence { node }));
    }
    steps
}

/// What was allocated for workloads and tunnels of `node`, in whatever block; without a handle under the empty name.
fn allocations_by_handle(inventory: &Inventory, node: &str) -> BTreeMap<String, Vec<Allocation>> {
    let mut by_handle: BTreeMap<String, Vec<Allocation>> = BTreeMap::new();
    for allocation in inventory.blocks.values().flat_map(|block| block.allocations()) {
        let attribute = &allocation.attribute;
        if attribute.secondary.get("node").map(String::as_str) == Some(node) && !attribute.is_resting() {
            let handle_id = attribute.handle().unwrap_or_default().to_owned();
            by_handle.entry(handle_id).or_default().push(allocation);
        }
    }
    by_handle
}

/// A release finds its blocks through the handle: one that does not name them all is set right first.
fn recount_if_needed(
    inventory: &Inventory,
    handle_id: &str,
    allocations: &[Allocation],
) -> Option<RepairRequest> {
    let handle = inventory.handles.get(handle_id);
    let blocks: BTreeSet<IpNetwork> = allocations.iter().map(|allocation| allocation.block).collect();
    let named = |block: &IpNetwork| handle.is_some_and(|handle| handle.count(*block) > 0);
    (!blocks.iter().all(named)).then(|| RepairRequest::RecountHandle {
        handle_id: handle_id.to_owned(),
        blocks: blocks.into_iter().collect(),
    })
}

fn only(allocation: &Allocation) -> ReleaseOnly {
    ReleaseOnly {
        address: allocation.address,
        sequence_number: Some(allocation.sequence_number),
    }
}

fn free(allocation: &Allocation) -> RemovalStep {
    RemovalStep::Repair(RepairRequest::FreeAddress {
        block: allocation.block,
        address: allocation.address,
        sequence_number: allocation.sequence_number,
    })
}

fn extra_delete(inventory: &Inventory, key: &str) -> ExtraDelete {
    let revision = inventory
        .endpoints
        .get(key)
        .map_or(0, |endpoint| endpoint.mod_revision);
    ExtraDelete {
        key: key.to_owned(),
        expect: Expect::Unchanged(revision),
    }
}
