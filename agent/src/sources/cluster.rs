//! The other nodes and their blocks, watched while they are needed ([`Model::needs_cluster`](crate::model::Model::needs_cluster)).
//!
//! Invariants: as of `datastore.rs`. A block's change is passed on only when an address changes hands: of what goes on inside a
//! node the others hear nothing. Without need nothing is watched.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use calidris_ipam::{AllocationBlock, Change, Ipam, KeyValue, WatchEvent, keys};
use ipnetwork::IpNetwork;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::datastore::node;
use crate::datastore::store::AnyStore;
use crate::inbox::Message;
use crate::model::{Cluster, ClusterBlock, Input};

/// Name of the note in an allocation that says which node uses the address (Calico's `AttributeNode`).
const NODE_ATTRIBUTE: &str = "node";

/// Watches while `is_needed` says so, until the node's thread is gone. `None`: not known yet.
pub async fn run(
    ipam: Arc<Ipam<AnyStore>>,
    mut is_needed: watch::Receiver<Option<bool>>,
    inbox: mpsc::Sender<Message>,
) {
    loop {
        let needed = *is_needed.borrow_and_update();
        let result = match needed {
            Some(true) => {
                tokio::select! {
                    () = follow(&ipam, &inbox) => return,
                    changed = is_needed.changed() => changed,
                }
            }
            Some(false) => {
                if inbox.send(Message::Input(Input::Cluster(None))).await.is_err() {
                    return;
                }
                is_needed.changed().await
            }
            None => is_needed.changed().await,
        };
        if result.is_err() {
            return;
        }
    }
}

/// Returns when the node's thread is gone.
async fn follow(ipam: &Ipam<AnyStore>, inbox: &mpsc::Sender<Message>) {
    let mut view = View::default();
    let prefixes = vec![keys::NODES.to_owned(), keys::BLOCKS.to_owned()];
    let Some(mut watch) = ipam.store().watch(prefixes) else {
        return;
    };
    while let Some(event) = watch.next().await {
        let inputs = match event {
            WatchEvent::Snapshot(snapshot) => {
                let cluster = view.snapshot(&snapshot.kvs);
                info!(
                    nodes = cluster.nodes.len(),
                    blocks = cluster.blocks.len(),
                    "the other nodes are known"
                );
                vec![Input::Cluster(Some(cluster))]
            }
            WatchEvent::Changes(changes) => changes.iter().filter_map(|change| view.change(change)).collect(),
            // `datastore.rs` says it.
            WatchEvent::Disconnected { .. } | WatchEvent::Resynced => Vec::new(),
        };
        for input in inputs {
            if inbox.send(Message::Input(input)).await.is_err() {
                return;
            }
        }
    }
}

/// The last good value of every key, in the model's terms.
#[derive(Default)]
struct View {
    cluster: Cluster,
}

impl View {
    /// Everything there is. Of what does not parse the last good value stays.
    fn snapshot(&mut self, kvs: &[KeyValue]) -> Cluster {
        let before = std::mem::take(&mut self.cluster);
        for kv in kvs {
            if self.put(kv).is_none() {
                self.keep(&kv.key, &before);
            }
        }
        self.cluster.clone()
    }

    fn keep(&mut self, key: &str, before: &Cluster) {
        if let Some(name) = key.strip_prefix(keys::NODES) {
            if let Some(node) = before.nodes.get(name) {
                self.cluster.nodes.insert(name.to_owned(), node.clone());
            }
        } else if let Some((cidr, block)) =
            keys::parse_block(key).and_then(|cidr| before.blocks.get_key_value(&cidr))
        {
            self.cluster.blocks.insert(*cidr, block.clone());
        }
    }

    /// What is new, if anything that matters to us is.
    fn change(&mut self, change: &Change) -> Option<Input> {
        match change {
            Change::Put(kv) => self.put(kv).flatten(),
            Change::Delete { key, .. } => self.delete(key),
        }
    }

