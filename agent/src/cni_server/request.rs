//! What a request means for this node: pure.
//!
//! Everything that came over the socket is checked here again before it becomes part of a datastore key or of an
//! interface name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use calidris_cni::contract::{AddressManagement, Attachment};
use calidris_cni::error::{CniError, ErrorCode};
use calidris_cni::spec::{IpRange, NetConf, is_valid_ifname, is_valid_name};
use calidris_ipam::{AddressRequest, Keep};
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::config::parse_duration;
use crate::datastore::workload_endpoint::parse_mac;
use crate::model::{EndpointId, HostPort, Protocol};
use crate::pod_link::{container_mac, host_interface_name};

/// Annotation of a pod whose addresses are kept for it: for how long.
const KEEP_ADDRESS: &str = "calidris/keep-address";
/// Longest part of a name in a datastore key, as Kubernetes has it (RFC 1123 subdomain).
const MAX_NAME: usize = 253;

/// Whom a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subject {
    /// Identity of the attachment.
    pub(super) id: EndpointId,
    /// Name of the host end.
    pub(super) host_interface: String,
    /// Handle of its addresses.
    pub(super) handle_id: String,
    /// Kubernetes namespace and pod.
    pub(super) pod: Option<(String, String)>,
}

/// What an ADD asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// IPv4 addresses.
    pub(super) v4: AddressRequest,
    /// IPv6 addresses.
    pub(super) v6: AddressRequest,
    /// Pools to take them from, empty for any.
    pub(super) pools: Vec<String>,
    /// MAC address of the container's end.
    pub(super) mac: [u8; 6],
    /// Ports of the node that are to lead to the container.
    pub(super) host_ports: BTreeSet<HostPort>,
    /// Ranges that it may send from besides its own addresses.
    pub(super) allowed_sources: BTreeSet<IpNetwork>,
    /// Addresses that another plugin has given, instead of any from the pools.
    pub(super) given: Option<Vec<IpAddr>>,
    /// For whom the addresses are kept after their release, and how long.
    pub(super) keep: Option<Keep>,
}

impl Wanted {
    /// With the addresses that came with the request, if any did.
    pub(super) fn with(mut self, addresses: &AddressManagement) -> Self {
        if let AddressManagement::Delegated(result) = addresses {
            let given: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.ip()).collect();
            let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = given.iter().partition(|address| address.is_ipv4());
            (self.v4, self.v6) = (exactly(v4), exactly(v6));
            self.given = Some(given);
        }
        self
    }
}

/// Whom the request is about.
///
/// # Errors
/// Codes 4 and 7 for names that cannot be.
pub(super) fn subject(config: &NetConf, attachment: &Attachment) -> Result<Subject, CniError> {
    subject_in(&config.name, attachment)
}

/// Whom a request would be about that concerns the network of this name.
///
/// # Errors
/// As [`subject`].
pub(super) fn subject_in(network: &str, attachment: &Attachment) -> Result<Subject, CniError> {
    let id = EndpointId {
        network: network.to_owned(),
        container_id: attachment.id.container_id.clone(),
        ifname: attachment.id.ifname.clone(),
    };
    let environment = |what: &str| CniError::new(ErrorCode::INVALID_ENVIRONMENT, what);
    if !is_valid_name(&id.network) || id.network.len() > MAX_NAME {
        return Err(CniError::new(
            ErrorCode::INVALID_CONFIG,
            "invalid network configuration: name",
        ));
    }
    if !is_valid_name(&id.container_id) || id.container_id.len() > MAX_NAME {
        return Err(environment("CNI_CONTAINERID is not a container ID"));
    }
    if !is_valid_ifname(&id.ifname) {
        return Err(environment("CNI_IFNAME is not an interface name"));
    }
    let args = &attachment.args;
    let pod = match (args.pod_namespace.as_str(), args.pod_name.as_str()) {
        ("", _) | (_, "") => None,
        (namespace, pod) if is_kubernetes_name(namespace) && is_kubernetes_name(pod) => {
            Some((namespace.to_owned(), pod.to_owned()))
        }
        _ => {
            return Err(environment(
                "CNI_ARGS: K8S_POD_NAMESPACE or K8S_POD_NAME is not a Kubernetes name",
            ));
        }
    };
    Ok(Subject {
        host_interface: host_interface_name(
            pod.as_ref()
                .map(|(namespace, pod)| (namespace.as_str(), pod.as_str())),
            &id.container_id,
            &id.ifname,
        ),
        handle_id: handle_id(&id),
        id,
        pod,
    })
}

