//! A workload on this node: a pod's interface and its addresses.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// Identity of an attachment as the CNI specification has it: network name, container ID, interface name in the
/// container. Never the namespace path or the pod's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct EndpointId {
    /// `name` of the network configuration.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// What the agent keeps of one attachment.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Endpoint {
    /// Name of the veth end on the host, at most 15 bytes.
    pub host_interface: String,
    /// Addresses of the pod; each becomes a /32 or /128 route.
    pub addresses: BTreeSet<IpAddr>,
    /// MAC address of the pod's end, where known.
    pub mac: Option<[u8; 6]>,
    /// Kubernetes namespace, where there is one.
    pub namespace: Option<String>,
    /// Kubernetes pod name, where there is one.
    pub pod: Option<String>,
    /// Ports of the node that lead to the pod (capability `portMappings`).
    #[serde(default)]
    pub host_ports: BTreeSet<HostPort>,
    /// Ranges that the pod may send from besides its own addresses (Calico's `allowedSourcePrefixes`).
    #[serde(default)]
    pub allowed_sources: BTreeSet<IpNetwork>,
}

/// A port of the node that leads to one of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct HostPort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The node's address; `None`: all of them, of both families.
    pub host_address: Option<IpAddr>,
    /// Port on the node, not 0.
    pub host_port: u16,
    /// Port of the pod, not 0.
    pub port: u16,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// The protocol of that name, in any case, as Kubernetes and Calico write it.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|protocol| name.eq_ignore_ascii_case(protocol.as_str()))
    }

    /// Its number (IANA protocol numbers).
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Its name in lower case, as nftables has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Endpoint {
    /// Namespace and name of the pod, if it is one of Kubernetes.
    pub fn kubernetes_pod(&self) -> Option<(&str, &str)> {
        self.namespace.as_deref().zip(self.pod.as_deref())
    }
}
