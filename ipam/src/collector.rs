//! The automatic collector of one node: a state machine that decides what may be taken back, from what it is shown.
//!
//! It is shown the datastore ([`Inventory`], the node's part of it is enough) and what lives on the node ([`Alive`]), time
//! after time, and answers with acts. It acts only on what it has proved dead:
//!
//! - a handle whose every address was given to a container of *this* node, that no endpoint has, no container and no
//!   interface of the node, at every look during the grace period and at least at two; all of its addresses or none;
//! - an address kept for a workload, in a block of this node, whose time is over, at two looks at least;
//! - a block of this node that was empty and unchanged during `block_idle`, at two looks at least; one block per family
//!   is kept, except of pools that are disabled or gone;
//! - an affinity of this node that disagreed with its block all through the grace period, at two looks at least.
//!
//! An act is guarded by what the proof rests on (sequence numbers of the allocations, revisions of the endpoints' keys):
//! if anything has changed, nothing happens, and the next look decides anew. Tunnel addresses, virtual machines (whose
//! addresses outlive their pods), load balancers and addresses borrowed for other nodes are never touched.
//!
//! Calling order: [`Collector::look`] every now and then with `now` rising; carry out the acts; look again. Failed acts
//! need no report: what is still dead at the next look is decided again. Time is whatever monotonic clock the caller has;
//! the wall clock ([`Alive::wall`]) only says until when addresses are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::audit::AllocationId;
use crate::block::{Allocation, AllocationBlock};
use crate::error::Family;
use crate::inventory::Inventory;
use crate::keep::{KEEP_SECONDS_NOTE, KEEPER_NOTE};
use crate::plan::{Expect, ExtraGuard, ReleaseOnly, ReleaseRequest, RepairRequest};
use crate::timestamp::UnixNanos;

/// Times that something must have been seen dead.
const MIN_LOOKS: u32 = 2;

/// What is noted with the address of a container. Anything else there means another kind of owner.
const NOTES_OF_A_CONTAINER: [&str; 6] = [
    "namespace",
    "node",
    "pod",
    "timestamp",
    KEEPER_NOTE,
    KEEP_SECONDS_NOTE,
];

/// What an operator decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorConfig {
    /// The node.
    pub node: String,
    /// How long something must be dead, without interruption, before it is taken back.
    pub grace: Duration,
    /// How long a block must be unused before it is given back.
    pub block_idle: Duration,
    /// Most acts of one look; the others wait for the next.
    pub max_acts: usize,
}

/// What lives on the node, with how that is known. Whatever is in here is not touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alive {
    /// The time by the wall clock; without one nothing that is kept for a while is taken back.
    pub wall: Option<UnixNanos>,
    /// Handles of containers that are attached or being attached or detached.
    pub handles: BTreeMap<String, String>,
    /// Addresses that something on the node has.
    pub addresses: BTreeMap<IpAddr, String>,
    /// The keys under which a handle's endpoints would be. They are in the inventory, if they exist.
    pub endpoint_keys: BTreeMap<String, BTreeSet<String>>,
}

/// What is to be done, and why that is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Release all that a dead handle has.
    Release {
        /// The request.
        request: ReleaseRequest,
        /// Why.
        proof: Proof,
    },
    /// Give a block back, or settle an affinity.
    Repair {
        /// The request.
        request: RepairRequest,
        /// Why.
        proof: Proof,
    },
}

/// Why an act is right: for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// What is dead.
    pub claim: String,
    /// How long it has been seen so, without interruption.
    pub seen_for: Duration,
    /// At how many looks.
    pub looks: u32,
    /// Revision of the datastore at the first of them.
    pub first_revision: i64,
    /// Revision of the datastore at the last of them.
    pub last_revision: i64,
    /// How many live handles and addresses it was compared with.
    pub compared_with: (usize, usize),
}

/// The collector of a node.
#[derive(Clone, Debug)]
pub struct Collector {
    config: CollectorConfig,
    suspects: BTreeMap<Suspect, Suspicion>,
}

