//! How an input changes the model: total, pure, and the same whatever order equal facts come in.
//!
//! Two sources speak of the same endpoints and blocks: the CNI server, which writes them, and the datastore's watch, which
//! repeats every write a moment later, and after a lost connection may deliver a picture taken *before* the write.
//! So a write of our own stands until the datastore has repeated it ([`Unechoed`]). The watch may also be faster than the CNI
//! server: what it shows of an attachment under way is no fact before its link is there.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use super::{Endpoint, EndpointId, Learned, Model};
use crate::model::{DatastoreSnapshot, Input, TunnelKind};

/// Writes of this agent that the datastore's watch has not repeated yet. Bounded by the writes of one watch delay,
/// and by failed deletions, which the runtime repeats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unechoed {
    endpoints: BTreeMap<EndpointId, Written>,
    blocks: BTreeSet<IpNetwork>,
}

/// What may have to be different after facts were taken in, the least first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Affected {
    /// Nothing: the facts were known.
    #[default]
    Nothing,
    /// What follows from these workloads, as they were and as they are.
    Workloads(Vec<Endpoint>),
    /// Anything.
    Everything,
}

impl Affected {
    /// What both affect.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Everything, _) | (_, Self::Everything) => Self::Everything,
            (Self::Nothing, some) | (some, Self::Nothing) => some,
            (Self::Workloads(mut some), Self::Workloads(more)) => {
                some.extend(more);
                Self::Workloads(some)
            }
        }
    }

    fn everything_if(is_changed: bool) -> Self {
        if is_changed {
            Self::Everything
        } else {
            Self::Nothing
        }
    }

    fn workloads(endpoints: Vec<Endpoint>) -> Self {
        if endpoints.is_empty() {
            Self::Nothing
        } else {
            Self::Workloads(endpoints)
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// It is being put, and the endpoint is no fact yet. Whether the datastore shows it.
    Coming {
        is_shown: bool,
    },
    Put,
    Deleted,
}

impl Model {
    /// Takes in one fact. Returns what may have to be different now: a fact that was known already, as the datastore's echo of
    /// a write of our own is, changes nothing.
    pub fn absorb(&mut self, input: Input) -> Affected {
        match input {
            Input::DatastoreSnapshot(snapshot) => {
                self.absorb_snapshot(snapshot);
                self.judge_cluster();
                Affected::Everything
            }
            Input::Pool(name, pool) => {
                let before = match &pool {
                    Some(pool) => self.pools.insert(name, pool.clone()),
                    None => self.pools.remove(&name),
                };
                self.judge_cluster();
                Affected::everything_if(before != pool)
            }
            Input::OwnBlockConfirmed(block) => {
                self.unechoed.blocks.remove(&block);
                Affected::everything_if(self.own_blocks.insert(block))
            }
            Input::OwnBlockGone(block) => {
                self.unechoed.blocks.remove(&block);
                Affected::everything_if(self.own_blocks.remove(&block))
            }
            Input::EndpointSeen(id, endpoint) => self.see_endpoint(id, endpoint),
            Input::EndpointUnseen(id) => self.unsee_endpoint(&id),
            Input::Attaching(id) => {
                let coming = Written::Coming { is_shown: false };
                self.unechoed.endpoints.entry(id).or_insert(coming);
                Affected::Nothing
            }
            Input::Attached {
                id,
                endpoint,
                claimed_blocks,
            } => {
                let mut has_new_block = false;
                for block in claimed_blocks {
                    if self.own_blocks.insert(block) {
                        self.unechoed.blocks.insert(block);
                        has_new_block = true;
                    }
                }
                let before = self.unechoed.endpoints.insert(id.clone(), Written::Put);
                if before == Some(Written::Coming { is_shown: true }) {
                    self.unechoed.endpoints.remove(&id);
                }
                // Also one that is known: its link may be another one.
                let attached = Affected::Workloads(vec![endpoint.clone()]);
                Affected::everything_if(has_new_block)
                    .and(self.put_endpoint(id, endpoint))
                    .and(attached)
            }
            Input::Detached(id) => match self.endpoints.remove(&id) {
                Some(endpoint) => {
                    self.migrations.forget(&endpoint.host_interface);
                    self.unechoed.endpoints.insert(id, Written::Deleted);
                    Affected::Workloads(vec![endpoint])
                }
                None => {
                    self.no_longer_coming(id);
                    Affected::Nothing
                }
            },
            Input::MigrationRoles(roles) => Affected::everything_if(self.take_roles(roles)),
            Input::MigratedHere(interface) => Affected::everything_if(self.migrated_here(&interface)),
            Input::MigrationSettled(interface) => Affected::everything_if(self.migration_settled(&interface)),
            Input::Learned(changes) => {
                self.learn(changes);
                Affected::Everything
            }
            Input::BgpInSync => Affected::everything_if(!std::mem::replace(&mut self.in_sync.bgp, true)),
            Input::PeerGateways(gateways) => {
                let before = std::mem::replace(&mut self.peer_gateways, gateways);
                Affected::everything_if(before != self.peer_gateways)
            }
            Input::WorkloadPeering(addresses) => {
                let before = std::mem::replace(&mut self.workload_peering, addresses);
                Affected::everything_if(before != self.workload_peering)
            }
            Input::Cluster(cluster) => {
                self.is_cluster_known = cluster.is_some();
                self.cluster = cluster.unwrap_or_default();
                self.judge_cluster();
                Affected::Everything
            }
            Input::ClusterNode(name, Some(node)) => {
                let is_known = self.cluster.nodes.get(&name) == Some(&node);
                self.cluster.nodes.insert(name, node);
                Affected::everything_if(!is_known)
            }
            Input::ClusterNode(name, None) => {
                Affected::everything_if(self.cluster.nodes.remove(&name).is_some())
            }
            Input::ClusterBlock(cidr, Some(block)) => {
                let is_known = self.cluster.blocks.get(&cidr) == Some(&block);
                self.cluster.blocks.insert(cidr, block);
                Affected::everything_if(!is_known)
            }
            Input::ClusterBlock(cidr, None) => {
                Affected::everything_if(self.cluster.blocks.remove(&cidr).is_some())
            }
            Input::TunnelAddress(kind, address) => {
                self.tunnel_addresses.insert(kind, address);
                self.judge_cluster();
                Affected::Everything
            }
            Input::ReachTargets(targets) => {
                self.hints.reach = targets;
                Affected::Everything
            }
        }
    }

    /// From the turn on in which the other nodes are needed they are not known, until their source says so.
    fn judge_cluster(&mut self) {
        let is_decided = self.in_sync.datastore
            && TunnelKind::ALL
                .iter()
                .all(|kind| self.tunnel_addresses.contains_key(kind));
        self.in_sync.cluster = self.is_cluster_known || (is_decided && !self.needs_cluster());
    }

    fn absorb_snapshot(&mut self, snapshot: DatastoreSnapshot) {
        let DatastoreSnapshot {
            pools,
            own_blocks,
            mut endpoints,
            migrations,
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
                Written::Coming { .. } => {
                    let is_shown = endpoints.remove(&id).is_some();
                    self.unechoed.endpoints.insert(id, Written::Coming { is_shown });
                }
                Written::Put | Written::Deleted => {}
            }
        }
        self.endpoints = endpoints.into_iter().collect();
        self.take_roles(migrations);
        self.in_sync.datastore = true;
    }

    fn see_endpoint(&mut self, id: EndpointId, endpoint: Endpoint) -> Affected {
        if let Some(Written::Coming { is_shown }) = self.unechoed.endpoints.get_mut(&id) {
            *is_shown = true;
            return Affected::Nothing;
        }
        if self.is_taken_over(&id, &endpoint) {
            self.unechoed.endpoints.remove(&id);
            return Affected::Nothing;
        }
        match self.unechoed.endpoints.get(&id) {
            Some(Written::Deleted | Written::Coming { .. }) => Affected::Nothing,
            Some(Written::Put) => {
                self.unechoed.endpoints.remove(&id);
                self.put_endpoint(id, endpoint)
            }
            None => self.put_endpoint(id, endpoint),
        }
    }

    fn unsee_endpoint(&mut self, id: &EndpointId) -> Affected {
        match self.unechoed.endpoints.get_mut(id) {
            Some(Written::Coming { is_shown }) => {
                *is_shown = false;
                Affected::Nothing
            }
            // The deletion is older than our write, whose echo is still to come.
            Some(Written::Put) => Affected::Nothing,
            Some(Written::Deleted) => {
                self.unechoed.endpoints.remove(id);
                Affected::Nothing
            }
            None => Affected::workloads(self.endpoints.remove(id).into_iter().collect()),
        }
    }

    /// An attachment was given up. What the datastore shows of it is about to be deleted.
    fn no_longer_coming(&mut self, id: EndpointId) {
        match self.unechoed.endpoints.get(&id) {
            Some(Written::Coming { is_shown: true }) => {
                self.unechoed.endpoints.insert(id, Written::Deleted);
            }
            Some(Written::Coming { is_shown: false }) => {
                self.unechoed.endpoints.remove(&id);
            }
            Some(Written::Put | Written::Deleted) | None => {}
        }
    }

    /// A host interface serves one endpoint: a newer container of the same pod takes it over from the older one.
    fn put_endpoint(&mut self, id: EndpointId, endpoint: Endpoint) -> Affected {
        if self.endpoints.get(&id) == Some(&endpoint) {
            return Affected::Nothing;
        }
        let on_same_interface = self.endpoints.on_interface(&endpoint.host_interface);
        let replaced: Vec<EndpointId> = on_same_interface
            .map(|(other, _)| other)
            .chain([&id])
            .cloned()
            .collect();
        let removed = replaced.iter().filter_map(|id| self.endpoints.remove(id));
        let mut affected: Vec<Endpoint> = removed.collect();
        affected.push(endpoint.clone());
        self.endpoints.insert(id, endpoint);
        self.follow_roles();
        Affected::Workloads(affected)
    }

    /// Whether a newer attachment, which the datastore has yet to repeat, has the host interface of this one.
    fn is_taken_over(&self, id: &EndpointId, endpoint: &Endpoint) -> bool {
        let mut on_same_interface = self.endpoints.on_interface(&endpoint.host_interface);
        on_same_interface
            .any(|(newer, _)| newer != id && matches!(self.unechoed.endpoints.get(newer), Some(Written::Put)))
    }

    fn learn(&mut self, changes: BTreeMap<IpNetwork, Option<Learned>>) {
        for (prefix, best) in changes {
            match best {
                Some(best) => self.learned.insert(prefix, best),
                None => self.learned.remove(&prefix),
            };
        }
    }
}
