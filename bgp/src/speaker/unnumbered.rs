//! Peers that are named by an interface: whoever announces itself as a router there (RFC 4861 §4.2), or connects from there by its link-local address.
//!
//! There is one peer behind an interface. While a connection with it is under way, other routers on the link are not looked at.

use std::net::{IpAddr, Ipv6Addr};

use super::Speaker;
use super::dynamic::AddressKey;
use crate::time::Time;

impl Speaker {
    /// The interfaces behind which peers are to be found.
    pub fn interfaces(&self) -> impl Iterator<Item = &str> {
        let peers = self.config.peers.iter();
        peers.filter_map(|peer| peer.interface.as_deref())
    }

    /// An interface is there, with this number of the kernel's, or is gone.
    pub fn handle_interface(&mut self, interface: &str, scope_id: Option<u32>, now: Time) {
        let Some(index) = self.behind(interface) else {
            return;
        };
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        let known = Some(entry.peer.config().scope_id).filter(|scope| *scope != 0);
        if known == scope_id {
            return;
        }
        // Another interface of the same name: what was on the old one is over.
        for conn in entry.peer.connections().collect::<Vec<_>>() {
            entry.peer.handle_transport_closed(conn, "the interface is gone");
        }
        self.drain(index, now);
        self.move_peer(index, Ipv6Addr::UNSPECIFIED, scope_id.unwrap_or(0), now);
    }

    /// A router with this link-local address is behind an interface that was reported by [`Speaker::handle_interface`].
    pub fn handle_neighbor(&mut self, interface: &str, address: Ipv6Addr, now: Time) {
        let Some(index) = self.behind(interface) else {
            return;
        };
        let Some(entry) = self.peers.get(&index) else {
            return;
        };
        let (known, scope_id) = (entry.peer.config().address, entry.peer.config().scope_id);
        let other = known != IpAddr::V6(address) && !entry.peer.has_connection();
        if other && scope_id != 0 && address.is_unicast_link_local() {
            self.move_peer(index, address, scope_id, now);
        }
    }

    /// The unnumbered peer that a link-local address on its interface must be.
    pub(super) fn unnumbered_at(&mut self, key: AddressKey, now: Time) -> Option<u32> {
        let IpAddr::V6(address) = key.address() else {
            return None;
        };
        let (index, entry) = self.peers.iter().find(|(_, entry)| {
            let config = entry.peer.config();
            key.scope_id() != 0 && config.interface.is_some() && config.scope_id == key.scope_id()
        })?;
        let index = *index;
        if entry.peer.has_connection() {
            return None;
        }
        self.move_peer(index, address, key.scope_id(), now);
        Some(index)
    }

    fn behind(&self, interface: &str) -> Option<u32> {
        let found = self
            .peers
            .iter()
            .find(|(_, entry)| entry.peer.config().interface.as_deref() == Some(interface));
        found.map(|(index, _)| *index)
    }

    fn move_peer(&mut self, index: u32, address: Ipv6Addr, scope_id: u32, now: Time) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        let config = entry.peer.config();
        self.by_address
            .remove(&AddressKey::new(config.address, config.scope_id));
        entry.peer.set_address(address, scope_id, now);
        if !address.is_unspecified() {
            self.by_address
                .insert(AddressKey::new(address.into(), scope_id), index);
        }
        self.drain(index, now);
    }
}
