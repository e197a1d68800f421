//! What planning comes to: read more, commit, or stop. What carries it out is `client.rs`.

use std::sync::Arc;

use crate::block::AllocationBlock;
use crate::store::{Range, Txn};

/// What to do next.
#[derive(Debug)]
pub enum Decision<Outcome, Refusal> {
    /// Read these ranges, add them to the view, plan again.
    Read(Vec<Range>),
    /// Commit this. If it commits, `outcome` is true; if it conflicts, add what is there to the view and plan again.
    Commit {
        /// The transaction.
        txn: Txn,
        /// Blocks that it writes, as they are then: what was printed a moment ago need not be read.
        blocks: Vec<Arc<AllocationBlock>>,
        /// What it achieves.
        outcome: Outcome,
    },
    /// There is nothing to write.
    Done(Outcome),
    /// It cannot be done.
    Refuse(Refusal),
}
