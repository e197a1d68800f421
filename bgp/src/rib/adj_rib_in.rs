//! The Adj-RIBs-In (RFC 4271 §3.2): what each peer announced, as received, and what import made of it.
//!
//! The paths of all peers lie in the slots of the [`LocRib`]; these are the operations on the paths of one source. A source has one path to a
//! destination, or with ADD-PATH (RFC 7911) several, told apart by the identifiers it gave them.
//! Graceful restart (RFC 4724 §4.2) marks them stale instead of removing them, and sweeps what is still stale later; long-lived graceful restart
//! (RFC 9494) keeps them as the least preferred in between.

use smallvec::SmallVec;

use super::decide::Comparison;
use super::{AttrId, AttrStore, DestId, Import, LocRib, Path, Refusal, Source, SourceId};
use crate::config::DecisionConfig;
use crate::family::{AfiSafi, Family};
use crate::wire::attr::Community;

/// What the tables need from outside for every change.
#[derive(Debug)]
pub struct Tables<'a> {
    /// The attribute sets.
    pub attrs: &'a mut AttrStore,
    /// Where paths are from.
    pub sources: &'a [Source],
    /// The rules of the decision.
    pub decision: &'a DecisionConfig,
}

impl Tables<'_> {
    /// The same, for looking only.
    pub fn comparison(&self) -> Comparison<'_> {
        Comparison {
            attrs: self.attrs,
            sources: self.sources,
            config: self.decision,
        }
    }
}

/// How many paths a source has in a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathCounts {
    /// All.
    pub received: usize,
    /// Accepted by import.
    pub accepted: usize,
    /// Refused by import policy, or for want of one.
    pub filtered: usize,
    /// Refused by what no policy can switch off: loops, next hops that are none.
    pub rejected: usize,
    /// Accepted, and without a way to their next hop.
    pub unreachable: usize,
    /// Kept from before a restart.
    pub stale: usize,
    /// The best to their prefix.
    pub best: usize,
}

/// What becomes of a path that is looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays as it is.
    Keep,
    /// This stands in its place. References of the new path are its own; those of the old one are given back.
    Replace(Path),
    /// It goes.
    Remove,
}

/// Paths of one source to one destination, at most: more than any peer has use for, and few enough to compare at every change.
pub const MAX_PATHS_OF_SOURCE: usize = 64;

impl<F: Family> LocRib<F> {
    /// A source announces a path to `prefix`: it replaces the source's old one of the same identifier. The table takes references of its own and
    /// gives the path its local identifier. `false` when there is no room: the source has [`MAX_PATHS_OF_SOURCE`] others to the prefix.
    #[must_use]
    pub fn announce(&mut self, prefix: F::Prefix, mut path: Path, tables: &mut Tables<'_>) -> bool {
        let dest = self.find_or_insert(prefix);
        let paths = &mut self.slot_mut(dest).paths;
        let place = paths
            .iter()
            .position(|old| old.is_same(path.source, path.path_id));
        if place.is_none() && !paths.is_empty() {
            let others = paths.iter().filter(|old| old.source == path.source).count();
            if others >= MAX_PATHS_OF_SOURCE {
                return false;
            }
        }
        path.local_id = match place {
            Some(place) => paths[place].local_id,
            None => free_local_id(paths),
        };
        tables.attrs.retain(path.received);
        if let Some(imported) = path.accepted() {
            tables.attrs.retain(imported);
        }
        let mut old = None;
        self.edit(dest, &tables.comparison(), |paths| match place {
            Some(place) => old = Some(std::mem::replace(&mut paths[place], path)),
            None => paths.push(path),
        });
        match old {
            Some(old) => Self::release(&old, tables.attrs),
            None => *self.held_mut(path.source) += 1,
        }
        true
    }

    /// Whether a source has a path of this identifier to `prefix`.
    pub fn has_path(&self, prefix: F::Prefix, source: SourceId, path_id: u32) -> bool {
        let is_same = |path: &Path| path.is_same(source, path_id);
        self.find(prefix)
            .is_some_and(|dest| self.get(dest).paths().iter().any(is_same))
    }

