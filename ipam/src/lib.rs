//! Address management as algebra: pools, blocks, affinities and handles of Calico's data model, without any I/O.
//!
//! An operation is a pure function from what was read ([`View`]) and what is asked to one [`Txn`] that either
//! commits whole or not at all, or to a refusal that says why ([`plan`]). [`Ipam`] is the only loop: read, plan,
//! commit, and again when somebody else was faster; what is asked for at
//! the same time is committed together. A [`Store`] keeps the keys; [`MemoryStore`] is its executable
//! specification and `calidris-ipam-etcd` the real one.
//!
//! ```text
//!   request ─► plan(View, request, now) ─► Need(ranges) ─► Store::read ─► View
//!                     │                                       ▲
//!                     ├─► Txn ─► Store::commit ─► conflict ───┘ (with the present values)
//!                     └─► refused (with the reason)
//! ```
//!
//! Keys and JSON are those of Calico v3 (`/calico/ipam/v2/…`, `/calico/resources/v3/projectcalico.org/…`), so both
//! can work on the same data. What Calico writes in three steps (pending affinity, block, confirmed affinity, then
//! handle and block again) is one transaction here: there is no state in between to recover from.
//!
//! Invariants after every transaction, whatever the interleaving and whoever crashes:
//! - an address is allocated to at most one attribute entry of exactly one block;
//! - a handle names exactly the blocks that hold its addresses, with their count, and exists only while there are any;
//! - a confirmed affinity has its block, and the block names the same owner.
//!
//! [`audit()`] checks these and more on a whole [`Inventory`]; [`Finding::repair`] says what would mend them and
//! [`Ipam::repair`] does. [`Collector`] decides what a node may take back, [`plan_node_removal`] what is left to do when a
//! node is gone.
//!
//! No clock, no randomness, no hash-map order: `now` is an argument, the start of a search is a hash of the node's name.

mod affinity;
mod audit;
mod block;
mod client;
mod collector;
mod config;
mod decision;
mod error;
mod feed;
mod fence;
mod group_commit;
mod handle;
mod inventory;
mod keep;
pub mod keys;
mod memory;
mod plan;
mod pool;
mod removal;
mod resource;
mod selector;
mod store;
mod timestamp;
mod tunnel;
mod tunnel_address;
mod view;

pub use affinity::{Affinity, AffinityState, NodeBlock};
pub use audit::{AllocationId, Finding, Repair, Running, User, audit};
pub use block::{Allocation, AllocationAttribute, AllocationBlock, BlockError};
pub use client::Ipam;
pub use collector::{Act, Alive, Collector, CollectorConfig, Proof};
pub use config::{
    ClusterInformation, ClusterInformationSpec, IpamConfig, NamespaceProfile, NamespaceProfileSpec, Node,
    NodeSpec,
};
pub use decision::Decision;
pub use error::{
    AssignError, AssignRefusal, Family, PoolReport, ReadError, ReleaseError, ReleaseRefusal, RepairError,
    RepairRefusal,
};
pub use feed::{Change, WatchEvent};
pub use handle::Handle;
pub use inventory::{Inventory, Pool, Unreadable, Workload};
pub use keep::Keep;
pub use memory::MemoryStore;
pub use plan::{
    AddressRequest, AssignRequest, Assigned, AssignedAddress, Expect, ExtraDelete, ExtraGuard, ExtraWrite,
    IntendedUse, KeepOnRelease, OwnRecord, ReleaseOnly, ReleaseRequest, Released, RepairRequest, Repaired,
    plan_assign, plan_release, plan_repair,
};
pub use pool::{
    AssignmentMode, EncapsulationMode, IpPool, IpPoolSpec, IpReservation, IpReservationSpec, PoolError,
};
pub use removal::{RemovalStep, plan_node_removal};
pub use resource::{Metadata, Resource, ResourceError};
pub use selector::{Selector, SelectorError};
pub use store::{
    CommitOutcome, ErrorClass, Guard, KeyValue, PrefixGuard, Range, Snapshot, Store, StoreError, Txn, Write,
};
pub use timestamp::UnixNanos;
pub use tunnel::Tunnel;
pub use view::View;
