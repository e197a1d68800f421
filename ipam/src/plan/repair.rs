//! Small changes that make blocks, affinities and handles agree again, and blocks that are given back. One transaction
//! each; what a repair is based on is looked at again when it is planned, so that an outdated one does nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::affinity::{Affinity, AffinityState};
use crate::block::AllocationBlock;
use crate::error::RepairRefusal;
use crate::fence;
use crate::handle::Handle;
use crate::keys;
use crate::store::{Range, Txn, Write};
use crate::timestamp::UnixNanos;
use crate::view::View;

use super::draft::txn;
use super::{Decision, Expect, Stop, datastore_ready, expected_revision, is_identifier};

/// Blocks that a recount looks at, at most: keeps a transaction below etcd's 128 operations.
const MAX_BLOCKS: usize = 100;

type Plan<T> = Result<T, Stop<RepairRefusal>>;

/// A repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairRequest {
    /// Gives an unused block back: it and its affinity vanish, and any node may claim it.
    GiveBackBlock {
        /// The node that has it.
        node: String,
        /// The block.
        block: IpNetwork,
        /// Its sequence number when it was seen unused; with another one nothing is done.
        sequence_number: u64,
    },
    /// Takes a block from a node that is gone. What is still allocated in it stays, in a block of nobody.
    TakeBlock {
        /// The node that is gone.
        node: String,
        /// The block.
        block: IpNetwork,
    },
    /// Makes a node's affinity agree with the block: confirmed if the block is the node's, removed otherwise.
    SettleAffinity {
        /// The node.
        node: String,
        /// The block.
        block: IpNetwork,
    },
    /// Makes a handle say what the blocks say: those it names and those named here. Without any address it vanishes.
    RecountHandle {
        /// The handle.
        handle_id: String,
        /// Blocks that may have addresses of it, besides those it names.
        blocks: Vec<IpNetwork>,
    },
    /// Frees an address that is allocated without a handle.
    FreeAddress {
        /// The block.
        block: IpNetwork,
        /// The address.
        address: IpAddr,
        /// The sequence number of the allocation; with another one nothing is done.
        sequence_number: u64,
    },
    /// Deletes a workload endpoint. Its addresses are another matter.
    DeleteEndpoint {
        /// Its key.
        key: String,
        /// What must be true of it.
        expect: Expect,
    },
    /// Shuts out whatever assignments a node that is gone may still have under way, by changing its fence.
    ShutOut {
        /// The node that is gone.
        node: String,
        /// When, for people.
        at: UnixNanos,
    },
    /// Deletes the fence of a node that is gone, and has no Node resource.
    ForgetFence {
        /// The node that is gone.
        node: String,
    },
}

/// What a repair did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repaired {
    /// What was asked.
    Done,
    /// Nothing: it is already as it should be.
    NotNeeded,
}

/// Plans `request`.
pub fn plan_repair(view: &View, request: &RepairRequest) -> Decision<Repaired, RepairRefusal> {
    match try_plan(view, request) {
        Ok(decision) => decision,
        Err(stop) => stop.into(),
    }
}

fn try_plan(view: &View, request: &RepairRequest) -> Plan<Decision<Repaired, RepairRefusal>> {
    validate(request).map_err(|why| Stop::Refuse(RepairRefusal::InvalidRequest(why)))?;
    let mut needed = vec![Range::Key(keys::CLUSTER_INFORMATION.to_owned())];
    needed.extend(request.looks_at().into_iter().map(Range::Key));
    view.require(needed)?;
    let (ready, ready_guard) = datastore_ready(view)?;
    if !ready {
        return Err(Stop::Refuse(RepairRefusal::DatastoreLocked));
    }
    let mut repair = Change {
        view,
        guards: BTreeMap::from([(ready_guard.key, ready_guard.mod_revision)]),
        writes: BTreeMap::new(),
    };
    match request {
        RepairRequest::GiveBackBlock {
            node,
            block,
            sequence_number,
        } => repair.give_back(node, *block, *sequence_number)?,
        RepairRequest::TakeBlock { node, block } => repair.take(node, *block)?,
        RepairRequest::SettleAffinity { node, block } => repair.settle(node, *block)?,
        RepairRequest::RecountHandle { handle_id, blocks } => repair.recount(handle_id, blocks)?,
        RepairRequest::FreeAddress {
            block,
            address,
            sequence_number,
        } => repair.free(*block, *address, *sequence_number)?,
        RepairRequest::DeleteEndpoint { key, expect } => repair.delete_endpoint(key, *expect)?,
        RepairRequest::ShutOut { node, at } => {
            if let Write::Put { key, value } = fence::write(node, *at) {
                repair.set(key, Some(value))?;
            }
        }
        RepairRequest::ForgetFence { node } => repair.forget_fence(node)?,
    }
    Ok(repair.into_decision())
}

