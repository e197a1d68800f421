//! The configuration file: TOML, parsed once into types that are valid by construction.
//!
//! This is the only reader of files and environment at start. Invariants: an unknown key is an error; an error names
//! file, line and what was expected; every key is documented in `deploy/calidris.toml` (a test compares).

mod as_numbers;
mod bgp;
mod cni;
mod datastore;
mod duration;
mod environment;
mod file;
mod ipam;
mod node;
mod peer;
mod policy;
mod secret;
mod speaker;
mod standalone;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

pub use as_numbers::AsNumbers;
pub use bgp::{AddPathSend, BeyondMaxPrefixes, Bgp, NextHop, PeerFamily, PrivateAs, Role, StaticRoute};
pub use cni::{Cni, NotHeardBack};
pub use datastore::{Auth, Datastore, DatastoreError, DatastoreKind, Tls};
pub(crate) use duration::parse as parse_duration;
pub use environment::Environment;
pub use file::ConfigError;
pub use ipam::{IpamSettings, PoolSettings};
pub use node::{DataplaneConfig, NodeAddresses, kubernetes_addresses};
pub use peer::{DynamicPeers, Peer};
pub use policy::RoutePolicy;
pub use secret::SecretError;
pub(crate) use secret::read_secret;
pub use standalone::SpeakerFile;

/// Where the configuration is unless the command line says otherwise.
pub const DEFAULT_FILE: &str = "/etc/calidris/calidris.toml";
/// Where `calidris status` finds the agent unless told otherwise.
pub const DEFAULT_STATUS_SOCKET: &str = "/run/calidris/status.sock";
/// Where `calidris bgp` finds the agent unless told otherwise.
pub const DEFAULT_CONTROL_SOCKET: &str = "/run/calidris/control.sock";
/// The longest path of a unix socket the kernel takes, in bytes (`sun_path` less its final zero).
const MAX_SOCKET_PATH: usize = 107;

/// Everything an operator decides.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Config {
    /// This node's name in the datastore.
    #[serde(default)]
    pub node_name: NodeName,
    /// Where addresses are kept.
    #[serde(default, deserialize_with = "datastore::deserialize")]
    pub datastore: Datastore,
    /// This node's addresses.
    #[serde(default)]
    pub node: NodeAddresses,
    /// The BGP speaker, if there is to be one.
    pub bgp: Option<Bgp>,
    /// Peers that the datastore names.
    #[serde(default)]
    pub peering: PeeringConfig,
    /// The CNI server.
    #[serde(default)]
    pub cni: Cni,
    /// What this node takes back by itself.
    #[serde(default)]
    pub ipam: IpamSettings,
    /// Kernel programming.
    #[serde(default)]
    pub dataplane: DataplaneConfig,
    /// The metrics' listener.
    #[serde(default)]
    pub metrics: Metrics,
    /// The status socket.
    #[serde(default)]
    pub status: Status,
    /// The control socket.
    #[serde(default)]
    pub control: Control,
    /// Logging.
    #[serde(default)]
    pub log: Log,
}

/// A node's name: one part of a datastore key, as Kubernetes and Calico accept it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String")]
pub struct NodeName(String);

/// `[metrics]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where `GET /metrics` is answered; nowhere unless given.
    pub listen: Option<SocketAddr>,
}

/// `[peering]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeeringConfig {
    /// Whether the datastore's BGPConfiguration, BGPPeer and BGPFilter resources make sessions, besides those of `[bgp]`.
    pub from_datastore: bool,
    /// The folder with the passwords they name: a file for each key of a Secret, in a folder of the Secret's name.
    pub secrets: PathBuf,
}

/// `[status]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Status {
    /// The socket.
    pub socket: SocketPath,
}

/// `[control]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// The socket.
    pub socket: SocketPath,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A level, or a filter in the form of tracing's `EnvFilter`.
    pub level: LogFilter,
    /// Text or JSON.
    pub format: LogFormat,
}

/// Which events are logged.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LogFilter(String);