    /// `None`: the value does not parse. `Some(None)`: nothing is new.
    fn put(&mut self, kv: &KeyValue) -> Option<Option<Input>> {
        let result = if let Some(name) = kv.key.strip_prefix(keys::NODES) {
            node::parse(&kv.value).map(|facts| {
                let before = self.cluster.nodes.insert(name.to_owned(), facts.clone());
                (before.as_ref() != Some(&facts)).then(|| Input::ClusterNode(name.to_owned(), Some(facts)))
            })
        } else if let Some(cidr) = keys::parse_block(&kv.key) {
            AllocationBlock::parse(&kv.key, &kv.value)
                .map_err(|error| error.to_string())
                .map(|block| {
                    let facts = facts_of(&block);
                    let before = self.cluster.blocks.insert(cidr, facts.clone());
                    (before.as_ref() != Some(&facts)).then_some(Input::ClusterBlock(cidr, Some(facts)))
                })
        } else {
            Err("the key is that of no node and no block".to_owned())
        };
        result
            .inspect_err(|why| {
                warn!(key = %kv.key, %why, "a value in the datastore is not what it should be; keeping the last good one");
            })
            .ok()
    }

    fn delete(&mut self, key: &str) -> Option<Input> {
        if let Some(name) = key.strip_prefix(keys::NODES) {
            self.cluster.nodes.remove(name)?;
            Some(Input::ClusterNode(name.to_owned(), None))
        } else {
            let cidr: IpNetwork = keys::parse_block(key)?;
            self.cluster.blocks.remove(&cidr)?;
            Some(Input::ClusterBlock(cidr, None))
        }
    }
}

fn facts_of(block: &AllocationBlock) -> ClusterBlock {
    let owner = block.host().map(str::to_owned);
    let borrowed: BTreeMap<IpAddr, String> = block
        .allocations()
        .filter_map(|allocation| {
            let user = allocation.attribute.secondary.get(NODE_ATTRIBUTE)?;
            (Some(user) != owner.as_ref()).then(|| (allocation.address, user.clone()))
        })
        .collect();
    ClusterBlock { owner, borrowed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calidris_ipam::{AllocationAttribute, UnixNanos};

    fn block(owner: &str, users: &[(&str, &str)]) -> KeyValue {
        let cidr = "10.244.1.0/26".parse().unwrap();
        let mut block = AllocationBlock::claim(cidr, owner, UnixNanos(1));
        for (address, node) in users {
            let attribute = AllocationAttribute {
                handle_id: Some(format!("h-{address}")),
                secondary: [(NODE_ATTRIBUTE.to_owned(), (*node).to_owned())].into(),
                extra: serde_json::Map::new(),
            };
            block = block.assign(&[address.parse().unwrap()], &attribute).unwrap();
        }
        KeyValue {
            key: keys::block(cidr),
            value: block.to_json(),
            mod_revision: 1,
        }
    }

    #[test]
    fn what_goes_on_inside_a_node_is_not_passed_on_and_what_changes_hands_is() {
        let mut view = View::default();
        view.snapshot(&[block("b", &[])]);
        assert_eq!(
            view.change(&Change::Put(block("b", &[("10.244.1.1", "b")]))),
            None
        );
        let borrowed = view.change(&Change::Put(block(
            "b",
            &[("10.244.1.1", "b"), ("10.244.1.2", "c")],
        )));
        let expected = ClusterBlock {
            owner: Some("b".to_owned()),
            borrowed: [("10.244.1.2".parse().unwrap(), "c".to_owned())].into(),
        };
        assert_eq!(
            borrowed,
            Some(Input::ClusterBlock(
                "10.244.1.0/26".parse().unwrap(),
                Some(expected)
            ))
        );
        let key = block("b", &[]).key;
        let gone = view.change(&Change::Delete { key, mod_revision: 3 });
        assert_eq!(
            gone,
            Some(Input::ClusterBlock("10.244.1.0/26".parse().unwrap(), None))
        );
    }

    #[test]
    fn of_what_does_not_parse_the_last_good_value_stays() {
        let mut view = View::default();
        let good = block("b", &[]);
        let node = |value: &str| KeyValue {
            key: format!("{}b", keys::NODES),
            value: value.into(),
            mod_revision: 1,
        };
        let before = view.snapshot(&[
            good.clone(),
            node(r#"{"spec":{"bgp":{"ipv4Address":"192.0.2.2/24"}}}"#),
        ]);
        assert_eq!(before.nodes.len(), 1);
        let torn = KeyValue {
            value: b"{".to_vec(),
            ..good
        };
        assert_eq!(view.change(&Change::Put(torn.clone())), None);
        assert_eq!(
            view.snapshot(&[torn, node(r#"{"spec":{"bgp":{"ipv4Address":"x"}}}"#)]),
            before
        );
        assert_eq!(view.snapshot(&[]), Cluster::default());
    }
}
