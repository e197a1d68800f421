//! What an audit can find, and what would repair it.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::keys;
use crate::plan::RepairRequest;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "problem", rename_all = "kebab-case")]
pub enum Finding {
    /// A block whose value contradicts itself or its key. Nothing is known of its addresses.
    InvalidBlock {
        /// The block's key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// Another value that cannot be read.
    InvalidValue {
        /// Its key.
        key: String,
        /// What was expected there.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// Two blocks cover the same addresses.
    OverlappingBlocks {
        /// The larger (or first) one.
        block: IpNetwork,
        /// The other one.
        other: IpNetwork,
    },
    /// An address is allocated in more than one block.
    AllocatedTwice {
        /// The address.
        address: IpAddr,
        /// The allocations.
        allocations: Vec<AllocationId>,
    },
    /// Several endpoints, tunnel devices or containers have the same address.
    SeveralUsers {
        /// The address.
        address: IpAddr,
        /// Who.
        users: Vec<User>,
    },
    /// An address is allocated to one pod, and another pod's endpoint has it.
    AllocatedToAnother {
        /// The allocation.
        allocation: AllocationId,
        /// The pod it is allocated to, `NAMESPACE/POD`.
        pod: String,
        /// Who has it.
        user: User,
    },
    /// Somebody has an address of a pool that is not allocated: it can be given to another.
    InUseNotAllocated {
        /// The address.
        address: IpAddr,
        /// Who.
        users: Vec<User>,
    },
    /// Somebody has an address that is neither allocated nor in an enabled pool.
    InUseOutsidePools {
        /// The address.
        address: IpAddr,
        /// Who.
        users: Vec<User>,
    },
    /// An address is allocated and nobody has it: leaked, or its container is being started or stopped.
    AllocatedNotInUse {
        /// The allocation.
        allocation: AllocationId,
        /// The node it was made for, where noted.
        node: Option<String>,
        /// When, as noted.
        allocated_at: Option<String>,
    },
    /// An address in use is allocated without a handle: it will not be released when its user goes.
    AllocationWithoutHandle {
        /// The allocation.
        allocation: AllocationId,
    },
    /// A handle has addresses in blocks, but does not exist.
    MissingHandle {
        /// The handle.
        handle_id: String,
        /// Where its addresses are.
        blocks: Vec<IpNetwork>,
    },
    /// A handle without any address.
    EmptyHandle {
        /// The handle.
        handle_id: String,
    },
    /// A handle whose count for a block is not what the block has.
    MiscountedHandle {
        /// The handle.
        handle_id: String,
        /// The block.
        block: IpNetwork,
        /// What the handle says.
        counted: u64,
        /// What the block has.
        allocated: u64,
    },
    /// A block outside all pools.
    BlockOutsidePools {
        /// The block.
        block: IpNetwork,
        /// Its owner as stored.
        owner: Option<String>,
        /// How many of its addresses are allocated.
        allocated: usize,
    },
    /// A block says it is a node's, but the node has no affinity to it: the node does not announce it.
    BlockWithoutAffinity {
        /// The block.
        block: IpNetwork,
        /// The node.
        node: String,
    },
    /// A node's affinity to a block that does not exist.
    AffinityWithoutBlock {
        /// The node.
        node: String,
        /// The block.
        block: IpNetwork,
    },
    /// A node's affinity to a block that is somebody else's: two nodes would announce it.
    AffinityToForeignBlock {
        /// The node.
        node: String,
        /// The block.
        block: IpNetwork,
        /// Its owner as stored.
        owner: Option<String>,
    },
    /// A claim or a return that stopped half way: the affinity is `pending` or `pendingDeletion`.
    UnfinishedAffinity {
        /// The node.
        node: String,
        /// The block.
        block: IpNetwork,
        /// The state as stored.
        state: String,
    },
    /// A node that does not exist still has blocks, addresses or endpoints.
    UnknownNode {
        /// The node.
        node: String,
        /// Its blocks.
        blocks: Vec<IpNetwork>,
        /// How many addresses are allocated for it.
        allocations: usize,
        /// How many endpoints it has.
        endpoints: usize,
    },
    /// A container runs with an address and has no endpoint.
    RunningWithoutEndpoint {
        /// The address.
        address: IpAddr,
        /// Where.
        node: String,
        /// What has it.
        what: String,
    },
    /// An endpoint of a node on which nothing has its address.
    EndpointNotRunning {
        /// The endpoint's key.
        key: String,
        /// The node.
        node: String,
        /// The address.
        address: IpAddr,
    },
}

/// One allocation, so exactly that a later one of the same address is another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AllocationId {
    /// The address.
    pub address: IpAddr,
    /// The block that it is allocated in.
    pub block: IpNetwork,
    /// The handle; empty if there is none.
    pub handle_id: String,
    /// The sequence number of the allocation.
    pub sequence_number: u64,
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum User {
    /// A workload endpoint.
    Endpoint {
        /// Its key.
        key: String,
        /// Its node.
        node: String,
    },
    /// A node's tunnel device, as the Node says.
    Tunnel {
        /// The node.
        node: String,
    },
    /// A container, as its node says.
    Running {
        /// The node.
        node: String,
        /// What has it, for example an interface.
        what: String,
    },
}

/// What would repair a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Releasing this allocation, if nobody turns out to use it.
    Release(AllocationId),
    /// A change of the datastore that gives and takes no address in use.
    Mend(RepairRequest),
    /// Something that only an operator can decide.
    ByHand(String),
}

impl Finding {
    /// The key that is wrong, or where to look first.
    pub fn key(&self) -> String {
        match self {
            Self::InvalidBlock { key, .. }
            | Self::InvalidValue { key, .. }
            | Self::EndpointNotRunning { key, .. } => key.clone(),
            Self::OverlappingBlocks { block, .. }
            | Self::BlockOutsidePools { block, .. }
            | Self::BlockWithoutAffinity { block, .. } => keys::block(*block),
            Self::AllocatedTwice { allocations, .. } => {
                allocations.first().map(AllocationId::key).unwrap_or_default()
            }
            Self::AllocatedToAnother { allocation, .. }
            | Self::AllocatedNotInUse { allocation, .. }
            | Self::AllocationWithoutHandle { allocation } => allocation.key(),
            Self::SeveralUsers { users, .. }
            | Self::InUseNotAllocated { users, .. }
            | Self::InUseOutsidePools { users, .. } => users.first().map(User::key).unwrap_or_default(),
            Self::MissingHandle { handle_id, .. }
            | Self::EmptyHandle { handle_id }
            | Self::MiscountedHandle { handle_id, .. } => keys::handle(handle_id),
            Self::AffinityWithoutBlock { node, block }
            | Self::AffinityToForeignBlock { node, block, .. }
            | Self::UnfinishedAffinity { node, block, .. } => keys::affinity(node, *block),
            Self::UnknownNode { node, .. } | Self::RunningWithoutEndpoint { node, .. } => {
                keys::resource("nodes", node)
            }
        }
    }

