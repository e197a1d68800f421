//! The workloads on this node, to be found by identity, host interface, address and container: what is asked for every pod that
//! comes or goes costs the same beside ten others and beside a thousand.
//!
//! Invariant: the indexes are what the workloads themselves say, and are kept in step here and nowhere else.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use super::{Endpoint, EndpointId};

/// Workloads by identity, which is how they are read; see the methods for other ways to find one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    by_id: BTreeMap<EndpointId, Endpoint>,
    by_interface: Index<String>,
    by_address: Index<IpAddr>,
    by_container: Index<String>,
}

impl Endpoints {
    /// Takes in a workload. Returns the one that had its identity before.
    pub fn insert(&mut self, id: EndpointId, endpoint: Endpoint) -> Option<Endpoint> {
        let before = self.remove(&id);
        let shared = Arc::new(id.clone());
        self.by_interface.add(&endpoint.host_interface, &shared);
        self.by_container.add(&id.container_id, &shared);
        for address in &endpoint.addresses {
            self.by_address.add(address, &shared);
        }
        self.by_id.insert(id, endpoint);
        before
    }

    /// Gives up a workload, and returns it.
    pub fn remove(&mut self, id: &EndpointId) -> Option<Endpoint> {
        let endpoint = self.by_id.remove(id)?;
        self.by_interface.remove(&endpoint.host_interface, id);
        self.by_container.remove(&id.container_id, id);
        for address in &endpoint.addresses {
            self.by_address.remove(address, id);
        }
        Some(endpoint)
    }

    /// Those with this host interface: one, but for two containers that claim the same.
    pub fn on_interface(&self, host_interface: &str) -> impl Iterator<Item = (&EndpointId, &Endpoint)> {
        self.found(self.by_interface.get(host_interface))
    }

    /// Those with this address.
    pub fn with_address(&self, address: IpAddr) -> impl Iterator<Item = (&EndpointId, &Endpoint)> {
        self.found(self.by_address.get(&address))
    }

    /// Those of this container, of all networks.
    pub fn of_container(&self, container_id: &str) -> impl Iterator<Item = (&EndpointId, &Endpoint)> {
        self.found(self.by_container.get(container_id))
    }

    fn found<'a>(
        &'a self,
        ids: impl Iterator<Item = &'a EndpointId>,
    ) -> impl Iterator<Item = (&'a EndpointId, &'a Endpoint)> {
        ids.filter_map(|id| self.by_id.get_key_value(id))
    }
}

impl Deref for Endpoints {
    type Target = BTreeMap<EndpointId, Endpoint>;

    fn deref(&self) -> &Self::Target {
        &self.by_id
    }
}

impl FromIterator<(EndpointId, Endpoint)> for Endpoints {
    fn from_iter<I: IntoIterator<Item = (EndpointId, Endpoint)>>(all: I) -> Self {
        let mut endpoints = Self::default();
        for (id, endpoint) in all {
            endpoints.insert(id, endpoint);
        }
        endpoints
    }
}

/// Identities by something that several workloads may have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Index<K>(BTreeMap<K, BTreeSet<Arc<EndpointId>>>);

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Index<K> {
    fn add(&mut self, key: &K, id: &Arc<EndpointId>) {
        self.0.entry(key.clone()).or_default().insert(Arc::clone(id));
    }

    fn remove(&mut self, key: &K, id: &EndpointId) {
        if let Some(ids) = self.0.get_mut(key) {
            ids.remove(id);
            if ids.is_empty() {
                self.0.remove(key);
            }
        }
    }

    fn get<'a, Q: Ord + ?Sized>(&'a self, key: &Q) -> impl Iterator<Item = &'a EndpointId> + use<'a, K, Q>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).into_iter().flatten().map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_id() -> impl Strategy<Value = EndpointId> {
        let name = |names: [&'static str; 2]| prop::sample::select(names.to_vec()).prop_map(str::to_owned);
        (
            name(["red", "blue"]),
            name(["one", "two"]),
            name(["eth0", "net1"]),
        )
            .prop_map(|(network, container_id, ifname)| EndpointId {
                network,
                container_id,
                ifname,
            })
    }

    fn any_endpoint() -> impl Strategy<Value = Endpoint> {
        let addresses =
            prop::collection::btree_set((1_u8..5).prop_map(|last| [10, 65, 0, last].into()), 0..3);
        (0_u8..3, addresses).prop_map(|(interface, addresses)| Endpoint {
            host_interface: format!("cali{interface}"),
            addresses,
            ..Endpoint::default()
        })
    }

    proptest! {
        /// Whatever was inserted and removed, each way to find workloads finds what a look at all of them does.
        #[test]
        fn the_indexes_are_what_the_workloads_say(
            steps in prop::collection::vec((any_id(), prop::option::of(any_endpoint())), 0..40),
        ) {
            let mut endpoints = Endpoints::default();
            let mut reference = BTreeMap::new();
            for (id, endpoint) in steps {
                match endpoint {
                    Some(endpoint) => {
                        let before = reference.insert(id.clone(), endpoint.clone());
                        prop_assert_eq!(endpoints.insert(id, endpoint), before);
                    }
                    None => prop_assert_eq!(endpoints.remove(&id), reference.remove(&id)),
                }
                prop_assert_eq!(&*endpoints, &reference);
                prop_assert_eq!(&endpoints, &reference.clone().into_iter().collect());
                let all = |matches: &dyn Fn(&EndpointId, &Endpoint) -> bool| -> Vec<(EndpointId, Endpoint)> {
                    let found = reference.iter().filter(|(id, endpoint)| matches(id, endpoint));
                    found.map(|(id, endpoint)| (id.clone(), endpoint.clone())).collect()
                };
                let owned = |found: &mut dyn Iterator<Item = (&EndpointId, &Endpoint)>| -> Vec<_> {
                    found.map(|(id, endpoint)| (id.clone(), endpoint.clone())).collect()
                };
                for number in 0_u8..5 {
                    let (name, address) = (format!("cali{number}"), IpAddr::from([10, 65, 0, number]));
                    prop_assert_eq!(
                        owned(&mut endpoints.on_interface(&name)),
                        all(&|_, endpoint| endpoint.host_interface == name)
                    );
                    prop_assert_eq!(
                        owned(&mut endpoints.with_address(address)),
                        all(&|_, endpoint| endpoint.addresses.contains(&address))
                    );
                }
                for container in ["one", "two", "three"] {
                    prop_assert_eq!(
                        owned(&mut endpoints.of_container(container)),
                        all(&|id, _| id.container_id == container)
                    );
                }
            }
        }
    }
}
