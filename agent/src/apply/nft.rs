//! Our nftables tables as last seen, and the transaction that makes them as desired.

use super::{Op, nft_tables};
use crate::desired::Desired;
use crate::kernel::{Kernel, KernelError, NftChange, NftTables, TableChange};

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

    pub(super) fn difference(
        &mut self,
        kernel: &mut impl Kernel,
        desired: &Desired,
    ) -> Result<Vec<Op>, KernelError> {
        if self.dirty {
            self.known = kernel.nft_tables()?;
            self.dirty = false;
        }
        let wanted = nft_tables::tables(desired);
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
