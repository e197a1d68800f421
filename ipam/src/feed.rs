//! What is seen by who follows a [`crate::Store`]: everything first, then every change. The same for every store.

use crate::store::{KeyValue, Snapshot};

/// What the consumer of a watch sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// Everything under the prefixes, at one revision: first of all, and after changes were lost to compaction. Keys that
    /// are not in it do not exist.
    Snapshot(Snapshot),
    /// Changes, of one or more revisions of one prefix, in order.
    Changes(Vec<Change>),
    /// The connection is lost: what follows may be late. Comes once per loss.
    Disconnected {
        /// What happened.
        why: String,
    },
    /// The connection is back and nothing was missed. (A `Snapshot` instead says the same if something was.)
    Resynced,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Created or changed.
    Put(KeyValue),
    /// Deleted, at this revision.
    Delete {
        /// The key.
        key: String,
        /// The revision of the deletion.
        mod_revision: i64,
    },
}
