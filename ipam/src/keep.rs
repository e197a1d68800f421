//! Addresses kept for a workload: a pod of a StatefulSet that is deleted and made again has the addresses it had.
//!
//! Whoever assigns says for whom and for how long ([`Keep`]); that is noted with the allocation. A release then does not
//! free the address: in the same transaction it goes to a handle of the workload, the keeper, with the time until when. So
//! it is whoever releases: DEL, the collector after a lost DEL, the removal of a node. To Calico it is an allocated address
//! like any other; nobody else gets it. The next assignment for the same workload takes it from there, on whatever node,
//! if its pool may still be used. When the time is over the collector frees it; an operator can at any time.
//!
//! Invariant: an allocation of a keeper says until when, and nothing uses it.

use std::collections::BTreeMap;

use crate::block::AllocationAttribute;
use crate::timestamp::UnixNanos;

/// What a keeper's handle begins with. A colon is in no name of a CNI network, so that no container's handle does.
const KEEPER: &str = "kept:";
/// Notes of an allocation that will be kept.
pub(crate) const KEEPER_NOTE: &str = "keeper";
pub(crate) const KEEP_SECONDS_NOTE: &str = "keepSeconds";
/// Note of one that is kept.
const KEPT_UNTIL_NOTE: &str = "keptUntil";

/// For whom an address is to be kept after its release, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    keeper: String,
    seconds: u32,
}

impl Keep {
    /// The longest time: a year.
    pub const MAX_SECONDS: u32 = 365 * 24 * 3600;

    /// For the interface `ifname` of `pod` in `namespace`, as far as the network `network` is concerned; for `seconds` after a
    /// release, at most [`Self::MAX_SECONDS`]. Names must not contain `/` or `:`.
    pub fn for_pod(network: &str, (namespace, pod): (&str, &str), ifname: &str, seconds: u32) -> Self {
        Self {
            keeper: format!("{KEEPER}{network}:{namespace}:{pod}:{ifname}"),
            seconds: seconds.min(Self::MAX_SECONDS),
        }
    }

    /// The handle that has the addresses while nobody uses them.
    pub fn keeper(&self) -> &str {
        &self.keeper
    }

    /// Adds to the notes of an allocation that it is to be kept.
    pub(crate) fn note(&self, notes: &mut BTreeMap<String, String>) {
        notes.insert(KEEPER_NOTE.to_owned(), self.keeper.clone());
        notes.insert(KEEP_SECONDS_NOTE.to_owned(), self.seconds.to_string());
    }

    /// What is noted with an allocation that somebody uses.
    pub(crate) fn noted(attribute: &AllocationAttribute) -> Option<Self> {
        let notes = &attribute.secondary;
        let keeper = notes.get(KEEPER_NOTE)?.clone();
        let seconds = notes.get(KEEP_SECONDS_NOTE)?.parse().ok()?;
        (keeper.starts_with(KEEPER) && attribute.kept_until().is_none()).then_some(Self { keeper, seconds })
    }

    /// The keeper's entry for what `released` had.
    pub(crate) fn kept(&self, released: &AllocationAttribute, now: UnixNanos) -> AllocationAttribute {
        let until = UnixNanos(now.0.saturating_add(i64::from(self.seconds) * 1_000_000_000));
        let mut notes: BTreeMap<String, String> = ["namespace", "pod"]
            .iter()
            .filter_map(|&note| Some((note.to_owned(), released.secondary.get(note)?.clone())))
            .collect();
        notes.insert("type".to_owned(), "keptAddress".to_owned());
        notes.insert(KEPT_UNTIL_NOTE.to_owned(), until.rfc3339());
        AllocationAttribute {
            handle_id: Some(self.keeper.clone()),
            secondary: notes,
            extra: serde_json::Map::new(),
        }
    }
}

impl AllocationAttribute {
    /// Until when the address is kept for a workload that nobody runs at present; `None` if it is not kept.
    pub fn kept_until(&self) -> Option<UnixNanos> {
        let is_keeper = self.handle().is_some_and(|handle| handle.starts_with(KEEPER));
        let until = self.secondary.get(KEPT_UNTIL_NOTE).filter(|_| is_keeper)?;
        // A time that cannot be read would keep it for ever.
        Some(UnixNanos::parse_rfc3339(until).unwrap_or(UnixNanos(0)))
    }
}
