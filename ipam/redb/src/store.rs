//! [`Store`] on a file. Calls block on the disk and so run on threads of their own.

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use calidris_ipam::{Change, CommitOutcome, Range, Snapshot, Store, StoreError, Txn};
use tokio::sync::broadcast;
use tokio::task::spawn_blocking;

use crate::database::{Database, OpenError};
use crate::watch::Watch;

/// Transactions that a watch may be behind before it begins anew with a snapshot.
const FEED: usize = 256;

/// A store in a file. Clones are the same store. Its calls must be made in a tokio runtime.
///
/// A call that is dropped before it ends may still take effect.
#[derive(Clone)]
pub struct RedbStore {
    shared: Arc<Shared>,
}

struct Shared {
    database: Database,
    feed: Mutex<broadcast::Sender<Arc<[Change]>>>,
}

impl std::fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbStore").finish_non_exhaustive()
    }
}

impl RedbStore {
    /// Opens the store in the file at `path`, or makes it there. Blocks; a file that was not closed in order is repaired.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let database = Database::open(path)?;
        let (feed, _) = broadcast::channel(FEED);
        let feed = Mutex::new(feed);
        let shared = Arc::new(Shared { database, feed });
        Ok(Self { shared })
    }

    /// Starts watching everything under `prefixes`.
    pub fn watch(&self, prefixes: Vec<String>) -> Watch {
        Watch::new(self.clone(), prefixes)
    }

    /// The changes of every transaction from now on, in order.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<[Change]>> {
        self.shared
            .feed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .subscribe()
    }
}

impl Shared {
    fn commit(&self, txn: &Txn) -> Result<CommitOutcome, StoreError> {
        // Held until the changes are in the feed: they come there in the order of their revisions.
        let feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        let committed = self.database.commit(txn)?;
        if !committed.changes.is_empty() {
            // Nobody may be watching.
            let _ = feed.send(committed.changes.into());
        }
        Ok(committed.outcome)
    }
}

impl Store for RedbStore {
    fn read(&self, ranges: &[Range]) -> impl Future<Output = Result<Snapshot, StoreError>> + Send {
        let (shared, ranges) = (Arc::clone(&self.shared), ranges.to_vec());
        async move {
            spawn_blocking(move || shared.database.read(&ranges))
                .await
                .unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
        }
    }

    fn commit(&self, txn: &Txn) -> impl Future<Output = Result<CommitOutcome, StoreError>> + Send {
        let (shared, txn) = (Arc::clone(&self.shared), txn.clone());
        async move {
            spawn_blocking(move || shared.commit(&txn))
                .await
                .unwrap_or_else(|error| Err(StoreError::UnknownOutcome(error.to_string())))
        }
    }
}
