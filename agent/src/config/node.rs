//! `[node]` and `[dataplane]`: where the node is, and how the kernel is programmed.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::{Config, duration, within};
use crate::model::detection::{Method, Pattern};
use crate::model::{NatExclusions, Settings, SourceSpoofing};

/// Routing tables that the kernel fills, or looks up for purposes of its own: `unspec`, `default` and `local`.
const RESERVED_TABLES: [u32; 3] = [0, 253, 255];
/// The last priority before the kernel's rule for the main table that leaves room for two rules.
const LAST_RULE_PRIORITY: u32 = 32764;
/// Calico's names for the methods of address detection, of IPv4 and IPv6.
const METHOD_VARIABLES: [&str; 2] = ["IP_AUTODETECTION_METHOD", "IP6_AUTODETECTION_METHOD"];
/// The addresses that Kubernetes has for the node, separated by commas: from the downward API's `status.hostIPs`.
const KUBERNETES_ADDRESSES: &str = "CALIDRIS_NODE_INTERNAL_IPS";

/// `[node]`: the node's own addresses with the prefix length of their subnet, or how to find them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeAddresses {
    /// IPv4.
    pub ipv4_address: Option<Ipv4Network>,
    /// IPv6.
    pub ipv6_address: Option<Ipv6Network>,
    /// How to find the IPv4 address.
    #[serde(deserialize_with = "method")]
    pub ipv4_detection: Option<Method>,
    /// How to find the IPv6 address.
    #[serde(deserialize_with = "method")]
    pub ipv6_detection: Option<Method>,
}

/// `[dataplane]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataplaneConfig {
    /// Time between complete read-backs.
    #[serde(deserialize_with = "duration::deserialize")]
    pub read_back_interval: Duration,
    /// How long routes to a workload stay preferred after it has migrated here.
    #[serde(deserialize_with = "duration::deserialize")]
    pub live_migration_settle_time: Duration,
    /// Whether workloads may send from source ranges that their pods' annotations name.
    pub workload_source_spoofing: SourceSpoofing,
    /// Where packets from pools with `natOutgoing` go untranslated.
    pub nat_outgoing_exclusions: NatExclusions,
    /// Whether blocks of pools without encapsulation, on nodes of our own subnet, are routed from the datastore.
    pub direct_routes: bool,
    /// Routing table of routes through other nodes and of learned ones.
    #[serde(deserialize_with = "table")]
    pub remote_route_table: u32,
    /// Priority of the first of the two rules that lead to that table.
    #[serde(deserialize_with = "rule_priority")]
    pub rule_priority: u32,
    /// Whether the node answers on its uplinks for addresses of workloads that lie in their subnets.
    pub proxy_neighbors: bool,
    /// The uplinks, whose MTU counts.
    #[serde(deserialize_with = "pattern")]
    pub mtu_interfaces: Pattern,
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        let Settings {
            direct_routes,
            uplinks,
            remote_route_table,
            rule_priority,
            proxy_neighbors,
            ..
        } = Settings::default();
        Self {
            read_back_interval: Duration::from_secs(90),
            live_migration_settle_time: Duration::from_secs(30),
            workload_source_spoofing: SourceSpoofing::Disabled,
            nat_outgoing_exclusions: NatExclusions::default(),
            direct_routes,
            remote_route_table,
            rule_priority,
            proxy_neighbors,
            mtu_interfaces: uplinks,
        }
    }
}

impl NodeAddresses {
    /// Takes Calico's environment variables where the file says nothing of a family.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub(super) fn complete_from_environment(&mut self) -> Result<(), String> {
        let [v4, v6] = METHOD_VARIABLES.map(|name| (name, std::env::var(name).unwrap_or_default()));
        for ((name, text), method, is_said) in [
            (v4, &mut self.ipv4_detection, self.ipv4_address.is_some()),
            (v6, &mut self.ipv6_detection, self.ipv6_address.is_some()),
        ] {
            if !is_said && method.is_none() && !text.is_empty() {
                *method =
                    Some(Method::parse(&text).map_err(|why| format!("environment variable {name}: {why}"))?);
            }
        }
        Ok(())
    }
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            ipv4_address: config.node.ipv4_address,
            ipv6_address: config.node.ipv6_address,
            ipv4_detection: config.node.ipv4_detection.clone(),
            ipv6_detection: config.node.ipv6_detection.clone(),
            direct_routes: config.dataplane.direct_routes,
            pod_mtu: config.cni.mtu,
            uplinks: config.dataplane.mtu_interfaces.clone(),
            remote_route_table: config.dataplane.remote_route_table,
            rule_priority: config.dataplane.rule_priority,
            proxy_neighbors: config.dataplane.proxy_neighbors,
            nat_exclusions: config.dataplane.nat_outgoing_exclusions,
        }
    }
}

/// The addresses that Kubernetes has for the node, if the process was told. What is no address is passed over.
pub fn kubernetes_addresses() -> Vec<IpAddr> {
    let text = std::env::var(KUBERNETES_ADDRESSES).unwrap_or_default();
    text.split(',')
        .filter_map(|address| address.trim().parse().ok())
        .collect()
}

fn method<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Method>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Method::parse(&text).map(Some).map_err(D::Error::custom)
}

fn pattern<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Pattern, D::Error> {
    let text = String::deserialize(deserializer)?;
    Pattern::parse(&text).map_err(D::Error::custom)
}

fn table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let table = u32::deserialize(deserializer)?;
    if RESERVED_TABLES.contains(&table) {
        return Err(D::Error::custom(format!(
            "{table} is a table of the kernel's own; expected 254 (main) or another"
        )));
    }
    Ok(table)
}

fn rule_priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    within(u32::deserialize(deserializer)?, 1, LAST_RULE_PRIORITY).map_err(D::Error::custom)
}