    /// The address that is wrong, if it is about one.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::AllocatedTwice { address, .. }
            | Self::SeveralUsers { address, .. }
            | Self::InUseNotAllocated { address, .. }
            | Self::InUseOutsidePools { address, .. }
            | Self::RunningWithoutEndpoint { address, .. }
            | Self::EndpointNotRunning { address, .. } => Some(*address),
            Self::AllocatedToAnother { allocation, .. }
            | Self::AllocatedNotInUse { allocation, .. }
            | Self::AllocationWithoutHandle { allocation } => Some(allocation.address),
            _ => None,
        }
    }

    /// What would repair it.
    pub fn repair(&self) -> Repair {
        let by_hand = |what: &str| Repair::ByHand(what.to_owned());
        match self {
            Self::AllocatedNotInUse { allocation, .. } if allocation.handle_id.is_empty() => {
                Repair::Mend(RepairRequest::FreeAddress {
                    block: allocation.block,
                    address: allocation.address,
                    sequence_number: allocation.sequence_number,
                })
            }
            Self::AllocatedNotInUse { allocation, .. } => Repair::Release(allocation.clone()),
            Self::MissingHandle { handle_id, blocks } => Repair::Mend(RepairRequest::RecountHandle {
                handle_id: handle_id.clone(),
                blocks: blocks.clone(),
            }),
            Self::EmptyHandle { handle_id } => Repair::Mend(RepairRequest::RecountHandle {
                handle_id: handle_id.clone(),
                blocks: Vec::new(),
            }),
            Self::MiscountedHandle { handle_id, block, .. } => Repair::Mend(RepairRequest::RecountHandle {
                handle_id: handle_id.clone(),
                blocks: vec![*block],
            }),
            Self::BlockWithoutAffinity { node, block }
            | Self::AffinityWithoutBlock { node, block }
            | Self::AffinityToForeignBlock { node, block, .. }
            | Self::UnfinishedAffinity { node, block, .. } => Repair::Mend(RepairRequest::SettleAffinity {
                node: node.clone(),
                block: *block,
            }),
            Self::UnknownNode { node, .. } => Repair::ByHand(format!(
                "if the node is gone for good: calidris ipam release --node {node}"
            )),
            Self::InvalidBlock { .. } | Self::InvalidValue { .. } => {
                by_hand("correct the value, or restore it from a backup")
            }
            Self::OverlappingBlocks { .. } => {
                by_hand("move the workloads of one of the blocks, then give it back")
            }
            Self::AllocatedTwice { .. }
            | Self::SeveralUsers { .. }
            | Self::AllocatedToAnother { .. }
            | Self::AllocationWithoutHandle { .. }
            | Self::InUseNotAllocated { .. } => {
                by_hand("start what uses it anew, so that it gets an address of its own")
            }
            Self::InUseOutsidePools { .. } => {
                by_hand("nothing, if another program gives these addresses; otherwise make a pool of them")
            }
            Self::BlockOutsidePools { .. } => by_hand(
                "make the pool again, or move the workloads; an empty block is given back by its node",
            ),
            Self::RunningWithoutEndpoint { .. } => {
                by_hand("start the workload anew; the node's agent removes what it does not know")
            }
            Self::EndpointNotRunning { .. } => {
                by_hand("delete the endpoint if the workload is gone; its address is released then")
            }
        }
    }
}

