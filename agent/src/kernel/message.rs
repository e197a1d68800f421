//! Between our values and rtnetlink messages. Messages to the kernel are built with `netlink-packet-route`, those that come
//! by the hundred thousand (`encode`) byte by byte; messages from it are read attribute by attribute, so that an unknown attribute of a foreign link or route is no error.

mod encode;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NlaBuffer, NlasIterator};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Link, overlay};
use crate::desired::{Gateway, MAIN_TABLE, RouteKey, RouteOrigin, RoutePath, default_prefix};
use crate::ours::{ROUTE_PROTOCOL_BGP, ROUTE_PROTOCOL_CLUSTER, ROUTE_PROTOCOL_LOCAL};

pub(crate) use encode::{Indexes, route_change};

// linux/rtnetlink.h
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const RTN_UNICAST: u8 = 1;
const RTN_BLACKHOLE: u8 = 6;
const RTNH_F_ONLINK: u32 = 4;
const RTM_F_CLONED: u32 = 0x200;
const RTM_F_FIB_MATCH: u32 = 0x2000;
const ROUTE_HEADER_BYTES: usize = 12;
const NEXT_HOP_HEADER_BYTES: usize = 8;

// linux/if_link.h, linux/if.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_OPERSTATE: u16 = 16;
const IF_OPER_UP: u8 = 6;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_INFO_KIND: u16 = 1;
const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 0x40;
const LINK_HEADER_BYTES: usize = 16;

// linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const ADDRESS_HEADER_BYTES: usize = 8;

/// Address family of an address.
pub(crate) fn family(is_ipv6: bool) -> AddressFamily {
    if is_ipv6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    }
}

/// A request for all routes of a family; with a protocol, the kernel leaves the others out.
pub(crate) fn dump_routes(family: AddressFamily, protocol: Option<u8>) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.protocol = protocol.map_or(RouteProtocol::Unspec, RouteProtocol::from);
    RouteNetlinkMessage::GetRoute(message)
}

/// A request for all links, without their statistics.
pub(crate) fn dump_links() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// A request for one link, without its statistics.
pub(crate) fn get_link(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// A request for the entry of the routing tables that leads to an address.
pub(crate) fn get_route(address: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address.is_ipv6());
    message.header.destination_prefix_length = if address.is_ipv6() { 128 } else { 32 };
    message.header.flags = RouteFlags::from_bits_retain(RTM_F_FIB_MATCH);
    message
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::from(address)));
    RouteNetlinkMessage::GetRoute(message)
}

/// A request for all addresses.
pub(crate) fn dump_addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

/// A request for the way that packets to an address go now.
pub(crate) fn look_up_route(address: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address.is_ipv6());
    message.header.destination_prefix_length = if address.is_ipv6() { 128 } else { 32 };
    message
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::from(address)));
    RouteNetlinkMessage::GetRoute(message)
}

