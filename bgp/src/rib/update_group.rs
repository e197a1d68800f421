//! An update group: peers that are told the same of a family, computed and encoded once.
//!
//! The group reads the journal of the [`LocRib`] with one cursor and keeps one Adj-RIB-Out. What it makes of a batch of changes is a
//! [`Chunk`]: messages for all, in pieces by the source of the routes, since a peer does not hear of its own. A member takes the chunks in
//! order, each at its own pace.
//!
//! A member that is new, or asked for everything, walks over the Adj-RIB-Out. One for which too many octets wait loses its place in the log; what
//! the chunks it missed were about is noted for it, each route once, and it is told the latest state of these (superseded ones are never sent).
//! So a slow member costs a bounded log and a set of routes, never a queue.
//!
//! Invariant: a member that has taken every chunk, has nothing overdue and no walk before it knows what the Adj-RIB-Out says, its own
//! routes excepted. Walks and overdue routes read the Adj-RIB-Out only when all chunks are taken, so that nothing older follows.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Range;

use super::adj_rib_out::{AdjRibOut, PathsPerPrefix};
use super::attrs::AttrStore;
use super::{DestId, LocRib, SourceId};
use crate::family::Family;
use crate::wire::nlri::Nlri;

/// Octets of messages that wait for slow members, beyond the one chunk just made.
const LOG_OCTETS: usize = 1 << 20;

/// Overdue routes of a member beyond this many are looked for by a walk instead, those withdrawn excepted.
const MAX_OVERDUE: usize = 16_384;

/// Ranges of destinations of one walk.
const MAX_RANGES: usize = 16;

/// Messages made at one go.
#[derive(Debug)]
pub struct Chunk<F: Family> {
    octets: Vec<u8>,
    /// In the order of the octets.
    pieces: Vec<Piece>,
    /// What single members get besides.
    extras: Vec<Extra>,
    /// The routes it is about, for members that never take it.
    routes: Vec<Nlri<F>>,
    /// Members that have not taken it.
    waiting: usize,
}

/// How much a peer is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// UPDATE messages.
    pub messages: u64,
    /// Prefixes announced in them.
    pub announcements: u64,
    /// Prefixes withdrawn in them.
    pub withdrawals: u64,
}

impl Told {
    /// So many routes announced; the messages are not made yet.
    pub fn announcements(count: usize) -> Self {
        Self {
            announcements: count as u64,
            ..Self::default()
        }
    }

    /// So many routes withdrawn; the messages are not made yet.
    pub fn withdrawals(count: usize) -> Self {
        Self {
            withdrawals: count as u64,
            ..Self::default()
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            messages: self.messages + other.messages,
            announcements: self.announcements + other.announcements,
            withdrawals: self.withdrawals + other.withdrawals,
        }
    }
}

/// Whole messages about routes of one source, who does not get them.
#[derive(Debug, Clone, Copy)]
struct Piece {
    source: SourceId,
    end: usize,
    told: Told,
}

#[derive(Debug)]
struct Extra {
    to: SourceId,
    octets: Vec<u8>,
    told: Told,
}

impl<F: Family> Default for Chunk<F> {
    fn default() -> Self {
        Self {
            octets: Vec::new(),
            pieces: Vec::new(),
            extras: Vec::new(),
            routes: Vec::new(),
            waiting: 0,
        }
    }
}

impl<F: Family> Chunk<F> {
    /// Appends a piece: `write` appends whole messages about these `routes` of `source` and returns how many.
    pub fn write(&mut self, source: SourceId, routes: Told, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        let messages = write(&mut self.octets) as u64;
        let told = Told { messages, ..routes };
        let end = self.octets.len();
        match self.pieces.last_mut().filter(|piece| piece.source == source) {
            Some(piece) => {
                piece.end = end;
                piece.told = piece.told.plus(told);
            }
            None => self.pieces.push(Piece { source, end, told }),
        }
    }

    /// Appends whole messages about these `routes` for one member alone.
    pub fn write_extra(&mut self, to: SourceId, routes: Told, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        let mut octets = Vec::new();
        let messages = write(&mut octets) as u64;
        let told = Told { messages, ..routes };
        self.extras.push(Extra { to, octets, told });
    }

