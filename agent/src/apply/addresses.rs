//! Addresses: all are read, since the node's own one is found among them; those on tunnels and host ends are kept as desired.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use super::Op;
use super::links::LinksChanged;
use crate::delta::{Change, delta};
use crate::desired::{Desired, LinkAddress};
use crate::kernel::{AddressChange, Kernel, KernelError};
use crate::model::InSync;

pub(super) struct Addresses {
    known: BTreeMap<String, Vec<IpNetwork>>,
    dirty: bool,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            dirty: true,
        }
    }
}

impl Addresses {
    pub(super) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// A link that goes takes its addresses with it, and one that goes down those of IPv6.
    pub(super) fn links_changed(&mut self, changed: &LinksChanged) {
        let had_some = |name: &String| self.known.contains_key(name);
        self.dirty |= changed.uplinks || changed.names.iter().any(had_some);
    }

    /// Reads back if dirty. All addresses, by link.
    pub(super) fn read_back(
        &mut self,
        kernel: &mut impl Kernel,
    ) -> Result<&BTreeMap<String, Vec<IpNetwork>>, KernelError> {
        if self.dirty {
            self.known = kernel.addresses()?;
            self.dirty = false;
        }
        Ok(&self.known)
    }

    /// `is_ours` says of which links the addresses are, and so may be removed.
    pub(super) fn difference(
        &mut self,
        kernel: &mut impl Kernel,
        desired: &Desired,
        is_ours: impl Fn(&str) -> bool,
        in_sync: InSync,
    ) -> Result<Vec<Op>, KernelError> {
        let known = self.read_back(kernel)?;
        let there: BTreeMap<LinkAddress, ()> = known
            .iter()
            .filter(|(name, _)| {
                is_ours(name) || desired.addresses.iter().any(|wanted| wanted.interface == **name)
            })
            .flat_map(|(name, addresses)| {
                addresses.iter().map(|address| LinkAddress {
                    interface: name.clone(),
                    address: *address,
                })
            })
            .map(|address| (address, ()))
            .collect();
        let wanted: BTreeMap<LinkAddress, ()> = desired
            .addresses
            .iter()
            .map(|address| (address.clone(), ()))
            .collect();
        Ok(delta(&wanted, &there, |(), ()| true)
            .filter(|change| match change {
                Change::Delete { key, .. } => in_sync.datastore && is_ours(&key.interface),
                Change::Create { .. } | Change::Replace { .. } => true,
            })
            .map(Op::Address)
            .collect())
    }

    pub(super) fn carry_out(
        &mut self,
        kernel: &mut impl Kernel,
        change: &AddressChange,
    ) -> Result<(), KernelError> {
        let mut result = kernel.change_address(change);
        if let (Change::Delete { .. }, Err(error)) = (change, &result)
            && matches!(error.errno(), Some(libc::EADDRNOTAVAIL | libc::ENODEV))
        {
            // Gone already, perhaps with its link.
            result = Ok(());
        }
        let LinkAddress { interface, address } = change.key();
        match (change, &result) {
            (Change::Create { .. } | Change::Replace { .. }, Ok(())) => {
                self.known.entry(interface.clone()).or_default().push(*address);
            }
            (Change::Delete { .. }, Ok(())) => {
                if let Some(addresses) = self.known.get_mut(interface) {
                    addresses.retain(|known| known != address);
                }
            }
            (_, Err(error)) => self.dirty |= error.leaves_doubt() || error.errno() == Some(libc::EEXIST),
        }
        result
    }
}
