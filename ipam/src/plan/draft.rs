//! A transaction in the making: blocks as they will be, with every guard they depend on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::affinity::{Affinity, AffinityState};
use crate::block::{AllocationAttribute, AllocationBlock, BlockError};
use crate::handle::Handle;
use crate::keys;
use crate::resource::ResourceError;
use crate::store::{Guard, Range, Txn, Write};
use crate::timestamp::UnixNanos;
use crate::view::{Need, View};

use super::AssignedAddress;

/// Affinities found stale that one transaction removes at most; the others wait for the next.
const MAX_STALE_REMOVALS: usize = 4;

/// What an assignment has come to so far.
pub(super) struct Draft<'a> {
    pub(super) view: &'a View,
    pub(super) node: &'a str,
    pub(super) now: UnixNanos,
    /// How long released addresses rest.
    cooldown_nanos: i64,
    pub(super) attribute: AllocationAttribute,
    pub(super) assigned: Vec<AssignedAddress>,
    pub(super) claimed: Vec<IpNetwork>,
    blocks: BTreeMap<IpNetwork, Arc<AllocationBlock>>,
    /// The keeper that addresses are taken from, as it will be, with its ID.
    keeper: Option<(String, Handle)>,
    guards: BTreeMap<String, i64>,
    writes: BTreeMap<String, Option<Vec<u8>>>,
    /// What is to be read if the transaction is refused: a block that was taken to be absent, and those looked at next.
    pub(super) reads_on_conflict: Vec<Range>,
    stale_removals: usize,
}

impl<'a> Draft<'a> {
    pub(super) fn new(
        view: &'a View,
        node: &'a str,
        attribute: AllocationAttribute,
        now: UnixNanos,
        cooldown_nanos: i64,
    ) -> Self {
        Self {
            view,
            node,
            now,
            cooldown_nanos,
            attribute,
            assigned: Vec::new(),
            claimed: Vec::new(),
            blocks: BTreeMap::new(),
            keeper: None,
            guards: BTreeMap::new(),
            writes: BTreeMap::new(),
            reads_on_conflict: Vec::new(),
            stale_removals: 0,
        }
    }

    /// The block as it will be: what this draft made of it, or what is stored, with the addresses whose rest is over. The inner error is a value that cannot be
    /// used.
    pub(super) fn block(
        &self,
        cidr: IpNetwork,
    ) -> Result<Result<Option<Arc<AllocationBlock>>, ResourceError>, Need> {
        if let Some(block) = self.blocks.get(&cidr) {
            return Ok(Ok(Some(Arc::clone(block))));
        }
        let rested = |block: Arc<AllocationBlock>| {
            if block.has_resting() {
                Arc::new(block.rested(self.now, self.cooldown_nanos))
            } else {
                block
            }
        };
        let stored = self.view.block(cidr)?;
        Ok(stored.map(|block| block.map(rested)))
    }

    /// Gives `addresses` of `block` (as it now is) to the request.
    pub(super) fn take(&mut self, block: &AllocationBlock, addresses: &[IpAddr]) -> Result<(), BlockError> {
        let next = block.assign(addresses, &self.attribute)?;
        self.assign(block, addresses, next);
        Ok(())
    }

    /// Notes that the request has `addresses` of `block`, which becomes `next`.
    fn assign(&mut self, block: &AllocationBlock, addresses: &[IpAddr], next: AllocationBlock) {
        self.guard_stored(&keys::block(block.cidr()));
        self.assigned
            .extend(addresses.iter().map(|&address| AssignedAddress {
                address,
                block: block.cidr(),
                sequence_number: block.sequence_number(),
            }));
        self.blocks.insert(next.cidr(), Arc::new(next));
    }

    /// Gives `addresses` of `block`, which `keeper_id` keeps, to the request. `keeper` is the handle as it now is.
    pub(super) fn take_over(
        &mut self,
        block: &AllocationBlock,
        addresses: &[IpAddr],
        (keeper_id, keeper): (&str, Handle),
    ) -> Handle {
        let next = block.hand_over(addresses, &self.attribute);
        let left = next.allocations_of(keeper_id).count();
        let keeper = keeper.with_count(block.cidr(), u64::try_from(left).unwrap_or(u64::MAX));
        self.assign(block, addresses, next);
        self.keeper = Some((keeper_id.to_owned(), keeper.clone()));
        keeper
    }

