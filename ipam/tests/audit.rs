//! The audit on the states of a real Calico, beside what calicoctl found there, and on states made wrong on purpose.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use calidris_ipam::{
    Finding, Inventory, Ipam, MemoryStore, ReleaseOnly, ReleaseRequest, Repair, Repaired, Running, audit,
    keys,
};
use serde_json::{Value, json};
use support::{at, clean, inventory, now_or_never, state};

type State = BTreeMap<String, String>;

const BLOCK_A: &str = "/calico/ipam/v2/assignment/ipv4/block/10.244.174.128-26";
const BLOCK_B: &str = "/calico/ipam/v2/assignment/ipv4/block/10.244.218.64-26";
const BLOCK_3: &str = "/calico/ipam/v2/assignment/ipv4/block/10.244.3.0-26";
const AFFINITY_A: &str = "/calico/ipam/v2/host/node-a/ipv4/block/10.244.174.128-26";
const HANDLE_1: &str = "/calico/ipam/v2/handle/k8s-pod-network.c0ffee01";
const ENDPOINT_3: &str =
    "/calico/resources/v3/projectcalico.org/workloadendpoints/default/node--a-cni-c0ffee03-eth0";
const ENDPOINT_WEB_2: &str =
    "/calico/resources/v3/projectcalico.org/workloadendpoints/shop/node--a-k8s-web--2-eth0";
const NODE_A: &str = "/calico/resources/v3/projectcalico.org/nodes/node-a";
const NODE_B: &str = "/calico/resources/v3/projectcalico.org/nodes/node-b";
const POOL: &str = "/calico/resources/v3/projectcalico.org/ippools/";

#[test]
fn states_of_calico_have_only_the_faults_that_were_made_in_them() {
    // The Node of node-a names tunnel addresses that nobody allocated; one of them was later given to a container, and
    // released by hand from under it; and an endpoint was written by hand.
    let tunnels = [
        "in-use-not-allocated 10.244.0.1",
        "in-use-not-allocated 10.244.0.2",
    ];
    let given = ["in-use-not-allocated 10.244.0.2", "several-users 10.244.0.1"];
    let released = [
        "in-use-not-allocated 10.244.0.1",
        "in-use-not-allocated 10.244.0.2",
        "in-use-not-allocated 10.244.218.65",
        "several-users 10.244.0.1",
    ];
    for number in 1..=11 {
        let expected: &[&str] = match number {
            1..=2 => &tunnels,
            3..=7 => &given,
            _ => &released,
        };
        assert_eq!(found(&state(number), &Running::new()), expected, "state {number}");
    }
}

#[test]
fn at_state_11_it_finds_what_calicoctl_finds() {
    let theirs = include_str!("data/calicoctl_ipam_check.txt");
    let inventory = inventory(&state(11));
    let findings = audit(&inventory, &Running::new());
    let count = |is: fn(&Finding) -> bool| findings.iter().filter(|finding| is(finding)).count();
    let allocations = inventory.blocks.values().flat_map(|block| block.allocations());
    let pools = inventory.pools.values().filter(|pool| !pool.spec.disabled);
    let in_use = inventory
        .endpoints
        .values()
        .flat_map(|endpoint| &endpoint.addresses)
        .chain(inventory.nodes.values().flatten())
        .collect::<BTreeSet<_>>();
    let ours = [
        format!("Found {} IPAM blocks.", inventory.blocks.len()),
        format!("IPAM blocks record {} allocations.", allocations.count()),
        format!("Found {} active IP pools.", pools.count()),
        format!("Workloads and nodes are using {} IPs.", in_use.len()),
        format!(
            "Found {} IPs that are allocated in IPAM but not actually in use.",
            count(|finding| matches!(finding, Finding::AllocatedNotInUse { .. }))
        ),
        format!(
            "Found {} in-use IPs that are not in active IP pools.",
            count(|finding| matches!(finding, Finding::InUseOutsidePools { .. }))
        ),
        format!(
            "Found {} in-use IPs that are in active IP pools but have no corresponding IPAM allocation.",
            count(|finding| matches!(finding, Finding::InUseNotAllocated { .. }))
        ),
        format!(
            "Found {} handles with no matching IPs (and {} handles with matches).",
            count(|finding| matches!(finding, Finding::EmptyHandle { .. })),
            inventory.handles.len()
        ),
        format!(
            "Found {} handles mentioned in blocks with no matching handle resource.",
            count(|finding| matches!(finding, Finding::MissingHandle { .. }))
        ),
        format!(
            "Found {} invalid IPAMBlocks.",
            count(|finding| matches!(finding, Finding::InvalidBlock { .. }))
        ),
    ];
    for line in ours {
        assert!(theirs.lines().any(|theirs| theirs == line), "{line}");
    }
}

