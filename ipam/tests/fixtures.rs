//! The states that a real Calico left in etcd: every value survives parse and print, and doing what was done before a
//! state gives that state. Times, UIDs, the start of sequence numbers and which free block a claim picks aside.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;

use calidris_ipam::{
    AddressRequest, Affinity, AllocationBlock, AssignError, AssignRefusal, AssignRequest, ClusterInformation,
    Handle, IpPool, IpReservation, Ipam, IpamConfig, MemoryStore, Node, ReleaseError, ReleaseRefusal,
    ReleaseRequest, Resource, UnixNanos, keys,
};
use ipnetwork::IpNetwork;
use serde_json::Value;
use support::{at, dump, invariants, now_or_never, state, store_in_state};

#[test]
fn every_value_of_every_state_survives_parse_and_print_unchanged() {
    let mut checked = BTreeMap::new();
    for number in 1..=11 {
        for (key, value) in state(number) {
            let bytes = value.as_bytes();
            let (kind, printed) = if keys::parse_block(&key).is_some() {
                ("block", AllocationBlock::parse(&key, bytes).unwrap().to_json())
            } else if keys::parse_affinity(&key).is_some() {
                ("affinity", Affinity::parse(&key, bytes).unwrap().to_json())
            } else if key.starts_with(keys::HANDLES) {
                ("handle", Handle::parse(&key, bytes).unwrap().to_json())
            } else if key == keys::IPAM_CONFIG {
                ("config", IpamConfig::parse(&key, bytes).unwrap().to_json())
            } else if key.starts_with(keys::IP_POOLS) {
                ("pool", IpPool::parse(&key, "IPPool", bytes).unwrap().to_json())
            } else if key.starts_with(keys::IP_RESERVATIONS) {
                (
                    "reservation",
                    IpReservation::parse(&key, "IPReservation", bytes)
                        .unwrap()
                        .to_json(),
                )
            } else if key == keys::CLUSTER_INFORMATION {
                (
                    "cluster",
                    ClusterInformation::parse(&key, "ClusterInformation", bytes)
                        .unwrap()
                        .to_json(),
                )
            } else if key.starts_with(keys::NODES) {
                ("node", Node::parse(&key, "Node", bytes).unwrap().to_json())
            } else if key.starts_with(keys::RESOURCES) {
                (
                    "resource",
                    Resource::<Value>::parse(&key, "resource", bytes)
                        .unwrap()
                        .to_json(),
                )
            } else {
                panic!("state {number} has a key of no known kind: {key}");
            };
            assert_eq!(
                String::from_utf8(printed).unwrap(),
                value,
                "state {number}, {key}"
            );
            *checked.entry(kind).or_insert(0) += 1;
        }
    }
    // If a kind were never met, its branch would prove nothing.
    assert_eq!(checked.len(), 9, "{checked:?}");
}

#[test]
fn unknown_fields_are_kept_when_a_block_is_written() {
    let key = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-30";
    let text = r#"{"cidr":"10.0.0.0/30","affinity":null,"allocations":[0,null,null,null],"unallocated":[1,2,3],"attributes":[{"handle_id":"a","secondary":{"node":"n"},"releasedAt":"x","big":18446744073709551615}],"sequenceNumber":18446744073709551615,"sequenceNumberForAllocation":{"0":9007199254740993},"deleted":false,"zeta":[1,{"b":2,"a":1}],"alpha":1}"#;
    let block = AllocationBlock::parse(key, text.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(block.to_json()).unwrap(), text);
}

#[test]
fn states_of_calico_keep_our_invariants() {
    for number in 1..=11 {
        assert_eq!(
            invariants::violations(&store_in_state(number).dump()),
            Vec::<String>::new(),
            "state {number}"
        );
    }
}

#[test]
fn replay_01_to_02_first_add() {
    let replay = Replay::from_state(1);
    replay.add("node-a", "c0ffee01", dual());
    replay.gives_state(2);
}

