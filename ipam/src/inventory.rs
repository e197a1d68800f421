//! Everything that address management keeps, read at one revision and parsed: what an audit and an operator look at.
//!
//! Values that cannot be read are no reason to stop: they are listed with what is wrong with them, and everything else
//! is judged without them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use crate::affinity::{Affinity, AffinityState};
use crate::block::{Allocation, AllocationBlock};
use crate::config::{ClusterInformation, IpamConfig, Node};
use crate::handle::Handle;
use crate::keys;
use crate::pool::{IpPool, IpPoolSpec, IpReservation};
use crate::resource::{Metadata, parse_json};
use crate::store::{KeyValue, Range, Snapshot};

/// The content of a datastore as far as addresses are concerned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    /// Revision at which it was read.
    pub revision: i64,
    /// Blocks by their CIDR.
    pub blocks: BTreeMap<IpNetwork, AllocationBlock>,
    /// Blocks whose value cannot be read: nothing is known of their addresses.
    pub invalid_blocks: BTreeSet<IpNetwork>,
    /// Affinities by node and block.
    pub affinities: BTreeMap<(String, IpNetwork), AffinityState>,
    /// Handles by ID.
    pub handles: BTreeMap<String, Handle>,
    /// Pools by name.
    pub pools: BTreeMap<String, Pool>,
    /// Reserved ranges.
    pub reservations: Vec<IpNetwork>,
    /// Nodes by name, with the addresses of their tunnel devices.
    pub nodes: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Workload endpoints by key.
    pub endpoints: BTreeMap<String, Workload>,
    /// Nodes that have a fence.
    pub fences: BTreeSet<String>,
    /// The cluster-wide configuration; what is not stored has its default.
    pub config: IpamConfig,
    /// Whether the datastore is locked (`datastoreReady` is false).
    pub locked: bool,
    /// Values that cannot be read, and keys that are none of Calico's.
    pub unreadable: Vec<Unreadable>,
}

/// A pool that can be used: its spec and its addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Its addresses.
    pub cidr: IpNetwork,
    /// The rest.
    pub spec: IpPoolSpec,
}

/// A workload endpoint as far as addresses are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Name of the resource.
    pub name: String,
    /// Namespace of the resource.
    pub namespace: String,
    /// Where it runs.
    pub node: String,
    /// Which container; empty if not noted.
    pub container_id: String,
    /// Which pod; empty outside Kubernetes.
    pub pod: String,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Name of its interface on the host; empty if not noted.
    pub interface: String,
    /// Revision of its last change.
    pub mod_revision: i64,
}

