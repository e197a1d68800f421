//! Nexthop objects of ours as last seen, and which group each set of gateways is to have.
//!
//! Routes that BGP learned through several gateways refer to a group, so that a gateway that comes or goes is one write however many
//! routes there are. A group is no more than a number for routes that change together: it becomes what most of its routes
//! want. A set of gateways thus has no number for life, and a fresh process goes on with the groups that it finds.
//!
//! Invariants:
//! - A route through one gateway that is in no group needs none: it stays, or is made, as it always was.
//! - Before BGP is in sync, groups are made only, never changed or deleted. Later, none is deleted that a route of ours will
//!   refer to after this turn.
//! - A kernel without nexthop objects (before Linux 5.3) gets multipath routes, as do routes for which there is no number left and those
//!   with a gateway on a link that is not known.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use tracing::info;

use super::Op;
use crate::delta::{Change, delta};
use crate::desired::{Gateway, Gateways, Route, RouteKey, RouteOrigin, RoutePath};
use crate::kernel::{Kernel, KernelError, Nexthop, NexthopChange, ObservedRoute, SeenNexthops};
use crate::model::InSync;
use crate::ours::NEXTHOP_IDS;

#[derive(Default)]
pub(super) struct Nexthops {
    seen: SeenNexthops,
    support: Support,
}

/// Whether the kernel has nexthop objects.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Support {
    #[default]
    Unknown,
    There,
    Missing,
}

/// Which groups there are to be, and of what.
#[derive(Default)]
pub(super) struct Assignment {
    /// What each group stands for.
    groups: BTreeMap<u32, Gateways>,
    /// The group of each set of gateways, the first where there are several.
    ids: BTreeMap<Gateways, u32>,
    /// Groups and their gateways as the kernel is to have them.
    objects: BTreeMap<u32, Nexthop>,
}