fn validate(request: &RepairRequest) -> Result<(), String> {
    let (what, id) = match request {
        RepairRequest::GiveBackBlock { node, .. }
        | RepairRequest::TakeBlock { node, .. }
        | RepairRequest::SettleAffinity { node, .. }
        | RepairRequest::ShutOut { node, .. }
        | RepairRequest::ForgetFence { node } => ("node", node),
        RepairRequest::RecountHandle { handle_id, .. } => ("handle", handle_id),
        RepairRequest::FreeAddress { .. } => return Ok(()),
        RepairRequest::DeleteEndpoint { key, .. } if key.starts_with(keys::WORKLOAD_ENDPOINTS) => {
            return Ok(());
        }
        RepairRequest::DeleteEndpoint { key, .. } => return Err(format!("{key:?} is no workload endpoint")),
    };
    if is_identifier(id) {
        Ok(())
    } else {
        Err(format!(
            "{what} {id:?} is empty, too long, or has a slash or control character"
        ))
    }
}

/// A transaction in the making.
struct Change<'a> {
    view: &'a View,
    guards: BTreeMap<String, i64>,
    writes: BTreeMap<String, Option<Vec<u8>>>,
}

impl Change<'_> {
    fn give_back(&mut self, node: &str, cidr: IpNetwork, sequence_number: u64) -> Plan<()> {
        let Some(block) = self.view.block(cidr)?? else {
            return self.settle(node, cidr);
        };
        if block.host() != Some(node) {
            return self.settle(node, cidr);
        }
        if block.sequence_number() != sequence_number {
            return Err(Stop::Refuse(RepairRefusal::Changed {
                what: format!("block {cidr}"),
                expected: sequence_number,
                present: block.sequence_number(),
            }));
        }
        if !block.is_empty() {
            let allocated = block.allocations().count();
            return Err(Stop::Refuse(RepairRefusal::InUse {
                block: cidr,
                allocated,
            }));
        }
        self.set(keys::block(cidr), None)?;
        self.remove_affinity(node, cidr)
    }

    fn take(&mut self, node: &str, cidr: IpNetwork) -> Plan<()> {
        let Some(block) = self.view.block(cidr)?? else {
            return self.settle(node, cidr);
        };
        if block.host() != Some(node) {
            return self.settle(node, cidr);
        }
        let left = (!block.is_empty()).then(|| block.disowned().to_json());
        self.set(keys::block(cidr), left)?;
        self.remove_affinity(node, cidr)
    }

    fn settle(&mut self, node: &str, cidr: IpNetwork) -> Plan<()> {
        let is_the_nodes = self
            .view
            .block(cidr)??
            .is_some_and(|block| block.host() == Some(node));
        self.guard(&keys::block(cidr))?;
        if !is_the_nodes {
            return self.remove_affinity(node, cidr);
        }
        let key = keys::affinity(node, cidr);
        let stored = self.view.get(&key)?;
        // One that cannot be read is replaced: the block says whose it is, and the transaction depends on it.
        let mut affinity = stored
            .and_then(|kv| Affinity::parse(&key, &kv.value).ok())
            .unwrap_or_else(Affinity::confirmed);
        affinity.state = AffinityState::Confirmed;
        let confirmed = affinity.to_json();
        if stored.is_none_or(|kv| kv.value != confirmed) {
            self.set(key, Some(confirmed))?;
        }
        Ok(())
    }

    fn recount(&mut self, handle_id: &str, blocks: &[IpNetwork]) -> Plan<()> {
        let key = keys::handle(handle_id);
        let stored = match self.view.get(&key)? {
            Some(kv) => Some(Handle::parse(&key, &kv.value)?),
            None => None,
        };
        let handle = stored.clone().unwrap_or_default();
        let mut blocks: BTreeSet<IpNetwork> = blocks.iter().copied().collect();
        blocks.extend(handle.blocks());
        if blocks.len() > MAX_BLOCKS {
            let why = format!(
                "handle {handle_id:?} has {} blocks, at most {MAX_BLOCKS}",
                blocks.len()
            );
            return Err(Stop::Refuse(RepairRefusal::InvalidRequest(why)));
        }
        self.view
            .require(blocks.iter().map(|&cidr| Range::Key(keys::block(cidr))))?;
        let mut counted = handle;
        for cidr in blocks {
            let count = self
                .view
                .block(cidr)??
                .map_or(0, |block| count_of(&block, handle_id));
            self.guard(&keys::block(cidr))?;
            counted = counted.with_count(cidr, count);
        }
        match (&stored, counted.is_empty()) {
            (None, true) => Ok(()),
            (Some(_), true) => self.set(key, None),
            (Some(stored), false) if *stored == counted => Ok(()),
            (_, false) => self.set(key, Some(counted.to_json())),
        }
    }

    fn free(&mut self, cidr: IpNetwork, address: IpAddr, sequence_number: u64) -> Plan<()> {
        let Some(block) = self.view.block(cidr)?? else {
            return Ok(());
        };
        let Some(allocation) = block.allocation(address) else {
            return Ok(());
        };
        if let Some(handle_id) = allocation.attribute.handle().filter(|id| !id.is_empty()) {
            return Err(Stop::Refuse(RepairRefusal::HasHandle {
                address,
                handle_id: handle_id.to_owned(),
            }));
        }
        if allocation.sequence_number != sequence_number {
            return Err(Stop::Refuse(RepairRefusal::Changed {
                what: format!("the allocation of {address}"),
                expected: sequence_number,
                present: allocation.sequence_number,
            }));
        }
        let next = block.release(&[address]);
        // A block that belongs to nobody exists only for its allocations.
        let gone = next.is_ownerless() && next.is_empty();
        self.set(keys::block(cidr), (!gone).then(|| next.to_json()))
    }

    fn delete_endpoint(&mut self, key: &str, expect: Expect) -> Plan<()> {
        if self.view.get(key)?.is_none() {
            return Ok(());
        }
        if expected_revision(self.view, key, expect)?.is_err() {
            let key = key.to_owned();
            return Err(Stop::Refuse(RepairRefusal::ExtraConflict { key }));
        }
        self.set(key.to_owned(), None)
    }

    fn forget_fence(&mut self, node: &str) -> Plan<()> {
        let node_key = keys::resource("nodes", node);
        if self.view.get(&node_key)?.is_some() || self.view.get(&keys::fence(node))?.is_none() {
            return Ok(());
        }
        self.guard(&node_key)?;
        self.set(keys::fence(node), None)
    }

    fn remove_affinity(&mut self, node: &str, cidr: IpNetwork) -> Plan<()> {
        let key = keys::affinity(node, cidr);
        if self.view.get(&key)?.is_some() {
            self.set(key, None)?;
        }
        Ok(())
    }

    /// Writes `key` (`None` deletes), if it is still as it was read.
    fn set(&mut self, key: String, value: Option<Vec<u8>>) -> Plan<()> {
        self.guard(&key)?;
        self.writes.insert(key, value);
        Ok(())
    }

    fn guard(&mut self, key: &str) -> Plan<()> {
        let revision = self.view.get(key)?.map_or(0, |kv| kv.mod_revision);
        self.guards.insert(key.to_owned(), revision);
        Ok(())
    }

    fn into_decision(self) -> Decision<Repaired, RepairRefusal> {
        if self.writes.is_empty() {
            return Decision::Done(Repaired::NotNeeded);
        }
        let txn: Txn = txn(self.guards, self.writes);
        Decision::Commit {
            txn,
            blocks: Vec::new(),
            outcome: Repaired::Done,
        }
    }
}

