//! Which peers are to be looked at next: whose timer fires first, and who may have something new to send. In order, so that what happens to one
//! peer costs nothing for each of a thousand others.
//!
//! Invariant: after every call from outside, the deadline noted for a peer is that of its next timer ([`Speaker::poll_timeout`] compares in
//! debug builds).

use std::collections::{BTreeMap, BTreeSet};

use super::{PeerEntry, Speaker};
use crate::session::{ConnId, Timer};
use crate::time::Time;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    deadlines: BTreeSet<(Time, u32)>,
    of_peer: BTreeMap<u32, Time>,
    /// Peers to which something happened.
    touched: BTreeSet<u32>,
    /// Everybody may have something to send.
    stirred: bool,
    /// How far the tables were when everybody was last looked at.
    seen: (u64, u64),
}

impl Agenda {
    /// Everybody may have something new to send.
    pub(super) fn stir(&mut self) {
        self.stirred = true;
    }

    /// A peer may have something new to send.
    pub(super) fn touch(&mut self, index: u32) {
        self.touched.insert(index);
    }

    fn set_deadline(&mut self, index: u32, deadline: Option<Time>) {
        let before = match deadline {
            Some(at) => self.of_peer.insert(index, at),
            None => self.of_peer.remove(&index),
        };
        if before == deadline {
            return;
        }
        if let Some(before) = before {
            self.deadlines.remove(&(before, index));
        }
        self.deadlines.extend(deadline.map(|at| (at, index)));
    }

    fn due(&self, now: Time) -> Vec<u32> {
        let due = self.deadlines.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, index)| *index).collect()
    }
}

impl Speaker {
    /// Notes when a peer is to be looked at next.
    pub(super) fn note_deadline(&mut self, index: u32) {
        let next = self.peers.get(&index).and_then(PeerEntry::next_timeout);
        self.agenda.set_deadline(index, next.map(|(at, _)| at));
    }

    /// The peers with a timer that is due.
    pub(super) fn due(&self, now: Time) -> Vec<u32> {
        self.agenda.due(now)
    }

    /// The next timer of a peer.
    pub(super) fn next_peer_timeout(&self) -> Option<(Time, Timer)> {
        let first = self.agenda.deadlines.first();
        let next = first.and_then(|(_, index)| self.peers.get(index)?.next_timeout());
        debug_assert_eq!(
            next.map(|(at, _)| at),
            self.peers
                .values()
                .filter_map(PeerEntry::next_timeout)
                .map(|(at, _)| at)
                .min(),
            "a deadline was not noted"
        );
        next
    }

    /// The connections for which [`Speaker::poll_transmit`] may have something that it had not when this was last asked: those of peers to which
    /// something happened, or all when the tables moved. One that had something then, and could not take it, is named again when its transport has
    /// ([`Speaker::handle_transmitted`]).
    pub fn poll_writable(&mut self) -> Vec<ConnId> {
        let tables = (self.ipv4.loc_rib.journal_end(), self.ipv6.loc_rib.journal_end());
        let moved = std::mem::replace(&mut self.agenda.seen, tables) != tables;
        let touched = std::mem::take(&mut self.agenda.touched);
        if std::mem::take(&mut self.agenda.stirred) || moved {
            return self.connections().collect();
        }
        let touched = touched.iter().filter_map(|index| self.peers.get(index));
        touched.flat_map(|entry| entry.peer.connections()).collect()
    }
}
