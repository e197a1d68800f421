//! The real kernel: rtnetlink for links and routes, files for parameters, nfnetlink and the program `nft` for nftables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnetwork::IpNetwork;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::netdevice;

use super::netlink::{NetlinkSocket, Request};
use super::{
    AddressChange, ConnectionFilter, ForeignRoute, Kernel, KernelError, Link, Maker, NeighborChange,
    NexthopChange, NftChange, NftFamily, NftTables, ObservedNeighbor, ObservedRoute, OwnPorts,
    ProxyNeighborChange, RouteChange, RuleChange, SeenNexthops, TunnelChange, conntrack, message, neighbors,
    nexthop, nft, overlay, proc, proxy_neighbors, rule,
};
use crate::delta::Change;
use crate::desired::{
    Gateways, HostLink, NeighborKey, NeighborSubject, NeighborTarget, ProxyNeighbor, RouteKey, RoutePath,
    Rule,
};
use crate::ours::ROUTE_PROTOCOLS;

/// The kernel of this machine, in the network namespace of the thread that opened it. To be used by that thread only:
/// parameters and nftables go by the namespace of the calling thread.
pub struct Linux {
    socket: NetlinkSocket,
    nft: nft::Writer,
}

impl Linux {
    /// Opens the connection.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self {
            socket: NetlinkSocket::open()?,
            nft: nft::Writer::default(),
        })
    }

    /// Port of the netlink socket: notifications of our own changes carry it, so that a monitor can skip them.
    #[must_use]
    pub fn port_id(&self) -> u32 {
        self.socket.port_id()
    }

    /// The netlink ports from which this value changes nftables, so that a monitor can skip what came from them.
    #[must_use]
    pub fn own_nft_ports(&self) -> OwnPorts {
        self.nft.own_ports()
    }
}

impl Kernel for Linux {
    fn links(&mut self) -> Result<BTreeMap<String, Link>, KernelError> {
        links(&mut self.socket)
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError> {
        link(&mut self.socket, name)
    }

    fn set_link(&mut self, name: &str, link: HostLink) -> Result<(), KernelError> {
        let index = index_of(&self.socket, name)?;
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::Address(link.mac.to_vec()));
        let request = Request {
            message: RouteNetlinkMessage::SetLink(message),
            flags: 0,
        };
        self.socket.request(request, &format!("set link {name} {link}"))
    }

    fn change_tunnel(&mut self, change: &TunnelChange) -> Result<(), KernelError> {
        overlay::change_tunnel(&mut self.socket, change)
    }

    fn addresses(&mut self) -> Result<BTreeMap<String, Vec<IpNetwork>>, KernelError> {
        let names_from = name_socket()?;
        let mut addresses: BTreeMap<String, Vec<IpNetwork>> = BTreeMap::new();
        self.socket
            .dump(&message::dump_addresses(), "list the addresses", |payload| {
                let Some(payload) = payload else {
                    addresses.clear();
                    return Ok(());
                };
                if let Some((index, address)) = overlay::parse_address(payload)?
                    && let Ok(name) = netdevice::index_to_name(&names_from, index)
                {
                    addresses.entry(name).or_default().push(address);
                }
                Ok(())
            })?;
        Ok(addresses)
    }

    fn change_address(&mut self, change: &AddressChange) -> Result<(), KernelError> {
        overlay::change_address(&mut self.socket, change)
    }

    fn neighbors(&mut self) -> Result<BTreeMap<NeighborKey, ObservedNeighbor>, KernelError> {
        neighbors::list(&mut self.socket)
    }

    fn change_neighbors(&mut self, changes: &[NeighborChange]) -> Vec<Result<(), KernelError>> {
        neighbors::change(&mut self.socket, changes)
    }

    fn proxy_neighbors(&mut self) -> Result<BTreeMap<ProxyNeighbor, Maker>, KernelError> {
        proxy_neighbors::list(&mut self.socket, namer()?)
    }

    fn change_proxy_neighbors(&mut self, changes: &[ProxyNeighborChange]) -> Vec<Result<(), KernelError>> {
        proxy_neighbors::change(&mut self.socket, changes)
    }