    /// A source withdraws its path of this identifier to `prefix`. Nothing happens when it had not announced it.
    pub fn withdraw(&mut self, prefix: F::Prefix, source: SourceId, path_id: u32, tables: &mut Tables<'_>) {
        if let Some(dest) = self.find(prefix) {
            self.remove(dest, tables, |path| path.is_same(source, path_id));
        }
    }

    /// Removes all paths of a source.
    pub fn clear_source(&mut self, source: SourceId, tables: &mut Tables<'_>) {
        self.remove_where(source, tables, |_| true);
    }

    /// Removes the paths of a source that are still marked stale.
    pub fn sweep_stale(&mut self, source: SourceId, tables: &mut Tables<'_>) {
        self.remove_where(source, tables, |path| path.stale);
    }

    /// Marks all paths of a source stale: its session went away, its forwarding did not (RFC 4724 §4.2). Those that were stale already are
    /// removed: the RFC has nothing survive two restarts without being announced between them.
    pub fn mark_stale(&mut self, source: SourceId, tables: &mut Tables<'_>) {
        self.sweep_stale(source, tables);
        self.for_each_of(source, |path| path.stale = true);
    }

    /// As [`LocRib::mark_stale`], but what was stale already stays (RFC 8538 §4.1, RFC 9494 §4.2: a timer bounds it).
    pub fn mark_stale_again(&mut self, source: SourceId) {
        self.for_each_of(source, |path| path.stale = true);
    }

    /// The long-lived time of a source's stale paths begins (RFC 9494 §4.2): those that came with NO_LLGR, or got it by import, are removed; the others
    /// carry LLGR_STALE from now on, as if they had come with it, and `import` runs over them again, as in [`LocRib::reimport`].
    pub fn mark_long_lived(
        &mut self,
        source: SourceId,
        tables: &mut Tables<'_>,
        mut import: impl FnMut(F::Prefix, AttrId, &mut AttrStore) -> Import,
    ) {
        let marked = Community::LLGR_STALE;
        self.rewrite(source, tables, |prefix, path, attrs| {
            let refused = |id| attrs.get(id).communities.contains(Community::NO_LLGR);
            if !path.stale {
                return Fate::Keep;
            }
            if refused(path.received) || path.accepted().is_some_and(refused) {
                return Fate::Remove;
            }
            let mut attributes = attrs.get(path.received).clone();
            if attributes.communities.contains(marked) {
                return Fate::Keep;
            }
            attributes.communities.insert(marked);
            let received = attrs.intern(attributes);
            Fate::Replace(Path {
                received,
                import: import(prefix, received, attrs),
                ..*path
            })
        });
    }

    fn for_each_of(&mut self, source: SourceId, mut change: impl FnMut(&mut Path)) {
        for dest in 0..self.slots() {
            for path in self.slot_mut(DestId::at(dest)).paths.iter_mut() {
                if path.source == source {
                    change(path);
                }
            }
        }
    }

    /// Marks all paths of a source stale because it sends everything again (RFC 7313 §4.2), if `family` is this table's. Nothing is removed.
    pub fn mark_for_refresh(&mut self, family: AfiSafi, source: SourceId) {
        if family == F::AFI_SAFI {
            self.for_each_of(source, |path| path.stale = true);
        }
    }

    /// Takes the marks of [`LocRib::mark_for_refresh`] off again: the refresh will not come to its end.
    pub fn unmark_for_refresh(&mut self, family: AfiSafi, source: SourceId) {
        if family == F::AFI_SAFI {
            self.for_each_of(source, |path| path.stale = false);
        }
    }

    /// Runs import again over the paths of a source: `import` gets each prefix and received set and returns the new result, with a reference
    /// of its own when it is accepted.
    pub fn reimport(
        &mut self,
        source: SourceId,
        tables: &mut Tables<'_>,
        mut import: impl FnMut(F::Prefix, AttrId, &mut AttrStore) -> Import,
    ) {
        self.rewrite(source, tables, |prefix, path, attrs| {
            attrs.retain(path.received);
            let import = import(prefix, path.received, attrs);
            Fate::Replace(Path { import, ..*path })
        });
    }

    /// Looks at each path of a source again and does with it what `judge` says.
    pub fn rewrite(
        &mut self,
        source: SourceId,
        tables: &mut Tables<'_>,
        judge: impl FnMut(F::Prefix, &Path, &mut AttrStore) -> Fate,
    ) {
        self.rewrite_where(|path| path.source == source, tables, judge);
    }

