//! Routes of ours as last seen with the nexthop objects that they refer to, and the gate that holds changes and deletions back until
//! their source is in sync.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::Op;
use super::connections::host;
use super::known_routes::KnownRoutes;
use super::links::LinksChanged;
use super::nexthops::{Assignment, Nexthops, in_groups};
use crate::delta::{Change, delta};
use crate::desired::{Desired, MAIN_TABLE, Route, RouteKey, RouteOrigin, RoutePath, Rule};
use crate::kernel::{Kernel, KernelError, NexthopChange, ObservedRoute, RouteChange};
use crate::model::InSync;

pub(super) struct Routes {
    known: KnownRoutes,
    nexthops: Nexthops,
    /// Routes of others that do what ones of ours would: nothing is left to do.
    stand_ins: BTreeMap<RouteKey, RoutePath>,
    /// Of both: with an object go the routes that refer to it.
    dirty: bool,
    /// What takes the place of routes that are to go: of the same destination, in another table or with another metric. Until it is
    /// there they stay.
    successors: BTreeMap<IpNetwork, RouteKey>,
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            known: KnownRoutes::default(),
            nexthops: Nexthops::default(),
            stand_ins: BTreeMap::new(),
            dirty: true,
            successors: BTreeMap::new(),
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
        for name in &changed.names {
            let routes = self.known.remove_on(name);
            let to_workloads = routes.filter(|(_, route)| matches!(route.path, Some(RoutePath::Link { .. })));
            gone.extend(to_workloads.filter_map(|(key, _)| host(key.destination)));
        }
        // Whether they are still there is seen when ours are made.
        self.stand_ins.retain(|_, path| match path {
            RoutePath::Link { interface } | RoutePath::Onlink { interface, .. } => {
                !changed.names.contains(interface)
            }
            _ => true,
        });
        gone
    }

    pub(super) fn difference(
        &mut self,
        kernel: &mut impl Kernel,
        Desired { routes, rules, .. }: &Desired,
        in_sync: InSync,
    ) -> Result<Vec<Op>, KernelError> {
        if self.dirty {
            self.nexthops.read_back(kernel)?;
            self.known = kernel.routes()?.into();
            self.stand_ins = stand_ins(kernel, routes, &self.known)?;
            self.dirty = false;
        }
        let assignment = self.nexthops.assign(routes, &self.known, in_sync);
        let mut ops = self.changes(routes, &self.known, &assignment, in_sync);
        self.successors = successors(&ops, routes, rules);
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
        self.changes(desired, &there, &Assignment::default(), in_sync)
    }

    fn changes(
        &self,
        desired: &BTreeMap<RouteKey, Route>,
        there: &BTreeMap<RouteKey, ObservedRoute>,
        assignment: &Assignment,
        in_sync: InSync,
    ) -> Vec<Op> {
        let is_done = |change: &RouteChange| matches!(change, Change::Create { key, value } if self.stand_ins.get(key) == Some(&value.path));
        // As many as there are more or less: a full table is long, and its changes are not moved once they are here.
        let mut ops = Vec::with_capacity(desired.len().abs_diff(there.len()));
        for mut change in delta(desired, there, |wanted, found| assignment.is(wanted, found)) {
            if !may_be_carried_out(&change, in_sync) || is_done(&change) {
                continue;
            }
            if let Change::Create { value: made, .. } | Change::Replace { to: made, .. } = &mut change {
                assignment.realise(made);
            }
            ops.push(Op::Route(change));
        }
        ops
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

    /// `is_looked_up` says of a family and a table whether the kernel looks there.
    pub(super) fn carry_out(
        &mut self,
        kernel: &mut impl Kernel,
        changes: &[&RouteChange],
        is_looked_up: impl Fn(bool, u32) -> bool,
    ) -> Vec<Result<(), KernelError>> {
        let (makes, deletions) =
            changes.split_at(changes.partition_point(|change| !matches!(change, Change::Delete { .. })));
        if makes.is_empty() {
            return self.delete(kernel, deletions, is_looked_up);
        }
        let mut results = self.make(kernel, makes);
        results.extend(self.delete(kernel, deletions, is_looked_up));
        results
    }

    fn make(&mut self, kernel: &mut impl Kernel, makes: &[&RouteChange]) -> Vec<Result<(), KernelError>> {
        let results = kernel.change_routes(makes);
        let mut made = Vec::with_capacity(makes.len());
        for (change, result) in makes.iter().zip(&results) {
            match (change, result) {
                (Change::Create { key, value } | Change::Replace { key, to: value, .. }, Ok(())) => {
                    made.push((key.clone(), ObservedRoute::from(value)));
                }
                (_, Err(error)) => self.dirty |= error.leaves_doubt(),
                (Change::Delete { .. }, Ok(())) => {}
            }
        }
        self.known.extend(made);
        results
    }

    fn delete(
        &mut self,
        kernel: &mut impl Kernel,
        deletions: &[&RouteChange],
        is_looked_up: impl Fn(bool, u32) -> bool,
    ) -> Vec<Result<(), KernelError>> {
        if deletions.is_empty() {
            return Vec::new();
        }
        if self.successors.is_empty() {
            let mut answers = kernel.change_routes(deletions);
            for (change, answer) in deletions.iter().zip(&mut answers) {
                self.note_deletion(change.key(), answer);
            }
            return answers;
        }
        let is_used = |key: &RouteKey| {
            self.known.contains_key(key) && is_looked_up(key.destination.is_ipv6(), key.table)
        };
        let is_held = |change: &RouteChange| {
            let successor = self.successors.get(&change.key().destination);
            successor.is_some_and(|successor| !is_used(successor))
        };
        let held: Vec<bool> = deletions.iter().map(|change| is_held(change)).collect();
        let sent: Vec<&RouteChange> = deletions
            .iter()
            .zip(&held)
            .filter(|(_, is_held)| !**is_held)
            .map(|(change, _)| *change)
            .collect();
        let mut answers = kernel.change_routes(&sent).into_iter();
        let answer = |(change, is_held): (&&RouteChange, bool)| {
            if is_held {
                let reason = "the route that takes its place is not there yet".to_owned();
                return Err(KernelError::Held { reason });
            }
            let mut answer = answers.next().unwrap_or(Ok(()));
            self.note_deletion(change.key(), &mut answer);
            answer
        };
        deletions.iter().zip(held).map(answer).collect()
    }

    /// Strikes a route that was deleted from what is known.
    fn note_deletion(&mut self, key: &RouteKey, answer: &mut Result<(), KernelError>) {
        if answer
            .as_ref()
            .is_err_and(|error| error.errno() == Some(libc::ESRCH))
        {
            // Gone already: somebody else, or the kernel with its link, was faster.
            *answer = Ok(());
        }
        match answer {
            Ok(()) => self.known.remove(key),
            Err(error) => self.dirty |= error.leaves_doubt(),
        }
    }

    /// Whether there are some of a family in a table, or may be.
    pub(super) fn may_have_some_in(&self, is_ipv6: bool, table: u32) -> bool {
        let mut keys = self.known.keys();
        self.dirty || keys.any(|key| key.table == table && key.destination.is_ipv6() == is_ipv6)
    }
}