    fn source_towards(&mut self, destination: IpAddr) -> Result<Option<IpAddr>, KernelError> {
        let action = format!("look up the route to {destination}");
        match self.socket.ask(
            &message::look_up_route(destination),
            &action,
            overlay::parse_source,
        ) {
            Err(error) if matches!(error.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => Ok(None),
            result => result,
        }
    }

    fn delete_link(&mut self, name: &str, index: u32) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let request = Request {
            message: RouteNetlinkMessage::DelLink(message),
            flags: 0,
        };
        self.socket.request(request, &format!("delete link {name}"))
    }

    fn routes(&mut self) -> Result<BTreeMap<RouteKey, ObservedRoute>, KernelError> {
        let mut routes = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for protocol in ROUTE_PROTOCOLS {
                let seen = dump_routes(&mut self.socket, family, Some(protocol), |_| true)?;
                routes.extend(seen.into_iter().filter_map(|route| {
                    let origin = message::origin(route.protocol)?;
                    Some((
                        route.key,
                        ObservedRoute {
                            origin,
                            path: route.path,
                        },
                    ))
                }));
            }
        }
        Ok(routes)
    }

    fn foreign_routes(
        &mut self,
        keys: &BTreeSet<RouteKey>,
    ) -> Result<BTreeMap<RouteKey, ForeignRoute>, KernelError> {
        let mut routes = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let is_ipv6 = family == AddressFamily::Inet6;
            if keys.iter().any(|key| key.destination.is_ipv6() == is_ipv6) {
                let is_asked_for = |route: &message::SeenRoute| {
                    message::origin(route.protocol).is_none() && keys.contains(&route.key)
                };
                let seen = dump_routes(&mut self.socket, family, None, is_asked_for)?;
                for route in seen {
                    let described = message::describe(&route);
                    let path = route.path;
                    routes
                        .entry(route.key)
                        .or_insert(ForeignRoute { path, described });
                }
            }
        }
        Ok(routes)
    }

    fn change_routes(&mut self, changes: &[&RouteChange]) -> Vec<Result<(), KernelError>> {
        let mut indexes = message::Indexes::new();
        let mut missing = BTreeMap::new();
        for name in changes.iter().flat_map(|change| interfaces_of(change)) {
            if indexes.contains_key(name) || missing.contains_key(name) {
                continue;
            }
            match index_of(&self.socket, name) {
                Ok(index) => {
                    indexes.insert(name, index);
                }
                Err(error) => {
                    missing.insert(name, error);
                }
            }
        }
        if missing.is_empty() {
            return change_routes(&mut self.socket, changes, &indexes);
        }
        let missing_for = |change: &&RouteChange| {
            interfaces_of(change).find_map(|name| missing.get(name).map(|error| error.again(name)))
        };
        let unsent: Vec<Option<KernelError>> = changes.iter().map(missing_for).collect();
        let all = changes.iter().zip(&unsent);
        let sent: Vec<&RouteChange> = all
            .filter(|(_, unsent)| unsent.is_none())
            .map(|(change, _)| *change)
            .collect();
        let mut answers = change_routes(&mut self.socket, &sent, &indexes).into_iter();
        let unanswered = || KernelError::Malformed {
            action: "change routes".to_owned(),
            reason: "no answer".to_owned(),
        };
        unsent
            .into_iter()
            .map(|unsent| match unsent {
                Some(error) => Err(error),
                None => answers.next().unwrap_or_else(|| Err(unanswered())),
            })
            .collect()
    }

    fn rules(&mut self) -> Result<BTreeSet<Rule>, KernelError> {
        rule::list(&mut self.socket)
    }

    fn change_rule(&mut self, change: &RuleChange) -> Result<(), KernelError> {
        rule::change(&mut self.socket, change)
    }

    fn nexthops(&mut self) -> Result<SeenNexthops, KernelError> {
        nexthop::list(&mut self.socket, namer()?)
    }

    fn change_nexthops(&mut self, changes: &[NexthopChange]) -> Vec<Result<(), KernelError>> {
        nexthop::carry_out(&mut self.socket, changes, index_of)
    }

    fn sysctl(&mut self, path: &str) -> Result<Option<String>, KernelError> {
        proc::read(path)
    }

    fn set_sysctl(&mut self, path: &str, value: &str) -> Result<(), KernelError> {
        proc::write(path, value)
    }

    fn forget_connections(&mut self, filter: &ConnectionFilter) -> Result<usize, KernelError> {
        conntrack::forget(filter)
    }

    fn nft_tables(&mut self) -> Result<NftTables, KernelError> {
        nft::list()
    }

    fn our_nft_tables(&mut self) -> Result<Vec<NftFamily>, KernelError> {
        nft::tables()
    }

    fn delete_nft_table(&mut self, family: NftFamily) -> Result<(), KernelError> {
        nft::delete(family)
    }

    fn change_nft(&mut self, changes: &[NftChange]) -> Result<(), KernelError> {
        self.nft.carry_out(changes)
    }
}

