//! Several plans, one transaction: each is made on the view as the ones before it leave it.
//!
//! A key that an earlier plan writes is as that plan wrote it, by construction, if the transaction commits at all: a guard
//! on it is dropped. All other guards are on what is stored, and are kept; and what lasts of the view is guarded, so that
//! it is known to be true after the transaction ([`View::lasting_guards`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::block::AllocationBlock;
use crate::store::{PrefixGuard, Txn, Write};
use crate::view::View;

use super::draft::txn;

/// Guards, and writes, of one transaction: etcd takes 128 of each.
const MAX_OPERATIONS: usize = 120;
/// Keys and values written by one transaction: etcd takes a request of 1.5 MiB.
const MAX_BYTES: usize = 1 << 20;

/// Plans put together so far.
pub(crate) struct Batch {
    view: View,
    guards: BTreeMap<String, i64>,
    prefix_guards: Vec<PrefixGuard>,
    writes: BTreeMap<String, Option<Vec<u8>>>,
    bytes: usize,
}

impl Batch {
    /// No plan yet, on what is stored.
    pub(crate) fn new(view: &View) -> Self {
        let (guards, prefix_guards) = view.lasting_guards();
        let guards = guards.into_iter().map(|guard| (guard.key, guard.mod_revision));
        Self {
            view: view.clone(),
            guards: guards.collect(),
            prefix_guards,
            writes: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// What the next plan is to be made on.
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// Adds a plan that was made on [`Self::view`], with the `blocks` that it makes. False, and nothing changed, if the transaction would become too large;
    /// a plan that is too large by itself is taken, for the store to judge.
    pub(crate) fn add(&mut self, plan: Txn, blocks: Vec<Arc<AllocationBlock>>) -> bool {
        let mut guards = plan.guards;
        guards.retain(|guard| !self.writes.contains_key(&guard.key));
        let new_guards = guards
            .iter()
            .filter(|guard| !self.guards.contains_key(&guard.key));
        let new_writes = plan
            .writes
            .iter()
            .filter(|write| !self.writes.contains_key(write.key()));
        let replaced = plan
            .writes
            .iter()
            .filter_map(|write| self.writes.get_key_value(write.key()));
        let bytes = self.bytes
            - replaced
                .map(|(key, value)| size(key, value.as_deref()))
                .sum::<usize>()
            + plan
                .writes
                .iter()
                .map(|write| size(write.key(), value_of(write)))
                .sum::<usize>();
        let conditions = self.prefix_guards.len() + self.guards.len() + new_guards.count();
        let fits = conditions <= MAX_OPERATIONS
            && self.writes.len() + new_writes.count() <= MAX_OPERATIONS
            && bytes <= MAX_BYTES;
        if !fits && !self.writes.is_empty() {
            return false;
        }
        self.view.assume(&plan.writes, blocks);
        self.bytes = bytes;
        let guards = guards.into_iter().map(|guard| (guard.key, guard.mod_revision));
        self.guards.extend(guards);
        let writes = plan.writes.into_iter().map(|write| match write {
            Write::Put { key, value } => (key, Some(value)),
            Write::Delete { key } => (key, None),
        });
        self.writes.extend(writes);
        true
    }

    /// The transaction of all plans, and what will be known when it is committed; `None` if there is nothing to write.
    pub(crate) fn into_txn(self) -> Option<(Txn, View)> {
        if self.writes.is_empty() {
            return None;
        }
        let txn = Txn {
            prefix_guards: self.prefix_guards,
            ..txn(self.guards, self.writes)
        };
        // Too much to depend on: then nothing of it is known afterwards.
        let depends_on_the_view = !txn.prefix_guards.is_empty();
        let known = if depends_on_the_view {
            self.view
        } else {
            View::default()
        };
        Some((txn, known))
    }
}

fn value_of(write: &Write) -> Option<&[u8]> {
    match write {
        Write::Put { value, .. } => Some(value),
        Write::Delete { .. } => None,
    }
}

fn size(key: &str, value: Option<&[u8]>) -> usize {
    key.len() + value.map_or(0, <[u8]>::len)
}
