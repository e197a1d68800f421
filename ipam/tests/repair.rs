//! Repairs, the removal of a node, and what is true after any sequence of operations.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use calidris_ipam::{
    AddressRequest, AssignRequest, CommitOutcome, Decision, ErrorClass, Expect, Finding, Ipam, MemoryStore,
    OwnRecord, ReleaseRequest, RemovalStep, RepairError, RepairRefusal, RepairRequest, Repaired, Running,
    Store as _, Txn, View, Write, audit, keys, plan_assign, plan_node_removal, plan_release,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::cluster::{Cluster, endpoint_key};
use support::{at, clean, dump, invariants, now_or_never, state, store_in_state};

#[test]
fn removal_of_a_node_leaves_what_calico_leaves() {
    let mut state_8 = state(8);
    state_8
        .remove("/calico/resources/v3/projectcalico.org/nodes/node-c.example.com")
        .unwrap();
    let ipam = Ipam::new(store_of(&state_8));
    remove(&ipam, "node-c.example.com");
    assert_eq!(dump(ipam.store()), state(9));
    // There is nothing left to do.
    let inventory = now_or_never(ipam.inventory()).unwrap();
    assert_eq!(plan_node_removal(&inventory, "node-c.example.com"), []);
}

#[test]
fn what_a_removed_node_had_under_way_comes_too_late_and_its_fence_goes() {
    for had_a_fence in [false, true] {
        let cluster = Cluster::with_nodes(&["node-a", "node-b"]);
        let ipam = &cluster.ipam;
        cluster.add("node-a", "x").unwrap();
        if had_a_fence {
            let request = ReleaseRequest {
                handle_id: "net.nobody".to_owned(),
                fence: Some("node-a".to_owned()),
                ..ReleaseRequest::default()
            };
            now_or_never(ipam.release(&request, at(0))).unwrap();
        }
        let mut request = AssignRequest::new("net.late", "node-a");
        request.v4 = AddressRequest::Count(1);
        let late = planned(ipam.store(), &request);
        let node = Txn {
            writes: vec![Write::Delete {
                key: keys::resource("nodes", "node-a"),
            }],
            ..Txn::default()
        };
        now_or_never(ipam.store().commit(&node)).unwrap();
        remove(ipam, "node-a");
        let outcome = now_or_never(ipam.store().commit(&late)).unwrap();
        assert!(
            matches!(outcome, CommitOutcome::Conflict(_)),
            "fence before: {had_a_fence}"
        );
        let left = dump(ipam.store());
        let of_node = left.keys().filter(|key| key.contains("node-a"));
        assert_eq!(of_node.collect::<Vec<_>>(), Vec::<&String>::new());
    }
}

/// The transaction that `request` comes to now.
fn planned(store: &MemoryStore, request: &AssignRequest) -> Txn {
    let mut view = View::default();
    loop {
        match plan_assign(&view, request, at(1)) {
            Decision::Read(ranges) => view.absorb(&ranges, now_or_never(store.read(&ranges)).unwrap()),
            Decision::Commit { txn, .. } => return txn,
            other => panic!("{other:?}"),
        }
    }
}

/// Calico counts in the handle before it allocates in the block.
#[test]
fn a_handle_without_its_block_goes_only_if_the_block_is_still_not_there() {
    let cluster = Cluster::with_nodes(&["node-a"]);
    let store = cluster.ipam.store();
    cluster.add("node-a", "x").unwrap();
    let (block, value) = dump(store)
        .into_iter()
        .find(|(key, _)| keys::parse_block(key).is_some())
        .unwrap();
    let commit = |write: Write| {
        let writes = vec![write];
        let txn = Txn {
            writes,
            ..Txn::default()
        };
        now_or_never(store.commit(&txn)).unwrap()
    };
    commit(Write::Delete { key: block.clone() });
    let request = ReleaseRequest {
        handle_id: "net.x".to_owned(),
        ..ReleaseRequest::default()
    };
    let mut view = View::default();
    let release = loop {
        match plan_release(&view, &request, at(1)) {
            Decision::Read(ranges) => view.absorb(&ranges, now_or_never(store.read(&ranges)).unwrap()),
            Decision::Commit { txn, .. } => break txn,
            other => panic!("{other:?}"),
        }
    };
    let value = value.into_bytes();
    commit(Write::Put { key: block, value });
    let outcome = now_or_never(store.commit(&release)).unwrap();
    assert!(matches!(outcome, CommitOutcome::Conflict(_)));
}

