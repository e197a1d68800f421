//! The node's part of the datastore: what it costs to read grows with the node, not with the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use calidris_ipam::{Alive, AllocationBlock, Inventory, Range, Snapshot, Store, StoreError, keys};
use ipnetwork::IpNetwork;

use crate::datastore::workload_endpoint;
use crate::model::EndpointId;

/// Endpoints that a handle could have, at most: so many guards a release can carry. A handle with more possible names
/// (its network's name is full of dots) is left alone.
const MAX_ENDPOINT_KEYS: usize = 32;

/// Reads the affinities of `node`, their blocks, the handles in them and the blocks these name, and the endpoints of the
/// handles that are not known to live. Notes the keys of those endpoints in `alive`.
///
/// # Errors
/// The datastore does not answer.
pub(super) async fn read(store: &impl Store, node: &str, alive: &mut Alive) -> Result<Inventory, StoreError> {
    let mut snapshot = store.read(&first_ranges(node)).await?;
    let blocks = snapshot.kvs.iter().filter_map(|kv| keys::parse_affinity(&kv.key));
    let blocks: BTreeSet<IpNetwork> = blocks.map(|(_, cidr)| cidr).collect();
    add(store, &mut snapshot, blocks.iter().copied().map(keys::block)).await?;

    let inventory = Inventory::parse(&snapshot);
    let handles = handles_of(&inventory, node);
    add(store, &mut snapshot, handles.keys().map(|id| keys::handle(id))).await?;

    let named = Inventory::parse(&snapshot).handles;
    let named: BTreeSet<IpNetwork> = named.values().flat_map(|handle| handle.blocks()).collect();
    let mut more: Vec<String> = named.difference(&blocks).copied().map(keys::block).collect();
    for (handle_id, notes) in &handles {
        if alive.handles.contains_key(handle_id) {
            continue;
        }
        let endpoint_keys = endpoint_keys(node, handle_id, notes);
        if endpoint_keys.len() > MAX_ENDPOINT_KEYS {
            alive
                .handles
                .insert(handle_id.clone(), "it has too many possible names".to_owned());
            continue;
        }
        more.extend(endpoint_keys.iter().cloned());
        alive.endpoint_keys.insert(handle_id.clone(), endpoint_keys);
    }
    add(store, &mut snapshot, more.into_iter()).await?;
    Ok(Inventory::parse(&snapshot))
}

fn first_ranges(node: &str) -> Vec<Range> {
    let families: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let affinities = families.map(|family| Range::Prefix(keys::affinities_of(node, family)));
    let mut ranges = affinities.to_vec();
    ranges.push(Range::Prefix(keys::IP_POOLS.to_owned()));
    ranges.push(Range::Key(keys::CLUSTER_INFORMATION.to_owned()));
    ranges
}

async fn add(
    store: &impl Store,
    snapshot: &mut Snapshot,
    keys: impl Iterator<Item = String>,
) -> Result<(), StoreError> {
    let ranges: Vec<Range> = keys.map(Range::Key).collect();
    if ranges.is_empty() {
        return Ok(());
    }
    let read = store.read(&ranges).await?;
    snapshot.revision = read.revision;
    snapshot.kvs.extend(read.kvs);
    Ok(())
}

/// The handles with addresses for `node`, and the keepers of addresses in its blocks, each with the notes of one of its
/// allocations.
fn handles_of(inventory: &Inventory, node: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let attributes = inventory
        .blocks
        .values()
        .flat_map(AllocationBlock::allocated_attributes);
    let here = attributes.filter(|attribute| {
        let on = attribute.secondary.get("node").map(String::as_str);
        on == Some(node) || attribute.kept_until().is_some()
    });
    here.filter_map(|attribute| {
        let handle_id = attribute.handle().filter(|id| keys::is_key_part(id))?;
        Some((handle_id.to_owned(), attribute.secondary.clone()))
    })
    .collect()
}

/// The keys that an endpoint of the handle can have. A handle is `NETWORK.CONTAINER` or `NETWORK.CONTAINER.INTERFACE`, and
/// dots may also be part of a network's name.
fn endpoint_keys(node: &str, handle_id: &str, notes: &BTreeMap<String, String>) -> BTreeSet<String> {
    let pod = notes.get("namespace").zip(notes.get("pod"));
    let pod = pod.map(|(namespace, pod)| (namespace.as_str(), pod.as_str()));
    let id = |container_id: &str, ifname: &str| EndpointId {
        network: String::new(),
        container_id: container_id.to_owned(),
        ifname: ifname.to_owned(),
    };
    let mut keys = BTreeSet::new();
    for (at, _) in handle_id.match_indices('.') {
        let after_network = handle_id.get(at + 1..).unwrap_or_default();
        let mut candidates = vec![(after_network, "eth0")];
        candidates.extend(after_network.rsplit_once('.'));
        for (container_id, ifname) in candidates {
            let key = workload_endpoint::key(node, &id(container_id, ifname), pod);
            keys.insert(key);
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKLOADS: &str = "/calico/resources/v3/projectcalico.org/workloadendpoints";

    fn keys_of(handle_id: &str, notes: &[(&str, &str)]) -> Vec<String> {
        let notes = notes.iter().map(|&(k, v)| (k.to_owned(), v.to_owned()));
        let keys = endpoint_keys("node-a", handle_id, &notes.collect());
        keys.into_iter().map(|key| key.replace(WORKLOADS, "")).collect()
    }

    #[test]
    fn a_pods_endpoint_is_named_after_the_pod() {
        let notes = [("namespace", "shop"), ("pod", "web-1")];
        assert_eq!(
            keys_of("k8s-pod-network.cb7d", &notes),
            ["/shop/node--a-k8s-web--1-eth0"]
        );
        assert_eq!(
            keys_of("k8s-pod-network.cb7d.net1", &notes),
            ["/shop/node--a-k8s-web--1-eth0", "/shop/node--a-k8s-web--1-net1"]
        );
    }

    #[test]
    fn another_containers_endpoint_is_named_after_the_container_wherever_that_begins() {
        assert_eq!(
            keys_of("net.c0ffee01", &[]),
            ["/default/node--a-cni-c0ffee01-eth0"]
        );
        assert_eq!(
            keys_of("my.net.c0ffee01", &[]),
            [
                "/default/node--a-cni-c0ffee01-eth0",
                "/default/node--a-cni-net-c0ffee01",
                "/default/node--a-cni-net.c0ffee01-eth0",
            ]
        );
        assert_eq!(keys_of("vxlan-tunnel-addr-node-a", &[]), [""; 0]);
    }
}