#[test]
fn replay_02_to_03_several_nodes() {
    let replay = Replay::from_state(2);
    for container in ["c0ffee02", "c0ffee03", "c0ffee04"] {
        replay.add("node-a", container, v4());
    }
    replay.add("node-a", "c0ffee05", exactly("10.244.0.9"));
    // Reserved, but reservations bind automatic assignment only.
    replay.add("node-a", "c0ffee06", exactly("10.244.0.1"));
    replay.add("node-b", "c0ffee07", dual());
    replay.add("node-c.example.com", "c0ffee08", v4());
    replay.add("node-a", "c0ffee09", |request| {
        v4()(request);
        request.pools = vec!["vxlan-manual".to_owned()];
    });
    let unknown = replay.try_add("node-a", "c0ffee0a", |request| {
        v4()(request);
        request.pools = vec!["10.99.0.0/16".to_owned()];
    });
    let message = unknown.unwrap_err().to_string();
    assert_eq!(
        message,
        "the given pool (10.99.0.0/16) does not exist, or is not enabled"
    );
    replay.gives_state(3);
}

#[test]
fn replay_03_to_04_two_deletes_one_twice_and_one_of_a_stranger() {
    let replay = Replay::from_state(3);
    assert_eq!(replay.del("c0ffee02"), 1);
    assert_eq!(replay.del("c0ffee04"), 1);
    assert_eq!(replay.del("c0ffee02"), 0);
    assert_eq!(replay.del("never-seen"), 0);
    replay.gives_state(4);
}

#[test]
fn replay_04_to_05_borrowed_from_another_node() {
    let replay = Replay::from_state(4);
    let tiny = (
        format!("{}tiny", keys::IP_POOLS),
        state(5)[&format!("{}tiny", keys::IP_POOLS)].clone(),
    );
    let replay = Replay {
        ipam: Ipam::new(with(replay.ipam.store(), tiny)),
        ..replay
    };
    let from_tiny = |request: &mut AssignRequest| {
        v4()(request);
        request.pools = vec!["tiny".to_owned()];
    };
    replay.add("node-b", "7ea00000", from_tiny);
    for container in 1..=10 {
        replay.add("node-a", &format!("7ea0000{container:x}"), from_tiny);
    }
    replay.gives_state(5);
}

#[test]
fn state_06_strict_affinity_refuses_to_borrow() {
    let replay = Replay::from_state(6);
    let before = dump(replay.ipam.store());
    let error = replay.try_add("node-a", "7ea0000b", |request| {
        v4()(request);
        request.pools = vec!["tiny".to_owned()];
    });
    let message = error.unwrap_err().to_string();
    assert!(
        message.contains("pool tiny: all 2 blocks are taken, and strict affinity forbids borrowing"),
        "{message}"
    );
    assert_eq!(dump(replay.ipam.store()), before);
}

#[test]
fn replay_06_to_07_released_oldest_first() {
    let replay = Replay::from_state(6);
    for container in 2..=8 {
        assert_eq!(replay.del(&format!("7ea0000{container}")), 1);
    }
    replay.gives_state(7);
}

#[test]
fn replay_07_to_08_release_of_one_address() {
    let replay = Replay::from_state(7);
    assert_eq!(replay.del("c0ffee06"), 1);
    replay.gives_state(8);
}

#[test]
fn state_10_locked_refuses_everything() {
    let replay = Replay::from_state(10);
    let before = dump(replay.ipam.store());
    let add = replay.try_add("node-a", "c0ffee10", v4()).unwrap_err();
    assert_eq!(add, AssignError::Refused(AssignRefusal::DatastoreLocked));
    assert!(
        add.to_string()
            .contains("Calico is currently not ready to process requests"),
        "{add}"
    );
    let release = ReleaseRequest {
        handle_id: "k8s-pod-network.c0ffee01".to_owned(),
        ..ReleaseRequest::default()
    };
    let del = now_or_never(replay.ipam.release(&release, at(0))).unwrap_err();
    assert_eq!(del, ReleaseError::Refused(ReleaseRefusal::DatastoreLocked));
    assert_eq!(dump(replay.ipam.store()), before);
}

