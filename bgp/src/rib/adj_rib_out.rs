//! One Adj-RIB-Out (RFC 4271 §3.2): what a peer was last told of each destination of a family, and what it is still to be told.
//!
//! The table is dense, 4 octets per destination. What is to be told is not stored: it is what a walk over all destinations (for a new
//! session, a ROUTE-REFRESH or a changed policy) or the journal of the [`LocRib`] says when the transport has room.

use super::attrs::{AttrId, AttrStore};
use super::{DestId, LocRib};
use crate::family::Family;

/// How a walk over all destinations treats what the peer knows already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// Only differences are sent: the export policy changed, or the peer knows nothing yet.
    Differences,
    /// Everything is sent again (RFC 2918).
    Everything,
}

/// What one peer was told of one family.
#[derive(Debug)]
pub struct AdjRibOut {
    sent: Vec<Option<AttrId>>,
    announced: usize,
    cursor: u64,
    walk: Option<(usize, Walk)>,
    /// Something was not told for want of room.
    held_back: bool,
}

/// What is to be looked at next for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Send also what the peer knows already.
    pub resend: bool,
}

impl AdjRibOut {
    /// Of a session that is new: everything is to be told.
    pub fn new<F: Family>(loc_rib: &LocRib<F>) -> Self {
        Self {
            sent: Vec::new(),
            announced: 0,
            cursor: loc_rib.journal_end(),
            walk: Some((0, Walk::Differences)),
            held_back: false,
        }
    }

    /// Notes that a destination was not told because the peer knows as many as it may.
    pub fn hold_back(&mut self) {
        self.held_back = true;
    }

    /// Looks again at everything if something was held back: there is room now.
    pub fn note_room(&mut self) {
        if std::mem::take(&mut self.held_back) {
            self.start_walk(Walk::Differences);
        }
    }

    /// Starts a walk over all destinations, from the beginning even if one is under way.
    pub fn start_walk(&mut self, walk: Walk) {
        let resend = walk == Walk::Everything || matches!(self.walk, Some((_, Walk::Everything)));
        self.walk = Some((
            0,
            if resend {
                Walk::Everything
            } else {
                Walk::Differences
            },
        ));
    }

    /// Fills `dests` with at most `limit` destinations to look at now; `None` when there is nothing to tell.
    /// A destination occurs once in a batch.
    pub fn next_batch<F: Family>(
        &mut self,
        loc_rib: &LocRib<F>,
        limit: usize,
        dests: &mut Vec<DestId>,
    ) -> Option<Batch> {
        if let Some((next, walk)) = self.walk {
            let end = loc_rib.slots().min(next.saturating_add(limit));
            dests.extend((next..end).map(DestId::at));
            self.walk = (end < loc_rib.slots()).then_some((end, walk));
            return Some(Batch {
                resend: walk == Walk::Everything,
            });
        }
        while dests.len() < limit {
            match loc_rib.next_change(&mut self.cursor) {
                Some(dest) => dests.push(dest),
                None => break,
            }
        }
        (!dests.is_empty()).then_some(Batch { resend: false })
    }

    /// Whether a walk is not at its end yet.
    pub const fn is_walking(&self) -> bool {
        self.walk.is_some()
    }

    /// Whether there may be something to tell.
    pub fn has_work<F: Family>(&self, loc_rib: &LocRib<F>) -> bool {
        self.walk.is_some() || loc_rib.has_changes(self.cursor)
    }

    /// What the peer was last told of a destination.
    pub fn sent(&self, dest: DestId) -> Option<AttrId> {
        self.sent.get(dest.index()).copied().flatten()
    }

    /// Records what the peer is told now; the reference in `attrs` becomes the table's, the old one is released.
    pub fn set_sent(&mut self, dest: DestId, new: Option<AttrId>, attrs: &mut AttrStore) {
        if self.sent.len() <= dest.index() {
            if new.is_none() {
                return;
            }
            self.sent.resize(dest.index() + 1, None);
        }
        let old = std::mem::replace(&mut self.sent[dest.index()], new);
        self.announced = self.announced + usize::from(new.is_some()) - usize::from(old.is_some());
        if let Some(old) = old {
            attrs.release(old);
        }
    }

    /// Gives all references back: the session is over.
    pub fn clear(&mut self, attrs: &mut AttrStore) {
        for id in self.sent.drain(..).flatten() {
            attrs.release(id);
        }
        self.announced = 0;
    }

    /// How many destinations the peer was told of.
    pub const fn announced(&self) -> usize {
        self.announced
    }

    /// Up to where the journal was read.
    pub const fn cursor(&self) -> u64 {
        self.cursor
    }
}
