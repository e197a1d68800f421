//! What a plan knows: the ranges that were read and the keys found in them.
//!
//! A plan that looks at something not read yet stops with the ranges it needs; they are read, and the plan runs again
//! from the start. So plans are pure, and reading is exactly what turned out to be necessary. A view may be older than
//! the store: the guards of the transaction are what makes that safe.
//!
//! Part of a view outlives its transaction ([`View::keep_what_lasts`]): what every assignment of a node looks at again. A
//! transaction depends on that, so that one that commits proves it true at its own revision, and the next can be planned
//! without reading. Blocks are the exception: who changes one depends on it, what is known of the others may be outdated, and one
//! that was never read may be taken to be absent where the transaction depends on that ([`View::may_presume`]).

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use ipnetwork::IpNetwork;

use crate::block::AllocationBlock;
use crate::keys;
use crate::resource::ResourceError;
use crate::store::{Guard, KeyValue, PrefixGuard, Range, Snapshot, Txn, Write};

/// Modification revision of what is not stored yet: none that a store gives, so that nobody can have seen it there.
const NOT_STORED: i64 = i64::MAX;
/// Most keys that are worth keeping: a transaction depends on each of them, and etcd takes 128 conditions.
const MAX_LASTING: usize = 64;

/// Everything read so far for one operation.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What was read, with the revision at which it was.
    read: BTreeMap<Range, i64>,
    kvs: BTreeMap<String, Arc<Stored>>,
    /// Whether plans may take a block that was not read to be absent.
    may_presume: bool,
}

/// What is under a key. It is parsed once, however many plans look at it: a full block takes longer to parse than to fetch.
struct Stored {
    kv: KeyValue,
    /// A [`Parsed`] of whatever it was looked at as.
    parsed: OnceLock<Box<dyn Any + Send + Sync>>,
}

/// A value that was read, or why it cannot be used.
pub(crate) type Parsed<T> = Result<Arc<T>, ResourceError>;

impl Stored {
    fn new(kv: KeyValue) -> Arc<Self> {
        let parsed = OnceLock::new();
        Arc::new(Self { kv, parsed })
    }

