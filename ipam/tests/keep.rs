//! Addresses kept for a workload that is deleted and made again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use calidris_ipam::{
    Act, AddressRequest, Alive, AssignError, AssignRequest, Collector, CollectorConfig, Finding, Inventory,
    Ipam, Keep, KeepOnRelease, MemoryStore, ReleaseRequest, RemovalStep, Running, Store as _, Txn, Write,
    audit, keys, plan_node_removal,
};
use serde_json::{Value, json};
use support::{at, invariants, now_or_never};

const HOUR: i64 = 3600;

#[test]
fn a_workload_that_comes_again_has_its_addresses_whoever_asked_meanwhile() {
    let cluster = Cluster::new("10.0.0.0/29", 30);
    let first = cluster.add("a", "db-0", 0).unwrap();
    assert_eq!(first.len(), 2);
    cluster.del("db-0", 1);
    // Another pod of the same set, a pod of nobody's, and the same pod on another network.
    for other in ["db-1", "web-1"] {
        let given = cluster.add("a", other, 2).unwrap();
        assert!(
            given.iter().all(|address| !first.contains(address)),
            "{other}: {given:?}"
        );
    }
    assert_eq!(cluster.add("a", "db-0", 3).unwrap(), first);
    // Again, and on another node: as a borrowed address.
    cluster.del("db-0", 4);
    assert_eq!(cluster.add("b", "db-0", 5).unwrap(), first);
    assert_eq!(cluster.kept().len(), 0);
}

#[test]
fn nobody_gets_a_kept_address_even_if_there_is_no_other() {
    let cluster = Cluster::new("10.0.0.0/31", 31);
    let first = cluster.add("a", "db-0", 0).unwrap();
    cluster.add("a", "web-1", 0).unwrap();
    cluster.del("db-0", 1);
    for asked in [AddressRequest::Count(1), AddressRequest::Exactly(vec![first[0]])] {
        let mut request = AssignRequest::new("net.other", "b");
        request.v4 = asked;
        let error = now_or_never(cluster.ipam.assign(&request, at(HOUR * 24))).unwrap_err();
        assert!(matches!(error, AssignError::Refused(_)), "{error}");
    }
    assert_eq!(cluster.add("a", "db-0", 2).unwrap(), first);
}

#[test]
fn the_collector_frees_what_is_kept_too_long_and_nothing_else() {
    let cluster = Cluster::new("10.0.0.0/29", 30);
    let first = cluster.add("a", "db-0", 0).unwrap();
    cluster.del("db-0", 0);
    let mut collector = cluster.collector("a");
    let mut elsewhere = cluster.collector("b");
    for look in 0..5 {
        assert_eq!(cluster.look(&mut collector, look, at(HOUR - 1)), []);
    }
    assert_eq!(cluster.look(&mut collector, 6, at(HOUR + 1)), [], "seen once");
    for look in 0..3 {
        assert_eq!(
            cluster.look(&mut elsewhere, look, at(2 * HOUR)),
            [],
            "another node's block"
        );
    }
    let acts = cluster.look(&mut collector, 7, at(HOUR + 2));
    let [Act::Release { request, proof }] = acts.as_slice() else {
        panic!("{acts:?}")
    };
    assert!(proof.to_string().contains("the time is over"), "{proof}");
    now_or_never(cluster.ipam.release(request, at(HOUR + 2))).unwrap();
    assert_eq!(cluster.kept().len(), 0);
    let again = cluster.add("a", "db-0", 2 * HOUR).unwrap();
    assert_ne!(again, first, "they are at the end of the queue");
}

#[test]
fn a_workload_that_comes_back_late_but_before_the_collector_has_its_addresses() {
    let cluster = Cluster::new("10.0.0.0/29", 30);
    let first = cluster.add("a", "db-0", 0).unwrap();
    cluster.del("db-0", 0);
    let mut collector = cluster.collector("a");
    cluster.look(&mut collector, 0, at(2 * HOUR));
    let acts = cluster.look(&mut collector, 1, at(2 * HOUR));
    assert_eq!(cluster.add("a", "db-0", 2 * HOUR).unwrap(), first);
    let [Act::Release { request, .. }] = acts.as_slice() else {
        panic!("{acts:?}")
    };
    let released = now_or_never(cluster.ipam.release(request, at(2 * HOUR))).unwrap();
    assert_eq!(released.addresses, [], "an act that comes too late does nothing");
}

