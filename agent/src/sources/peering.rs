//! Calico's resources about BGP sessions, watched: BGPConfiguration, BGPPeer, BGPFilter, Node and IPPool.
//!
//! Invariants: as of `datastore.rs`. The whole is told once it has been read, then after every change that changes something.

pub mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use calidris_ipam::{Change, Ipam, KeyValue, WatchEvent, keys};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::datastore::peering;
use crate::datastore::store::AnyStore;
use crate::model::peering::Peering;

/// Watches until nobody listens. What is told is `None` until the datastore was read.
pub async fn run(ipam: Arc<Ipam<AnyStore>>, told: watch::Sender<Option<Peering>>) {
    let prefixes = [
        keys::BGP_CONFIGURATIONS,
        keys::BGP_PEERS,
        keys::BGP_FILTERS,
        keys::NODES,
        keys::IP_POOLS,
    ];
    let Some(mut watch) = ipam.store().watch(prefixes.map(str::to_owned).to_vec()) else {
        return;
    };
    let mut peering = Peering::default();
    while let Some(event) = watch.next().await {
        match event {
            WatchEvent::Snapshot(snapshot) => {
                take_snapshot(&mut peering, &snapshot.kvs);
                info!(
                    peers = peering.peers.len(),
                    nodes = peering.nodes.len(),
                    "BGP resources read"
                );
            }
            WatchEvent::Changes(changes) => changes
                .iter()
                .for_each(|change| take_change(&mut peering, change)),
            // `datastore.rs` says it.
            WatchEvent::Disconnected { .. } | WatchEvent::Resynced => continue,
        }
        told.send_if_modified(|before| {
            let is_new = before.as_ref() != Some(&peering);
            if is_new {
                *before = Some(peering.clone());
            }
            is_new
        });
        if told.is_closed() {
            return;
        }
    }
}

/// Everything there is. Of what does not parse the last good value stays.
fn take_snapshot(peering: &mut Peering, kvs: &[KeyValue]) {
    let present: BTreeSet<&str> = kvs.iter().map(|kv| kv.key.as_str()).collect();
    let Peering {
        configurations,
        peers,
        filters,
        nodes,
        pools,
    } = peering;
    keep(configurations, keys::BGP_CONFIGURATIONS, &present);
    keep(peers, keys::BGP_PEERS, &present);
    keep(filters, keys::BGP_FILTERS, &present);
    keep(nodes, keys::NODES, &present);
    keep(pools, keys::IP_POOLS, &present);
    for kv in kvs {
        put(peering, kv);
    }
}

fn keep<T>(values: &mut BTreeMap<String, T>, prefix: &str, present: &BTreeSet<&str>) {
    values.retain(|name, _| present.contains(format!("{prefix}{name}").as_str()));
}

fn take_change(peering: &mut Peering, change: &Change) {
    match change {
        Change::Put(kv) => put(peering, kv),
        Change::Delete { key, .. } => delete(peering, key),
    }
}

fn put(peering: &mut Peering, kv: &KeyValue) {
    let (key, value) = (kv.key.as_str(), kv.value.as_slice());
    let result = if let Some(name) = key.strip_prefix(keys::BGP_CONFIGURATIONS) {
        take(&mut peering.configurations, name, peering::configuration(value))
    } else if let Some(name) = key.strip_prefix(keys::BGP_PEERS) {
        take(&mut peering.peers, name, peering::peer(value))
    } else if let Some(name) = key.strip_prefix(keys::BGP_FILTERS) {
        take(&mut peering.filters, name, peering::filter(value))
    } else if let Some(name) = key.strip_prefix(keys::NODES) {
        take(&mut peering.nodes, name, peering::node(value))
    } else if let Some(name) = key.strip_prefix(keys::IP_POOLS) {
        take(&mut peering.pools, name, peering::pool(value))
    } else {
        Ok(())
    };
    if let Err(why) = result {
        warn!(key, %why, "a value in the datastore is not what it should be; keeping the last good one");
    }
}

fn take<T>(values: &mut BTreeMap<String, T>, name: &str, value: Result<T, String>) -> Result<(), String> {
    values.insert(name.to_owned(), value?);
    Ok(())
}

