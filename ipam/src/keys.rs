//! Where things are: the etcd keys of Calico v3, and one of ours.
//!
//! | key | value |
//! |---|---|
//! | `/calico/ipam/v2/assignment/ipv4/block/10.244.0.0-26` | allocation block |
//! | `/calico/ipam/v2/host/NODE/ipv4/block/10.244.0.0-26` | affinity of a node to a block |
//! | `/calico/ipam/v2/handle/HANDLE` | handle |
//! | `/calico/ipam/v2/config` | IPAM configuration |
//! | `/calico/resources/v3/projectcalico.org/PLURAL/[NAMESPACE/]NAME` | v3 resource |
//! | `/calidris/ipam/v1/fence/NODE` | fence of a node: ours, Calico has no such thing |
//!
//! In a key the `/` of a CIDR is written `-`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// Everything Calico keeps lies under this prefix.
pub const CALICO: &str = "/calico/";
/// Prefix of all allocation blocks.
pub const BLOCKS: &str = "/calico/ipam/v2/assignment/";
/// Prefix of all affinities.
pub const AFFINITIES: &str = "/calico/ipam/v2/host/";
/// Prefix of all handles.
pub const HANDLES: &str = "/calico/ipam/v2/handle/";
/// The cluster-wide IPAM configuration (`calicoctl ipam configure`).
pub const IPAM_CONFIG: &str = "/calico/ipam/v2/config";
/// Prefix of all v3 resources.
pub const RESOURCES: &str = "/calico/resources/v3/projectcalico.org/";
/// Prefix of the pools.
pub const IP_POOLS: &str = "/calico/resources/v3/projectcalico.org/ippools/";
/// Prefix of the reservations.
pub const IP_RESERVATIONS: &str = "/calico/resources/v3/projectcalico.org/ipreservations/";
/// Prefix of the nodes.
pub const NODES: &str = "/calico/resources/v3/projectcalico.org/nodes/";
/// Prefix of the BGP peers.
pub const BGP_PEERS: &str = "/calico/resources/v3/projectcalico.org/bgppeers/";
/// Prefix of the BGP filters.
pub const BGP_FILTERS: &str = "/calico/resources/v3/projectcalico.org/bgpfilters/";
/// Prefix of the BGP configurations: `default`, and `node.NAME` for what one node has otherwise.
pub const BGP_CONFIGURATIONS: &str = "/calico/resources/v3/projectcalico.org/bgpconfigurations/";
/// Prefix of the profiles of namespaces.
pub const NAMESPACE_PROFILES: &str = "/calico/resources/v3/projectcalico.org/profiles/kns.";
/// Prefix of the workload endpoints.
pub const WORKLOAD_ENDPOINTS: &str = "/calico/resources/v3/projectcalico.org/workloadendpoints/";
/// The one ClusterInformation, which says whether the datastore may be used.
pub const CLUSTER_INFORMATION: &str = "/calico/resources/v3/projectcalico.org/clusterinformations/default";

/// Prefix of the fences: see [`fence`].
pub const FENCES: &str = "/calidris/ipam/v1/fence/";

/// The key of a block.
pub fn block(cidr: IpNetwork) -> String {
    let (version, address, prefix) = (version(cidr.ip()), cidr.ip(), cidr.prefix());
    format!("{BLOCKS}ipv{version}/block/{address}-{prefix}")
}

/// The CIDR in a block's key, or `None` if this is no block's key.
pub fn parse_block(key: &str) -> Option<IpNetwork> {
    let (family, cidr) = key.strip_prefix(BLOCKS)?.split_once("/block/")?;
    parse_cidr(family, cidr)
}

/// The blocks that `address` can be in: one of each size that Calico allows (/20 to /32, /116 to /128).
pub fn possible_blocks(address: IpAddr) -> Vec<IpNetwork> {
    let sizes = if address.is_ipv4() { 20..=32 } else { 116..=128 };
    let of_size = |size| {
        let around = IpNetwork::new(address, size).ok()?;
        IpNetwork::new(around.network(), size).ok()
    };
    sizes.filter_map(of_size).collect()
}