/// What may be dead, so exactly that anything that happens to it makes another suspect of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Suspect {
    Handle {
        handle_id: String,
        allocations: Vec<AllocationId>,
    },
    Kept {
        handle_id: String,
        allocations: Vec<AllocationId>,
    },
    Block {
        block: IpNetwork,
        sequence_number: u64,
    },
    Affinity {
        block: IpNetwork,
    },
}

#[derive(Clone, Debug)]
struct Suspicion {
    since: Duration,
    first_revision: i64,
    looks: u32,
}

impl Collector {
    /// A collector that suspects nothing yet.
    pub fn new(config: CollectorConfig) -> Self {
        Self {
            config,
            suspects: BTreeMap::new(),
        }
    }

    /// Takes in what is at `now` and says what to do.
    pub fn look(&mut self, now: Duration, inventory: &Inventory, alive: &Alive) -> Vec<Act> {
        let dead = if inventory.locked {
            BTreeSet::new()
        } else {
            self.dead(inventory, alive)
        };
        // Whatever lives again, or is gone, is no longer suspected.
        self.suspects.retain(|suspect, _| dead.contains(suspect));
        for suspect in &dead {
            let known = self.suspects.entry(suspect.clone()).or_insert(Suspicion {
                since: now,
                first_revision: inventory.revision,
                looks: 0,
            });
            known.looks = known.looks.saturating_add(1);
        }
        let due = self.due(now, inventory);
        let act = |suspect: &Suspect| self.act(suspect, now, inventory, alive);
        due.iter().take(self.config.max_acts).filter_map(act).collect()
    }

    fn dead(&self, inventory: &Inventory, alive: &Alive) -> BTreeSet<Suspect> {
        let mut dead = BTreeSet::new();
        let used = used_addresses(inventory);
        for (handle_id, allocations) in self.handles_of_containers(inventory) {
            let lives = |allocation: &Allocation| {
                used.contains(&allocation.address) || alive.addresses.contains_key(&allocation.address)
            };
            let endpoint_is_unreadable = || {
                let mut keys = alive.endpoint_keys.get(handle_id).into_iter().flatten();
                keys.any(|key| inventory.unreadable.iter().any(|value| value.key == *key))
            };
            if !alive.handles.contains_key(handle_id)
                && !allocations.iter().any(lives)
                && !endpoint_is_unreadable()
            {
                dead.insert(Suspect::Handle {
                    handle_id: handle_id.to_owned(),
                    allocations: allocations.iter().map(AllocationId::of).collect(),
                });
            }
        }
        for (handle_id, allocations) in self.kept_too_long(inventory, alive) {
            dead.insert(Suspect::Kept {
                handle_id: handle_id.to_owned(),
                allocations: allocations.iter().map(AllocationId::of).collect(),
            });
        }
        for (&block, stored) in &inventory.blocks {
            if stored.host() == Some(&self.config.node) && stored.is_empty() {
                let sequence_number = stored.sequence_number();
                dead.insert(Suspect::Block {
                    block,
                    sequence_number,
                });
            }
        }
        for ((node, block), state) in &inventory.affinities {
            let agrees = inventory
                .blocks
                .get(block)
                .is_some_and(|block| block.host() == Some(node))
                && state.is_confirmed();
            if *node == self.config.node && !agrees && !inventory.invalid_blocks.contains(block) {
                dead.insert(Suspect::Affinity { block: *block });
            }
        }
        dead
    }

