//! Calico's data in etcd, from outside: what an operator puts there with `calicoctl`, and what can be read of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::json;

use crate::daemon::etcd::Etcd;
use crate::netns;
use crate::topology::PoolSpec;

/// Where Calico keeps its v3 resources.
const RESOURCES: &str = "/calico/resources/v3/projectcalico.org";
/// Where Calico keeps its addresses.
const IPAM: &str = "/calico/ipam/v2";

/// Marks the datastore as ready, as `calicoctl` does when it first writes.
///
/// # Errors
/// When etcd does not answer.
pub fn put_cluster_information(etcd: &Etcd) -> anyhow::Result<()> {
    let guid = uuid()?.replace('-', "");
    let spec = json!({ "clusterGUID": guid, "datastoreReady": true });
    put_resource(
        etcd,
        ("ClusterInformation", "clusterinformations", "default"),
        &spec,
    )
}

/// `ipipMode` and `vxlanMode` of a pool without any encapsulation.
pub const PLAIN: (&str, &str) = ("Never", "Never");

/// Stores a pool with its `ipipMode` and `vxlanMode`, as `calicoctl apply` does.
///
/// # Errors
/// When etcd does not answer.
pub fn put_pool(etcd: &Etcd, pool: &PoolSpec, (ipip, vxlan): (&str, &str)) -> anyhow::Result<()> {
    let spec = json!({
        "cidr": pool.cidr,
        "vxlanMode": vxlan,
        "ipipMode": ipip,
        "natOutgoing": pool.nat_outgoing,
        "blockSize": pool.block_size,
        "nodeSelector": "all()",
        "allowedUses": ["Workload", "Tunnel"],
        "assignmentMode": "Automatic",
    });
    put_resource(etcd, ("IPPool", "ippools", &pool.name), &spec)
}

/// Deletes a pool, as `calicoctl delete` does.
///
/// # Errors
/// When etcd does not answer.
pub fn delete_pool(etcd: &Etcd, name: &str) -> anyhow::Result<()> {
    etcd.delete_prefix(&format!("{RESOURCES}/ippools/{name}"))
}

/// The blocks whose affinity a node has confirmed.
///
/// # Errors
/// When etcd does not answer, or holds something else.
pub fn blocks_of(etcd: &Etcd, node: &str) -> anyhow::Result<BTreeSet<IpNetwork>> {
    #[derive(Deserialize)]
    struct Affinity {
        state: String,
    }
    let mut blocks = BTreeSet::new();
    for (key, value) in etcd.get_prefix(&format!("{IPAM}/host/{node}/"))? {
        let affinity: Affinity = serde_json::from_str(&value).with_context(|| format!("{key}: {value}"))?;
        if affinity.state == "confirmed" {
            let (_, name) = key.rsplit_once('/').context("a key has slashes")?;
            let cidr = name.replacen('-', "/", 1);
            blocks.insert(
                cidr.parse()
                    .with_context(|| format!("{key}: no block {cidr:?}"))?,
            );
        }
    }
    Ok(blocks)
}

/// All addresses that are given out, with the handle that has each.
///
/// # Errors
/// When etcd does not answer, or a block is not consistent in itself.
pub fn addresses(etcd: &Etcd) -> anyhow::Result<BTreeMap<IpAddr, String>> {
    #[derive(Deserialize)]
    struct Block {
        cidr: IpNetwork,
        allocations: Vec<Option<usize>>,
        attributes: Vec<Attributes>,
    }
    #[derive(Deserialize)]
    struct Attributes {
        #[serde(default)]
        handle_id: Option<String>,
    }
    let mut addresses = BTreeMap::new();
    for (key, value) in etcd.get_prefix(&format!("{IPAM}/assignment/"))? {
        let block: Block = serde_json::from_str(&value).with_context(|| format!("{key}: {value}"))?;
        ensure!(
            u32::try_from(block.allocations.len())? == size(block.cidr),
            "{key}: wrong number of allocations"
        );
        for (address, allocation) in block.cidr.iter().zip(&block.allocations) {
            if let Some(index) = *allocation {
                let attributes = block.attributes.get(index);
                let attributes = attributes.with_context(|| format!("{key}: no attributes {index}"))?;
                addresses.insert(address, attributes.handle_id.clone().unwrap_or_default());
            }
        }
    }
    Ok(addresses)
}

/// The keys of all handles.
///
/// # Errors
/// When etcd does not answer.
pub fn handles(etcd: &Etcd) -> anyhow::Result<BTreeSet<String>> {
    Ok(etcd.get_prefix(&format!("{IPAM}/handle/"))?.into_keys().collect())
}

/// The keys of all workload endpoints.
///
/// # Errors
/// When etcd does not answer.
pub fn workload_endpoints(etcd: &Etcd) -> anyhow::Result<BTreeSet<String>> {
    Ok(etcd
        .get_prefix(&format!("{RESOURCES}/workloadendpoints/"))?
        .into_keys()
        .collect())
}

/// Writes a resource with the metadata that Calico gives a new one. First its kind, its kind in keys, its name.
///
/// # Errors
/// When etcd does not answer.
pub fn put_resource(
    etcd: &Etcd,
    (kind, plural, name): (&str, &str, &str),
    spec: &serde_json::Value,
) -> anyhow::Result<()> {
    let resource = json!({
        "kind": kind,
        "apiVersion": "projectcalico.org/v3",
        "metadata": { "name": name, "uid": uuid()?, "creationTimestamp": now()? },
        "spec": spec,
    });
    etcd.put(&format!("{RESOURCES}/{plural}/{name}"), &resource.to_string())
}

fn size(block: IpNetwork) -> u32 {
    let bits = if block.is_ipv4() { 32 } else { 128 };
    1_u32
        .checked_shl(bits - u32::from(block.prefix()))
        .unwrap_or(u32::MAX)
}

fn uuid() -> anyhow::Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    Ok(std::fs::read_to_string(path)
        .with_context(|| format!("read {path}"))?
        .trim()
        .to_owned())
}

fn now() -> anyhow::Result<String> {
    Ok(
        netns::run(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]))?
            .trim()
            .to_owned(),
    )
}
