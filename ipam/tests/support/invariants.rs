//! What must be true of the stored keys after every transaction, whoever made it.

use std::collections::BTreeMap;

use calidris_ipam::{Affinity, AllocationBlock, Handle, keys};

/// Everything that is wrong; empty if nothing is.
pub(crate) fn violations(kvs: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut in_blocks: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut in_handles: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    let mut seen = BTreeMap::new();
    for (key, value) in kvs {
        if let Some(cidr) = keys::parse_block(key) {
            let block = match AllocationBlock::parse(key, value) {
                Ok(block) => block,
                Err(error) => {
                    wrong.push(error.to_string());
                    continue;
                }
            };
            if let Some(host) = block.host() {
                owners.insert(cidr.to_string(), host.to_owned());
            }
            for allocation in block.allocations() {
                let handle = allocation.attribute.handle_id.clone().unwrap_or_default();
                if let Some(other) = seen.insert(allocation.address, handle.clone()) {
                    wrong.push(format!(
                        "{} has two owners, {other} and {handle}",
                        allocation.address
                    ));
                }
                if !allocation.attribute.is_resting() {
                    *in_blocks.entry((handle, cidr.to_string())).or_default() += 1;
                }
            }
        }
        if let Some(id) = key.strip_prefix(keys::HANDLES) {
            let handle = Handle::parse(key, value).unwrap();
            if handle.is_empty() {
                wrong.push(format!("handle {id} has no address"));
            }
            for cidr in handle.blocks() {
                in_handles.insert((id.to_owned(), cidr.to_string()), handle.count(cidr));
            }
        }
    }
    for (key, value) in kvs {
        if let Some((node, cidr)) = keys::parse_affinity(key)
            && Affinity::parse(key, value).unwrap().state.is_confirmed()
            && owners.remove(&cidr.to_string()).as_deref() != Some(node)
        {
            wrong.push(format!(
                "node {node} has a confirmed affinity to {cidr}, which is not its block"
            ));
        }
    }
    wrong.extend(
        owners
            .iter()
            .map(|(cidr, node)| format!("block {cidr} of {node} has no confirmed affinity")),
    );
    if in_blocks != in_handles {
        wrong.push(format!("blocks say {in_blocks:?}, handles say {in_handles:?}"));
    }
    wrong
}
