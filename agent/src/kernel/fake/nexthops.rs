//! Nexthop objects of the kernel in memory, by the real one's rules: a gateway needs its link up, a group its members; what goes is
//! taken out of groups, an empty group goes, and with a group go the routes that refer to it.

use super::{FakeKernel, no_link, refused};
use crate::delta::Change;
use crate::desired::{Gateway, RoutePath};
use crate::kernel::{KernelError, Nexthop, NexthopChange, ObservedRoute};

impl FakeKernel {
    /// A link loses its carrier or goes down: its gateways go, without a word.
    pub(crate) fn remove_nexthops_through(&mut self, name: &str) {
        let ours = self.nexthops.ours.iter();
        let gone: Vec<u32> = ours
            .filter(|(_, nexthop)| matches!(nexthop, Nexthop::Gateway { interface, .. } if interface == name))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.remove_nexthop(id);
        }
    }

    pub(crate) fn remove_nexthop(&mut self, gone: u32) {
        self.nexthops.ours.remove(&gone);
        let mut empty = Vec::new();
        for (id, nexthop) in &mut self.nexthops.ours {
            if let Nexthop::Group(members) = nexthop
                && members.remove(&gone)
                && members.is_empty()
            {
                empty.push(*id);
            }
        }
        self.routes
            .retain(|_, route| !matches!(route.path, Some(RoutePath::Group { id }) if id == gone));
        for id in empty {
            self.remove_nexthop(id);
        }
    }

    pub(super) fn change_nexthop(&mut self, change: &NexthopChange) -> Result<(), KernelError> {
        let id = *change.key();
        assert!(
            !self.nexthops.taken.contains(&id),
            "would touch the foreign nexthop {id}"
        );
        let is_there = self.nexthops.ours.contains_key(&id);
        let nexthop = match change {
            Change::Create { .. } if is_there => return Err(refused("create a nexthop", libc::EEXIST)),
            Change::Replace { .. } | Change::Delete { .. } if !is_there => {
                return Err(refused("change a nexthop", libc::ENOENT));
            }
            Change::Delete { .. } => {
                self.remove_nexthop(id);
                return Ok(());
            }
            Change::Create { value, .. } | Change::Replace { to: value, .. } => value,
        };
        match nexthop {
            Nexthop::Gateway { interface, .. } => {
                if !self.links.get(interface).is_some_and(|link| link.running) {
                    return Err(no_link(interface));
                }
            }
            Nexthop::Group(members) => {
                let is_gateway = |id| matches!(self.nexthops.ours.get(id), Some(Nexthop::Gateway { .. }));
                if members.is_empty() || !members.iter().all(is_gateway) {
                    return Err(refused("make a nexthop group", libc::EINVAL));
                }
            }
            Nexthop::Other => panic!("nobody makes such a nexthop"),
        }
        self.nexthops.ours.insert(id, nexthop.clone());
        Ok(())
    }

    /// The route with the gateways of the group that it refers to.
    pub(crate) fn resolved(&self, route: &ObservedRoute) -> ObservedRoute {
        let nexthop = |id: &u32| self.nexthops.ours.get(id);
        let Some(RoutePath::Group { id }) = &route.path else {
            return route.clone();
        };
        let Some(Nexthop::Group(members)) = nexthop(id) else {
            panic!("a route refers to {id}, which is no group");
        };
        let gateways = members.iter().map(|id| match nexthop(id) {
            Some(Nexthop::Gateway { address, interface }) => Gateway {
                address: *address,
                interface: Some(interface.clone()),
            },
            other => panic!("a group has the member {id}: {other:?}"),
        });
        ObservedRoute {
            path: Some(RoutePath::via(gateways)),
            ..route.clone()
        }
    }

    /// Whether a route could refer to it.
    pub(super) fn lacks_group(&self, path: &RoutePath) -> bool {
        match path {
            RoutePath::Group { id } => !matches!(self.nexthops.ours.get(id), Some(Nexthop::Group(_))),
            _ => false,
        }
    }
}
