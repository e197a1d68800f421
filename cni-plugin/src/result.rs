//! The result of ADD (CNI spec 1.1.0 §5 "ADD Success") and its older forms.
//!
//! Invariants: in memory and between plugin and agent there is one form, that of 1.1.0; older forms exist only as
//! JSON, read by [`AddResult::from_json`] and written by [`AddResult::to_json`]. Keys of a `prevResult` that the
//! specification does not name are not carried through.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{CniError, ErrorCode};
use crate::version::CniVersion;

/// What an attachment consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    /// All interfaces made, those on the host included.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Addresses assigned.
    #[serde(default)]
    pub ips: Vec<IpConfig>,
    /// Routes made inside the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name resolution settings.
    #[serde(default)]
    pub dns: Dns,
}

/// One entry of `interfaces`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Name in its own namespace.
    pub name: String,
    /// Hardware address, empty where it has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The value of `CNI_NETNS` for an interface in the container; empty on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// A socket file that belongs to the interface (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// The PCI device (1.1.0).
    #[serde(default, rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// One entry of `ips`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Address with prefix length.
    pub address: IpNetwork,
    /// The default gateway of this subnet, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// One entry of `routes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNetwork,
    /// Next hop; without it `ips[].gateway` may be meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// TCP segment size to advertise, in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric; the lower one wins (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope as the kernel numbers it: 0 global, 253 link, 254 host (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

/// Name resolution settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers, most preferred first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains, most preferred first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl AddResult {
    /// Reads a result, `prevResult` as a rule. The forms of 0.3.1 to 1.1.0 differ only in fields that one has and the
    /// other lacks, so one reader serves all; a `cniVersion` inside must be one of them.
    ///
    /// # Errors
    /// Code 7, naming the place, if a field has the wrong type, an `ips[].interface` points outside `interfaces`, or
    /// the version is not supported.
    pub fn from_json(value: &Value) -> Result<Self, CniError> {
        let invalid = |details: String| {
            CniError::new(ErrorCode::INVALID_CONFIG, "prevResult is not a CNI result").with_details(details)
        };
        if !value.is_object() {
            return Err(invalid("expected an object".to_owned()));
        }
        let mut value = value.clone();
        remove_nulls(&mut value);
        match value.get("cniVersion") {
            None => {}
            Some(Value::String(version)) => {
                CniVersion::parse(version).map_err(|error| invalid(format!("cniVersion: {}", error.msg)))?;
            }
            Some(other) => return Err(invalid(format!("cniVersion: expected a string, found {other}"))),
        }
        let result: Self = serde_json::from_value(value).map_err(|error| invalid(error.to_string()))?;
        for ip in &result.ips {
            if ip.interface.is_some_and(|index| index >= result.interfaces.len()) {
                return Err(invalid(format!(
                    "ips: {} refers to interface {}, but there are {} interfaces",
                    ip.address,
                    ip.interface.unwrap_or_default(),
                    result.interfaces.len()
                )));
            }
        }
        Ok(result)
    }

    /// The result as JSON of `version`: fields that it does not have are left out, those it needs are added.
    pub fn to_json(&self, version: CniVersion) -> Value {
        let mut shaped = self.clone();
        if version < CniVersion::V1_1_0 {
            shaped.drop_fields_of_1_1_0();
        }
        // Serialising plain structs with string keys cannot fail.
        let mut json = serde_json::to_value(&shaped).unwrap_or_default();
        json["cniVersion"] = Value::from(version.as_str());
        if version < CniVersion::V1_0_0 {
            for (ip, entry) in shaped
                .ips
                .iter()
                .zip(json["ips"].as_array_mut().into_iter().flatten())
            {
                entry["version"] = Value::from(if ip.address.is_ipv4() { "4" } else { "6" });
            }
        }
        json
    }

    /// What a chained ADD answers: everything of `previous`, then everything of `self` with its interface indexes
    /// moved behind those of `previous`. Our DNS settings win where we have any.
    #[must_use]
    pub fn appended_to(mut self, previous: &Self) -> Self {
        let shift = previous.interfaces.len();
        for ip in &mut self.ips {
            ip.interface = ip.interface.map(|index| index.saturating_add(shift));
        }
        Self {
            interfaces: previous
                .interfaces
                .iter()
                .cloned()
                .chain(self.interfaces)
                .collect(),
            ips: previous.ips.iter().cloned().chain(self.ips).collect(),
            routes: previous.routes.iter().cloned().chain(self.routes).collect(),
            dns: if self.dns == Dns::default() {
                previous.dns.clone()
            } else {
                self.dns
            },
        }
    }

    /// The index of the interface `name` inside a container, whichever path its namespace had then.
    pub fn container_interface(&self, name: &str) -> Option<usize> {
        self.interfaces
            .iter()
            .position(|interface| interface.name == name && !interface.sandbox.is_empty())
    }

    /// The addresses assigned to the interface with this index.
    pub fn addresses_of(&self, interface: usize) -> impl Iterator<Item = &IpConfig> {
        self.ips.iter().filter(move |ip| ip.interface == Some(interface))
    }

    fn drop_fields_of_1_1_0(&mut self) {
        for interface in &mut self.interfaces {
            interface.mtu = None;
            interface.socket_path = None;
            interface.pci_id = None;
        }
        for route in &mut self.routes {
            (route.mtu, route.advmss, route.priority) = (None, None, None);
            (route.table, route.scope) = (None, None);
        }
    }
}
/// Removes the members that are `null`, at any depth: runtimes and plugins written in Go print empty lists and maps so,
/// containerd for one the annotations and port mappings of a pod that has none.
pub(crate) fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(remove_nulls);
        }
        Value::Array(entries) => entries.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}
