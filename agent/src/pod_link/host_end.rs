//! The host's end, from the host's namespace.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use super::{GATEWAY_V6, PodLink, PodLinkError, pod_end};
use crate::desired::sysctl;
use crate::kernel::netlink::{NetlinkSocket, Request};
use crate::kernel::{KernelError, Link, linux, proc};
use crate::model::EndpointId;
use crate::ours;

/// Marks the link as ours, sets its parameters, then sets it up.
pub(super) fn set_up(host: &mut NetlinkSocket, link: &PodLink) -> Result<(), KernelError> {
    let name = &link.host_interface;
    let index = linux::index_of(host, name)?;
    let mut alias = LinkMessage::default();
    alias.header.index = index;
    alias
        .attributes
        .push(LinkAttribute::IfAlias(ours::alias(&link.id)));
    let request = Request {
        message: RouteNetlinkMessage::SetLink(alias),
        flags: 0,
    };
    host.request(request, &format!("set the alias of {name}"))?;
    for (path, value) in sysctl::of_host_interface_ipv4(name) {
        proc::set(&path, &value)?;
    }
    if link.has_ipv6() {
        for (path, value) in sysctl::of_host_interface_ipv6(name) {
            proc::set(&path, &value)?;
        }
        // 1: no link-local address of the kernel's choice. The pods' gateway is given by hand, just below.
        proc::set(&format!("net/ipv6/conf/{name}/addr_gen_mode"), "1")?;
    }
    host.request(
        Request {
            message: pod_end::up(index),
            flags: 0,
        },
        &format!("set {name} up"),
    )?;
    if link.has_ipv6() {
        let message = pod_end::add_address(index, IpAddr::V6(GATEWAY_V6), 64);
        let request = Request {
            message,
            flags: NLM_F_CREATE | NLM_F_REPLACE,
        };
        host.request(request, &format!("add address {GATEWAY_V6}/64 to {name}"))?;
    }
    Ok(())
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
    let request = Request {
        message: pod_end::delete(link.index),
        flags: 0,
    };
    match host.request(request, &format!("delete link {name}")) {
        Ok(()) => Ok(true),
        // The pod's namespace ended at this moment, and its links with it.
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
