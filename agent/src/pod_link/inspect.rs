//! What CNI CHECK wants to know: is everything still as ADD left it?

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};

use ipnetwork::IpNetwork;
use netlink_packet_route::AddressFamily;

use super::{PodLink, PodLinkError, gateways, in_pod, namespace};
use crate::desired::RoutePath;
use crate::kernel::netlink::NetlinkSocket;
use crate::kernel::{KernelError, Link, linux, proc};
use crate::ours;

/// What the result of the whole list of plugins says of the pod's end, where plugins after us may have changed it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResultSays {
    /// Its MAC address.
    pub mac: Option<[u8; 6]>,
    /// Gateways that there is a default route to. A further interface of a pod has none.
    pub default_routes: BTreeSet<IpAddr>,
}

/// What differs from how [`super::create`] made it and the dataplane keeps it, one sentence each; empty: all is right.
///
/// # Errors
/// When the namespace cannot be entered or the kernel cannot be asked.
pub fn inspect(
    pod_namespace: BorrowedFd<'_>,
    link: &PodLink,
    result: &ResultSays,
) -> Result<Vec<String>, PodLinkError> {
    let host_namespace = namespace::current().map_err(PodLinkError::Namespace)?;
    namespace::must_differ(pod_namespace, host_namespace.as_fd())?;
    let pod = in_pod((pod_namespace, host_namespace.as_fd()), || {
        look_at_pod(link, result)
    })?;
    let mut wrong = pod.wrong;
    let mut host = NetlinkSocket::open()?;
    let name = &link.host_interface;
    let Some(found) = linux::link(&mut host, name)? else {
        wrong.push(format!("there is no link {name} on the host"));
        return Ok(wrong);
    };
    inspect_host_end(name, &found, pod.index, &mut wrong);
    for address in &link.addresses {
        let route = linux::route_to(&mut host, *address)?;
        let is_right = route.as_ref().is_some_and(|route| {
            // Its metric is for the dataplane to say: it is another one after a migration.
            route.key.destination == IpNetwork::from(*address)
                && route.path
                    == Some(RoutePath::Link {
                        interface: name.clone(),
                    })
        });
        if !is_right {
            wrong.push(format!("the host has no route to {address} through {name}"));
        }
    }
    wrong.extend(wrong_sysctls(link)?);
    Ok(wrong)
}

/// The parameters of the host's end that are not as [`super::prepare`] set them.
fn wrong_sysctls(link: &PodLink) -> Result<Vec<String>, KernelError> {
    let mut wrong = Vec::new();
    for (path, value) in link.without_addresses().host_sysctls() {
        let found = proc::read(&path)?;
        if found.as_deref() != Some(value.as_str()) {
            let found = found.unwrap_or_else(|| "missing".to_owned());
            wrong.push(format!("sysctl {path} is {found} instead of {value}"));
        }
    }
    Ok(wrong)
}

struct PodEnd {
    index: Option<u32>,
    wrong: Vec<String>,
}

fn look_at_pod(link: &PodLink, result: &ResultSays) -> Result<PodEnd, KernelError> {
    let mut socket = NetlinkSocket::open()?;
    let ifname = &link.id.ifname;
    let Some(found) = linux::link(&mut socket, ifname)? else {
        return Ok(PodEnd {
            index: None,
            wrong: vec![format!("there is no link {ifname} in the pod")],
        });
    };
    let mut wrong = Vec::new();
    if !found.up {
        wrong.push(format!("{ifname} in the pod is down"));
    }
    let mac = result.mac.or(link.mac);
    if mac.is_some() && found.mac != mac {
        wrong.push(format!(
            "{ifname} in the pod has another MAC address than it was given"
        ));
    }
    let addresses = linux::addresses(&mut socket, found.index)?;
    for address in link
        .addresses
        .iter()
        .filter(|address| !addresses.contains(*address))
    {
        wrong.push(format!("{ifname} in the pod lacks the address {address}"));
    }
    for (gateway, any) in gateways(&link.addresses) {
        let family = if gateway.is_ipv6() {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        let is_default = |route: &crate::kernel::message::SeenRoute| {
            let destination = route.key.destination;
            let leads_to_gateway = match &route.path {
                Some(RoutePath::Via { gateways }) => gateways.iter().any(|hop| hop.address == gateway),
                Some(RoutePath::Onlink { gateway: found, .. }) => *found == gateway,
                _ => false,
            };
            destination.prefix() == 0 && destination.network() == any && leads_to_gateway
        };
        if result.default_routes.contains(&gateway)
            && linux::dump_routes(&mut socket, family, None, is_default)?.is_empty()
        {
            wrong.push(format!("the pod has no default route through {gateway}"));
        }
        // Whoever gives the interface another MAC address makes the kernel forget its neighbours.
        if mac != link.mac {
            continue;
        }
        let neighbours = linux::permanent_neighbours(&mut socket, family, found.index)?;
        if neighbours.get(&gateway) != Some(&ours::HOST_MAC) {
            wrong.push(format!(
                "{ifname} in the pod lacks the permanent neighbour {gateway}"
            ));
        }
    }
    if link.addresses.iter().any(IpAddr::is_ipv6) {
        let path = format!("net/ipv6/conf/{ifname}/disable_ipv6");
        if proc::read(&path)?.as_deref() != Some("0") {
            wrong.push(format!("IPv6 is switched off in the pod ({path} is not 0)"));
        }
    }
    Ok(PodEnd {
        index: Some(found.index),
        wrong,
    })
}

fn inspect_host_end(name: &str, found: &Link, pod_index: Option<u32>, wrong: &mut Vec<String>) {
    if !found.is_ours(name) {
        wrong.push(format!("{name} on the host was not made by Calidris"));
    }
    if !found.up {
        wrong.push(format!("{name} on the host is down"));
    }
    if found.mac != Some(ours::HOST_MAC) {
        wrong.push(format!(
            "{name} on the host has another MAC address than ee:ee:ee:ee:ee:ee"
        ));
    }
    if pod_index.is_some() && found.peer_index != pod_index {
        wrong.push(format!(
            "{name} on the host is not the other end of the pod's interface"
        ));
    }
}
