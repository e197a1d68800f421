//! A kernel in memory, that can fail at any call. It keeps the rules that the real one has: no link, no route; a creation
//! never overwrites; a link that goes away or down takes its routes with it.

mod nexthops;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{
    AddressChange, ConnectionFilter, ForeignRoute, Kernel, KernelError, Link, Maker, NeighborChange,
    NexthopChange, NftChange, NftFamily, NftTables, ObservedNeighbor, ObservedRoute, ProxyNeighborChange,
    RouteChange, RuleChange, SeenNexthops, TunnelChange,
};
use crate::delta::Change;
use crate::desired::{
    HostLink, MAIN_TABLE, NeighborKey, NeighborSubject, ProxyNeighbor, RouteKey, RoutePath, Rule, RuleAction,
    Tunnel, are_safe,
};
use crate::ours::TUNNEL_ALIAS;

/// What goes wrong at the call chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The kernel says no.
    Refused,
    /// The call did not reach the kernel.
    LostBefore,
    /// The kernel did it, and the answer was lost.
    LostAfter,
}

/// The kernel's state, open to the tests.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeKernel {
    pub(crate) links: BTreeMap<String, Link>,
    pub(crate) routes: BTreeMap<RouteKey, ObservedRoute>,
    pub(crate) rules: BTreeSet<Rule>,
    pub(crate) nexthops: SeenNexthops,
    /// Whether it is older than nexthop objects.
    pub(crate) is_without_nexthops: bool,
    /// Destinations that must have a route at any time, in a table that is looked up.
    pub(crate) never_without: BTreeSet<IpNetwork>,
    /// Routes of others, by key.
    pub(crate) foreign: BTreeMap<RouteKey, ForeignRoute>,
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) nft: NftTables,
    /// What connections were forgotten, in order.
    pub(crate) forgotten: Vec<ConnectionFilter>,
    pub(crate) addresses: BTreeMap<String, Vec<IpNetwork>>,
    pub(crate) neighbors: BTreeMap<NeighborKey, ObservedNeighbor>,
    pub(crate) proxy_neighbors: BTreeMap<ProxyNeighbor, Maker>,
    /// Calls so far; each route change is one.
    pub(crate) calls: usize,
    /// Writes that had an effect, so far.
    pub(crate) writes: usize,
    /// The call that fails, counted from 0, and how.
    pub(crate) fault: Option<(usize, Fault)>,
}

impl FakeKernel {
    pub(crate) fn add_link(&mut self, name: &str) {
        let index = u32::try_from(self.links.len()).unwrap() + 1;
        let mac = Some([2, 0, 0, 0, 0, 1]);
        let link = Link {
            index,
            up: true,
            running: true,
            mac,
            mtu: 1500,
            alias: None,
            is_veth: true,
            peer_index: Some(2),
            transport: None,
        };
        self.links.insert(name.to_owned(), link);
        for (family, folder, parameter) in [
            ("ipv4", "conf", "proxy_arp"),
            ("ipv4", "neigh", "proxy_delay"),
            ("ipv4", "conf", "forwarding"),
            ("ipv4", "conf", "route_localnet"),
            ("ipv4", "conf", "rp_filter"),
            ("ipv6", "conf", "disable_ipv6"),
            ("ipv6", "conf", "accept_dad"),
            ("ipv6", "conf", "proxy_ndp"),
            ("ipv6", "conf", "forwarding"),
            ("ipv6", "conf", "accept_ra"),
        ] {
            self.sysctls.insert(
                format!("net/{family}/{folder}/{name}/{parameter}"),
                "7".to_owned(),
            );
        }
    }

    pub(crate) fn remove_link(&mut self, name: &str) {
        self.links.remove(name);
        self.addresses.remove(name);
        self.neighbors.retain(|key, _| key.interface != name);
        self.proxy_neighbors.retain(|key, _| key.interface != name);
        self.remove_routes_through(name);
        self.remove_nexthops_through(name);
        self.sysctls
            .retain(|path, _| !path.contains(&format!("/{name}/")));
    }

