//! Which node a block belongs to: the value under `/calico/ipam/v2/host/NODE/…`.
//!
//! Calico claims in steps, so its affinities pass through `pending` and `pendingDeletion`. Calidris claims in one
//! transaction and writes only `confirmed`, but takes over what it finds in the other states.

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::resource::{ResourceError, parse_json, print_json};

/// Value of an affinity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Affinity {
    /// How far the claim is.
    #[serde(default)]
    pub state: AffinityState,
    /// Set by Calico's Kubernetes datastore while it deletes; always false in etcd.
    #[serde(default)]
    pub deleted: bool,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// State of an affinity. Only a confirmed one makes the block part of a node's routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AffinityState {
    /// Claimed and the block is there.
    #[serde(rename = "confirmed")]
    Confirmed,
    /// Being claimed: the block may not exist, or belong to somebody else.
    #[serde(rename = "pending")]
    Pending,
    /// Being given back.
    #[serde(rename = "pendingDeletion")]
    PendingDeletion,
    /// Written before states existed; Calico counts it as confirmed.
    #[default]
    #[serde(rename = "")]
    Unstated,
    /// A state of a later version. Never counted as confirmed.
    #[serde(untagged)]
    Other(String),
}

/// A block of a node, as its affinity says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeBlock {
    /// The block.
    pub cidr: IpNetwork,
    /// How far the claim is.
    pub state: AffinityState,
}

impl Affinity {
    /// The value that Calidris writes.
    pub fn confirmed() -> Self {
        Self {
            state: AffinityState::Confirmed,
            deleted: false,
            extra: Map::new(),
        }
    }

    /// Reads the stored `value` of `key`. An empty value is one without fields, as in Calico.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, ResourceError> {
        parse_json(
            key,
            "block affinity",
            if value.is_empty() { b"{}" } else { value },
        )
    }

    /// The stored form.
    pub fn to_json(&self) -> Vec<u8> {
        print_json(self)
    }
}

impl AffinityState {
    /// Whether the block is the node's, for routing and announcing.
    pub fn is_confirmed(&self) -> bool {
        matches!(self, Self::Confirmed | Self::Unstated)
    }
}
