//! The Adj-RIBs-In (RFC 4271 §3.2): what each peer announced, as received, and what import made of it.
//!
//! The paths of all peers lie in the slots of the [`LocRib`]; these are the operations on the paths of one source.
//! Graceful restart (RFC 4724 §4.2) marks them stale instead of removing them, and sweeps what is still stale later; long-lived graceful restart
//! (RFC 9494) keeps them as the least preferred in between.

use super::decide::Comparison;
use super::{AttrId, AttrStore, DestId, Import, LocRib, Path, Source, SourceId};
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
    /// Kept from before a restart.
    pub stale: usize,
}

impl<F: Family> LocRib<F> {
    /// A source announces `prefix`: the new path replaces its old one. The table takes references of its own.
    pub fn announce(&mut self, prefix: F::Prefix, path: Path, tables: &mut Tables<'_>) {
        tables.attrs.retain(path.received);
        if let Some(imported) = path.accepted() {
            tables.attrs.retain(imported);
        }
        let dest = self.find_or_insert(prefix);
        let mut old = None;
        self.edit(dest, &tables.comparison(), |paths| {
            match paths.iter_mut().find(|p| p.source == path.source) {
                Some(place) => old = Some(std::mem::replace(place, path)),
                None => paths.push(path),
            }
        });
        match old {
            Some(old) => Self::release(&old, tables.attrs),
            None => *self.held_mut(path.source) += 1,
        }
    }

    /// Whether a source has a path to `prefix`.
    pub fn has_path(&self, prefix: F::Prefix, source: SourceId) -> bool {
        self.find(prefix)
            .is_some_and(|dest| self.get(dest).paths().iter().any(|path| path.source == source))
    }

    /// A source withdraws `prefix`. Nothing happens when it had not announced it.
    pub fn withdraw(&mut self, prefix: F::Prefix, source: SourceId, tables: &mut Tables<'_>) {
        if let Some(dest) = self.find(prefix) {
            self.remove(dest, source, tables);
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
        for dest in 0..self.slots() {
            let dest = DestId::at(dest);
            let Some(old) = self
                .path_mut(dest, source)
                .map(|path| *path)
                .filter(|path| path.stale)
            else {
                continue;
            };
            let refused = |id| tables.attrs.get(id).communities.contains(Community::NO_LLGR);
            if refused(old.received) || old.accepted().is_some_and(refused) {
                self.remove(dest, source, tables);
                continue;
            }
            let mut attributes = tables.attrs.get(old.received).clone();
            if attributes.communities.contains(marked) {
                continue;
            }
            attributes.communities.insert(marked);
            let received = tables.attrs.intern(attributes);
            let new = Path {
                received,
                import: import(self.get(dest).prefix, received, tables.attrs),
                ..old
            };
            self.edit(dest, &tables.comparison(), |paths| {
                for path in paths.iter_mut().filter(|path| path.source == source) {
                    *path = new;
                }
            });
            Self::release(&old, tables.attrs);
        }
    }

    fn for_each_of(&mut self, source: SourceId, mut change: impl FnMut(&mut Path)) {
        for dest in 0..self.slots() {
            if let Some(path) = self.path_mut(DestId::at(dest), source) {
                change(path);
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
        for dest in 0..self.slots() {
            let dest = DestId::at(dest);
            let Some(path) = self.path_mut(dest, source).map(|path| *path) else {
                continue;
            };
            let prefix = self.get(dest).prefix;
            let new = import(prefix, path.received, tables.attrs);
            self.edit(dest, &tables.comparison(), |paths| {
                for path in paths.iter_mut().filter(|path| path.source == source) {
                    path.import = new;
                }
            });
            if let Import::Accepted(old) = path.import {
                tables.attrs.release(old);
            }
        }
    }

    /// How many paths a source has.
    pub fn count(&self, source: SourceId) -> PathCounts {
        let mut counts = PathCounts::default();
        for path in self
            .iter()
            .flat_map(|(_, dest)| dest.paths())
            .filter(|path| path.source == source)
        {
            counts.received += 1;
            counts.accepted += usize::from(path.accepted().is_some());
            counts.stale += usize::from(path.stale);
        }
        counts
    }

    fn remove_where(&mut self, source: SourceId, tables: &mut Tables<'_>, condemned: impl Fn(&Path) -> bool) {
        for dest in 0..self.slots() {
            let dest = DestId::at(dest);
            if self.path_mut(dest, source).is_some_and(|path| condemned(path)) {
                self.remove(dest, source, tables);
            }
        }
    }

    fn remove(&mut self, dest: DestId, source: SourceId, tables: &mut Tables<'_>) {
        let mut old = None;
        self.edit(dest, &tables.comparison(), |paths| {
            if let Some(at) = paths.iter().position(|path| path.source == source) {
                old = Some(paths.remove(at));
            }
        });
        if let Some(old) = old {
            *self.held_mut(source) -= 1;
            Self::release(&old, tables.attrs);
        }
    }
}
