//! The Loc-RIB (RFC 4271 §3.2): every destination with its paths, the best first, and the journal of what changed.
//!
//! Destinations lie in a slab; a [`DestId`] is a place in it and stays the same while the destination lives. One without paths keeps its
//! place until every reader of the journal has seen that (see [`LocRib::trim`]).

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use smallvec::SmallVec;

use super::attrs::{Affected, AttrId, AttrStore};
use super::decide::{Comparison, Selection, Step, select};
use super::journal::Journal;
use super::{Path, SourceId};
use crate::family::Family;

/// A place in the table of destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestId(u32);

impl DestId {
    /// As an index into dense tables.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn at(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }
}

/// A prefix and the paths to it.
#[derive(Debug)]
pub struct Destination<P> {
    /// The prefix.
    pub prefix: P,
    pub(super) paths: SmallVec<[Path; 1]>,
    selection: Selection,
    changed: u64,
}

impl<P> Destination<P> {
    /// All paths: those that take part in order of preference, then those whose next hop is out of reach, then the refused ones.
    pub fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// The best path.
    pub fn best(&self) -> Option<&Path> {
        self.best_set().first()
    }

    /// The best path and those as good.
    pub fn best_set(&self) -> &[Path] {
        self.paths
            .get(..usize::from(self.selection.multipath))
            .unwrap_or_default()
    }

    /// What readers see of it.
    fn seen(&self, watched: Watched) -> impl Iterator<Item = (SourceId, u16, Option<AttrId>)> + '_ {
        let paths = match watched {
            Watched::Best => self.best_set(),
            Watched::All => self.usable_paths(usize::MAX),
        };
        paths
            .iter()
            .map(|path| (path.source, path.local_id, path.accepted()))
    }

    /// The step that left one path.
    pub const fn decided_by(&self) -> Step {
        self.selection.decided_by
    }

    /// The first paths that take part, `limit` at most.
    pub fn usable_paths(&self, limit: usize) -> &[Path] {
        self.paths.get(..self.usable().min(limit)).unwrap_or_default()
    }

    /// How many of the paths take part in the decision; they come first.
    pub const fn usable(&self) -> usize {
        self.selection.accepted as usize
    }
}

/// All destinations of a family.
#[derive(Debug)]
pub struct LocRib<F: Family> {
    slots: Vec<Destination<F::Prefix>>,
    free: Vec<DestId>,
    index: HashTable<DestId>,
    hasher: FixedState,
    journal: Journal,
    /// Destinations that have a path.
    reachable: usize,
    /// How many paths each source has, by [`SourceId`].
    held: Vec<usize>,
    watched: Watched,
}

/// What has to change to be a change for readers of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    /// The best path, or those used together with it.
    Best,
    /// Any path that takes part.
    All,
}

