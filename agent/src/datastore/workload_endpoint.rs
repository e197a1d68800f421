//! Calico's WorkloadEndpoint: how a container's interface is written down, under which name, and how it is read back.
//!
//! The name is `NODE-k8s-POD-INTERFACE` in the pod's namespace, or `NODE-cni-CONTAINER-INTERFACE` in `default`, with every
//! `-` inside a part doubled. The name of the CNI network is not part of Calico's resource; it is kept in the annotation
//! [`NETWORK_ANNOTATION`]. Where that is missing (the endpoint is Calico's), a Kubernetes endpoint is taken to be of
//! [`DEFAULT_NETWORK`], another one of the network that its profile is named after.

use std::collections::BTreeSet;
use std::net::IpAddr;

use calidris_ipam::{Resource, UnixNanos, keys};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::{Endpoint, EndpointId, HostPort, Protocol};

/// Plural of the kind, in keys.
const PLURAL: &str = "workloadendpoints";
/// The annotation that holds the name of the CNI network.
pub const NETWORK_ANNOTATION: &str = "calidris/network";
/// Name of the network in Calico's own network configuration.
pub const DEFAULT_NETWORK: &str = "k8s-pod-network";
/// Namespace of endpoints that are not Kubernetes pods.
const DEFAULT_NAMESPACE: &str = "default";

/// A WorkloadEndpoint.
pub type WorkloadEndpoint = Resource<WorkloadEndpointSpec>;

/// Spec of a WorkloadEndpoint, fields in Calico's order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadEndpointSpec {
    /// `k8s` or `cni`.
    pub orchestrator: String,
    /// The node it is on.
    pub node: String,
    /// `CNI_CONTAINERID`.
    #[serde(rename = "containerID", skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    /// Kubernetes pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// `CNI_IFNAME`.
    pub endpoint: String,
    /// Addresses as /32 or /128.
    pub ip_networks: Vec<IpNetwork>,
    /// Policy profiles.
    pub profiles: Vec<String>,
    /// Interface on the host.
    pub interface_name: String,
    /// MAC address in the container.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Named ports, and ports of the node that lead to the pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<EndpointPort>,
    /// Ranges it may send from besides its own addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_spoofed_source_prefixes: Vec<IpNetwork>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A port of an endpoint, fields in Calico's order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointPort {
    /// Its name, for policies.
    pub name: String,
    /// `TCP`, `UDP`, `SCTP`, or a number.
    pub protocol: Value,
    /// The endpoint's port.
    pub port: u16,
    /// The node's port; 0: none.
    pub host_port: u16,
    /// The node's address; empty: all.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
}

impl EndpointPort {
    /// The port of the node, if it has one that can be.
    fn host_port(&self) -> Option<HostPort> {
        let host_address = match self.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().ok()?),
        };
        (self.host_port != 0 && self.port != 0).then_some(HostPort {
            protocol: Protocol::named(self.protocol.as_str()?)?,
            host_address,
            host_port: self.host_port,
            port: self.port,
        })
    }
}

impl From<&HostPort> for EndpointPort {
    fn from(port: &HostPort) -> Self {
        Self {
            name: String::new(),
            protocol: Value::from(port.protocol.as_str().to_uppercase()),
            port: port.port,
            host_port: port.host_port,
            host_ip: port
                .host_address
                .map(|address| address.to_string())
                .unwrap_or_default(),
        }
    }
}

/// An endpoint together with where it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its identity.
    pub id: EndpointId,
    /// Itself.
    pub endpoint: Endpoint,
}

/// The prefix of all keys of the kind.
pub fn prefix() -> String {
    format!("{}{PLURAL}/", keys::RESOURCES)
}

/// Name of the endpoint's resource on `node`; `pod` if it is one of Kubernetes.
pub fn name(node: &str, id: &EndpointId, pod: Option<&str>) -> String {
    let (orchestrator, workload) = match pod {
        Some(pod) => ("k8s", pod),
        None => ("cni", id.container_id.as_str()),
    };
    [node, orchestrator, workload, id.ifname.as_str()]
        .map(|part| part.replace('-', "--"))
        .join("-")
}

/// Key of the endpoint's resource on `node`; `pod` holds namespace and name if it is one of Kubernetes.
pub fn key(node: &str, id: &EndpointId, pod: Option<(&str, &str)>) -> String {
    let (namespace, pod) = pod.map_or((DEFAULT_NAMESPACE, None), |(namespace, pod)| {
        (namespace, Some(pod))
    });
    keys::namespaced_resource(PLURAL, namespace, &name(node, id, pod))
}

/// Whether the key can be that of an endpoint on `node`: a cheap look before the value is read.
pub fn may_be_on(node: &str, key: &str) -> bool {
    let name = key.rsplit('/').next().unwrap_or_default();
    name.strip_prefix(&node.replace('-', "--"))
        .is_some_and(|rest| rest.starts_with('-') && !rest.starts_with("--"))
}

