//! The network configuration a runtime streams to a plugin (CNI spec 1.1.0 §3 "Deriving request configuration") and
//! the parts of it that Calidris reads.
//!
//! Invariants: what parses is valid (names follow the specification's syntax, keys that Calidris defines have their
//! types and ranges); keys it does not know are kept in `other`, never refused, since the object is shared with the
//! runtime. A missing `cniVersion` means 0.1.0, as it always has, and is therefore refused.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{CniError, ErrorCode};
use crate::result::{AddResult, Dns, remove_nulls};
use crate::version::CniVersion;

/// Where the agent listens unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/calidris/cni.sock";
/// How long the plugin waits for the agent unless the configuration says otherwise. Kubelet gives a sandbox four
/// minutes; within that several attempts must fit.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest `timeout_seconds` accepted.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// The longest path of a unix socket the kernel takes, in bytes (`sun_path` less its final zero).
const MAX_SOCKET_PATH: usize = 107;

/// One plugin's configuration, as the runtime derived it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetConf {
    /// The version of the specification this request is made in.
    pub cni_version: CniVersion,
    /// The network's name; with container ID and interface name it identifies an attachment.
    pub name: String,
    /// The plugin's file name.
    #[serde(rename = "type")]
    pub plugin_type: String,
    /// Capability arguments.
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    /// The `args` object, uninterpreted.
    #[serde(default)]
    pub args: Map<String, Value>,
    /// The result of the previous plugin (ADD) or of the whole ADD (CHECK, DEL).
    #[serde(default)]
    pub prev_result: Option<AddResult>,
    /// Name resolution settings to hand through.
    #[serde(default)]
    pub dns: Dns,
    /// The keys that Calidris defines.
    pub options: PluginOptions,
    /// Every other key, as it came.
    #[serde(default)]
    pub other: Map<String, Value>,
}

/// The configuration keys that Calidris defines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginOptions {
    /// `socket`: the agent's socket, an absolute path of at most 107 bytes.
    pub socket: PathBuf,
    /// `timeout_seconds`: how long the plugin waits for the agent in all, 1 to 600.
    pub timeout: Duration,
    /// `log`: where the plugin writes what it does.
    pub log: PluginLog,
}

/// Where the plugin logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginLog {
    /// Nowhere; the agent's log has it all.
    #[default]
    None,
    /// On stderr, which runtimes put into their own log when the plugin fails.
    Stderr,
}

