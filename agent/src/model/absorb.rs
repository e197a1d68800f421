//! How an input changes the model: total, pure, and the same whatever order equal facts come in.
//!
//! Two sources speak of the same endpoints and blocks: the CNI server, which writes them, and the datastore's watch, which
//! repeats every write a moment later, and after a lost connection may deliver a picture taken *before* the write.
//! So a write of our own stands until the datastore has repeated it ([`Unechoed`]).

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use super::{Endpoint, EndpointId, Model, NextHop};
use crate::input::{DatastoreSnapshot, Input};

/// Writes of this agent that the datastore's watch has not repeated yet. Bounded by the writes of one watch delay,
/// and by failed deletions, which the runtime repeats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unechoed {
    endpoints: BTreeMap<EndpointId, Written>,
    blocks: BTreeSet<IpNetwork>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Put,
    Deleted,
}

impl Model {
    /// Takes in one fact. Returns whether anything may have to be different now: a fact that was known already, as the
    /// datastore's echo of a write of our own is, changes nothing.
    pub fn absorb(&mut self, input: Input) -> bool {
        match input {
            Input::DatastoreSnapshot(snapshot) => {
                self.absorb_snapshot(snapshot);
                true
            }
            Input::Pool(name, Some(pool)) => {
                let is_known = self.pools.get(&name) == Some(&pool);
                self.pools.insert(name, pool);
                !is_known
            }
            Input::Pool(name, None) => self.pools.remove(&name).is_some(),
            Input::OwnBlockConfirmed(block) => {
                self.unechoed.blocks.remove(&block);
                self.own_blocks.insert(block)
            }
            Input::OwnBlockGone(block) => {
                self.unechoed.blocks.remove(&block);
                self.own_blocks.remove(&block)
            }
            Input::EndpointSeen(id, endpoint) => {
                let is_known = self.endpoints.get(&id) == Some(&endpoint);
                self.see_endpoint(id, endpoint);
                !is_known
            }
            Input::EndpointUnseen(id) => {
                let before = self.endpoints.len();
                self.unsee_endpoint(&id);
                self.endpoints.len() != before
            }
            Input::Attached {
                id,
                endpoint,
                claimed_blocks,
            } => {
                for block in claimed_blocks {
                    if self.own_blocks.insert(block) {
                        self.unechoed.blocks.insert(block);
                    }
                }
                self.unechoed.endpoints.insert(id.clone(), Written::Put);
                self.put_endpoint(id, endpoint);
                true
            }
            Input::Detached(id) => {
                let was_there = self.endpoints.remove(&id).is_some();
                if was_there {
                    self.unechoed.endpoints.insert(id, Written::Deleted);
                }
                was_there
            }
            Input::Learned(changes) => {
                self.learn(changes);
                true
            }
            Input::BgpInSync => !std::mem::replace(&mut self.in_sync.bgp, true),
            Input::Cluster(cluster) => {
                self.cluster = cluster;
                self.in_sync.cluster = true;
                true
            }
            Input::ClusterNode(name, Some(node)) => {
                let is_known = self.cluster.nodes.get(&name) == Some(&node);
                self.cluster.nodes.insert(name, node);
                !is_known
            }
            Input::ClusterNode(name, None) => self.cluster.nodes.remove(&name).is_some(),
            Input::ClusterBlock(cidr, Some(block)) => {
                let is_known = self.cluster.blocks.get(&cidr) == Some(&block);
                self.cluster.blocks.insert(cidr, block);
                !is_known
            }
            Input::ClusterBlock(cidr, None) => self.cluster.blocks.remove(&cidr).is_some(),
            Input::TunnelAddress(kind, address) => {
                self.tunnel_addresses.insert(kind, address);
                true
            }
            Input::ReachTargets(targets) => {
                self.hints.reach = targets;
                true
            }
            // Says nothing about what is wanted: the turn has the kernel read back.
            Input::KernelChanged(_) => false,
        }
    }

    fn absorb_snapshot(&mut self, snapshot: DatastoreSnapshot) {
        let DatastoreSnapshot {
            pools,
            own_blocks,
            mut endpoints,
        } = snapshot;
        self.pools = pools;

        self.unechoed.blocks.retain(|block| !own_blocks.contains(block));
        self.own_blocks = own_blocks.union(&self.unechoed.blocks).copied().collect();

        // What we wrote and the picture does not show yet is carried over from what is known.
        for (id, written) in std::mem::take(&mut self.unechoed.endpoints) {
            let shown = endpoints.contains_key(&id);
            match written {
                Written::Put if !shown => {
                    if let Some(endpoint) = self.endpoints.remove(&id) {
                        endpoints.insert(id.clone(), endpoint);
                        self.unechoed.endpoints.insert(id, Written::Put);
                    }
                }
                Written::Deleted if shown => {
                    endpoints.remove(&id);
                    self.unechoed.endpoints.insert(id, Written::Deleted);
                }
                Written::Put | Written::Deleted => {}
            }
        }
        self.endpoints = endpoints;
        self.in_sync.datastore = true;
    }

    fn see_endpoint(&mut self, id: EndpointId, endpoint: Endpoint) {
        if self.is_taken_over(&id, &endpoint) {
            self.unechoed.endpoints.remove(&id);
            return;
        }
        match self.unechoed.endpoints.get(&id) {
            Some(Written::Deleted) => {}
            Some(Written::Put) => {
                self.unechoed.endpoints.remove(&id);
                self.put_endpoint(id, endpoint);
            }
            None => self.put_endpoint(id, endpoint),
        }
    }

    fn unsee_endpoint(&mut self, id: &EndpointId) {
        match self.unechoed.endpoints.get(id) {
            // The deletion is older than our write, whose echo is still to come.
            Some(Written::Put) => {}
            Some(Written::Deleted) => {
                self.unechoed.endpoints.remove(id);
            }
            None => {
                self.endpoints.remove(id);
            }
        }
    }

    /// A host interface serves one endpoint: a newer container of the same pod takes it over from the older one.
    fn put_endpoint(&mut self, id: EndpointId, endpoint: Endpoint) {
        self.endpoints
            .retain(|other, known| *other == id || known.host_interface != endpoint.host_interface);
        self.endpoints.insert(id, endpoint);
    }

    /// Whether a newer attachment, which the datastore has yet to repeat, has the host interface of this one.
    fn is_taken_over(&self, id: &EndpointId, endpoint: &Endpoint) -> bool {
        self.unechoed
            .endpoints
            .iter()
            .filter(|&(other, written)| other != id && *written == Written::Put)
            .filter_map(|(other, _)| self.endpoints.get(other))
            .any(|newer| newer.host_interface == endpoint.host_interface)
    }

    fn learn(&mut self, changes: BTreeMap<IpNetwork, Option<BTreeSet<NextHop>>>) {
        for (prefix, best) in changes {
            match best {
                Some(next_hops) if !next_hops.is_empty() => {
                    self.learned.insert(prefix, next_hops);
                }
                Some(_) | None => {
                    self.learned.remove(&prefix);
                }
            }
        }
    }
}
