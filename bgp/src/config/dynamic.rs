//! Peers that are not named one by one: whoever connects from a range of addresses.

use std::net::IpAddr;

use super::{ConfigError, ConnectMode, PeerConfig};
use crate::family::Prefix;

/// A range of addresses from which peers may connect. Each becomes a peer of its own while it has a connection, and some time after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DynamicPeers {
    /// Name, unique among the ranges; peers are called `NAME:ADDRESS`.
    pub name: String,
    /// Where they connect from. The longest range that covers an address counts; a peer configured by its address comes before all.
    pub range: Prefix,
    /// How many there are at a time at most, 1 or more; further connections are refused.
    pub max_peers: u32,
    /// What else is to know of each; name and address are those of nobody, and we never connect.
    pub template: PeerConfig,
}

impl DynamicPeers {
    /// The peer at `address`.
    pub fn peer(&self, address: IpAddr, scope_id: u32) -> PeerConfig {
        PeerConfig {
            name: format!("{}:{address}", self.name),
            address,
            scope_id,
            connect: ConnectMode::Passive,
            ..self.template.clone()
        }
    }

    /// Whether `address` is in the range.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.range.covers(Prefix::host(address))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.max_peers == 0 {
            return Err(ConfigError::NoDynamicPeers {
                name: self.name.clone(),
            });
        }
        self.template.check()
    }
}