#[test]
fn what_other_nodes_borrowed_stays_theirs_when_the_owner_goes() {
    let mut state = clean();
    state
        .remove("/calico/resources/v3/projectcalico.org/nodes/node-b")
        .unwrap();
    let ipam = Ipam::new(store_of(&state));
    remove(&ipam, "node-b");
    let inventory = now_or_never(ipam.inventory()).unwrap();
    assert_eq!(audit(&inventory, &Running::new()), []);
    let borrowed = &inventory.blocks[&"10.63.0.8/29".parse().unwrap()];
    assert!(borrowed.is_ownerless());
    assert_eq!(borrowed.allocations().count(), 2);
    assert!(
        inventory
            .endpoints
            .values()
            .all(|endpoint| endpoint.node == "node-a")
    );
    assert_eq!(invariants::violations(&ipam.store().dump()), [""; 0]);
}

#[test]
fn removal_finds_allocations_whose_handle_is_missing_or_that_have_none() {
    let mut state = clean();
    state.remove(&keys::handle("k8s-pod-network.c0ffee07")).unwrap();
    let block = keys::block("10.63.0.8/29".parse().unwrap());
    state
        .insert(
            block.clone(),
            state[&block].replace("\"k8s-pod-network.7ea00000\"", "null"),
        )
        .unwrap();
    state.remove(&keys::handle("k8s-pod-network.7ea00000")).unwrap();
    let ipam = Ipam::new(store_of(&state));
    remove(&ipam, "node-b");
    let left = audit(&now_or_never(ipam.inventory()).unwrap(), &Running::new());
    assert_eq!(left, []);
}

#[test]
fn repairs_are_refused_when_what_they_rest_on_has_changed() {
    let ipam = Ipam::new(store_in_state(11));
    let block: ipnetwork::IpNetwork = "10.244.3.0/26".parse().unwrap();
    let inventory = now_or_never(ipam.inventory()).unwrap();
    let sequence_number = inventory.blocks[&block].sequence_number();
    let give_back = |sequence_number| RepairRequest::GiveBackBlock {
        node: "node-a".to_owned(),
        block,
        sequence_number,
    };
    let free = |block: &str, address: &str| RepairRequest::FreeAddress {
        block: block.parse().unwrap(),
        address: address.parse().unwrap(),
        sequence_number: 1,
    };
    let endpoint = inventory.endpoints.keys().next().unwrap().clone();
    let refused = [
        (
            give_back(sequence_number),
            RepairRefusal::InUse { block, allocated: 1 },
        ),
        (
            give_back(1),
            RepairRefusal::Changed {
                what: "block 10.244.3.0/26".to_owned(),
                expected: 1,
                present: sequence_number,
            },
        ),
        (
            free("10.244.3.0/26", "10.244.3.7"),
            RepairRefusal::HasHandle {
                address: "10.244.3.7".parse().unwrap(),
                handle_id: "k8s-pod-network.df4637ed309dc4803ec1a35cdf433ea2eec821456f84ccf538489da2320dcb5f"
                    .to_owned(),
            },
        ),
        (
            RepairRequest::DeleteEndpoint {
                key: endpoint.clone(),
                expect: Expect::Unchanged(99),
            },
            RepairRefusal::ExtraConflict { key: endpoint },
        ),
    ];
    let before = dump(ipam.store());
    for (request, refusal) in refused {
        let error = now_or_never(ipam.repair(&request)).unwrap_err();
        assert_eq!(error, RepairError::Refused(refusal), "{request}");
        assert_eq!(error.class(), ErrorClass::Reevaluate);
    }
    for invalid in [
        RepairRequest::TakeBlock {
            node: "a/b".to_owned(),
            block,
        },
        RepairRequest::DeleteEndpoint {
            key: keys::block(block),
            expect: Expect::Anything,
        },
    ] {
        let error = now_or_never(ipam.repair(&invalid)).unwrap_err();
        assert!(
            matches!(&error, RepairError::Refused(RepairRefusal::InvalidRequest(_))),
            "{error}"
        );
    }
    // What is no longer so needs no repair.
    for gone in [
        free("10.244.3.0/26", "10.244.3.8"),
        free("10.99.0.0/26", "10.99.0.0"),
    ] {
        assert_eq!(now_or_never(ipam.repair(&gone)).unwrap(), Repaired::NotNeeded);
    }
    assert_eq!(dump(ipam.store()), before);
}