/// Sends the changes; the interfaces that they name are in `indexes`.
fn change_routes(
    socket: &mut NetlinkSocket,
    changes: &[&RouteChange],
    indexes: &message::Indexes<'_>,
) -> Vec<Result<(), KernelError>> {
    let write = |position: usize, datagram: &mut Vec<u8>| {
        if let Some(change) = changes.get(position) {
            message::route_change(change, indexes, datagram);
        }
    };
    let action = |position: usize| changes.get(position).map(ToString::to_string).unwrap_or_default();
    socket.batch_bytes(changes.len(), write, action)
}

/// The interfaces that a change needs to be there.
fn interfaces_of(change: &RouteChange) -> impl Iterator<Item = &str> {
    let path = match change {
        Change::Create { value, .. } | Change::Replace { to: value, .. } => Some(&value.path),
        Change::Delete { .. } => None,
    };
    let (link, gateways) = match path {
        Some(RoutePath::Link { interface } | RoutePath::Onlink { interface, .. }) => {
            (Some(interface.as_str()), None)
        }
        Some(RoutePath::Via { gateways }) => (None, Some(gateways)),
        Some(RoutePath::Blackhole | RoutePath::Group { .. }) | None => (None, None),
    };
    let gateways = gateways.into_iter().flat_map(|gateways| gateways.iter());
    link.into_iter()
        .chain(gateways.filter_map(|gateway| gateway.interface.as_deref()))
}

/// All links of the socket's namespace, by name.
pub(crate) fn links(socket: &mut NetlinkSocket) -> Result<BTreeMap<String, Link>, KernelError> {
    let mut links = BTreeMap::new();
    socket.dump(&message::dump_links(), "list the links", |payload| {
        match payload {
            None => links.clear(),
            Some(payload) => {
                let (name, link) = message::parse_link(payload)?;
                links.insert(name, link);
            }
        }
        Ok(())
    })?;
    overlay::name_parents(&mut links);
    Ok(links)
}

/// The routes of a family that `keep` says yes to; with a protocol, only those that carry it.
pub(crate) fn dump_routes(
    socket: &mut NetlinkSocket,
    family: AddressFamily,
    protocol: Option<u8>,
    keep: impl Fn(&message::SeenRoute) -> bool,
) -> Result<Vec<message::SeenRoute>, KernelError> {
    let mut routes: Vec<message::SeenRoute> = Vec::new();
    let mut shared: BTreeSet<Gateways> = BTreeSet::new();
    let mut name_of = namer()?;
    let message = message::dump_routes(family, protocol);
    socket.dump(&message, "list the routes", |payload| {
        let Some(payload) = payload else {
            routes.clear();
            return Ok(());
        };
        if let Some(mut route) = message::parse_route(payload, &mut name_of)?
            && protocol.is_none_or(|protocol| route.protocol == protocol)
            && keep(&route)
        {
            if let Some(RoutePath::Via { gateways }) = &mut route.path {
                share(gateways, &mut shared);
            }
            routes.push(route);
        }
        Ok(())
    })?;
    Ok(routes)
}