/// The key of a node's affinity to a block.
pub fn affinity(node: &str, cidr: IpNetwork) -> String {
    let (version, address, prefix) = (version(cidr.ip()), cidr.ip(), cidr.prefix());
    format!("{AFFINITIES}{node}/ipv{version}/block/{address}-{prefix}")
}

/// Prefix of a node's affinities of one family; `address` is any address of that family.
pub fn affinities_of(node: &str, address: IpAddr) -> String {
    format!("{AFFINITIES}{node}/ipv{}/block/", version(address))
}

/// The node and the CIDR in an affinity's key, or `None` if this is no (host) affinity's key.
pub fn parse_affinity(key: &str) -> Option<(&str, IpNetwork)> {
    let (node, rest) = key.strip_prefix(AFFINITIES)?.split_once('/')?;
    let (family, cidr) = rest.split_once("/block/")?;
    Some((node, parse_cidr(family, cidr)?))
}

/// The key of a handle.
pub fn handle(handle_id: &str) -> String {
    format!("{HANDLES}{handle_id}")
}

/// The key of a node's fence, which every assignment of the node depends on: changing it shuts out all that are still
/// under way. It goes only when the node has gone, since a key that is absent again looks as if it had never changed; what
/// was under way then is shut out because it depends on the Node resource, too.
pub fn fence(node: &str) -> String {
    format!("{FENCES}{node}")
}

/// The key of a cluster-wide v3 resource, for example `resource("nodes", "node-a")`.
pub fn resource(plural: &str, name: &str) -> String {
    format!("{RESOURCES}{plural}/{name}")
}

/// The key of a namespaced v3 resource, for example a WorkloadEndpoint.
pub fn namespaced_resource(plural: &str, namespace: &str, name: &str) -> String {
    format!("{RESOURCES}{plural}/{namespace}/{name}")
}

/// Whether `name` can be one part of a key: not empty, and no `/` in it.
pub fn is_key_part(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !name.contains('\0')
}

fn version(address: IpAddr) -> u8 {
    if address.is_ipv4() { 4 } else { 6 }
}

fn parse_cidr(family: &str, hyphenated: &str) -> Option<IpNetwork> {
    let (address, prefix) = hyphenated.rsplit_once('-')?;
    let cidr = IpNetwork::new(address.parse().ok()?, prefix.parse().ok()?).ok()?;
    let family_agrees = family == if cidr.is_ipv4() { "ipv4" } else { "ipv6" };
    (family_agrees && cidr.network() == cidr.ip()).then_some(cidr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_calico_writes_and_parse_back() {
        let v4: IpNetwork = "10.244.174.128/26".parse().unwrap();
        let v6: IpNetwork = "fd00:10:244:6d15:74ba:80e:4835:8080/122".parse().unwrap();
        assert_eq!(
            block(v4),
            "/calico/ipam/v2/assignment/ipv4/block/10.244.174.128-26"
        );
        assert_eq!(
            affinity("node-c.example.com", v6),
            "/calico/ipam/v2/host/node-c.example.com/ipv6/block/fd00:10:244:6d15:74ba:80e:4835:8080-122"
        );
        for cidr in [v4, v6] {
            assert_eq!(parse_block(&block(cidr)), Some(cidr));
            assert_eq!(parse_affinity(&affinity("n", cidr)), Some(("n", cidr)));
        }
    }

    #[test]
    fn keys_of_other_things_do_not_parse() {
        for key in [
            "",
            "/calico/ipam/v2/assignment/ipv4/block/",
            "/calico/ipam/v2/assignment/ipv4/block/10.0.0.1-26",
            "/calico/ipam/v2/assignment/ipv6/block/10.0.0.0-26",
            "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-33",
            "/calico/ipam/v2/host/a",
        ] {
            assert_eq!(parse_block(key), None, "{key}");
            assert_eq!(parse_affinity(key), None, "{key}");
        }
        assert_eq!(
            parse_affinity("/calico/ipam/v2/host/virtual/lb/ipv4/block/10.0.0.0-26"),
            None
        );
    }
}
