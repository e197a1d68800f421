//! What a plan knows: the ranges that were read and the keys found in them.
//!
//! A plan that looks at something not read yet stops with the ranges it needs; they are read, and the plan runs again
//! from the start. So plans are pure, and reading is exactly what turned out to be necessary. A view may be older than
//! the store: the guards of the transaction are what makes that safe.

use std::collections::{BTreeMap, BTreeSet};

use crate::store::{Guard, KeyValue, Range, Snapshot, Write};

/// Modification revision of what is not stored yet: none that a store gives, so that nobody can have seen it there.
const NOT_STORED: i64 = i64::MAX;

/// Everything read so far for one operation.
#[derive(Clone, Debug, Default)]
pub struct View {
    read: BTreeSet<Range>,
    kvs: BTreeMap<String, KeyValue>,
}

/// Ranges that must be read before the plan can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Need(pub(crate) Vec<Range>);

impl View {
    /// Whether nothing was read yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.read.is_empty()
    }

    /// Takes in what `ranges` contained. Replaces what was known of them.
    pub fn absorb(&mut self, ranges: &[Range], snapshot: Snapshot) {
        for range in ranges {
            match range {
                Range::Key(key) => {
                    self.kvs.remove(key);
                }
                Range::Prefix(prefix) => self.kvs.retain(|key, _| !key.starts_with(prefix.as_str())),
            }
            self.read.insert(range.clone());
        }
        self.kvs
            .extend(snapshot.kvs.into_iter().map(|kv| (kv.key.clone(), kv)));
    }

    /// Takes in what a refused transaction found under its guarded keys.
    pub fn absorb_conflict(&mut self, guards: &[Guard], present: Snapshot) {
        let ranges: Vec<Range> = guards.iter().map(|guard| Range::Key(guard.key.clone())).collect();
        self.absorb(&ranges, present);
    }

    /// Makes it what it will be after `writes`.
    pub(crate) fn assume(&mut self, writes: &[Write]) {
        for write in writes {
            self.read.insert(Range::Key(write.key().to_owned()));
            match write {
                Write::Put { key, value } => {
                    let kv = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        mod_revision: NOT_STORED,
                    };
                    self.kvs.insert(key.clone(), kv);
                }
                Write::Delete { key } => {
                    self.kvs.remove(key);
                }
            }
        }
    }

    /// Succeeds if all `ranges` were read; otherwise names the missing ones, all at once.
    pub(crate) fn require(&self, ranges: impl IntoIterator<Item = Range>) -> Result<(), Need> {
        let missing: Vec<Range> = ranges.into_iter().filter(|range| !self.knows(range)).collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(Need(missing))
        }
    }

    /// The present value of `key`, `None` if it does not exist.
    pub(crate) fn get(&self, key: &str) -> Result<Option<&KeyValue>, Need> {
        match self.kvs.get(key) {
            Some(kv) => Ok(Some(kv)),
            None => self.require([Range::Key(key.to_owned())]).map(|()| None),
        }
    }

    /// Everything under `prefix`, ascending.
    pub(crate) fn prefix(&self, prefix: &str) -> Result<impl Iterator<Item = &KeyValue>, Need> {
        self.require([Range::Prefix(prefix.to_owned())])?;
        let from = self.kvs.range(prefix.to_owned()..);
        Ok(from
            .map(|(_, kv)| kv)
            .take_while(move |kv| kv.key.starts_with(prefix)))
    }

    fn knows(&self, range: &Range) -> bool {
        self.read.contains(range)
            || match range {
                Range::Key(key) => self.kvs.contains_key(key) || self.inside_a_prefix(key),
                Range::Prefix(prefix) => self.inside_a_prefix(prefix),
            }
    }

    fn inside_a_prefix(&self, key: &str) -> bool {
        self.read
            .iter()
            .any(|range| matches!(range, Range::Prefix(prefix) if key.starts_with(prefix.as_str())))
    }
}