impl RepairRequest {
    fn looks_at(&self) -> Vec<String> {
        match self {
            Self::GiveBackBlock { node, block, .. }
            | Self::TakeBlock { node, block }
            | Self::SettleAffinity { node, block } => {
                vec![keys::block(*block), keys::affinity(node, *block)]
            }
            Self::RecountHandle { handle_id, .. } => vec![keys::handle(handle_id)],
            Self::FreeAddress { block, .. } => vec![keys::block(*block)],
            Self::DeleteEndpoint { key, .. } => vec![key.clone()],
            Self::ShutOut { node, .. } => vec![keys::fence(node)],
            Self::ForgetFence { node } => vec![keys::fence(node), keys::resource("nodes", node)],
        }
    }
}

impl fmt::Display for RepairRequest {
    /// What it would do, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GiveBackBlock { node, block, .. } => write!(f, "give back block {block} of {node}"),
            Self::TakeBlock { node, block } => write!(f, "take block {block} from {node}"),
            Self::SettleAffinity { node, block } => {
                write!(f, "make {node}'s affinity to {block} agree with the block")
            }
            Self::RecountHandle { handle_id, .. } => write!(f, "count the addresses of {handle_id:?} anew"),
            Self::FreeAddress { address, .. } => write!(f, "free {address}"),
            Self::ShutOut { node, .. } => write!(f, "shut out what {node} may have under way"),
            Self::ForgetFence { node } => write!(f, "delete the fence of {node}"),
            Self::DeleteEndpoint { key, .. } => {
                let name = key.strip_prefix(keys::WORKLOAD_ENDPOINTS).unwrap_or(key);
                write!(f, "delete endpoint {name}")
            }
        }
    }
}

fn count_of(block: &AllocationBlock, handle_id: &str) -> u64 {
    let allocations = block.allocated_attributes();
    let mine = allocations.filter(|attribute| attribute.belongs_to(handle_id) && !attribute.is_resting());
    u64::try_from(mine.count()).unwrap_or(u64::MAX)
}