/// The resource of a new endpoint. `uid` is a UUID.
pub fn compose(node: &str, written: &Written, uid: &str, now: UnixNanos) -> WorkloadEndpoint {
    let Written { id, endpoint } = written;
    let namespace = endpoint.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let (orchestrator, profile) = match &endpoint.pod {
        Some(_) => ("k8s", format!("kns.{namespace}")),
        None => ("cni", id.network.clone()),
    };
    let spec = WorkloadEndpointSpec {
        orchestrator: orchestrator.to_owned(),
        node: node.to_owned(),
        container_id: id.container_id.clone(),
        pod: endpoint.pod.clone().unwrap_or_default(),
        endpoint: id.ifname.clone(),
        ip_networks: endpoint.addresses.iter().copied().map(IpNetwork::from).collect(),
        profiles: vec![profile],
        interface_name: endpoint.host_interface.clone(),
        mac: endpoint.mac.map(mac_text).unwrap_or_default(),
        ports: endpoint.host_ports.iter().map(EndpointPort::from).collect(),
        allow_spoofed_source_prefixes: endpoint.allowed_sources.iter().copied().collect(),
        extra: Map::new(),
    };
    let mut resource = Resource::new("WorkloadEndpoint", &name(node, id, endpoint.pod.as_deref()), spec);
    let metadata = &mut resource.metadata;
    metadata.namespace = Some(namespace.to_owned());
    metadata.uid = Some(uid.to_owned());
    metadata.creation_timestamp = Some(now.rfc3339());
    metadata
        .labels
        .insert("projectcalico.org/namespace".to_owned(), namespace.to_owned());
    metadata.labels.insert(
        "projectcalico.org/orchestrator".to_owned(),
        orchestrator.to_owned(),
    );
    metadata
        .annotations
        .insert(NETWORK_ANNOTATION.to_owned(), id.network.clone());
    resource
}

/// What a stored endpoint says, if it is on `node`.
///
/// # Errors
/// What is wrong with the value.
pub fn read(node: &str, key: &str, value: &[u8]) -> Result<Option<Written>, String> {
    let resource =
        WorkloadEndpoint::parse(key, "WorkloadEndpoint", value).map_err(|error| error.to_string())?;
    let WorkloadEndpoint { metadata, spec, .. } = resource;
    if spec.node != node {
        return Ok(None);
    }
    if spec.container_id.is_empty() || spec.endpoint.is_empty() {
        return Err("spec.containerID or spec.endpoint is missing".to_owned());
    }
    if spec.interface_name.is_empty() || spec.interface_name.len() > 15 {
        return Err(format!(
            "spec.interfaceName {:?} is not 1 to 15 bytes long",
            spec.interface_name
        ));
    }
    let is_pod = spec.orchestrator == "k8s";
    let profile = spec.profiles.first().filter(|_| !is_pod).cloned();
    let is_own = metadata.annotations.contains_key(NETWORK_ANNOTATION);
    let network = metadata.annotations.get(NETWORK_ANNOTATION).cloned().or(profile);
    Ok(Some(Written {
        id: EndpointId {
            network: network.unwrap_or_else(|| DEFAULT_NETWORK.to_owned()),
            container_id: spec.container_id,
            ifname: spec.endpoint,
        },
        endpoint: Endpoint {
            host_interface: spec.interface_name,
            addresses: spec
                .ip_networks
                .iter()
                .map(IpNetwork::ip)
                .collect::<BTreeSet<IpAddr>>(),
            mac: parse_mac(&spec.mac),
            namespace: metadata.namespace.filter(|_| is_pod),
            pod: Some(spec.pod).filter(|pod| !pod.is_empty()),
            // Those in Calico's endpoints are served by another plugin (`portmap`).
            host_ports: match is_own {
                true => spec.ports.iter().filter_map(EndpointPort::host_port).collect(),
                false => BTreeSet::new(),
            },
            allowed_sources: spec.allow_spoofed_source_prefixes.into_iter().collect(),
        },
    }))
}