#[test]
fn a_lost_del_and_a_lost_node_keep_the_addresses() {
    let cluster = Cluster::new("10.0.0.0/29", 30);
    let (zero, one) = (
        cluster.add("a", "db-0", 0).unwrap(),
        cluster.add("b", "db-1", 0).unwrap(),
    );
    // The container of db-0 is gone and no DEL came.
    let mut collector = cluster.collector("a");
    cluster.look(&mut collector, 0, at(0));
    for act in cluster.look(&mut collector, 100, at(0)) {
        let Act::Release { request, .. } = act else {
            panic!("{act:?}")
        };
        now_or_never(cluster.ipam.release(&request, at(0))).unwrap();
    }
    // Node b burns.
    let inventory = cluster.inventory();
    for step in plan_node_removal(&inventory, "b") {
        match step {
            RemovalStep::Release(request) => {
                now_or_never(cluster.ipam.release(&request, at(0))).unwrap();
            }
            RemovalStep::Repair(request) => {
                now_or_never(cluster.ipam.repair(&request)).unwrap();
            }
        }
    }
    let mut all = [zero.clone(), one.clone()].concat();
    all.sort();
    assert_eq!(cluster.kept(), all);
    assert_eq!(cluster.add("a", "db-0", 1).unwrap(), zero);
    assert_eq!(cluster.add("a", "db-1", 1).unwrap(), one);
}

#[test]
fn an_operator_frees_what_is_kept_and_what_would_be() {
    let cluster = Cluster::new("10.0.0.0/29", 30);
    cluster.add("a", "db-0", 0).unwrap();
    cluster.del("db-0", 0);
    cluster.add("a", "db-1", 0).unwrap();
    for handle in [keep("db-0").keeper().to_owned(), "net.db-1".to_owned()] {
        let request = ReleaseRequest {
            handle_id: handle,
            keep: KeepOnRelease::Nothing,
            ..ReleaseRequest::default()
        };
        assert_eq!(
            now_or_never(cluster.ipam.release(&request, at(0)))
                .unwrap()
                .addresses
                .len(),
            2
        );
    }
    assert_eq!(cluster.kept().len(), 0);
    assert_eq!(cluster.inventory().handles.len(), 0);
}

#[test]
fn a_pool_that_may_no_longer_be_used_gives_nothing_back() {
    let cluster = Cluster::new("10.0.0.0/29", 30);
    let first = cluster.add("a", "db-0", 0).unwrap();
    cluster.del("db-0", 0);
    cluster.write(&pool(
        "v4",
        &json!({"cidr": "10.0.0.0/29", "blockSize": 30, "disabled": true}),
    ));
    cluster.write(&pool("new", &json!({"cidr": "10.9.0.0/24"})));
    let second = cluster.add("a", "db-0", 1).unwrap();
    assert!(second[0].to_string().starts_with("10.9."), "{second:?}");
    assert_eq!(second[1], first[1], "the IPv6 pool is as it was");
    assert_eq!(cluster.kept(), [first[0]]);
}

#[test]
fn strict_affinity_does_not_lend_a_kept_address_to_another_node() {
    let cluster = Cluster::new("10.0.0.0/29", 30);
    let first = cluster.add("a", "db-0", 0).unwrap();
    cluster.del("db-0", 0);
    let strict = json!({"strict_affinity": true, "auto_allocate_blocks": true});
    cluster.write(&(keys::IPAM_CONFIG.to_owned(), strict.to_string().into_bytes()));
    let error = cluster.add("b", "db-0", 1).unwrap_err().to_string();
    assert!(
        error.contains("kept for this workload") && error.contains("strict affinity"),
        "{error}"
    );
    assert_eq!(cluster.add("a", "db-0", 1).unwrap(), first);
}

#[test]
fn what_is_asked_for_by_name_or_not_at_all_is_not_taken_from_what_is_kept() {
    let cluster = Cluster::new("10.0.0.0/29", 30);
    let first = cluster.add("a", "db-0", 0).unwrap();
    cluster.del("db-0", 0);
    // One family only.
    let mut request = AssignRequest::new("net.db-0", "a");
    request.keep = Some(keep("db-0"));
    request.v6 = AddressRequest::Count(1);
    let given = now_or_never(cluster.ipam.assign(&request, at(1))).unwrap();
    assert_eq!(given.addresses[0].address, first[1]);
    assert_eq!(cluster.kept(), [first[0]]);
    cluster.del("db-0", 1);
    // Its own kept address by name, and another one.
    let other: IpAddr = "10.0.0.6".parse().unwrap();
    request.v6 = AddressRequest::None;
    request.v4 = AddressRequest::Exactly(vec![other, first[0]]);
    let given = now_or_never(cluster.ipam.assign(&request, at(2))).unwrap();
    let given: Vec<IpAddr> = given.addresses.iter().map(|assigned| assigned.address).collect();
    assert_eq!(given, [other, first[0]]);
    assert_eq!(cluster.kept(), [first[1]]);
}