    fn parsed<T: Any + Send + Sync>(&self, parse: fn(&str, &[u8]) -> Result<T, ResourceError>) -> Parsed<T> {
        let parse = || parse(&self.kv.key, &self.kv.value).map(Arc::new);
        let known = self.parsed.get_or_init(|| Box::new(parse()));
        // A key is always looked at as the same thing.
        known.downcast_ref::<Parsed<T>>().map_or_else(parse, Clone::clone)
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kv.fmt(f)
    }
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
            self.read.insert(range.clone(), snapshot.revision);
        }
        self.kvs.extend(
            snapshot
                .kvs
                .into_iter()
                .map(|kv| (kv.key.clone(), Stored::new(kv))),
        );
    }

    /// Takes in what a refused transaction found of all that it depended on.
    pub fn absorb_conflict(&mut self, txn: &Txn, present: Snapshot) {
        self.absorb(&txn.looked_at(), present);
    }

    /// Everything that was read.
    pub(crate) fn ranges(&self) -> Vec<Range> {
        self.read.keys().cloned().collect()
    }

    /// Takes `key` to be absent, unless something is known of it. Whoever plans with that makes the transaction depend on it.
    pub(crate) fn presume_absent(&mut self, key: &str) {
        let range = Range::Key(key.to_owned());
        if !self.knows(&range) {
            self.read.insert(range, 0);
        }
    }

    /// Lets plans take a block that was not read to be absent: they make the transaction depend on it.
    pub(crate) fn let_presume(&mut self) {
        self.may_presume = true;
    }

    /// Whether a plan may take a block that was not read to be absent.
    pub(crate) fn may_presume(&self) -> bool {
        self.may_presume
    }

    /// Forgets all but the part that every assignment of a node looks at again: pools, reservations, configuration, the node
    /// and its fence, its affinities and their blocks; and that as well if it is too much for a transaction to depend on.
    pub(crate) fn keep_what_lasts(&mut self) {
        let affine = self.affine_blocks();
        self.read.retain(|range, _| match range {
            Range::Prefix(_) => true,
            Range::Key(key) => lasts(key, &affine),
        });
        let prefixes = self.read.keys().filter_map(Range::prefix);
        let prefixes: Vec<&str> = prefixes.collect();
        self.kvs
            .retain(|key, _| lasts(key, &affine) || prefixes.iter().any(|prefix| key.starts_with(prefix)));
        if self.read.len() + self.kvs.len() > MAX_LASTING {
            *self = Self::default();
        }
    }

    /// What a transaction depends on so that what lasts is true when it commits; nothing if that is too much. Of the node's
    /// blocks it depends on those only that it changes, by itself: what is known of another may be outdated, until somebody
    /// wants to change it.
    pub(crate) fn lasting_guards(&self) -> (Vec<Guard>, Vec<PrefixGuard>) {
        let affine = self.affine_blocks();
        let mut looked_at = 0;
        let mut guards: Vec<Guard> = Vec::new();
        let mut prefix_guards: Vec<PrefixGuard> = Vec::new();
        let mut guard = |key: &str, stored: Option<&Arc<Stored>>| {
            if !key.starts_with(keys::BLOCKS) && !key.starts_with(keys::AFFINITIES) {
                guards.push(Guard {
                    key: key.to_owned(),
                    mod_revision: stored.map_or(0, |stored| stored.kv.mod_revision),
                });
            }
        };
        for (range, &revision) in &self.read {
            match range {
                Range::Key(key) if lasts(key, &affine) => {
                    let stored = self.kvs.get(key);
                    looked_at += 1 + usize::from(stored.is_some());
                    guard(key, stored);
                }
                Range::Key(_) => {}
                Range::Prefix(prefix) => {
                    for (key, stored) in self.under(prefix) {
                        looked_at += 1;
                        guard(key, Some(stored));
                    }
                    looked_at += 1;
                    let prefix = prefix.clone();
                    prefix_guards.push(PrefixGuard { prefix, revision });
                }
            }
        }
        if looked_at > MAX_LASTING {
            return (Vec::new(), Vec::new());
        }
        (guards, prefix_guards)
    }

    /// Makes it what is known now that `txn`, which was planned on it, has committed at `revision`; `blocks` are those of its
    /// writes that their maker has at hand.
    pub(crate) fn commit(&mut self, txn: Txn, blocks: Vec<Arc<AllocationBlock>>, revision: i64) {
        if txn.prefix_guards.is_empty() {
            // Too much to depend on: then nothing of it is known.
            *self = Self::default();
            return;
        }
        for read in self.read.values_mut() {
            *read = revision;
        }
        self.put(txn.writes, blocks, revision);
    }

    /// Makes it what it will be after `writes`, of which `blocks` are those that their maker has at hand.
    pub(crate) fn assume(
        &mut self,
        writes: impl IntoIterator<Item = Write>,
        blocks: Vec<Arc<AllocationBlock>>,
    ) {
        self.put(writes, blocks, NOT_STORED);
    }

    fn put(
        &mut self,
        writes: impl IntoIterator<Item = Write>,
        blocks: Vec<Arc<AllocationBlock>>,
        mod_revision: i64,
    ) {
        for write in writes {
            self.read.insert(Range::Key(write.key().to_owned()), mod_revision);
            match write {
                Write::Put { key, value } => {
                    let stored = Stored::new(KeyValue {
                        key: key.clone(),
                        value,
                        mod_revision,
                    });
                    self.kvs.insert(key, stored);
                }
                Write::Delete { key } => {
                    self.kvs.remove(&key);
                }
            }
        }
        for block in blocks {
            if let Some(stored) = self.kvs.get(&keys::block(block.cidr())) {
                // Just stored, and not looked at yet.
                let _ = stored.parsed.set(Box::new(Parsed::Ok(block)));
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
            Some(stored) => Ok(Some(&stored.kv)),
            None => self.require([Range::Key(key.to_owned())]).map(|()| None),
        }
    }

    /// The present value of `key` as `parse` reads it, `None` if it does not exist; the inner error is a value that cannot be
    /// used. A key must always be read in the same way.
    pub(crate) fn parsed<T: Any + Send + Sync>(
        &self,
        key: &str,
        parse: fn(&str, &[u8]) -> Result<T, ResourceError>,
    ) -> Result<Option<Parsed<T>>, Need> {
        match self.kvs.get(key) {
            Some(stored) => Ok(Some(stored.parsed(parse))),
            None => self.require([Range::Key(key.to_owned())]).map(|()| None),
        }
    }

    /// Everything under `prefix`, ascending, with its keys and as `parse` reads it.
    pub(crate) fn parsed_under<T: Any + Send + Sync>(
        &self,
        prefix: &str,
        parse: fn(&str, &[u8]) -> Result<T, ResourceError>,
    ) -> Result<impl Iterator<Item = (&String, Parsed<T>)>, Need> {
        self.require([Range::Prefix(prefix.to_owned())])?;
        Ok(self
            .under(prefix)
            .map(move |(key, stored)| (key, stored.parsed(parse))))
    }

    /// Every key under `prefix`, ascending.
    pub(crate) fn keys_under(&self, prefix: &str) -> Result<impl Iterator<Item = &String>, Need> {
        self.require([Range::Prefix(prefix.to_owned())])?;
        Ok(self.under(prefix).map(|(key, _)| key))
    }

    /// The block `cidr`; the inner error is a value that cannot be used.
    pub(crate) fn block(
        &self,
        cidr: IpNetwork,
    ) -> Result<Result<Option<Arc<AllocationBlock>>, ResourceError>, Need> {
        self.parsed(&keys::block(cidr), block_at).map(Option::transpose)
    }

    fn under(&self, prefix: &str) -> impl Iterator<Item = (&String, &Arc<Stored>)> {
        self.kvs
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// The blocks that the affinities read are to.
    fn affine_blocks(&self) -> Vec<IpNetwork> {
        let affinities = self.under(keys::AFFINITIES);
        let parsed = affinities.filter_map(|(key, _)| keys::parse_affinity(key));
        parsed.map(|(_, cidr)| cidr).collect()
    }

    fn knows(&self, range: &Range) -> bool {
        self.read.contains_key(range)
            || match range {
                Range::Key(key) => self.kvs.contains_key(key) || self.inside_a_prefix(key),
                Range::Prefix(prefix) => self.inside_a_prefix(prefix),
            }
    }

    fn inside_a_prefix(&self, key: &str) -> bool {
        self.read
            .keys()
            .any(|range| matches!(range, Range::Prefix(prefix) if key.starts_with(prefix.as_str())))
    }
}

/// Whether every assignment of a node that has the blocks `affine` looks at `key` by itself.
fn lasts(key: &str, affine: &[IpNetwork]) -> bool {
    [keys::CLUSTER_INFORMATION, keys::IPAM_CONFIG].contains(&key)
        || [keys::NODES, keys::FENCES]
            .iter()
            .any(|prefix| key.starts_with(prefix))
        || keys::parse_block(key).is_some_and(|cidr| affine.contains(&cidr))
}

/// Reads a block, which must be the one that `key` names.
fn block_at(key: &str, value: &[u8]) -> Result<AllocationBlock, ResourceError> {
    let block = AllocationBlock::parse(key, value)?;
    if keys::parse_block(key) == Some(block.cidr()) {
        return Ok(block);
    }
    let why = format!("cidr is {}", block.cidr());
    Err(ResourceError {
        key: key.to_owned(),
        what: "allocation block",
        why,
    })
}