    /// Makes the node's affinity to `cidr` confirmed, if it is not, and makes the transaction depend on it.
    pub(super) fn confirm_affinity(&mut self, cidr: IpNetwork) -> Result<(), Need> {
        let key = keys::affinity(self.node, cidr);
        let stored = self.view.parsed(&key, Affinity::parse)?;
        // A value that cannot be read is replaced: the block says who owns it, and this transaction guards both.
        let affinity = stored.and_then(Result::ok);
        self.guard_stored(&key);
        if !affinity
            .as_ref()
            .is_some_and(|affinity| affinity.state.is_confirmed())
        {
            let mut affinity = affinity.map_or_else(Affinity::confirmed, Arc::unwrap_or_clone);
            affinity.state = AffinityState::Confirmed;
            self.writes.insert(key, Some(affinity.to_json()));
        }
        Ok(())
    }

    /// Removes the affinity of `node` to a block that belongs to somebody else.
    pub(super) fn remove_stale_affinity(&mut self, node: &str, cidr: IpNetwork) -> Result<(), Need> {
        if self.stale_removals < MAX_STALE_REMOVALS {
            self.stale_removals += 1;
            self.view.get(&keys::affinity(node, cidr))?;
            self.guard_stored(&keys::block(cidr));
            self.delete(keys::affinity(node, cidr));
        }
        Ok(())
    }

    /// Writes `key` without depending on what it was.
    pub(super) fn put(&mut self, key: String, value: Vec<u8>) {
        self.writes.insert(key, Some(value));
    }

    /// Deletes `key` as it was read.
    pub(super) fn delete(&mut self, key: String) {
        self.guard_stored(&key);
        self.writes.insert(key, None);
    }

    /// Makes the transaction depend on `key` being as it was read (absent, if it was not found, or is taken to be absent).
    pub(super) fn guard_stored(&mut self, key: &str) {
        // Every caller has looked at the key before, or means "not there" where it was not read.
        let revision = self.view.get(key).ok().flatten().map_or(0, |kv| kv.mod_revision);
        self.guard(Guard {
            key: key.to_owned(),
            mod_revision: revision,
        });
    }

    pub(super) fn guard(&mut self, guard: Guard) {
        self.guards.insert(guard.key, guard.mod_revision);
    }

    /// The transaction: blocks, handle, affinities and what else was put; and the blocks as they then are.
    pub(super) fn into_txn(
        mut self,
        handle_id: &str,
        stored_handle: Option<Handle>,
    ) -> (Txn, Vec<Arc<AllocationBlock>>) {
        let mut handle = stored_handle.unwrap_or_default();
        for (&cidr, block) in &self.blocks {
            let count = block.allocations_of(handle_id).count();
            handle = handle.with_count(cidr, u64::try_from(count).unwrap_or(u64::MAX));
        }
        self.guard_stored(&keys::handle(handle_id));
        self.writes
            .insert(keys::handle(handle_id), Some(handle.to_json()));
        if let Some((keeper_id, keeper)) = self.keeper.take() {
            let left = (!keeper.is_empty()).then(|| keeper.to_json());
            self.writes.insert(keys::handle(&keeper_id), left);
        }
        let blocks = std::mem::take(&mut self.blocks);
        self.writes.extend(
            blocks
                .iter()
                .map(|(&cidr, block)| (keys::block(cidr), Some(block.to_json()))),
        );
        let txn = Txn {
            reads_on_conflict: self.reads_on_conflict,
            ..txn(self.guards, self.writes)
        };
        (txn, blocks.into_values().collect())
    }
}

/// Assembles a transaction; `None` as a value deletes.
pub(super) fn txn(
    guards: BTreeMap<String, i64>,
    writes: impl IntoIterator<Item = (String, Option<Vec<u8>>)>,
) -> Txn {
    let guard = |(key, mod_revision)| Guard { key, mod_revision };
    Txn {
        guards: guards.into_iter().map(guard).collect(),
        writes: writes.into_iter().map(|(key, value)| write(key, value)).collect(),
        ..Txn::default()
    }
}

/// Writes `value` to `key`, or deletes it.
pub(super) fn write(key: String, value: Option<Vec<u8>>) -> Write {
    match value {
        Some(value) => Write::Put { key, value },
        None => Write::Delete { key },
    }
}
