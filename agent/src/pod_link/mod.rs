//! The veth pair between a pod and the host: made at CNI ADD, looked at by CHECK, removed at DEL.
//!
//! The pair is created from inside the pod's namespace with the host end placed directly into the host's, so that no
//! link is moved (Calico, `dataplane_linux.go`). It is made in two parts, so that the first one need not wait for the
//! addresses: [`prepare`] makes the pair, gives the host end its parameters and its alias (the mark that it is ours) and sets
//! first it and then the pod's end up; [`Prepared::complete`] gives the pod's end addresses and routes, and returns when both ends pass packets.
//! The host's route to the pod is not made here but by the dataplane, the one writer of routes.
//!
//! Addressing as Calico's: the pod has a /32 (/128), and a default route through 169.254.1.1, which no host has but every
//! host end answers ARP for; for IPv6 through the host end's link-local address, which follows from its MAC address.
//! The gateways' MAC addresses are permanent neighbours in the pod.
//!
//! Everything blocks (a veth costs about 0.4 ms to make, and 0.5 ms until it is gone: `removal.rs`); call it from a thread
//! that may.

mod host_end;
mod inspect;
mod name;
mod namespace;
mod pod_end;
mod removal;
mod remover;
mod settle;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, BorrowedFd};

use crate::desired::sysctl;
use crate::kernel::netlink::NetlinkSocket;
use crate::kernel::{KernelError, Link, linux};
use crate::model::EndpointId;
use crate::ours;

pub use inspect::{ResultSays, inspect};
use name::alias;
pub use name::{container_mac, host_interface_name};
pub use remover::Remover;

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

/// What is known of a pod's link before its addresses are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLink {
    /// The attachment; `ifname` is the name of the pod's end.
    pub id: EndpointId,
    /// Name of the host's end: [`host_interface_name`].
    pub host_interface: String,
    /// MAC address of the pod's end; `None`: the kernel makes one up.
    pub mac: Option<[u8; 6]>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// What kinds of addresses the pod will have.
    pub families: Families,
}

/// Address families.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// A pair without addresses. Dropping it leaves it as it is.
pub struct Prepared {
    link: NewLink,
    host: NetlinkSocket,
    host_index: u32,
    /// In the pod's namespace.
    pod: NetlinkSocket,
    pod_index: u32,
}

/// A pair as [`create`] made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// MAC address of the pod's end.
    pub pod_mac: [u8; 6],
    /// Gateways that a default route was made to; a further interface of a pod has none.
    pub gateways: Vec<IpAddr>,
}

/// The host's end as [`prepare`] made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEnd {
    /// The link.
    pub link: Link,
    /// The kernel's parameters of it that were set: path below `/proc/sys` to value.
    pub sysctls: Vec<(String, String)>,
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
    /// There is a link of this name on the host, and it was asked to stay.
    #[error("there is a link {0} on the host already")]
    Earlier(String),
    /// Who removes links is not there.
    #[error("cannot remove links: {0}")]
    Remover(#[source] io::Error),
    /// A call to the kernel failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl PodLink {
    /// The part of it that is known before the addresses are.
    #[must_use]
    pub fn without_addresses(&self) -> NewLink {
        NewLink {
            id: self.id.clone(),
            host_interface: self.host_interface.clone(),
            mac: self.mac,
            mtu: self.mtu,
            families: Families {
                v4: self.addresses.iter().any(IpAddr::is_ipv4),
                v6: self.addresses.iter().any(IpAddr::is_ipv6),
            },
        }
    }
}

impl NewLink {
    /// The kernel's parameters of the host's end: path below `/proc/sys` to value.
    fn host_sysctls(&self) -> Vec<(String, String)> {
        let mut sysctls: Vec<_> = sysctl::of_host_interface_ipv4(&self.host_interface).collect();
        if self.families.v6 {
            sysctls.extend(sysctl::of_host_interface_ipv6(&self.host_interface));
        }
        sysctls
    }
}

/// Makes the pair as a whole: [`prepare`] and [`Prepared::complete`].
///
/// # Errors
/// Those of its two parts.
pub fn create(pod_namespace: BorrowedFd<'_>, link: &PodLink) -> Result<Created, PodLinkError> {
    prepare(pod_namespace, link.without_addresses(), Earlier::Goes)?.complete(&link.addresses)
}

