//! Addresses: allocated and in use must be the same, and each to one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::block::{Allocation, AllocationBlock};

use super::finding::{AllocationId, Finding, User};
use super::{Facts, Findings};

impl Facts<'_> {
    /// Allocations that nobody uses, that somebody else uses, that are twice, or have no handle.
    pub(super) fn allocations(&self, findings: &mut Findings) {
        let mut ids: BTreeMap<IpAddr, Vec<AllocationId>> = BTreeMap::new();
        for block in self.inventory.blocks.values() {
            for allocation in block.allocations() {
                if allocation.attribute.is_resting() {
                    continue;
                }
                let id = AllocationId::of(&allocation);
                if has_known_users(block, &allocation) {
                    self.allocation(&allocation, &id, findings);
                }
                ids.entry(allocation.address).or_default().push(id);
            }
        }
        for (address, allocations) in ids {
            if allocations.len() > 1 {
                findings.insert(Finding::AllocatedTwice { address, allocations });
            }
        }
    }

    fn allocation(&self, allocation: &Allocation, id: &AllocationId, findings: &mut Findings) {
        let notes = &allocation.attribute.secondary;
        let users = self.users.get(&allocation.address);
        if users.is_none() && allocation.attribute.kept_until().is_some() {
            return;
        }
        let Some(users) = users else {
            findings.insert(Finding::AllocatedNotInUse {
                allocation: id.clone(),
                node: notes.get("node").cloned(),
                allocated_at: notes.get("timestamp").cloned(),
            });
            return;
        };
        if id.handle_id.is_empty() {
            findings.insert(Finding::AllocationWithoutHandle {
                allocation: id.clone(),
            });
        }
        let (Some(namespace), Some(pod)) = (notes.get("namespace"), notes.get("pod")) else {
            return;
        };
        if may_have_two_users(allocation) {
            return;
        }
        for user in users {
            if let Some((other_namespace, other_pod)) = self.pod_of(user)
                && (other_namespace, other_pod) != (namespace, pod)
            {
                findings.insert(Finding::AllocatedToAnother {
                    allocation: id.clone(),
                    pod: format!("{namespace}/{pod}"),
                    user: user.clone(),
                });
            }
        }
    }

    /// Addresses that somebody has and nobody was given, and those that several have.
    pub(super) fn users_of_addresses(&self, findings: &mut Findings) {
        for (&address, users) in &self.users {
            let allocation = self.allocation_of(address);
            let users: Vec<User> = users.iter().cloned().collect();
            if users.len() > 1 && !allocation.as_ref().is_some_and(may_have_two_users) {
                findings.insert(Finding::SeveralUsers {
                    address,
                    users: users.clone(),
                });
            }
            if allocation.is_some() || self.is_in_the_dark(address) {
                continue;
            }
            let mut pools = self.inventory.pools_of(address);
            findings.insert(if pools.any(|(_, pool)| !pool.spec.disabled) {
                Finding::InUseNotAllocated { address, users }
            } else {
                Finding::InUseOutsidePools { address, users }
            });
        }
    }

    /// What runs and what endpoints say must be the same, on the nodes that were asked.
    pub(super) fn what_runs(&self, findings: &mut Findings) {
        for (node, addresses) in self.running {
            for (&address, what) in addresses {
                let users = self.users.get(&address).into_iter().flatten();
                let mut known = users.filter(|user| !matches!(user, User::Running { .. }));
                if !known.any(|user| user.node() == node) {
                    let (node, what) = (node.clone(), what.clone());
                    findings.insert(Finding::RunningWithoutEndpoint { address, node, what });
                }
            }
        }
        for (key, endpoint) in &self.inventory.endpoints {
            let Some(running) = self.running.get(&endpoint.node) else {
                continue;
            };
            for &address in &endpoint.addresses {
                if !running.contains_key(&address) {
                    let (key, node) = (key.clone(), endpoint.node.clone());
                    findings.insert(Finding::EndpointNotRunning { key, node, address });
                }
            }
        }
    }

    fn allocation_of(&self, address: IpAddr) -> Option<Allocation> {
        let allocation = self.inventory.allocation_of(address)?;
        (!allocation.attribute.is_resting()).then_some(allocation)
    }

    fn pod_of(&self, user: &User) -> Option<(&String, &String)> {
        let User::Endpoint { key, .. } = user else {
            return None;
        };
        let endpoint = self.inventory.endpoints.get(key)?;
        (!endpoint.pod.is_empty()).then_some((&endpoint.namespace, &endpoint.pod))
    }
}

impl AllocationId {
    /// The identity of `allocation`.
    pub fn of(allocation: &Allocation) -> Self {
        Self {
            address: allocation.address,
            block: allocation.block,
            handle_id: allocation.attribute.handle().unwrap_or_default().to_owned(),
            sequence_number: allocation.sequence_number,
        }
    }
}

/// Whether the datastore says who uses such addresses. It does not for load balancers: they belong to services.
fn has_known_users(block: &AllocationBlock, allocation: &Allocation) -> bool {
    let of_a_load_balancer = allocation
        .attribute
        .handle()
        .is_some_and(|handle| handle.starts_with("lb-"));
    !of_a_load_balancer && !block.owner().is_some_and(|owner| owner.starts_with("virtual:"))
}

/// Whether the allocation names a second owner: a virtual machine that moves has two pods for a while.
fn may_have_two_users(allocation: &Allocation) -> bool {
    let alternate = allocation.attribute.extra.get("alternateOwnerAttrs");
    alternate.is_some_and(|owner| owner.as_object().is_some_and(|owner| !owner.is_empty()))
}
