//! Every state that clients with one workload each can bring a small pool into.
//!
//! Two states that differ only in which of the clients is which are one: all of them look at the blocks of the pool in the
//! same order, so that nothing tells one from another.

use std::collections::{BTreeMap, BTreeSet};

use calidris_ipam::{Ipam, keys};
use serde_json::{Value, json};

use crate::request::{Setup, assign, whole};
use crate::support::{at, now_or_never};

type Kvs = BTreeMap<String, Vec<u8>>;

/// Nodes that begin their search with the same block of the pool of [`Setup::new`]`(30)`.
pub(crate) fn like_minded_nodes(count: usize) -> Vec<String> {
    let first_block = |node: &str| {
        let store = Setup::new(30).assigned(&[(node, "w", 1)]).kvs;
        store
            .into_keys()
            .find(|key| keys::parse_block(key).is_some())
            .unwrap()
    };
    let wanted = first_block("n0");
    let names = (0..).map(|number| format!("n{number}"));
    names
        .filter(|name| first_block(name) == wanted)
        .take(count)
        .collect()
}

/// The workload of a node.
pub(crate) fn workload(node: &str) -> String {
    format!("w-{node}")
}

/// Whether claims that Calico's plugin has begun, with a pending affinity, and left so are part of a state.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum HalfClaims {
    None,
    OneForEachNode,
}

/// All of them, beginning with the empty pool. A node assigns an address to its workload or releases that, as often as it
/// likes.
pub(crate) fn reachable(nodes: &[String], claims: HalfClaims) -> Vec<Setup> {
    let empty = Setup::new(30);
    let mut seen = BTreeSet::from([canonical(&empty.kvs, nodes)]);
    let mut found = vec![empty];
    let mut next = 0;
    while next < found.len() {
        for kvs in successors(&found[next], nodes, claims) {
            if seen.insert(canonical(&kvs, nodes)) {
                found.push(Setup {
                    kvs,
                    ..Setup::new(30)
                });
            }
        }
        next += 1;
    }
    found
}

fn successors(state: &Setup, nodes: &[String], claims: HalfClaims) -> Vec<Kvs> {
    let mut after = Vec::new();
    for node in nodes {
        let workload = workload(node);
        let store = state.store();
        let ipam = Ipam::new(&*store);
        if state.kvs.contains_key(&keys::handle(&workload)) {
            now_or_never(ipam.release(&whole(&workload), at(0))).unwrap();
        } else {
            // With all addresses given it is refused, and nothing changes.
            now_or_never(assign(node, &workload, 1).run_at(&ipam, 0));
        }
        after.push(store.dump());
        if claims == HalfClaims::OneForEachNode {
            after.extend(half_claims(&state.kvs, node));
        }
    }
    after
}

/// `state` with a claim of `node` begun, unless it has begun one.
fn half_claims(state: &Kvs, node: &str) -> Vec<Kvs> {
    let pending = json!({"state": "pending", "deleted": false})
        .to_string()
        .into_bytes();
    let prefix = format!("/calico/ipam/v2/host/{node}/");
    if state
        .iter()
        .any(|(key, value)| key.starts_with(&prefix) && *value == pending)
    {
        return Vec::new();
    }
    let blocks = ["10.0.0.0/31", "10.0.0.2/31"].map(|block| keys::affinity(node, block.parse().unwrap()));
    let free = blocks.into_iter().filter(|key| !state.contains_key(key));
    free.map(|key| {
        let mut after = state.clone();
        after.insert(key, pending.clone());
        after
    })
    .collect()
}

/// The same for all states that differ in names and numbers only.
fn canonical(state: &Kvs, nodes: &[String]) -> Vec<String> {
    let lines: Vec<String> = state.iter().map(|(key, value)| line(key, value)).collect();
    permutations(nodes.len())
        .into_iter()
        .map(|order| {
            let renamed = |line: &String| {
                let hidden = |line: String, (number, node): (usize, &String)| {
                    line.replace(node.as_str(), &format!("<{}>", order[number]))
                };
                nodes.iter().enumerate().fold(line.clone(), hidden)
            };
            let mut lines: Vec<String> = lines.iter().map(renamed).collect();
            lines.sort();
            lines
        })
        .min()
        .unwrap_or_default()
}

/// A key and its value without what counts changes.
fn line(key: &str, value: &[u8]) -> String {
    let mut value: Value = serde_json::from_slice(value).unwrap_or_default();
    if let Some(block) = value.as_object_mut() {
        block.retain(|field, _| !field.starts_with("sequenceNumber"));
    }
    format!("{key} {value}")
}

fn permutations(of: usize) -> Vec<Vec<usize>> {
    if of == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(of - 1);
    let with_last = |order: &Vec<usize>| -> Vec<Vec<usize>> {
        let at = |place| {
            let mut order = order.clone();
            order.insert(place, of - 1);
            order
        };
        (0..of).map(at).collect()
    };
    shorter.iter().flat_map(with_last).collect()
}
