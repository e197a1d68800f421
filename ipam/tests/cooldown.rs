//! The cool-down: a released address rests before somebody else gets it by itself, wherever the release was made.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use calidris_ipam::{
    AddressRequest, AllocationBlock, AssignError, AssignRequest, Ipam, MemoryStore, ReleaseRequest, keys,
};
use serde_json::{Value, json};
use support::{at, invariants, now_or_never};

#[test]
fn a_released_address_rests_and_is_given_again_when_the_rest_is_over() {
    let node = Node::new(60);
    let [first, second] = [node.assign("a", 0), node.assign("b", 0)].map(Result::unwrap);
    node.release("a", 10);
    let error = node.assign("c", 69).unwrap_err();
    assert!(error.to_string().contains("all 1 blocks are taken"), "{error}");
    assert_eq!(node.assign("c", 70).unwrap(), first);
    node.release("b", 100);
    node.release("c", 101);
    // The one that has rested longer first.
    assert_eq!(node.assign("d", 300).unwrap(), second);
}

#[test]
fn a_rest_survives_the_process_that_released_and_leaves_no_handle() {
    let node = Node::new(60);
    let address = node.assign("a", 0).unwrap();
    node.release("a", 10);
    let stored = node.ipam.store().dump();
    assert!(stored.keys().all(|key| !key.starts_with(keys::HANDLES)));
    let block: Value = serde_json::from_slice(&stored[BLOCK]).unwrap();
    let attributes = json!([{"handle_id": null, "secondary": {}, "releasedAt": "2026-11-21T01:00:10Z"}]);
    assert_eq!(block["attributes"], attributes);
    assert_eq!(block["sequenceNumberForAllocation"], json!({}));
    let restarted = Node {
        ipam: Ipam::new(MemoryStore::with(stored)),
    };
    assert_ne!(restarted.assign("b", 20).unwrap(), address);
    assert!(restarted.assign("c", 20).is_err());
    assert_eq!(restarted.assign("c", 70).unwrap(), address);
}

#[test]
fn a_workload_that_names_its_address_has_it_back_at_once() {
    let node = Node::new(60);
    let address = node.assign("a", 0).unwrap();
    node.release("a", 10);
    let mut request = AssignRequest::new("net.a2", "n");
    request.v4 = AddressRequest::Exactly(vec![address.parse().unwrap()]);
    let given = now_or_never(node.ipam.assign(&request, at(11))).unwrap();
    assert_eq!(given.addresses[0].address.to_string(), address);
    assert_eq!(node.block().allocated_attributes().count(), 1);
    node.check();
}

#[test]
fn a_rest_with_a_time_that_cannot_be_right_does_not_last_for_ever() {
    for released_at in [json!("soon"), json!(7), json!("2099-01-01T00:00:00Z")] {
        let node = Node::new(60);
        let address = node.assign("a", 0).unwrap();
        node.release("a", 10);
        let mut stored = node.ipam.store().dump();
        let mut block: Value = serde_json::from_slice(&stored[BLOCK]).unwrap();
        block["attributes"][0]["releasedAt"] = released_at.clone();
        stored.insert(BLOCK.to_owned(), block.to_string().into_bytes());
        let node = Node {
            ipam: Ipam::new(MemoryStore::with(stored)),
        };
        node.assign("b", 11).unwrap();
        assert_eq!(node.assign("c", 11).unwrap(), address, "{released_at}");
    }
}

#[test]
fn without_a_cool_down_nothing_rests_and_what_rested_is_free() {
    let node = Node::new(0);
    let address = node.assign("a", 0).unwrap();
    node.release("a", 10);
    assert!(node.block().is_empty());
    node.assign("b", 10).unwrap();
    assert_eq!(node.assign("c", 10).unwrap(), address);
}

/// The only block.
const BLOCK: &str = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-31";

/// A node with two addresses.
struct Node {
    ipam: Ipam<MemoryStore>,
}

impl Node {
    fn new(cooldown_seconds: u32) -> Self {
        let pool = json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "p"},
            "spec": {"cidr": "10.0.0.0/31", "blockSize": 31}});
        let node = json!({"kind": "Node", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "n"}, "spec": {}});
        let config = json!({"auto_allocate_blocks": true, "ipCooldownSeconds": cooldown_seconds});
        let pairs = [
            (format!("{}p", keys::IP_POOLS), pool),
            (keys::resource("nodes", "n"), node),
            (keys::IPAM_CONFIG.to_owned(), config),
        ];
        let pairs = pairs.map(|(key, value)| (key, value.to_string().into_bytes()));
        Self {
            ipam: Ipam::new(MemoryStore::with(pairs)),
        }
    }

    fn assign(&self, pod: &str, seconds: i64) -> Result<String, AssignError> {
        let mut request = AssignRequest::new(&format!("net.{pod}"), "n");
        request.v4 = AddressRequest::Count(1);
        let assigned = now_or_never(self.ipam.assign(&request, at(seconds)))?;
        self.check();
        Ok(assigned.addresses[0].address.to_string())
    }

    fn release(&self, pod: &str, seconds: i64) {
        let request = ReleaseRequest {
            handle_id: format!("net.{pod}"),
            ..ReleaseRequest::default()
        };
        let released = now_or_never(self.ipam.release(&request, at(seconds))).unwrap();
        assert_eq!(released.addresses.len(), 1);
        self.check();
    }

    fn block(&self) -> AllocationBlock {
        AllocationBlock::parse(BLOCK, &self.ipam.store().dump()[BLOCK]).unwrap()
    }

    fn check(&self) {
        assert_eq!(
            invariants::violations(&self.ipam.store().dump()),
            Vec::<String>::new()
        );
    }
}
