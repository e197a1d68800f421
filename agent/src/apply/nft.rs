//! Our nftables table: NAT of what leaves the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnetwork::IpNetwork;

use super::Op;
use crate::desired::Desired;
use crate::kernel::{Kernel, KernelError, NftChain, NftRule, NftSet, NftTable};
use crate::ours::NFT_TABLE;

pub(super) struct Nft {
    known: Option<NftTable>,
    dirty: bool,
}

/// The table is replaced as a whole, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftChange {
    /// What is there; `None` if nothing.
    pub from: Option<NftTable>,
    /// What should be there.
    pub to: NftTable,
}

impl Default for Nft {
    fn default() -> Self {
        Self {
            known: None,
            dirty: true,
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
            self.known = kernel.nft_table()?;
            self.dirty = false;
        }
        let to = table(desired);
        if self.known.as_ref().is_some_and(|known| to.is_same_as(known)) {
            return Ok(Vec::new());
        }
        Ok(vec![Op::Nft(NftChange {
            from: self.known.clone(),
            to,
        })])
    }

    pub(super) fn carry_out(
        &mut self,
        kernel: &mut impl Kernel,
        change: &NftChange,
    ) -> Result<(), KernelError> {
        let result = kernel.replace_nft_table(&change.to);
        match &result {
            Ok(()) => self.known = Some(change.to.clone()),
            Err(error) => self.dirty |= error.leaves_doubt(),
        }
        result
    }
}

/// The whole table. Masquerading picks source ports at random (`fully-random`), as Calico does where it can: two
/// processors that choose a port at the same time would otherwise choose the same one and lose a packet.
fn table(desired: &Desired) -> NftTable {
    let of_family = |ranges: &BTreeSet<IpNetwork>, is_ipv6: bool| NftSet {
        is_ipv6,
        elements: ranges
            .iter()
            .filter(|range| range.is_ipv6() == is_ipv6)
            .copied()
            .collect(),
    };
    let sets = BTreeMap::from([
        (
            "nat-sources-ipv4".to_owned(),
            of_family(&desired.nat_sources, false),
        ),
        (
            "nat-sources-ipv6".to_owned(),
            of_family(&desired.nat_sources, true),
        ),
        (
            "nat-exempt-ipv4".to_owned(),
            of_family(&desired.nat_exempt, false),
        ),
        ("nat-exempt-ipv6".to_owned(), of_family(&desired.nat_exempt, true)),
    ]);
    let postrouting = NftChain {
        kind: "nat".to_owned(),
        hook: "postrouting".to_owned(),
        priority: 100,
        policy: "accept".to_owned(),
        rules: vec![
            NftRule::new("ip saddr @nat-sources-ipv4 ip daddr != @nat-exempt-ipv4 masquerade fully-random"),
            NftRule::new("ip6 saddr @nat-sources-ipv6 ip6 daddr != @nat-exempt-ipv6 masquerade fully-random"),
        ],
    };
    NftTable {
        sets,
        chains: BTreeMap::from([("nat-outgoing".to_owned(), postrouting)]),
    }
}

impl fmt::Display for NftChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.from.is_some() { "replace" } else { "create" };
        write!(f, "{verb} table inet {NFT_TABLE}")?;
        for (name, set) in &self.to.sets {
            let before = self.from.as_ref().and_then(|from| from.sets.get(name));
            if before != Some(set) && !(before.is_none() && set.elements.is_empty()) {
                let elements: Vec<String> = set.elements.iter().map(ToString::to_string).collect();
                write!(f, " {name}={{{}}}", elements.join(","))?;
            }
        }
        Ok(())
    }
}
