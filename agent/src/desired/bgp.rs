//! What is announced: own blocks, and addresses that a workload here borrowed from another node's block.
//!
//! Only confirmed blocks are in the model, so a pending affinity is never announced. The most specific pool that
//! covers a prefix decides whether it may leave (`disableBGPExport`); a block outside all pools is announced, since
//! its pool was deleted while workloads still use it.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use crate::desired::routes::contains;
use crate::model::{Model, Pool};

pub(super) fn announcements(model: &Model) -> BTreeSet<IpNetwork> {
    let blocks = model
        .own_blocks
        .iter()
        .copied()
        .filter(|block| covering_pool(model, *block).is_none_or(|pool| !pool.disable_bgp_export));
    let borrowed = model
        .endpoints
        .values()
        .filter(|endpoint| model.links.contains(&endpoint.host_interface))
        .flat_map(|endpoint| endpoint.addresses.iter().copied().map(IpNetwork::from))
        .filter(|address| !model.own_blocks.iter().any(|block| contains(*block, *address)))
        .filter(|address| covering_pool(model, *address).is_some_and(|pool| !pool.disable_bgp_export));
    blocks.chain(borrowed).collect()
}

/// The most specific pool that a prefix lies in.
pub(super) fn covering_pool(model: &Model, prefix: IpNetwork) -> Option<&Pool> {
    model
        .pools
        .values()
        .filter(|pool| contains(pool.cidr, prefix))
        .max_by_key(|pool| pool.cidr.prefix())
}
