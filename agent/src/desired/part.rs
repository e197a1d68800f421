//! The part of what is desired that follows from some workloads: all that a turn has to look at when only pods came or went,
//! so that it costs the same beside ten others and beside a thousand.
//!
//! Invariant: within its scope it is what [`compute`](super::compute) says. Where that cannot be told from these workloads
//! alone (two claim the same port or address, somebody else has a route to it, or one is a BGP peer), there is no part.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{
    HostLink, NeighborKey, NeighborTarget, ProxyNeighbor, Route, RouteKey, Workload, links, neighbors,
    proxy_neighbors, routes, sysctl, workloads,
};
use crate::model::{Endpoint, EndpointId, Model};

/// What is desired of some workloads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// What it is about. What is in the scope and not desired is not wanted.
    pub scope: Scope,
    /// Host ends.
    pub links: BTreeMap<String, HostLink>,
    /// Neighbours on the host ends.
    pub neighbors: BTreeMap<NeighborKey, NeighborTarget>,
    /// Routes to the addresses.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Addresses that the node answers for on its uplinks.
    pub proxy_neighbors: BTreeSet<ProxyNeighbor>,
    /// Kernel parameters: path below `/proc/sys` to value.
    pub sysctls: BTreeMap<String, String>,
    /// What they may send, by host interface.
    pub workloads: BTreeMap<String, Workload>,
}

/// The traces of some workloads, as they were and as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Host interfaces.
    pub interfaces: BTreeSet<String>,
    /// Addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// What is desired of what `touched` names: workloads as they were before a change of the model, and as they are.
/// `None`: look at everything.
#[must_use]
pub fn part(model: &Model, touched: &[Endpoint]) -> Option<Part> {
    let interfaces: BTreeSet<String> = touched
        .iter()
        .map(|endpoint| endpoint.host_interface.clone())
        .collect();
    let there: BTreeMap<&EndpointId, &Endpoint> = interfaces
        .iter()
        .flat_map(|interface| model.endpoints.on_interface(interface))
        .collect();
    let concerned = || touched.iter().chain(there.values().copied());
    let addresses: BTreeSet<IpAddr> = concerned()
        .flat_map(|endpoint| &endpoint.addresses)
        .copied()
        .collect();
    let is_shared = |address: &IpAddr| {
        let mut with_address = model.endpoints.with_address(*address);
        with_address.any(|(_, endpoint)| !interfaces.contains(&endpoint.host_interface))
    };
    let is_plain = |endpoint: &Endpoint| {
        endpoint.host_ports.is_empty()
            && endpoint.allowed_sources.is_empty()
            && !model.workload_peering.contains_key(&endpoint.host_interface)
            && model.migrations.phase(&endpoint.host_interface).is_none()
    };
    if !concerned().all(is_plain)
        || addresses.iter().any(is_shared)
        || addresses
            .iter()
            .any(|address| routes::may_lead_elsewhere(model, *address))
    {
        return None;
    }
    let scope = Scope {
        interfaces,
        addresses,
    };
    // In the order of the whole: of two that claim the same the last one has it.
    let there = || there.values().copied();
    let proxy_neighbors = proxy_neighbors::of_workloads(model, there());
    let mut sysctls = sysctl::of_workloads(model, there());
    sysctls.extend(sysctl::of_proxy_neighbors(&proxy_neighbors));
    if there().any(|endpoint| endpoint.addresses.iter().any(IpAddr::is_ipv6)) {
        sysctls.insert(sysctl::FORWARDING_IPV6.to_owned(), "1".to_owned());
    }
    Some(Part {
        links: links::links(model, there()),
        neighbors: neighbors::of_workloads(model, there()).collect(),
        routes: routes::of_workloads(model, there()).collect(),
        proxy_neighbors,
        sysctls,
        workloads: workloads::workloads(model, there()),
        scope,
    })
}