/// Handle of an attachment's addresses: Calico's `NETWORK.CONTAINER` for `eth0`; further interfaces of the container have
/// handles of their own.
pub(crate) fn handle_id(id: &EndpointId) -> String {
    let EndpointId {
        network,
        container_id,
        ifname,
    } = id;
    match ifname.as_str() {
        "eth0" => format!("{network}.{container_id}"),
        _ => format!("{network}.{container_id}.{ifname}"),
    }
}

/// What an ADD asks for. In order of precedence: addresses named by the pod's annotation, by the capability `ips`, by
/// `CNI_ARGS`; then what is kept for the pod; otherwise one address of each family that `ipam.assign_ipv4` (default true) and `ipam.assign_ipv6`
/// (default false) name, from the pools of the pod's annotations or of `ipam.ipv4_pools` and `ipam.ipv6_pools`.
///
/// # Errors
/// Code 7 (configuration) and 4 (`CNI_ARGS`) for values that are none.
pub(super) fn wanted(
    config: &NetConf,
    attachment: &Attachment,
    subject: &Subject,
) -> Result<Wanted, CniError> {
    let mac = requested_mac(config, attachment)?.unwrap_or_else(|| container_mac(&subject.id));
    let host_ports = host_ports(config)?;
    let allowed_sources = allowed_sources(config)?;
    let keep = keep(config, subject)?;
    let requested = requested_addresses(config, attachment)?;
    if !requested.is_empty() {
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = requested.into_iter().partition(IpAddr::is_ipv4);
        return Ok(Wanted {
            v4: exactly(v4),
            v6: exactly(v6),
            pools: Vec::new(),
            mac,
            host_ports,
            allowed_sources,
            given: None,
            keep,
        });
    }
    let (v4, v6, pools) = automatic(config, &config.runtime_config.pod_annotations)?;
    Ok(Wanted {
        v4,
        v6,
        pools,
        mac,
        host_ports,
        allowed_sources,
        given: None,
        keep,
    })
}

/// What the network's configuration alone asks for, for any pod.
///
/// # Errors
/// Code 7.
pub(super) fn wanted_of_network(
    config: &NetConf,
) -> Result<(AddressRequest, AddressRequest, Vec<String>), CniError> {
    automatic(config, &BTreeMap::new())
}

fn automatic(
    config: &NetConf,
    annotations: &BTreeMap<String, String>,
) -> Result<(AddressRequest, AddressRequest, Vec<String>), CniError> {
    let ipam = config.other.get("ipam").and_then(Value::as_object);
    let ipam = |key: &str| ipam.and_then(|ipam| ipam.get(key));
    let named = [
        "cni.projectcalico.org/ipv4pools",
        "cni.projectcalico.org/ipv6pools",
    ];
    if !config.runtime_config.ip_ranges.is_empty()
        && !named.iter().any(|name| annotations.contains_key(*name))
    {
        return of_ranges(&config.runtime_config.ip_ranges);
    }
    let v4 = switch("ipam.assign_ipv4", ipam("assign_ipv4"))?.unwrap_or(true);
    let v6 = switch("ipam.assign_ipv6", ipam("assign_ipv6"))?.unwrap_or(false);
    let mut pools = Vec::new();
    for (annotation, key) in [
        ("cni.projectcalico.org/ipv4pools", "ipv4_pools"),
        ("cni.projectcalico.org/ipv6pools", "ipv6_pools"),
    ] {
        pools.extend(match annotated_list(annotations, annotation)? {
            Some(pools) => pools,
            None => list(&format!("ipam.{key}"), ipam(key))?,
        });
    }
    let one = |is_wanted| {
        if is_wanted {
            AddressRequest::Count(1)
        } else {
            AddressRequest::None
        }
    };
    Ok((one(v4), one(v6), pools))
}

