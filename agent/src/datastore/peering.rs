//! Calico's resources about BGP sessions, read: BGPConfiguration, BGPPeer, BGPFilter, and what of Node, IPPool and WorkloadEndpoint concerns them.
//!
//! Invariant: a resource that is not what it should be is an error that says what is wrong; nothing of it counts then. A field of `spec`
//! that is not known, or not honoured, is no error: it is named in the value.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use calidris_ipam::Selector;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::datastore::workload_endpoint::WorkloadEndpoint;
use crate::model::peering::{
    BgpConfiguration, BgpFilter, BgpPeer, CidrMatch, FilterOperation, FilterRule, NodesOfPeer, PeerNextHop,
    PeeringNode, PeeringPool, PeeringWorkload, PrefixAdvertisement, RemoteOfPeer, SecretKey,
};

/// Fields of a BGPConfiguration that ask nothing of this program: what it logs is for its own configuration to say, routes of the
/// kernel are not announced whatever the interface, and these are Calico's defaults for things it does not have.
const WITHOUT_MEANING: [&str; 3] = [
    "logSeverityScreen",
    "ignoredInterfaces",
    "serviceLoadBalancerAggregation",
];

/// Values of other fields that ask for what is so anyway.
const ALREADY_SO: [(&str, &str); 2] = [("bindMode", "None"), ("programClusterRoutes", "Enabled")];

