//! What address management asks of a datastore: read ranges, commit one guarded transaction.
//!
//! The contract, which one test suite checks on every implementation:
//! - `read` sees one revision: all ranges of a call are of the same moment, and no older than what this process
//!   committed before.
//! - `commit` is all or nothing. It happens if every guarded key still has the guard's modification revision (0: the
//!   key does not exist) and nothing under a guarded prefix was written later than the guard says; otherwise nothing happens
//!   and all that is guarded comes back as it is, with what else the transaction says.
//! - An error says whether the transaction may have happened ([`StoreError::UnknownOutcome`]). It is resolved by
//!   reading back, never by trying again blindly: the next attempt carries guards on the same keys, so that at most
//!   one of the two takes effect.
//! - Every call ends within a time of the implementation's choosing.

use std::future::Future;
use std::sync::Arc;

/// A datastore with revisions. Implementations are shared by reference between tasks.
pub trait Store: Send + Sync {
    /// Reads all `ranges` at one revision, in ascending order of keys and without duplicates.
    fn read(&self, ranges: &[Range]) -> impl Future<Output = Result<Snapshot, StoreError>> + Send;

    /// Commits `txn` whole or not at all.
    fn commit(&self, txn: &Txn) -> impl Future<Output = Result<CommitOutcome, StoreError>> + Send;
}

impl<S: Store> Store for &S {
    fn read(&self, ranges: &[Range]) -> impl Future<Output = Result<Snapshot, StoreError>> + Send {
        (**self).read(ranges)
    }

    fn commit(&self, txn: &Txn) -> impl Future<Output = Result<CommitOutcome, StoreError>> + Send {
        (**self).commit(txn)
    }
}

impl<S: Store> Store for Arc<S> {
    fn read(&self, ranges: &[Range]) -> impl Future<Output = Result<Snapshot, StoreError>> + Send {
        (**self).read(ranges)
    }

    fn commit(&self, txn: &Txn) -> impl Future<Output = Result<CommitOutcome, StoreError>> + Send {
        (**self).commit(txn)
    }
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Range {
    /// One key.
    Key(String),
    /// Every key that begins so.
    Prefix(String),
}

/// A key with its value and the revision of its last change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Revision of the last change, at least 1.
    pub mod_revision: i64,
}

/// What was read, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision of the whole store at which this was true.
    pub revision: i64,
    /// The keys that exist, ascending.
    pub kvs: Vec<KeyValue>,
}

/// All the writes of one operation, with what must still be true for them to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must still be true. At most one per key.
    pub guards: Vec<Guard>,
    /// What must be true of whole prefixes. At most one per prefix.
    pub prefix_guards: Vec<PrefixGuard>,
    /// What then happens. At most one per key.
    pub writes: Vec<Write>,
    /// What else the planner wants to know if it does not happen: what it would look at next.
    pub reads_on_conflict: Vec<Range>,
}

/// "This key has not changed since it was read."
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The key.
    pub key: String,
    /// The revision it had; 0 if it did not exist.
    pub mod_revision: i64,
}

/// "No key under this prefix was created or changed after this revision." A deletion goes unnoticed: the keys that were
/// there have guards of their own where that matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixGuard {
    /// The prefix.
    pub prefix: String,
    /// The revision at which it was read.
    pub revision: i64,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Creates or replaces.
    Put {
        /// The key.
        key: String,
        /// The new value.
        value: Vec<u8>,
    },
    /// Removes; nothing to do if the key is not there.
    Delete {
        /// The key.
        key: String,
    },
}

/// How a commit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// It happened, at this revision.
    Committed {
        /// The store's revision that the writes made.
        revision: i64,
    },
    /// A guard did not hold and nothing happened: the present state of [`Txn::looked_at`] (keys that exist).
    Conflict(Snapshot),
}

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The same request may succeed later by itself.
    Transient,
    /// The same request will be refused again until somebody changes the configuration or frees something.
    Refused,
    /// The caller's knowledge is out of date: look again, then decide anew.
    Reevaluate,
}

/// Why a store could not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No member answers; nothing was changed.
    #[error("the datastore is unavailable: {0}")]
    Unavailable(String),
    /// The answer did not come in time; nothing was changed (a read), or see `UnknownOutcome`.
    #[error("the datastore did not answer in time: {0}")]
    Timeout(String),
    /// A commit whose answer was lost: it may have happened.
    #[error("the datastore's answer to a write was lost, its outcome is unknown: {0}")]
    UnknownOutcome(String),
    /// The quota of the database is used up; reading and deleting may still work.
    #[error("the datastore has no space left: {0}")]
    NoSpace(String),
    /// The user may not do this, or is not known.
    #[error("the datastore refuses permission: {0}")]
    PermissionDenied(String),
    /// The store cannot do what was asked (too many operations, value too large, revision compacted).
    #[error("the datastore rejects the request: {0}")]
    Rejected(String),
}

impl StoreError {
    /// Whether trying again can help.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable(_) | Self::Timeout(_) | Self::UnknownOutcome(_) => ErrorClass::Transient,
            Self::NoSpace(_) | Self::PermissionDenied(_) | Self::Rejected(_) => ErrorClass::Refused,
        }
    }
}

impl Range {
    /// The prefix, if it is one.
    pub(crate) fn prefix(&self) -> Option<&str> {
        match self {
            Self::Key(_) => None,
            Self::Prefix(prefix) => Some(prefix),
        }
    }
}

impl Txn {
    /// All that a conflict brings: what is guarded, and what else the planner wants to know.
    pub fn looked_at(&self) -> Vec<Range> {
        let keys = self.guards.iter().map(|guard| Range::Key(guard.key.clone()));
        let prefixes = self.prefix_guards.iter();
        let prefixes = prefixes.map(|guard| Range::Prefix(guard.prefix.clone()));
        keys.chain(prefixes)
            .chain(self.reads_on_conflict.iter().cloned())
            .collect()
    }
}

impl Write {
    /// The key written.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}
