//! Fences: what an assignment whose answer was lost cannot pass any more.
//!
//! A transaction sent to a member that is frozen, or cut off, may be carried out long after somebody has looked and found
//! nothing of it. So every assignment of a node depends on the node's fence, a key of ours that only ever changes; whoever
//! must be sure that nothing more comes (who assigns again, or gives up and releases) changes it in the same transaction
//! as what it does: the lost attempt has either happened before, and is seen, or never will.
//!
//! The removal of a node changes its fence, too, before it looks at what there is to give back. When all is given back the
//! fence goes: whatever was sent before still depends on the Node resource, which has gone before.
//!
//! [`Fences`] remembers which nodes have something outstanding, so that only the first release after a loss writes the
//! fence. A fresh process counts as a loss: what its predecessor sent is unknown to it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::decision::Decision;
use crate::keys;
use crate::store::Write;
use crate::timestamp::UnixNanos;

/// What may be outstanding, by node.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    nodes: Mutex<BTreeMap<String, Losses>>,
}

#[derive(Debug, Clone, Copy)]
struct Losses {
    /// Number of the last loss.
    last: u64,
    /// Number of the last loss that cannot come through any more.
    fenced: u64,
}

impl Default for Losses {
    /// One: whatever a predecessor of this process has sent.
    fn default() -> Self {
        Self { last: 1, fenced: 0 }
    }
}

/// A loss that is to be fenced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outstanding(u64);

/// An assignment under way. Dropped before it is settled, it is a loss.
pub(crate) struct Attempt<'a> {
    fences: &'a Fences,
    node: &'a str,
    is_settled: bool,
}

impl Fences {
    /// The last loss of `node`, if nothing keeps it from coming through yet.
    pub(crate) fn outstanding(&self, node: &str) -> Option<Outstanding> {
        let losses = self.lock().get(node).copied().unwrap_or_default();
        (losses.last > losses.fenced).then_some(Outstanding(losses.last))
    }

    /// The fence of `node` was changed after `outstanding` was asked for.
    pub(crate) fn fenced(&self, node: &str, Outstanding(number): Outstanding) {
        let mut nodes = self.lock();
        let losses = nodes.entry(node.to_owned()).or_default();
        losses.fenced = losses.fenced.max(number);
    }

    /// Begins an assignment of `node`.
    pub(crate) fn attempt<'a>(&'a self, node: &'a str) -> Attempt<'a> {
        Attempt {
            fences: self,
            node,
            is_settled: false,
        }
    }

    /// What the mutex guards is whole between any two statements.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Losses>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempt<'_> {
    /// It is known how every transaction of it has ended.
    pub(crate) fn settled(mut self) {
        self.is_settled = true;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            let mut nodes = self.fences.lock();
            nodes.entry(self.node.to_owned()).or_default().last += 1;
        }
    }
}

/// Changes the fence of `node`. The value is for people.
pub(crate) fn write(node: &str, now: UnixNanos) -> Write {
    Write::Put {
        key: keys::fence(node),
        value: format!("{{\"fencedAt\":\"{}\"}}", now.rfc3339()).into_bytes(),
    }
}

/// `decision`, which depends on the fence of `node`, with a change of it.
pub(crate) fn closed<Outcome, Refusal>(
    decision: Decision<Outcome, Refusal>,
    node: &str,
    now: UnixNanos,
) -> Decision<Outcome, Refusal> {
    match decision {
        Decision::Commit {
            mut txn,
            blocks,
            outcome,
        } => {
            txn.writes.push(write(node, now));
            Decision::Commit { txn, blocks, outcome }
        }
        other => other,
    }
}