/// A resource, as far as it matters.
#[derive(Deserialize)]
struct Resource<Spec> {
    #[serde(default)]
    metadata: Metadata,
    spec: Spec,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    bgp: NodeBgp,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeBgp {
    ipv4_address: String,
    ipv6_address: String,
    as_number: Option<AsNumber>,
    #[serde(rename = "routeReflectorClusterID")]
    cluster_id: String,
}

#[derive(Deserialize)]
struct PoolSpec {
    cidr: IpNetwork,
    #[serde(rename = "disableBGPExport", default)]
    disable_bgp_export: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigurationSpec {
    node_to_node_mesh_enabled: Option<bool>,
    as_number: Option<AsNumber>,
    listen_port: Option<u16>,
    node_mesh_password: Option<Password>,
    node_mesh_max_restart_time: Option<GoDuration>,
    #[serde(default)]
    communities: Vec<NamedCommunity>,
    #[serde(default)]
    prefix_advertisements: Vec<Advertisement>,
    #[serde(rename = "localWorkloadPeeringIPV4", default)]
    workload_ipv4: String,
    #[serde(rename = "localWorkloadPeeringIPV6", default)]
    workload_ipv6: String,
    #[serde(rename = "ipv4NormalRoutePriority")]
    ipv4_priority: Option<u32>,
    #[serde(rename = "ipv6NormalRoutePriority")]
    ipv6_priority: Option<u32>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct NamedCommunity {
    name: String,
    value: String,
}

#[derive(Deserialize)]
struct Advertisement {
    cidr: IpNetwork,
    #[serde(default)]
    communities: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Password {
    secret_key_ref: Option<SecretKey>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PeerSpec {
    #[serde(default)]
    node: String,
    #[serde(default)]
    node_selector: String,
    #[serde(rename = "peerIP", default)]
    peer_ip: String,
    as_number: Option<AsNumber>,
    #[serde(default)]
    peer_selector: String,
    #[serde(default)]
    local_workload_selector: String,
    #[serde(default)]
    keep_original_next_hop: bool,
    next_hop_mode: Option<NextHopMode>,
    password: Option<Password>,
    source_address: Option<SourceAddress>,
    max_restart_time: Option<GoDuration>,
    keepalive_time: Option<GoDuration>,
    #[serde(rename = "numAllowedLocalASNumbers", default)]
    allow_own_as: u8,
    ttl_security: Option<u8>,
    #[serde(default)]
    reachable_by: String,
    #[serde(default)]
    filters: Vec<String>,
    #[serde(rename = "localASNumber")]
    local_as: Option<AsNumber>,
    reverse_peering: Option<ReversePeering>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Clone, Copy, Deserialize)]
enum NextHopMode {
    Auto,
    #[serde(rename = "Self")]
    Itself,
    Keep,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
enum SourceAddress {
    #[serde(rename = "UseNodeIP")]
    UseNodeIp,
    None,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
enum ReversePeering {
    Auto,
    Manual,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilterSpec {
    #[serde(rename = "importV4", default)]
    import_v4: Vec<RuleSpec>,
    #[serde(rename = "importV6", default)]
    import_v6: Vec<RuleSpec>,
    #[serde(rename = "exportV4", default)]
    export_v4: Vec<RuleSpec>,
    #[serde(rename = "exportV6", default)]
    export_v6: Vec<RuleSpec>,
}

/// A rule. A condition that is not known would make it match too much: it is an error.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RuleSpec {
    cidr: Option<IpNetwork>,
    match_operator: Option<MatchOperator>,
    #[serde(default)]
    prefix_length: PrefixLength,
    source: Option<Source>,
    interface: Option<String>,
    peer_type: Option<PeerType>,
    communities: Option<Communities>,
    #[serde(rename = "asPathPrefix", default)]
    as_path_prefix: Vec<AsNumber>,
    priority: Option<u32>,
    action: Action,
    #[serde(default)]
    operations: Vec<Operation>,
}

#[derive(Clone, Copy, Deserialize)]
enum MatchOperator {
    Equal,
    NotEqual,
    In,
    NotIn,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PrefixLength {
    min: Option<u8>,
    max: Option<u8>,
}

#[derive(Deserialize)]
enum Source {
    RemotePeers,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
enum PeerType {
    #[serde(rename = "eBGP")]
    Ebgp,
    #[serde(rename = "iBGP")]
    Ibgp,
}

#[derive(Deserialize)]
struct Communities {
    values: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
enum Action {
    Accept,
    Reject,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Operation {
    AddCommunity {
        value: String,
    },
    #[serde(rename = "prependASPath")]
    PrependAsPath {
        prefix: Vec<AsNumber>,
    },
    SetPriority {
        value: u32,
    },
}

/// An AS number as Calico writes it: a number, or a text such as `64512` or `1.10`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "Value")]
struct AsNumber(u32);

/// A duration as Go writes it: `1m30s`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct GoDuration(Duration);

/// A Node.
///
/// # Errors
/// What is wrong with it.
pub fn node(value: &[u8]) -> Result<PeeringNode, String> {
    let resource: Resource<NodeSpec> = read(value)?;
    let bgp = resource.spec.bgp;
    Ok(PeeringNode {
        labels: resource.metadata.labels,
        ipv4: text::<Ipv4Network>("ipv4Address", &bgp.ipv4_address)?.map(|network| network.ip()),
        ipv6: text::<Ipv6Network>("ipv6Address", &bgp.ipv6_address)?.map(|network| network.ip()),
        as_number: bgp.as_number.map(|number| number.0),
        cluster_id: text("routeReflectorClusterID", &bgp.cluster_id)?,
    })
}

/// An IPPool.
///
/// # Errors
/// What is wrong with it.
pub fn pool(value: &[u8]) -> Result<PeeringPool, String> {
    let spec = read::<PoolSpec>(value)?.spec;
    Ok(PeeringPool {
        cidr: spec.cidr,
        disable_bgp_export: spec.disable_bgp_export,
    })
}

/// A BGPConfiguration.
///
/// # Errors
/// What is wrong with it.
pub fn configuration(value: &[u8]) -> Result<BgpConfiguration, String> {
    let spec = read::<ConfigurationSpec>(value)?.spec;
    let named: BTreeMap<&str, &str> = spec
        .communities
        .iter()
        .map(|community| (community.name.as_str(), community.value.as_str()))
        .collect();
    let advertisements = spec.prefix_advertisements.iter();
    Ok(BgpConfiguration {
        mesh: spec.node_to_node_mesh_enabled,
        as_number: spec.as_number.map(|number| number.0),
        listen_port: spec.listen_port,
        mesh_password: spec
            .node_mesh_password
            .and_then(|password| password.secret_key_ref),
        mesh_restart_time: spec.node_mesh_max_restart_time.map(|time| time.0),
        prefix_advertisements: advertisements
            .map(|advertisement| prefix_advertisement(advertisement, &named))
            .collect::<Result<_, _>>()?,
        workload_ipv4: text("localWorkloadPeeringIPV4", &spec.workload_ipv4)?,
        workload_ipv6: text("localWorkloadPeeringIPV6", &spec.workload_ipv6)?,
        ipv4_priority: spec.ipv4_priority,
        ipv6_priority: spec.ipv6_priority,
        unsupported: unsupported(&spec.rest),
    })
}

/// A BGPPeer.
///
/// # Errors
/// What is wrong with it.
pub fn peer(value: &[u8]) -> Result<BgpPeer, String> {
    let spec = read::<PeerSpec>(value)?.spec;
    let selector = |text: &str| Selector::parse(text).map_err(|error| error.to_string());
    let nodes = match (spec.node.as_str(), spec.node_selector.as_str()) {
        ("", "") => NodesOfPeer::All,
        (name, "") => NodesOfPeer::Named(name.to_owned()),
        ("", text) => NodesOfPeer::Selected(selector(text)?),
        _ => return Err("node and nodeSelector exclude each other".to_owned()),
    };
    let as_number = spec.as_number.map(|number| number.0);
    let remotes = (
        spec.peer_ip.as_str(),
        spec.peer_selector.as_str(),
        spec.local_workload_selector.as_str(),
    );
    let remote = match remotes {
        ("", "", "") => return Err("expected peerIP, peerSelector or localWorkloadSelector".to_owned()),
        (address, "", "") => {
            let (address, port) = address_and_port(address)?;
            RemoteOfPeer::Address {
                address,
                port,
                as_number,
            }
        }
        ("", text, "") if as_number.is_none() => RemoteOfPeer::Selected(selector(text)?),
        ("", "", text) => RemoteOfPeer::Workloads {
            selector: selector(text)?,
            as_number: as_number.ok_or("localWorkloadSelector needs an asNumber")?,
        },
        (_, _, "") => return Err("peerSelector excludes peerIP and asNumber".to_owned()),
        _ => return Err("localWorkloadSelector excludes peerIP and peerSelector".to_owned()),
    };
    Ok(BgpPeer {
        nodes,
        remote,
        next_hop: match spec.next_hop_mode {
            Some(NextHopMode::Itself) => PeerNextHop::Itself,
            Some(NextHopMode::Keep) => PeerNextHop::Keep,
            None | Some(NextHopMode::Auto) if spec.keep_original_next_hop => PeerNextHop::KeepOutside,
            None | Some(NextHopMode::Auto) => PeerNextHop::Auto,
        },
        password: spec.password.and_then(|password| password.secret_key_ref),
        from_node_address: spec.source_address != Some(SourceAddress::None),
        restart_time: spec.max_restart_time.map(|time| time.0),
        keepalive_time: spec.keepalive_time.map(|time| time.0),
        allow_own_as: spec.allow_own_as,
        ttl_security: spec.ttl_security.filter(|hops| *hops > 0),
        reachable_by: text("reachableBy", &spec.reachable_by)?,
        filters: spec.filters,
        local_as: spec.local_as.map(|number| number.0),
        reverse: spec.reverse_peering != Some(ReversePeering::Manual),
        unsupported: unsupported(&spec.rest),
    })
}

/// A WorkloadEndpoint, if it is on `node`.
///
/// # Errors
/// What is wrong with it.
pub fn workload(node: &str, key: &str, value: &[u8]) -> Result<Option<PeeringWorkload>, String> {
    let endpoint =
        WorkloadEndpoint::parse(key, "WorkloadEndpoint", value).map_err(|error| error.to_string())?;
    let (mut ipv4, mut ipv6) = (None, None);
    for network in &endpoint.spec.ip_networks {
        match network.ip() {
            IpAddr::V4(v4) => ipv4 = ipv4.or(Some(v4)),
            IpAddr::V6(v6) => ipv6 = ipv6.or(Some(v6)),
        }
    }
    Ok((endpoint.spec.node == node).then_some(PeeringWorkload {
        labels: endpoint.metadata.labels,
        interface: endpoint.spec.interface_name,
        ipv4,
        ipv6,
    }))
}

/// A BGPFilter.
///
/// # Errors
/// What is wrong with it.
pub fn filter(value: &[u8]) -> Result<BgpFilter, String> {
    let spec = read::<FilterSpec>(value)?.spec;
    let mut import = rules("importV4", false, spec.import_v4)?;
    import.extend(rules("importV6", true, spec.import_v6)?);
    let mut export = rules("exportV4", false, spec.export_v4)?;
    export.extend(rules("exportV6", true, spec.export_v6)?);
    Ok(BgpFilter { import, export })
}

fn read<Spec: for<'de> Deserialize<'de>>(value: &[u8]) -> Result<Resource<Spec>, String> {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

/// A text that may be empty, which says nothing.
fn text<T: FromStr>(field: &str, text: &str) -> Result<Option<T>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text
        .parse()
        .map_err(|_| format!("{field} {text:?} is not an address"));
    parsed.map(Some)
}

fn unsupported(rest: &Map<String, Value>) -> BTreeSet<String> {
    let is_said = |(field, value): &(&String, &Value)| {
        let is_empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        let is_so = |(name, so): &(&str, &str)| field.as_str() == *name && value.as_str() == Some(so);
        !is_empty && !WITHOUT_MEANING.contains(&field.as_str()) && !ALREADY_SO.iter().any(is_so)
    };
    rest.iter()
        .filter(is_said)
        .map(|(field, _)| field.clone())
        .collect()
}

/// `192.0.2.1`, `192.0.2.1:179`, `2001:db8::1`, `[2001:db8::1]:179`.
fn address_and_port(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(address) = text.parse() {
        return Ok((address, None));
    }
    match text.parse::<std::net::SocketAddr>() {
        Ok(socket) if socket.port() != 0 => Ok((socket.ip(), Some(socket.port()))),
        _ => Err(format!(
            "peerIP {text:?} is neither an address nor an address with a port"
        )),
    }
}

fn prefix_advertisement(
    advertisement: &Advertisement,
    named: &BTreeMap<&str, &str>,
) -> Result<PrefixAdvertisement, String> {
    let communities = advertisement.communities.iter();
    let communities = communities.map(|text| named.get(text.as_str()).copied().unwrap_or(text).parse());
    Ok(PrefixAdvertisement {
        cidr: advertisement.cidr,
        communities: communities.collect::<Result<_, _>>()?,
    })
}

fn rules(list: &str, is_ipv6: bool, specs: Vec<RuleSpec>) -> Result<Vec<FilterRule>, String> {
    let specs = specs.into_iter().enumerate();
    specs
        .map(|(index, spec)| filter_rule(format!("{list}[{index}]"), is_ipv6, spec))
        .collect()
}

fn filter_rule(place: String, is_ipv6: bool, spec: RuleSpec) -> Result<FilterRule, String> {
    let refuse = |why: &str| Err(format!("{place}: {why}"));
    let longest = if is_ipv6 { 128 } else { 32 };
    let PrefixLength { min, max } = spec.prefix_length;
    if min.max(max).is_some_and(|length| length > longest) {
        return refuse("prefixLength is beyond the family's");
    }
    let cidr = match (spec.cidr, spec.match_operator) {
        (Some(cidr), _) if cidr.is_ipv6() != is_ipv6 => return refuse("cidr is of the other family"),
        (Some(cidr), Some(operator)) => Some(CidrMatch {
            cidr: IpNetwork::new(cidr.network(), cidr.prefix()).unwrap_or(cidr),
            exact: matches!(operator, MatchOperator::Equal | MatchOperator::NotEqual),
            negated: matches!(operator, MatchOperator::NotEqual | MatchOperator::NotIn),
            min_length: min,
            max_length: max,
        }),
        (None, None) if min.or(max).is_none() => None,
        (None, None) => return refuse("prefixLength needs a cidr"),
        _ => return refuse("cidr and matchOperator go together"),
    };
    if spec.action == Action::Reject && !spec.operations.is_empty() {
        return refuse("operations go with action Accept only");
    }
    let operations = spec
        .operations
        .into_iter()
        .map(operation)
        .collect::<Result<_, _>>();
    let communities = spec
        .communities
        .map_or_else(Vec::new, |communities| communities.values);
    let communities = communities
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>();
    Ok(FilterRule {
        operations: operations.map_err(|why: String| format!("{place}: {why}"))?,
        communities: communities.map_err(|why: String| format!("{place}: {why}"))?,
        place,
        is_ipv6,
        cidr,
        from_peers: spec.source.is_some(),
        interface: spec.interface.filter(|interface| !interface.is_empty()),
        ebgp: spec.peer_type.map(|kind| kind == PeerType::Ebgp),
        as_path_prefix: spec.as_path_prefix.iter().map(|number| number.0).collect(),
        priority: spec.priority,
        accept: spec.action == Action::Accept,
    })
}

fn operation(operation: Operation) -> Result<FilterOperation, String> {
    Ok(match operation {
        Operation::AddCommunity { value } => FilterOperation::AddCommunity(value.parse()?),
        Operation::PrependAsPath { prefix } => {
            FilterOperation::PrependAsPath(prefix.iter().map(|number| number.0).collect())
        }
        Operation::SetPriority { value: 0 } => return Err("setPriority is 0; expected 1 or more".to_owned()),
        Operation::SetPriority { value } => FilterOperation::SetPriority(value),
    })
}

impl TryFrom<Value> for AsNumber {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let number = match &value {
            Value::Number(number) => number.as_u64().and_then(|number| u32::try_from(number).ok()),
            Value::String(text) => match text.split_once('.') {
                Some((high, low)) => {
                    let halves = high.parse::<u16>().ok().zip(low.parse::<u16>().ok());
                    halves.map(|(high, low)| u32::from(high) << 16 | u32::from(low))
                }
                None => text.parse().ok(),
            },
            _ => None,
        };
        match number {
            Some(number) if number != 0 => Ok(Self(number)),
            _ => Err(format!("{value} is not an AS number")),
        }
    }
}

impl TryFrom<String> for GoDuration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let refuse = || format!("{text:?} is not a duration such as \"1m30s\"");
        let (mut rest, mut total) = (text.as_str(), Duration::ZERO);
        while !rest.is_empty() {
            let unit_at = rest
                .find(|letter: char| !letter.is_ascii_digit())
                .ok_or_else(refuse)?;
            let (number, behind) = rest.split_at(unit_at);
            let unit_ends = behind
                .find(|letter: char| letter.is_ascii_digit())
                .unwrap_or(behind.len());
            let (unit, behind) = behind.split_at(unit_ends);
            let part = crate::config::parse_duration(&format!("{number}{unit}")).ok_or_else(refuse)?;
            total = total.checked_add(part).ok_or_else(refuse)?;
            rest = behind;
        }
        Ok(Self(total))
    }
}

#[cfg(test)]
mod tests;
