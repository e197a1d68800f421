//! Which BGP sessions Calico's resources ask of this node, and what passes them: as Calico's own nodes derive it (confd's
//! `updatePeersV1`, `buildImportFilter`, `buildExportFilter`), so that nodes of both kinds fit together.
//!
//! In this order, the first word about an address counts: BGPPeers for all nodes; BGPPeers for some; the same BGPPeers read backwards,
//! for nodes that they name as remote; the node-to-node mesh, which route reflectors have no part in. Mesh sessions, and those for all nodes with
//! a node of the cluster, are opened by the side whose address comes later *as text*, since Calico compares texts.
//!
//! Workloads on this node that a BGPPeer selects have a session that they open, to an address that every host end of theirs has for that.
//!
//! A session carries the family of its addresses and needs an address of this node in it. The priority of routes travels in LOCAL_PREF. What cannot be
//! done is told in words.

mod filter;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use calidris_bgp::config::{
    AddPathConfig, AddPathSend, ConnectMode, Distance, GracefulRestartConfig, LocalAs, NextHopMode, OwnAs,
    PeerConfig, TransportConfig,
};
use calidris_bgp::family::AfiSafi;

use crate::desired::ROUTE_PRIORITY;
use crate::model::peering::{
    BgpConfiguration, BgpPeer, NodesOfPeer, PeerNextHop, Peering, PeeringNode, PeeringWorkload,
    PeeringWorkloads, RemoteOfPeer, SecretKey, WorkloadPeers,
};

/// The AS of nodes in a cluster that says none (Calico's default).
const DEFAULT_AS: u32 = 64_512;
/// How many hops away a peer may be, as of BIRD's `multihop`.
const MULTIHOP: u8 = 64;
/// Between attempts to connect, as Calico's nodes do it.
const CONNECT_RETRY: Duration = Duration::from_secs(5);

/// This node, as far as its configuration file says it.
#[derive(Debug, Clone, Copy)]
pub struct Local<'a> {
    /// Name in the datastore.
    pub node: &'a str,
    /// Its AS.
    pub as_number: u32,
    /// The TCP port it listens at.
    pub listen_port: u16,
}

/// What the resources ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sessions {
    /// The sessions, by address.
    pub peers: Vec<PeerConfig>,
    /// The cluster this node reflects for.
    pub cluster_id: Option<Ipv4Addr>,
    /// Peers that are behind a gateway (`reachableBy`), and the gateway.
    pub gateways: BTreeMap<IpAddr, IpAddr>,
    /// Peers that are workloads here, and the host end that leads to each.
    pub workloads: WorkloadPeers,
    /// Addresses that workloads connect to, by the host end that is to have them.
    pub workload_addresses: BTreeMap<String, BTreeSet<IpAddr>>,
    /// What is asked for and not done, a line each.
    pub problems: BTreeSet<String>,
}

/// The sessions of `local`, where `workloads` are. `password` reads a key of a Secret, or says why it cannot.
pub fn sessions(
    peering: &Peering,
    workloads: &PeeringWorkloads,
    local: Local<'_>,
    password: impl Fn(&SecretKey) -> Result<String, String>,
) -> Sessions {
    let Some(own) = peering.nodes.get(local.node) else {
        return Sessions::default();
    };
    let deriving = Deriving {
        peering,
        workloads,
        local,
        own,
    };
    let mut problems = deriving.problems();
    let mut sessions = Sessions {
        cluster_id: own.cluster_id,
        ..Sessions::default()
    };
    for wanted in deriving.wanted(&mut problems).into_values() {
        match deriving.peer_config(&wanted, &password) {
            Ok(peer) => sessions.peers.push(peer),
            Err(why) => {
                problems.insert(format!("{}: {why}", wanted.name()));
                continue;
            }
        }
        sessions
            .gateways
            .extend(wanted.gateway().map(|gateway| (wanted.address, gateway)));
        if let Some(workload) = wanted.workload {
            let interface = &workload.interface;
            sessions.workloads.insert(wanted.address, interface.clone());
            let addresses = sessions.workload_addresses.entry(interface.clone()).or_default();
            addresses.extend(deriving.workload_address(wanted.address.is_ipv6()));
        }
    }
    sessions.problems = problems;
    sessions
}

