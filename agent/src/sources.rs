//! What happens outside, turned into [`crate::model::Input`] values: one file a source. A source decides nothing.

pub mod bgp;
pub mod cluster;
pub mod datastore;
pub mod links;
pub mod migration;
pub mod netlink;
pub mod nftables;
mod notifications;
pub mod peering;
pub mod underlay;

/// Name of the interface with this index; `None` for one that is gone.
pub(crate) fn interface_name(index: u32) -> Option<String> {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let any_socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    netdevice::index_to_name(any_socket, index).ok()
}