#[test]
fn a_clean_state_has_no_findings() {
    assert_eq!(found(&clean(), &Running::new()), [""; 0]);
}

/// A way to make a clean state wrong, and what is found then.
struct Fault {
    what: &'static str,
    make: fn(&mut State),
    expected: &'static [&'static str],
}

/// One fault for every finding, except those of what runs.
const FAULTS: &[Fault] = &[
    Fault {
        what: "an allocation refers to an attribute that is not there",
        make: |state| edit(state, BLOCK_3, |block| block["attributes"] = json!([])),
        expected: &["invalid-block "],
    },
    Fault {
        what: "an ordinal is both allocated and free",
        make: |state| edit(state, BLOCK_3, |block| block["unallocated"][0] = json!(7)),
        expected: &["invalid-block "],
    },
    Fault {
        what: "an ordinal is twice in the queue",
        make: |state| edit(state, BLOCK_3, |block| block["unallocated"][0] = json!(1)),
        expected: &["invalid-block "],
    },
    Fault {
        what: "a block is too short",
        make: |state| edit(state, BLOCK_3, |block| block["allocations"] = json!([null])),
        expected: &["invalid-block "],
    },
    Fault {
        what: "a block under another's key",
        make: |state| edit(state, BLOCK_3, |block| block["cidr"] = json!("10.244.9.0/26")),
        expected: &["invalid-block "],
    },
    Fault {
        what: "a pool that is no JSON",
        make: |state| {
            state.insert(format!("{POOL}broken"), "{".to_owned());
        },
        expected: &["invalid-value "],
    },
    Fault {
        what: "an affinity that is no JSON",
        make: |state| {
            state.insert(AFFINITY_A.to_owned(), "confirmed".to_owned());
        },
        expected: &["invalid-value "],
    },
    Fault {
        what: "a second, smaller block over a part of the first",
        make: |state| {
            second_block(state, 1, None);
        },
        expected: &["overlapping-blocks "],
    },
    Fault {
        what: "an address allocated in both of two overlapping blocks",
        make: |state| {
            second_block(state, 0, Some("k8s-pod-network.c0ffee01"));
            edit(state, HANDLE_1, |handle| {
                handle["block"]["10.244.174.128/27"] = json!(1);
            });
        },
        expected: &["allocated-twice 10.244.174.128", "overlapping-blocks "],
    },
    Fault {
        what: "two endpoints with one address",
        make: |state| {
            edit(state, ENDPOINT_3, |endpoint| {
                endpoint["spec"]["ipNetworks"] = json!(["10.244.174.130/32", "10.244.174.128/32"]);
            });
        },
        expected: &["several-users 10.244.174.128"],
    },
    Fault {
        what: "an endpoint of another pod",
        make: |state| {
            edit(state, ENDPOINT_WEB_2, |endpoint| {
                endpoint["spec"]["pod"] = json!("web-9");
            });
        },
        expected: &["allocated-to-another 10.244.3.7"],
    },
    Fault {
        what: "an endpoint whose address is free",
        make: |state| {
            edit(state, ENDPOINT_3, |endpoint| {
                endpoint["spec"]["ipNetworks"] = json!(["10.244.174.130/32", "10.244.174.160/32"]);
            });
        },
        expected: &["in-use-not-allocated 10.244.174.160"],
    },
    Fault {
        what: "an endpoint whose address rests after a release",
        make: |state| {
            edit(state, BLOCK_3, |block| {
                let attribute =
                    json!({"handle_id": null, "secondary": null, "releasedAt": "2026-11-21T02:00:00Z"});
                block["attributes"][0] = attribute;
            });
            state.remove(&handle_of(state, "10.244.3.0/26"));
        },
        expected: &["in-use-not-allocated 10.244.3.7"],
    },
    Fault {
        what: "an endpoint with an address of another network",
        make: |state| {
            edit(state, ENDPOINT_3, |endpoint| {
                endpoint["spec"]["ipNetworks"] = json!(["10.244.174.130/32", "172.16.0.1"]);
            });
        },
        expected: &["in-use-outside-pools 172.16.0.1"],
    },
    Fault {
        what: "a container without endpoint",
        make: |state| {
            state.remove(ENDPOINT_3);
        },
        expected: &["allocated-not-in-use 10.244.174.130"],
    },
    Fault {
        what: "an address in use without a handle",
        make: |state| {
            edit(state, BLOCK_3, |block| {
                block["attributes"][0]["handle_id"] = json!(null);
            });
            state.remove(&handle_of(state, "10.244.3.0/26"));
        },
        expected: &["allocation-without-handle 10.244.3.7"],
    },
    Fault {
        what: "a handle that is gone",
        make: |state| {
            state.remove(HANDLE_1);
        },
        expected: &["missing-handle "],
    },
    Fault {
        what: "a handle without addresses",
        make: |state| {
            let handle = json!({"block": {"10.244.3.0/26": 1}, "deleted": false});
            state.insert(keys::handle("k8s-pod-network.gone"), handle.to_string());
        },
        expected: &["empty-handle "],
    },
    Fault {
        what: "a handle that counts two where there is one",
        make: |state| {
            edit(state, HANDLE_1, |handle| {
                handle["block"]["10.244.174.128/26"] = json!(2);
            });
        },
        expected: &["miscounted-handle "],
    },
    Fault {
        what: "a pool that was deleted under its blocks",
        make: |state| {
            state.remove(&format!("{POOL}tiny"));
        },
        expected: &["block-outside-pools ", "block-outside-pools "],
    },
    Fault {
        what: "an affinity that is gone",
        make: |state| {
            state.remove(AFFINITY_A);
        },
        expected: &["block-without-affinity "],
    },
    Fault {
        what: "an affinity to a block that is not there",
        make: |state| {
            let block = "10.244.77.0/26".parse().unwrap();
            state.insert(keys::affinity("node-a", block), confirmed());
        },
        expected: &["affinity-without-block "],
    },
    Fault {
        what: "a second node with an affinity to the same block",
        make: |state| {
            let block = "10.244.174.128/26".parse().unwrap();
            state.insert(keys::affinity("node-b", block), confirmed());
        },
        expected: &["affinity-to-foreign-block "],
    },
    Fault {
        what: "a claim that stopped half way",
        make: |state| {
            let block = "10.244.77.0/26".parse().unwrap();
            state.insert(
                keys::affinity("node-a", block),
                confirmed().replace("confirmed", "pending"),
            );
        },
        expected: &["unfinished-affinity "],
    },
    Fault {
        what: "a block that was to be given back",
        make: |state| {
            edit(state, AFFINITY_A, |affinity| {
                affinity["state"] = json!("pendingDeletion");
            });
        },
        expected: &["unfinished-affinity "],
    },
    Fault {
        what: "a node that is gone",
        make: |state| {
            state.remove(NODE_B);
        },
        expected: &["unknown-node "],
    },
];