    /// Notes that the chunk is about a route.
    pub fn note(&mut self, route: Nlri<F>) {
        self.routes.push(route);
    }

    /// Whether there is nothing in it for anybody.
    pub fn is_empty(&self) -> bool {
        self.octets.is_empty() && self.extras.is_empty()
    }

    /// Appends what a member gets and returns how much that is.
    pub fn append_for(&self, member: SourceId, out: &mut Vec<u8>) -> Told {
        let mut told = Told::default();
        let mut begin = 0;
        for piece in &self.pieces {
            if piece.source != member {
                out.extend_from_slice(self.octets.get(begin..piece.end).unwrap_or_default());
                told = told.plus(piece.told);
            }
            begin = piece.end;
        }
        for extra in self.extras.iter().filter(|extra| extra.to == member) {
            out.extend_from_slice(&extra.octets);
            told = told.plus(extra.told);
        }
        told
    }

    fn octets(&self) -> usize {
        self.octets.len() + self.extras.iter().map(|extra| extra.octets.len()).sum::<usize>()
    }
}

/// How far one peer of a group is.
#[derive(Debug)]
struct Member<F: Family> {
    /// The next chunk to take.
    next: u64,
    /// The destinations of a walk over the Adj-RIB-Out that are still to come, in ascending order. It ends where the Adj-RIB-Out
    /// ended when the walk began: what was told of later ones is in chunks that the member takes.
    walk: VecDeque<Range<usize>>,
    /// Routes to be told the latest state of; what the peer knows of them is not known.
    overdue: HashSet<Nlri<F>>,
}

/// What a member is to be told besides the chunks.
#[derive(Debug, PartialEq, Eq)]
pub enum CatchUp<F: Family> {
    /// All that was told of these destinations.
    Walk(Vec<DestId>),
    /// The latest state of these routes.
    Overdue(Vec<Nlri<F>>),
}

/// Peers that are told the same.
#[derive(Debug)]
pub struct UpdateGroup<F: Family> {
    /// What members were told.
    pub sent: AdjRibOut,
    cursor: u64,
    /// The next destination of a walk for all: at the beginning, and when what is told has changed for reasons outside the journal.
    walk: Option<usize>,
    log: VecDeque<Chunk<F>>,
    /// The number of the first chunk in the log.
    first: u64,
    log_octets: usize,
    members: BTreeMap<u32, Member<F>>,
    /// Something was not told for want of room.
    held_back: bool,
}

impl<F: Family> UpdateGroup<F> {
    /// A group without members, to which everything is to be told.
    pub fn new(loc_rib: &LocRib<F>, paths: PathsPerPrefix) -> Self {
        Self {
            sent: AdjRibOut::new(paths),
            cursor: loc_rib.journal_end(),
            walk: Some(0),
            log: VecDeque::new(),
            first: 0,
            log_octets: 0,
            members: BTreeMap::new(),
            held_back: false,
        }
    }

    /// A peer with a new session joins: it knows nothing yet.
    pub fn join(&mut self, peer: u32) {
        let member = Member {
            next: self.end(),
            walk: walk_over(self.sent.slots()),
            overdue: HashSet::new(),
        };
        self.members.insert(peer, member);
    }

    /// A peer's session is over.
    pub fn leave(&mut self, peer: u32) {
        if let Some(member) = self.members.remove(&peer) {
            for chunk in self.log.iter_mut().skip(taken(self.first, &member)) {
                chunk.waiting -= 1;
            }
        }
        self.forget_taken();
    }

    /// The peers in the group.
    pub fn members(&self) -> impl Iterator<Item = u32> + '_ {
        self.members.keys().copied()
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether routes of this source are a member's.
    pub fn has_member(&self, source: SourceId) -> bool {
        source
            .peer_index()
            .is_some_and(|peer| self.members.contains_key(&peer))
    }

    /// Takes `peers` out into a group of their own that knows the same, with references of its own.
    #[must_use]
    pub fn split(&mut self, peers: &[u32], loc_rib: &LocRib<F>, attrs: &mut AttrStore) -> Self {
        let mut other = Self {
            sent: self.sent.duplicate(attrs),
            cursor: self.cursor,
            walk: self.walk,
            held_back: self.held_back,
            ..Self::new(loc_rib, PathsPerPrefix::One)
        };
        for peer in peers {
            self.skip_log(*peer, loc_rib);
            if let Some(mut member) = self.members.remove(peer) {
                member.next = 0;
                other.members.insert(*peer, member);
            }
        }
        self.forget_taken();
        other
    }

