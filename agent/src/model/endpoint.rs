//! A workload on this node: a pod's interface and its addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

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
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
}

impl Endpoint {
    /// Namespace and name of the pod, if it is one of Kubernetes.
    pub fn kubernetes_pod(&self) -> Option<(&str, &str)> {
        self.namespace.as_deref().zip(self.pod.as_deref())
    }
}