struct Deriving<'a> {
    peering: &'a Peering,
    workloads: &'a PeeringWorkloads,
    local: Local<'a>,
    own: &'a PeeringNode,
}

/// A session, and where it follows from.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    address: IpAddr,
    port: Option<u16>,
    remote_as: u32,
    /// The cluster the peer reflects for.
    cluster_id: Option<Ipv4Addr>,
    origin: Origin<'a>,
    opens: Opens,
    /// The workload that it is.
    workload: Option<&'a PeeringWorkload>,
}

#[derive(Clone, Copy)]
enum Origin<'a> {
    Mesh,
    Peer(&'a str, &'a BgpPeer),
}

/// Who opens the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opens {
    Both,
    TheLaterAddress,
    ThePeer,
}

impl<'a> Deriving<'a> {
    /// One for each address: the first that asks.
    fn wanted(&self, problems: &mut BTreeSet<String>) -> BTreeMap<IpAddr, Wanted<'a>> {
        let peers = || self.peering.peers.iter();
        let is_global = |peer: &BgpPeer| peer.nodes == NodesOfPeer::All;
        let global = peers().filter(|(_, peer)| is_global(peer));
        let of_some = peers().filter(|(_, peer)| !is_global(peer));
        let forward = global
            .chain(of_some)
            .flat_map(|(name, peer)| self.forward(name, peer));
        let reverse = peers().flat_map(|(name, peer)| self.reverse(name, peer));
        let mut all: BTreeMap<IpAddr, Wanted<'_>> = BTreeMap::new();
        for wanted in forward.chain(reverse).chain(self.mesh()) {
            let own = self.own.address(wanted.address.is_ipv6());
            if own.is_none() || own == Some(wanted.address) {
                continue;
            }
            let first = *all.entry(wanted.address).or_insert(wanted);
            if first.port != wanted.port {
                problems.insert(format!(
                    "{}: there is a session with {} at another port already",
                    wanted.name(),
                    wanted.address
                ));
            }
        }
        all
    }

    /// The BGPPeer as it is written: this node is among its nodes.
    fn forward(&self, name: &'a str, peer: &'a BgpPeer) -> Vec<Wanted<'a>> {
        if !self.is_among(&peer.nodes, self.local.node) {
            return Vec::new();
        }
        let origin = Origin::Peer(name, peer);
        match &peer.remote {
            RemoteOfPeer::Selected(selector) => {
                let is_remote = |node: &PeeringNode| selector.matches(&node.labels);
                self.other_nodes(is_remote, &[false, true], origin)
            }
            RemoteOfPeer::Address {
                address,
                port,
                as_number,
            } => {
                let as_number = as_number.unwrap_or(self.cluster_as());
                let node = self.node_at(*address, *port, as_number);
                let is_node = self.peering.nodes.values().any(|node| has(node, *address));
                let global = peer.nodes == NodesOfPeer::All;
                vec![Wanted {
                    address: *address,
                    port: port.or_else(|| self.listen_port(node?)),
                    remote_as: as_number,
                    cluster_id: None,
                    origin,
                    opens: if global && is_node {
                        Opens::TheLaterAddress
                    } else {
                        Opens::Both
                    },
                    workload: None,
                }]
            }
            RemoteOfPeer::Workloads { selector, as_number } => {
                let here = self.workloads.values();
                let selected = here.filter(|workload| selector.matches(&workload.labels));
                let sessions = selected.flat_map(|workload| {
                    let addresses = [false, true].map(|is_ipv6| workload.address(is_ipv6));
                    addresses.into_iter().flatten().map(move |address| Wanted {
                        address,
                        port: None,
                        remote_as: *as_number,
                        cluster_id: None,
                        origin,
                        opens: Opens::ThePeer,
                        workload: Some(workload),
                    })
                });
                sessions.collect()
            }
        }
    }

    /// The BGPPeer read backwards: this node is among those it names as remote.
    fn reverse(&self, name: &'a str, peer: &'a BgpPeer) -> Vec<Wanted<'a>> {
        let families: &[bool] = match &peer.remote {
            _ if !peer.reverse => return Vec::new(),
            RemoteOfPeer::Selected(selector) if selector.matches(&self.own.labels) => &[false, true],
            RemoteOfPeer::Address {
                address,
                port,
                as_number,
            } if self.node_at(*address, *port, as_number.unwrap_or(self.cluster_as()))
                == Some(self.local.node) =>
            {
                if address.is_ipv6() {
                    &[true]
                } else {
                    &[false]
                }
            }
            RemoteOfPeer::Selected(_) | RemoteOfPeer::Address { .. } | RemoteOfPeer::Workloads { .. } => {
                return Vec::new();
            }
        };
        let is_remote = |other: &PeeringNode| match &peer.nodes {
            NodesOfPeer::All => true,
            NodesOfPeer::Named(name) => self.peering.nodes.get(name) == Some(other),
            NodesOfPeer::Selected(selector) => selector.matches(&other.labels),
        };
        self.other_nodes(is_remote, families, Origin::Peer(name, peer))
    }

    fn mesh(&self) -> Vec<Wanted<'a>> {
        let is_wanted = self
            .default_configuration()
            .and_then(|default| default.mesh)
            .unwrap_or(true);
        if !is_wanted || self.own.cluster_id.is_some() {
            return Vec::new();
        }
        let mesh = self.other_nodes(|node| node.cluster_id.is_none(), &[false, true], Origin::Mesh);
        let unidirectional = |wanted| Wanted {
            opens: Opens::TheLaterAddress,
            ..wanted
        };
        mesh.into_iter().map(unidirectional).collect()
    }

    /// Sessions with the other nodes that `is_remote` says yes to, over IPv4 (`false`) and IPv6 (`true`).
    fn other_nodes(
        &self,
        is_remote: impl Fn(&PeeringNode) -> bool,
        families: &[bool],
        origin: Origin<'a>,
    ) -> Vec<Wanted<'a>> {
        let others = self.peering.nodes.iter();
        let others = others.filter(|(name, node)| name.as_str() != self.local.node && is_remote(node));
        others
            .flat_map(|(name, node)| {
                let addresses = families.iter().filter_map(|is_ipv6| node.address(*is_ipv6));
                addresses.map(move |address| Wanted {
                    address,
                    port: self.listen_port(name),
                    remote_as: node.as_number.unwrap_or(self.cluster_as()),
                    cluster_id: node.cluster_id,
                    origin,
                    opens: Opens::Both,
                    workload: None,
                })
            })
            .collect()
    }

    fn is_among(&self, nodes: &NodesOfPeer, name: &str) -> bool {
        match nodes {
            NodesOfPeer::All => true,
            NodesOfPeer::Named(named) => named == name,
            NodesOfPeer::Selected(selector) => selector.matches(&self.own.labels),
        }
    }

    /// The node with this address and AS that listens at this port, if one is said.
    fn node_at(&self, address: IpAddr, port: Option<u16>, as_number: u32) -> Option<&'a str> {
        let fits = |(name, node): &(&String, &PeeringNode)| {
            has(node, address)
                && node.as_number.unwrap_or(self.cluster_as()) == as_number
                && port.is_none_or(|port| self.listen_port(name).is_none_or(|listen| listen == port))
        };
        let found = self.peering.nodes.iter().find(fits);
        found.map(|(name, _)| name.as_str())
    }

    fn default_configuration(&self) -> Option<&'a BgpConfiguration> {
        self.peering.configurations.get("default")
    }

    fn configuration_of(&self, node: &str) -> Option<&'a BgpConfiguration> {
        self.peering.configurations.get(&format!("node.{node}"))
    }

    fn cluster_as(&self) -> u32 {
        let configured = self.default_configuration().and_then(|default| default.as_number);
        configured.unwrap_or(DEFAULT_AS)
    }

    /// What workloads connect to over a family. A link-local one would need its interface named in the workload too.
    fn workload_address(&self, is_ipv6: bool) -> Option<IpAddr> {
        let address = self.default_configuration()?.workload_address(is_ipv6)?;
        let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        (!is_link_local).then_some(address)
    }

    /// `None` where nobody says anything but the standard's port.
    fn listen_port(&self, node: &str) -> Option<u16> {
        let of_node = self
            .configuration_of(node)
            .and_then(|configuration| configuration.listen_port);
        of_node.or_else(|| self.default_configuration()?.listen_port)
    }

    /// What no session is to blame for.
    fn problems(&self) -> BTreeSet<String> {
        let mut problems = BTreeSet::new();
        let name = format!("node.{}", self.local.node);
        for configuration in ["default", name.as_str()] {
            let found = self.peering.configurations.get(configuration);
            for field in found.iter().flat_map(|found| &found.unsupported) {
                problems.insert(format!(
                    "BGPConfiguration {configuration}: {field} is not supported"
                ));
            }
        }
        for (name, peer) in &self.peering.peers {
            for field in &peer.unsupported {
                problems.insert(format!("BGPPeer {name}: {field} is not supported"));
            }
            for filter in peer
                .filters
                .iter()
                .filter(|filter| !self.peering.filters.contains_key(*filter))
            {
                problems.insert(format!(
                    "BGPPeer {name}: there is no BGPFilter {filter}; it is passed over"
                ));
            }
        }
        if let Some(port) = self
            .listen_port(self.local.node)
            .filter(|port| *port != self.local.listen_port)
        {
            problems.insert(format!(
                "BGPConfiguration: listenPort is {port}, and bgp.listen_port of this node {}",
                self.local.listen_port
            ));
        }
        problems.extend(self.problems_of_default());
        problems
    }

    /// What the default configuration asks for and is otherwise here.
    fn problems_of_default(&self) -> Vec<String> {
        let Some(default) = self.default_configuration() else {
            return Vec::new();
        };
        let mut problems = Vec::new();
        for (field, priority) in [
            ("ipv4NormalRoutePriority", default.ipv4_priority),
            ("ipv6NormalRoutePriority", default.ipv6_priority),
        ] {
            if let Some(priority) = priority.filter(|priority| *priority != ROUTE_PRIORITY) {
                problems.push(format!(
                    "BGPConfiguration default: {field} is {priority}, and routes of this node have {ROUTE_PRIORITY}"
                ));
            }
        }
        if default.workload_address(true).is_some() && self.workload_address(true).is_none() {
            problems.push(
                "BGPConfiguration default: localWorkloadPeeringIPV6 is a link-local address; expected a global one"
                    .to_owned(),
            );
        }
        problems
    }

    fn peer_config(
        &self,
        wanted: &Wanted<'a>,
        password: &impl Fn(&SecretKey) -> Result<String, String>,
    ) -> Result<PeerConfig, String> {
        let peer = wanted.peer();
        let is_ipv6 = wanted.address.is_ipv6();
        let own = self.own.address(is_ipv6);
        let local_as = peer
            .and_then(|peer| peer.local_as)
            .unwrap_or(self.local.as_number);
        let is_external = wanted.remote_as != local_as;
        let gateway = peer.and_then(|peer| peer.reachable_by);
        if gateway.is_some_and(|gateway| gateway.is_ipv6() != is_ipv6) {
            return Err("reachableBy is of another family than the peer".to_owned());
        }
        let secret = match peer {
            Some(peer) => peer.password.as_ref(),
            None => self
                .default_configuration()
                .and_then(|default| default.mesh_password.as_ref()),
        };
        let (md5_password, missing_secret) = match secret.map(password) {
            None => (None, None),
            Some(Ok(password)) => (Some(password), None),
            Some(Err(why)) => (None, Some(why)),
        };
        let restart_time = match peer {
            Some(peer) => peer.restart_time,
            None => self
                .default_configuration()
                .and_then(|default| default.mesh_restart_time),
        };
        let waits = match wanted.opens {
            Opens::Both => false,
            Opens::TheLaterAddress => own.is_some_and(|own| wanted.address.to_string() > own.to_string()),
            Opens::ThePeer => true,
        };
        let local_address = match wanted.workload {
            Some(_) => self.workload_address(is_ipv6),
            None => own.filter(|_| peer.is_none_or(|peer| peer.from_node_address)),
        };
        let default = PeerConfig::new(wanted.name(), wanted.address, wanted.remote_as);
        let family = if is_ipv6 {
            AfiSafi::IPV6_UNICAST
        } else {
            AfiSafi::IPV4_UNICAST
        };
        let (import, export) = self.policies(peer.map_or(&[], |peer| peer.filters.as_slice()));
        Ok(PeerConfig {
            port: wanted.port.unwrap_or(default.port),
            local_address,
            connect: if waits {
                ConnectMode::Passive
            } else {
                ConnectMode::Active
            },
            families: BTreeSet::from([family]),
            connect_retry: CONNECT_RETRY,
            hold_time: peer
                .and_then(|peer| peer.keepalive_time)
                .map_or(default.hold_time, |keepalive| {
                    in_seconds(keepalive.saturating_mul(3)).max(3)
                }),
            add_path: AddPathConfig {
                receive: true,
                send: Some(AddPathSend::All),
            },
            route_reflector_client: !is_external
                && self.own.cluster_id.is_some()
                && wanted.cluster_id != self.own.cluster_id,
            next_hop: match peer.map(|peer| peer.next_hop).unwrap_or_default() {
                PeerNextHop::Itself => NextHopMode::Itself,
                PeerNextHop::Keep => NextHopMode::Keep,
                PeerNextHop::KeepOutside if is_external => NextHopMode::Keep,
                PeerNextHop::KeepOutside | PeerNextHop::Auto => NextHopMode::Auto,
            },
            import: Some(import),
            export: Some(export),
            allow_own_as: peer.map_or(0, |peer| peer.allow_own_as),
            priority_in_local_pref: true,
            // BIRD knows one AS for a session: nobody sees the node's own behind it.
            local_as: (local_as != self.local.as_number).then_some(LocalAs {
                asn: local_as,
                shown: OwnAs::Hidden,
                received: OwnAs::Hidden,
            }),
            graceful_restart: Some(GracefulRestartConfig {
                restart_time: restart_time.map_or(120, in_seconds),
                ..GracefulRestartConfig::default()
            }),
            transport: TransportConfig {
                md5_password,
                missing_secret,
                distance: match peer.and_then(|peer| peer.ttl_security) {
                    Some(hops) => Distance::Gtsm { hops },
                    None if is_external => Distance::Multihop(MULTIHOP),
                    None => Distance::Auto,
                },
            },
            ..default
        })
    }
}

impl Wanted<'_> {
    fn peer(&self) -> Option<&BgpPeer> {
        match self.origin {
            Origin::Mesh => None,
            Origin::Peer(_, peer) => Some(peer),
        }
    }

    fn gateway(&self) -> Option<IpAddr> {
        self.peer()?.reachable_by
    }

    fn name(&self) -> String {
        match self.origin {
            Origin::Mesh => format!("mesh-{}", self.address),
            Origin::Peer(name, _) => format!("{name}-{}", self.address),
        }
    }
}

fn has(node: &PeeringNode, address: IpAddr) -> bool {
    node.address(address.is_ipv6()) == Some(address)
}

fn in_seconds(time: Duration) -> u16 {
    u16::try_from(time.as_secs()).unwrap_or(u16::MAX)
}