    pub(crate) fn remove_routes_through(&mut self, name: &str) {
        let leads_elsewhere = |path: &Option<RoutePath>| {
            !matches!(
                path,
                Some(RoutePath::Link { interface } | RoutePath::Onlink { interface, .. }) if interface == name
            )
        };
        self.routes.retain(|_, route| leads_elsewhere(&route.path));
        self.foreign.retain(|_, route| leads_elsewhere(&route.path));
    }

    fn create_tunnel(&mut self, name: &str, tunnel: &Tunnel) -> Result<(), KernelError> {
        if self.links.contains_key(name) {
            return Err(refused("create", libc::EEXIST));
        }
        let index = self.links.values().map(|link| link.index).max().unwrap_or(0) + 1;
        let link = Link {
            index,
            up: true,
            running: true,
            mac: tunnel.mac,
            mtu: tunnel.mtu,
            alias: Some(TUNNEL_ALIAS.to_owned()),
            is_veth: false,
            peer_index: None,
            transport: Some(tunnel.transport.clone()),
        };
        self.links.insert(name.to_owned(), link);
        self.sysctls
            .insert(format!("net/ipv4/conf/{name}/rp_filter"), "0".to_owned());
        Ok(())
    }

    fn apply_tunnel(&mut self, change: &TunnelChange) -> Result<(), KernelError> {
        match change {
            Change::Create { key, value } => self.create_tunnel(key, value),
            Change::Replace { key, from, to } if from.transport.as_ref() == Some(&to.transport) => {
                let link = self.links.get_mut(key).ok_or_else(|| no_link(key))?;
                link.up = true;
                link.mtu = to.mtu;
                link.mac = to.mac;
                link.alias = Some(TUNNEL_ALIAS.to_owned());
                Ok(())
            }
            Change::Replace { key, to, .. } => {
                self.remove_link(key);
                self.create_tunnel(key, to)
            }
            Change::Delete { key, .. } => {
                self.remove_link(key);
                Ok(())
            }
        }
    }

    fn apply_address(&mut self, change: &AddressChange) -> Result<(), KernelError> {
        let key = change.key();
        if !self.links.contains_key(&key.interface) {
            return Err(no_link(&key.interface));
        }
        let addresses = self.addresses.entry(key.interface.clone()).or_default();
        let is_there = addresses.contains(&key.address);
        match change {
            Change::Delete { .. } if !is_there => Err(refused("remove", libc::EADDRNOTAVAIL)),
            Change::Delete { .. } => {
                addresses.retain(|address| *address != key.address);
                Ok(())
            }
            _ if is_there => Err(refused("add", libc::EEXIST)),
            _ => {
                addresses.push(key.address);
                Ok(())
            }
        }
    }

    fn apply_neighbor(&mut self, change: &NeighborChange) -> Result<(), KernelError> {
        let key = change.key();
        if !self.links.contains_key(&key.interface) {
            return Err(no_link(&key.interface));
        }
        match change {
            Change::Create { value, .. } | Change::Replace { to: value, .. } => {
                let neighbor = ObservedNeighbor {
                    target: *value,
                    is_permanent: true,
                    is_marked: matches!(key.subject, NeighborSubject::Address(_)),
                };
                self.neighbors.insert(key.clone(), neighbor);
                Ok(())
            }
            Change::Delete { .. } => match self.neighbors.remove(key) {
                Some(_) => Ok(()),
                None => Err(refused("delete", libc::ENOENT)),
            },
        }
    }

    fn change_proxy_neighbor(&mut self, change: &ProxyNeighborChange) -> Result<(), KernelError> {
        let key = change.key();
        if !self.links.contains_key(&key.interface) {
            return Err(no_link(&key.interface));
        }
        assert_ne!(
            self.proxy_neighbors.get(key),
            Some(&Maker::Another),
            "would touch the foreign proxy neighbour {key}"
        );
        match change {
            Change::Delete { .. } => match self.proxy_neighbors.remove(key) {
                Some(_) => Ok(()),
                None => Err(refused("delete a proxy neighbour", libc::ENOENT)),
            },
            Change::Create { .. } | Change::Replace { .. } => {
                self.proxy_neighbors.insert(key.clone(), Maker::Us);
                Ok(())
            }
        }
    }

