//! A watch over several prefixes: a snapshot, then every change once and in order. A consumer that falls too far behind
//! gets another snapshot, to be compared with what it has.

use std::sync::Arc;

use calidris_ipam::{Change, Range, Store as _, StoreError, WatchEvent};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::store::RedbStore;

/// A running watch.
#[derive(Debug)]
pub struct Watch {
    store: RedbStore,
    prefixes: Vec<String>,
    following: Option<Following>,
}

/// Changes that come after a snapshot.
#[derive(Debug)]
struct Following {
    feed: Receiver<Arc<[Change]>>,
    /// The snapshot's revision: what is not newer is in it.
    revision: i64,
}

impl Watch {
    pub(crate) fn new(store: RedbStore, prefixes: Vec<String>) -> Self {
        Self {
            store,
            prefixes,
            following: None,
        }
    }

    /// The next event: a `Snapshot`, and then `Changes` of one transaction each. The file is always there, so that the
    /// events of a connection do not come. An error is one of reading; the next call tries again. Cancel safe: a dropped
    /// call loses nothing.
    pub async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        loop {
            let Some(following) = &mut self.following else {
                return self.snapshot().await;
            };
            match following.feed.recv().await {
                Ok(changes) => {
                    let changes = wanted(&changes, &self.prefixes, following.revision);
                    if !changes.is_empty() {
                        return Ok(WatchEvent::Changes(changes));
                    }
                }
                // This watch holds the store, and the store the other end: it cannot be closed.
                Err(RecvError::Lagged(_) | RecvError::Closed) => self.following = None,
            }
        }
    }

    async fn snapshot(&mut self) -> Result<WatchEvent, StoreError> {
        // First, so that no change falls between the two.
        let feed = self.store.subscribe();
        let ranges: Vec<Range> = self.prefixes.iter().cloned().map(Range::Prefix).collect();
        let snapshot = self.store.read(&ranges).await?;
        let revision = snapshot.revision;
        self.following = Some(Following { feed, revision });
        Ok(WatchEvent::Snapshot(snapshot))
    }
}

/// The changes under `prefixes` that are newer than `revision`.
fn wanted(changes: &[Change], prefixes: &[String], revision: i64) -> Vec<Change> {
    let is_wanted = |change: &&Change| {
        let (key, mod_revision) = match change {
            Change::Put(kv) => (&kv.key, kv.mod_revision),
            Change::Delete { key, mod_revision } => (key, *mod_revision),
        };
        mod_revision > revision && prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))
    };
    changes.iter().filter(is_wanted).cloned().collect()
}