    /// Takes over the members of a group that says the same, when both are at rest; `false` when they are not.
    pub fn merge(&mut self, other: &mut Self, loc_rib: &LocRib<F>) -> bool {
        if !(self.is_at_rest(loc_rib) && other.is_at_rest(loc_rib)) {
            return false;
        }
        let end = self.end();
        for (peer, mut member) in std::mem::take(&mut other.members) {
            member.next = end;
            self.members.insert(peer, member);
        }
        true
    }

    fn is_at_rest(&self, loc_rib: &LocRib<F>) -> bool {
        let at_rest = |member: &Member<F>| member.next == self.end() && member.is_caught_up();
        !self.has_changes(loc_rib) && self.members.values().all(at_rest)
    }

    /// Compares everything with what was told, from the beginning even if that is under way.
    pub fn start_walk(&mut self) {
        self.walk = Some(0);
    }

    /// Tells one member everything again (RFC 2918).
    pub fn tell_again(&mut self, peer: u32) {
        if let Some(member) = self.members.get_mut(&peer) {
            member.walk = walk_over(self.sent.slots());
        }
    }

    /// Notes that a destination was not told because the peer knows as many as it may.
    pub fn hold_back(&mut self) {
        self.held_back = true;
    }

    /// Looks again at everything if something was held back: there is room now.
    pub fn note_room(&mut self) {
        if std::mem::take(&mut self.held_back) {
            self.start_walk();
        }
    }

    /// The next chunk for a member, if one waits: it counts as taken. Appends it to `out`; returns how much it tells.
    pub fn take_chunk(&mut self, peer: u32, out: &mut Vec<u8>) -> Option<Told> {
        let member = self.members.get_mut(&peer)?;
        let chunk = self.log.get_mut(taken(self.first, member))?;
        let told = chunk.append_for(SourceId::peer(peer), out);
        chunk.waiting -= 1;
        member.next += 1;
        self.forget_taken();
        Some(told)
    }

    /// At most `limit` destinations or routes a member is to be told of besides the chunks, of which it must have taken all.
    pub fn catch_up(&mut self, peer: u32, limit: usize) -> Option<CatchUp<F>> {
        let member = self.members.get_mut(&peer)?;
        if let Some(Range { start, end }) = member.walk.pop_front() {
            let until = end.min(start.saturating_add(limit));
            if until < end {
                member.walk.push_front(until..end);
            }
            return Some(CatchUp::Walk((start..until).map(DestId::at).collect()));
        }
        if member.overdue.is_empty() {
            return None;
        }
        let routes: Vec<Nlri<F>> = member.overdue.iter().take(limit).copied().collect();
        for route in &routes {
            member.overdue.remove(route);
        }
        if member.overdue.is_empty() {
            member.overdue = HashSet::new();
        }
        Some(CatchUp::Overdue(routes))
    }

    /// Fills `dests` with at most `limit` destinations to compare with what was told; each occurs once. `false` when there is nothing to do.
    pub fn next_batch(&mut self, loc_rib: &LocRib<F>, limit: usize, dests: &mut Vec<DestId>) -> bool {
        if let Some(next) = self.walk {
            let end = loc_rib.slots().min(next.saturating_add(limit));
            dests.extend((next..end).map(DestId::at));
            self.walk = (end < loc_rib.slots()).then_some(end);
            return true;
        }
        while dests.len() < limit {
            match loc_rib.next_change(&mut self.cursor) {
                Some(dest) => dests.push(dest),
                None => break,
            }
        }
        !dests.is_empty()
    }

    /// Has the chunk wait for all members. Those for whom too much waits lose their place and are told later.
    pub fn push(&mut self, mut chunk: Chunk<F>, loc_rib: &LocRib<F>) {
        if chunk.is_empty() || self.members.is_empty() {
            return;
        }
        chunk.waiting = self.members.len();
        self.log_octets += chunk.octets();
        self.log.push_back(chunk);
        while self.log_octets > LOG_OCTETS && self.log.len() > 1 {
            let slowest = self.first;
            let slow: Vec<u32> = self
                .members
                .iter()
                .filter(|(_, member)| member.next == slowest)
                .map(|(peer, _)| *peer)
                .collect();
            for peer in slow {
                self.skip_log(peer, loc_rib);
            }
            self.forget_taken();
        }
    }

