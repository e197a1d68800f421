//! `[ipam]`: what this node takes back by itself, and pools that it makes.

use std::time::Duration;

use calidris_ipam::EncapsulationMode;
use ipnetwork::IpNetwork;
use serde::Deserialize;

use super::{NodeName, duration};

/// `[ipam]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IpamSettings {
    /// Time between two looks for what nobody uses any more; zero for none.
    #[serde(deserialize_with = "duration::deserialize")]
    pub collect_interval: Duration,
    /// How long an address must have been without endpoint, container and interface before it is released.
    #[serde(deserialize_with = "duration::deserialize")]
    pub collect_grace: Duration,
    /// How long a block of this node must have been unused before it is given back. One of each family is kept.
    #[serde(deserialize_with = "duration::deserialize")]
    pub block_idle: Duration,
    /// Pools that are made at the start if there is none of the name.
    pub pools: Vec<PoolSettings>,
}

/// `[[ipam.pools]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSettings {
    /// Its name: of the letters that a node's may have.
    pub name: NodeName,
    /// Its addresses.
    pub cidr: IpNetwork,
    /// Prefix length of its blocks; 26 (IPv4) and 122 (IPv6) if nothing is said.
    pub block_size: Option<u8>,
    /// Whether traffic from it to outside all pools leaves with the node's address.
    #[serde(default)]
    pub nat_outgoing: bool,
    /// IP-in-IP to other nodes.
    #[serde(default)]
    pub ipip_mode: EncapsulationMode,
    /// VXLAN to other nodes.
    #[serde(default)]
    pub vxlan_mode: EncapsulationMode,
}

impl Default for IpamSettings {
    fn default() -> Self {
        Self {
            collect_interval: Duration::from_secs(5 * 60),
            collect_grace: Duration::from_secs(15 * 60),
            block_idle: Duration::from_secs(60 * 60),
            pools: Vec::new(),
        }
    }
}
