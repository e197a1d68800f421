//! The datastore's watch: pools, this node's blocks, this node's endpoints and their live migrations.
//!
//! Invariants: a value that does not parse is logged with its key and the reason and changes nothing, the last good one
//! stays; a lost connection changes nothing either; after it the model is given a whole picture, or every change
//! that was missed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use calidris_ipam::{Affinity, Change, EncapsulationMode, IpPool, Ipam, KeyValue, WatchEvent, keys};
use ipnetwork::IpNetwork;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::datastore::live_migration::{self, LiveMigrationSpec};
use crate::datastore::store::AnyStore;
use crate::datastore::workload_endpoint::{self, Written};
use crate::inbox::Message;
use crate::model::{DatastoreSnapshot, Encapsulation, Input, MigrationRole, Pool};
use crate::report::DatastoreReport;

/// Watches until the node's thread is gone. `state` says how the connection is.
pub async fn run(
    ipam: Arc<Ipam<AnyStore>>,
    node: String,
    inbox: mpsc::Sender<Message>,
    state: watch::Sender<DatastoreReport>,
) {
    let mut view = View::new(node);
    let Some(mut watch) = ipam.store().watch(view.prefixes()) else {
        return;
    };
    while let Some(event) = watch.next().await {
        let inputs = match event {
            WatchEvent::Snapshot(snapshot) => {
                info!(
                    revision = snapshot.revision,
                    keys = snapshot.kvs.len(),
                    "datastore read"
                );
                connected(&state, Some(snapshot.revision));
                vec![Input::DatastoreSnapshot(view.snapshot(&snapshot.kvs))]
            }
            WatchEvent::Changes(changes) => {
                connected(&state, changes.last().map(revision));
                changes.iter().flat_map(|change| view.change(change)).collect()
            }
            WatchEvent::Disconnected { why } => {
                warn!(%why, "datastore lost; the kernel and BGP stay as they are");
                state.send_modify(|state| {
                    state.connected = false;
                    state.error = Some(why);
                });
                Vec::new()
            }
            WatchEvent::Resynced => {
                connected(&state, None);
                info!("datastore is back");
                Vec::new()
            }
        };
        let malformed = u64::try_from(view.malformed.len()).unwrap_or(u64::MAX);
        state
            .send_if_modified(|state| std::mem::replace(&mut state.malformed_values, malformed) != malformed);
        for input in inputs {
            if inbox.send(Message::Input(input)).await.is_err() {
                return;
            }
        }
    }
}

fn connected(state: &watch::Sender<DatastoreReport>, revision: Option<i64>) {
    state.send_modify(|state| {
        state.connected = true;
        state.error = None;
        state.revision = revision.unwrap_or(state.revision).max(state.revision);
    });
}

fn revision(change: &Change) -> i64 {
    match change {
        Change::Put(kv) => kv.mod_revision,
        Change::Delete { mod_revision, .. } => *mod_revision,
    }
}

/// The last good value of every key, in the model's terms.
struct View {
    node: String,
    affinities: String,
    endpoint_prefix: String,
    pools: BTreeMap<String, Pool>,
    blocks: BTreeSet<IpNetwork>,
    endpoints: BTreeMap<String, Written>,
    migration_prefix: String,
    migrations: BTreeMap<String, LiveMigrationSpec>,
    /// What the endpoints are in them, as last said: by host interface.
    roles: BTreeMap<String, MigrationRole>,
    /// Keys whose present value does not parse.
    malformed: BTreeSet<String>,
}

impl View {
    fn new(node: String) -> Self {
        Self {
            affinities: format!("{}{node}/", keys::AFFINITIES),
            endpoint_prefix: workload_endpoint::prefix(),
            node,
            pools: BTreeMap::new(),
            blocks: BTreeSet::new(),
            endpoints: BTreeMap::new(),
            migration_prefix: live_migration::prefix(),
            migrations: BTreeMap::new(),
            roles: BTreeMap::new(),
            malformed: BTreeSet::new(),
        }
    }

    fn prefixes(&self) -> Vec<String> {
        vec![
            keys::IP_POOLS.to_owned(),
            self.affinities.clone(),
            self.endpoint_prefix.clone(),
            self.migration_prefix.clone(),
        ]
    }

    /// Everything there is. Keys that are not in it do not exist.
    fn snapshot(&mut self, kvs: &[KeyValue]) -> DatastoreSnapshot {
        let present: BTreeSet<&str> = kvs.iter().map(|kv| kv.key.as_str()).collect();
        self.pools
            .retain(|name, _| present.contains(format!("{}{name}", keys::IP_POOLS).as_str()));
        self.blocks
            .retain(|block| present.contains(keys::affinity(&self.node, *block).as_str()));
        self.endpoints.retain(|key, _| present.contains(key.as_str()));
        self.migrations.retain(|key, _| present.contains(key.as_str()));
        self.malformed.retain(|key| present.contains(key.as_str()));
        for kv in kvs {
            self.put(kv);
        }
        self.roles = self.migration_roles();
        DatastoreSnapshot {
            pools: self.pools.clone(),
            own_blocks: self.blocks.clone(),
            endpoints: self
                .endpoints
                .values()
                .map(|written| (written.id.clone(), written.endpoint.clone()))
                .collect(),
            migrations: self.roles.clone(),
        }
    }

