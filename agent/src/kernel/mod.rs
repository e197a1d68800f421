//! The kernel, as the agent needs it: reads and single writes, without any decision.
//!
//! [`Kernel`] is the seam of the tests: [`Linux`] is the real one, and a kernel in memory that can fail at any call
//! stands in for it. All calls block; one thread owns the value. It works in the network namespace of the thread
//! that calls it.

mod conntrack;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod link;
pub(crate) mod linux;
pub(crate) mod message;
pub(crate) mod neighbors;
pub mod netlink;
mod news;
pub(crate) mod nexthop;
mod nft;
mod overlay;
pub(crate) mod proc;
mod proxy_neighbors;
pub(crate) mod rule;
pub(crate) mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};

pub use conntrack::ConnectionFilter;
pub use error::KernelError;
pub use link::{Link, node_interfaces};
pub use linux::Linux;
pub use news::{KernelChange, KernelNews, LinkNews};
pub use nexthop::{Nexthop, SeenNexthops};
pub use nft::{
    ElementChange, NftChain, NftChange, NftElement, NftFamily, NftPart, NftRule, NftSet, NftTable, NftTables,
    OwnPorts, TableChange,
};

use crate::delta::Change;
use crate::desired::{
    HostLink, LinkAddress, NeighborKey, NeighborTarget, ProxyNeighbor, Route, RouteKey, RouteOrigin,
    RoutePath, Rule, Tunnel,
};

/// A change of one route.
pub type RouteChange = Change<RouteKey, Route, ObservedRoute>;
/// A change of one rule, which is made or deleted: there is nothing about it to replace.
pub type RuleChange = Change<Rule, ()>;
/// A change of one nexthop object, by its number.
pub type NexthopChange = Change<u32, Nexthop>;
/// A change of one tunnel device. A replacement keeps the device if it can ([`Transport`](crate::desired::Transport) is the same).
pub type TunnelChange = Change<String, Tunnel, Link>;
/// A change of one address of a tunnel device or of a host end.
pub type AddressChange = Change<LinkAddress, ()>;
/// A change of one neighbour, which is a permanent one.
pub type NeighborChange = Change<NeighborKey, NeighborTarget, ObservedNeighbor>;
/// A change of one proxy neighbour, which is made or deleted.
pub type ProxyNeighborChange = Change<ProxyNeighbor, (), Maker>;

/// What the agent asks of a kernel.
pub trait Kernel {
    /// All links of the namespace, by name.
    ///
    /// # Errors
    /// When the kernel cannot be asked or its answer does not parse.
    fn links(&mut self) -> Result<BTreeMap<String, Link>, KernelError>;

    /// The link of this name.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError>;

    /// Sets the link up and its MAC address.
    ///
    /// # Errors
    /// When the link is not there or the kernel refuses.
    fn set_link(&mut self, name: &str, link: HostLink) -> Result<(), KernelError>;

    /// Creates, changes or removes a tunnel device.
    ///
    /// # Errors
    /// When the kernel refuses: it lacks the kind of device, or a link of that name that is no tunnel is in the way.
    fn change_tunnel(&mut self, change: &TunnelChange) -> Result<(), KernelError>;

    /// The addresses of all links, by name, without link-local ones and those of the host itself (`127.0.0.1`).
    ///
    /// # Errors
    /// When the kernel cannot be asked or its answer does not parse.
    fn addresses(&mut self) -> Result<BTreeMap<String, Vec<IpNetwork>>, KernelError>;

    /// Adds or removes an address.
    ///
    /// # Errors
    /// When the link is not there or the kernel refuses.
    fn change_address(&mut self, change: &AddressChange) -> Result<(), KernelError>;

    /// The neighbours of which it is known what is found, of all links.
    ///
    /// # Errors
    /// When the kernel cannot be asked or its answer does not parse.
    fn neighbors(&mut self) -> Result<BTreeMap<NeighborKey, ObservedNeighbor>, KernelError>;

    /// Carries out the changes in order: one result a change, in the same order.
    fn change_neighbors(&mut self, changes: &[NeighborChange]) -> Vec<Result<(), KernelError>>;

    /// The proxy neighbours of all links, and who made them.
    ///
    /// # Errors
    /// When the kernel cannot be asked or its answer does not parse.
    fn proxy_neighbors(&mut self) -> Result<BTreeMap<ProxyNeighbor, Maker>, KernelError>;

    /// Carries out the changes in order: one result a change, in the same order. A creation takes over what is there: only what was
    /// not there when they were read is to be made.
    fn change_proxy_neighbors(&mut self, changes: &[ProxyNeighborChange]) -> Vec<Result<(), KernelError>>;

    /// The address that packets to `destination` would leave with, as the routing tables are now.
    ///
    /// # Errors
    /// When the kernel cannot be asked or its answer does not parse.
    fn source_towards(&mut self, destination: IpAddr) -> Result<Option<IpAddr>, KernelError>;

    /// Deletes a link. `name` is for the error: it is the index that counts.
    ///
    /// # Errors
    /// When the link is not there or the kernel refuses.
    fn delete_link(&mut self, name: &str, index: u32) -> Result<(), KernelError>;

    /// The routes with a protocol of ours, in all tables.
    ///
    /// # Errors
    /// When the kernel cannot be asked or its answer does not parse.
    fn routes(&mut self) -> Result<BTreeMap<RouteKey, ObservedRoute>, KernelError>;

    /// The routes of others that have one of these keys. Of several with one key the first, which is the one that the kernel uses.
    ///
    /// # Errors
    /// When the kernel cannot be asked or its answer does not parse.
    fn foreign_routes(
        &mut self,
        keys: &BTreeSet<RouteKey>,
    ) -> Result<BTreeMap<RouteKey, ForeignRoute>, KernelError>;

