//! What a lab is to look like: a small TOML file, read and checked whole before anything is made.
//!
//! `topologies/demo.toml` explains every key; unknown keys are refused. All references between parts are checked
//! here, so that what follows can rely on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use ipnetwork::IpNetwork;
use serde::Deserialize;

use crate::daemon::{Neighbor, RouterConfig, RouterKind};

mod check;
#[cfg(test)]
mod tests;

/// The topology of the demo, for when no file is named.
pub const DEMO: &str = include_str!("../topologies/demo.toml");

/// A whole lab.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// How many pods each node gets.
    pub pods_per_node: usize,
    /// BGP hold time that everybody offers, seconds; 3 to 65535 (RFC 4271 §4.2).
    pub hold_time: u16,
    /// What the agents log, as in their `log.level`; if nothing is said, whatever helps to find out why a proof failed.
    #[serde(default = "in_detail")]
    pub log_level: String,
    /// The network of etcd and the nodes.
    pub management: Subnet,
    /// The networks that packets of pods travel.
    #[serde(rename = "subnet")]
    pub subnets: Vec<Subnet>,
    /// The routers.
    #[serde(rename = "router")]
    pub routers: Vec<RouterSpec>,
    /// The nodes, each with an agent.
    #[serde(rename = "node")]
    pub nodes: Vec<NodeSpec>,
    /// Hosts outside the cluster.
    #[serde(rename = "host", default)]
    pub hosts: Vec<HostSpec>,
    /// The pools that pods get their addresses from.
    #[serde(rename = "pool")]
    pub pools: Vec<PoolSpec>,
}

fn in_detail() -> String {
    "info,calidris_agent=debug,calidris_bgp=debug,calidris_bgp_driver=debug".to_owned()
}

/// A network segment.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// Its name, and that of its members' interfaces.
    pub name: String,
    /// Its prefix.
    pub cidr: IpNetwork,
}

/// A router and what it is connected to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterSpec {
    /// Its name.
    pub name: String,
    /// Which daemon it runs.
    pub kind: RouterKind,
    /// Its autonomous system.
    pub as_number: u32,
    /// Its address in each subnet that it is connected to.
    pub addresses: BTreeMap<String, IpAddr>,
    /// The connected subnets that it announces.
    #[serde(default)]
    pub announce: Vec<String>,
    /// The routers that it speaks BGP with; saying it on one side is enough.
    #[serde(default)]
    pub peers: Vec<String>,
}

/// A node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// Its name, also in etcd.
    pub name: String,
    /// The router that its agent speaks BGP with.
    pub router: String,
    /// The subnet that it shares with the router.
    pub subnet: String,
    /// Its address there.
    pub address: IpAddr,
    /// Its autonomous system.
    pub as_number: u32,
}

/// A host outside the cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// Its name.
    pub name: String,
    /// Its default gateway.
    pub router: String,
    /// The subnet that it shares with the router.
    pub subnet: String,
    /// Its address there.
    pub address: IpAddr,
}

/// A pool of pod addresses.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// The name of the IPPool resource.
    pub name: String,
    /// The addresses.
    pub cidr: IpNetwork,
    /// Prefix length of the blocks that nodes get.
    pub block_size: u8,
    /// Whether pods' connections to outside the pools get the node's address.
    pub nat_outgoing: bool,
}

