//! Permanent neighbours: those of the tunnel devices made and kept; those of workloads made of what the kernel learnt.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::Op;
use super::links::LinksChanged;
use crate::delta::{Change, delta};
use crate::desired::{Desired, NeighborKey, NeighborSubject, NeighborTarget};
use crate::kernel::{Kernel, KernelError, NeighborChange, ObservedNeighbor};
use crate::model::InSync;
use crate::ours::{LINK_PREFIX, TUNNELS};

pub(super) struct Neighbors {
    /// On links with a tunnel's name or our prefix.
    known: BTreeMap<NeighborKey, ObservedNeighbor>,
    dirty: bool,
}

impl Default for Neighbors {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            dirty: true,
        }
    }
}

impl Neighbors {
    pub(super) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// A link that goes away or down takes its neighbours with it.
    pub(super) fn links_changed(&mut self, changed: &LinksChanged) {
        self.dirty |= changed.names.iter().any(|name| is_tunnel(name));
        for name in changed.names.iter().filter(|name| !is_tunnel(name)) {
            self.forget(name);
        }
    }

    /// Those on this host end may be gone.
    pub(super) fn forget(&mut self, interface: &str) {
        let keys: Vec<NeighborKey> = self.on(interface).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.known.remove(&key);
        }
    }

    /// Those that are known on a link.
    fn on(&self, interface: &str) -> impl Iterator<Item = (&NeighborKey, &ObservedNeighbor)> {
        let least = NeighborKey {
            interface: interface.to_owned(),
            subject: NeighborSubject::Address(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        };
        let from_there = self.known.range(least..);
        from_there.take_while(move |(key, _)| key.interface == interface)
    }

    /// Takes in what the kernel said of neighbours on links with our prefix; `None`: gone. Returns the links of those that were
    /// learnt.
    pub(super) fn heard(
        &mut self,
        news: &BTreeMap<NeighborKey, Option<ObservedNeighbor>>,
    ) -> BTreeSet<String> {
        let mut learnt = BTreeSet::new();
        for (key, found) in news {
            match found {
                Some(found) => {
                    self.known.insert(key.clone(), *found);
                    if !found.is_permanent {
                        learnt.insert(key.interface.clone());
                    }
                }
                None => {
                    self.known.remove(key);
                }
            }
        }
        learnt
    }

    /// `tunnels` are the devices that are wanted and there. Of the workloads' neighbours only those are looked at that have to
    /// go: to keep what the kernel learnt is no repair, and can wait until it says so again.
    pub(super) fn difference(
        &mut self,
        kernel: &mut impl Kernel,
        desired: &Desired,
        tunnels: &BTreeSet<String>,
        in_sync: InSync,
    ) -> Result<Vec<Op>, KernelError> {
        if self.dirty {
            self.known = kernel.neighbors()?;
            self.known
                .retain(|key, _| is_tunnel(&key.interface) || key.interface.starts_with(LINK_PREFIX));
            self.dirty = false;
        }
        let wanted: BTreeMap<NeighborKey, NeighborTarget> = desired
            .neighbors
            .iter()
            .filter(|(key, _)| is_tunnel(&key.interface))
            .map(|(key, target)| (key.clone(), *target))
            .collect();
        let there: BTreeMap<NeighborKey, ObservedNeighbor> = self
            .known
            .iter()
            .filter(|(key, found)| found.is_permanent && tunnels.contains(&key.interface))
            .map(|(key, found)| (key.clone(), *found))
            .collect();
        let is_known = in_sync.datastore && in_sync.cluster;
        let of_tunnels = delta(&wanted, &there, |wanted, found| *wanted == found.target)
            .filter(|change| is_known || matches!(change, Change::Create { .. }));
        let of_workloads = self.known.iter().filter(|(key, found)| {
            in_sync.datastore
                && !is_tunnel(&key.interface)
                && is_made_by_us(found)
                && desired.neighbors.get(*key) != Some(&found.target)
        });
        let of_workloads = of_workloads.map(|(key, found)| Change::Delete {
            key: key.clone(),
            from: *found,
        });
        Ok(of_tunnels.chain(of_workloads).map(Op::Neighbor).collect())
    }

    /// Those of some workloads, without reading back: what the kernel learnt as it is wanted stays for good, what is not wanted
    /// any more goes.
    pub(super) fn difference_of<'a>(
        &self,
        interfaces: impl Iterator<Item = &'a String>,
        desired: &BTreeMap<NeighborKey, NeighborTarget>,
    ) -> Vec<Op> {
        let mut ops = Vec::new();
        for interface in interfaces {
            for (key, found) in self.on(interface) {
                let (key, from) = (key.clone(), *found);
                let is_wanted = desired.get(&key) == Some(&found.target);
                if is_wanted && !found.is_permanent {
                    let to = found.target;
                    ops.push(Op::Neighbor(Change::Replace { key, from, to }));
                } else if !is_wanted && is_made_by_us(found) {
                    ops.push(Op::Neighbor(Change::Delete { key, from }));
                }
            }
        }
        ops
    }

    pub(super) fn carry_out(
        &mut self,
        kernel: &mut impl Kernel,
        changes: &[NeighborChange],
    ) -> Vec<Result<(), KernelError>> {
        if changes.is_empty() {
            return Vec::new();
        }
        let mut results = kernel.change_neighbors(changes);
        for (change, result) in changes.iter().zip(&mut results) {
            if let (Change::Delete { .. }, Err(error)) = (change, &*result)
                && matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV))
            {
                // Gone already, perhaps with its device.
                *result = Ok(());
            }
            match (change, &*result) {
                (Change::Create { key, value } | Change::Replace { key, to: value, .. }, Ok(())) => {
                    let made = ObservedNeighbor {
                        target: *value,
                        is_permanent: true,
                        is_marked: matches!(key.subject, NeighborSubject::Address(_)),
                    };
                    self.known.insert(key.clone(), made);
                }
                (Change::Delete { key, .. }, Ok(())) => {
                    self.known.remove(key);
                }
                (_, Err(error)) => self.dirty |= error.leaves_doubt(),
            }
        }
        results
    }
}

fn is_tunnel(interface: &str) -> bool {
    TUNNELS.contains(&interface)
}

fn is_made_by_us(found: &ObservedNeighbor) -> bool {
    found.is_permanent && found.is_marked
}
