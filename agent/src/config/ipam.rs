//! `[ipam]`: what this node takes back by itself.

use std::time::Duration;

use serde::Deserialize;

use super::duration;

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
}

impl Default for IpamSettings {
    fn default() -> Self {
        Self {
            collect_interval: Duration::from_secs(5 * 60),
            collect_grace: Duration::from_secs(15 * 60),
            block_idle: Duration::from_secs(60 * 60),
        }
    }
}
