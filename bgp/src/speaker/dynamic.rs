//! Peers that come and go: made when somebody connects from a range of addresses, forgotten some time after their last connection ended.
//!
//! The time between lets the operator see why a session ended, lets the back-off of RFC 4271 §8.1.1 work, and graceful restart keep routes. A
//! peer in that time makes room when its range is full. The numbers of peers that are gone are used again, so that coming and going costs no
//! memory; serial numbers of connections go on, so that a late word about an old connection is never taken for one about a new one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{PeerEntry, Speaker};
use crate::config::DynamicPeers;
use crate::rib::SourceId;
use crate::session::{RefusedConnection, Timer};
use crate::time::Time;
use crate::wire::notification::CeaseError;

/// How long a peer without a connection is remembered, at least.
const LINGER: Duration = Duration::from_secs(60);

/// What tells peers apart: the address, and for link-local ones the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AddressKey(IpAddr, u32);

impl AddressKey {
    pub(super) const fn address(self) -> IpAddr {
        self.0
    }

    pub(super) const fn scope_id(self) -> u32 {
        self.1
    }

    pub(super) fn new(address: IpAddr, scope_id: u32) -> Self {
        let address = address.to_canonical();
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        Self(address, if link_local { scope_id } else { 0 })
    }

    pub(super) fn of(address: SocketAddr) -> Self {
        let scope_id = match address {
            SocketAddr::V6(v6) => v6.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        Self::new(address.ip(), scope_id)
    }
}

impl Speaker {
    /// The peer that connects from `remote`.
    pub(super) fn peer_at(&mut self, remote: SocketAddr, now: Time) -> Result<u32, RefusedConnection> {
        let key = AddressKey::of(remote);
        if let Some(index) = self.by_address.get(&key) {
            return Ok(*index);
        }
        if let Some(index) = self.unnumbered_at(key, now) {
            return Ok(index);
        }
        let range = self
            .config
            .dynamic_at(key.0)
            .ok_or(RefusedConnection::UnknownPeer)?
            .clone();
        self.make_room(&range, now)?;
        let index = self.add_peer(range.peer(key.0, key.1), now);
        if let Some(entry) = self.peers.get_mut(&index) {
            entry.range = Some(range.name);
        }
        Ok(index)
    }

    /// Forgets a peer of a full range that has no connection, the one that had none for longest.
    fn make_room(&mut self, range: &DynamicPeers, now: Time) -> Result<(), RefusedConnection> {
        let of_range = |entry: &PeerEntry| entry.range.as_deref() == Some(&range.name);
        let count = self.peers.values().filter(|entry| of_range(entry)).count();
        if count < usize::try_from(range.max_peers).unwrap_or(usize::MAX) {
            return Ok(());
        }
        let gone = |entry: &PeerEntry| entry.timers.deadline(Timer::Forget);
        let longest = self
            .peers
            .iter()
            .filter(|(_, entry)| of_range(entry))
            .filter_map(|(index, entry)| Some((gone(entry)?, *index)))
            .min();
        let (_, index) = longest.ok_or(RefusedConnection::RangeIsFull)?;
        self.remove_peer(index, CeaseError::PeerDeconfigured, now);
        Ok(())
    }

    /// Looks whether a peer that was made by a range has still a connection.
    pub(super) fn note_presence(&mut self, index: u32, now: Time) {
        let Some(entry) = self.peers.get_mut(&index).filter(|entry| entry.range.is_some()) else {
            return;
        };
        let present = entry.peer.connections().next().is_some();
        match (present, entry.timers.deadline(Timer::Forget)) {
            (true, Some(_)) => entry.timers.stop(Timer::Forget),
            (false, None) => {
                let linger = LINGER.max(entry.peer.config().idle_hold_max);
                entry.timers.set(Timer::Forget, now + linger);
            }
            _ => {}
        }
    }

    /// A peer was without a connection for long enough, unless its routes are still kept.
    pub(super) fn forget_dynamic(&mut self, index: u32, now: Time) {
        let source = SourceId::peer(index);
        let held = self.ipv4.loc_rib.held(source) + self.ipv6.loc_rib.held(source);
        if held == 0 {
            self.remove_peer(index, CeaseError::PeerDeconfigured, now);
        } else if let Some(entry) = self.peers.get_mut(&index) {
            entry.timers.set(Timer::Forget, now + LINGER);
        }
    }
}