impl Nexthops {
    pub(super) fn read_back(&mut self, kernel: &mut impl Kernel) -> Result<(), KernelError> {
        if self.support == Support::Missing {
            return Ok(());
        }
        match kernel.nexthops() {
            Ok(seen) => {
                self.seen = seen;
                self.support = Support::There;
                Ok(())
            }
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => {
                info!(
                    "the kernel has no nexthop objects; routes through several gateways become multipath routes"
                );
                self.support = Support::Missing;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Gives every set of gateways that wants one a group: one that is there, else a new one.
    pub(super) fn assign(
        &self,
        desired: &BTreeMap<RouteKey, Route>,
        there: &BTreeMap<RouteKey, ObservedRoute>,
        in_sync: InSync,
    ) -> Assignment {
        let mut assignment = Assignment::default();
        if self.support != Support::There {
            return assignment;
        }
        let mut wanted: BTreeSet<&Gateways> = BTreeSet::new();
        for gateways in desired.values().filter_map(groupable) {
            if gateways.len() > 1 {
                wanted.insert(gateways);
            }
        }
        let mut numbers = Numbers::of(&self.seen);
        let mut votes = if in_sync.bgp {
            self.votes(desired, there)
        } else {
            BTreeMap::new()
        };
        let mut without_routes = Vec::new();
        for id in self.groups() {
            let content = self.content(id);
            let elected = votes.remove(&id).and_then(|votes| elect(votes, content.as_ref()));
            match (elected, content) {
                (Some(elected), _) => assignment.set(id, elected, &mut numbers),
                (None, Some(content)) if !in_sync.bgp => assignment.set(id, content, &mut numbers),
                (None, Some(content)) => without_routes.push((id, content)),
                (None, None) => {}
            }
        }
        for (id, content) in without_routes {
            if wanted.contains(&content) && !assignment.ids.contains_key(&content) {
                assignment.set(id, content, &mut numbers);
            }
        }
        for gateways in wanted {
            if !assignment.ids.contains_key(gateways)
                && let Some(id) = numbers.fresh()
            {
                assignment.set(id, Arc::clone(gateways), &mut numbers);
            }
        }
        assignment
    }

    /// What is to be done so that there are these groups. `referred` are groups that routes of ours refer to now and will after
    /// this turn.
    pub(super) fn difference(
        &self,
        assignment: &Assignment,
        referred: &BTreeSet<u32>,
        in_sync: InSync,
    ) -> Vec<Op> {
        // What the others are made of is in the assignment.
        let unchanged = referred.iter().filter(|id| !assignment.groups.contains_key(id));
        let staying = self.with_members(unchanged.copied());
        let may_be = |change: &NexthopChange| match change {
            Change::Create { .. } => true,
            Change::Replace { .. } => in_sync.bgp,
            Change::Delete { key, .. } => in_sync.bgp && !staying.contains(key),
        };
        delta(&assignment.objects, &self.seen.ours, |wanted, found| {
            wanted == found
        })
        .filter(may_be)
        .map(Op::Nexthop)
        .collect()
    }

    /// Carries changes out and says whether the kernel is to be looked at again. `referred` are groups that routes of ours refer to:
    /// they and their members are not deleted.
    pub(super) fn carry_out(
        &mut self,
        kernel: &mut impl Kernel,
        changes: &[NexthopChange],
        referred: &BTreeSet<u32>,
    ) -> (Vec<Result<(), KernelError>>, bool) {
        // As they are now, a moment after other changes: what could not be replaced still has its members.
        let held = self.with_members(referred.iter().copied());
        let is_held =
            |change: &NexthopChange| matches!(change, Change::Delete { key, .. } if held.contains(key));
        let sent: Vec<NexthopChange> = changes
            .iter()
            .filter(|change| !is_held(change))
            .cloned()
            .collect();
        let mut answers = kernel.change_nexthops(&sent).into_iter();
        let mut is_in_doubt = false;
        let results = changes
            .iter()
            .map(|change| {
                let id = *change.key();
                let result = if is_held(change) {
                    Err(KernelError::StillReferredTo { id })
                } else {
                    answers.next().unwrap_or_else(|| Err(unanswered(change)))
                };
                match (change, result) {
                    (Change::Create { value, .. } | Change::Replace { to: value, .. }, Ok(())) => {
                        self.seen.ours.insert(id, value.clone());
                        Ok(())
                    }
                    (Change::Delete { .. }, Ok(())) => {
                        is_in_doubt |= self.forget(id);
                        Ok(())
                    }
                    // Gone already: somebody else, or the kernel with its link, was faster.
                    (Change::Delete { .. }, Err(error)) if error.errno() == Some(libc::ENOENT) => {
                        is_in_doubt |= self.forget(id);
                        Ok(())
                    }
                    (_, Err(error)) => {
                        is_in_doubt |= error.leaves_doubt();
                        Err(error)
                    }
                }
            })
            .collect();
        (results, is_in_doubt)
    }

    /// These groups, and what they are made of now.
    fn with_members(&self, groups: impl Iterator<Item = u32>) -> BTreeSet<u32> {
        let mut all = BTreeSet::new();
        for id in groups {
            all.insert(id);
            if let Some(Nexthop::Group(members)) = self.seen.ours.get(&id) {
                all.extend(members);
            }
        }
        all
    }

    /// Whether a group that is known loses a member with it.
    fn forget(&mut self, id: u32) -> bool {
        self.seen.ours.remove(&id);
        let mut known = self.seen.ours.values();
        known.any(|nexthop| matches!(nexthop, Nexthop::Group(members) if members.contains(&id)))
    }

    /// Whether there is none of ours.
    pub(super) fn is_empty(&self) -> bool {
        self.seen.ours.is_empty()
    }

    fn groups(&self) -> impl Iterator<Item = u32> {
        let ours = self.seen.ours.iter();
        ours.filter(|(_, nexthop)| matches!(nexthop, Nexthop::Group(_)))
            .map(|(id, _)| *id)
    }

    /// What a group stands for now; `None` if it has a member that is not ours.
    fn content(&self, group: u32) -> Option<Gateways> {
        let Some(Nexthop::Group(members)) = self.seen.ours.get(&group) else {
            return None;
        };
        let gateway = |id: &u32| match self.seen.ours.get(id) {
            Some(Nexthop::Gateway { address, interface }) => Some(Gateway {
                address: *address,
                interface: Some(interface.clone()),
            }),
            _ => None,
        };
        let content: Option<BTreeSet<Gateway>> = members.iter().map(gateway).collect();
        content.map(Arc::new)
    }

    /// How many routes of each group want what.
    fn votes<'a>(
        &self,
        desired: &'a BTreeMap<RouteKey, Route>,
        there: &BTreeMap<RouteKey, ObservedRoute>,
    ) -> BTreeMap<u32, BTreeMap<&'a Gateways, usize>> {
        let mut votes: BTreeMap<u32, BTreeMap<&Gateways, usize>> = BTreeMap::new();
        if self.is_empty() {
            return votes;
        }
        for (key, id) in in_groups(there) {
            if let Some(gateways) = desired.get(key).and_then(groupable) {
                *votes.entry(id).or_default().entry(gateways).or_default() += 1;
            }
        }
        votes
    }
}

impl Assignment {
    /// The group stands for these gateways; or for nothing, where there is no number left for one of them.
    fn set(&mut self, id: u32, gateways: Gateways, numbers: &mut Numbers) {
        let numbered: Option<BTreeMap<u32, Nexthop>> = gateways
            .iter()
            .map(|gateway| Some((numbers.of_gateway(gateway)?, object(gateway)?)))
            .collect();
        let Some(numbered) = numbered else {
            return;
        };
        let members = numbered.keys().copied().collect();
        self.objects.extend(numbered);
        self.objects.insert(id, Nexthop::Group(members));
        self.ids.entry(Arc::clone(&gateways)).or_insert(id);
        self.groups.insert(id, gateways);
    }

