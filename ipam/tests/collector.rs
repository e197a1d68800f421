//! The collector: what it takes back, what it never touches, and a simulation of containers that die half way.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use calidris_ipam::{
    Act, Alive, Allocation, Collector, CollectorConfig, ReleaseRefusal, RepairRequest, Running, audit, keys,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::cluster::{Cluster, endpoint_key, endpoint_value, handle};
use support::{at, now_or_never};

const GRACE: u64 = 900;
const IDLE: u64 = 3600;

#[test]
fn a_leaked_handle_is_released_after_the_grace_period_with_all_of_its_addresses() {
    let cluster = Cluster::with_nodes(&["node-a"]);
    let leaked = cluster.add_without_endpoint("node-a", "dead").unwrap();
    cluster.add("node-a", "living").unwrap();
    let mut collector = collector("node-a");
    let before = audit(&cluster.inventory(), &Running::new());
    assert_eq!(before.len(), 2, "{before:?}");

    assert_eq!(look(&mut collector, 0, &cluster), []);
    assert_eq!(look(&mut collector, GRACE - 1, &cluster), []);
    let acts = look(&mut collector, GRACE, &cluster);
    let [Act::Release { request, proof }] = acts.as_slice() else {
        panic!("{acts:?}");
    };
    assert_eq!(request.handle_id, "net.dead");
    assert_eq!(request.only.len(), leaked.addresses.len());
    assert_eq!((proof.looks, proof.seen_for.as_secs()), (3, GRACE));
    let text = proof.to_string();
    assert!(
        text.starts_with("10.0.0.") && text.contains("of handle net.dead on node-a: no endpoint, no container, no interface; so for 900 s at 3 looks"),
        "{text}"
    );
    carry_out(&cluster, &acts);
    assert_eq!(audit(&cluster.inventory(), &Running::new()), []);
    assert_eq!(look(&mut collector, GRACE + 1, &cluster), []);
}

#[test]
fn one_look_is_never_enough_however_late_it_is() {
    let cluster = Cluster::with_nodes(&["node-a"]);
    cluster.add_without_endpoint("node-a", "dead");
    let mut collector = collector("node-a");
    assert_eq!(look(&mut collector, 10 * GRACE, &cluster), []);
    // The second one counts from the first.
    assert_eq!(look(&mut collector, 10 * GRACE + 1, &cluster), []);
    assert_eq!(look(&mut collector, 11 * GRACE, &cluster).len(), 1);
}

/// What makes a handle not dead, or not for this collector to judge.
struct Sign {
    what: &'static str,
    make: fn(&Cluster, &mut Alive),
}