/// Two nodes, an IPv4 pool and an IPv6 pool of 16 addresses. Names that begin with `db` are those of workloads whose
/// addresses are kept for an hour.
struct Cluster {
    ipam: Ipam<MemoryStore>,
}

impl Cluster {
    fn new(v4: &str, block_size: u8) -> Self {
        let mut kvs = vec![
            pool("v4", &json!({"cidr": v4, "blockSize": block_size})),
            pool("v6", &json!({"cidr": "fd00::/124", "blockSize": 126})),
        ];
        for node in ["a", "b"] {
            let value = json!({"kind": "Node", "apiVersion": "projectcalico.org/v3", "metadata": {"name": node}, "spec": {}});
            kvs.push((keys::resource("nodes", node), value.to_string().into_bytes()));
        }
        Self {
            ipam: Ipam::new(MemoryStore::with(kvs)),
        }
    }

    /// An address of each family that has a free one.
    fn add(&self, node: &str, pod: &str, now: i64) -> Result<Vec<IpAddr>, AssignError> {
        let mut request = AssignRequest::new(&format!("net.{pod}"), node);
        request.v4 = AddressRequest::Count(1);
        request.v6 = AddressRequest::Count(1);
        request.attributes = BTreeMap::from([
            ("namespace".to_owned(), "shop".to_owned()),
            ("pod".to_owned(), pod.to_owned()),
        ]);
        request.keep = pod.starts_with("db").then(|| keep(pod));
        let assigned = now_or_never(self.ipam.assign(&request, at(now)))?;
        self.check();
        Ok(assigned
            .addresses
            .iter()
            .map(|assigned| assigned.address)
            .collect())
    }

    fn del(&self, pod: &str, now: i64) {
        let request = ReleaseRequest {
            handle_id: format!("net.{pod}"),
            ..ReleaseRequest::default()
        };
        now_or_never(self.ipam.release(&request, at(now))).unwrap();
        self.check();
    }

    fn check(&self) {
        assert_eq!(invariants::violations(&self.ipam.store().dump()), [""; 0]);
        // Containers have no endpoints here; what is kept needs none.
        let kept = self.kept();
        for finding in audit(&self.inventory(), &Running::new()) {
            if let Finding::AllocatedNotInUse { allocation, .. } = finding {
                assert!(!kept.contains(&allocation.address), "{allocation:?}");
            }
        }
    }

    fn kept(&self) -> Vec<IpAddr> {
        let inventory = self.inventory();
        let all = inventory.blocks.values().flat_map(|block| block.allocations());
        all.filter(|allocation| allocation.attribute.kept_until().is_some())
            .map(|allocation| allocation.address)
            .collect()
    }

    fn inventory(&self) -> Inventory {
        now_or_never(self.ipam.inventory()).unwrap()
    }

    fn collector(&self, node: &str) -> Collector {
        Collector::new(CollectorConfig {
            node: node.to_owned(),
            grace: Duration::from_secs(60),
            block_idle: Duration::from_secs(100_000),
            max_acts: 10,
        })
    }

    fn look(&self, collector: &mut Collector, now: u64, wall: calidris_ipam::UnixNanos) -> Vec<Act> {
        let alive = Alive {
            wall: Some(wall),
            ..Alive::default()
        };
        collector.look(Duration::from_secs(now), &self.inventory(), &alive)
    }

    fn write(&self, (key, value): &(String, Vec<u8>)) {
        let txn = Txn {
            writes: vec![Write::Put {
                key: key.clone(),
                value: value.clone(),
            }],
            ..Txn::default()
        };
        now_or_never(self.ipam.store().commit(&txn)).unwrap();
    }
}

fn keep(pod: &str) -> Keep {
    Keep::for_pod("net", ("shop", pod), "eth0", 3600)
}

fn pool(name: &str, spec: &Value) -> (String, Vec<u8>) {
    let pool = json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": name}, "spec": spec});
    (format!("{}{name}", keys::IP_POOLS), pool.to_string().into_bytes())
}