/// A value that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its key.
    pub key: String,
    /// What was expected there.
    pub what: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl Inventory {
    /// What to read for a whole inventory.
    pub fn ranges() -> Vec<Range> {
        let prefixes = [
            keys::BLOCKS,
            keys::AFFINITIES,
            keys::HANDLES,
            keys::IP_POOLS,
            keys::IP_RESERVATIONS,
            keys::NODES,
            keys::WORKLOAD_ENDPOINTS,
            keys::FENCES,
        ];
        let single = [keys::IPAM_CONFIG, keys::CLUSTER_INFORMATION];
        let prefixes = prefixes.map(|prefix| Range::Prefix(prefix.to_owned()));
        let single = single.map(|key| Range::Key(key.to_owned()));
        prefixes.into_iter().chain(single).collect()
    }

    /// Parses what was read. Keys of other things are passed over.
    pub fn parse(snapshot: &Snapshot) -> Self {
        let mut inventory = Self {
            revision: snapshot.revision,
            ..Self::default()
        };
        for kv in &snapshot.kvs {
            if let Err(unreadable) = inventory.take_in(kv) {
                inventory.unreadable.push(unreadable);
            }
        }
        inventory
    }

    /// The pools that `address` is in, by name.
    pub fn pools_of(&self, address: IpAddr) -> impl Iterator<Item = (&str, &Pool)> {
        let pools = self.pools.iter();
        pools.filter_map(move |(name, pool)| pool.cidr.contains(address).then_some((name.as_str(), pool)))
    }

    /// The allocation of `address`, in whatever block: at most 13 sizes of block are possible.
    pub fn allocation_of(&self, address: IpAddr) -> Option<Allocation> {
        let sizes = keys::possible_blocks(address).into_iter();
        let mut blocks = sizes.filter_map(|cidr| self.blocks.get(&cidr));
        blocks.find_map(|block| block.allocation(address))
    }

    /// The blocks that an affinity or the block itself says are `node`'s.
    pub fn blocks_of(&self, node: &str) -> BTreeSet<IpNetwork> {
        let by_affinity = self.affinities.keys().filter(|(owner, _)| owner == node);
        let by_block = self.blocks.iter().filter(|(_, block)| block.host() == Some(node));
        let by_affinity = by_affinity.map(|&(_, cidr)| cidr);
        by_affinity.chain(by_block.map(|(&cidr, _)| cidr)).collect()
    }

    fn take_in(&mut self, kv: &KeyValue) -> Result<(), Unreadable> {
        let key = kv.key.as_str();
        if key.starts_with(keys::BLOCKS) {
            self.block(kv)
        } else if key.starts_with(keys::AFFINITIES) {
            self.affinity(kv)
        } else if let Some(id) = key.strip_prefix(keys::HANDLES) {
            let handle = Handle::parse(key, &kv.value).map_err(Unreadable::from)?;
            self.handles.insert(id.to_owned(), handle);
            Ok(())
        } else if let Some(name) = key.strip_prefix(keys::IP_POOLS) {
            self.pool(kv, name)
        } else if key.starts_with(keys::IP_RESERVATIONS) {
            self.reservation(kv)
        } else if let Some(name) = key.strip_prefix(keys::NODES) {
            // Without its value a node still exists.
            self.nodes.insert(name.to_owned(), BTreeSet::new());
            let node = Node::parse(key, "Node", &kv.value).map_err(Unreadable::from)?;
            self.nodes.insert(name.to_owned(), tunnel_addresses(&node));
            Ok(())
        } else if key.starts_with(keys::WORKLOAD_ENDPOINTS) {
            self.endpoint(kv)
        } else if let Some(node) = key.strip_prefix(keys::FENCES) {
            self.fences.insert(node.to_owned());
            Ok(())
        } else if key == keys::IPAM_CONFIG {
            self.config = IpamConfig::parse(key, &kv.value).map_err(Unreadable::from)?;
            Ok(())
        } else if key == keys::CLUSTER_INFORMATION {
            let information = ClusterInformation::parse(key, "ClusterInformation", &kv.value)?;
            self.locked = information.spec.datastore_ready == Some(false);
            Ok(())
        } else {
            Ok(())
        }
    }

    fn block(&mut self, kv: &KeyValue) -> Result<(), Unreadable> {
        const WHAT: &str = "allocation block";
        let cidr = keys::parse_block(&kv.key).ok_or_else(|| Unreadable::key(kv, WHAT))?;
        let block = AllocationBlock::parse(&kv.key, &kv.value).map_err(|error| {
            self.invalid_blocks.insert(cidr);
            Unreadable::from(error)
        })?;
        if block.cidr() != cidr {
            self.invalid_blocks.insert(cidr);
            let why = format!("its cidr is {}, its key says {cidr}", block.cidr());
            return Err(Unreadable::value(kv, WHAT, why));
        }
        self.blocks.insert(cidr, block);
        Ok(())
    }

    fn affinity(&mut self, kv: &KeyValue) -> Result<(), Unreadable> {
        const WHAT: &str = "block affinity";
        let (node, cidr) = keys::parse_affinity(&kv.key).ok_or_else(|| Unreadable::key(kv, WHAT))?;
        let affinity = Affinity::parse(&kv.key, &kv.value)?;
        self.affinities.insert((node.to_owned(), cidr), affinity.state);
        Ok(())
    }

    fn pool(&mut self, kv: &KeyValue, name: &str) -> Result<(), Unreadable> {
        let spec = IpPool::parse(&kv.key, "IPPool", &kv.value)?.spec;
        let cidr = spec
            .network()
            .map_err(|error| Unreadable::value(kv, "IPPool", error.to_string()))?;
        self.pools.insert(name.to_owned(), Pool { cidr, spec });
        Ok(())
    }

    fn reservation(&mut self, kv: &KeyValue) -> Result<(), Unreadable> {
        for cidr in IpReservation::parse(&kv.key, "IPReservation", &kv.value)?
            .spec
            .reserved_cidrs
        {
            let parsed = parse_network(&cidr).ok_or_else(|| {
                Unreadable::value(kv, "IPReservation", format!("{cidr:?} is not a CIDR or address"))
            })?;
            self.reservations.push(parsed);
        }
        Ok(())
    }

    fn endpoint(&mut self, kv: &KeyValue) -> Result<(), Unreadable> {
        const WHAT: &str = "WorkloadEndpoint";
        let stored: StoredWorkload = parse_json(&kv.key, WHAT, &kv.value)?;
        let mut addresses = BTreeSet::new();
        for network in &stored.spec.ip_networks {
            let parsed = parse_network(network).ok_or_else(|| {
                Unreadable::value(
                    kv,
                    WHAT,
                    format!("ipNetworks: {network:?} is not a CIDR or address"),
                )
            })?;
            addresses.insert(parsed.ip());
        }
        let workload = Workload {
            name: stored.metadata.name,
            namespace: stored.metadata.namespace.unwrap_or_default(),
            node: stored.spec.node,
            container_id: stored.spec.container_id,
            pod: stored.spec.pod,
            addresses,
            interface: stored.spec.interface_name,
            mod_revision: kv.mod_revision,
        };
        self.endpoints.insert(kv.key.clone(), workload);
        Ok(())
    }
}