    /// Takes a member past all chunks; what they are about is overdue instead.
    fn skip_log(&mut self, peer: u32, loc_rib: &LocRib<F>) {
        let end = self.end();
        let Some(member) = self.members.get_mut(&peer) else {
            return;
        };
        for chunk in self.log.iter_mut().skip(taken(self.first, member)) {
            member.overdue.extend(&chunk.routes);
            chunk.waiting -= 1;
        }
        member.next = end;
        if member.overdue.len() > MAX_OVERDUE {
            // A walk finds what is told now; only what is not would be forgotten. It begins at the first missed: while a table
            // grows, all that the member has heard is before that.
            let (sent, slots) = (&self.sent, self.sent.slots());
            let mut first = slots;
            member.overdue.retain(|route| {
                let is_told = |dest: &DestId| {
                    let told = sent.get(*dest);
                    told.iter().any(|path| path.path_id == route.path_id)
                };
                let told = loc_rib.find(route.prefix).filter(is_told);
                first = told.map_or(first, |dest| first.min(dest.index()));
                told.is_none()
            });
            member.overdue.shrink_to_fit();
            member.walk_also(first..slots);
        }
    }

    /// Members for which more than `limit` withdrawals wait.
    pub fn overloaded(&self, limit: usize) -> impl Iterator<Item = u32> + '_ {
        let members = self.members.iter();
        members
            .filter(move |(_, member)| member.overdue.len() > limit)
            .map(|(peer, _)| *peer)
    }

    /// Whether there may be something to compare with what was told.
    pub fn has_changes(&self, loc_rib: &LocRib<F>) -> bool {
        self.walk.is_some() || loc_rib.has_changes(self.cursor)
    }

    /// Whether there may be something to tell a member.
    pub fn has_work(&self, peer: u32, loc_rib: &LocRib<F>) -> bool {
        let waits = |member: &Member<F>| member.next < self.end() || !member.is_caught_up();
        self.has_changes(loc_rib) || self.members.get(&peer).is_some_and(waits)
    }

    /// Whether a member is being told everything and has not heard all.
    pub fn is_walking(&self, peer: u32) -> bool {
        let walking = |member: &Member<F>| !member.walk.is_empty();
        self.walk.is_some() || self.members.get(&peer).is_some_and(walking)
    }

    /// Up to where the journal was read.
    pub const fn cursor(&self) -> u64 {
        self.cursor
    }

    fn end(&self) -> u64 {
        self.first + self.log.len() as u64
    }

    /// Drops the chunks that every member has taken.
    fn forget_taken(&mut self) {
        while let Some(chunk) = self.log.pop_front_if(|chunk| chunk.waiting == 0) {
            self.log_octets -= chunk.octets();
            self.first += 1;
        }
    }
}

/// A walk over so many destinations.
fn walk_over(slots: usize) -> VecDeque<Range<usize>> {
    (slots > 0).then_some(0..slots).into_iter().collect()
}

/// How many chunks of a log that begins with number `first` a member has taken.
fn taken<F: Family>(first: u64, member: &Member<F>) -> usize {
    usize::try_from(member.next - first).unwrap_or(usize::MAX)
}

impl<F: Family> Member<F> {
    fn is_caught_up(&self) -> bool {
        self.walk.is_empty() && self.overdue.is_empty()
    }

    /// Walks over these destinations too, which end where the Adj-RIB-Out does. What lies between two ranges the member has heard; it hears
    /// it again when there are too many ranges to keep apart.
    fn walk_also(&mut self, mut more: Range<usize>) {
        while let Some(last) = self
            .walk
            .pop_back_if(|last| last.end >= more.start || last.start >= more.start)
        {
            more.start = more.start.min(last.start);
        }
        if self.walk.len() == MAX_RANGES
            && let Some(last) = self.walk.pop_back()
        {
            more.start = last.start;
        }
        if !more.is_empty() {
            self.walk.push_back(more);
        }
    }
}