const SIGNS: &[Sign] = &[
    Sign {
        what: "an endpoint has the address",
        make: |cluster, _| {
            let address = addresses_of(cluster, "net.x").remove(0).address.to_string();
            cluster.set(
                &endpoint_key("node-a", "x"),
                Some(endpoint_value("node-a", "x", [address].into_iter())),
            );
        },
    },
    Sign {
        what: "an endpoint of another node has the address",
        make: |cluster, _| {
            let address = addresses_of(cluster, "net.x").remove(0).address.to_string();
            let value = endpoint_value("node-b", "y", [address].into_iter());
            cluster.set(&endpoint_key("node-b", "y"), Some(value));
        },
    },
    Sign {
        what: "a tunnel device has the address",
        make: |cluster, _| {
            let address = addresses_of(cluster, "net.x").remove(0).address.to_string();
            let node = json!({
                "kind": "Node", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "node-b"},
                "spec": {"ipv4VXLANTunnelAddr": address},
            });
            cluster.set(
                &keys::resource("nodes", "node-b"),
                Some(node.to_string().into_bytes()),
            );
        },
    },
    Sign {
        what: "the container is being attached",
        make: |_, alive| {
            alive
                .handles
                .insert("net.x".to_owned(), "being attached".to_owned());
        },
    },
    Sign {
        what: "an interface of the node has one of the addresses",
        make: |cluster, alive| {
            let address = addresses_of(cluster, "net.x").pop().unwrap().address;
            alive.addresses.insert(address, "calix".to_owned());
        },
    },
    Sign {
        what: "the endpoint cannot be read",
        make: |cluster, alive| {
            let key = endpoint_key("node-a", "x");
            cluster.set(&key, Some(b"{".to_vec()));
            alive.endpoint_keys.insert("net.x".to_owned(), [key].into());
        },
    },
    Sign {
        what: "an address was given on another node",
        make: |cluster, _| {
            edit_attributes(cluster, |attribute| {
                attribute["secondary"]["node"] = json!("node-b");
            });
        },
    },
    Sign {
        what: "it is a tunnel's",
        make: |cluster, _| {
            edit_attributes(cluster, |attribute| {
                attribute["secondary"]["type"] = json!("vxlanTunnelAddress");
            });
        },
    },
    Sign {
        what: "the owner is one that this program does not know",
        make: |cluster, _| {
            edit_attributes(cluster, |attribute| {
                attribute["secondary"]["vmi"] = json!("vm-1");
            });
        },
    },
    Sign {
        what: "it has a second owner",
        make: |cluster, _| {
            edit_attributes(cluster, |attribute| {
                attribute["alternateOwnerAttrs"] = json!({"pod": "p"});
            });
        },
    },
    Sign {
        what: "a block of the handle cannot be read",
        make: |cluster, _| {
            let block = addresses_of(cluster, "net.x").remove(0).block;
            cluster.set(&keys::block(block), Some(b"{}".to_vec()));
        },
    },
    Sign {
        what: "the handle is missing: there is no telling what else it has",
        make: |cluster, _| cluster.set(&keys::handle("net.x"), None),
    },
    Sign {
        what: "the datastore is locked",
        make: |cluster, _| {
            let information = json!({
                "kind": "ClusterInformation", "apiVersion": "projectcalico.org/v3",
                "metadata": {"name": "default"}, "spec": {"datastoreReady": false},
            });
            let value = information.to_string().into_bytes();
            cluster.set(keys::CLUSTER_INFORMATION, Some(value));
        },
    },
];

#[test]
fn any_sign_of_life_protects_and_begins_the_grace_period_anew() {
    for sign in SIGNS {
        let cluster = Cluster::with_nodes(&["node-a", "node-b"]);
        cluster.add_without_endpoint("node-a", "x").unwrap();
        let dead = cluster.dump();
        let mut collector = collector("node-a");
        assert_eq!(look(&mut collector, 0, &cluster), [], "{}", sign.what);

        let mut alive = Alive::default();
        (sign.make)(&cluster, &mut alive);
        let acts = collector.look(Duration::from_secs(2 * GRACE), &cluster.inventory(), &alive);
        assert_eq!(acts, [], "{}", sign.what);

        for key in cluster.dump().keys().filter(|key| !dead.contains_key(*key)) {
            cluster.set(key, None);
        }
        for (key, value) in dead {
            cluster.set(&key, Some(value));
        }
        assert_eq!(look(&mut collector, 3 * GRACE, &cluster), [], "{}", sign.what);
        assert_eq!(
            look(&mut collector, 4 * GRACE, &cluster).len(),
            1,
            "{}",
            sign.what
        );
    }
}

#[test]
fn containers_of_other_nodes_are_not_this_collectors_business() {
    let cluster = Cluster::with_nodes(&["node-a", "node-b"]);
    cluster.add_without_endpoint("node-b", "dead");
    let mut collector = collector("node-a");
    look(&mut collector, 0, &cluster);
    assert_eq!(look(&mut collector, 10 * IDLE, &cluster), []);
}

