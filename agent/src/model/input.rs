//! Everything that can happen to the agent, as values. The one way facts enter the [`Model`](super::Model).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{
    Cluster, ClusterBlock, Endpoint, EndpointId, Learned, MigrationRole, NodeFacts, Pool, TunnelKind,
};

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
    /// The CNI server is about to attach a container: the datastore may show it before its link is there. [`Self::Attached`] or
    /// [`Self::Detached`] follows.
    Attaching(EndpointId),
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
    /// What workloads of this node are in a live migration, by host interface: replaces what was known of it.
    MigrationRoles(BTreeMap<String, MigrationRole>),
    /// The workload with this host interface, which was to migrate here, said that it runs here.
    MigratedHere(String),
    /// The other nodes have had their time to hear of the migration of the workload with this host interface.
    MigrationSettled(String),
    /// The other nodes and their blocks, whole: replaces what was known of them. `None`: they are not followed any more.
    Cluster(Option<Cluster>),
    /// A node's resource was written, or deleted (`None`).
    ClusterNode(String, Option<NodeFacts>),
    /// A block changed hands, or was deleted (`None`).
    ClusterBlock(IpNetwork, Option<ClusterBlock>),
    /// The address of this node's tunnel of a kind; `None`: there is to be no such tunnel.
    TunnelAddress(TunnelKind, Option<IpAddr>),
    /// The name that address detection is to reach (`can-reach=`) has these addresses.
    ReachTargets(Vec<IpAddr>),
    /// BGP's best routes changed: `None` withdraws.
    Learned(BTreeMap<IpNetwork, Option<Learned>>),
    /// Every BGP peer sent its table, or its time to do so is over.
    BgpInSync,
    /// BGP peers that are to be reached through a gateway, all of them.
    PeerGateways(BTreeMap<IpAddr, IpAddr>),
    /// Addresses that workloads open BGP sessions to, by the host end that is to have them, all of them.
    WorkloadPeering(BTreeMap<String, BTreeSet<IpAddr>>),
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
    /// What they are in a live migration, by host interface.
    pub migrations: BTreeMap<String, MigrationRole>,
}
