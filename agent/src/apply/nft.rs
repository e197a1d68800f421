//! Our nftables tables as last seen, and the transaction that makes them as desired.

use std::collections::{BTreeMap, BTreeSet};

use super::{Op, nft_tables};
use crate::desired::{Desired, Part};
use crate::kernel::{
    ElementChange, Kernel, KernelError, NftChange, NftElement, NftFamily, NftTables, TableChange,
};
use crate::model::{InSync, TunnelKind};

pub(super) struct Nft {
    known: NftTables,
    dirty: bool,
    /// Elements alone were refused: whole tables next time.
    only_whole: bool,
}

impl Default for Nft {
    fn default() -> Self {
        Self {
            known: NftTables::new(),
            dirty: true,
            only_whole: false,
        }
    }
}

impl Nft {
    pub(super) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether both tables are there and elements of them may be changed alone.
    pub(super) fn is_settled(&self) -> bool {
        !self.dirty
            && !self.only_whole
            && NftFamily::ALL
                .iter()
                .all(|family| self.known.contains_key(family))
    }

    pub(super) fn difference(
        &mut self,
        kernel: &mut impl Kernel,
        desired: &Desired,
        in_sync: InSync,
    ) -> Result<Vec<Op>, KernelError> {
        if self.dirty {
            self.known = kernel.nft_tables()?;
            self.dirty = false;
        }
        let mut wanted = nft_tables::tables(desired);
        self.keep_undecided(&mut wanted, desired, in_sync);
        Ok(wanted
            .iter()
            .filter_map(|(family, wanted)| {
                let known = self.known.get(family);
                let change = match TableChange::between(known, wanted)? {
                    TableChange::Elements(_) if self.only_whole => TableChange::Whole {
                        from: known.cloned(),
                        to: wanted.clone(),
                    },
                    change => change,
                };
                Some(Op::Nft(NftChange {
                    family: *family,
                    change,
                }))
            })
            .collect())
    }

    /// As [`Self::difference`], of the elements that follow from some workloads, without reading back.
    pub(super) fn difference_of(&self, part: &Part) -> Vec<Op> {
        let mut changes = BTreeMap::<NftFamily, BTreeMap<String, ElementChange>>::new();
        for ((family, name), wanted) in nft_tables::workload_elements(&part.workloads) {
            let known = self.known.get(&family).and_then(|table| table.sets.get(name));
            let there: BTreeSet<NftElement> = part
                .scope
                .interfaces
                .iter()
                .flat_map(|interface| known.into_iter().flat_map(|set| set.elements_of(interface)))
                .cloned()
                .collect();
            let change = ElementChange {
                removed: there.difference(&wanted).cloned().collect(),
                added: wanted.difference(&there).cloned().collect(),
            };
            if change != ElementChange::default() {
                changes.entry(family).or_default().insert(name.to_owned(), change);
            }
        }
        changes
            .into_iter()
            .map(|(family, sets)| {
                let change = TableChange::Elements(sets);
                Op::Nft(NftChange { family, change })
            })
            .collect()
    }

    /// Sets that follow from the other nodes, or from tunnels of which nothing is known yet, stay as they are: a restarted agent
    /// does not shut out the nodes it has not heard of.
    fn keep_undecided(&self, wanted: &mut NftTables, desired: &Desired, in_sync: InSync) {
        let is_undecided =
            |kind: &TunnelKind| !in_sync.cluster || desired.undecided_tunnels.contains(kind.interface());
        let tunnels = TunnelKind::ALL.into_iter().filter(is_undecided);
        let mut names: Vec<String> = tunnels.flat_map(nft_tables::tunnel_sets).collect();
        if !in_sync.cluster {
            names.extend([false, true].map(nft_tables::exempt_nodes));
        }
        for (family, table) in wanted {
            let known = self.known.get(family);
            for name in &names {
                if let Some(set) = table.sets.get_mut(name) {
                    let before = known.and_then(|known| known.sets.get(name));
                    set.elements = before.map(|set| set.elements.clone()).unwrap_or_default();
                }
            }
        }
    }

    /// One transaction for all; where that is refused, one each: a kernel without ARP tables still gets the other one.
    pub(super) fn carry_out(
        &mut self,
        kernel: &mut impl Kernel,
        changes: &[NftChange],
    ) -> Vec<Result<(), KernelError>> {
        let together = kernel.change_nft(changes);
        let results: Vec<Result<(), KernelError>> = match together {
            Ok(()) => changes.iter().map(|_| Ok(())).collect(),
            Err(KernelError::Nft { .. } | KernelError::Refused { .. }) if changes.len() > 1 => changes
                .iter()
                .map(|change| kernel.change_nft(std::slice::from_ref(change)))
                .collect(),
            // Whether anything was done is not known: the same for all.
            Err(error) => {
                let again = || KernelError::Nft {
                    action: "change our tables".to_owned(),
                    stderr: error.to_string(),
                };
                changes.iter().map(|_| Err(again())).collect()
            }
        };
        for (change, result) in changes.iter().zip(&results) {
            let is_elements = matches!(change.change, TableChange::Elements(_));
            match result {
                Ok(()) => {
                    change.carry_out(&mut self.known);
                    self.only_whole &= is_elements;
                }
                Err(error) => {
                    self.dirty |= error.leaves_doubt();
                    self.only_whole |= is_elements;
                }
            }
        }
        results
    }
}