/// `aa:bb:cc:dd:ee:ff`
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The MAC address in `text`, six hexadecimal bytes with colons between.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts
            .next()
            .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Calico v3.33 wrote for a pod and for a container outside Kubernetes.
    const CALICO_POD: &str = r#"{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"node--a-k8s-web--1-eth0","namespace":"shop","uid":"978a3a27-0872-4111-92d0-c5276de13e90","creationTimestamp":"2026-11-21T01:48:07Z","labels":{"app":"web","projectcalico.org/namespace":"shop","projectcalico.org/orchestrator":"k8s","tier":"front"}},"spec":{"orchestrator":"k8s","node":"node-a","containerID":"cb7d031e","pod":"web-1","endpoint":"eth0","ipNetworks":["10.244.0.11/32","fd00:10:244:6d15:74ba:80e:4835:8081/128"],"profiles":["kns.shop"],"interfaceName":"cali751425ce827","mac":"da:8f:20:9a:7c:c8","ports":[{"name":"http","protocol":"TCP","port":8080,"hostPort":18080,"hostIP":""}]}}"#;
    const CALICO_CONTAINER: &str = r#"{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"node--a-cni-c0ffee01-eth0","namespace":"default","uid":"cd2e4ce5-cb4c-4cbe-8ed3-a55601f39951","creationTimestamp":"2026-11-21T01:31:08Z","labels":{"projectcalico.org/namespace":"default","projectcalico.org/orchestrator":"cni"}},"spec":{"orchestrator":"cni","node":"node-a","containerID":"c0ffee01","endpoint":"eth0","ipNetworks":["10.244.174.128/32"],"profiles":["some-network"],"interfaceName":"calic0ffee01","mac":"a6:dd:da:29:c7:85"}}"#;

    fn pod() -> Written {
        Written {
            id: EndpointId {
                network: DEFAULT_NETWORK.into(),
                container_id: "cb7d031e".into(),
                ifname: "eth0".into(),
            },
            endpoint: Endpoint {
                host_interface: "cali751425ce827".into(),
                addresses: ["10.244.0.11", "fd00:10:244:6d15:74ba:80e:4835:8081"]
                    .iter()
                    .map(|a| a.parse().unwrap())
                    .collect(),
                mac: Some([0xda, 0x8f, 0x20, 0x9a, 0x7c, 0xc8]),
                namespace: Some("shop".into()),
                pod: Some("web-1".into()),
                ..Endpoint::default()
            },
        }
    }

    #[test]
    fn calicos_endpoints_are_understood() {
        assert_eq!(read("node-a", "k", CALICO_POD.as_bytes()), Ok(Some(pod())));
        let container = read("node-a", "k", CALICO_CONTAINER.as_bytes()).unwrap().unwrap();
        assert_eq!(container.id.network, "some-network");
        assert_eq!(
            (container.endpoint.namespace, container.endpoint.pod),
            (None, None)
        );
        assert_eq!(read("node-b", "k", CALICO_POD.as_bytes()), Ok(None));
    }

    #[test]
    fn what_is_written_reads_back_and_is_called_as_calico_calls_it() {
        let written = pod();
        let uid = "978a3a27-0872-4111-92d0-c5276de13e90";
        let json = compose("node-a", &written, uid, UnixNanos(1_795_225_687_000_000_000)).to_json();
        assert_eq!(read("node-a", "k", &json), Ok(Some(written.clone())));
        let (ours, calicos): (Value, Value) = (
            serde_json::from_slice(&json).unwrap(),
            serde_json::from_str(CALICO_POD).unwrap(),
        );
        assert_eq!(ours["metadata"]["name"], calicos["metadata"]["name"]);
        assert_eq!(
            ours["metadata"]["creationTimestamp"],
            calicos["metadata"]["creationTimestamp"]
        );
        for field in [
            "orchestrator",
            "node",
            "containerID",
            "pod",
            "endpoint",
            "ipNetworks",
            "profiles",
            "interfaceName",
            "mac",
        ] {
            assert_eq!(ours["spec"][field], calicos["spec"][field], "{field}");
        }
        assert_eq!(
            key("node-a", &written.id, written.endpoint.kubernetes_pod()),
            "/calico/resources/v3/projectcalico.org/workloadendpoints/shop/node--a-k8s-web--1-eth0"
        );
    }

    #[test]
    fn a_network_with_another_name_survives_a_restart() {
        let mut written = pod();
        written.id.network = "other".into();
        let json = compose("node-a", &written, "u", UnixNanos(0)).to_json();
        assert_eq!(read("node-a", "k", &json), Ok(Some(written)));
    }

    #[test]
    fn values_that_make_no_sense_say_why() {
        for (value, expected) in [
            ("{", "not a valid WorkloadEndpoint"),
            (&CALICO_POD.replace("cb7d031e", ""), "spec.containerID"),
            (
                &CALICO_POD.replace("cali751425ce827", "a-very-long-interface-name"),
                "1 to 15 bytes",
            ),
            (
                &CALICO_POD.replace("10.244.0.11/32", "10.244.0.11/33"),
                "not a valid WorkloadEndpoint",
            ),
        ] {
            let why = read("node-a", "k", value.as_bytes()).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }

    #[test]
    fn keys_of_other_nodes_are_told_apart() {
        let key = |name: &str| format!("{}ns/{name}", prefix());
        assert!(may_be_on("node-a", &key("node--a-k8s-p-eth0")));
        assert!(!may_be_on("node", &key("node--a-k8s-p-eth0")));
        assert!(!may_be_on("node-b", &key("node--a-k8s-p-eth0")));
    }

    #[test]
    fn mac_addresses_read_back() {
        assert_eq!(
            parse_mac(&mac_text([1, 2, 3, 0xa, 0xb, 0xff])),
            Some([1, 2, 3, 0xa, 0xb, 0xff])
        );
        for wrong in [
            "",
            "1:2:3:4:5:6",
            "00:00:00:00:00",
            "00:00:00:00:00:00:00",
            "+0:00:00:00:00:00",
        ] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }
}