/// Reads an address; `None` if it belongs to another link.
pub(crate) fn parse_address_of(payload: &[u8], index: u32) -> Result<Option<IpAddr>, String> {
    let header: &[u8; ADDRESS_HEADER_BYTES] = payload.first_chunk().ok_or("address header cut short")?;
    let [_, _, _, _, i0, i1, i2, i3] = *header;
    if u32::from_ne_bytes([i0, i1, i2, i3]) != index {
        return Ok(None);
    }
    let (mut local, mut plain) = (None, None);
    for attribute in NlasIterator::new(payload.get(ADDRESS_HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        match attribute.kind() {
            IFA_LOCAL => local = Some(address(attribute.value())?),
            IFA_ADDRESS => plain = Some(address(attribute.value())?),
            _ => {}
        }
    }
    Ok(local.or(plain))
}

/// A request for all neighbours of a family.
pub(crate) fn dump_neighbours(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    RouteNetlinkMessage::GetNeighbour(message)
}

/// The protocol number that stands for an origin in the kernel.
pub(crate) fn protocol(origin: RouteOrigin) -> u8 {
    match origin {
        RouteOrigin::Local => ROUTE_PROTOCOL_LOCAL,
        RouteOrigin::Bgp => ROUTE_PROTOCOL_BGP,
        RouteOrigin::Cluster => ROUTE_PROTOCOL_CLUSTER,
    }
}

/// The origin that a protocol number stands for; `None`: the route is not ours.
pub(crate) fn origin(protocol: u8) -> Option<RouteOrigin> {
    match protocol {
        ROUTE_PROTOCOL_LOCAL => Some(RouteOrigin::Local),
        ROUTE_PROTOCOL_BGP => Some(RouteOrigin::Bgp),
        ROUTE_PROTOCOL_CLUSTER => Some(RouteOrigin::Cluster),
        _ => None,
    }
}

/// A route as a message from the kernel has it.
pub(crate) struct SeenRoute {
    /// Its key.
    pub(crate) key: RouteKey,
    /// Its protocol number.
    pub(crate) protocol: u8,
    /// Where it leads; `None` for a kind that we never make.
    pub(crate) path: Option<RoutePath>,
}

/// Reads a route. `None`: not a route of the tables (a cached one, or one for a type of service), nothing to do with us.
pub(crate) fn parse_route(
    payload: &[u8],
    name_of: &mut impl FnMut(u32) -> String,
) -> Result<Option<SeenRoute>, String> {
    let header: &[u8; ROUTE_HEADER_BYTES] = payload.first_chunk().ok_or("route header cut short")?;
    let [family, prefix, _, tos, table, protocol, _, kind, f0, f1, f2, f3] = *header;
    let is_ipv6 = match i32::from(family) {
        libc::AF_INET => false,
        libc::AF_INET6 => true,
        _ => return Ok(None),
    };
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    if tos != 0 || flags & RTM_F_CLONED != 0 {
        return Ok(None);
    }
    let mut destination = default_prefix(is_ipv6).network();
    let mut key_table = u32::from(table);
    let mut priority = 0;
    let mut hop = Hop::default();
    let mut hops = Vec::new();
    let mut group = None;
    for attribute in NlasIterator::new(payload.get(ROUTE_HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        match attribute.kind() {
            RTA_DST => destination = address(attribute.value())?,
            RTA_TABLE => key_table = number(&attribute)?,
            RTA_PRIORITY => priority = number(&attribute)?,
            RTA_MULTIPATH => hops = parse_multipath(attribute.value())?,
            RTA_NH_ID => group = Some(number(&attribute)?),
            _ => hop.take(&attribute)?,
        }
    }
    let destination = IpNetwork::new(destination, prefix).map_err(|error| error.to_string())?;
    if hops.is_empty() {
        hops.push(hop);
    }
    // Of a route of others it is told where the object that it refers to leads, unless the kernel was told not to
    // (`net.ipv4.nexthop_compat_mode`).
    let group = group.filter(|_| origin(protocol).is_some());
    let path = match kind {
        RTN_BLACKHOLE => Some(RoutePath::Blackhole),
        RTN_UNICAST if group.is_some() => group.map(|id| RoutePath::Group { id }),
        RTN_UNICAST => unicast_path(hops, flags & RTNH_F_ONLINK, name_of),
        _ => None,
    };
    Ok(Some(SeenRoute {
        key: RouteKey {
            table: key_table,
            destination,
            priority,
        },
        protocol,
        path,
    }))
}

#[derive(Default)]
struct Hop {
    gateway: Option<IpAddr>,
    interface: Option<u32>,
}

impl Hop {
    fn take(&mut self, attribute: &NlaBuffer<&[u8]>) -> Result<(), String> {
        match attribute.kind() {
            RTA_OIF => self.interface = Some(number(attribute)?),
            RTA_GATEWAY => self.gateway = Some(address(attribute.value())?),
            // struct rtvia: family, then the address.
            RTA_VIA => self.gateway = Some(address(attribute.value().get(2..).unwrap_or_default())?),
            _ => {}
        }
        Ok(())
    }
}

/// A sequence of `struct rtnexthop`: length, flags, weight, interface index, attributes.
fn parse_multipath(mut bytes: &[u8]) -> Result<Vec<Hop>, String> {
    let mut hops = Vec::new();
    while !bytes.is_empty() {
        let [l0, l1, _, _, i0, i1, i2, i3] = *bytes
            .first_chunk::<NEXT_HOP_HEADER_BYTES>()
            .ok_or("next hop cut short")?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let attributes = bytes
            .get(NEXT_HOP_HEADER_BYTES..length)
            .ok_or("next hop of impossible length")?;
        let mut hop = Hop {
            gateway: None,
            interface: Some(u32::from_ne_bytes([i0, i1, i2, i3])),
        };
        for attribute in NlasIterator::new(attributes) {
            hop.take(&attribute.map_err(|error| error.to_string())?)?;
        }
        hops.push(hop);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(hops)
}

fn unicast_path(hops: Vec<Hop>, onlink: u32, name_of: &mut impl FnMut(u32) -> String) -> Option<RoutePath> {
    if let ([hop], true) = (hops.as_slice(), onlink != 0) {
        return Some(RoutePath::Onlink {
            gateway: hop.gateway?,
            interface: name_of(hop.interface?),
        });
    }
    let mut gateways = BTreeSet::new();
    let mut direct = None;
    let count = hops.len();
    for hop in hops {
        let interface = hop.interface.map(&mut *name_of);
        match hop.gateway {
            Some(address) => {
                gateways.insert(Gateway { address, interface });
            }
            None => direct = interface,
        }
    }
    match direct {
        None if !gateways.is_empty() => Some(RoutePath::via(gateways)),
        Some(interface) if count == 1 => Some(RoutePath::Link { interface }),
        _ => None,
    }
}

/// Reads a link: its name and what we keep of it.
pub(crate) fn parse_link(payload: &[u8]) -> Result<(String, Link), String> {
    let header: &[u8; LINK_HEADER_BYTES] = payload.first_chunk().ok_or("link header cut short")?;
    let [_, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *header;
    let mut name = String::new();
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    let mut link = Link {
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        up: flags & IFF_UP != 0,
        running: flags & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING,
        mac: None,
        mtu: 0,
        alias: None,
        is_veth: false,
        peer_index: None,
        transport: None,
    };
    for attribute in NlasIterator::new(payload.get(LINK_HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        match attribute.kind() {
            IFLA_IFNAME => name = string(attribute.value()),
            IFLA_ADDRESS => link.mac = attribute.value().try_into().ok(),
            IFLA_MTU => link.mtu = number(&attribute)?,
            IFLA_IFALIAS => link.alias = Some(string(attribute.value())),
            IFLA_LINK => link.peer_index = Some(number(&attribute)?),
            IFLA_LINKINFO => {
                link.transport = overlay::parse_transport(attribute.value())?;
                link.is_veth = NlasIterator::new(attribute.value())
                    .map_while(Result::ok)
                    .any(|info| info.kind() == IFLA_INFO_KIND && string(info.value()) == "veth");
            }
            _ => {}
        }
    }
    if name.is_empty() {
        Err(format!("link {} without a name", link.index))
    } else {
        Ok((name, link))
    }
}

/// Whether a link passes packets: its operational state is "up" (RFC 2863), not just its administrative one.
pub(crate) fn parse_operational(payload: &[u8]) -> Result<bool, String> {
    for attribute in NlasIterator::new(payload.get(LINK_HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        if attribute.kind() == IFLA_OPERSTATE {
            return Ok(attribute.value() == [IF_OPER_UP]);
        }
    }
    Err("link without an operational state".to_owned())
}

/// Describes a route of somebody else for people, in the words of `ip route`.
pub(crate) fn describe(route: &SeenRoute) -> String {
    let path = route
        .path
        .as_ref()
        .map_or_else(|| "of a special kind".to_owned(), ToString::to_string);
    let table = if route.key.table == MAIN_TABLE {
        String::new()
    } else {
        format!(" table {}", route.key.table)
    };
    format!(
        "{} {path} proto {} metric {}{table}",
        route.key.destination, route.protocol, route.key.priority
    )
}

pub(crate) fn number(attribute: &NlaBuffer<&[u8]>) -> Result<u32, String> {
    let bytes = attribute
        .value()
        .try_into()
        .map_err(|_| format!("attribute {} is no number", attribute.kind()))?;
    Ok(u32::from_ne_bytes(bytes))
}

pub(crate) fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::V4(Ipv4Addr::from(four)));
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(sixteen) => Ok(IpAddr::V6(Ipv6Addr::from(sixteen))),
        Err(_) => Err(format!("an address of {} bytes", bytes.len())),
    }
}

pub(crate) fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests;
