//! Changes of routes, written straight into the datagram: a full table is programmed at the kernel's own speed, without a
//! value of `netlink-packet-route` for each route in between.
//!
//! Layouts: `struct nlmsghdr` (linux/netlink.h), `struct rtmsg`, `struct rtattr`, `struct rtnexthop` (linux/rtnetlink.h).

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};

use super::{
    NEXT_HOP_HEADER_BYTES, RTA_DST, RTA_GATEWAY, RTA_MULTIPATH, RTA_NH_ID, RTA_OIF, RTA_PRIORITY, RTA_TABLE,
    RTA_VIA, RTN_BLACKHOLE, RTN_UNICAST, protocol,
};
use crate::delta::Change;
use crate::desired::{Gateway, Route, RouteKey, RouteOrigin, RoutePath};
use crate::kernel::RouteChange;
use crate::kernel::wire::{attribute, message};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RT_SCOPE_NOWHERE: u8 = 255;
const RTN_UNSPEC: u8 = 0;
const RTNH_F_ONLINK: u32 = 4;

/// Indexes of the interfaces that the changes name.
pub(crate) type Indexes<'a> = BTreeMap<&'a str, u32>;

/// Appends the request for a change to the datagram. Its sequence number is 0, its flags lack an acknowledgement. Interfaces
/// that are not in `indexes` are left out: the kernel then finds its own, or refuses.
pub(crate) fn route_change(change: &RouteChange, indexes: &Indexes<'_>, datagram: &mut Vec<u8>) {
    let (kind, flags) = match change {
        Change::Create { .. } => (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL),
        Change::Replace { .. } => (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE),
        Change::Delete { .. } => (RTM_DELROUTE, 0),
    };
    message(kind, flags | NLM_F_REQUEST, datagram, |datagram| match change {
        Change::Create { key, value } => route(key, value, indexes, datagram),
        Change::Replace { key, to, .. } => route(key, to, indexes, datagram),
        // Any scope and any type; the protocol must be ours.
        Change::Delete { key, from } => {
            keyed((key, 0), from.origin, (RT_SCOPE_NOWHERE, RTN_UNSPEC), datagram);
        }
    });
}

fn route(key: &RouteKey, route: &Route, indexes: &Indexes<'_>, datagram: &mut Vec<u8>) {
    let is_ipv6 = key.destination.is_ipv6();
    let scope_and_type = match &route.path {
        RoutePath::Blackhole => (RT_SCOPE_UNIVERSE, RTN_BLACKHOLE),
        RoutePath::Link { .. } if !is_ipv6 => (RT_SCOPE_LINK, RTN_UNICAST),
        RoutePath::Link { .. }
        | RoutePath::Via { .. }
        | RoutePath::Group { .. }
        | RoutePath::Onlink { .. } => (RT_SCOPE_UNIVERSE, RTN_UNICAST),
    };
    let flags = match &route.path {
        RoutePath::Onlink { .. } => RTNH_F_ONLINK,
        _ => 0,
    };
    keyed((key, flags), route.origin, scope_and_type, datagram);
    let index = |name: &str| indexes.get(name).copied();
    match &route.path {
        RoutePath::Blackhole => {}
        RoutePath::Group { id } => attribute(RTA_NH_ID, &id.to_ne_bytes(), datagram),
        RoutePath::Link { interface } => {
            if let Some(index) = index(interface) {
                attribute(RTA_OIF, &index.to_ne_bytes(), datagram);
            }
        }
        RoutePath::Onlink {
            gateway: address,
            interface,
        } => {
            gateway(is_ipv6, *address, datagram);
            if let Some(index) = index(interface) {
                attribute(RTA_OIF, &index.to_ne_bytes(), datagram);
            }
        }
        RoutePath::Via { gateways } => match gateways.first() {
            Some(only) if gateways.len() == 1 => {
                gateway(is_ipv6, only.address, datagram);
                if let Some(index) = only.interface.as_deref().and_then(index) {
                    attribute(RTA_OIF, &index.to_ne_bytes(), datagram);
                }
            }
            _ => multipath(is_ipv6, gateways.iter(), indexes, datagram),
        },
    }
}

fn keyed(
    (key, flags): (&RouteKey, u32),
    origin: RouteOrigin,
    (scope, kind): (u8, u8),
    datagram: &mut Vec<u8>,
) {
    let destination = key.destination;
    let family = if destination.is_ipv6() {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    datagram.extend_from_slice(&[
        u8::try_from(family).unwrap_or_default(),
        destination.prefix(),
        0,
        0,
        // The field has eight bits; where they do not do, the attribute counts.
        u8::try_from(key.table).unwrap_or_default(),
        protocol(origin),
        scope,
        kind,
    ]);
    datagram.extend_from_slice(&flags.to_ne_bytes());
    if destination.prefix() > 0 {
        address(RTA_DST, destination.network(), datagram);
    }
    attribute(RTA_TABLE, &key.table.to_ne_bytes(), datagram);
    attribute(RTA_PRIORITY, &key.priority.to_ne_bytes(), datagram);
}

/// An IPv4 route through an IPv6 gateway says so with another attribute (RFC 8950).
fn gateway(is_ipv6: bool, gateway: IpAddr, datagram: &mut Vec<u8>) {
    match gateway {
        IpAddr::V6(v6) if !is_ipv6 => {
            let mut via = [0; 18];
            let family = u16::try_from(libc::AF_INET6).unwrap_or_default();
            via[..2].copy_from_slice(&family.to_ne_bytes());
            via[2..].copy_from_slice(&v6.octets());
            attribute(RTA_VIA, &via, datagram);
        }
        gateway => address(RTA_GATEWAY, gateway, datagram),
    }
}

fn multipath<'a>(
    is_ipv6: bool,
    gateways: impl Iterator<Item = &'a Gateway>,
    indexes: &Indexes<'_>,
    datagram: &mut Vec<u8>,
) {
    let mut hops = Vec::new();
    for hop in gateways {
        let start = hops.len();
        let index = hop
            .interface
            .as_deref()
            .and_then(|name| indexes.get(name).copied());
        hops.extend_from_slice(&[0; NEXT_HOP_HEADER_BYTES - 4]);
        hops.extend_from_slice(&index.unwrap_or_default().to_ne_bytes());
        gateway(is_ipv6, hop.address, &mut hops);
        let length = u16::try_from(hops.len() - start).unwrap_or_default();
        hops[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
    attribute(RTA_MULTIPATH, &hops, datagram);
}

fn address(kind: u16, address: IpAddr, datagram: &mut Vec<u8>) {
    match address {
        IpAddr::V4(v4) => attribute(kind, &v4.octets(), datagram),
        IpAddr::V6(v6) => attribute(kind, &v6.octets(), datagram),
    }
}
