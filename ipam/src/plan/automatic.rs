//! Automatic assignment. Addresses come, in this order, as in Calico, from
//!
//! 1. blocks of the node, in the order of their keys, each from the front of its queue;
//! 2. new blocks, unless the node has as many as it may (an affinity without block first, then the search);
//! 3. empty blocks of other nodes that were claimed more than a minute ago;
//! 4. single addresses of other nodes' blocks, unless affinity is strict.
//!
//! A node with as many blocks as it may have, in the pools that the request may use, gets nothing from 2 to 4.

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::block::AllocationBlock;
use crate::error::{AssignRefusal, Family, PoolReport};
use crate::keys;
use crate::store::Range;
use crate::view::Need;

use super::Stop;
use super::assign::{Assignment, Plan, refusal_of};
use super::pools::{self, KnownPool, PoolChoice};
use super::search::{ProbeSequence, require_ahead};

/// Age at which an empty block may be taken from the node that claimed it. Younger ones may be about to be used.
const RECLAIM_AGE_NANOS: i64 = 60_000_000_000;

/// What is still wanted of one family, and what the search for it has met.
struct Wanted {
    family: Family,
    count: usize,
    remaining: usize,
    /// Affinities of the node to blocks of the pools: what the limit counts.
    node_blocks: usize,
    /// Blocks with the node's affinity that do not exist (half a claim of Calico's).
    claimable: Vec<IpNetwork>,
    /// Empty blocks of others, old enough to be taken.
    reclaimable: Vec<Arc<AllocationBlock>>,
    /// Blocks of others with free addresses.
    borrowable: Vec<Arc<AllocationBlock>>,
}

