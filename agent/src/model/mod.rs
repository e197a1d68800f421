//! What the agent knows. Functions of current state only: no history, no I/O, no locks.
//!
//! One thread owns the [`Model`]; everything in it came in as an [`crate::input::Input`].

mod absorb;
mod endpoint;
mod pool;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

pub use absorb::Unechoed;
pub use endpoint::{Endpoint, EndpointId, HostPort, Protocol};
pub use pool::{Encapsulation, Pool};

/// Everything the agent knows about this node and its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// This node's name in the datastore.
    pub node_name: String,
    /// IP pools by resource name.
    pub pools: BTreeMap<String, Pool>,
    /// Blocks whose affinity to this node is *confirmed*. Pending ones are absent: they must not be routed or
    /// announced (Calico's affinity protocol).
    pub own_blocks: BTreeSet<IpNetwork>,
    /// Workloads on this node.
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
    /// Best routes that BGP selected, to be installed.
    pub learned: BTreeMap<IpNetwork, BTreeSet<NextHop>>,
    /// Names of the links the kernel has on this node.
    pub links: BTreeSet<String>,
    /// Which sources have delivered a first complete picture.
    pub in_sync: InSync,
    /// What this agent wrote and the datastore has not repeated yet.
    pub unechoed: Unechoed,
}

/// One next hop of a learned route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// Address of the gateway.
    pub address: IpAddr,
    /// Outgoing interface, where the gateway alone does not say (link-local next hops).
    pub interface: Option<String>,
}

/// The first of the two gates: nothing is deleted from the kernel before every source concerned is in sync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InSync {
    /// The datastore delivered a whole snapshot since the agent started.
    pub datastore: bool,
    /// Every BGP peer sent its table, or its time to do so is over.
    pub bgp: bool,
}

impl Model {
    /// A model that knows nothing but the node's name.
    #[must_use]
    pub fn new(node_name: String) -> Self {
        Self {
            node_name,
            pools: BTreeMap::new(),
            own_blocks: BTreeSet::new(),
            endpoints: BTreeMap::new(),
            learned: BTreeMap::new(),
            links: BTreeSet::new(),
            in_sync: InSync::default(),
            unechoed: Unechoed::default(),
        }
    }
}
