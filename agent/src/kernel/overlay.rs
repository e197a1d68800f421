//! Tunnel devices and addresses: the requests, and what the kernel's answers say.
//!
//! Sources: linux/if_link.h, linux/if_addr.h.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::linux::index_of;
use super::message::{address, number, string};
use super::netlink::{NetlinkSocket, Request};
use super::{AddressChange, KernelError, Link, TunnelChange, address_message};
use crate::delta::Change;
use crate::desired::{Transport, Tunnel};
use crate::ours::TUNNEL_ALIAS;

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_TEMPORARY: u32 = 0x01;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_TENTATIVE: u32 = 0x40;
const ADDRESS_HEADER_BYTES: usize = 8;
const RT_SCOPE_UNIVERSE: u8 = 0;

const RTA_PREFSRC: u16 = 7;
const ROUTE_HEADER_BYTES: usize = 12;

/// Reads what a link carries packets in from its `IFLA_LINKINFO`. The parent comes as `#INDEX`: see [`name_parents`].
pub(super) fn parse_transport(info: &[u8]) -> Result<Option<Transport>, String> {
    let (mut kind, mut data) = (String::new(), Vec::new());
    for attribute in NlasIterator::new(info).map_while(Result::ok) {
        match attribute.kind() {
            IFLA_INFO_KIND => kind = string(attribute.value()),
            IFLA_INFO_DATA => data = attribute.value().to_vec(),
            _ => {}
        }
    }
    match kind.as_str() {
        "ipip" => Ok(Some(Transport::Ipip)),
        "vxlan" => parse_vxlan(&data),
        _ => Ok(None),
    }
}

/// A device without source address has the unspecified one.
fn parse_vxlan(data: &[u8]) -> Result<Option<Transport>, String> {
    let (mut vni, mut port, mut local, mut parent) = (0, 0, None, None);
    for attribute in NlasIterator::new(data) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        match attribute.kind() {
            IFLA_VXLAN_ID => vni = number(&attribute)?,
            IFLA_VXLAN_PORT => {
                let bytes = attribute
                    .value()
                    .try_into()
                    .map_err(|_| "vxlan port is no number")?;
                port = u16::from_be_bytes(bytes);
            }
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => {
                local = Some(address(attribute.value())?);
            }
            IFLA_VXLAN_LINK => parent = Some(number(&attribute)?).filter(|index| *index != 0),
            _ => {}
        }
    }
    Ok(Some(Transport::Vxlan {
        vni,
        port,
        local: local.unwrap_or(IpAddr::from([0; 4])),
        parent: parent.map(|index| format!("#{index}")),
    }))
}

/// Puts the names of parents in the place of their indexes.
pub(super) fn name_parents(links: &mut BTreeMap<String, Link>) {
    let names: BTreeMap<String, String> = links
        .iter()
        .map(|(name, link)| (format!("#{}", link.index), name.clone()))
        .collect();
    for link in links.values_mut() {
        if let Some(Transport::Vxlan {
            parent: Some(parent), ..
        }) = &mut link.transport
            && let Some(name) = names.get(parent)
        {
            parent.clone_from(name);
        }
    }
}

pub(super) fn change_tunnel(socket: &mut NetlinkSocket, change: &TunnelChange) -> Result<(), KernelError> {
    match change {
        Change::Create { key, value } => create(socket, key, value),
        Change::Replace { key, from, to } if from.transport.as_ref() == Some(&to.transport) => {
            set(socket, key, (from.index, from.mac), to)
        }
        Change::Replace { key, from, to } => {
            delete(socket, key, from.index)?;
            create(socket, key, to)
        }
        // The kernel does not remove the IPIP device that it made itself: it is left down, and without our mark.
        Change::Delete { key, from } if from.transport == Some(Transport::Ipip) => {
            let mut message = LinkMessage::default();
            message.header.index = from.index;
            message.header.change_mask = LinkFlags::Up;
            message.attributes.push(LinkAttribute::IfAlias(String::new()));
            request(
                socket,
                RouteNetlinkMessage::SetLink(message),
                0,
                &format!("set tunnel {key} down"),
            )
        }
        Change::Delete { key, from } => match delete(socket, key, from.index) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
            result => result,
        },
    }
}

