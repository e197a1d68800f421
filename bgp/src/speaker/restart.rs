//! Sessions that come and go, and what that does to routes: graceful restart in both roles (RFC 4724).
//!
//! *The peer restarts* (§4.2): see [`super::keep`] for what becomes of its routes.
//!
//! *We restarted* (§4.1): OPENs carry the R bit, and End-of-RIB is held back until our own routes are known and every peer that
//! has not restarted itself has sent its table, or until a deadline. Our own routes have no deadline: End-of-RIB without them would make peers drop
//! what they still keep for us. Routes are announced as soon as they are known, not only then:
//! a node's own routes must not wait for a neighbour that is down, and nothing that peers hold as stale is removed before End-of-RIB.

use super::{LogEvent, PeerEntry, Speaker, each_family, source_of};
use crate::family::AfiSafi;
use crate::rib::SourceId;
use crate::session::{Closed, Timer};
use crate::time::Time;

/// How far the speaker is in learning what its peers know.
#[derive(Debug)]
pub(super) struct Sync {
    /// Until when peers are waited for; `None` when that is over.
    deadline: Option<Time>,
    restarted: bool,
    originated: bool,
}

impl Sync {
    pub(super) fn new(restarted: bool, deadline: Time) -> Self {
        Self {
            deadline: Some(deadline),
            restarted,
            originated: false,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.deadline.is_none()
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// Waits until `deadline` instead, if it still waits.
    pub(super) fn wait_until(&mut self, deadline: Time) {
        self.deadline = self.deadline.map(|_| deadline);
    }

    /// Whether OPENs say that we restarted.
    pub(super) fn restarting(&self) -> bool {
        self.restarted && self.deadline.is_some()
    }

    /// Whether OPENs say that our forwarding went on: not on a node that has just come up.
    pub(super) fn forwarding(&self) -> bool {
        self.restarted || self.deadline.is_none()
    }

    /// The set of our own routes is complete.
    pub(super) fn note_originated(&mut self) {
        self.originated = true;
    }
}

impl Speaker {
    pub(super) fn session_up(&mut self, index: u32, now: Time) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        let Some(terms) = entry.peer.negotiated().cloned() else {
            return;
        };
        if let Some(source) = self.sources.get_mut(SourceId::peer(index).index()) {
            *source = source_of(&entry.peer);
        }
        entry.progress = terms
            .families
            .iter()
            .map(|family| (*family, Default::default()))
            .collect();
        let peer = entry.peer.config().name.clone();
        entry.session = Some(terms);
        self.join_groups(index);
        self.meet_again(index, now);
        self.log(LogEvent::Up { peer });
        self.update_sync(now);
    }

    pub(super) fn session_down(&mut self, index: u32, closed: &Closed, now: Time) {
        self.leave_groups(index);
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        let terms = entry.session.take();
        for (family, _) in std::mem::take(&mut entry.progress)
            .iter()
            .filter(|(_, progress)| progress.refreshing)
        {
            // What an unfinished refresh marked is not stale yet; graceful restart marks anew.
            each_family!(self, tables => tables.loc_rib.unmark_for_refresh(*family, SourceId::peer(index)));
        }
        entry.timers.stop(Timer::Stale);
        if self.leaving {
            return;
        }
        let restart = terms.and_then(|terms| terms.graceful_restart);
        let restart = restart.filter(|restart| closed.reason.keeps_routes(restart.notification));
        self.keep_routes(index, restart.as_ref(), now);
    }

    /// The peer's End-of-RIB of a family: what it has not announced again is gone.
    pub(super) fn handle_end_of_rib(&mut self, index: u32, family: AfiSafi, now: Time) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        if let Some(progress) = entry.progress.get_mut(&family) {
            progress.end_of_rib_received = true;
        }
        if entry.is_synced() {
            entry.timers.stop(Timer::Stale);
        }
        self.synchronized(index, family);
        self.update_sync(now);
    }

    /// A peer without graceful restart sends no End-of-RIB; its first KEEPALIVE after its table stands for it (RFC 4724 §2 suggests so).
    pub(super) fn handle_keepalive(&mut self, index: u32, now: Time) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        if entry.is_synced()
            || entry
                .session
                .as_ref()
                .is_none_or(|terms| terms.graceful_restart.is_some())
        {
            return;
        }
        for progress in entry.progress.values_mut() {
            progress.end_of_rib_received = true;
        }
        self.update_sync(now);
    }

    /// Whether our End-of-RIB may go out to the peers now.
    pub(super) fn may_send_end_of_rib(&self) -> bool {
        let restarted_too = |entry: &PeerEntry| {
            let terms = entry
                .session
                .as_ref()
                .and_then(|terms| terms.graceful_restart.as_ref());
            terms.is_some_and(|restart| restart.restarting)
        };
        let ready = |entry: &PeerEntry| entry.is_synced() || restarted_too(entry);
        let complete = self.sync.is_done() || !self.sync.restarting() || self.peers.values().all(ready);
        self.sync.originated && complete
    }

    /// Looks whether the wait for peers is over.
    pub(super) fn update_sync(&mut self, now: Time) {
        let Some(deadline) = self.sync.deadline else {
            return;
        };
        if self.sync.restarting() {
            // What one peer does may release the End-of-RIB of others.
            self.agenda.stir();
        }
        let complete = self.sync.originated && self.peers.values().all(PeerEntry::is_synced);
        if complete || now >= deadline {
            self.sync.deadline = None;
            self.agenda.stir();
            let local = self.local();
            for entry in self.peers.values_mut() {
                entry.peer.set_local(local);
            }
            self.log(LogEvent::InSync);
        }
    }
}