#[test]
fn every_fault_is_found_and_nothing_else() {
    for fault in FAULTS {
        let mut state = clean();
        (fault.make)(&mut state);
        assert_eq!(found(&state, &Running::new()), fault.expected, "{}", fault.what);
    }
}

#[test]
fn every_finding_has_a_fault_that_shows_it() {
    let mut shown: BTreeSet<String> = FAULTS
        .iter()
        .flat_map(|fault| fault.expected)
        .map(|expected| expected.split(' ').next().unwrap().to_owned())
        .collect();
    // The next test shows these.
    shown.extend([
        "running-without-endpoint".to_owned(),
        "endpoint-not-running".to_owned(),
    ]);
    let all = [
        "invalid-block",
        "invalid-value",
        "overlapping-blocks",
        "allocated-twice",
        "several-users",
        "allocated-to-another",
        "in-use-not-allocated",
        "in-use-outside-pools",
        "allocated-not-in-use",
        "allocation-without-handle",
        "missing-handle",
        "empty-handle",
        "miscounted-handle",
        "block-outside-pools",
        "block-without-affinity",
        "affinity-without-block",
        "affinity-to-foreign-block",
        "unfinished-affinity",
        "unknown-node",
        "running-without-endpoint",
        "endpoint-not-running",
    ];
    assert_eq!(shown, all.map(str::to_owned).into());
}