/// Puts the gateways seen first in the place of the same ones seen again.
fn share(gateways: &mut Gateways, shared: &mut BTreeSet<Gateways>) {
    match shared.get(gateways) {
        Some(known) => gateways.clone_from(known),
        None => {
            shared.insert(Gateways::clone(gateways));
        }
    }
}

/// Names links by their indexes, each asked of the kernel once; `#7` for one that is gone.
fn namer() -> Result<impl FnMut(u32) -> String, KernelError> {
    let names_from = name_socket()?;
    let mut names = BTreeMap::new();
    Ok(move |index: u32| -> String {
        let name = || netdevice::index_to_name(&names_from, index).unwrap_or_else(|_| format!("#{index}"));
        names.entry(index).or_insert_with(name).clone()
    })
}

/// Index of a link, asked of the kernel at this moment.
pub(crate) fn index_of(socket: &NetlinkSocket, name: &str) -> Result<u32, KernelError> {
    netdevice::name_to_index(socket.socket(), name).map_err(|errno| match errno {
        rustix::io::Errno::NODEV => KernelError::NoSuchLink {
            name: name.to_owned(),
        },
        other => KernelError::Io {
            action: format!("find the index of link {name}"),
            source: other.into(),
        },
    })
}

/// One link of the socket's namespace.
pub(crate) fn link(socket: &mut NetlinkSocket, name: &str) -> Result<Option<Link>, KernelError> {
    let action = format!("get link {name}");
    match socket.ask(&message::get_link(name), &action, message::parse_link) {
        Ok((_, link)) => Ok(Some(link)),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a link of the socket's namespace passes packets. Since Linux 6.8 the kernel brings what it answers, and what
/// it does, up to date before it answers.
pub(crate) fn is_operational(socket: &mut NetlinkSocket, name: &str) -> Result<bool, KernelError> {
    let action = format!("get the state of link {name}");
    socket.ask(&message::get_link(name), &action, message::parse_operational)
}

/// The route that the kernel takes to an address, as the tables have it; `None`: there is none.
pub(crate) fn route_to(
    socket: &mut NetlinkSocket,
    address: IpAddr,
) -> Result<Option<message::SeenRoute>, KernelError> {
    let mut name_of = namer()?;
    let action = format!("get the route to {address}");
    let parse = |payload: &[u8]| message::parse_route(payload, &mut name_of);
    match socket.ask(&message::get_route(address), &action, parse) {
        Ok(route) => Ok(route),
        Err(error) if error.errno() == Some(libc::ENETUNREACH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The addresses of one link.
pub(crate) fn addresses(socket: &mut NetlinkSocket, index: u32) -> Result<BTreeSet<IpAddr>, KernelError> {
    let mut addresses = BTreeSet::new();
    socket.dump(&message::dump_addresses(), "list the addresses", |payload| {
        match payload {
            None => addresses.clear(),
            Some(payload) => addresses.extend(message::parse_address_of(payload, index)?),
        }
        Ok(())
    })?;
    Ok(addresses)
}

/// The permanent neighbours of one link: address and MAC address.
pub(crate) fn permanent_neighbours(
    socket: &mut NetlinkSocket,
    family: AddressFamily,
    index: u32,
) -> Result<BTreeMap<IpAddr, [u8; 6]>, KernelError> {
    let mut permanent = BTreeMap::new();
    let message = message::dump_neighbours(family);
    socket.dump(&message, "list the neighbours", |payload| {
        let Some(payload) = payload else {
            permanent.clear();
            return Ok(());
        };
        if let Some(seen) = neighbors::parse(payload)?
            && seen.index == index
            && let NeighborSubject::Address(address) = seen.subject
            && let Some(found) = seen.found.filter(|found| found.is_permanent)
            && let NeighborTarget::Mac(mac) = found.target
        {
            permanent.insert(address, mac);
        }
        Ok(())
    })?;
    Ok(permanent)
}

/// Netlink sockets are busy during a dump; names of links are asked for through one of another kind.
pub(super) fn name_socket() -> Result<OwnedFd, KernelError> {
    rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )
    .map_err(|errno| KernelError::Io {
        action: "open a socket".to_owned(),
        source: errno.into(),
    })
}
