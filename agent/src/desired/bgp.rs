//! What is announced: own blocks, addresses that a workload here borrowed from another node's block, and addresses of one that
//! has migrated here a moment ago, with their priority.
//!
//! Only confirmed blocks are in the model, so a pending affinity is never announced. The most specific pool that
//! covers a prefix decides whether it may leave (`disableBGPExport`); a block outside all pools is announced, since
//! its pool was deleted while workloads still use it.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use crate::desired::ROUTE_PRIORITY;
use crate::desired::routes::{self, contains};
use crate::model::{Model, Pool};

/// What is said of a prefix that is announced, for policies that ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The link of the workload, of a single address.
    pub interface: Option<String>,
    /// Metric of the route here.
    pub priority: u32,
}

pub(super) fn announcements(model: &Model) -> BTreeMap<IpNetwork, Announcement> {
    let announcement = |interface: Option<&str>, priority| Announcement {
        interface: interface.map(str::to_owned),
        priority,
    };
    let blocks = model
        .own_blocks
        .iter()
        .filter(|block| covering_pool(model, **block).is_none_or(|pool| !pool.disable_bgp_export))
        .map(|block| (*block, announcement(None, ROUTE_PRIORITY)));
    let is_own = |address: IpNetwork| model.own_blocks.iter().any(|block| contains(*block, address));
    let single = model
        .endpoints
        .values()
        .filter_map(|endpoint| Some((endpoint, routes::priority(model, endpoint)?)))
        .flat_map(|(endpoint, priority)| {
            let addresses = endpoint.addresses.iter();
            addresses.map(move |address| (IpNetwork::from(*address), endpoint, priority))
        })
        // This first: it is cheap, and of most workloads nothing is left.
        .filter(|(address, _, priority)| *priority != ROUTE_PRIORITY || !is_own(*address))
        .filter(|(_, endpoint, _)| model.links.contains(&endpoint.host_interface))
        .filter(|(address, ..)| covering_pool(model, *address).is_some_and(|pool| !pool.disable_bgp_export))
        .map(|(address, endpoint, priority)| {
            (address, announcement(Some(&endpoint.host_interface), priority))
        });
    blocks.chain(single).collect()
}

/// The most specific pool that a prefix lies in.
pub(super) fn covering_pool(model: &Model, prefix: IpNetwork) -> Option<&Pool> {
    model
        .pools
        .values()
        .filter(|pool| contains(pool.cidr, prefix))
        .max_by_key(|pool| pool.cidr.prefix())
}
