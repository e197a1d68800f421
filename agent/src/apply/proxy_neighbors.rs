//! Proxy neighbours, ours and those of others: where somebody else has one already, nothing is left to do, and it stays his.
//!
//! The kernel tells nobody when one comes or goes. It takes them with a link that goes down and with a link's last address; what
//! somebody else deletes is seen when everything is read back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Op;
use super::links::LinksChanged;
use crate::delta::{Change, delta};
use crate::desired::ProxyNeighbor;
use crate::kernel::{Kernel, KernelError, Maker, ProxyNeighborChange};
use crate::model::InSync;

pub(super) struct ProxyNeighbors {
    known: BTreeMap<ProxyNeighbor, Maker>,
    dirty: bool,
}

impl Default for ProxyNeighbors {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            dirty: true,
        }
    }
}

impl ProxyNeighbors {
    pub(super) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub(super) fn links_changed(&mut self, changed: &LinksChanged) {
        self.dirty |= changed.uplinks;
    }

    pub(super) fn difference(
        &mut self,
        kernel: &mut impl Kernel,
        desired: &BTreeSet<ProxyNeighbor>,
        in_sync: InSync,
    ) -> Result<Vec<Op>, KernelError> {
        if self.dirty {
            self.known = kernel.proxy_neighbors()?;
            self.dirty = false;
        }
        Ok(changes(desired, &self.known, in_sync))
    }

    /// As [`Self::difference`], of some addresses, without reading back.
    pub(super) fn difference_to(
        &self,
        addresses: &BTreeSet<IpAddr>,
        desired: &BTreeSet<ProxyNeighbor>,
        in_sync: InSync,
    ) -> Vec<Op> {
        let least = |address: &IpAddr| ProxyNeighbor {
            address: *address,
            interface: String::new(),
        };
        let there = addresses.iter().flat_map(|address| {
            let of_address = self.known.range(least(address)..);
            of_address.take_while(move |(key, _)| key.address == *address)
        });
        let there = there.map(|(key, maker)| (key.clone(), *maker)).collect();
        changes(desired, &there, in_sync)
    }

    pub(super) fn carry_out(
        &mut self,
        kernel: &mut impl Kernel,
        changes: &[ProxyNeighborChange],
    ) -> Vec<Result<(), KernelError>> {
        let mut results = kernel.change_proxy_neighbors(changes);
        for (change, result) in changes.iter().zip(&mut results) {
            if let (Change::Delete { .. }, Err(error)) = (change, &*result)
                && matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV))
            {
                // Gone already, perhaps with its link.
                *result = Ok(());
            }
            match (change, &*result) {
                (Change::Create { key, .. } | Change::Replace { key, .. }, Ok(())) => {
                    self.known.insert(key.clone(), Maker::Us);
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

fn changes(
    desired: &BTreeSet<ProxyNeighbor>,
    there: &BTreeMap<ProxyNeighbor, Maker>,
    in_sync: InSync,
) -> Vec<Op> {
    let wanted: BTreeMap<ProxyNeighbor, ()> = desired.iter().map(|key| (key.clone(), ())).collect();
    delta(&wanted, there, |(), _| true)
        .filter(|change| match change {
            Change::Delete { from, .. } => in_sync.datastore && *from == Maker::Us,
            Change::Create { .. } | Change::Replace { .. } => true,
        })
        .map(Op::ProxyNeighbor)
        .collect()
}