    /// Counts the call; the fault that is due, if any.
    fn due(&mut self) -> Option<Fault> {
        let call = self.calls;
        self.calls += 1;
        self.fault.filter(|(at, _)| *at == call).map(|(_, fault)| fault)
    }

    fn read<T>(&mut self, what: &str, answer: impl FnOnce(&Self) -> T) -> Result<T, KernelError> {
        match self.due() {
            None => Ok(answer(self)),
            Some(fault) => Err(error(fault, what)),
        }
    }

    fn write(
        &mut self,
        what: &str,
        effect: impl FnOnce(&mut Self) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let fault = self.due();
        if let Some(fault @ (Fault::Refused | Fault::LostBefore)) = fault {
            return Err(error(fault, what));
        }
        effect(self)?;
        self.writes += 1;
        fault.map_or(Ok(()), |fault| Err(error(fault, what)))
    }

    fn change_route(&mut self, change: &RouteChange) -> Result<(), KernelError> {
        let (key, value) = match change {
            Change::Create { key, value } => {
                if self.routes.contains_key(key) || self.foreign.contains_key(key) {
                    return Err(refused("create", libc::EEXIST));
                }
                (key, value)
            }
            Change::Replace { key, to, .. } => {
                assert!(
                    !self.foreign.contains_key(key),
                    "would overwrite the foreign route {key}"
                );
                (key, to)
            }
            Change::Delete { key, .. } => {
                let removed = self.routes.remove(key);
                self.assert_never_without();
                return match removed {
                    Some(_) => Ok(()),
                    None => Err(refused("delete", libc::ESRCH)),
                };
            }
        };
        if let RoutePath::Link { interface } | RoutePath::Onlink { interface, .. } = &value.path
            && !self.links.get(interface).is_some_and(|link| link.up)
        {
            return Err(KernelError::NoSuchLink {
                name: interface.clone(),
            });
        }
        if self.lacks_group(&value.path) || self.is_behind_another_link(&value.path) {
            return Err(refused("change a route", libc::EINVAL));
        }
        self.routes.insert(key.clone(), ObservedRoute::from(value));
        Ok(())
    }

    fn assert_never_without(&self) {
        let is_looked_up = |key: &RouteKey| {
            let leads_there = |rule: &Rule| {
                rule.is_ipv6 == key.destination.is_ipv6()
                    && matches!(rule.action, RuleAction::Lookup { table, .. } if table == key.table)
            };
            key.table == MAIN_TABLE || self.rules.iter().any(leads_there)
        };
        for destination in &self.never_without {
            let mut keys = self.routes.keys();
            let is_there = keys.any(|key| key.destination == *destination && is_looked_up(key));
            let keys: Vec<String> = self.routes.keys().map(ToString::to_string).collect();
            let rules: Vec<String> = self.rules.iter().map(ToString::to_string).collect();
            assert!(is_there, "{destination} has no route: {keys:#?} {rules:#?}");
        }
    }

    /// IPv6 only: the way to the gateway leads through another link than the route.
    fn is_behind_another_link(&self, path: &RoutePath) -> bool {
        let RoutePath::Onlink { gateway, interface } = path else {
            return false;
        };
        let covering = self
            .routes
            .iter()
            .filter(|(key, _)| key.table == MAIN_TABLE && key.destination.contains(*gateway));
        let best = covering.max_by_key(|(key, _)| key.destination.prefix());
        gateway.is_ipv6()
            && best.is_some_and(|(_, route)| {
                !matches!(
                    &route.path,
                    Some(RoutePath::Link { interface: other } | RoutePath::Onlink { interface: other, .. }) if other == interface
                )
            })
    }
}