/// Of what is missing, routes of others that lead the same way: after another network plugin, those of its pods are still there. What BGP
/// learned is not looked for: it may be a whole table.
fn stand_ins(
    kernel: &mut impl Kernel,
    desired: &BTreeMap<RouteKey, Route>,
    known: &BTreeMap<RouteKey, ObservedRoute>,
) -> Result<BTreeMap<RouteKey, RoutePath>, KernelError> {
    let wanted = desired
        .iter()
        .filter(|(_, route)| route.origin != RouteOrigin::Bgp);
    let missing: BTreeSet<RouteKey> = wanted
        .map(|(key, _)| key)
        .filter(|key| !known.contains_key(key))
        .cloned()
        .collect();
    if missing.is_empty() {
        return Ok(BTreeMap::new());
    }
    let found = kernel.foreign_routes(&missing)?;
    Ok(found
        .into_iter()
        .filter_map(|(key, route)| Some((key, route.path?)))
        .filter(|(key, path)| desired.get(key).is_some_and(|wanted| wanted.path == *path))
        .collect())
}

/// What takes the place of the routes that go.
fn successors(
    ops: &[Op],
    routes: &BTreeMap<RouteKey, Route>,
    rules: &BTreeSet<Rule>,
) -> BTreeMap<IpNetwork, RouteKey> {
    let tables: BTreeSet<u32> = rules.iter().filter_map(Rule::table).chain([MAIN_TABLE]).collect();
    let deleted = ops.iter().filter_map(|op| match op {
        Op::Route(Change::Delete { key, .. }) => Some(key.destination),
        _ => None,
    });
    let successor = |destination: IpNetwork| {
        let key = |table, priority| RouteKey {
            table,
            destination,
            priority,
        };
        let mut tables = tables.iter();
        tables.find_map(|table| routes.range(key(*table, 0)..=key(*table, u32::MAX)).next())
    };
    deleted
        .filter_map(|destination| Some((destination, successor(destination)?.0.clone())))
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