impl<F: Family> LocRib<F> {
    /// An empty table; `seed` picks the hash function.
    pub fn new(seed: u64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            journal: Journal::default(),
            reachable: 0,
            held: Vec::new(),
            watched: Watched::Best,
        }
    }

    /// How many paths a source has, accepted or not.
    pub fn held(&self, source: SourceId) -> usize {
        self.held.get(source.index()).copied().unwrap_or(0)
    }

    /// How many paths a source has, to count one more or less.
    pub(super) fn held_mut(&mut self, source: SourceId) -> &mut usize {
        if self.held.len() <= source.index() {
            self.held.resize(source.index() + 1, 0);
        }
        &mut self.held[source.index()]
    }

    /// How many destinations have a path, accepted or not.
    pub const fn len(&self) -> usize {
        self.reachable
    }

    /// Whether none has.
    pub const fn is_empty(&self) -> bool {
        self.reachable == 0
    }

    /// How many destinations without paths keep their place until every reader has seen that they have none.
    pub fn unread_withdrawals(&self) -> usize {
        self.slots.len() - self.free.len() - self.reachable
    }

    /// One past the largest [`DestId`] in use.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The destination of a prefix.
    pub fn find(&self, prefix: F::Prefix) -> Option<DestId> {
        let hash = self.hasher.hash_one(prefix);
        self.index
            .find(hash, |dest| self.slots[dest.index()].prefix == prefix)
            .copied()
    }

    /// A destination by its place.
    pub fn get(&self, dest: DestId) -> &Destination<F::Prefix> {
        &self.slots[dest.index()]
    }

    /// All destinations that have a path, in no order that means anything (but the same for the same history).
    pub fn iter(&self) -> impl Iterator<Item = (DestId, &Destination<F::Prefix>)> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, d)| !d.paths.is_empty())
            .map(|(i, d)| (DestId::at(i), d))
    }

    /// The first destination at or behind `place` that has a best path.
    pub fn next_with_best(&self, place: usize) -> Option<DestId> {
        let behind = self.slots.get(place..)?;
        behind
            .iter()
            .position(|d| d.best().is_some())
            .map(|offset| DestId::at(place + offset))
    }

    /// From now on a change of any path that takes part is a change, not only of the best: somebody is told several (RFC 7911).
    pub fn watch_all_paths(&mut self) {
        self.watched = Watched::All;
    }

    /// Changes the paths of a destination by `edit`, then selects the best again. References of paths that `edit` drops are to be
    /// released afterwards, so that a handle used anew is not mistaken for the old one.
    pub(super) fn edit(
        &mut self,
        dest: DestId,
        by: &Comparison<'_>,
        edit: impl FnOnce(&mut SmallVec<[Path; 1]>),
    ) {
        let slot = &mut self.slots[dest.index()];
        let watched = self.watched;
        let before: SmallVec<[(SourceId, u16, Option<AttrId>); 2]> = slot.seen(watched).collect();
        let had_paths = !slot.paths.is_empty();
        edit(&mut slot.paths);
        slot.selection = if slot.paths.is_empty() {
            Selection::NONE
        } else {
            select(&mut slot.paths, by)
        };
        match (had_paths, !slot.paths.is_empty()) {
            (false, true) => self.reachable += 1,
            (true, false) => self.reachable -= 1,
            _ => {}
        }
        if !before.into_iter().eq(slot.seen(watched)) || (had_paths && slot.paths.is_empty()) {
            self.note_change(dest);
        }
    }

    /// The destination of a prefix, made if it is new.
    pub(super) fn find_or_insert(&mut self, prefix: F::Prefix) -> DestId {
        if let Some(dest) = self.find(prefix) {
            return dest;
        }
        let slot = Destination {
            prefix,
            paths: SmallVec::new(),
            selection: Selection::NONE,
            changed: u64::MAX,
        };
        let dest = match self.free.pop() {
            Some(dest) => {
                self.slots[dest.index()] = slot;
                dest
            }
            None => {
                self.slots.push(slot);
                DestId::at(self.slots.len() - 1)
            }
        };
        let (slots, hasher) = (&self.slots, &self.hasher);
        let hash = hasher.hash_one(prefix);
        self.index
            .insert_unique(hash, dest, |dest| hasher.hash_one(slots[dest.index()].prefix));
        dest
    }

    /// Where a reader starts that wants to see only what changes from now on.
    pub const fn journal_end(&self) -> u64 {
        self.journal.end()
    }

    /// The next changed destination for a reader at `cursor`, which is moved behind it.
    pub fn next_change(&self, cursor: &mut u64) -> Option<DestId> {
        let found = self
            .journal
            .first_from(*cursor, |number, dest| self.slots[dest.index()].changed == number);
        match found {
            Some((number, dest)) => {
                *cursor = number + 1;
                Some(dest)
            }
            None => {
                *cursor = self.journal.end();
                None
            }
        }
    }

    /// Whether a reader at `cursor` has something to read.
    pub const fn has_changes(&self, cursor: u64) -> bool {
        cursor < self.journal.end()
    }

    /// Forgets journal entries that every reader has read, of which `slowest` is the last, and gives back the places of destinations that
    /// have no paths.
    pub fn trim(&mut self, slowest: u64) {
        while let Some((number, dest)) = self.journal.pop_before(slowest) {
            let slot = &self.slots[dest.index()];
            if slot.changed != number || !slot.paths.is_empty() {
                continue;
            }
            let hash = self.hasher.hash_one(slot.prefix);
            if let Ok(found) = self.index.find_entry(hash, |other| *other == dest) {
                found.remove();
                self.free.push(dest);
            }
        }
    }

    /// Entries in the journal, for the bound's own test.
    pub fn journal_len(&self) -> usize {
        self.journal.len()
    }

    /// Records that a destination changed.
    pub(super) fn note_change(&mut self, dest: DestId) {
        self.slots[dest.index()].changed = self.journal.push(dest);
        if self.journal.wants_compaction(self.slots.len()) {
            let slots = &self.slots;
            self.journal
                .compact(|number, dest| slots[dest.index()].changed == number);
        }
    }

    /// Selects again where a path has one of the `affected` attribute sets, and has readers look there again.
    pub fn select_affected(&mut self, affected: &Affected, by: &Comparison<'_>) {
        for dest in 0..self.slots.len() {
            let uses = |path: &Path| path.accepted().is_some_and(|id| affected.contains(id));
            if self.slots[dest].paths.iter().any(uses) {
                self.edit(DestId::at(dest), by, |_| {});
                self.note_change(DestId::at(dest));
            }
        }
    }

    /// Selects again everywhere: the rules of the decision changed.
    pub fn select_all(&mut self, by: &Comparison<'_>) {
        for dest in 0..self.slots.len() {
            if !self.slots[dest].paths.is_empty() {
                self.edit(DestId::at(dest), by, |_| {});
            }
        }
    }

    /// The slot of a destination.
    pub(super) fn slot_mut(&mut self, dest: DestId) -> &mut Destination<F::Prefix> {
        &mut self.slots[dest.index()]
    }

    /// Gives the references of a path back.
    pub(super) fn release(path: &Path, attrs: &mut AttrStore) {
        attrs.release(path.received);
        if let Some(imported) = path.accepted() {
            attrs.release(imported);
        }
    }
}
