//! A store in memory: the executable specification of [`Store`], and what tests run on.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::store::{CommitOutcome, KeyValue, Range, Snapshot, Store, StoreError, Txn, Write};

/// Keys, values and revisions behind a mutex. Every call is one step that no other call can divide.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Default, Clone)]
struct State {
    revision: i64,
    kvs: BTreeMap<String, KeyValue>,
}

impl MemoryStore {
    /// A store that has `pairs` of key and value.
    pub fn with(pairs: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let store = Self::default();
        let writes = pairs
            .into_iter()
            .map(|(key, value)| Write::Put { key, value })
            .collect();
        store.state().commit(&Txn {
            writes,
            ..Txn::default()
        });
        store
    }

    /// Everything in it.
    pub fn dump(&self) -> BTreeMap<String, Vec<u8>> {
        self.state()
            .kvs
            .values()
            .map(|kv| (kv.key.clone(), kv.value.clone()))
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave a state half changed: `commit` checks first and then cannot fail.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn read(&self, ranges: &[Range]) -> impl Future<Output = Result<Snapshot, StoreError>> + Send {
        ready(Ok(self.state().read(ranges)))
    }

    fn commit(&self, txn: &Txn) -> impl Future<Output = Result<CommitOutcome, StoreError>> + Send {
        ready(Ok(self.state().commit(txn)))
    }
}

impl State {
    fn read(&self, ranges: &[Range]) -> Snapshot {
        let wanted = |key: &str| {
            ranges.iter().any(|range| match range {
                Range::Key(wanted) => wanted == key,
                Range::Prefix(prefix) => key.starts_with(prefix.as_str()),
            })
        };
        let kvs = self.kvs.values().filter(|kv| wanted(&kv.key)).cloned().collect();
        Snapshot {
            revision: self.revision,
            kvs,
        }
    }

    fn commit(&mut self, txn: &Txn) -> CommitOutcome {
        let revision_of = |key: &String| self.kvs.get(key).map_or(0, |kv| kv.mod_revision);
        let last_under = |prefix: &str| {
            let under = self
                .kvs
                .range(prefix.to_owned()..)
                .take_while(|(key, _)| key.starts_with(prefix));
            under.map(|(_, kv)| kv.mod_revision).max().unwrap_or(0)
        };
        let mut guards = txn.guards.iter();
        let mut prefix_guards = txn.prefix_guards.iter();
        if guards.any(|guard| revision_of(&guard.key) != guard.mod_revision)
            || prefix_guards.any(|guard| last_under(&guard.prefix) > guard.revision)
        {
            return CommitOutcome::Conflict(self.read(&txn.looked_at()));
        }
        let mod_revision = self.revision + 1;
        let mut changed = false;
        for write in &txn.writes {
            match write {
                Write::Put { key, value } => {
                    let kv = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        mod_revision,
                    };
                    self.kvs.insert(key.clone(), kv);
                    changed = true;
                }
                Write::Delete { key } => changed |= self.kvs.remove(key).is_some(),
            }
        }
        // As in etcd, a transaction that changes nothing makes no revision.
        if changed {
            self.revision = mod_revision;
        }
        CommitOutcome::Committed {
            revision: self.revision,
        }
    }
}
