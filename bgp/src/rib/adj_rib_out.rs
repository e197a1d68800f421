//! The Adj-RIB-Out (RFC 4271 §3.2) of an update group: what its peers were last told of each destination of a family.
//!
//! The table is dense: 8 octets per destination, or a short list where peers hear of several paths (RFC 7911). A peer never hears of its own
//! routes; that is why the source stands beside what was told, and one table serves all peers of the group.

use smallvec::SmallVec;

use super::attrs::{AttrId, AttrStore};
use super::{DestId, SourceId};

/// One path as it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentPath {
    /// The path identifier (RFC 7911); 0 where peers hear of one path.
    pub path_id: u32,
    /// The attributes.
    pub attrs: AttrId,
    /// Whose path it is: this peer was told nothing.
    pub source: SourceId,
}

/// What was told of one destination.
pub type SentPaths = SmallVec<[SentPath; 1]>;

/// How many paths of a destination peers hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathsPerPrefix {
    /// The best one.
    One,
    /// Several, with identifiers (RFC 7911).
    Several,
}

#[derive(Debug)]
enum Table {
    One(Vec<Option<(AttrId, SourceId)>>),
    Several(Vec<SentPaths>),
}

/// What the peers of a group were told of one family.
#[derive(Debug)]
pub struct AdjRibOut {
    table: Table,
    /// Paths told, by [`SourceId`].
    by_source: Vec<usize>,
    total: usize,
}

impl AdjRibOut {
    /// Nobody was told anything yet.
    pub fn new(paths: PathsPerPrefix) -> Self {
        Self {
            table: match paths {
                PathsPerPrefix::One => Table::One(Vec::new()),
                PathsPerPrefix::Several => Table::Several(Vec::new()),
            },
            by_source: Vec::new(),
            total: 0,
        }
    }

    /// The same, with references of its own.
    #[must_use]
    pub fn duplicate(&self, attrs: &mut AttrStore) -> Self {
        let table = match &self.table {
            Table::One(sent) => {
                sent.iter().flatten().for_each(|(id, _)| attrs.retain(*id));
                Table::One(sent.clone())
            }
            Table::Several(sent) => {
                sent.iter().flatten().for_each(|path| attrs.retain(path.attrs));
                Table::Several(sent.clone())
            }
        };
        Self {
            table,
            by_source: self.by_source.clone(),
            total: self.total,
        }
    }

    /// What was told of a destination, by path identifier.
    pub fn get(&self, dest: DestId) -> SentPaths {
        match &self.table {
            Table::One(sent) => {
                let sent = sent.get(dest.index()).copied().flatten();
                let path = sent.map(|(attrs, source)| SentPath {
                    path_id: 0,
                    attrs,
                    source,
                });
                path.into_iter().collect()
            }
            Table::Several(sent) => sent.get(dest.index()).cloned().unwrap_or_default(),
        }
    }

    /// Records what is told now; the references in `new` become the table's, the old ones are released.
    pub fn replace(&mut self, dest: DestId, new: &[SentPath], attrs: &mut AttrStore) {
        let old = self.put(dest, new);
        for path in new {
            *self.count_mut(path.source) += 1;
        }
        for path in &old {
            *self.count_mut(path.source) -= 1;
            attrs.release(path.attrs);
        }
        self.total = self.total + new.len() - old.len();
    }

    fn put(&mut self, dest: DestId, new: &[SentPath]) -> SentPaths {
        let old = self.get(dest);
        let at = dest.index();
        match &mut self.table {
            Table::One(sent) => {
                if sent.len() <= at && !new.is_empty() {
                    sent.resize(at + 1, None);
                }
                if let Some(place) = sent.get_mut(at) {
                    *place = new.first().map(|path| (path.attrs, path.source));
                }
            }
            Table::Several(sent) => {
                if sent.len() <= at && !new.is_empty() {
                    sent.resize(at + 1, SentPaths::new());
                }
                if let Some(place) = sent.get_mut(at) {
                    *place = new.into();
                }
            }
        }
        old
    }

    /// Gives all references back.
    pub fn clear(&mut self, attrs: &mut AttrStore) {
        match &mut self.table {
            Table::One(sent) => sent.drain(..).flatten().for_each(|(id, _)| attrs.release(id)),
            Table::Several(sent) => sent
                .drain(..)
                .flatten()
                .for_each(|path| attrs.release(path.attrs)),
        }
        self.by_source.clear();
        self.total = 0;
    }

    /// One past the last destination that was ever told.
    pub fn slots(&self) -> usize {
        match &self.table {
            Table::One(sent) => sent.len(),
            Table::Several(sent) => sent.len(),
        }
    }

    /// How many paths a peer that is `source` was told of.
    pub fn announced_to(&self, source: SourceId) -> usize {
        self.total - self.by_source.get(source.index()).copied().unwrap_or(0)
    }

    fn count_mut(&mut self, source: SourceId) -> &mut usize {
        if self.by_source.len() <= source.index() {
            self.by_source.resize(source.index() + 1, 0);
        }
        &mut self.by_source[source.index()]
    }
}
