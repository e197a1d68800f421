//! Several plans, one transaction: each is made on the view as the ones before it leave it.
//!
//! A key that an earlier plan writes is as that plan wrote it, by construction, if the transaction commits at all: a guard
//! on it is dropped. All other guards are on what is stored, and are kept; and what lasts of the view is guarded, so that
//! it is known to be true after the transaction ([`View::lasting_guards`]).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::block::AllocationBlock;
use crate::keys;
use crate::store::{PrefixGuard, Range, Txn, Write};
use crate::view::View;

use super::draft::{txn, write};

/// Guards, and writes, of one transaction: etcd takes 128 of each.
const MAX_OPERATIONS: usize = 120;
/// Keys and values written by one transaction: etcd takes a request of 1.5 MiB.
const MAX_BYTES: usize = 1 << 20;

/// Plans put together so far.
pub(crate) struct Batch<'a> {
    /// What is stored, and from the second plan on what those before it make of it.
    view: Cow<'a, View>,
    guards: BTreeMap<String, i64>,
    prefix_guards: Vec<PrefixGuard>,
    writes: BTreeMap<String, Planned>,
    reads_on_conflict: Vec<Range>,
    bytes: usize,
}

/// A write that is planned.
struct Planned {
    /// `None` deletes.
    value: Option<Vec<u8>>,
    /// The value as a block, if the plan has it at hand.
    block: Option<Arc<AllocationBlock>>,
    /// Whether the view has it.
    is_assumed: bool,
}

impl<'a> Batch<'a> {
    /// No plan yet, on what is stored.
    pub(crate) fn new(view: &'a View) -> Self {
        let (guards, prefix_guards) = view.lasting_guards();
        let guards = guards.into_iter().map(|guard| (guard.key, guard.mod_revision));
        Self {
            view: Cow::Borrowed(view),
            guards: guards.collect(),
            prefix_guards,
            writes: BTreeMap::new(),
            reads_on_conflict: Vec::new(),
            bytes: 0,
        }
    }

    /// What the next plan is to be made on.
    pub(crate) fn view(&mut self) -> &View {
        let new = || self.writes.iter().filter(|(_, planned)| !planned.is_assumed);
        if new().next().is_some() {
            let writes = new().map(|(key, planned)| write(key.clone(), planned.value.clone()));
            let blocks = new().filter_map(|(_, planned)| planned.block.clone());
            self.view.to_mut().assume(writes, blocks.collect());
            for planned in self.writes.values_mut() {
                planned.is_assumed = true;
            }
        }
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
                .map(|(key, planned)| size(key, planned.value.as_deref()))
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
        self.bytes = bytes;
        let guards = guards.into_iter().map(|guard| (guard.key, guard.mod_revision));
        self.guards.extend(guards);
        self.reads_on_conflict.extend(plan.reads_on_conflict);
        for write in plan.writes {
            let (key, value) = match write {
                Write::Put { key, value } => (key, Some(value)),
                Write::Delete { key } => (key, None),
            };
            let planned = Planned {
                value,
                block: None,
                is_assumed: false,
            };
            self.writes.insert(key, planned);
        }
        for block in blocks {
            if let Some(planned) = self.writes.get_mut(&keys::block(block.cidr())) {
                planned.block = Some(block);
            }
        }
        true
    }

    /// The transaction of all plans, with the blocks that it writes as far as they are at hand; `None` if there is nothing to
    /// write.
    pub(crate) fn into_txn(self) -> Option<(Txn, Vec<Arc<AllocationBlock>>)> {
        if self.writes.is_empty() {
            return None;
        }
        let mut blocks = Vec::new();
        let writes = self.writes.into_iter().map(|(key, planned)| {
            blocks.extend(planned.block);
            (key, planned.value)
        });
        let txn = Txn {
            prefix_guards: self.prefix_guards,
            reads_on_conflict: self.reads_on_conflict,
            ..txn(self.guards, writes)
        };
        Some((txn, blocks))
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