#[test]
fn what_runs_on_a_node_is_compared_with_its_endpoints() {
    let state = clean();
    let inventory = inventory(&state);
    let of_node_b = inventory.endpoints.values().filter(|e| e.node == "node-b");
    let addresses = of_node_b.flat_map(|e| e.addresses.iter().map(|&a| (a, "cali0".to_owned())));
    let mut running = Running::from([("node-b".to_owned(), addresses.collect())]);
    assert_eq!(found(&state, &running), [""; 0]);

    let on_b = running.get_mut("node-b").unwrap();
    let gone = *on_b.keys().next().unwrap();
    on_b.remove(&gone);
    on_b.insert("10.244.218.99".parse().unwrap(), "cali9".to_owned());
    assert_eq!(
        found(&state, &running),
        [
            format!("endpoint-not-running {gone}"),
            "in-use-not-allocated 10.244.218.99".to_owned(),
            "running-without-endpoint 10.244.218.99".to_owned(),
        ]
    );
}

#[test]
fn findings_survive_json_and_name_a_key_and_a_repair() {
    for fault in FAULTS {
        let mut state = clean();
        (fault.make)(&mut state);
        for finding in audit(&inventory(&state), &Running::new()) {
            let json = serde_json::to_string(&finding).unwrap();
            assert_eq!(serde_json::from_str::<Finding>(&json).unwrap(), finding);
            assert!(finding.key().starts_with("/calico/"), "{finding}");
            assert!(!finding.repair().to_string().is_empty(), "{finding}");
            assert!(
                !finding.to_string().contains(|c: char| c.is_control()),
                "{finding}"
            );
        }
    }
}

#[test]
fn addresses_of_load_balancers_and_of_moving_machines_are_not_judged() {
    let mut state = clean();
    state.remove(ENDPOINT_WEB_2);
    edit(&mut state, BLOCK_3, |block| {
        block["affinity"] = json!("virtual:load-balancer");
    });
    state.remove("/calico/ipam/v2/host/node-a/ipv4/block/10.244.3.0-26");
    assert_eq!(found(&state, &Running::new()), [""; 0]);

    let mut state = clean();
    edit(&mut state, BLOCK_3, |block| {
        block["attributes"][0]["alternateOwnerAttrs"] = json!({"pod": "web-9", "namespace": "shop"});
    });
    let mut target = state[ENDPOINT_WEB_2].clone();
    target = target.replace("web-2", "web-9").replace("web--2", "web--9");
    state.insert(ENDPOINT_WEB_2.replace("web--2", "web--9"), target);
    assert_eq!(found(&state, &Running::new()), [""; 0]);
}

#[test]
fn nothing_in_a_block_that_cannot_be_read_is_judged() {
    let mut state = clean();
    state.insert(BLOCK_A.to_owned(), "{}".to_owned());
    state.insert(BLOCK_B.to_owned(), "".to_owned());
    assert_eq!(
        found(&state, &Running::new()),
        ["invalid-block ", "invalid-block "]
    );
}

#[test]
fn what_can_be_repaired_is_gone_after_the_repair() {
    let mut repaired = 0;
    for fault in FAULTS {
        let mut state = clean();
        (fault.make)(&mut state);
        let ipam = Ipam::new(store_of(&state));
        for _ in 0..2 {
            for finding in audit(&now_or_never(ipam.inventory()).unwrap(), &Running::new()) {
                repaired += usize::from(repair(&ipam, &finding));
            }
        }
        let left = audit(&now_or_never(ipam.inventory()).unwrap(), &Running::new());
        let by_hand = |finding: &Finding| matches!(finding.repair(), Repair::ByHand(_));
        assert!(left.iter().all(by_hand), "{}: {left:?}", fault.what);
    }
    assert_eq!(repaired, 9);
}

