//! The veth pair between a pod and the host: made at CNI ADD, looked at by CHECK, removed at DEL.
//!
//! The pair is created from inside the pod's namespace with the host end placed directly into the host's, so that no
//! link is moved (Calico, `dataplane_linux.go`). Order: pod end with addresses and routes; then the host end's alias
//! (the mark that it is ours), its parameters, and only then up: no packet flows before all is right. The pair is ready
//! when both ends pass packets. The host's route
//! to the pod is not made here but by the dataplane, the one writer of routes.
//!
//! Addressing as Calico's: the pod has a /32 (/128), and a default route through 169.254.1.1, which no host has but every
//! host end answers ARP for; for IPv6 through the host end's link-local address, which follows from its MAC address.
//! The gateways' MAC addresses are permanent neighbours in the pod.
//!
//! Everything blocks (a veth costs about 0.4 ms to make, 20 ms to delete); call it from a thread that may.

mod host_end;
mod inspect;
mod name;
mod namespace;
mod pod_end;
mod settle;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, BorrowedFd};

use crate::kernel::KernelError;
use crate::kernel::netlink::NetlinkSocket;
use crate::model::EndpointId;

pub use inspect::inspect;
pub use name::{container_mac, host_interface_name};

/// Gateway of every pod for IPv4.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Gateway of every pod for IPv6: the link-local address (modified EUI-64, RFC 4291 appendix A) of
/// [`crate::ours::HOST_MAC`].
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// What a pod's link should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLink {
    /// The attachment; `ifname` is the name of the pod's end.
    pub id: EndpointId,
    /// Name of the host's end: [`host_interface_name`].
    pub host_interface: String,
    /// Addresses of the pod.
    pub addresses: BTreeSet<IpAddr>,
    /// MAC address of the pod's end; `None`: the kernel makes one up.
    pub mac: Option<[u8; 6]>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
}

/// What came out of [`create`] and was not known before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Created {
    /// MAC address of the pod's end.
    pub pod_mac: [u8; 6],
    /// MAC address of the host's end.
    pub host_mac: [u8; 6],
}

/// Why a link could not be made, looked at or removed.
#[derive(Debug, thiserror::Error)]
pub enum PodLinkError {
    /// The pod's namespace could not be entered.
    #[error("cannot enter the pod's network namespace: {0}")]
    Namespace(#[source] io::Error),
    /// The namespace given for the pod is the host's.
    #[error("the network namespace given for the pod is the host's own")]
    HostNamespace,
    /// There is a link of this name that is not ours.
    #[error("there is a link {0} on the host that was not made by Calidris (it has no alias \"calidris:…\")")]
    NameTaken(String),
    /// A call to the kernel failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl PodLink {
    fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }
}

/// Makes the pair. A link of ours of the same name, left over from an earlier container of the same pod, is removed
/// first. On failure nothing is left.
///
/// # Errors
/// When the namespace cannot be entered, the name is taken by somebody else, or the kernel refuses a step.
pub fn create(pod_namespace: BorrowedFd<'_>, link: &PodLink) -> Result<Created, PodLinkError> {
    let host_namespace = namespace::current().map_err(PodLinkError::Namespace)?;
    namespace::must_differ(pod_namespace, host_namespace.as_fd())?;
    let mut host = NetlinkSocket::open()?;
    host_end::remove(&mut host, &link.host_interface)?;
    let (pod_mac, mut pod) = in_pod(pod_namespace, || pod_end::create(link, &host_namespace))?;
    let result = host_end::set_up(&mut host, link)
        .and_then(|()| settle::settle(&mut host, &link.host_interface))
        .and_then(|()| settle::settle(&mut pod, &link.id.ifname));
    if let Err(error) = result {
        // Both ends go with one of them. If even that fails, the next ADD of the pod, or its namespace's end, removes it.
        let _ = host_end::remove(&mut host, &link.host_interface);
        return Err(error.into());
    }
    Ok(Created {
        pod_mac,
        host_mac: crate::ours::HOST_MAC,
    })
}

/// Removes the pair of the attachment `id` by its host end. Returns whether there was one. A link of that name that
/// belongs to another attachment, a newer container of the same pod, stays.
///
/// # Errors
/// When the link of that name is not ours, or the kernel refuses.
pub fn remove(host_interface: &str, id: &EndpointId) -> Result<bool, PodLinkError> {
    host_end::remove_of(&mut NetlinkSocket::open()?, host_interface, id)
}

fn in_pod<T: Send>(
    pod_namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, KernelError> + Send,
) -> Result<T, PodLinkError> {
    let result = namespace::run_in(pod_namespace, work).map_err(PodLinkError::Namespace)?;
    Ok(result?)
}

/// The gateways that a pod with these addresses has, each with "any address" of its family.
fn gateways(addresses: &BTreeSet<IpAddr>) -> Vec<(IpAddr, IpAddr)> {
    let mut gateways = Vec::new();
    if addresses.iter().any(IpAddr::is_ipv4) {
        gateways.push((IpAddr::V4(GATEWAY_V4), IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
    }
    if addresses.iter().any(IpAddr::is_ipv6) {
        gateways.push((IpAddr::V6(GATEWAY_V6), IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
    }
    gateways
}