/// The capability `ipRanges`: an address for each list, from the pools that the list names by their ranges. Parts of a pool
/// cannot be asked for: blocks, not addresses, belong to nodes.
fn of_ranges(ranges: &[Vec<IpRange>]) -> Result<(AddressRequest, AddressRequest, Vec<String>), CniError> {
    let (mut v4, mut v6, mut pools) = (0, 0, Vec::new());
    for list in ranges {
        match list.first() {
            None => return Err(invalid("ipRanges: an empty list of ranges")),
            Some(range) if range.subnet.is_ipv4() => v4 += 1,
            Some(_) => v6 += 1,
        }
        for range in list {
            if range.range_start.is_some() || range.range_end.is_some() {
                return Err(CniError::new(
                    ErrorCode::UNSUPPORTED_FIELD,
                    format!(
                        "ipRanges: rangeStart and rangeEnd of {} cannot be kept to; name the whole pool",
                        range.subnet
                    ),
                ));
            }
            pools.push(range.subnet.to_string());
        }
    }
    let count = |count| match count {
        0 => AddressRequest::None,
        count => AddressRequest::Count(count),
    };
    Ok((count(v4), count(v6), pools))
}

fn requested_addresses(config: &NetConf, attachment: &Attachment) -> Result<Vec<IpAddr>, CniError> {
    let annotation = "cni.projectcalico.org/ipAddrs";
    if let Some(texts) = annotated_list(&config.runtime_config.pod_annotations, annotation)? {
        return texts.iter().map(|text| address(annotation, text)).collect();
    }
    let ips: Vec<IpAddr> = config.runtime_config.ips.iter().map(IpNetwork::ip).collect();
    if !ips.is_empty() || attachment.args.ip.is_empty() {
        return Ok(ips);
    }
    Ok(vec![address("CNI_ARGS: IP", &attachment.args.ip)?])
}

/// The pod's annotation [`KEEP_ADDRESS`] or the key `ipam.keep_address`: how long the pod's addresses are kept for it after
/// it is gone.
fn keep(config: &NetConf, subject: &Subject) -> Result<Option<Keep>, CniError> {
    let annotation = config.runtime_config.pod_annotations.get(KEEP_ADDRESS);
    let (place, text) = match (
        annotation,
        config.other.get("ipam").and_then(|ipam| ipam.get("keep_address")),
    ) {
        (Some(text), _) => (format!("annotation {KEEP_ADDRESS}"), Some(text.as_str())),
        (None, None) => return Ok(None),
        (None, Some(value)) => ("ipam.keep_address".to_owned(), value.as_str()),
    };
    let time = text.and_then(parse_duration).map(|time| time.as_secs());
    let seconds = time.and_then(|seconds| u32::try_from(seconds).ok());
    let Some(seconds) = seconds.filter(|seconds| (1..=Keep::MAX_SECONDS).contains(seconds)) else {
        return Err(invalid(&format!(
            "{place}: expected a time from 1s to 8760h, such as 30m or 24h, found {}",
            text.map_or("no text".to_owned(), |text| format!("{text:?}"))
        )));
    };
    let Some((namespace, pod)) = &subject.pod else {
        return Err(invalid(&format!(
            "{place}: whom to keep the address for is not said: K8S_POD_NAMESPACE and K8S_POD_NAME are not in CNI_ARGS"
        )));
    };
    let (network, ifname) = (&subject.id.network, &subject.id.ifname);
    Ok(Some(Keep::for_pod(network, (namespace, pod), ifname, seconds)))
}

fn requested_mac(config: &NetConf, attachment: &Attachment) -> Result<Option<[u8; 6]>, CniError> {
    let annotation = config
        .runtime_config
        .pod_annotations
        .get("cni.projectcalico.org/hwAddr");
    let from_args = Some(&attachment.args.mac).filter(|mac| !mac.is_empty());
    let Some(text) = annotation.or(config.runtime_config.mac.as_ref()).or(from_args) else {
        return Ok(None);
    };
    match parse_mac(text) {
        Some(mac) if mac[0] & 1 == 0 => Ok(Some(mac)),
        _ => Err(invalid(&format!(
            "{text:?} is not the MAC address of a host, such as 02:00:00:11:22:33"
        ))),
    }
}

