//! The host's end, from the host's namespace.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use super::{GATEWAY_V6, NewLink, PodLinkError, pod_end, removal};
use crate::desired::sysctl;
use crate::kernel::netlink::{NetlinkSocket, Request};
use crate::kernel::{KernelError, Link, linux, proc};
use crate::model::EndpointId;
use crate::ours;

/// Sets the link's parameters, then marks it as ours and sets it up, both in one. Returns its index.
pub(super) fn set_up(host: &mut NetlinkSocket, link: &NewLink) -> Result<u32, KernelError> {
    let name = &link.host_interface;
    let index = linux::index_of(host, name)?;
    for (path, value) in sysctl::of_host_interface_ipv4(name) {
        proc::set(&path, &value)?;
    }
    if link.families.v6 {
        for (path, value) in sysctl::of_host_interface_ipv6(name) {
            proc::set(&path, &value)?;
        }
        // 1: no link-local address of the kernel's choice. The pods' gateway is given by hand, just below.
        proc::set(&format!("net/ipv6/conf/{name}/addr_gen_mode"), "1")?;
    }
    let mut up = LinkMessage::default();
    up.header.index = index;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    up.attributes.push(LinkAttribute::IfAlias(ours::alias(&link.id)));
    let request = Request {
        message: RouteNetlinkMessage::SetLink(up),
        flags: 0,
    };
    host.request(request, &format!("set {name} up, with its alias"))?;
    if link.families.v6 {
        let message = pod_end::add_address(index, IpAddr::V6(GATEWAY_V6), 64);
        let request = Request {
            message,
            flags: NLM_F_CREATE | NLM_F_REPLACE,
        };
        host.request(request, &format!("add address {GATEWAY_V6}/64 to {name}"))?;
    }
    Ok(index)
}

/// As [`remove`], if it is that of the attachment `id`, or half made.
pub(super) fn remove_of(host: &mut NetlinkSocket, name: &str, id: &EndpointId) -> Result<bool, PodLinkError> {
    match linux::link(host, name)? {
        Some(link) if ours::is_our_link(name, &link) && link.alias != Some(ours::alias(id)) => Ok(false),
        Some(link) => delete(host, name, &link),
        None => Ok(false),
    }
}

/// Removes a host end of ours, and with it the pod's end. Returns whether there was one.
pub(super) fn remove(host: &mut NetlinkSocket, name: &str) -> Result<bool, PodLinkError> {
    match linux::link(host, name)? {
        Some(link) => delete(host, name, &link),
        None => Ok(false),
    }
}

/// Deletes by index: a link of the same name that somebody makes at this moment is another one.
fn delete(host: &mut NetlinkSocket, name: &str, link: &Link) -> Result<bool, PodLinkError> {
    if !ours::is_our_link(name, link) && !ours::is_half_made(name, link) {
        return Err(PodLinkError::NameTaken(name.to_owned()));
    }
    match removal::delete(host, name, link.index) {
        Ok(()) => Ok(true),
        // The pod's namespace ended at this moment, and its links with it.
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