    /// Whether a route is as wanted.
    pub(super) fn is(&self, wanted: &Route, found: &ObservedRoute) -> bool {
        match (&wanted.path, &found.path) {
            (RoutePath::Via { gateways }, Some(RoutePath::Group { id })) => {
                wanted.origin == found.origin && self.groups.get(id) == Some(gateways)
            }
            (RoutePath::Via { .. }, Some(RoutePath::Via { .. })) => {
                self.group_of(wanted).is_none() && found.is(wanted)
            }
            _ => found.is(wanted),
        }
    }

    /// Makes the route as the kernel is to have it.
    pub(super) fn realise(&self, route: &mut Route) {
        if let Some(id) = self.group_of(route) {
            route.path = RoutePath::Group { id };
        }
    }

    /// The group that a route is to refer to when it is made.
    fn group_of(&self, route: &Route) -> Option<u32> {
        let gateways = groupable(route).filter(|gateways| gateways.len() > 1)?;
        self.ids.get(gateways).copied()
    }
}

/// Numbers of gateways, those that are there and new ones.
struct Numbers {
    gateways: BTreeMap<Gateway, u32>,
    occupied: BTreeSet<u32>,
    /// Those that were not looked at yet.
    rest: RangeInclusive<u32>,
}

impl Numbers {
    fn of(seen: &SeenNexthops) -> Self {
        let mut gateways = BTreeMap::new();
        for (id, nexthop) in &seen.ours {
            if let Nexthop::Gateway { address, interface } = nexthop {
                let gateway = Gateway {
                    address: *address,
                    interface: Some(interface.clone()),
                };
                gateways.entry(gateway).or_insert(*id);
            }
        }
        Self {
            gateways,
            occupied: seen.ours.keys().chain(&seen.taken).copied().collect(),
            rest: NEXTHOP_IDS,
        }
    }

    /// The lowest number that nobody has and that was not given out here. All of them cost one walk of the range.
    fn fresh(&mut self) -> Option<u32> {
        let occupied = &self.occupied;
        self.rest.find(|id| !occupied.contains(id))
    }

    fn of_gateway(&mut self, gateway: &Gateway) -> Option<u32> {
        if let Some(id) = self.gateways.get(gateway) {
            return Some(*id);
        }
        let id = self.fresh()?;
        self.gateways.insert(gateway.clone(), id);
        Some(id)
    }
}

fn unanswered(change: &NexthopChange) -> KernelError {
    KernelError::Malformed {
        action: format!("change a nexthop object: {change}"),
        reason: "no answer".to_owned(),
    }
}

/// A gateway as an object; `None` without its link.
fn object(gateway: &Gateway) -> Option<Nexthop> {
    Some(Nexthop::Gateway {
        address: gateway.address,
        interface: gateway.interface.clone()?,
    })
}

/// The gateways of a route that may refer to a group.
fn groupable(route: &Route) -> Option<&Gateways> {
    match &route.path {
        RoutePath::Via { gateways } if route.origin == RouteOrigin::Bgp => {
            let mut interfaces = gateways.iter().map(|gateway| &gateway.interface);
            interfaces.all(Option::is_some).then_some(gateways)
        }
        _ => None,
    }
}

/// The routes that refer to a group, and which.
pub(super) fn in_groups(
    routes: &BTreeMap<RouteKey, ObservedRoute>,
) -> impl Iterator<Item = (&RouteKey, u32)> {
    routes.iter().filter_map(|(key, route)| match route.path {
        Some(RoutePath::Group { id }) => Some((key, id)),
        _ => None,
    })
}

/// What most routes of a group want. As many for one as for another: what it is now, else the first.
fn elect(votes: BTreeMap<&Gateways, usize>, now: Option<&Gateways>) -> Option<Gateways> {
    let ranked = votes.into_iter().rev();
    ranked
        .max_by_key(|(gateways, routes)| (*routes, Some(*gateways) == now))
        .map(|(gateways, _)| Arc::clone(gateways))
}