fn delete(peering: &mut Peering, key: &str) {
    if let Some(name) = key.strip_prefix(keys::BGP_CONFIGURATIONS) {
        peering.configurations.remove(name);
    } else if let Some(name) = key.strip_prefix(keys::BGP_PEERS) {
        peering.peers.remove(name);
    } else if let Some(name) = key.strip_prefix(keys::BGP_FILTERS) {
        peering.filters.remove(name);
    } else if let Some(name) = key.strip_prefix(keys::NODES) {
        peering.nodes.remove(name);
    } else if let Some(name) = key.strip_prefix(keys::IP_POOLS) {
        peering.pools.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::peering::{Local, sessions};
    use crate::model::peering::PeeringWorkloads;

    fn kv(key: String, value: &str) -> KeyValue {
        KeyValue {
            key,
            value: value.into(),
            mod_revision: 1,
        }
    }

    #[test]
    fn of_what_does_not_parse_the_last_good_value_stays() {
        let key = format!("{}tor", keys::BGP_PEERS);
        let good = kv(key.clone(), r#"{"spec":{"peerIP":"192.0.2.1","asNumber":65000}}"#);
        let torn = kv(key.clone(), r#"{"spec":{"peerIP":"192.0.2"}}"#);
        let mut peering = Peering::default();
        take_snapshot(&mut peering, std::slice::from_ref(&good));
        let before = peering.clone();
        assert_eq!(before.peers.len(), 1);
        take_change(&mut peering, &Change::Put(torn.clone()));
        take_snapshot(&mut peering, &[torn]);
        assert_eq!(peering, before);
        take_change(&mut peering, &Change::Delete { key, mod_revision: 2 });
        assert_eq!(peering, Peering::default());
    }

    /// What calicoctl wrote, and what Calico's own nodes make of it.
    #[test]
    fn what_calicoctl_wrote_makes_the_sessions_that_calico_makes() {
        #[derive(serde::Deserialize)]
        struct Stored {
            key: String,
            value: String,
        }
        let stored: Vec<Stored> =
            serde_json::from_str(include_str!("../../../ipam/tests/data/01_resources.json")).unwrap();
        let kvs: Vec<KeyValue> = stored
            .into_iter()
            .map(|stored| kv(stored.key, &stored.value))
            .collect();
        let mut peering = Peering::default();
        take_snapshot(&mut peering, &kvs);
        for (node, as_number, expected) in [
            (
                "node-a",
                64512,
                &[
                    "global-tor-192.0.2.1 65000",
                    "to-rr-192.0.2.12 64513",
                    "mesh-198.51.100.13 64512 held down",
                    "rack1-tor-2001:db8:2::1 65010 held down",
                ][..],
            ),
            (
                "node-b",
                64513,
                &[
                    "global-tor-192.0.2.1 65000",
                    "to-rr-192.0.2.11 64512",
                    "node-b-local-192.0.2.77 65001",
                    "to-rr-198.51.100.13 64512",
                ],
            ),
            (
                "node-c.example.com",
                64512,
                &[
                    "global-tor-192.0.2.1 65000",
                    "mesh-192.0.2.11 64512 held down",
                    "to-rr-192.0.2.12 64513",
                ],
            ),
        ] {
            let local = Local {
                node,
                as_number,
                listen_port: 179,
            };
            let workloads = PeeringWorkloads::new();
            let sessions = sessions(&peering, &workloads, local, |secret| {
                Err(format!("no {}", secret.key))
            });
            let lines: Vec<String> = sessions
                .peers
                .iter()
                .map(|peer| {
                    let held_down = peer.held_down().map_or("", |_| " held down");
                    format!("{} {}{held_down}", peer.name, peer.remote_as)
                })
                .collect();
            assert_eq!(lines, expected, "{node}");
        }
    }

    #[test]
    fn a_snapshot_says_what_there_is_no_more() {
        let mut peering = Peering::default();
        take_snapshot(
            &mut peering,
            &[
                kv(format!("{}a", keys::NODES), r#"{"spec":{}}"#),
                kv(
                    format!("{}p", keys::IP_POOLS),
                    r#"{"spec":{"cidr":"10.0.0.0/8"}}"#,
                ),
                kv(format!("{}default", keys::BGP_CONFIGURATIONS), r#"{"spec":{}}"#),
                kv(format!("{}f", keys::BGP_FILTERS), r#"{"spec":{}}"#),
            ],
        );
        let counts = |peering: &Peering| {
            (
                peering.nodes.len(),
                peering.pools.len(),
                peering.configurations.len(),
                peering.filters.len(),
            )
        };
        assert_eq!(counts(&peering), (1, 1, 1, 1));
        take_snapshot(&mut peering, &[]);
        assert_eq!(peering, Peering::default());
    }
}