impl Assignment<'_> {
    pub(super) fn automatic(&mut self, family: Family, count: usize) -> Plan<()> {
        let choice = pools::choose(self.draft.view, self.request, family)?;
        let mut wanted = Wanted {
            family,
            count,
            remaining: count,
            node_blocks: 0,
            claimable: Vec::new(),
            reclaimable: Vec::new(),
            borrowable: Vec::new(),
        };
        self.use_own_blocks(&choice, &mut wanted)?;
        let mut reports = choice.reports.clone();
        for pool in &choice.usable {
            if wanted.remaining == 0 {
                break;
            }
            let why = self.use_new_blocks(pool, &mut wanted)?;
            reports.push(PoolReport {
                pool: pool.name.clone(),
                why,
            });
        }
        self.use_empty_blocks(&choice, &mut wanted)?;
        self.borrow(&choice, &mut wanted)?;
        if wanted.remaining == 0 {
            return Ok(());
        }
        Err(Stop::Refuse(AssignRefusal::Exhausted {
            family,
            node: self.request.node.clone(),
            wanted: wanted.count,
            assigned: wanted.count - wanted.remaining,
            pools: reports,
        }))
    }

    fn use_own_blocks(&mut self, choice: &PoolChoice, wanted: &mut Wanted) -> Plan<()> {
        let view = self.draft.view;
        let prefix = keys::affinities_of(&self.request.node, wanted.family.unspecified());
        let blocks: Vec<IpNetwork> = view
            .keys_under(&prefix)?
            .filter_map(|key| Some(keys::parse_affinity(key)?.1))
            .filter(|&cidr| pool_of(choice, cidr).is_some())
            .collect();
        wanted.node_blocks = blocks.len();
        for (index, &cidr) in blocks.iter().enumerate() {
            if wanted.remaining == 0 {
                break;
            }
            require_ahead(view, blocks.iter().skip(index).copied(), index)?;
            match self.draft.block(cidr)? {
                // A block that cannot be read is left alone, for somebody to look at.
                Err(_) => {}
                Ok(None) => wanted.claimable.push(cidr),
                Ok(Some(block)) if block.host() == Some(&self.request.node) => {
                    if self.take_free(choice, &block, wanted)? {
                        self.draft.confirm_affinity(cidr)?;
                    }
                }
                Ok(Some(_)) => self.draft.remove_stale_affinity(&self.request.node, cidr)?,
            }
        }
        Ok(())
    }

    /// Claims blocks of `pool` until nothing is wanted. Returns why the pool has no (more) new block to give.
    fn use_new_blocks(&mut self, pool: &KnownPool, wanted: &mut Wanted) -> Plan<String> {
        let limit = self.config.block_limit();
        if !self.config.auto_allocate_blocks {
            return Ok(
                "claiming of new blocks is off (auto_allocate_blocks), no free address in the node's own"
                    .into(),
            );
        }
        let view = self.draft.view;
        let sequence = ProbeSequence::new(pool.geometry, &self.request.node);
        let half_claimed = std::mem::take(&mut wanted.claimable);
        let (first, rest) = half_claimed
            .into_iter()
            .partition(|&cidr| pool.geometry.contains_block(cidr));
        wanted.claimable = rest;
        let first: Vec<IpNetwork> = first;
        for &cidr in &first {
            if wanted.remaining > 0 {
                // The affinity is there and counted already.
                self.claim_and_take(pool, cidr, wanted)?;
            }
        }
        let mut is_crowded = false;
        for (index, cidr) in sequence.blocks().enumerate() {
            if wanted.remaining == 0 || wanted.node_blocks >= limit {
                break;
            }
            if let Err(need) = require_ahead(view, sequence.blocks().skip(index), index) {
                if is_crowded || !self.claim_unread(pool, cidr, wanted, &need)? {
                    return Err(need.into());
                }
                wanted.node_blocks += 1;
                continue;
            }
            let block = self.draft.block(cidr)?;
            is_crowded |= block.as_ref().is_ok_and(|block| {
                block
                    .as_ref()
                    .is_some_and(|block| block.host() != Some(&self.request.node))
            });
            match block {
                Ok(None) => {
                    if self.claim_and_take(pool, cidr, wanted)? {
                        wanted.node_blocks += 1;
                    }
                }
                Ok(Some(block)) => self.consider(pool, block, wanted)?,
                Err(_) => {}
            }
        }
        let strict = if self.config.strict_affinity {
            ", and strict affinity forbids borrowing"
        } else {
            ""
        };
        let (blocks, looked_at) = (wanted.node_blocks, sequence.len());
        Ok(if blocks >= limit {
            format!(
                "the node has {blocks} blocks, no more than {limit} are allowed (maxBlocksPerHost){strict}"
            )
        } else if sequence.is_exhaustive() {
            format!("all {looked_at} blocks are taken{strict}")
        } else {
            format!("none of the {looked_at} blocks looked at is free{strict}")
        })
    }

    /// A block met in the search that exists already.
    fn consider(&mut self, pool: &KnownPool, block: Arc<AllocationBlock>, wanted: &mut Wanted) -> Plan<()> {
        if block.host() == Some(&self.request.node) {
            // Ours without affinity, or claimed by another request of this node since the affinities were read.
            let cidr = block.cidr();
            if self.take_free_of(pool, &block, wanted)? {
                self.draft.view.get(&keys::affinity(&self.request.node, cidr))?;
                self.draft.confirm_affinity(cidr)?;
            }
        } else if block.is_empty() && self.may_be_taken(&block) {
            wanted.reclaimable.push(block);
        } else if block.free().next().is_some() {
            wanted.borrowable.push(block);
        }
        Ok(())
    }

    fn may_be_taken(&self, block: &AllocationBlock) -> bool {
        if block.is_ownerless() {
            return true;
        }
        let old = block
            .claimed_at()
            .is_some_and(|at| self.draft.now.0.saturating_sub(at.0) >= RECLAIM_AGE_NANOS);
        block.host().is_some() && old
    }

    fn use_empty_blocks(&mut self, choice: &PoolChoice, wanted: &mut Wanted) -> Plan<()> {
        for block in std::mem::take(&mut wanted.reclaimable) {
            if wanted.remaining == 0 || wanted.node_blocks >= self.config.block_limit() {
                break;
            }
            let cidr = block.cidr();
            let taken = block.taken_over(&self.request.node, self.draft.now);
            let owner = block.host().map(str::to_owned);
            let view = self.draft.view;
            view.require(owner.iter().map(|owner| Range::Key(keys::affinity(owner, cidr))))?;
            if self.take_free(choice, &taken, wanted)? {
                if let Some(owner) = owner {
                    self.draft.delete(keys::affinity(&owner, cidr));
                }
                self.draft.confirm_affinity(cidr)?;
                self.draft.claimed.push(cidr);
                wanted.node_blocks += 1;
            }
        }
        Ok(())
    }

    fn borrow(&mut self, choice: &PoolChoice, wanted: &mut Wanted) -> Plan<()> {
        if self.config.strict_affinity || wanted.node_blocks >= self.config.block_limit() {
            return Ok(());
        }
        for block in std::mem::take(&mut wanted.borrowable) {
            if wanted.remaining > 0 {
                self.take_free(choice, &block, wanted)?;
            }
        }
        Ok(())
    }

    /// Claims `cidr`, which was not read, as if it were not there, if that gives all that is wanted: the transaction depends on
    /// it and, if it is refused, brings `need`. So a claim in a pool with room costs no read, and in a full one no call more.
    /// What is not enough could end in a refusal, which must not rest on what nobody looked at.
    fn claim_unread(
        &mut self,
        pool: &KnownPool,
        cidr: IpNetwork,
        wanted: &mut Wanted,
        need: &Need,
    ) -> Plan<bool> {
        let block = AllocationBlock::claim(cidr, &self.request.node, self.draft.now);
        let free = block.free().filter(|address| !self.is_reserved(*address));
        let is_enough = free.take(wanted.remaining).count() == wanted.remaining;
        if !self.draft.view.may_presume() || !is_enough {
            return Ok(false);
        }
        self.draft.reads_on_conflict.extend_from_slice(&need.0);
        self.claim_and_take(pool, cidr, wanted)
    }

    fn is_reserved(&self, address: IpAddr) -> bool {
        self.reserved.iter().any(|cidr| cidr.contains(address))
    }

    /// Claims `cidr` if it has an address to give (its addresses may all be reserved).
    fn claim_and_take(&mut self, pool: &KnownPool, cidr: IpNetwork, wanted: &mut Wanted) -> Plan<bool> {
        let block = AllocationBlock::claim(cidr, &self.request.node, self.draft.now);
        let taken = self.take_free_of(pool, &block, wanted)?;
        if taken {
            self.claim(cidr)?;
        }
        Ok(taken)
    }

    fn take_free(&mut self, choice: &PoolChoice, block: &AllocationBlock, wanted: &mut Wanted) -> Plan<bool> {
        match pool_of(choice, block.cidr()) {
            Some(pool) => self.take_free_of(pool, block, wanted),
            None => Ok(false),
        }
    }

    /// Takes what is wanted from the front of the block's queue. False if there is nothing.
    fn take_free_of(&mut self, pool: &KnownPool, block: &AllocationBlock, wanted: &mut Wanted) -> Plan<bool> {
        let addresses: Vec<IpAddr> = block
            .free()
            .filter(|address| !self.is_reserved(*address))
            .take(wanted.remaining)
            .collect();
        if addresses.is_empty() {
            return Ok(false);
        }
        let cidr = block.cidr();
        self.draft
            .take(block, &addresses)
            .map_err(|error| Stop::Refuse(refusal_of(error, cidr)))?;
        self.draft.guard_stored(&pool.key);
        wanted.remaining -= addresses.len();
        Ok(true)
    }
}

fn pool_of(choice: &PoolChoice, cidr: IpNetwork) -> Option<&KnownPool> {
    choice
        .usable
        .iter()
        .map(Arc::as_ref)
        .find(|pool| pool.geometry.contains_block(cidr))
}