/// What becomes of a link of ours of the same name, left over from an earlier container of the same pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// It is removed first.
    Goes,
    /// It stays, and no pair is made: [`PodLinkError::Earlier`].
    Stays,
}

/// Makes the pair without addresses. On failure nothing is left.
///
/// # Errors
/// When the namespace cannot be entered, the name is taken, or the kernel refuses a step.
pub fn prepare(
    pod_namespace: BorrowedFd<'_>,
    link: NewLink,
    earlier: Earlier,
) -> Result<Prepared, PodLinkError> {
    let host_namespace = namespace::current().map_err(PodLinkError::Namespace)?;
    namespace::must_differ(pod_namespace, host_namespace.as_fd())?;
    let mut host = NetlinkSocket::open()?;
    // Cheap: the name is looked up without the lock of the network configuration.
    if linux::index_of(&host, &link.host_interface).is_ok() {
        if earlier == Earlier::Stays {
            return Err(PodLinkError::Earlier(link.host_interface));
        }
        host_end::remove(&mut host, &link.host_interface)?;
    }
    let (pod_index, mut pod) = in_pod((pod_namespace, host_namespace.as_fd()), || {
        pod_end::create(&link, &host_namespace)
    })?;
    let both_up = host_end::set_up(&mut host, &link).and_then(|host_index| {
        pod_end::set_up(&mut pod, &link.id.ifname, pod_index)?;
        Ok(host_index)
    });
    match both_up {
        Ok(host_index) => Ok(Prepared {
            link,
            host,
            host_index,
            pod,
            pod_index,
        }),
        Err(error) => {
            // Both ends go with one of them. If even that fails, the next ADD of the pod, or its namespace's end, removes it.
            let _ = host_end::remove(&mut host, &link.host_interface);
            Err(error.into())
        }
    }
}

impl Prepared {
    /// The host's end. It is made, and passes packets when [`Self::complete`] has returned.
    #[must_use]
    pub fn host_end(&self) -> HostEnd {
        HostEnd {
            link: Link {
                index: self.host_index,
                up: true,
                running: true,
                mac: Some(ours::HOST_MAC),
                mtu: self.link.mtu,
                alias: Some(alias(&self.link.id)),
                is_veth: true,
                peer_index: Some(self.pod_index),
                transport: None,
            },
            sysctls: self.link.host_sysctls(),
        }
    }

    /// Gives the pod's end its addresses and waits until both ends pass packets. On failure nothing is left.
    ///
    /// # Errors
    /// When the kernel refuses a step.
    pub fn complete(mut self, addresses: &BTreeSet<IpAddr>) -> Result<Created, PodLinkError> {
        match self.configure(addresses) {
            Ok(created) => Ok(created),
            Err(error) => {
                let _ = host_end::remove(&mut self.host, &self.link.host_interface);
                Err(error.into())
            }
        }
    }

    fn configure(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Created, KernelError> {
        let Self {
            link,
            host,
            pod,
            pod_index,
            ..
        } = self;
        let gateways = pod_end::configure(pod, &link.id.ifname, *pod_index, addresses)?;
        settle::settle(host, &link.host_interface)?;
        settle::settle(pod, &link.id.ifname)?;
        let pod_mac = match link.mac {
            Some(mac) => mac,
            None => pod_end::mac(pod, &link.id.ifname)?,
        };
        Ok(Created { pod_mac, gateways })
    }
}

/// Whether the host end of the attachment `id` is there. One of another attachment under its name is not it.
///
/// # Errors
/// When the kernel does not answer.
pub fn is_there(host_interface: &str, id: &EndpointId) -> Result<bool, PodLinkError> {
    let link = linux::link(&mut NetlinkSocket::open()?, host_interface)?;
    Ok(link.is_some_and(|link| !link.is_ours(host_interface) || link.alias == Some(alias(id))))
}

fn in_pod<T>(
    (pod_namespace, host_namespace): (BorrowedFd<'_>, BorrowedFd<'_>),
    work: impl FnOnce() -> Result<T, KernelError>,
) -> Result<T, PodLinkError> {
    let result = namespace::run_in(pod_namespace, host_namespace, work).map_err(PodLinkError::Namespace)?;
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