    /// The keepers whose time is over, with what they have in blocks of this node.
    fn kept_too_long<'a>(
        &self,
        inventory: &'a Inventory,
        alive: &Alive,
    ) -> BTreeMap<&'a str, Vec<Allocation>> {
        let mut over: BTreeMap<&str, Vec<Allocation>> = BTreeMap::new();
        let blocks = inventory.blocks.values();
        let own = blocks.filter(|block| block.host() == Some(&self.config.node));
        for allocation in own.flat_map(AllocationBlock::allocations) {
            let until = allocation.attribute.kept_until();
            let is_over = until.zip(alive.wall).is_some_and(|(until, now)| until <= now);
            let handle_id = allocation.attribute.handle().filter(|_| is_over);
            if let Some((handle_id, _)) = handle_id.and_then(|id| inventory.handles.get_key_value(id)) {
                over.entry(handle_id).or_default().push(allocation);
            }
        }
        over
    }

    /// The handles all of whose addresses are known and were given to containers of this node.
    fn handles_of_containers<'a>(&self, inventory: &'a Inventory) -> BTreeMap<&'a str, Vec<Allocation>> {
        let mut by_handle: BTreeMap<&str, Vec<Allocation>> = BTreeMap::new();
        let all = inventory.blocks.values().flat_map(AllocationBlock::allocations);
        for allocation in all {
            let Some(handle_id) = allocation.attribute.handle() else {
                continue;
            };
            if let Some((handle_id, _)) = inventory.handles.get_key_value(handle_id) {
                by_handle.entry(handle_id).or_default().push(allocation);
            }
        }
        by_handle.retain(|handle_id, allocations| {
            let every_block_is_known = inventory
                .handles
                .get(*handle_id)
                .is_some_and(|handle| handle.blocks().all(|cidr| inventory.blocks.contains_key(&cidr)));
            every_block_is_known
                && allocations
                    .iter()
                    .all(|allocation| self.is_of_a_container_here(allocation))
        });
        by_handle
    }

    fn is_of_a_container_here(&self, allocation: &Allocation) -> bool {
        let notes = &allocation.attribute.secondary;
        // A tunnel device has a `type`, a virtual machine that can move a second owner, a load balancer a `service`.
        let are_of_a_container = notes
            .keys()
            .all(|note| NOTES_OF_A_CONTAINER.contains(&note.as_str()));
        notes.get("node") == Some(&self.config.node)
            && are_of_a_container
            && allocation
                .attribute
                .extra
                .values()
                .all(serde_json::Value::is_null)
    }

    /// What has been dead long enough and often enough. Of the empty blocks only those that need not be kept.
    fn due(&self, now: Duration, inventory: &Inventory) -> Vec<Suspect> {
        let long_enough = |suspect: &Suspect, suspicion: &Suspicion| {
            let limit = match suspect {
                Suspect::Block { .. } => self.config.block_idle,
                Suspect::Handle { .. } | Suspect::Affinity { .. } => self.config.grace,
                // Its own time is over.
                Suspect::Kept { .. } => Duration::ZERO,
            };
            suspicion.looks >= MIN_LOOKS && now.saturating_sub(suspicion.since) >= limit
        };
        let due = self
            .suspects
            .iter()
            .filter(|(suspect, suspicion)| long_enough(suspect, suspicion));
        let kept = self.kept_blocks(inventory);
        due.map(|(suspect, _)| suspect)
            .filter(|suspect| !matches!(suspect, Suspect::Block { block, .. } if kept.contains(block)))
            .cloned()
            .collect()
    }

    /// One block per family that stays even if it is empty: unless another one is in use, the one claimed first.
    fn kept_blocks(&self, inventory: &Inventory) -> BTreeSet<IpNetwork> {
        let usable = |cidr: &IpNetwork| {
            let mut pools = inventory.pools_of(cidr.ip());
            pools.any(|(_, pool)| !pool.spec.disabled && pool.cidr.prefix() <= cidr.prefix())
        };
        let mut kept: BTreeMap<Family, (bool, i64, IpNetwork)> = BTreeMap::new();
        for (&cidr, block) in &inventory.blocks {
            if block.host() != Some(&self.config.node) || !usable(&cidr) {
                continue;
            }
            let claimed_at = block.claimed_at().map_or(i64::MAX, |at| at.0);
            let candidate = (block.is_empty(), claimed_at, cidr);
            let best = kept.entry(Family::of(cidr.ip())).or_insert(candidate);
            *best = (*best).min(candidate);
        }
        kept.into_values().map(|(_, _, cidr)| cidr).collect()
    }

    fn act(&self, suspect: &Suspect, now: Duration, inventory: &Inventory, alive: &Alive) -> Option<Act> {
        let suspicion = self.suspects.get(suspect)?;
        let proof = Proof {
            claim: suspect.claim(&self.config.node),
            seen_for: now.saturating_sub(suspicion.since),
            looks: suspicion.looks,
            first_revision: suspicion.first_revision,
            last_revision: inventory.revision,
            compared_with: (alive.handles.len(), alive.addresses.len()),
        };
        let node = self.config.node.clone();
        Some(match suspect {
            Suspect::Handle {
                handle_id,
                allocations,
            }
            | Suspect::Kept {
                handle_id,
                allocations,
            } => Act::Release {
                request: release(handle_id, allocations, inventory, alive),
                proof,
            },
            Suspect::Block {
                block,
                sequence_number,
            } => Act::Repair {
                request: RepairRequest::GiveBackBlock {
                    node,
                    block: *block,
                    sequence_number: *sequence_number,
                },
                proof,
            },
            Suspect::Affinity { block } => Act::Repair {
                request: RepairRequest::SettleAffinity { node, block: *block },
                proof,
            },
        })
    }
}