    /// Looks at each path that `is_meant` again and does with it what `judge` says.
    pub fn rewrite_where(
        &mut self,
        is_meant: impl Fn(&Path) -> bool,
        tables: &mut Tables<'_>,
        mut judge: impl FnMut(F::Prefix, &Path, &mut AttrStore) -> Fate,
    ) {
        for dest in 0..self.slots() {
            let dest = DestId::at(dest);
            let slot = self.get(dest);
            let prefix = slot.prefix;
            let fates: SmallVec<[(SourceId, u32, Fate); 1]> = slot
                .paths
                .iter()
                .filter(|path| is_meant(path))
                .map(|path| (path.source, path.path_id, judge(prefix, path, tables.attrs)))
                .filter(|(_, _, fate)| *fate != Fate::Keep)
                .collect();
            if fates.is_empty() {
                continue;
            }
            let mut replaced: SmallVec<[Path; 1]> = SmallVec::new();
            let fate_of = |path: &Path| {
                let fate = fates.iter().find(|(source, id, _)| path.is_same(*source, *id));
                fate.map_or(Fate::Keep, |(_, _, fate)| *fate)
            };
            self.edit(dest, &tables.comparison(), |paths| {
                for path in paths.iter_mut() {
                    if let Fate::Replace(new) = fate_of(path) {
                        replaced.push(std::mem::replace(path, new));
                    }
                }
            });
            for old in &replaced {
                Self::release(old, tables.attrs);
            }
            self.remove(dest, tables, |path| fate_of(path) == Fate::Remove);
        }
    }

    /// How many paths there are of each source, by [`SourceId`]; sources behind the last one with paths are missing.
    pub fn counts(&self) -> Vec<PathCounts> {
        let mut counts: Vec<PathCounts> = Vec::new();
        for (_, dest) in self.iter() {
            for (rank, path) in dest.paths().iter().enumerate() {
                let place = path.source.index();
                if counts.len() <= place {
                    counts.resize(place + 1, PathCounts::default());
                }
                if let Some(count) = counts.get_mut(place) {
                    count.received += 1;
                    count.accepted += usize::from(path.accepted().is_some());
                    count.unreachable += usize::from(path.accepted().is_some() && rank >= dest.usable());
                    match path.import {
                        Import::Accepted(_) => {}
                        Import::Refused(Refusal::Policy(_) | Refusal::NoPolicy) => count.filtered += 1,
                        Import::Refused(_) => count.rejected += 1,
                    }
                    count.stale += usize::from(path.stale);
                    count.best += usize::from(rank == 0 && dest.best().is_some());
                }
            }
        }
        counts
    }

    fn remove_where(&mut self, source: SourceId, tables: &mut Tables<'_>, condemned: impl Fn(&Path) -> bool) {
        for dest in 0..self.slots() {
            self.remove(DestId::at(dest), tables, |path| {
                path.source == source && condemned(path)
            });
        }
    }

    /// Removes the paths of a destination that are `condemned`.
    fn remove(&mut self, dest: DestId, tables: &mut Tables<'_>, condemned: impl Fn(&Path) -> bool) {
        if !self.get(dest).paths.iter().any(&condemned) {
            return;
        }
        let mut removed: SmallVec<[Path; 1]> = SmallVec::new();
        self.edit(dest, &tables.comparison(), |paths| {
            paths.retain(|path| {
                let goes = condemned(path);
                if goes {
                    removed.push(*path);
                }
                !goes
            });
        });
        for old in &removed {
            *self.held_mut(old.source) -= 1;
            Self::release(old, tables.attrs);
        }
    }
}

/// An identifier no other path of the destination has: the one behind the highest, while there is one.
fn free_local_id(paths: &[Path]) -> u16 {
    let highest = paths.iter().map(|path| path.local_id).max().unwrap_or(0);
    let taken = |id: &u16| paths.iter().any(|path| path.local_id == *id);
    highest
        .checked_add(1)
        .or_else(|| (1..=u16::MAX).find(|id| !taken(id)))
        .unwrap_or(u16::MAX)
}
