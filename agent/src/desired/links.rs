//! Host ends of the workloads: up, with the one MAC address that all of them have.

use std::collections::BTreeMap;

use crate::desired::HostLink;
use crate::model::{Endpoint, Model};
use crate::ours::HOST_MAC;

/// One entry a workload whose link exists. A link that is gone cannot be made again from here: the pod's namespace
/// is known during CNI ADD only.
pub(super) fn links<'a>(
    model: &Model,
    endpoints: impl Iterator<Item = &'a Endpoint>,
) -> BTreeMap<String, HostLink> {
    endpoints
        .filter(|endpoint| model.links.contains(&endpoint.host_interface))
        .map(|endpoint| (endpoint.host_interface.clone(), HostLink { mac: HOST_MAC }))
        .collect()
}