/// Capability arguments (CNI conventions, "Well-known Capabilities"). Absent ones are empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RuntimeConfig {
    /// Host ports to be mapped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Rates to hold to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Addresses asked for, with or without prefix length.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpNetwork>,
    /// Hardware address asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Ranges to allocate from: one list for each address wanted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_ranges: Vec<Vec<IpRange>>,
    /// Names under which the pod wants to be found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The pod's cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
    /// Pod annotations, as containerd and CRI-O hand them over.
    #[serde(
        rename = "io.kubernetes.cri.pod-annotations",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub pod_annotations: BTreeMap<String, String>,
    /// Every other capability, as it came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One entry of the capability `portMappings`. containerd prints it with the names that the fields have in Go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host.
    #[serde(alias = "HostPort")]
    pub host_port: u16,
    /// Port in the container.
    #[serde(alias = "ContainerPort")]
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`; empty means `tcp`.
    #[serde(default, alias = "Protocol")]
    pub protocol: String,
    /// Host address to bind to; empty means all.
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    pub host_ip: String,
}

/// The capability `bandwidth`: rates in bits a second, bursts in bits; 0 means no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Bandwidth {
    /// Towards the container.
    #[serde(alias = "IngressRate")]
    pub ingress_rate: u64,
    /// Burst towards the container.
    #[serde(alias = "IngressBurst")]
    pub ingress_burst: u64,
    /// From the container.
    #[serde(alias = "EgressRate")]
    pub egress_rate: u64,
    /// Burst from the container.
    #[serde(alias = "EgressBurst")]
    pub egress_burst: u64,
}

/// One entry of the capability `ipRanges`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpRange {
    /// The subnet.
    #[serde(alias = "Subnet")]
    pub subnet: IpNetwork,
    /// First address to hand out.
    #[serde(
        default,
        alias = "RangeStart",
        deserialize_with = "address_or_empty",
        skip_serializing_if = "Option::is_none"
    )]
    pub range_start: Option<IpAddr>,
    /// Last address to hand out.
    #[serde(
        default,
        alias = "RangeEnd",
        deserialize_with = "address_or_empty",
        skip_serializing_if = "Option::is_none"
    )]
    pub range_end: Option<IpAddr>,
    /// The subnet's gateway.
    #[serde(
        default,
        alias = "Gateway",
        deserialize_with = "address_or_empty",
        skip_serializing_if = "Option::is_none"
    )]
    pub gateway: Option<IpAddr>,
}

/// The key of an attachment within one network (CNI spec 1.1.0 §3).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentId {
    /// `CNI_CONTAINERID`.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// What to do with a `prevResult` that is not a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadPrevResult {
    /// Refuse the configuration.
    Refuse,
    /// Go on without it: DEL must clean up whatever a crash left in the runtime's cache.
    Ignore,
}

impl NetConf {
    /// Reads a request configuration.
    ///
    /// # Errors
    /// Code 6 for bytes that are not a JSON object or a version that is not a version, 1 for a version we do not
    /// speak, 7 for everything else that is wrong; the message names the key.
    pub fn parse(bytes: &[u8], bad_prev_result: BadPrevResult) -> Result<Self, CniError> {
        let mut keys = parse_object(bytes)?;
        let cni_version = take_version(&mut keys)?;
        let name = take_string(&mut keys, "name")?;
        if !is_valid_name(&name) {
            return Err(invalid(
                "name",
                &format!(
                    "{name:?} is not a network name: letters, digits, '_', '.', '-', the first one a letter or digit"
                ),
            ));
        }
        let plugin_type = take_string(&mut keys, "type")?;
        if plugin_type.is_empty() || plugin_type.contains(['/', '\\', '\0']) {
            return Err(invalid("type", &format!("{plugin_type:?} is not a file name")));
        }
        let prev_result = match keys.remove("prevResult") {
            None | Some(Value::Null) => None,
            Some(value) => match (AddResult::from_json(&value), bad_prev_result) {
                (Ok(result), _) => Some(result),
                (Err(_), BadPrevResult::Ignore) => None,
                (Err(error), BadPrevResult::Refuse) => return Err(error),
            },
        };
        Ok(Self {
            cni_version,
            name,
            plugin_type,
            runtime_config: take_object(&mut keys, "runtimeConfig")?,
            args: take_object(&mut keys, "args")?,
            prev_result,
            dns: take_object(&mut keys, "dns")?,
            options: PluginOptions::take_from(&mut keys)?,
            other: keys,
        })
    }

    /// The attachments a GC must keep, from `cni.dev/valid-attachments`, or from `cni.dev/attachments` that runtimes
    /// send beside it because early texts of the specification had both names. `null` is how runtimes written in Go
    /// send an empty list.
    ///
    /// # Errors
    /// Code 7 if neither key is there or the list is malformed. An absent list is *not* an empty one: taking it so
    /// would remove every pod of the node.
    pub fn valid_attachments(&self) -> Result<Vec<AttachmentId>, CniError> {
        let key = "cni.dev/valid-attachments";
        match self
            .other
            .get(key)
            .or_else(|| self.other.get("cni.dev/attachments"))
        {
            None => Err(invalid(key, "missing, and GC needs it")),
            Some(Value::Null) => Ok(Vec::new()),
            Some(list) => {
                serde_json::from_value(list.clone()).map_err(|error| invalid(key, &error.to_string()))
            }
        }
    }
}

impl NetConf {
    /// The plugin that `ipam.type` names, if it is none of ours. Calico's counts as ours: its configurations can stay as
    /// they are.
    ///
    /// # Errors
    /// Code 7 for a type that is no file name.
    pub fn ipam_delegate(&self) -> Result<Option<&str>, CniError> {
        match self.other.get("ipam").and_then(|ipam| ipam.get("type")) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) if OUR_IPAM.contains(&name.as_str()) => Ok(None),
            Some(Value::String(name)) if !name.contains(['/', '\0']) && name != "." && name != ".." => {
                Ok(Some(name))
            }
            Some(other) => Err(invalid("ipam.type", &format!("{other} is not a file name"))),
        }
    }

    /// Takes the keys that Calidris defines from the object `ipam`: the others belong to the plugin that delegates to us.
    ///
    /// # Errors
    /// Code 7, naming the key.
    pub fn take_options_of_ipam(&mut self) -> Result<(), CniError> {
        if let Some(Value::Object(ipam)) = self.other.get("ipam") {
            self.options = PluginOptions::take_from(&mut ipam.clone())?;
        }
        Ok(())
    }
}

/// Names of address management that is the agent's own.
const OUR_IPAM: [&str; 4] = ["", "calidris-ipam", "calidris-cni", "calico-ipam"];

impl PluginOptions {
    fn take_from(keys: &mut Map<String, Value>) -> Result<Self, CniError> {
        let socket: String = take(keys, "socket")?.unwrap_or_else(|| DEFAULT_SOCKET.to_owned());
        if !socket.starts_with('/') || socket.len() > MAX_SOCKET_PATH || socket.contains('\0') {
            return Err(invalid(
                "socket",
                &format!("{socket:?} is not an absolute path of at most {MAX_SOCKET_PATH} bytes"),
            ));
        }
        let timeout = match take::<u64>(keys, "timeout_seconds")? {
            None => DEFAULT_TIMEOUT,
            Some(seconds) if (1..=MAX_TIMEOUT.as_secs()).contains(&seconds) => Duration::from_secs(seconds),
            Some(seconds) => {
                return Err(invalid(
                    "timeout_seconds",
                    &format!("{seconds} is not within 1 to {}", MAX_TIMEOUT.as_secs()),
                ));
            }
        };
        Ok(Self {
            socket: PathBuf::from(socket),
            timeout,
            log: take(keys, "log")?.unwrap_or_default(),
        })
    }
}

/// The `cniVersion` of any request, VERSION's included. Bytes without one, or none at all, give `None`.
///
/// # Errors
/// Code 6 if there are bytes that are not a JSON object, or the version is not a semantic version.
pub fn version_of_request(bytes: &[u8]) -> Result<Option<String>, CniError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    match parse_object(bytes)?.remove("cniVersion") {
        None => Ok(None),
        Some(Value::String(version)) if crate::version::is_semantic_version(&version) => Ok(Some(version)),
        Some(other) => Err(CniError::new(
            ErrorCode::DECODING_FAILURE,
            "cniVersion is not a semantic version",
        )
        .with_details(format!("found {other}"))),
    }
}

/// Whether `text` follows the syntax of container IDs and network names (CNI spec 1.1.0 §2 `CNI_CONTAINERID`, §1
/// `name`): a letter or digit, then letters, digits, `_`, `.` or `-`, all of ASCII.
pub fn is_valid_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// Whether `text` can name a network interface: 1 to 15 bytes, not `.` or `..`, without `/`, `:`, white space or a
/// zero byte (the kernel's `dev_valid_name`).
pub fn is_valid_ifname(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(|letter: char| matches!(letter, '/' | ':' | '\0') || letter.is_whitespace())
}

fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, CniError> {
    let undecodable = |details: String| {
        CniError::new(
            ErrorCode::DECODING_FAILURE,
            "the network configuration on stdin is not a JSON object",
        )
        .with_details(details)
    };
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(keys)) => Ok(keys),
        Ok(_) => Err(undecodable("it is JSON of another kind".to_owned())),
        Err(error) => Err(undecodable(error.to_string())),
    }
}

fn take_version(keys: &mut Map<String, Value>) -> Result<CniVersion, CniError> {
    match keys.remove("cniVersion") {
        None => CniVersion::parse("0.1.0").map_err(|error| {
            CniError::new(
                error.code,
                "cniVersion is missing, which means 0.1.0, and that is not supported",
            )
            .with_details(error.details)
        }),
        Some(Value::String(version)) => CniVersion::parse(&version),
        Some(other) => Err(
            CniError::new(ErrorCode::DECODING_FAILURE, "cniVersion is not a string")
                .with_details(format!("found {other}")),
        ),
    }
}

fn take_string(keys: &mut Map<String, Value>, key: &str) -> Result<String, CniError> {
    take(keys, key)?.ok_or_else(|| invalid(key, "missing"))
}

fn take_object<T: serde::de::DeserializeOwned + Default>(
    keys: &mut Map<String, Value>,
    key: &str,
) -> Result<T, CniError> {
    // Derived readers also take a list, field by field in order, which no one means here.
    match keys.get_mut(key) {
        Some(value @ Value::Object(_)) => {
            remove_nulls(value);
            Ok(take(keys, key)?.unwrap_or_default())
        }
        Some(Value::Null) | None => {
            keys.remove(key);
            Ok(T::default())
        }
        Some(_) => Err(invalid(key, "expected an object")),
    }
}

fn take<T: serde::de::DeserializeOwned>(
    keys: &mut Map<String, Value>,
    key: &str,
) -> Result<Option<T>, CniError> {
    match keys.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => serde_json::from_value(value)
            .map(Some)
            .map_err(|error| invalid(key, &error.to_string())),
    }
}

/// Go prints an address that is not there as an empty string.
fn address_or_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| D::Error::custom(format!("{text:?} is not an IP address"))),
    }
}

fn invalid(key: &str, why: &str) -> CniError {
    CniError::new(
        ErrorCode::INVALID_CONFIG,
        format!("invalid network configuration: {key}: {why}"),
    )
}