    fn change(&mut self, change: &Change) -> Vec<Input> {
        let mut inputs = match change {
            Change::Put(kv) => self.put(kv),
            Change::Delete { key, .. } => self.delete(key),
        };
        if !self.migrations.is_empty() || !self.roles.is_empty() {
            let roles = self.migration_roles();
            if roles != self.roles {
                self.roles.clone_from(&roles);
                inputs.push(Input::MigrationRoles(roles));
            }
        }
        inputs
    }

    fn migration_roles(&self) -> BTreeMap<String, MigrationRole> {
        let role = |written: &Written| {
            let mut migrations = self.migrations.values();
            migrations.find_map(|migration| migration.role_of(&self.node, written))
        };
        let written = self.endpoints.values();
        let with_role = written.filter_map(|written| Some((written, role(written)?)));
        with_role
            .map(|(written, role)| (written.endpoint.host_interface.clone(), role))
            .collect()
    }

    fn put(&mut self, kv: &KeyValue) -> Vec<Input> {
        let result = if let Some(name) = kv.key.strip_prefix(keys::IP_POOLS) {
            self.put_pool(name, kv)
        } else if kv.key.starts_with(&self.affinities) {
            self.put_affinity(kv)
        } else if kv.key.starts_with(&self.migration_prefix) {
            live_migration::read(&kv.key, &kv.value).map(|migration| {
                self.migrations.insert(kv.key.clone(), migration);
                Vec::new()
            })
        } else {
            self.put_endpoint(kv)
        };
        match result {
            Ok(inputs) => {
                self.malformed.remove(&kv.key);
                inputs
            }
            Err(why) => {
                warn!(key = %kv.key, %why, "a value in the datastore is not what it should be; keeping the last good one");
                self.malformed.insert(kv.key.clone());
                Vec::new()
            }
        }
    }

    fn put_pool(&mut self, name: &str, kv: &KeyValue) -> Result<Vec<Input>, String> {
        let resource = IpPool::parse(&kv.key, "IPPool", &kv.value).map_err(|error| error.to_string())?;
        let pool = pool(&resource)?;
        self.pools.insert(name.to_owned(), pool.clone());
        Ok(vec![Input::Pool(name.to_owned(), Some(pool))])
    }

    fn put_affinity(&mut self, kv: &KeyValue) -> Result<Vec<Input>, String> {
        let (_, block) = keys::parse_affinity(&kv.key).ok_or("the key does not end in a block's CIDR")?;
        let affinity = Affinity::parse(&kv.key, &kv.value).map_err(|error| error.to_string())?;
        Ok(vec![if affinity.state.is_confirmed() {
            self.blocks.insert(block);
            Input::OwnBlockConfirmed(block)
        } else {
            self.blocks.remove(&block);
            Input::OwnBlockGone(block)
        }])
    }

    fn put_endpoint(&mut self, kv: &KeyValue) -> Result<Vec<Input>, String> {
        if !workload_endpoint::may_be_on(&self.node, &kv.key) {
            return Ok(Vec::new());
        }
        let Some(written) = workload_endpoint::read(&self.node, &kv.key, &kv.value)? else {
            return Ok(self.delete(&kv.key));
        };
        let before = self.endpoints.insert(kv.key.clone(), written.clone());
        let replaced = before.filter(|before| before.id != written.id);
        let gone = replaced.map(|before| Input::EndpointUnseen(before.id));
        Ok(gone
            .into_iter()
            .chain([Input::EndpointSeen(written.id, written.endpoint)])
            .collect())
    }

    fn delete(&mut self, key: &str) -> Vec<Input> {
        self.malformed.remove(key);
        if let Some(name) = key.strip_prefix(keys::IP_POOLS) {
            self.pools.remove(name);
            vec![Input::Pool(name.to_owned(), None)]
        } else if let Some((_, block)) = keys::parse_affinity(key) {
            self.blocks.remove(&block);
            vec![Input::OwnBlockGone(block)]
        } else if self.migrations.remove(key).is_some() {
            Vec::new()
        } else {
            let gone = self.endpoints.remove(key);
            gone.map(|written| Input::EndpointUnseen(written.id))
                .into_iter()
                .collect()
        }
    }
}

fn pool(resource: &IpPool) -> Result<Pool, String> {
    let spec = &resource.spec;
    let cidr: IpNetwork = spec
        .cidr
        .parse()
        .map_err(|_| format!("spec.cidr {:?} is not a network in CIDR notation", spec.cidr))?;
    let ipip = spec.ipip_mode.unwrap_or_default();
    let vxlan = spec.vxlan_mode.unwrap_or_default();
    let encapsulation = match (ipip, vxlan) {
        (EncapsulationMode::Never, EncapsulationMode::Never) => Encapsulation::None,
        (EncapsulationMode::Always, EncapsulationMode::Never) => Encapsulation::IpipAlways,
        (EncapsulationMode::CrossSubnet, EncapsulationMode::Never) => Encapsulation::IpipCrossSubnet,
        (EncapsulationMode::Never, EncapsulationMode::Always) => Encapsulation::VxlanAlways,
        (EncapsulationMode::Never, EncapsulationMode::CrossSubnet) => Encapsulation::VxlanCrossSubnet,
        _ => return Err("spec.ipipMode and spec.vxlanMode exclude each other".to_owned()),
    };
    Ok(Pool {
        cidr: IpNetwork::new(cidr.network(), cidr.prefix()).unwrap_or(cidr),
        nat_outgoing: spec.nat_outgoing,
        encapsulation,
        disable_bgp_export: spec.disable_bgp_export,
    })
}

#[cfg(test)]
mod tests;
