//! The host's end, from the host's namespace.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST};

use super::{GATEWAY_V6, NewLink, PodLinkError, name::alias, pod_end, removal};
use crate::desired::sysctl;
use crate::kernel::netlink::{NetlinkSocket, Request};
use crate::kernel::wire::{attribute, message, nested};
use crate::kernel::{KernelError, linux, proc};
use crate::model::EndpointId;

const RTM_SETLINK: u16 = 19;
const RTM_SETNEIGHTBL: u16 = 67;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const NDTA_NAME: u16 = 1;
const NDTA_PARMS: u16 = 6;
const NDTPA_IFINDEX: u16 = 1;
const NDTPA_PROXY_DELAY: u16 = 13;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;

/// Sets the link's parameters, marks it as ours and sets it up. Returns its index.
pub(super) fn set_up(host: &mut NetlinkSocket, link: &NewLink) -> Result<u32, KernelError> {
    let name = &link.host_interface;
    let index = linux::index_of(host, name)?;
    if link.families.v6 {
        for (path, value) in sysctl::of_host_interface_ipv6(name) {
            proc::set(&path, &value)?;
        }
    }
    match set_parameters_and_up(host, link, index, Ipv6::There) {
        Err(error) if error.errno() == Some(libc::EAFNOSUPPORT) && !link.families.v6 => {
            set_parameters_and_up(host, link, index, Ipv6::Missing)?;
        }
        result => result?,
    }
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

/// Whether the kernel has IPv6.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ipv6 {
    There,
    Missing,
}

fn set_parameters_and_up(
    host: &mut NetlinkSocket,
    link: &NewLink,
    index: u32,
    ipv6: Ipv6,
) -> Result<(), KernelError> {
    let name = &link.host_interface;
    let write = |position: usize, datagram: &mut Vec<u8>| match position {
        0 => set_neighbour_parameters(index, datagram),
        _ => set_link_up(index, &alias(&link.id), ipv6, datagram),
    };
    let action = |position| match position {
        0 => format!("set the neighbour parameters of {name}"),
        _ => format!("set {name} up, with its alias and parameters"),
    };
    host.batch_bytes(2, write, action).into_iter().collect()
}

/// Up, alias and IPv4 parameters in one message: as files (`/proc/sys/net/ipv4/conf`) the parameters would cost a quarter of
/// what a pair costs to make. `struct ifinfomsg`, and attributes as in `inet_set_link_af` of the kernel's net/ipv4/devinet.c.
///
/// The link gets no IPv6 address of the kernel's choice: the pods' gateway is given by hand where pods have IPv6, and where they
/// have not, an address that is found, announced, routed and taken away again costs more than all else that is done here. The
/// other end is not up yet, so that the kernel has not made one before it reads this.
fn set_link_up(index: u32, alias: &str, ipv6: Ipv6, datagram: &mut Vec<u8>) {
    const IFF_UP: u32 = 1;
    message(RTM_SETLINK, NLM_F_REQUEST, datagram, |datagram| {
        datagram.extend_from_slice(&[0; 4]);
        for field in [index, IFF_UP, IFF_UP] {
            datagram.extend_from_slice(&field.to_ne_bytes());
        }
        attribute(IFLA_IFALIAS, alias.as_bytes(), datagram);
        nested(IFLA_AF_SPEC, datagram, |datagram| {
            nested(AF_INET.into(), datagram, |datagram| {
                nested(IFLA_INET_CONF, datagram, |datagram| {
                    let parameters = sysctl::HOST_INTERFACE_IPV4.iter();
                    for (number, value) in
                        parameters.filter_map(|(_, name, value)| Some((device_parameter(name)?, value)))
                    {
                        attribute(number, &value.to_ne_bytes(), datagram);
                    }
                });
            });
            if ipv6 == Ipv6::There {
                nested(AF_INET6.into(), datagram, |datagram| {
                    attribute(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE], datagram);
                });
            }
        });
    });
}

/// `IPV4_DEVCONF_*` of linux/ip.h.
fn device_parameter(name: &str) -> Option<u16> {
    match name {
        "forwarding" => Some(1),
        "proxy_arp" => Some(3),
        "rp_filter" => Some(8),
        "route_localnet" => Some(26),
        _ => None,
    }
}

/// `struct ndtmsg`, and attributes as in `neightbl_set` of the kernel's net/core/neighbour.c. Times are in milliseconds.
fn set_neighbour_parameters(index: u32, datagram: &mut Vec<u8>) {
    message(RTM_SETNEIGHTBL, NLM_F_REQUEST, datagram, |datagram| {
        datagram.extend_from_slice(&[AF_INET, 0, 0, 0]);
        attribute(NDTA_NAME, b"arp_cache\0", datagram);
        nested(NDTA_PARMS, datagram, |datagram| {
            attribute(NDTPA_IFINDEX, &index.to_ne_bytes(), datagram);
            let parameters = sysctl::HOST_INTERFACE_IPV4.iter();
            for (_, _, value) in parameters.filter(|(_, name, _)| *name == "proxy_delay") {
                attribute(NDTPA_PROXY_DELAY, &u64::from(*value).to_ne_bytes(), datagram);
            }
        });
    });
}

/// Index of the host end of this name if it is there and ours to remove: with an attachment, if it is that one's, or half made.
///
/// By index, since a link of the same name that somebody makes at this moment is another one.
pub(super) fn removable(
    host: &mut NetlinkSocket,
    name: &str,
    of: Option<&EndpointId>,
) -> Result<Option<u32>, PodLinkError> {
    match linux::link(host, name)? {
        None => Ok(None),
        Some(link) if link.is_ours(name) => {
            let is_meant = of.is_none_or(|id| link.alias == Some(alias(id)));
            Ok(is_meant.then_some(link.index))
        }
        Some(link) if link.is_half_made(name) => Ok(Some(link.index)),
        Some(_) => Err(PodLinkError::NameTaken(name.to_owned())),
    }
}

/// Removes a host end of ours, whichever attachment's it is, and with it the pod's end, and waits for the kernel to clear up: this
/// is for what went wrong.
pub(super) fn remove(host: &mut NetlinkSocket, name: &str) -> Result<(), PodLinkError> {
    if let Some(index) = removable(host, name, None)? {
        removal::delete_and_wait(host, index)?;
    }
    Ok(())
}