#[test]
fn a_locked_datastore_is_not_repaired() {
    let ipam = Ipam::new(store_in_state(10));
    let request = RepairRequest::TakeBlock {
        node: "node-a".to_owned(),
        block: "10.244.174.128/26".parse().unwrap(),
    };
    let error = now_or_never(ipam.repair(&request)).unwrap_err();
    assert_eq!(error, RepairError::Refused(RepairRefusal::DatastoreLocked));
}

#[test]
fn unknown_fields_of_an_affinity_survive_its_confirmation() {
    let mut state = clean();
    let block = "10.244.3.0/26".parse().unwrap();
    let key = keys::affinity("node-a", block);
    state.insert(
        key.clone(),
        json!({"state": "pending", "deleted": false, "more": 1}).to_string(),
    );
    let ipam = Ipam::new(store_of(&state));
    let node = "node-a".to_owned();
    now_or_never(ipam.repair(&RepairRequest::SettleAffinity { node, block })).unwrap();
    let settled: Value = serde_json::from_str(&dump(ipam.store())[&key]).unwrap();
    assert_eq!(
        settled,
        json!({"state": "confirmed", "deleted": false, "more": 1})
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_operations_gives_a_finding(operations in prop::collection::vec(operation(), 1..60)) {
        let cluster = Cluster::small(&NODES);
        for operation in operations {
            operation.run(&cluster);
            let findings = audit(&cluster.inventory(), &Running::new());
            prop_assert!(findings.is_empty(), "{operation:?}: {findings:?}");
        }
    }
}

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

#[derive(Clone, Debug)]
enum Operation {
    Add(usize, usize),
    Del(usize, usize),
    /// The endpoint is lost; then what the audit finds is repaired.
    LoseEndpointAndRepair(usize, usize),
    /// The node goes, and may come again.
    RemoveNode(usize),
    /// Every empty block of the node is given back.
    GiveBack(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let (node, container) = (0usize..3, 0usize..5);
    prop_oneof![
        5 => (node.clone(), container.clone()).prop_map(|(n, c)| Operation::Add(n, c)),
        3 => (node.clone(), container.clone()).prop_map(|(n, c)| Operation::Del(n, c)),
        1 => (node.clone(), container).prop_map(|(n, c)| Operation::LoseEndpointAndRepair(n, c)),
        1 => node.clone().prop_map(Operation::RemoveNode),
        1 => node.prop_map(Operation::GiveBack),
    ]
}

impl Operation {
    fn run(&self, cluster: &Cluster) {
        let name = |node: usize, container: usize| format!("{}{container}", NODES[node]);
        match *self {
            Self::Add(node, container) => {
                let name = name(node, container);
                // The agent refuses to attach a container twice.
                let key = endpoint_key(NODES[node], &name);
                if !cluster.dump().contains_key(&key) {
                    cluster.add(NODES[node], &name);
                }
            }
            Self::Del(node, container) => cluster.del(NODES[node], &name(node, container)),
            Self::LoseEndpointAndRepair(node, container) => {
                let name = name(node, container);
                cluster.set(&endpoint_key(NODES[node], &name), None);
                for finding in audit(&cluster.inventory(), &Running::new()) {
                    assert!(
                        matches!(finding, Finding::AllocatedNotInUse { .. }),
                        "{finding:?}"
                    );
                }
                cluster.del(NODES[node], &name);
            }
            Self::RemoveNode(node) => remove(&cluster.ipam, NODES[node]),
            Self::GiveBack(node) => {
                for (block, stored) in cluster.inventory().blocks {
                    if stored.host() == Some(NODES[node]) && stored.is_empty() {
                        let request = RepairRequest::GiveBackBlock {
                            node: NODES[node].to_owned(),
                            block,
                            sequence_number: stored.sequence_number(),
                        };
                        assert_eq!(now_or_never(cluster.ipam.repair(&request)), Ok(Repaired::Done));
                    }
                }
            }
        }
    }
}

/// Carries out the removal of `node`.
fn remove(ipam: &Ipam<MemoryStore>, node: &str) {
    let shut_out = RepairRequest::ShutOut {
        node: node.to_owned(),
        at: at(0),
    };
    now_or_never(ipam.repair(&shut_out)).unwrap();
    let inventory = now_or_never(ipam.inventory()).unwrap();
    for step in plan_node_removal(&inventory, node) {
        match step {
            RemovalStep::Release(request) => {
                let released = now_or_never(ipam.release(&request, at(0))).unwrap();
                assert_eq!(released.addresses.len(), request.only.len());
            }
            RemovalStep::Repair(request) => {
                now_or_never(ipam.repair(&request)).unwrap();
            }
        }
    }
}

fn store_of(state: &BTreeMap<String, String>) -> MemoryStore {
    MemoryStore::with(state.iter().map(|(k, v)| (k.clone(), v.clone().into_bytes())))
}

#[test]
fn a_release_with_extra_guards_happens_only_if_they_hold() {
    let cluster = Cluster::with_nodes(&["node-a"]);
    cluster.add("node-a", "x").unwrap();
    let key = endpoint_key("node-a", "x");
    let request = |expect| ReleaseRequest {
        handle_id: "net.x".to_owned(),
        extra_guards: vec![calidris_ipam::ExtraGuard {
            key: key.clone(),
            expect,
        }],
        ..ReleaseRequest::default()
    };
    let before = cluster.dump();
    for expect in [Expect::Absent, Expect::Unchanged(1)] {
        assert!(now_or_never(cluster.ipam.release(&request(expect), at(0))).is_err());
        assert_eq!(cluster.dump(), before);
    }
    let revision = cluster.inventory().endpoints[&key].mod_revision;
    let released = now_or_never(cluster.ipam.release(&request(Expect::Unchanged(revision)), at(0))).unwrap();
    assert_eq!(released.addresses.len(), 2);
}

#[test]
fn a_release_takes_its_own_record_along_and_leaves_anothers_alone() {
    for (owner, stays) in [("x", false), ("y", true)] {
        let cluster = Cluster::with_nodes(&["node-a"]);
        cluster.add("node-a", "x").unwrap();
        let key = endpoint_key("node-a", "x");
        let request = ReleaseRequest {
            handle_id: "net.x".to_owned(),
            ..ReleaseRequest::default()
        };
        cluster.set(&key, Some(owner.into()));
        let record = OwnRecord::new(key.clone(), |value| value == b"x");
        let released = now_or_never(cluster.ipam.release_with(&request, &record, at(0))).unwrap();
        assert_eq!(released.addresses.len(), 2);
        assert_eq!(cluster.dump().contains_key(&key), stays, "{owner}");
        // Again, now that it is gone, or is somebody else's still.
        let again = now_or_never(cluster.ipam.release_with(&request, &record, at(0))).unwrap();
        assert_eq!(again.addresses, []);
        assert_eq!(cluster.dump().contains_key(&key), stays, "{owner}");
    }
}