/// Between states 10 and 11 other containers came and went as well, of which nothing is left but the order of a queue. So
/// this begins with state 11 without its three pods.
#[test]
fn replay_to_11_three_pods_of_a_real_kubelet() {
    const WEB_1: &str = "cb7d031eb0bab8ebd35a243149f1b0c7cebabd59ac2da8f5f87f2c276efb11a9";
    const WEB_2: &str = "df4637ed309dc4803ec1a35cdf433ea2eec821456f84ccf538489da2320dcb5f";
    const WEB_3: &str = "37434c926889771b7421dbadaf74850e8abf04b5962bd6f1a1f961f2095677fc";
    let mut before = state(11);
    before.retain(|key, _| {
        let of_pods = [WEB_1, WEB_2, WEB_3, "10.244.3.0-26", "10.60.11.160-28"];
        !of_pods.iter().any(|part| key.contains(part))
    });
    forget(&mut before, "10.244.0.0/26", &[11]);
    forget(&mut before, "fd00:10:244:6d15:74ba:80e:4835:8080/122", &[1, 2]);
    let pairs = before.into_iter().map(|(key, value)| (key, value.into_bytes()));
    let replay = Replay {
        ipam: Ipam::new(MemoryStore::with(pairs)),
        clock: std::cell::Cell::new(0),
    };
    let pod = |request: &mut AssignRequest, name: &str| {
        request.namespace = Some("shop".to_owned());
        request.attributes = BTreeMap::from([
            ("pod".to_owned(), name.to_owned()),
            ("namespace".to_owned(), "shop".to_owned()),
        ]);
    };
    replay.add("node-a", WEB_1, |request| {
        dual()(request);
        pod(request, "web-1");
    });
    replay.add("node-a", WEB_2, |request| {
        exactly("10.244.3.7")(request);
        pod(request, "web-2");
    });
    replay.add("node-a", WEB_3, |request| {
        dual()(request);
        pod(request, "web-3");
        request.pools = vec!["10.60.0.0/20".to_owned()];
    });
    replay.gives_state(11);
}

/// Makes it as if the allocations at `ordinals` of a block, the last that were made in it, had not been made.
fn forget(state: &mut BTreeMap<String, String>, cidr: &str, ordinals: &[usize]) {
    let key = keys::block(cidr.parse().unwrap());
    let mut block: Value = serde_json::from_str(&state[&key]).unwrap();
    for &ordinal in ordinals.iter().rev() {
        block["allocations"][ordinal] = Value::Null;
        block["unallocated"]
            .as_array_mut()
            .unwrap()
            .insert(0, ordinal.into());
        block["attributes"].as_array_mut().unwrap().pop();
        let numbers = block["sequenceNumberForAllocation"].as_object_mut().unwrap();
        block["sequenceNumber"] = numbers.remove(&ordinal.to_string()).unwrap();
    }
    state.insert(key, block.to_string());
}

/// A request for one IPv4 address.
fn v4() -> impl FnOnce(&mut AssignRequest) {
    |request| request.v4 = AddressRequest::Count(1)
}

/// A request for one address of each family.
fn dual() -> impl FnOnce(&mut AssignRequest) {
    |request| {
        request.v4 = AddressRequest::Count(1);
        request.v6 = AddressRequest::Count(1);
    }
}

/// A request for one IPv4 address by name.
fn exactly(address: &str) -> impl FnOnce(&mut AssignRequest) + use<> {
    let address: IpAddr = address.parse().unwrap();
    move |request| request.v4 = AddressRequest::Exactly(vec![address])
}

/// The same store with one key more.
fn with(store: &MemoryStore, (key, value): (String, String)) -> MemoryStore {
    MemoryStore::with(store.dump().into_iter().chain([(key, value.into_bytes())]))
}

struct Replay {
    ipam: Ipam<MemoryStore>,
    clock: std::cell::Cell<i64>,
}

impl Replay {
    fn from_state(number: usize) -> Self {
        Self {
            ipam: Ipam::new(store_in_state(number)),
            clock: std::cell::Cell::new(0),
        }
    }

    fn add(&self, node: &str, container: &str, ask: impl FnOnce(&mut AssignRequest)) {
        self.try_add(node, container, ask)
            .unwrap_or_else(|error| panic!("{container}: {error}"));
    }