/// The release of exactly these allocations, as long as the endpoints are what they were at this look.
fn release(
    handle_id: &str,
    allocations: &[AllocationId],
    inventory: &Inventory,
    alive: &Alive,
) -> ReleaseRequest {
    let only = allocations.iter().map(|allocation| ReleaseOnly {
        address: allocation.address,
        sequence_number: Some(allocation.sequence_number),
    });
    let guard = |key: &String| ExtraGuard {
        key: key.clone(),
        expect: match inventory.endpoints.get(key) {
            Some(endpoint) => Expect::Unchanged(endpoint.mod_revision),
            None => Expect::Absent,
        },
    };
    let endpoint_keys = alive.endpoint_keys.get(handle_id).into_iter().flatten();
    ReleaseRequest {
        handle_id: handle_id.to_owned(),
        only: only.collect(),
        extra_guards: endpoint_keys.map(guard).collect(),
        ..ReleaseRequest::default()
    }
}

/// Addresses of endpoints and tunnel devices.
fn used_addresses(inventory: &Inventory) -> BTreeSet<IpAddr> {
    let endpoints = inventory.endpoints.values();
    let of_endpoints = endpoints.flat_map(|endpoint| &endpoint.addresses);
    let of_tunnels = inventory.nodes.values().flatten();
    of_endpoints.chain(of_tunnels).copied().collect()
}

impl Suspect {
    fn claim(&self, node: &str) -> String {
        match self {
            Self::Handle {
                handle_id,
                allocations,
            } => {
                let addresses: Vec<String> = allocations.iter().map(|a| a.address.to_string()).collect();
                let addresses = addresses.join(", ");
                format!(
                    "{addresses} of handle {handle_id} on {node}: no endpoint, no container, no interface"
                )
            }
            Self::Kept {
                handle_id,
                allocations,
            } => {
                let addresses: Vec<String> = allocations.iter().map(|a| a.address.to_string()).collect();
                format!("{} of keeper {handle_id}: the time is over", addresses.join(", "))
            }
            Self::Block {
                block,
                sequence_number,
            } => {
                format!("block {block} of {node}: empty, unchanged since sequence number {sequence_number}")
            }
            Self::Affinity { block } => {
                format!("affinity of {node} to {block}: not what the block says")
            }
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}; so for {} s at {} looks, revisions {} to {}, beside {} live handles and {} live addresses",
            self.claim,
            self.seen_for.as_secs(),
            self.looks,
            self.first_revision,
            self.last_revision,
            self.compared_with.0,
            self.compared_with.1
        )
    }
}