fn create(socket: &mut NetlinkSocket, name: &str, tunnel: &Tunnel) -> Result<(), KernelError> {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    let info = match &tunnel.transport {
        Transport::Ipip => vec![LinkInfo::Kind(InfoKind::IpIp)],
        Transport::Vxlan {
            vni,
            port,
            local,
            parent,
        } => {
            let local = match local {
                IpAddr::V4(v4) => InfoVxlan::Local(*v4),
                IpAddr::V6(v6) => InfoVxlan::Local6(*v6),
            };
            let mut data = vec![
                InfoVxlan::Id(*vni),
                local,
                InfoVxlan::Port(*port),
                InfoVxlan::Learning(false),
            ];
            if let Some(parent) = parent {
                data.push(InfoVxlan::Link(index_of(socket, parent)?));
            }
            vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(data)),
            ]
        }
    };
    message.attributes.push(LinkAttribute::LinkInfo(info));
    let action = format!("create tunnel {name} {tunnel}");
    match request(
        socket,
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
        &action,
    ) {
        // Loading the module made the device.
        Err(error) if tunnel.transport == Transport::Ipip && error.errno() == Some(libc::EEXIST) => {}
        result => result?,
    }
    let index = index_of(socket, name)?;
    set(socket, name, (index, None), tunnel)
}

/// MTU, MAC address, our mark; up. A MAC address that the link has is not written: the kernel would forget its neighbours.
fn set(
    socket: &mut NetlinkSocket,
    name: &str,
    (index, found): (u32, Option<[u8; 6]>),
    tunnel: &Tunnel,
) -> Result<(), KernelError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::Mtu(tunnel.mtu),
        LinkAttribute::IfAlias(TUNNEL_ALIAS.to_owned()),
    ];
    if let Some(mac) = tunnel.mac.filter(|mac| found != Some(*mac)) {
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    }
    request(
        socket,
        RouteNetlinkMessage::SetLink(message),
        0,
        &format!("set tunnel {name} {tunnel}"),
    )
}

fn delete(socket: &mut NetlinkSocket, name: &str, index: u32) -> Result<(), KernelError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    request(
        socket,
        RouteNetlinkMessage::DelLink(message),
        0,
        &format!("delete tunnel {name}"),
    )
}

fn request(
    socket: &mut NetlinkSocket,
    message: RouteNetlinkMessage,
    flags: u16,
    action: &str,
) -> Result<(), KernelError> {
    socket.request(Request { message, flags }, action)
}

/// Reads an address that others can reach: the index of its link, and the address. `None` for others, and for those that are
/// not to be relied on (tentative, deprecated, temporary).
pub(super) fn parse_address(payload: &[u8]) -> Result<Option<(u32, IpNetwork)>, String> {
    let header: &[u8; ADDRESS_HEADER_BYTES] = payload.first_chunk().ok_or("address header cut short")?;
    let [_, prefix, flags, scope, i0, i1, i2, i3] = *header;
    let (mut local, mut plain, mut flags) = (None, None, u32::from(flags));
    for attribute in NlasIterator::new(payload.get(ADDRESS_HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        match attribute.kind() {
            IFA_LOCAL => local = Some(address(attribute.value())?),
            IFA_ADDRESS => plain = Some(address(attribute.value())?),
            IFA_FLAGS => flags = number(&attribute)?,
            _ => {}
        }
    }
    let Some(found) = local.or(plain) else {
        return Ok(None);
    };
    // For IPv4 the first flag means a secondary address.
    let unreliable = IFA_F_DADFAILED | IFA_F_DEPRECATED | IFA_F_TENTATIVE | IFA_F_TEMPORARY;
    if scope != RT_SCOPE_UNIVERSE || (found.is_ipv6() && flags & unreliable != 0) {
        return Ok(None);
    }
    let network = IpNetwork::new(found, prefix).map_err(|error| error.to_string())?;
    Ok(Some((u32::from_ne_bytes([i0, i1, i2, i3]), network)))
}

pub(super) fn change_address(socket: &mut NetlinkSocket, change: &AddressChange) -> Result<(), KernelError> {
    let key = change.key();
    let index = index_of(socket, &key.interface)?;
    let message = address_message(index, key.address.ip(), key.address.prefix());
    match change {
        Change::Create { .. } | Change::Replace { .. } => request(
            socket,
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
            &format!("add address {key}"),
        ),
        Change::Delete { .. } => request(
            socket,
            RouteNetlinkMessage::DelAddress(message),
            0,
            &format!("remove address {key}"),
        ),
    }
}

/// Reads the source address of the answer to a question for a route.
pub(super) fn parse_source(payload: &[u8]) -> Result<Option<IpAddr>, String> {
    let mut source = None;
    for attribute in NlasIterator::new(payload.get(ROUTE_HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        if attribute.kind() == RTA_PREFSRC {
            source = Some(address(attribute.value())?);
        }
    }
    Ok(source)
}