    fn try_add(
        &self,
        node: &str,
        container: &str,
        ask: impl FnOnce(&mut AssignRequest),
    ) -> Result<(), AssignError> {
        let mut request = AssignRequest::new(&format!("k8s-pod-network.{container}"), node);
        ask(&mut request);
        self.clock.set(self.clock.get() + 1);
        let result = now_or_never(self.ipam.assign(&request, at(7200 + self.clock.get())));
        assert_eq!(
            invariants::violations(&self.ipam.store().dump()),
            Vec::<String>::new()
        );
        result.map(|_| ())
    }

    fn del(&self, container: &str) -> usize {
        let handle_id = format!("k8s-pod-network.{container}");
        let request = ReleaseRequest {
            handle_id,
            ..ReleaseRequest::default()
        };
        now_or_never(self.ipam.release(&request, at(0)))
            .unwrap()
            .addresses
            .len()
    }

    /// Everything of IPAM is as in state `number`, after renaming the blocks that were claimed freely.
    fn gives_state(&self, number: usize) {
        let ours = normal_form(&dump(self.ipam.store()));
        let theirs = normal_form(&state(number));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (key, value) in &theirs {
            assert_eq!(&ours[key], value, "{key}");
        }
    }
}

/// The IPAM keys, with times and the start of sequence numbers left out and automatically claimed blocks named after
/// the first handle in them.
fn normal_form(kvs: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut names: Vec<(String, String)> = Vec::new();
    for (key, value) in kvs {
        let Some(cidr) = keys::parse_block(key) else {
            continue;
        };
        let block = AllocationBlock::parse(key, value.as_bytes()).unwrap();
        let first = block
            .allocations()
            .next()
            .and_then(|a| a.attribute.handle_id)
            .unwrap_or_default();
        let name = format!(
            "BLOCK-{}-{first}-{}",
            if cidr.is_ipv4() { 4 } else { 6 },
            cidr.prefix()
        );
        names.push((cidr.to_string(), name.clone()));
        names.push((format!("{}-{}", cidr.ip(), cidr.prefix()), name));
    }
    // Longer texts first: a CIDR may be the end of another.
    names.sort_by_key(|(cidr, _)| std::cmp::Reverse(cidr.len()));
    let rename = |text: &str| {
        names.iter().fold(text.to_owned(), |text, (cidr, name)| {
            text.replace(cidr.as_str(), name.as_str())
        })
    };
    let ipam = kvs.iter().filter(|(key, _)| key.starts_with("/calico/ipam/"));
    ipam.map(|(key, value)| (rename(key), rename(&without_times(value))))
        .collect()
}

/// A value with its times replaced and its sequence numbers counted from the number of the claim.
fn without_times(value: &str) -> String {
    let mut json: Value = serde_json::from_str(value).unwrap();
    if let Some(time) = json.get_mut("affinity_claim_time") {
        assert!(
            UnixNanos::parse_rfc3339(time.as_str().unwrap()).is_some(),
            "{time}"
        );
        *time = "T".into();
    }
    for attribute in json
        .get_mut("attributes")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let time = &mut attribute["secondary"]["timestamp"];
        assert!(time.as_str().unwrap().ends_with(" +0000 UTC"), "{time}");
        *time = "T".into();
    }
    if let Some(number) = json.get("sequenceNumber").and_then(Value::as_u64) {
        // Deltas to the present number do not depend on where it began.
        json["sequenceNumber"] = "S".into();
        for (_, allocated) in json["sequenceNumberForAllocation"].as_object_mut().unwrap() {
            *allocated = (number - allocated.as_u64().unwrap()).into();
        }
    }
    json.to_string()
}

#[test]
fn a_reserved_address_is_not_assigned_automatically() {
    let replay = Replay::from_state(3);
    // The node's lowest block is 10.244.0.0/26, of which 10.244.0.0 is first in the queue, but reserved as is all of /30.
    replay.add("node-a", "reserved", v4());
    let given = now_or_never(replay.ipam.addresses_of_handle("k8s-pod-network.reserved")).unwrap();
    assert_eq!(given[0].address, "10.244.0.4".parse::<IpAddr>().unwrap());
    assert_eq!(given[0].block, "10.244.0.0/26".parse::<IpNetwork>().unwrap());
}
