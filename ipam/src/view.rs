//! What a plan knows: the ranges that were read and the keys found in them.
//!
//! A plan that looks at something not read yet stops with the ranges it needs; they are read, and the plan runs again
//! from the start. So plans are pure, and reading is exactly what turned out to be necessary. A view may be older than
//! the store: the guards of the transaction are what makes that safe.
//!
//! Part of a view outlives its transaction ([`View::committed`]): what every assignment of a node looks at again. A
//! transaction depends on that, so that one that commits proves it true at its own revision, and the next can be planned
//! without reading. Blocks are the exception: who changes one depends on it, what is known of the others may be outdated.

use std::collections::BTreeMap;
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
}

/// What is under a key. A block is parsed once, however many plans look at it: a full one takes longer to parse than to
/// fetch.
#[derive(Debug)]
struct Stored {
    kv: KeyValue,
    block: OnceLock<Result<Arc<AllocationBlock>, ResourceError>>,
}

impl Stored {
    fn new(kv: KeyValue) -> Arc<Self> {
        let block = OnceLock::new();
        Arc::new(Self { kv, block })
    }
}

/// Part of a view.
#[derive(Default)]
struct Lasting<'a> {
    read: Vec<(&'a Range, i64)>,
    kvs: Vec<(&'a String, &'a Arc<Stored>)>,
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
        self.absorb(&txn.guarded(), present);
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

    /// The part that every assignment of a node looks at again: pools, reservations, configuration, the node and its fence,
    /// labels of namespaces, its affinities and their blocks. Nothing if that is too much for a transaction to depend on.
    fn lasting(&self) -> Lasting<'_> {
        let affinities = self.kvs.keys().filter_map(|key| keys::parse_affinity(key));
        let affine: Vec<IpNetwork> = affinities.map(|(_, cidr)| cidr).collect();
        let lasts = |range: &Range| match range {
            Range::Prefix(_) => true,
            Range::Key(key) => {
                [keys::CLUSTER_INFORMATION, keys::IPAM_CONFIG].contains(&key.as_str())
                    || [keys::NODES, keys::FENCES]
                        .iter()
                        .any(|prefix| key.starts_with(prefix))
                    || keys::parse_block(key).is_some_and(|cidr| affine.contains(&cidr))
            }
        };
        let read: Vec<(&Range, i64)> = self
            .read
            .iter()
            .filter(|(range, _)| lasts(range))
            .map(|(range, &revision)| (range, revision))
            .collect();
        let is_read = |key: &str| {
            read.iter().any(|(range, _)| match range {
                Range::Key(read) => read == key,
                Range::Prefix(prefix) => key.starts_with(prefix.as_str()),
            })
        };
        let kvs: Vec<(&String, &Arc<Stored>)> = self.kvs.iter().filter(|(key, _)| is_read(key)).collect();
        if read.len() + kvs.len() > MAX_LASTING {
            return Lasting::default();
        }
        Lasting { read, kvs }
    }

    /// What a transaction depends on so that what lasts is true when it commits. Of the node's blocks it depends on those only
    /// that it changes, by itself: what is known of another may be outdated, until somebody wants to change it.
    pub(crate) fn lasting_guards(&self) -> (Vec<Guard>, Vec<PrefixGuard>) {
        let lasting = self.lasting();
        let mut guards: Vec<Guard> = Vec::new();
        let mut prefix_guards = Vec::new();
        let may_be_outdated = |key: &str| {
            [keys::BLOCKS, keys::AFFINITIES]
                .iter()
                .any(|prefix| key.starts_with(prefix))
        };
        for (range, revision) in lasting.read {
            match range {
                Range::Key(key) if !self.kvs.contains_key(key) && !may_be_outdated(key) => {
                    guards.push(Guard {
                        key: key.clone(),
                        mod_revision: 0,
                    });
                }
                Range::Key(_) => {}
                Range::Prefix(prefix) => prefix_guards.push(PrefixGuard {
                    prefix: prefix.clone(),
                    revision,
                }),
            }
        }
        let kvs = lasting.kvs.iter().filter(|(key, _)| !may_be_outdated(key));
        guards.extend(kvs.map(|(key, stored)| Guard {
            key: (*key).clone(),
            mod_revision: stored.kv.mod_revision,
        }));
        (guards, prefix_guards)
    }

    /// What lasts of it, after the transaction that depended on it and made what was assumed committed at `revision`.
    pub(crate) fn committed(&self, revision: i64) -> Self {
        let lasting = self.lasting();
        let read = lasting.read.iter().map(|&(range, _)| (range.clone(), revision));
        let kvs = lasting.kvs.iter().map(|&(key, stored)| {
            let stored = if stored.kv.mod_revision == NOT_STORED {
                let kv = KeyValue {
                    mod_revision: revision,
                    ..stored.kv.clone()
                };
                let block = stored.block.clone();
                Arc::new(Stored { kv, block })
            } else {
                Arc::clone(stored)
            };
            (key.clone(), stored)
        });
        Self {
            read: read.collect(),
            kvs: kvs.collect(),
        }
    }

    /// Makes it what it will be after `writes`, of which `blocks` are those that their maker has at hand.
    pub(crate) fn assume(&mut self, writes: &[Write], blocks: Vec<Arc<AllocationBlock>>) {
        for write in writes {
            self.read.insert(Range::Key(write.key().to_owned()), NOT_STORED);
            match write {
                Write::Put { key, value } => {
                    let kv = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        mod_revision: NOT_STORED,
                    };
                    self.kvs.insert(key.clone(), Stored::new(kv));
                }
                Write::Delete { key } => {
                    self.kvs.remove(key);
                }
            }
        }
        for block in blocks {
            if let Some(stored) = self.kvs.get(&keys::block(block.cidr())) {
                // Just stored, and not looked at yet.
                let _ = stored.block.set(Ok(block));
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

    /// Everything under `prefix`, ascending.
    pub(crate) fn prefix(&self, prefix: &str) -> Result<impl Iterator<Item = &KeyValue>, Need> {
        self.require([Range::Prefix(prefix.to_owned())])?;
        let from = self.kvs.range(prefix.to_owned()..);
        Ok(from
            .map(|(_, stored)| &stored.kv)
            .take_while(move |kv| kv.key.starts_with(prefix)))
    }

    /// The block `cidr`; the inner error is a value that cannot be used.
    pub(crate) fn block(
        &self,
        cidr: IpNetwork,
    ) -> Result<Result<Option<Arc<AllocationBlock>>, ResourceError>, Need> {
        let key = keys::block(cidr);
        let Some(stored) = self.kvs.get(&key) else {
            return self.require([Range::Key(key)]).map(|()| Ok(None));
        };
        let parsed = stored.block.get_or_init(|| {
            let block = AllocationBlock::parse(&key, &stored.kv.value)?;
            if block.cidr() == cidr {
                return Ok(Arc::new(block));
            }
            let why = format!("cidr is {}", block.cidr());
            Err(ResourceError {
                key: key.clone(),
                what: "allocation block",
                why,
            })
        });
        Ok(parsed.clone().map(Some))
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
