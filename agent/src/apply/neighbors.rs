//! Permanent neighbours on the VXLAN devices.

use std::collections::{BTreeMap, BTreeSet};

use super::Op;
use super::links::LinksChanged;
use crate::delta::{Change, delta};
use crate::desired::{Desired, NeighborKey, NeighborTarget};
use crate::kernel::{Kernel, KernelError, NeighborChange};
use crate::model::InSync;

#[derive(Default)]
pub(super) struct Neighbors {
    known: BTreeMap<NeighborKey, NeighborTarget>,
    /// The devices whose neighbours are known.
    of: BTreeSet<String>,
    dirty: bool,
}

impl Neighbors {
    pub(super) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub(super) fn links_changed(&mut self, changed: &LinksChanged) {
        if changed.names.iter().any(|name| self.of.contains(name)) {
            self.dirty = true;
        }
    }

    /// `tunnels` are the devices that are wanted and there.
    pub(super) fn difference(
        &mut self,
        kernel: &mut impl Kernel,
        desired: &Desired,
        tunnels: &BTreeSet<String>,
        in_sync: InSync,
    ) -> Result<Vec<Op>, KernelError> {
        if self.dirty || self.of != *tunnels {
            self.known = if tunnels.is_empty() {
                BTreeMap::new()
            } else {
                kernel.neighbors(tunnels)?
            };
            self.of.clone_from(tunnels);
            self.dirty = false;
        }
        let is_known = in_sync.datastore && in_sync.cluster;
        Ok(
            delta(&desired.neighbors, &self.known, |wanted, found| wanted == found)
                .into_iter()
                .filter(|change| is_known || matches!(change, Change::Create { .. }))
                .map(Op::Neighbor)
                .collect(),
        )
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
                    self.known.insert(key.clone(), *value);
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