/// The capability `portMappings`. Entries without a host port ask for nothing (Kubernetes has them).
pub(super) fn host_ports(config: &NetConf) -> Result<BTreeSet<HostPort>, CniError> {
    let mut ports = BTreeSet::new();
    for mapping in config
        .runtime_config
        .port_mappings
        .iter()
        .filter(|mapping| mapping.host_port != 0)
    {
        let invalid = |what: &str| invalid(&format!("portMappings: host port {}: {what}", mapping.host_port));
        if mapping.container_port == 0 {
            return Err(invalid("containerPort is 0"));
        }
        let protocol = match mapping.protocol.as_str() {
            "" => Protocol::Tcp,
            name => Protocol::named(name)
                .ok_or_else(|| invalid(&format!("protocol {name:?} is not tcp, udp or sctp")))?,
        };
        let host_address = match mapping.host_ip.as_str() {
            "" => None,
            text => {
                let address: IpAddr = text
                    .parse()
                    .map_err(|_| invalid(&format!("hostIP {text:?} is not an IP address")))?;
                Some(address).filter(|address| !address.is_unspecified())
            }
        };
        ports.insert(HostPort {
            protocol,
            host_address,
            host_port: mapping.host_port,
            port: mapping.container_port,
        });
    }
    Ok(ports)
}

/// The annotation `allowedSourcePrefixes`.
fn allowed_sources(config: &NetConf) -> Result<BTreeSet<IpNetwork>, CniError> {
    let annotation = "cni.projectcalico.org/allowedSourcePrefixes";
    let texts = annotated_list(&config.runtime_config.pod_annotations, annotation)?.unwrap_or_default();
    texts
        .iter()
        .map(|text| {
            let prefix: IpNetwork = text
                .parse()
                .map_err(|_| invalid(&format!("annotation {annotation}: {text:?} is not a prefix")))?;
            IpNetwork::new(prefix.network(), prefix.prefix())
                .map_err(|_| invalid(&format!("annotation {annotation}: {text:?} is not a prefix")))
        })
        .collect()
}

fn exactly(addresses: Vec<IpAddr>) -> AddressRequest {
    if addresses.is_empty() {
        AddressRequest::None
    } else {
        AddressRequest::Exactly(addresses)
    }
}

fn address(place: &str, text: &str) -> Result<IpAddr, CniError> {
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    address
        .parse()
        .map_err(|_| invalid(&format!("{place}: {text:?} is not an IP address")))
}

/// Calico's configurations have these as strings.
fn switch(key: &str, value: Option<&Value>) -> Result<Option<bool>, CniError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(Value::String(text)) if text == "true" => Ok(Some(true)),
        Some(Value::String(text)) if text == "false" => Ok(Some(false)),
        Some(other) => Err(invalid(&format!("{key}: expected true or false, found {other}"))),
    }
}

fn list(key: &str, value: Option<&Value>) -> Result<Vec<String>, CniError> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|_| invalid(&format!("{key}: expected a list of strings, found {value}"))),
    }
}

/// Annotations hold lists as JSON text.
fn annotated_list(
    annotations: &BTreeMap<String, String>,
    key: &str,
) -> Result<Option<Vec<String>>, CniError> {
    let Some(text) = annotations.get(key) else {
        return Ok(None);
    };
    serde_json::from_str(text).map(Some).map_err(|_| {
        invalid(&format!(
            "annotation {key}: expected a JSON list of strings, found {text:?}"
        ))
    })
}

/// RFC 1123 subdomain, as names of pods and namespaces are.
fn is_kubernetes_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.ends_with(|last: char| last.is_ascii_alphanumeric())
}

fn invalid(why: &str) -> CniError {
    CniError::new(ErrorCode::INVALID_CONFIG, why)
}