    /// Carries out the changes in order, as far as the kernel lets: one result a change, in the same order.
    /// A creation never overwrites (`EEXIST`), a deletion removes a route of ours only.
    fn change_routes(&mut self, changes: &[&RouteChange]) -> Vec<Result<(), KernelError>>;

    /// The rules of routing policy that carry our mark; none where the kernel has no policy routing.
    ///
    /// # Errors
    /// When the kernel cannot be asked or its answer does not parse.
    fn rules(&mut self) -> Result<BTreeSet<Rule>, KernelError>;

    /// Makes or deletes a rule.
    ///
    /// # Errors
    /// `EEXIST` when there is the same rule with our mark, `ENOENT` when there is none to delete. When the kernel refuses otherwise.
    fn change_rule(&mut self, change: &RuleChange) -> Result<(), KernelError>;

    /// The nexthop objects of ours, and numbers of ours that others have.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the kernel has no nexthop objects (before Linux 5.3). When it cannot be asked or its answer does not
    /// parse.
    fn nexthops(&mut self) -> Result<SeenNexthops, KernelError>;

    /// Carries out the changes in order, as far as the kernel lets: one result a change, in the same order. A creation never
    /// overwrites (`EEXIST`), a replacement never creates (`ENOENT`); with a deletion go the routes that refer to the object.
    fn change_nexthops(&mut self, changes: &[NexthopChange]) -> Vec<Result<(), KernelError>>;

    /// Value of a kernel parameter; `None` if there is no such parameter.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    fn sysctl(&mut self, path: &str) -> Result<Option<String>, KernelError>;

    /// Sets a kernel parameter.
    ///
    /// # Errors
    /// When there is no such parameter or the kernel refuses the value.
    fn set_sysctl(&mut self, path: &str, value: &str) -> Result<(), KernelError>;

    /// Forgets tracked connections, and says how many there were.
    ///
    /// # Errors
    /// When the kernel cannot be asked or refuses; some may be forgotten then.
    fn forget_connections(&mut self, filter: &ConnectionFilter) -> Result<usize, KernelError>;

    /// Our nftables tables, those that are there.
    ///
    /// # Errors
    /// When nftables cannot be asked or its answer does not parse.
    fn nft_tables(&mut self) -> Result<NftTables, KernelError>;

    /// Families of which there is an nftables table of our name.
    ///
    /// # Errors
    /// When nftables cannot be asked.
    fn our_nft_tables(&mut self) -> Result<Vec<NftFamily>, KernelError>;

    /// Deletes our nftables table of a family.
    ///
    /// # Errors
    /// When nftables refuses.
    fn delete_nft_table(&mut self, family: NftFamily) -> Result<(), KernelError>;

    /// Changes our nftables tables in one transaction.
    ///
    /// # Errors
    /// When nftables refuses; then nothing has changed.
    fn change_nft(&mut self, changes: &[NftChange]) -> Result<(), KernelError>;
}

/// A route of ours as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedRoute {
    /// From its protocol.
    pub origin: RouteOrigin,
    /// Where it leads; `None` for a kind that we never make.
    pub path: Option<RoutePath>,
}

impl ObservedRoute {
    /// Whether this is the desired route. A gateway that is desired without an interface is the same on any.
    #[must_use]
    pub fn is(&self, desired: &Route) -> bool {
        if self.origin != desired.origin {
            return false;
        }
        match (&desired.path, &self.path) {
            (RoutePath::Via { gateways: wanted }, Some(RoutePath::Via { gateways: found })) => {
                wanted.len() == found.len()
                    && wanted.iter().zip(found.iter()).all(|(wanted, found)| {
                        wanted.address == found.address
                            && (wanted.interface.is_none() || wanted.interface == found.interface)
                    })
            }
            (wanted, found) => Some(wanted) == found.as_ref(),
        }
    }
}

impl From<&Route> for ObservedRoute {
    fn from(route: &Route) -> Self {
        Self {
            origin: route.origin,
            path: Some(route.path.clone()),
        }
    }
}

/// A route of somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRoute {
    /// Where it leads; `None` for a kind that we never make.
    pub path: Option<RoutePath>,
    /// For people, in the words of `ip route`.
    pub described: String,
}

/// Who made an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// It carries our mark.
    Us,
    /// Somebody else.
    Another,
}

/// A neighbour as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedNeighbor {
    /// What is found.
    pub target: NeighborTarget,
    /// Whether it stays as it is, whatever the neighbour says.
    pub is_permanent: bool,
    /// Whether it carries our mark. Entries of a forwarding database carry none.
    pub is_marked: bool,
}

impl fmt::Display for ObservedNeighbor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_permanent { "" } else { " learnt" };
        write!(f, "{}{kind}", self.target)
    }
}

impl fmt::Display for ObservedRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{path} ({})", self.origin),
            None => write!(f, "of a kind not ours ({})", self.origin),
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.up { "up" } else { "down" })?;
        if let Some(transport) = &self.transport {
            write!(f, " {transport} mtu {}", self.mtu)?;
        }
        if let Some([a, b, c, d, e, g]) = self.mac {
            write!(f, " address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")?;
        }
        Ok(())
    }
}

/// An address that is usable at once, without duplicate address detection.
pub(crate) fn address_message(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = message::family(address.is_ipv6());
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Address(address));
    if address.is_ipv4() {
        message.attributes.push(AddressAttribute::Local(address));
    } else {
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}