/// The form of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// An absolute path short enough for a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct SocketPath(PathBuf);

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = file::load(path)?;
        config
            .node
            .complete_from_environment()
            .map_err(|what| ConfigError::Environment { what })?;
        Ok(config)
    }

    /// Checks `text`, which came from `path`.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        file::parse(text, path)
    }

    /// The BGP Identifier: the configured one or the node's IPv4 address. `None` without a `[bgp]` section.
    pub fn router_id(&self) -> Option<Ipv4Addr> {
        let bgp = self.bgp.as_ref()?;
        bgp.router_id
            .or_else(|| self.node.ipv4_address.map(|address| address.ip()))
    }

    /// Reads the passwords without which there is no start and gives nothing of them away, and sees whether file and environment go
    /// together. Passwords of peers only keep their sessions down: [`Bgp::missing_secrets`].
    ///
    /// # Errors
    /// The first thing that cannot be had.
    pub fn read_secrets(&self, environment: &Environment) -> Result<(), DatastoreError> {
        if self.datastore.kind == DatastoreKind::Etcd {
            self.datastore.etcd(environment)?;
        }
        Ok(())
    }

    /// Whether the node's IPv4 address may be found although the file does not say it.
    fn may_find_ipv4_address(&self) -> bool {
        let mut node = self.node.clone();
        node.ipv4_detection.is_some()
            || (node.complete_from_environment().is_ok() && node.ipv4_detection.is_some())
    }

    fn check(&self) -> Result<(), String> {
        if self.bgp.is_some() && self.router_id().is_none() && !self.may_find_ipv4_address() {
            return Err(
                "bgp.router_id is missing, and so is node.ipv4_address that would stand in for it".to_owned(),
            );
        }
        let (cni, status, control) = (&self.cni.socket, &self.status.socket, &self.control.socket);
        if cni == status || cni == control || status == control {
            return Err(
                "two of cni.socket, status.socket and control.socket are the same path; expected three"
                    .to_owned(),
            );
        }
        self.cni.check()?;
        if self.peering.from_datastore && self.bgp.is_none() {
            return Err(
                "peering.from_datastore needs a speaker; expected a section [bgp] as well".to_owned(),
            );
        }
        if self.dataplane.read_back_interval < Duration::from_secs(1) {
            return Err("dataplane.read_back_interval is below 1s".to_owned());
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let config = Self::deserialize(deserializer)?;
        config.check().map_err(D::Error::custom)?;
        Ok(config)
    }
}

impl NodeName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let valid = (1..=253).contains(&name.len())
            && name
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
            && name.starts_with(|first: char| first.is_ascii_alphanumeric())
            && name.ends_with(|last: char| last.is_ascii_alphanumeric());
        if valid {
            Ok(Self(name))
        } else {
            Err(format!(
                "{name:?} cannot be a node's name; expected 1 to 253 lower-case letters, digits, '-' and '.', the first and last one a letter or digit"
            ))
        }
    }
}

/// The host's name as Calico takes it: trimmed, in lower case. A host whose name cannot be one is told to set it.
impl Default for NodeName {
    fn default() -> Self {
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self::try_from(hostname.trim().to_lowercase()).unwrap_or_else(|_| Self("localhost".to_owned()))
    }
}

impl SocketPath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<PathBuf> for SocketPath {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        if path.is_absolute() && path.as_os_str().len() <= MAX_SOCKET_PATH {
            Ok(Self(path))
        } else {
            Err(format!(
                "{path:?} is not an absolute path of at most {MAX_SOCKET_PATH} bytes"
            ))
        }
    }
}

impl LogFilter {
    /// The filter's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LogFilter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match tracing_subscriber::EnvFilter::try_new(&text) {
            Ok(_) if !text.trim().is_empty() => Ok(Self(text)),
            Ok(_) => {
                Err("an empty log level; expected error, warn, info, debug, trace or a filter".to_owned())
            }
            Err(error) => Err(format!("{text:?} is not a log filter: {error}")),
        }
    }
}

impl Default for PeeringConfig {
    fn default() -> Self {
        Self {
            from_datastore: false,
            secrets: PathBuf::from("/etc/calidris/secrets"),
        }
    }
}

impl Default for Status {
    fn default() -> Self {
        Self {
            socket: SocketPath(PathBuf::from(DEFAULT_STATUS_SOCKET)),
        }
    }
}

impl Default for Control {
    fn default() -> Self {
        Self {
            socket: SocketPath(PathBuf::from(DEFAULT_CONTROL_SOCKET)),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: LogFilter("info".to_owned()),
            format: LogFormat::Text,
        }
    }
}

/// `value`, if it is in the range.
fn within<T: PartialOrd + Copy + fmt::Display>(value: T, least: T, most: T) -> Result<T, String> {
    if value < least || value > most {
        Err(format!("{value} is out of range; expected {least} to {most}"))
    } else {
        Ok(value)
    }
}

/// Whether an address can be that of a host on a link.
fn is_unicast(address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast(),
        std::net::IpAddr::V6(v6) => v6 != Ipv6Addr::UNSPECIFIED && !v6.is_multicast(),
    }
}