#[cfg(test)]
mod tests {
    use calidris_cni::args::CniArgs;
    use calidris_cni::spec::{AttachmentId, BadPrevResult};
    use serde_json::json;

    use super::*;

    fn config(more: &Value) -> NetConf {
        let mut object = json!({ "cniVersion": "1.0.0", "name": "net", "type": "calidris-cni" });
        object
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        NetConf::parse(object.to_string().as_bytes(), BadPrevResult::Refuse).unwrap()
    }

    fn attachment(ifname: &str, args: CniArgs) -> Attachment {
        Attachment {
            id: AttachmentId {
                container_id: "c0ffee".into(),
                ifname: ifname.into(),
            },
            netns_path: "/run/netns/x".into(),
            args,
        }
    }

    fn pod_args(namespace: &str, pod: &str) -> CniArgs {
        CniArgs {
            pod_namespace: namespace.into(),
            pod_name: pod.into(),
            ..CniArgs::default()
        }
    }

    fn addresses(texts: &[&str]) -> AddressRequest {
        exactly(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn want(config: &NetConf, attachment: &Attachment) -> Result<Wanted, CniError> {
        wanted(config, attachment, &subject(config, attachment)?)
    }

    #[test]
    fn the_handle_is_calicos_for_eth0() {
        let subject = |ifname| subject(&config(&json!({})), &attachment(ifname, CniArgs::default())).unwrap();
        assert_eq!(subject("eth0").handle_id, "net.c0ffee");
        assert_eq!(subject("net1").handle_id, "net.c0ffee.net1");
        assert_ne!(subject("eth0").host_interface, subject("net1").host_interface);
    }

    #[test]
    fn names_that_could_leave_their_place_in_a_key_are_refused() {
        let plain = config(&json!({}));
        for (namespace, pod) in [("a/b", "p"), ("a", "../p"), ("a", "p/"), ("A", "p"), ("a", "-p")] {
            let error = subject(&plain, &attachment("eth0", pod_args(namespace, pod))).unwrap_err();
            assert_eq!(error.code, ErrorCode::INVALID_ENVIRONMENT, "{namespace} {pod}");
        }
        let mut hostile = attachment("eth0", CniArgs::default());
        hostile.id.container_id = "../../x".into();
        assert!(subject(&plain, &hostile).is_err());
        let mut hostile = attachment("eth0", CniArgs::default());
        hostile.id.ifname = "eth0/1".into();
        assert!(subject(&plain, &hostile).is_err());
        let mut hostile = plain;
        hostile.name = "a/b".into();
        assert!(subject(&hostile, &attachment("eth0", CniArgs::default())).is_err());
    }

    #[test]
    fn which_addresses_are_asked_for() {
        let one = AddressRequest::Count(1);
        let none = AddressRequest::None;
        let annotated = |key: &str, value: &str| json!({ "runtimeConfig": { "io.kubernetes.cri.pod-annotations": { (format!("cni.projectcalico.org/{key}")): value } } });
        let rows: Vec<(Value, &str, AddressRequest, AddressRequest, &[&str])> = vec![
            (json!({}), "", one.clone(), none.clone(), &[]),
            (
                json!({ "ipam": { "assign_ipv6": "true" } }),
                "",
                one.clone(),
                one.clone(),
                &[],
            ),
            (
                json!({ "ipam": { "assign_ipv4": false, "assign_ipv6": true } }),
                "",
                none.clone(),
                one.clone(),
                &[],
            ),
            (
                json!({ "ipam": { "ipv4_pools": ["a"], "ipv6_pools": ["b"] } }),
                "",
                one.clone(),
                none.clone(),
                &["a", "b"],
            ),
            (annotated("ipv4pools", "[\"c\"]"), "", one, none.clone(), &["c"]),
            (json!({}), "10.0.0.9", addresses(&["10.0.0.9"]), none.clone(), &[]),
            (
                json!({ "runtimeConfig": { "ips": ["10.0.0.7/24", "fd00::7/64"] } }),
                "10.0.0.9",
                addresses(&["10.0.0.7"]),
                addresses(&["fd00::7"]),
                &[],
            ),
            (
                annotated("ipAddrs", "[\"10.0.0.8\"]"),
                "10.0.0.9",
                addresses(&["10.0.0.8"]),
                none,
                &[],
            ),
        ];
        for (more, ip, v4, v6, pools) in rows {
            let args = CniArgs {
                ip: ip.into(),
                ..CniArgs::default()
            };
            let wanted = want(&config(&more), &attachment("eth0", args)).unwrap();
            assert_eq!((wanted.v4, wanted.v6), (v4, v6), "{more} {ip}");
            assert_eq!(wanted.pools, pools, "{more}");
        }
    }

    #[test]
    fn values_that_are_none_are_refused_with_their_place() {
        let annotated = |key: &str, value: &str| json!({ "runtimeConfig": { "io.kubernetes.cri.pod-annotations": { (format!("cni.projectcalico.org/{key}")): value } } });
        for (more, ip, expected) in [
            (
                json!({ "ipam": { "assign_ipv4": "maybe" } }),
                "",
                "ipam.assign_ipv4",
            ),
            (json!({ "ipam": { "ipv4_pools": "a" } }), "", "ipam.ipv4_pools"),
            (annotated("ipAddrs", "10.0.0.1"), "", "ipAddrs"),
            (annotated("ipAddrs", "[\"10.0.0\"]"), "", "not an IP address"),
            (
                annotated("hwAddr", "01:00:00:00:00:00"),
                "",
                "not the MAC address",
            ),
            (json!({}), "10.0.0.256", "CNI_ARGS: IP"),
        ] {
            let args = CniArgs {
                ip: ip.into(),
                ..CniArgs::default()
            };
            let error = want(&config(&more), &attachment("eth0", args)).unwrap_err();
            assert!(error.msg.contains(expected), "{more}: {}", error.msg);
        }
    }

    #[test]
    fn a_pods_address_is_kept_for_as_long_as_its_annotation_or_the_network_says() {
        let annotated = |text: &str| {
            json!({ "runtimeConfig": { "io.kubernetes.cri.pod-annotations": { (KEEP_ADDRESS): text } },
            "ipam": { "keep_address": "1h" } })
        };
        let keep = |more: &Value| {
            want(&config(more), &attachment("eth0", pod_args("shop", "db-0"))).map(|wanted| wanted.keep)
        };
        let kept = |seconds| Some(Keep::for_pod("net", ("shop", "db-0"), "eth0", seconds));
        assert_eq!(keep(&json!({})), Ok(None));
        assert_eq!(keep(&annotated("24h")), Ok(kept(86_400)));
        assert_eq!(keep(&json!({ "ipam": { "keep_address": "90s" } })), Ok(kept(90)));
        for wrong in ["", "0s", "24", "8761h", "500ms"] {
            let error = keep(&annotated(wrong)).unwrap_err();
            assert!(error.msg.contains(KEEP_ADDRESS), "{wrong}: {}", error.msg);
        }
        let error = keep(&json!({ "ipam": { "keep_address": 60 } })).unwrap_err();
        assert!(error.msg.contains("ipam.keep_address"), "{}", error.msg);
        let nobody = attachment("eth0", CniArgs::default());
        let error = want(&config(&annotated("24h")), &nobody).unwrap_err();
        assert!(error.msg.contains("K8S_POD_NAME"), "{}", error.msg);
    }

    #[test]
    fn the_mac_address_is_asked_for_or_follows_from_the_attachment() {
        let plain = |ifname| {
            want(&config(&json!({})), &attachment(ifname, CniArgs::default()))
                .unwrap()
                .mac
        };
        assert_eq!(plain("eth0"), plain("eth0"));
        assert_ne!(plain("eth0"), plain("net1"));
        assert_eq!(plain("eth0")[0] & 3, 2, "locally administered, one host's");
        let asked = config(&json!({ "runtimeConfig": { "mac": "02:00:00:11:22:33" } }));
        let asked = want(&asked, &attachment("eth0", CniArgs::default())).unwrap();
        assert_eq!(asked.mac, [2, 0, 0, 0x11, 0x22, 0x33]);
    }
}