impl fmt::Display for Finding {
    /// What is wrong, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidBlock { why, .. } => write!(f, "the block is invalid: {why}"),
            Self::InvalidValue { what, why, .. } => write!(f, "not a valid {what}: {why}"),
            Self::OverlappingBlocks { block, other } => write!(f, "blocks {block} and {other} overlap"),
            Self::AllocatedTwice { address, allocations } => {
                write!(f, "{address} is allocated {} times: ", allocations.len())?;
                list(f, allocations)
            }
            Self::SeveralUsers { address, users } => {
                write!(f, "{address} is used {} times: ", users.len())?;
                list(f, users)
            }
            Self::AllocatedToAnother {
                allocation,
                pod,
                user,
            } => {
                write!(
                    f,
                    "{} is allocated to {pod}, but used by {user}",
                    allocation.address
                )
            }
            Self::InUseNotAllocated { address, users } => {
                write!(f, "{address} is not allocated, but used by ")?;
                list(f, users)
            }
            Self::InUseOutsidePools { address, users } => {
                write!(f, "{address} is in no enabled pool, but used by ")?;
                list(f, users)
            }
            Self::AllocatedNotInUse {
                allocation,
                node,
                allocated_at,
            } => {
                write!(
                    f,
                    "{} is allocated to {:?}",
                    allocation.address, allocation.handle_id
                )?;
                if let Some(node) = node {
                    write!(f, " on {node}")?;
                }
                if let Some(time) = allocated_at {
                    write!(f, " since {time}")?;
                }
                f.write_str(", but nobody uses it")
            }
            Self::AllocationWithoutHandle { allocation } => {
                write!(f, "{} is allocated without a handle", allocation.address)
            }
            Self::MissingHandle { handle_id, blocks } => {
                write!(f, "handle {handle_id:?} does not exist, but has addresses in ")?;
                list(f, blocks)
            }
            Self::EmptyHandle { handle_id } => write!(f, "handle {handle_id:?} has no address"),
            Self::MiscountedHandle {
                handle_id,
                block,
                counted,
                allocated,
            } => write!(
                f,
                "handle {handle_id:?} counts {counted} addresses in {block}, which has {allocated} for it"
            ),
            Self::BlockOutsidePools {
                block,
                owner,
                allocated,
            } => {
                let owner = owner.as_deref().unwrap_or("nobody");
                write!(
                    f,
                    "block {block} of {owner} is in no pool; {allocated} addresses are allocated"
                )
            }
            Self::BlockWithoutAffinity { block, node } => {
                write!(f, "block {block} is {node}'s, which has no affinity to it")
            }
            Self::AffinityWithoutBlock { node, block } => {
                write!(f, "{node} has an affinity to block {block}, which does not exist")
            }
            Self::AffinityToForeignBlock { node, block, owner } => {
                let owner = owner.as_deref().unwrap_or("nobody");
                write!(
                    f,
                    "{node} has an affinity to block {block}, which belongs to {owner}"
                )
            }
            Self::UnfinishedAffinity { node, block, state } => {
                write!(f, "{node}'s affinity to block {block} is still {state:?}")
            }
            Self::UnknownNode {
                node,
                blocks,
                allocations,
                endpoints,
            } => write!(
                f,
                "node {node} does not exist, but has {} blocks, {allocations} addresses and {endpoints} endpoints",
                blocks.len()
            ),
            Self::RunningWithoutEndpoint { address, node, what } => {
                write!(f, "{what} on {node} has {address} and no endpoint")
            }
            Self::EndpointNotRunning { key, node, address } => {
                let name = key.strip_prefix(keys::WORKLOAD_ENDPOINTS).unwrap_or(key);
                write!(f, "endpoint {name} has {address}, which nothing on {node} has")
            }
        }
    }
}

impl fmt::Display for Repair {
    /// What would repair it, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release(allocation) => write!(f, "release {}", allocation.address),
            Self::Mend(request) => request.fmt(f),
            Self::ByHand(what) => f.write_str(what),
        }
    }
}

impl AllocationId {
    fn key(&self) -> String {
        keys::block(self.block)
    }
}

impl fmt::Display for AllocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "to {:?} in {}", self.handle_id, self.block)
    }
}

impl User {
    /// The node it is on.
    pub fn node(&self) -> &str {
        match self {
            Self::Endpoint { node, .. } | Self::Tunnel { node } | Self::Running { node, .. } => node,
        }
    }

    fn key(&self) -> String {
        match self {
            Self::Endpoint { key, .. } => key.clone(),
            Self::Tunnel { node } | Self::Running { node, .. } => keys::resource("nodes", node),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint { key, .. } => {
                let name = key.strip_prefix(keys::WORKLOAD_ENDPOINTS).unwrap_or(key);
                write!(f, "endpoint {name}")
            }
            Self::Tunnel { node } => write!(f, "a tunnel device of {node}"),
            Self::Running { node, what } => write!(f, "{what} on {node}"),
        }
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        write!(f, "{separator}{item}")?;
    }
    Ok(())
}
