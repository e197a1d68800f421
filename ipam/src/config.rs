//! What the cluster says about itself: IPAM configuration, ClusterInformation, and the labels of nodes and namespaces.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::resource::{Resource, ResourceError, parse_json, print_json};

/// Calico's default for the number of blocks a node may have, per family.
const DEFAULT_MAX_BLOCKS_PER_HOST: u32 = 20;

/// Cluster-wide IPAM configuration (`calicoctl ipam configure`), at [`crate::keys::IPAM_CONFIG`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IpamConfig {
    /// No borrowing: a node uses addresses of its own blocks only.
    #[serde(default, skip_serializing_if = "is_false")]
    pub strict_affinity: bool,
    /// Nodes claim new blocks by themselves.
    #[serde(default, skip_serializing_if = "is_false")]
    pub auto_allocate_blocks: bool,
    /// Most blocks a node may have, per family; 0 means Calico's default of 20.
    #[serde(rename = "maxBlocksPerHost", default, skip_serializing_if = "is_zero")]
    pub max_blocks_per_host: u32,
    /// Seconds for which a released address rests before it is given to somebody by itself, at most
    /// [`IpamConfig::MAX_COOLDOWN_SECONDS`]; 0 for none.
    #[serde(rename = "ipCooldownSeconds", default, skip_serializing_if = "is_zero")]
    pub ip_cooldown_seconds: u32,
    /// Fields not known here (`kubeVirtVMAddressPersistence`).
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// ClusterInformation, at [`crate::keys::CLUSTER_INFORMATION`].
pub type ClusterInformation = Resource<ClusterInformationSpec>;

/// Spec of ClusterInformation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterInformationSpec {
    /// Identity of the cluster.
    #[serde(rename = "clusterGUID", default, skip_serializing_if = "Option::is_none")]
    pub cluster_guid: Option<String>,
    /// What kinds of cluster this is, for example `k8s,bgp`.
    #[serde(rename = "clusterType", default, skip_serializing_if = "Option::is_none")]
    pub cluster_type: Option<String>,
    /// Version of Calico.
    #[serde(rename = "calicoVersion", default, skip_serializing_if = "Option::is_none")]
    pub calico_version: Option<String>,
    /// False while the datastore is locked (`calicoctl datastore migrate lock`): nothing may be written then.
    #[serde(rename = "datastoreReady", default, skip_serializing_if = "Option::is_none")]
    pub datastore_ready: Option<bool>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A node, as far as address management looks at it: its labels.
pub type Node = Resource<NodeSpec>;

/// Spec of a Node, uninterpreted here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// All of its fields.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// The Profile of a namespace (`kns.NAMESPACE`), which Calico keeps for policies: the namespace's labels are in it.
pub type NamespaceProfile = Resource<NamespaceProfileSpec>;

/// Spec of a Profile, as far as it has labels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NamespaceProfileSpec {
    /// The namespace's labels, each with `pcns.` before its key.
    #[serde(rename = "labelsToApply", default)]
    pub labels_to_apply: BTreeMap<String, String>,
    /// Its other fields.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for IpamConfig {
    /// What holds when nothing is stored: borrowing allowed, blocks claimed automatically.
    fn default() -> Self {
        Self {
            strict_affinity: false,
            auto_allocate_blocks: true,
            max_blocks_per_host: 0,
            ip_cooldown_seconds: 0,
            extra: Map::new(),
        }
    }
}

impl IpamConfig {
    /// The longest cool-down that Calico allows, in seconds.
    pub const MAX_COOLDOWN_SECONDS: u32 = 1200;

    /// Reads the stored `value` of `key`.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, ResourceError> {
        parse_json(key, "IPAM configuration", value)
    }

    /// The stored form.
    pub fn to_json(&self) -> Vec<u8> {
        print_json(self)
    }

    /// How long a released address rests, in nanoseconds.
    pub(crate) fn cooldown_nanos(&self) -> i64 {
        i64::from(self.ip_cooldown_seconds.min(Self::MAX_COOLDOWN_SECONDS)) * 1_000_000_000
    }

    /// The number of blocks a node may have, per family.
    pub fn block_limit(&self) -> usize {
        let limit = if self.max_blocks_per_host == 0 {
            DEFAULT_MAX_BLOCKS_PER_HOST
        } else {
            self.max_blocks_per_host
        };
        usize::try_from(limit).unwrap_or(usize::MAX)
    }
}

// serde's skip_serializing_if wants a reference.
fn is_false(value: &bool) -> bool {
    !*value
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}
