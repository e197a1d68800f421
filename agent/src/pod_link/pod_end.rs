//! The pod's end, from inside the pod's namespace.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::{GATEWAY_V4, NewLink, gateways};
use crate::kernel::netlink::{NetlinkSocket, Request};
use crate::kernel::{self, KernelError, linux, message, proc};
use crate::ours::HOST_MAC;

/// Creates the pair, to be called in the pod's namespace. On failure the pair is deleted. Returns the index of this end and the
/// socket, which stays in the pod's namespace.
pub(super) fn create(link: &NewLink, host_namespace: &File) -> Result<(u32, NetlinkSocket), KernelError> {
    let mut pod = NetlinkSocket::open()?;
    let action = format!(
        "create the pair {} (pod) and {} (host)",
        link.id.ifname, link.host_interface
    );
    pod.request(
        Request {
            message: veth(link, host_namespace),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        },
        &action,
    )?;
    let index = linux::index_of(&pod, &link.id.ifname)?;
    let result = set_parameters(link);
    if result.is_err() {
        let _ = pod.request(
            Request {
                message: delete(index),
                flags: 0,
            },
            "delete the pair again",
        );
    }
    result.map(|()| (index, pod))
}

/// The MAC address of this end.
pub(super) fn mac(pod: &mut NetlinkSocket, ifname: &str) -> Result<[u8; 6], KernelError> {
    let mac = linux::link(pod, ifname)?.and_then(|found| found.mac);
    mac.ok_or_else(|| KernelError::NoSuchLink {
        name: ifname.to_owned(),
    })
}

/// A request to delete a link.
fn delete(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::DelLink(message)
}

/// A request to set a link up.
fn up(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    RouteNetlinkMessage::SetLink(message)
}

/// A request to add an address that is usable at once, without duplicate address detection.
pub(super) fn add_address(index: u32, address: IpAddr, prefix: u8) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewAddress(kernel::address_message(index, address, prefix))
}

/// As Calico does: a veth passes packets on without queueing, and the kernel would make queues for every processor.
const ONE_QUEUE: [LinkAttribute; 2] = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];

fn veth(link: &NewLink, host_namespace: &File) -> RouteNetlinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(link.host_interface.clone()),
        LinkAttribute::Address(HOST_MAC.to_vec()),
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::NetNsFd(host_namespace.as_raw_fd()),
    ];
    peer.attributes.extend(ONE_QUEUE);
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(link.id.ifname.clone()),
        LinkAttribute::Mtu(link.mtu),
    ];
    message.attributes.extend(ONE_QUEUE);
    if let Some(mac) = link.mac {
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    }
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    RouteNetlinkMessage::NewLink(message)
}

fn set_parameters(link: &NewLink) -> Result<(), KernelError> {
    if link.families.v6 {
        let ifname = &link.id.ifname;
        // Some runtimes switch IPv6 off in new namespaces.
        for interface in ["all", "default", "lo", ifname] {
            proc::set(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "0")?;
        }
        // The address was given by the allocator: nobody else has it, and detection would hold the first packet back.
        proc::set(&format!("net/ipv6/conf/{ifname}/accept_dad"), "0")?;
    }
    Ok(())
}

/// Sets the pod's loopback and this end up.
pub(super) fn set_up(pod: &mut NetlinkSocket, ifname: &str, index: u32) -> Result<(), KernelError> {
    let lo = up(linux::index_of(pod, "lo")?);
    let requests = [lo, up(index)].map(|message| Request { message, flags: 0 });
    let name = |position| if position == 0 { "lo" } else { ifname };
    pod.batch(&requests, |position| format!("set {} up", name(position)))
        .into_iter()
        .collect()
}

/// Gives this end its addresses, neighbours and routes. Returns the gateways that a default route was made to: a further
/// interface of a pod gets none, since the first one has it and keeps it.
pub(super) fn configure(
    pod: &mut NetlinkSocket,
    ifname: &str,
    index: u32,
    addresses: &BTreeSet<IpAddr>,
) -> Result<Vec<IpAddr>, KernelError> {
    let mut steps = Vec::new();
    for address in addresses {
        let prefix = if address.is_ipv6() { 128 } else { 32 };
        let action = format!("add address {address}/{prefix} to {ifname}");
        steps.push((
            action,
            add_address(index, *address, prefix),
            NLM_F_CREATE | NLM_F_EXCL,
        ));
    }
    let gateways = gateways(addresses);
    steps.extend(
        gateways
            .iter()
            .map(|(gateway, _)| neighbour_step(index, *gateway)),
    );
    let routes = steps.len();
    if addresses.iter().any(IpAddr::is_ipv4) {
        steps.push(route_step(index, Some(IpAddr::V4(GATEWAY_V4)), None));
    }
    let default_routes = steps.len();
    steps.extend(
        gateways
            .iter()
            .map(|(gateway, _)| route_step(index, None, Some(*gateway))),
    );
    let (actions, requests): (Vec<_>, Vec<_>) = steps
        .into_iter()
        .map(|(action, message, flags)| (action, Request { message, flags }))
        .unzip();
    let results = pod.batch(&requests, |position| {
        actions.get(position).cloned().unwrap_or_default()
    });
    let mut reached = Vec::new();
    for (position, result) in results.into_iter().enumerate() {
        match result {
            Err(error) if position >= routes && error.errno() == Some(libc::EEXIST) => {}
            Err(error) => return Err(error),
            Ok(()) => {
                let gateway = position.checked_sub(default_routes);
                reached.extend(gateway.and_then(|at| Some(gateways.get(at)?.0)));
            }
        }
    }
    Ok(reached)
}

/// The gateway's MAC address, for good: the first packet waits for no answer, and no answer is needed. The host would
/// give one for IPv4 only while it has a route to 169.254.1.1, that is, a default route.
fn neighbour_step(index: u32, gateway: IpAddr) -> (String, RouteNetlinkMessage, u16) {
    let mut message = NeighbourMessage::default();
    message.header.family = message::family(gateway.is_ipv6());
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::from(gateway)),
        NeighbourAttribute::LinkLayerAddress(HOST_MAC.to_vec()),
    ];
    let action = format!("add the neighbour {gateway} in the pod");
    (
        action,
        RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// A route through this end: to `destination` (`None`: default) directly, or through `gateway`.
fn route_step(
    index: u32,
    destination: Option<IpAddr>,
    gateway: Option<IpAddr>,
) -> (String, RouteNetlinkMessage, u16) {
    let is_ipv6 = destination.or(gateway).is_some_and(|address| address.is_ipv6());
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: message::family(is_ipv6),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Boot,
        scope: if gateway.is_some() || is_ipv6 {
            RouteScope::Universe
        } else {
            RouteScope::Link
        },
        kind: RouteType::Unicast,
        // The gateway is on this link, whatever other interfaces the pod has a route to it through.
        flags: if gateway.is_some() {
            RouteFlags::Onlink
        } else {
            RouteFlags::empty()
        },
        ..RouteHeader::default()
    };
    if let Some(address) = destination {
        message.header.destination_prefix_length = if is_ipv6 { 128 } else { 32 };
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::from(address)));
    }
    if let Some(address) = gateway {
        message
            .attributes
            .push(RouteAttribute::Gateway(RouteAddress::from(address)));
    }
    message.attributes.push(RouteAttribute::Oif(index));
    let action = match (destination, gateway) {
        (Some(address), _) => format!("add the route to {address} in the pod"),
        (None, Some(address)) => format!("add the default route through {address} in the pod"),
        (None, None) => "add the default route in the pod".to_owned(),
    };
    (
        action,
        RouteNetlinkMessage::NewRoute(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}