#[test]
fn an_act_that_comes_too_late_does_nothing() {
    let cluster = Cluster::with_nodes(&["node-a"]);
    cluster.add_without_endpoint("node-a", "dead").unwrap();
    let mut collector = collector("node-a");
    let key = endpoint_key("node-a", "dead");
    let alive = Alive {
        endpoint_keys: BTreeMap::from([("net.dead".to_owned(), BTreeSet::from([key.clone()]))]),
        ..Alive::default()
    };
    collector.look(Duration::ZERO, &cluster.inventory(), &alive);
    let acts = collector.look(Duration::from_secs(GRACE), &cluster.inventory(), &alive);
    let [Act::Release { request, .. }] = acts.as_slice() else {
        panic!("{acts:?}");
    };

    // An endpoint appears between the look and the act.
    let addresses = addresses_of(&cluster, "net.dead");
    let text = addresses.iter().map(|allocation| allocation.address.to_string());
    cluster.set(&key, Some(endpoint_value("node-a", "dead", text)));
    let before = cluster.dump();
    let refused = now_or_never(cluster.ipam.release(request, at(0))).unwrap_err();
    assert_eq!(refused, ReleaseRefusal::ExtraConflict { key }.into());
    assert_eq!(cluster.dump(), before);

    // Or the same addresses are given to the same handle again.
    cluster.del("node-a", "dead");
    let mut again = cluster.add_without_endpoint("node-a", "dead").unwrap().addresses;
    while !again
        .iter()
        .any(|assigned| assigned.address == addresses[0].address)
    {
        cluster.del("node-a", "dead");
        again = cluster.add_without_endpoint("node-a", "dead").unwrap().addresses;
    }
    let before = cluster.dump();
    let refused = now_or_never(cluster.ipam.release(request, at(0))).unwrap_err();
    assert!(refused.to_string().contains("was assigned anew"), "{refused}");
    assert_eq!(cluster.dump(), before);
}

#[test]
fn empty_blocks_are_given_back_but_one_of_each_family() {
    let cluster = Cluster::with_nodes(&["node-a"]);
    // Sixteen addresses in a block: three blocks of each family.
    for pod in 0..40 {
        cluster.add("node-a", &format!("pod{pod}")).unwrap();
    }
    for pod in 0..40 {
        cluster.del("node-a", &format!("pod{pod}"));
    }
    let mut collector = collector("node-a");
    assert_eq!(cluster.inventory().blocks.len(), 6);
    look(&mut collector, 0, &cluster);
    assert_eq!(look(&mut collector, IDLE - 1, &cluster), []);
    carry_out(&cluster, &look(&mut collector, IDLE, &cluster));
    let inventory = cluster.inventory();
    assert_eq!(inventory.blocks.len(), 2);
    assert_eq!(inventory.affinities.len(), 2);
    assert_eq!(look(&mut collector, 9 * IDLE, &cluster), []);

    // The last ones go when their pool is disabled.
    let pool = json!({
        "kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "v4"},
        "spec": {"cidr": "10.0.0.0/25", "blockSize": 28, "disabled": true},
    });
    cluster.set(
        &format!("{}v4", keys::IP_POOLS),
        Some(pool.to_string().into_bytes()),
    );
    carry_out(&cluster, &look(&mut collector, 10 * IDLE, &cluster));
    let left = cluster.inventory().blocks;
    assert!(
        left.len() == 1 && left.keys().all(|cidr| cidr.is_ipv6()),
        "{left:?}"
    );
}

#[test]
fn a_block_that_was_used_in_between_is_not_idle_and_none_is_given_back_in_use() {
    let cluster = Cluster::with_nodes(&["node-a"]);
    for pod in 0..40 {
        cluster.add("node-a", &format!("pod{pod}")).unwrap();
    }
    for pod in 0..40 {
        cluster.del("node-a", &format!("pod{pod}"));
    }
    let mut collector = collector("node-a");
    look(&mut collector, 0, &cluster);
    // Used and empty again: another sequence number in the block that serves first.
    let used = cluster.add("node-a", "between").unwrap().addresses;
    cluster.del("node-a", "between");
    look(&mut collector, IDLE / 2, &cluster);
    let acts = look(&mut collector, IDLE, &cluster);
    let before_use = cluster.dump();
    for act in &acts {
        let Act::Repair {
            request: RepairRequest::GiveBackBlock { block, .. },
            ..
        } = act
        else {
            panic!("{act:?}");
        };
        assert!(used.iter().all(|assigned| assigned.block != *block));
        // Somebody takes an address of it before the act.
        let key = keys::block(*block);
        let mut value: Value = serde_json::from_slice(&before_use[&key]).unwrap();
        value["sequenceNumber"] = json!(value["sequenceNumber"].as_u64().unwrap() + 1);
        cluster.set(&key, Some(value.to_string().into_bytes()));
    }
    let before = cluster.dump();
    assert!(!acts.is_empty());
    for act in &acts {
        let Act::Repair { request, .. } = act else {
            continue;
        };
        let refused = now_or_never(cluster.ipam.repair(request)).unwrap_err();
        assert!(refused.to_string().contains("has changed"), "{refused}");
    }
    assert_eq!(cluster.dump(), before);
}

