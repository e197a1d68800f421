//! Endpoints of this node, watched while a BGPPeer is about workloads.
//!
//! Invariants: as of `datastore.rs`. Without such a BGPPeer nothing is watched, and there are none.

use std::collections::BTreeSet;
use std::sync::Arc;

use calidris_ipam::{Change, Ipam, KeyValue, WatchEvent};
use tokio::sync::watch;
use tracing::warn;

use crate::datastore::store::AnyStore;
use crate::datastore::{peering, workload_endpoint};
use crate::model::peering::{Peering, PeeringWorkloads};

/// Watches endpoints of `node` while `peering` needs them, until nobody listens.
pub async fn run(
    ipam: Arc<Ipam<AnyStore>>,
    node: String,
    mut peering: watch::Receiver<Option<Peering>>,
    told: watch::Sender<PeeringWorkloads>,
) {
    let is_needed = |peering: &Option<Peering>| peering.as_ref().is_some_and(Peering::selects_workloads);
    while peering.wait_for(is_needed).await.is_ok() {
        let gone = tokio::select! {
            () = follow(&ipam, &node, &told) => return,
            gone = peering.wait_for(|peering| !is_needed(peering)) => gone.is_err(),
        };
        told.send_replace(PeeringWorkloads::new());
        if gone {
            return;
        }
    }
}

/// Returns when nobody listens.
async fn follow(ipam: &Ipam<AnyStore>, node: &str, told: &watch::Sender<PeeringWorkloads>) {
    let Some(mut watch) = ipam.store().watch(vec![workload_endpoint::prefix()]) else {
        return;
    };
    while let Some(event) = watch.next().await {
        match event {
            WatchEvent::Snapshot(snapshot) => {
                let present: BTreeSet<&str> = snapshot.kvs.iter().map(|kv| kv.key.as_str()).collect();
                told.send_modify(|workloads| {
                    workloads.retain(|key, _| present.contains(key.as_str()));
                    for kv in &snapshot.kvs {
                        put(workloads, node, kv);
                    }
                });
            }
            WatchEvent::Changes(changes) => {
                told.send_if_modified(|workloads| {
                    let mut is_new = false;
                    for change in &changes {
                        is_new |= take(workloads, node, change);
                    }
                    is_new
                });
            }
            // `datastore.rs` says it.
            WatchEvent::Disconnected { .. } | WatchEvent::Resynced => {}
        }
        if told.is_closed() {
            return;
        }
    }
}

/// Whether something is new.
fn take(workloads: &mut PeeringWorkloads, node: &str, change: &Change) -> bool {
    match change {
        Change::Put(kv) => put(workloads, node, kv),
        Change::Delete { key, .. } => workloads.remove(key).is_some(),
    }
}

/// Whether something is new.
fn put(workloads: &mut PeeringWorkloads, node: &str, kv: &KeyValue) -> bool {
    if !workload_endpoint::may_be_on(node, &kv.key) {
        return false;
    }
    match peering::workload(node, &kv.key, &kv.value) {
        Ok(Some(workload)) => workloads.insert(kv.key.clone(), workload.clone()).as_ref() != Some(&workload),
        Ok(None) => workloads.remove(&kv.key).is_some(),
        Err(why) => {
            warn!(key = %kv.key, %why, "an endpoint is not what it should be; as a BGP peer it stays what it was");
            false
        }
    }
}
