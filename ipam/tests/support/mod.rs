//! What the tests of this package share: fixtures, a way to wait for a future that never waits, and the invariants.
#![allow(dead_code, reason = "every test binary uses a part of it")]

pub(crate) mod cluster;
pub(crate) mod invariants;
pub(crate) mod store_suite;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use calidris_ipam::{Inventory, Ipam, MemoryStore, UnixNanos};

/// Runs a future that is ready at once, as all are on the memory store.
pub(crate) fn now_or_never<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a future on the memory store waited"),
    }
}

/// The eleven states of a real Calico's etcd.
pub(crate) const STATES: [&str; 11] = [
    include_str!("../data/01_resources.json"),
    include_str!("../data/02_first_add.json"),
    include_str!("../data/03_several_nodes.json"),
    include_str!("../data/04_after_two_dels.json"),
    include_str!("../data/05_borrowed.json"),
    include_str!("../data/06_strict_affinity.json"),
    include_str!("../data/07_after_borrowed_released.json"),
    include_str!("../data/08_calicoctl_release.json"),
    include_str!("../data/09_node_deleted.json"),
    include_str!("../data/10_locked.json"),
    include_str!("../data/11_kubernetes_pods.json"),
];

/// State `number` (1 to 11).
pub(crate) fn state(number: usize) -> BTreeMap<String, String> {
    let entries: Vec<BTreeMap<String, String>> = serde_json::from_str(STATES[number - 1]).unwrap();
    entries
        .into_iter()
        .map(|mut e| (e.remove("key").unwrap(), e.remove("value").unwrap()))
        .collect()
}

/// A store in state `number`.
pub(crate) fn store_in_state(number: usize) -> MemoryStore {
    MemoryStore::with(
        state(number)
            .into_iter()
            .map(|(key, value)| (key, value.into_bytes())),
    )
}

/// What a store holds, as text.
pub(crate) fn dump(store: &MemoryStore) -> BTreeMap<String, String> {
    store
        .dump()
        .into_iter()
        .map(|(key, value)| (key, String::from_utf8(value).unwrap()))
        .collect()
}

/// 2026-11-21T01:00:00Z and `seconds` more.
pub(crate) fn at(seconds: i64) -> UnixNanos {
    UnixNanos(1_795_222_800_000_000_000 + seconds * 1_000_000_000)
}

/// State 11 without what was made wrong in it: the tunnel addresses of node-a, the endpoint whose address was released
/// by hand, and the one that was written by hand. The audit finds nothing there.
pub(crate) fn clean() -> BTreeMap<String, String> {
    let mut state = state(11);
    let endpoints = "/calico/resources/v3/projectcalico.org/workloadendpoints";
    for endpoint in [
        "default/node--a-cni-c0ffee06-eth0",
        "shop/node--b-k8s-web--7d4b9c6f5--x2x9z-eth0",
    ] {
        state.remove(&format!("{endpoints}/{endpoint}")).unwrap();
    }
    let node = state
        .get_mut("/calico/resources/v3/projectcalico.org/nodes/node-a")
        .unwrap();
    let tunnels = [
        ",\"ipv4IPIPTunnelAddr\":\"10.244.0.1\"",
        "\"ipv4VXLANTunnelAddr\":\"10.244.0.2\",",
    ];
    for tunnel in tunnels {
        assert!(node.contains(tunnel));
        *node = node.replace(tunnel, "");
    }
    state
}

/// The inventory of `state`.
pub(crate) fn inventory(state: &BTreeMap<String, String>) -> Inventory {
    let pairs = state
        .iter()
        .map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    now_or_never(Ipam::new(MemoryStore::with(pairs)).inventory()).unwrap()
}
