//! Routes of ours as last seen with the nexthop objects that they refer to, and the gate that holds changes and deletions back until
//! their source is in sync.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::Op;
use super::connections::host;
use super::links::LinksChanged;
use super::nexthops::{Assignment, Nexthops, in_groups};
use crate::delta::{Change, delta};
use crate::desired::{Route, RouteKey, RouteOrigin, RoutePath};
use crate::kernel::{Kernel, KernelError, NexthopChange, ObservedRoute, RouteChange};
use crate::model::InSync;

pub(super) struct Routes {
    known: BTreeMap<RouteKey, ObservedRoute>,
    nexthops: Nexthops,
    /// Of both: with an object go the routes that refer to it.
    dirty: bool,
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            nexthops: Nexthops::default(),
            dirty: true,
        }
    }
}

impl Routes {
    pub(super) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// The kernel removes routes through a link that goes away or down, for IPv4 without a word. Routes to
    /// workloads are struck from what is known, and their addresses returned; where an uplink changed, everything is read
    /// back.
    pub(super) fn links_changed(&mut self, changed: &LinksChanged) -> Vec<IpAddr> {
        self.dirty |= changed.uplinks;
        let mut gone = Vec::new();
        self.known.retain(|key, route| match &route.path {
            Some(RoutePath::Onlink { interface, .. }) => !changed.names.contains(interface),
            Some(RoutePath::Link { interface }) if changed.names.contains(interface) => {
                gone.extend(host(key.destination));
                false
            }
            _ => true,
        });
        gone
    }

    pub(super) fn difference(
        &mut self,
        kernel: &mut impl Kernel,
        desired: &BTreeMap<RouteKey, Route>,
        in_sync: InSync,
    ) -> Result<Vec<Op>, KernelError> {
        if self.dirty {
            self.nexthops.read_back(kernel)?;
            self.known = kernel.routes()?;
            self.dirty = false;
        }
        let assignment = self.nexthops.assign(desired, &self.known, in_sync);
        let mut ops = changes(desired, &self.known, &assignment, in_sync);
        let staying = self.referred_without(&ops);
        ops.extend(self.nexthops.difference(&assignment, &staying, in_sync));
        Ok(ops)
    }

    /// As [`Self::difference`], of the routes to some addresses, without reading back.
    pub(super) fn difference_to(
        &self,
        addresses: &BTreeSet<IpAddr>,
        desired: &BTreeMap<RouteKey, Route>,
        in_sync: InSync,
    ) -> Vec<Op> {
        let keys = addresses
            .iter()
            .map(|address| RouteKey::main(IpNetwork::from(*address)));
        let there: BTreeMap<RouteKey, ObservedRoute> = keys
            .filter_map(|key| self.known.get_key_value(&key))
            .map(|(key, route)| (key.clone(), route.clone()))
            .collect();
        changes(desired, &there, &Assignment::default(), in_sync)
    }

    /// Groups that routes refer to, without the routes that leave them.
    fn referred_without(&self, leaving: &[Op]) -> BTreeSet<u32> {
        if self.nexthops.is_empty() {
            return BTreeSet::new();
        }
        let routes = leaving.iter().filter_map(Op::as_route);
        let leaving: BTreeSet<&RouteKey> = routes.map(Change::key).collect();
        in_groups(&self.known)
            .filter(|(key, _)| !leaving.contains(key))
            .map(|(_, id)| id)
            .collect()
    }

    pub(super) fn carry_out_nexthops(
        &mut self,
        kernel: &mut impl Kernel,
        changes: &[NexthopChange],
    ) -> Vec<Result<(), KernelError>> {
        if changes.is_empty() {
            return Vec::new();
        }
        let referred = self.referred_without(&[]);
        let (results, is_in_doubt) = self.nexthops.carry_out(kernel, changes, &referred);
        self.dirty |= is_in_doubt;
        results
    }

    pub(super) fn carry_out(
        &mut self,
        kernel: &mut impl Kernel,
        changes: &[&RouteChange],
    ) -> Vec<Result<(), KernelError>> {
        if changes.is_empty() {
            return Vec::new();
        }
        let mut results = kernel.change_routes(changes);
        let mut made = Vec::new();
        for (change, result) in changes.iter().zip(&mut results) {
            if let (Change::Delete { .. }, Err(error)) = (change, &*result)
                && error.errno() == Some(libc::ESRCH)
            {
                // Gone already: somebody else, or the kernel with its link, was faster.
                *result = Ok(());
            }
            match (change, &*result) {
                (Change::Create { key, value } | Change::Replace { key, to: value, .. }, Ok(())) => {
                    made.push((key.clone(), ObservedRoute::from(value)));
                }
                (Change::Delete { key, .. }, Ok(())) => self.forget(key),
                (_, Err(error)) => self.dirty |= error.leaves_doubt(),
            }
        }
        self.remember(made);
        results
    }

    /// They come in ascending order: of a full table the map is made at once.
    fn remember(&mut self, made: Vec<(RouteKey, ObservedRoute)>) {
        if made.len() > self.known.len() {
            self.known.append(&mut made.into_iter().collect());
        } else {
            self.known.extend(made);
        }
    }

    /// Routes go in descending order: of a full table each is the last one.
    fn forget(&mut self, key: &RouteKey) {
        if self.known.last_key_value().is_some_and(|(last, _)| last == key) {
            self.known.pop_last();
        } else {
            self.known.remove(key);
        }
    }
}

fn changes(
    desired: &BTreeMap<RouteKey, Route>,
    there: &BTreeMap<RouteKey, ObservedRoute>,
    assignment: &Assignment,
    in_sync: InSync,
) -> Vec<Op> {
    delta(desired, there, |wanted, found| assignment.is(wanted, found))
        .filter(|change| may_be_carried_out(change, in_sync))
        .map(|change| match change {
            Change::Create { key, value } => Change::Create {
                key,
                value: assignment.realised(value),
            },
            Change::Replace { key, from, to } => Change::Replace {
                key,
                from,
                to: assignment.realised(to),
            },
            Change::Delete { .. } => change,
        })
        .map(Op::Route)
        .collect()
}

/// Creations always; changes and deletions only when every source they take a route from is in sync.
fn may_be_carried_out(change: &RouteChange, in_sync: InSync) -> bool {
    let is_in_sync = |origin: RouteOrigin| match origin {
        RouteOrigin::Local => in_sync.datastore,
        RouteOrigin::Bgp => in_sync.bgp,
        RouteOrigin::Cluster => in_sync.datastore && in_sync.cluster,
    };
    match change {
        Change::Create { .. } => true,
        Change::Replace { from, to, .. } => is_in_sync(from.origin) && is_in_sync(to.origin),
        Change::Delete { from, .. } => is_in_sync(from.origin),
    }
}
