//! Interned attribute sets: equal sets are stored once and known by a 4-octet handle.
//!
//! References are counted by hand: [`AttrStore::intern`] and [`AttrStore::retain`] take one, [`AttrStore::release`] gives one back,
//! and the set is dropped with its last reference. A handle's number is reused afterwards, so a handle without a
//! reference means nothing. What the decision process compares is worked out once per set.

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::next_hops::{Links, NextHops, Underlay};
use crate::config::LinkNames;
use crate::family::Prefix;
use crate::route::NextHop as Hop;
use crate::wire::attr::{Attributes, Community, NextHop, Origin};

/// Names an attribute set in an [`AttrStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttrId(NonZeroU32);

impl AttrId {
    fn at(index: usize) -> Self {
        // 2^32 sets of over a hundred bytes each do not fit into memory; saturation keeps the function total.
        Self(
            u32::try_from(index)
                .ok()
                .and_then(|i| NonZeroU32::MIN.checked_add(i))
                .unwrap_or(NonZeroU32::MAX),
        )
    }

    const fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// What of a set the decision process compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rank {
    /// Whether it is kept from a session that has been down for long (RFC 9494, LLGR_STALE).
    pub long_lived_stale: bool,
    /// LOCAL_PREF, if there is one.
    pub local_pref: Option<u32>,
    /// Length of the AS_PATH as RFC 4271 §9.1.2.2 counts it.
    pub path_length: u32,
    /// ORIGIN.
    pub origin: Origin,
    /// MULTI_EXIT_DISC, if there is one.
    pub med: Option<u32>,
    /// The AS the route came from.
    pub neighbor_as: u32,
    /// ORIGINATOR_ID, if there is one.
    pub originator_id: Option<Ipv4Addr>,
    /// Length of the CLUSTER_LIST.
    pub cluster_list_length: u32,
    /// What it costs to get to the next hop; `None` when there is no way.
    pub next_hop_cost: Option<u32>,
}

#[derive(Debug)]
struct Entry {
    attributes: Attributes,
    rank: Rank,
    hash: u64,
    references: u32,
}

/// A set of attribute sets.
#[derive(Debug)]
pub struct Affected(Vec<bool>);

impl Affected {
    /// Every set of `attrs`.
    pub fn all(attrs: &AttrStore) -> Self {
        Self(vec![true; attrs.entries.len()])
    }

    /// Whether a set is in it.
    pub fn contains(&self, id: AttrId) -> bool {
        self.0.get(id.index()).copied().unwrap_or(false)
    }
}

/// All attribute sets in use.
#[derive(Debug)]
pub struct AttrStore {
    entries: Vec<Entry>,
    free: Vec<AttrId>,
    index: HashTable<AttrId>,
    hasher: FixedState,
    next_hops: NextHops,
}

