//! The order in which operations are carried out: what others stand on is there before them, and goes after them.
//!
//! Invariant: a stage has operations of one kind, which keep the order that they came in.

use super::Op;
use crate::delta::Change;
use crate::desired::{Route, RoutePath};
use crate::kernel::{NeighborChange, Nexthop, NexthopChange, NftChange, ProxyNeighborChange, RouteChange};
use crate::ours;

/// Brings operations into the order in which they are carried out; those of a stage keep theirs.
pub(super) fn in_order(mut ops: Vec<Op>) -> Vec<Op> {
    ops.sort_by_key(Stage::of);
    ops
}

/// When an operation is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Links,
    Tunnels,
    Sysctls,
    Addresses,
    Neighbors,
    Rules,
    ProxyNeighborsGo,
    Gateways,
    Nexthops,
    NexthopGroups,
    Routes,
    ProxyNeighbors,
    NexthopGroupsGo,
    NexthopsGo,
    RulesGo,
    NeighborsGo,
    AddressesGo,
    TunnelsGo,
    Nft,
}

impl Stage {
    pub(super) fn of(op: &Op) -> Self {
        match op {
            Op::Link(_) => Self::Links,
            Op::Tunnel(change) if matches!(**change, Change::Delete { .. }) => Self::TunnelsGo,
            Op::Tunnel(_) => Self::Tunnels,
            Op::Sysctl(_) => Self::Sysctls,
            Op::Address(Change::Delete { .. }) => Self::AddressesGo,
            Op::Address(_) => Self::Addresses,
            Op::Neighbor(Change::Delete { .. }) => Self::NeighborsGo,
            Op::Neighbor(_) => Self::Neighbors,
            Op::ProxyNeighbor(Change::Delete { .. }) => Self::ProxyNeighborsGo,
            Op::ProxyNeighbor(_) => Self::ProxyNeighbors,
            Op::Rule(Change::Delete { .. }) => Self::RulesGo,
            Op::Rule(_) => Self::Rules,
            Op::Nexthop(Change::Delete {
                from: Nexthop::Group(_),
                ..
            }) => Self::NexthopGroupsGo,
            Op::Nexthop(Change::Delete { .. }) => Self::NexthopsGo,
            Op::Nexthop(
                Change::Create {
                    value: Nexthop::Group(_),
                    ..
                }
                | Change::Replace { .. },
            ) => Self::NexthopGroups,
            Op::Nexthop(_) => Self::Nexthops,
            Op::Route(Change::Create { value, .. } | Change::Replace { to: value, .. })
                if leads_to_gateway(value) =>
            {
                Self::Gateways
            }
            Op::Route(_) => Self::Routes,
            Op::Nft(_) => Self::Nft,
        }
    }
}

/// Whether a route leads to what other routes have as their gateway: another node's tunnel device.
fn leads_to_gateway(route: &Route) -> bool {
    matches!(&route.path, RoutePath::Link { interface } if ours::TUNNELS.contains(&interface.as_str()))
}

impl Op {
    pub(super) fn as_neighbor(&self) -> Option<&NeighborChange> {
        match self {
            Self::Neighbor(change) => Some(change),
            _ => None,
        }
    }

    pub(super) fn as_proxy_neighbor(&self) -> Option<&ProxyNeighborChange> {
        match self {
            Self::ProxyNeighbor(change) => Some(change),
            _ => None,
        }
    }

    pub(super) fn as_nexthop(&self) -> Option<&NexthopChange> {
        match self {
            Self::Nexthop(change) => Some(change),
            _ => None,
        }
    }

    pub(super) fn as_route(&self) -> Option<&RouteChange> {
        match self {
            Self::Route(change) => Some(change),
            _ => None,
        }
    }

    pub(super) fn as_nft(&self) -> Option<&NftChange> {
        match self {
            Self::Nft(change) => Some(change),
            _ => None,
        }
    }
}