/// Carries out the repair of a finding, if there is one. Whether it changed anything.
fn repair(ipam: &Ipam<MemoryStore>, finding: &Finding) -> bool {
    match finding.repair() {
        Repair::ByHand(_) => false,
        Repair::Mend(request) => now_or_never(ipam.repair(&request)).unwrap() == Repaired::Done,
        Repair::Release(allocation) => {
            let request = ReleaseRequest {
                handle_id: allocation.handle_id,
                only: vec![ReleaseOnly {
                    address: allocation.address,
                    sequence_number: Some(allocation.sequence_number),
                }],
                ..ReleaseRequest::default()
            };
            now_or_never(ipam.release(&request, at(0)))
                .unwrap()
                .addresses
                .len()
                == 1
        }
    }
}

fn store_of(state: &State) -> MemoryStore {
    MemoryStore::with(state.iter().map(|(k, v)| (k.clone(), v.clone().into_bytes())))
}

/// `problem address` of every finding, sorted.
fn found(state: &State, running: &Running) -> Vec<String> {
    let mut found: Vec<String> = audit(&inventory(state), running)
        .iter()
        .map(|finding| {
            let problem = serde_json::to_value(finding).unwrap()["problem"].clone();
            let address = finding.address().map(|a| a.to_string()).unwrap_or_default();
            format!("{} {address}", problem.as_str().unwrap())
        })
        .collect();
    found.sort();
    found
}

fn edit(state: &mut State, key: &str, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_str(&state[key]).unwrap();
    change(&mut value);
    state.insert(key.to_owned(), value.to_string());
}

fn confirmed() -> String {
    json!({"state": "confirmed", "deleted": false}).to_string()
}

/// The key of the handle that has all addresses of `block`.
fn handle_of(state: &State, block: &str) -> String {
    let needle = format!("\"{block}\"");
    let mut handles = state.iter().filter(|(key, _)| key.starts_with(keys::HANDLES));
    handles
        .find(|(_, value)| value.contains(&needle))
        .unwrap()
        .0
        .clone()
}

/// A /27 of node-a over the first half of its /26, with its first address allocated to `handle_id`.
fn second_block(state: &mut State, first_free: usize, handle_id: Option<&str>) {
    let mut allocations = vec![Value::Null; 32];
    let mut attributes = json!([]);
    let mut free: Vec<usize> = (0..32).collect();
    if let Some(handle_id) = handle_id {
        allocations[first_free] = json!(0);
        attributes = json!([{"handle_id": handle_id, "secondary": {"node": "node-a"}}]);
        free.remove(first_free);
    }
    let block = json!({
        "cidr": "10.244.174.128/27", "affinity": "host:node-a", "allocations": allocations,
        "unallocated": free, "attributes": attributes, "sequenceNumber": 1, "deleted": false,
    });
    let cidr = "10.244.174.128/27".parse().unwrap();
    state.insert(keys::block(cidr), block.to_string());
    state.insert(keys::affinity("node-a", cidr), confirmed());
}

#[test]
fn an_inventory_reads_everything_that_concerns_addresses() {
    let state = state(11);
    let inventory: Inventory = now_or_never(Ipam::new(store_of(&state)).inventory()).unwrap();
    assert_eq!(
        (
            inventory.blocks.len(),
            inventory.affinities.len(),
            inventory.handles.len(),
            inventory.pools.len()
        ),
        (10, 10, 12, 6)
    );
    assert_eq!(inventory.reservations.len(), 3);
    assert!(inventory.config.strict_affinity || state.contains_key(keys::IPAM_CONFIG));
    assert_eq!(inventory.nodes["node-a"].len(), 2);
    assert!(state.contains_key(NODE_A));
    assert!(!inventory.locked);
    assert_eq!(inventory.unreadable, []);
    let web_1 = inventory
        .endpoints
        .values()
        .find(|endpoint| endpoint.pod == "web-1")
        .unwrap();
    assert_eq!(
        (
            web_1.node.as_str(),
            web_1.namespace.as_str(),
            web_1.interface.as_str()
        ),
        ("node-a", "shop", "cali751425ce827")
    );
    let address = "10.244.0.11".parse().unwrap();
    assert!(web_1.addresses.contains(&address));
    let allocation = inventory.allocation_of(address).unwrap();
    assert_eq!(allocation.attribute.secondary["pod"], "web-1");
}