impl Topology {
    /// Reads and checks a topology file.
    ///
    /// # Errors
    /// What is wrong, in which file and where.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("topology {}", path.display()))
    }

    /// Checks a topology given as text.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let topology: Self = toml::from_str(text)?;
        check::check(&topology)?;
        Ok(topology)
    }

    /// Uses only the first `count` nodes, or adds copies of the listed ones in turn (the demo's file says how).
    ///
    /// # Errors
    /// When `count` is zero or a subnet has no address left.
    pub fn scale(&mut self, count: usize) -> anyhow::Result<()> {
        ensure!(count > 0, "a cluster needs at least one node");
        let listed = self.nodes.clone();
        self.nodes.truncate(count);
        for original in listed.iter().cycle().take(count).skip(listed.len()) {
            let copy = self.copy_of(original)?;
            self.nodes.push(copy);
        }
        check::check(self)
    }

    /// What a router of this topology is to do.
    ///
    /// # Errors
    /// When there is no router of that name.
    pub fn router_config(&self, name: &str) -> anyhow::Result<RouterConfig> {
        let router = self.router(name)?;
        let mut neighbors: Vec<Neighbor> = self
            .nodes
            .iter()
            .filter(|node| node.router == name)
            .map(|node| Neighbor {
                name: node.name.clone(),
                address: node.address,
                as_number: node.as_number,
            })
            .collect();
        for other in &self.routers {
            if router.peers.contains(&other.name) || other.peers.contains(&router.name) {
                let address = shared_subnet(router, other).and_then(|subnet| other.addresses.get(subnet));
                let address = *address.context("peers share a subnet")?;
                neighbors.push(Neighbor {
                    name: other.name.clone(),
                    address,
                    as_number: other.as_number,
                });
            }
        }
        let mut announce = Vec::new();
        for subnet in &router.announce {
            announce.push(self.subnet(subnet)?.cidr);
        }
        Ok(RouterConfig {
            name: name.to_owned(),
            router_id: router_id(router)?,
            as_number: router.as_number,
            hold_time: self.hold_time,
            announce,
            neighbors,
        })
    }

    /// The router of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn router(&self, name: &str) -> anyhow::Result<&RouterSpec> {
        self.routers
            .iter()
            .find(|router| router.name == name)
            .with_context(|| format!("no router {name:?}"))
    }

    /// The address of a router in a subnet.
    ///
    /// # Errors
    /// When there is no such router or it is not connected to the subnet.
    pub fn router_address(&self, router: &str, subnet: &str) -> anyhow::Result<IpAddr> {
        let address = self.router(router)?.addresses.get(subnet);
        address
            .copied()
            .with_context(|| format!("router {router} has no address in subnet {subnet}"))
    }

    /// The subnet of that name; also the management network.
    ///
    /// # Errors
    /// When there is none.
    pub fn subnet(&self, name: &str) -> anyhow::Result<&Subnet> {
        let mut all = self.subnets.iter().chain([&self.management]);
        all.find(|subnet| subnet.name == name)
            .with_context(|| format!("no subnet {name:?}"))
    }

    /// A member's address with the prefix length of its subnet.
    ///
    /// # Errors
    /// When there is no such subnet.
    pub fn interface(&self, subnet: &str, address: IpAddr) -> anyhow::Result<IpNetwork> {
        Ok(IpNetwork::new(address, self.subnet(subnet)?.cidr.prefix())?)
    }

    /// etcd's address in the management network: the first.
    ///
    /// # Errors
    /// When the network is too small.
    pub fn etcd_address(&self) -> anyhow::Result<IpAddr> {
        self.management_address(0)
    }

    /// The address of the node with this index in the management network: those after etcd's.
    ///
    /// # Errors
    /// When the network is too small.
    pub fn node_management_address(&self, index: usize) -> anyhow::Result<IpAddr> {
        self.management_address(index.saturating_add(1))
    }

    fn management_address(&self, index: usize) -> anyhow::Result<IpAddr> {
        let cidr = self.management.cidr;
        let address = cidr.iter().nth(index.saturating_add(1));
        address.with_context(|| format!("management network {cidr} has no address for member {index}"))
    }

    fn copy_of(&self, original: &NodeSpec) -> anyhow::Result<NodeSpec> {
        let name = (1..)
            .map(|n| format!("node{n}"))
            .find(|name| self.nodes.iter().all(|n| n.name != *name));
        let cidr = self.subnet(&original.subnet)?.cidr;
        let address = cidr
            .iter()
            .skip_while(|address| *address <= original.address)
            .find(|address| self.uses_of(*address) == 0 && *address != cidr.broadcast());
        let is_client = original.as_number == self.router(&original.router)?.as_number;
        let as_number = if is_client {
            original.as_number
        } else {
            self.free_as_number(original.as_number)?
        };
        Ok(NodeSpec {
            name: name.context("no name left for another node")?,
            address: address
                .with_context(|| format!("subnet {cidr} has no address left for another node"))?,
            as_number,
            ..original.clone()
        })
    }

    fn free_as_number(&self, after: u32) -> anyhow::Result<u32> {
        let taken: BTreeSet<u32> = (self.nodes.iter().map(|node| node.as_number))
            .chain(self.routers.iter().map(|router| router.as_number))
            .collect();
        (after..u32::MAX)
            .skip(1)
            .find(|number| !taken.contains(number))
            .context("no AS number left")
    }

    fn uses_of(&self, address: IpAddr) -> usize {
        let routers = self.routers.iter().flat_map(|router| router.addresses.values());
        let nodes = self.nodes.iter().map(|node| &node.address);
        let hosts = self.hosts.iter().map(|host| &host.address);
        routers
            .chain(nodes)
            .chain(hosts)
            .filter(|used| **used == address)
            .count()
    }
}

/// The first subnet that both routers are connected to.
fn shared_subnet<'a>(one: &'a RouterSpec, other: &RouterSpec) -> Option<&'a str> {
    one.addresses
        .keys()
        .find(|subnet| other.addresses.contains_key(*subnet))
        .map(String::as_str)
}

/// A router's BGP identifier: its lowest IPv4 address.
fn router_id(router: &RouterSpec) -> anyhow::Result<Ipv4Addr> {
    let lowest = router.addresses.values().filter_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    match lowest.min() {
        Some(address) => Ok(address),
        None => bail!(
            "router {}: needs an IPv4 address as its BGP identifier",
            router.name
        ),
    }
}