impl AttrStore {
    /// An empty store whose hash function `seed` picks, so that peers cannot know which sets collide.
    pub fn new(seed: u64) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            next_hops: NextHops::default(),
        }
    }

    /// The handle of `attributes`, with one more reference.
    pub fn intern(&mut self, attributes: Attributes) -> AttrId {
        let hash = self.hasher.hash_one(&attributes);
        let entries = &self.entries;
        if let Some(id) = self
            .index
            .find(hash, |id| entries[id.index()].attributes == attributes)
            .copied()
        {
            self.retain(id);
            return id;
        }
        let rank = Rank::of(&attributes, &mut self.next_hops);
        let entry = Entry {
            attributes,
            rank,
            hash,
            references: 1,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.entries[id.index()] = entry;
                id
            }
            None => {
                self.entries.push(entry);
                AttrId::at(self.entries.len() - 1)
            }
        };
        let entries = &self.entries;
        self.index.insert_unique(hash, id, |id| entries[id.index()].hash);
        id
    }

    /// Takes one more reference.
    pub fn retain(&mut self, id: AttrId) {
        self.entries[id.index()].references += 1;
    }

    /// Gives one reference back; the last one drops the set.
    pub fn release(&mut self, id: AttrId) {
        let entry = &mut self.entries[id.index()];
        entry.references -= 1;
        if entry.references == 0 {
            let hash = entry.hash;
            entry.attributes = Attributes::default();
            if let Ok(found) = self.index.find_entry(hash, |other| *other == id) {
                found.remove();
            }
            self.free.push(id);
        }
    }

    /// The set.
    pub fn get(&self, id: AttrId) -> &Attributes {
        &self.entries[id.index()].attributes
    }

    /// What of the set is compared.
    pub fn rank(&self, id: AttrId) -> &Rank {
        &self.entries[id.index()].rank
    }

    /// What the next hops of the sets resolve to.
    pub fn next_hops(&self) -> &NextHops {
        &self.next_hops
    }

    /// Has the names of links noted or not; whether that is new. Then every route is to be imported again.
    pub fn note_links(&mut self, link_names: LinkNames) -> bool {
        self.next_hops.note_links(link_names)
    }

    /// Replaces what is known of the machine's links; whether routes have to be judged again for it.
    pub fn set_links(&mut self, links: Links) -> bool {
        self.next_hops.set_links(links)
    }

    /// Replaces the underlay; [`AttrStore::resolve_next_hops`] is to follow.
    pub fn set_underlay(&mut self, underlay: Option<Underlay>) {
        self.next_hops.set_underlay(underlay);
        let entries = self.entries.iter_mut().filter(|entry| entry.references > 0);
        let mut in_use = HashSet::new();
        for entry in entries {
            let address = entry.attributes.next_hop.map(NextHop::address);
            entry.rank.next_hop_cost = self.next_hops.cost(address);
            in_use.extend(address);
        }
        self.next_hops.retain(|address| in_use.contains(&address));
    }

    /// Resolves all next hops anew, as [`NextHops::resolve_all`]. Returns the sets that name one for which the answer changed, if there are any.
    pub fn resolve_next_hops(
        &mut self,
        best: impl Fn(Prefix, &Self) -> Option<Vec<Hop>>,
    ) -> Option<Affected> {
        let mut next_hops = std::mem::take(&mut self.next_hops);
        let changed = next_hops.resolve_all(|prefix| best(prefix, self));
        self.next_hops = next_hops;
        if changed.is_empty() {
            return None;
        }
        let next_hops = &mut self.next_hops;
        let is_affected = self.entries.iter_mut().map(|entry| {
            let address = entry.attributes.next_hop.map(NextHop::address);
            let affected = address.is_some_and(|address| changed.binary_search(&address).is_ok());
            if affected {
                entry.rank.next_hop_cost = next_hops.cost(address);
            }
            affected
        });
        Some(Affected(is_affected.collect()))
    }

    /// How many sets there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }
}

impl Rank {
    fn of(attributes: &Attributes, next_hops: &mut NextHops) -> Self {
        let short = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        Self {
            long_lived_stale: attributes.communities.contains(Community::LLGR_STALE),
            local_pref: attributes.local_pref,
            path_length: short(attributes.as_path.path_length()),
            origin: attributes.origin,
            med: attributes.med,
            neighbor_as: attributes.as_path.neighbor_as().unwrap_or(0),
            originator_id: attributes.originator_id,
            cluster_list_length: short(attributes.cluster_list.len()),
            next_hop_cost: next_hops.cost(attributes.next_hop.map(NextHop::address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_med(med: u32) -> Attributes {
        Attributes {
            med: Some(med),
            ..Attributes::default()
        }
    }

    #[test]
    fn equal_sets_share_a_handle_and_the_last_release_drops_them() {
        let mut store = AttrStore::new(1);
        let (a, b, c) = (
            store.intern(with_med(1)),
            store.intern(with_med(1)),
            store.intern(with_med(2)),
        );
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_eq!(store.len(), 2);
        store.release(a);
        assert_eq!(store.get(b).med, Some(1));
        store.release(b);
        assert_eq!(store.len(), 1);
        assert_eq!(store.intern(with_med(3)), a, "the number is used again");
        assert_eq!(store.get(c).med, Some(2));
    }
}
