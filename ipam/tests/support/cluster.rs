//! A small cluster on the memory store: containers with endpoints, as the agent makes them.

use std::collections::BTreeMap;

use calidris_ipam::{
    AddressRequest, AssignRequest, Assigned, Expect, ExtraDelete, ExtraWrite, Inventory, Ipam, MemoryStore,
    ReleaseRequest, keys,
};
use serde_json::{Value, json};

use super::{at, now_or_never};

/// Some nodes and a pool of each family: 128 addresses in blocks of 16, or, if small, 8 addresses in blocks of 2.
pub(crate) struct Cluster {
    pub(crate) ipam: Ipam<MemoryStore>,
    clock: std::cell::Cell<i64>,
}

impl Cluster {
    pub(crate) fn with_nodes(nodes: &[&str]) -> Self {
        Self::with_pools(
            nodes,
            json!({"cidr": "10.0.0.0/25", "blockSize": 28}),
            json!({"cidr": "fd00::/121", "blockSize": 124}),
        )
    }

    /// So small that released addresses are soon given again.
    pub(crate) fn small(nodes: &[&str]) -> Self {
        Self::with_pools(
            nodes,
            json!({"cidr": "10.0.0.0/29", "blockSize": 31}),
            json!({"cidr": "fd00::/125", "blockSize": 127}),
        )
    }

    fn with_pools(nodes: &[&str], v4: Value, v6: Value) -> Self {
        let resource = |kind: &str, name: &str, spec: Value| {
            json!({"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": {"name": name}, "spec": spec})
                .to_string()
                .into_bytes()
        };
        let mut pairs = vec![
            (format!("{}v4", keys::IP_POOLS), resource("IPPool", "v4", v4)),
            (format!("{}v6", keys::IP_POOLS), resource("IPPool", "v6", v6)),
        ];
        for node in nodes {
            pairs.push((keys::resource("nodes", node), resource("Node", node, json!({}))));
        }
        Self {
            ipam: Ipam::new(MemoryStore::with(pairs)),
            clock: std::cell::Cell::new(0),
        }
    }

    /// One address of each family for `container`, with its endpoint in the same transaction.
    pub(crate) fn add(&self, node: &str, container: &str) -> Option<Assigned> {
        let (owner, id) = (node.to_owned(), container.to_owned());
        let endpoint = ExtraWrite::new(endpoint_key(node, container), Expect::Anything, move |assigned| {
            endpoint_value(&owner, &id, assigned.iter().map(|a| a.address.to_string()))
        });
        self.assign(node, container, vec![endpoint])
    }

    /// Addresses without endpoint: where a plugin that writes in several steps may stop.
    pub(crate) fn add_without_endpoint(&self, node: &str, container: &str) -> Option<Assigned> {
        self.assign(node, container, Vec::new())
    }

    fn assign(&self, node: &str, container: &str, extra_writes: Vec<ExtraWrite>) -> Option<Assigned> {
        let mut request = AssignRequest::new(&handle(container), node);
        request.v4 = AddressRequest::Count(1);
        request.v6 = AddressRequest::Count(1);
        request.extra_writes = extra_writes;
        self.clock.set(self.clock.get() + 1);
        now_or_never(self.ipam.assign(&request, at(self.clock.get()))).ok()
    }

    /// Everything of `container` goes.
    pub(crate) fn del(&self, node: &str, container: &str) {
        let request = ReleaseRequest {
            handle_id: handle(container),
            extra_deletes: vec![ExtraDelete {
                key: endpoint_key(node, container),
                expect: Expect::Anything,
            }],
            ..ReleaseRequest::default()
        };
        now_or_never(self.ipam.release(&request, at(0))).unwrap();
    }

    /// Puts or deletes one key, past all rules.
    pub(crate) fn set(&self, key: &str, value: Option<Vec<u8>>) {
        use calidris_ipam::{Store as _, Txn, Write};
        let key = key.to_owned();
        let write = match value {
            Some(value) => Write::Put { key, value },
            None => Write::Delete { key },
        };
        let txn = Txn {
            writes: vec![write],
            ..Txn::default()
        };
        now_or_never(self.ipam.store().commit(&txn)).unwrap();
    }

    pub(crate) fn inventory(&self) -> Inventory {
        now_or_never(self.ipam.inventory()).unwrap()
    }

    pub(crate) fn dump(&self) -> BTreeMap<String, Vec<u8>> {
        self.ipam.store().dump()
    }
}

pub(crate) fn handle(container: &str) -> String {
    format!("net.{container}")
}

pub(crate) fn endpoint_key(node: &str, container: &str) -> String {
    let name = format!("{}-cni-{container}-eth0", node.replace('-', "--"));
    keys::namespaced_resource("workloadendpoints", "default", &name)
}

pub(crate) fn endpoint_value(
    node: &str,
    container: &str,
    addresses: impl Iterator<Item = String>,
) -> Vec<u8> {
    let name = format!("{}-cni-{container}-eth0", node.replace('-', "--"));
    json!({
        "kind": "WorkloadEndpoint", "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"node": node, "containerID": container, "ipNetworks": addresses.collect::<Vec<_>>()},
    })
    .to_string()
    .into_bytes()
}