impl Unreadable {
    fn key(kv: &KeyValue, what: &'static str) -> Self {
        Self::value(kv, what, "the key has not the form of one".to_owned())
    }

    fn value(kv: &KeyValue, what: &'static str, why: String) -> Self {
        Self {
            key: kv.key.clone(),
            what,
            why,
        }
    }
}

impl From<crate::resource::ResourceError> for Unreadable {
    fn from(error: crate::resource::ResourceError) -> Self {
        Self {
            key: error.key,
            what: error.what,
            why: error.why,
        }
    }
}

/// The part of a WorkloadEndpoint that is looked at here.
#[derive(Deserialize)]
struct StoredWorkload {
    metadata: Metadata,
    spec: StoredWorkloadSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StoredWorkloadSpec {
    node: String,
    #[serde(rename = "containerID")]
    container_id: String,
    pod: String,
    ip_networks: Vec<String>,
    interface_name: String,
}

/// The addresses of a node's IP-in-IP, VXLAN and WireGuard devices. What is no address there is passed over: it is
/// nothing that was assigned.
fn tunnel_addresses(node: &Node) -> BTreeSet<IpAddr> {
    let fields = &node.spec.fields;
    let nested = |outer: &str, inner: &str| fields.get(outer).and_then(|outer| outer.get(inner));
    let stored = [
        nested("bgp", "ipv4IPIPTunnelAddr"),
        fields.get("ipv4VXLANTunnelAddr"),
        fields.get("ipv6VXLANTunnelAddr"),
        nested("wireguard", "interfaceIPv4Address"),
        nested("wireguard", "interfaceIPv6Address"),
    ];
    let addresses = stored.into_iter().flatten().filter_map(Value::as_str);
    addresses.filter_map(|address| address.parse().ok()).collect()
}

fn parse_network(text: &str) -> Option<IpNetwork> {
    text.parse().ok()
}
