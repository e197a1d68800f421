//! Everything that can happen to the agent, as values. The one way facts enter the [`crate::model::Model`].

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use crate::model::{Endpoint, EndpointId, NextHop, Pool};

/// One fact from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The datastore's whole content as far as this node is concerned: replaces what was known from it.
    DatastoreSnapshot(DatastoreSnapshot),
    /// A pool was written, or deleted (`None`).
    Pool(String, Option<Pool>),
    /// The affinity of a block to this node became confirmed.
    OwnBlockConfirmed(IpNetwork),
    /// A block is no longer (or not yet) confirmed as this node's.
    OwnBlockGone(IpNetwork),
    /// The datastore says that an endpoint of this node was written.
    EndpointSeen(EndpointId, Endpoint),
    /// The datastore says that an endpoint of this node was deleted.
    EndpointUnseen(EndpointId),
    /// The CNI server attached a container: the datastore has it and the link is there.
    Attached {
        /// The attachment.
        id: EndpointId,
        /// What was made.
        endpoint: Endpoint,
        /// Blocks that this node claimed on the way.
        claimed_blocks: BTreeSet<IpNetwork>,
    },
    /// The CNI server is about to detach a container, or undoes an attachment that failed.
    Detached(EndpointId),
    /// BGP's best routes changed: `None` withdraws.
    Learned(BTreeMap<IpNetwork, Option<BTreeSet<NextHop>>>),
    /// Every BGP peer sent its table, or its time to do so is over.
    BgpInSync,
    /// The kernel reports that something we may own changed: read that kind back.
    KernelChanged(KernelChange),
}

/// Which kind of kernel object changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelChange {
    /// Links appeared, vanished or changed.
    Links,
    /// Routes changed.
    Routes,
    /// The monitor lost messages: everything must be read back.
    Everything,
}

/// What the datastore says, whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatastoreSnapshot {
    /// IP pools by resource name.
    pub pools: BTreeMap<String, Pool>,
    /// Confirmed blocks of this node.
    pub own_blocks: BTreeSet<IpNetwork>,
    /// Endpoints of this node.
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
}