impl Kernel for FakeKernel {
    fn links(&mut self) -> Result<BTreeMap<String, Link>, KernelError> {
        self.read("links", |kernel| kernel.links.clone())
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError> {
        self.read("link", |kernel| kernel.links.get(name).cloned())
    }

    fn set_link(&mut self, name: &str, link: HostLink) -> Result<(), KernelError> {
        self.write("set link", |kernel| {
            let found = kernel
                .links
                .get_mut(name)
                .ok_or_else(|| KernelError::NoSuchLink {
                    name: name.to_owned(),
                })?;
            found.up = true;
            if found.mac != Some(link.mac) {
                kernel.neighbors.retain(|key, _| key.interface != name);
            }
            found.mac = Some(link.mac);
            Ok(())
        })
    }

    fn change_tunnel(&mut self, change: &TunnelChange) -> Result<(), KernelError> {
        self.write("change a tunnel", |kernel| kernel.apply_tunnel(change))
    }

    fn addresses(&mut self) -> Result<BTreeMap<String, Vec<IpNetwork>>, KernelError> {
        self.read("addresses", |kernel| kernel.addresses.clone())
    }

    fn change_address(&mut self, change: &AddressChange) -> Result<(), KernelError> {
        self.write("change an address", |kernel| kernel.apply_address(change))
    }

    fn neighbors(&mut self) -> Result<BTreeMap<NeighborKey, ObservedNeighbor>, KernelError> {
        self.read("neighbors", |kernel| kernel.neighbors.clone())
    }

    fn change_neighbors(&mut self, changes: &[NeighborChange]) -> Vec<Result<(), KernelError>> {
        changes
            .iter()
            .map(|change| self.write("change a neighbor", |kernel| kernel.apply_neighbor(change)))
            .collect()
    }

    fn proxy_neighbors(&mut self) -> Result<BTreeMap<ProxyNeighbor, Maker>, KernelError> {
        self.read("proxy neighbors", |kernel| kernel.proxy_neighbors.clone())
    }

    fn change_proxy_neighbors(&mut self, changes: &[ProxyNeighborChange]) -> Vec<Result<(), KernelError>> {
        let change = |kernel: &mut Self, change| kernel.change_proxy_neighbor(change);
        changes
            .iter()
            .map(|one| self.write("change a proxy neighbour", |kernel| change(kernel, one)))
            .collect()
    }

    fn source_towards(&mut self, destination: IpAddr) -> Result<Option<IpAddr>, KernelError> {
        self.read("source", |kernel| {
            let mut addresses = kernel.addresses.values().flatten();
            addresses
                .find(|network| network.contains(destination))
                .map(IpNetwork::ip)
        })
    }

    fn delete_link(&mut self, name: &str, index: u32) -> Result<(), KernelError> {
        self.write("delete link", |kernel| match kernel.links.get(name) {
            Some(link) if link.index == index => {
                kernel.remove_link(name);
                Ok(())
            }
            _ => Err(refused("delete link", libc::ENODEV)),
        })
    }

    fn routes(&mut self) -> Result<BTreeMap<RouteKey, ObservedRoute>, KernelError> {
        self.read("routes", |kernel| kernel.routes.clone())
    }

    fn foreign_routes(
        &mut self,
        keys: &BTreeSet<RouteKey>,
    ) -> Result<BTreeMap<RouteKey, ForeignRoute>, KernelError> {
        self.read("foreign routes", |kernel| {
            kernel
                .foreign
                .clone()
                .into_iter()
                .filter(|(key, _)| keys.contains(key))
                .collect()
        })
    }

    fn change_routes(&mut self, changes: &[&RouteChange]) -> Vec<Result<(), KernelError>> {
        changes
            .iter()
            .map(|change| self.write("change a route", |kernel| kernel.change_route(change)))
            .collect()
    }

    fn rules(&mut self) -> Result<BTreeSet<Rule>, KernelError> {
        self.read("rules", |kernel| kernel.rules.clone())
    }

    fn change_rule(&mut self, change: &RuleChange) -> Result<(), KernelError> {
        self.write("change a rule", |kernel| {
            let was_safe = are_safe(kernel.rules.iter());
            let (is_done, errno) = match change {
                Change::Delete { key, .. } => (kernel.rules.remove(key), libc::ENOENT),
                Change::Create { key, .. } | Change::Replace { key, .. } => {
                    (kernel.rules.insert(key.clone()), libc::EEXIST)
                }
            };
            kernel.assert_never_without();
            assert!(
                are_safe(kernel.rules.iter())
                    || !was_safe
                    || kernel.routes.keys().all(|key| key.table == MAIN_TABLE),
                "a table is looked up before what is here: {change:?}"
            );
            if is_done {
                Ok(())
            } else {
                Err(refused("change a rule", errno))
            }
        })
    }

    fn nexthops(&mut self) -> Result<SeenNexthops, KernelError> {
        if self.is_without_nexthops {
            return Err(refused("list the nexthop objects", libc::EOPNOTSUPP));
        }
        self.read("nexthops", |kernel| kernel.nexthops.clone())
    }

    fn change_nexthops(&mut self, changes: &[NexthopChange]) -> Vec<Result<(), KernelError>> {
        changes
            .iter()
            .map(|change| self.write("change a nexthop", |kernel| kernel.change_nexthop(change)))
            .collect()
    }

    fn sysctl(&mut self, path: &str) -> Result<Option<String>, KernelError> {
        self.read("sysctl", |kernel| kernel.sysctls.get(path).cloned())
    }

    fn set_sysctl(&mut self, path: &str, value: &str) -> Result<(), KernelError> {
        self.write("set sysctl", |kernel| {
            let found = kernel
                .sysctls
                .get_mut(path)
                .ok_or_else(|| refused("set sysctl", libc::ENOENT))?;
            value.clone_into(found);
            Ok(())
        })
    }

    fn forget_connections(&mut self, filter: &ConnectionFilter) -> Result<usize, KernelError> {
        match self.due() {
            None => {
                self.forgotten.push(filter.clone());
                Ok(1)
            }
            Some(fault) => Err(error(fault, "forget connections")),
        }
    }

    fn nft_tables(&mut self) -> Result<NftTables, KernelError> {
        self.read("nft", |kernel| kernel.nft.clone())
    }

    fn our_nft_tables(&mut self) -> Result<Vec<NftFamily>, KernelError> {
        self.read("nft tables", |kernel| kernel.nft.keys().copied().collect())
    }

    fn delete_nft_table(&mut self, family: NftFamily) -> Result<(), KernelError> {
        self.write("delete nft", |kernel| {
            kernel.nft.remove(&family);
            Ok(())
        })
    }

    fn change_nft(&mut self, changes: &[NftChange]) -> Result<(), KernelError> {
        self.write("nft", |kernel| {
            for change in changes {
                change.carry_out(&mut kernel.nft);
            }
            // One is counted by `write`: every table changed is a write.
            kernel.writes += changes.len() - 1;
            Ok(())
        })
    }
}

/// One that leads elsewhere.
pub(crate) fn foreign(described: &str) -> ForeignRoute {
    ForeignRoute {
        path: None,
        described: described.to_owned(),
    }
}

fn no_link(name: &str) -> KernelError {
    KernelError::NoSuchLink {
        name: name.to_owned(),
    }
}

fn refused(action: &str, errno: i32) -> KernelError {
    KernelError::Refused {
        action: action.to_owned(),
        errno,
        message: None,
    }
}

fn error(fault: Fault, what: &str) -> KernelError {
    match fault {
        Fault::Refused => refused(what, libc::EPERM),
        Fault::LostBefore | Fault::LostAfter => {
            let source = io::Error::from_raw_os_error(libc::ENOBUFS);
            KernelError::Io {
                action: what.to_owned(),
                source,
            }
        }
    }
}