#[test]
fn what_calico_left_between_two_steps_of_a_claim_is_settled() {
    let cluster = Cluster::with_nodes(&["node-a", "node-b"]);
    cluster.add("node-a", "living").unwrap();
    cluster.add("node-b", "other").unwrap();
    let inventory = cluster.inventory();
    let of_b = inventory.blocks_of("node-b").into_iter().next().unwrap();
    let of_a = inventory.blocks_of("node-a").into_iter().next().unwrap();
    let pending = || Some(br#"{"state":"pending","deleted":false}"#.to_vec());
    // Claims that were overtaken, that never came to a block, and that only lack their last step.
    cluster.set(&keys::affinity("node-a", of_b), pending());
    cluster.set(
        &keys::affinity("node-a", "10.0.0.96/28".parse().unwrap()),
        pending(),
    );
    cluster.set(&keys::affinity("node-a", of_a), pending());
    let mut collector = collector("node-a");
    look(&mut collector, 0, &cluster);
    assert_eq!(look(&mut collector, GRACE - 1, &cluster), []);
    let acts = look(&mut collector, GRACE, &cluster);
    assert_eq!(acts.len(), 3);
    carry_out(&cluster, &acts);
    assert_eq!(audit(&cluster.inventory(), &Running::new()), []);
    assert_eq!(cluster.inventory(), cluster_without(&inventory, &cluster));
}

#[test]
fn no_look_decides_more_than_it_may() {
    let cluster = Cluster::with_nodes(&["node-a"]);
    for pod in 0..20 {
        cluster.add_without_endpoint("node-a", &format!("dead{pod}"));
    }
    let mut collector = Collector::new(CollectorConfig {
        max_acts: 7,
        ..config("node-a")
    });
    look(&mut collector, 0, &cluster);
    for (round, expected) in [7, 7, 6, 0].into_iter().enumerate() {
        let acts = look(&mut collector, GRACE + round as u64, &cluster);
        assert_eq!(acts.len(), expected);
        carry_out(&cluster, &acts);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Containers of two nodes come and go through a plugin that may stop after every step; agents restart; acts are
    /// delayed, lost or carried out twice. No living container ever loses an address, and in the end nothing is left.
    #[test]
    fn a_living_address_is_never_released_and_a_dead_one_in_the_end(steps in prop::collection::vec(step(), 1..160)) {
        let mut simulation = Simulation::new();
        for step in steps {
            simulation.step(&step);
            simulation.living_keep_their_addresses();
        }
        simulation.quiet_down();
        // A handle that lives keeps all that it ever got: its container's end takes that along.
        simulation.end_all_containers();
        simulation.quiet_down();
        let findings = audit(&simulation.cluster.inventory(), &Running::new());
        prop_assert!(findings.is_empty(), "{findings:?}");
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// Container `1` of node `0` gets addresses; the plugin goes on or stops.
    Add {
        node: usize,
        container: usize,
        stops: bool,
    },
    /// The endpoint of a container whose addresses are there is written: it lives.
    Finish { node: usize, container: usize },
    /// The container is deleted: whole, or only its endpoint.
    Del {
        node: usize,
        container: usize,
        stops: bool,
    },
    /// The collector of a node looks, this many seconds later; its acts are queued.
    Look { node: usize, after: u64 },
    /// A queued act is carried out (and stays queued, if it is to be repeated), or lost.
    Act { which: usize, lost: bool, again: bool },
    /// The agent of a node restarts: its collector knows nothing.
    Restart { node: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (node, container) = (0usize..2, 0usize..6);
    prop_oneof![
        4 => (node.clone(), container.clone(), any::<bool>()).prop_map(|(node, container, stops)| Step::Add { node, container, stops }),
        2 => (node.clone(), container.clone()).prop_map(|(node, container)| Step::Finish { node, container }),
        2 => (node.clone(), container, any::<bool>()).prop_map(|(node, container, stops)| Step::Del { node, container, stops }),
        4 => (node.clone(), 1u64..IDLE).prop_map(|(node, after)| Step::Look { node, after }),
        4 => (0usize..8, prop::bool::weighted(0.2), prop::bool::weighted(0.3))
            .prop_map(|(which, lost, again)| Step::Act { which, lost, again }),
        1 => node.prop_map(|node| Step::Restart { node }),
    ]
}

const NODES: [&str; 2] = ["node-a", "node-b"];

struct Simulation {
    cluster: Cluster,
    collectors: [Collector; 2],
    now: u64,
    queued: Vec<Act>,
    /// Containers that work, with their addresses.
    living: BTreeMap<(usize, usize), Vec<IpAddr>>,
    /// Containers whose plugin is between allocation and endpoint, and works on.
    starting: BTreeMap<(usize, usize), Vec<IpAddr>>,
}

impl Simulation {
    fn new() -> Self {
        Self {
            cluster: Cluster::small(&NODES),
            collectors: NODES.map(collector),
            now: 0,
            queued: Vec::new(),
            living: BTreeMap::new(),
            starting: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Add {
                node,
                container,
                stops,
            } => self.add(node, container, stops),
            Step::Finish { node, container } => self.finish(node, container),
            Step::Del {
                node,
                container,
                stops,
            } => {
                self.living.remove(&(node, container));
                self.starting.remove(&(node, container));
                let name = name(node, container);
                if stops {
                    self.cluster.set(&endpoint_key(NODES[node], &name), None);
                } else {
                    self.cluster.del(NODES[node], &name);
                }
            }
            Step::Look { node, after } => self.look(node, after),
            Step::Act { which, lost, again } => {
                if which < self.queued.len() {
                    let act = self.queued.remove(which);
                    if again {
                        self.queued.push(act.clone());
                    }
                    if !lost {
                        try_to_carry_out(&self.cluster, &act);
                    }
                }
            }
            Step::Restart { node } => self.collectors[node] = collector(NODES[node]),
        }
    }

    /// A container that lives is not added again; one that leaked may be, under the same handle.
    fn add(&mut self, node: usize, container: usize, stops: bool) {
        let id = (node, container);
        if self.living.contains_key(&id) || self.starting.contains_key(&id) {
            return;
        }
        let assigned = self
            .cluster
            .add_without_endpoint(NODES[node], &name(node, container));
        let Some(assigned) = assigned.filter(|_| !stops) else {
            return;
        };
        let addresses = assigned.addresses.iter().map(|assigned| assigned.address);
        self.starting.insert(id, addresses.collect());
    }

    fn finish(&mut self, node: usize, container: usize) {
        let id = (node, container);
        let Some(addresses) = self.starting.remove(&id) else {
            return;
        };
        let name = name(node, container);
        let text = addresses.iter().map(IpAddr::to_string);
        let value = endpoint_value(NODES[node], &name, text);
        self.cluster.set(&endpoint_key(NODES[node], &name), Some(value));
        self.living.insert(id, addresses);
    }

    fn look(&mut self, node: usize, after: u64) {
        self.now += after;
        let mut alive = Alive::default();
        for container in 0..6 {
            let name = name(node, container);
            let keys = BTreeSet::from([endpoint_key(NODES[node], &name)]);
            alive.endpoint_keys.insert(handle(&name), keys);
        }
        for &(on, container) in self.starting.keys().filter(|(on, _)| *on == node) {
            alive
                .handles
                .insert(handle(&name(on, container)), "being attached".to_owned());
        }
        let inventory = self.cluster.inventory();
        let acts = self.collectors[node].look(Duration::from_secs(self.now), &inventory, &alive);
        self.queued.extend(acts);
    }

    fn living_keep_their_addresses(&self) {
        let inventory = self.cluster.inventory();
        for (&(node, container), addresses) in self.living.iter().chain(&self.starting) {
            for &address in addresses {
                let allocation = inventory.allocation_of(address);
                let owner = allocation.and_then(|allocation| allocation.attribute.handle_id);
                assert_eq!(owner, Some(handle(&name(node, container))), "{address}");
            }
        }
    }

    fn end_all_containers(&mut self) {
        for (node, container) in std::mem::take(&mut self.living).into_keys() {
            self.cluster.del(NODES[node], &name(node, container));
        }
    }

    /// Everybody finishes or gives up, and the collectors have time.
    fn quiet_down(&mut self) {
        let starting: Vec<(usize, usize)> = self.starting.keys().copied().collect();
        for (node, container) in starting {
            self.finish(node, container);
        }
        for _ in 0..4 {
            for node in [0, 1] {
                self.look(node, IDLE);
                for act in std::mem::take(&mut self.queued) {
                    try_to_carry_out(&self.cluster, &act);
                }
            }
        }
        self.living_keep_their_addresses();
    }
}

fn name(node: usize, container: usize) -> String {
    format!("c{node}{container}")
}

fn config(node: &str) -> CollectorConfig {
    CollectorConfig {
        node: node.to_owned(),
        grace: Duration::from_secs(GRACE),
        block_idle: Duration::from_secs(IDLE),
        max_acts: 64,
    }
}

fn collector(node: &str) -> Collector {
    Collector::new(config(node))
}

/// What is decided when nothing is known of the node but the datastore.
fn look(collector: &mut Collector, now: u64, cluster: &Cluster) -> Vec<Act> {
    collector.look(Duration::from_secs(now), &cluster.inventory(), &Alive::default())
}

fn carry_out(cluster: &Cluster, acts: &[Act]) {
    for act in acts {
        match act {
            Act::Release { request, .. } => {
                let released = now_or_never(cluster.ipam.release(request, at(0))).unwrap();
                assert_eq!(released.addresses.len(), request.only.len());
            }
            Act::Repair { request, .. } => {
                now_or_never(cluster.ipam.repair(request)).unwrap();
            }
        }
    }
}

/// Carries out what may be out of date: then it is refused, and that is right.
fn try_to_carry_out(cluster: &Cluster, act: &Act) {
    match act {
        Act::Release { request, .. } => {
            let _ = now_or_never(cluster.ipam.release(request, at(0)));
        }
        Act::Repair { request, .. } => {
            let _ = now_or_never(cluster.ipam.repair(request));
        }
    }
}

fn addresses_of(cluster: &Cluster, handle_id: &str) -> Vec<Allocation> {
    now_or_never(cluster.ipam.addresses_of_handle(handle_id)).unwrap()
}

/// Changes every attribute of every block.
fn edit_attributes(cluster: &Cluster, change: impl Fn(&mut Value)) {
    for (key, value) in cluster.dump() {
        if keys::parse_block(&key).is_some() {
            let mut block: Value = serde_json::from_slice(&value).unwrap();
            block["attributes"]
                .as_array_mut()
                .unwrap()
                .iter_mut()
                .for_each(&change);
            cluster.set(&key, Some(block.to_string().into_bytes()));
        }
    }
}

/// `inventory` at the present revision: only then can the two be compared.
fn cluster_without(inventory: &calidris_ipam::Inventory, cluster: &Cluster) -> calidris_ipam::Inventory {
    let now = cluster.inventory();
    calidris_ipam::Inventory {
        revision: now.revision,
        endpoints: now.endpoints,
        ..inventory.clone()
    }
}
