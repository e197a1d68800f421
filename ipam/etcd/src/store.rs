//! [`Store`] on etcd. A commit is one transaction: the guards compare modification revisions. Only if one fails is the present
//! state of all that is guarded read: reads in the same transaction would go through the log of every member each time. They
//! are worth it where the planner has guessed and says what it wants to know if the guess was wrong.

use std::future::Future;

use calidris_ipam::{CommitOutcome, Range, Snapshot, Store, StoreError, Txn, Write};
use etcd_client::{Client, Compare, CompareOp, KvClient, TxnOp};
use tokio::sync::Mutex;

use crate::config::EtcdConfig;
use crate::failure::Failure;
use crate::list::{MAX_MESSAGE, operations_of, prefix_end, read_at_one_revision, snapshot_of};

/// How often a read begins anew because its revision was compacted half way.
const MAX_COMPACTED_READS: u32 = 3;

/// A store on etcd. Cheap to share by reference; all calls of a store use one connection per member.
///
/// A call that is dropped before it ends may still take effect.
pub struct EtcdStore {
    config: EtcdConfig,
    /// `None` before the first call, and after one that failed in a way that a new connection (with the certificates as
    /// they are then) may cure.
    client: Mutex<Option<Client>>,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore")
            .field("endpoints", &self.config.endpoints)
            .finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// A store at `config`. It connects when it is first used.
    pub fn new(config: EtcdConfig) -> Self {
        Self {
            config,
            client: Mutex::new(None),
        }
    }

    async fn read_ranges(&self, ranges: &[Range]) -> Result<Snapshot, StoreError> {
        let mut compacted = 0;
        loop {
            let reading = async {
                let mut kv = self.kv().await?;
                read_at_one_revision(&mut kv, ranges).await
            };
            match self.within_limit(reading).await {
                Err(failure) if failure.is_compacted() && compacted < MAX_COMPACTED_READS => compacted += 1,
                result => return result.map_err(Failure::of_read),
            }
        }
    }

    async fn commit_txn(&self, txn: &Txn) -> Result<CommitOutcome, StoreError> {
        // Apart, so that a failure to connect is known to have sent nothing.
        let mut kv = self.within_limit(self.kv()).await.map_err(Failure::of_read)?;
        let looked_at = txn.looked_at();
        let reads = if txn.reads_on_conflict.is_empty() {
            None
        } else {
            operations_of(&looked_at)
        };
        let request = etcd_txn(txn, reads);
        let committing = async { kv.txn(request).await.map_err(Failure::Etcd) };
        let answer = self.within_limit(committing).await.map_err(Failure::of_write)?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        if answer.succeeded() {
            return Ok(CommitOutcome::Committed { revision });
        }
        // Nothing happened, and a failure from here on says no more than that.
        match snapshot_of(&answer, &looked_at) {
            Some(present) => Ok(CommitOutcome::Conflict(present)),
            None => self.read_ranges(&looked_at).await.map(CommitOutcome::Conflict),
        }
    }

    /// A handle on the connection. Made within the limit of the call that needs it; calls at the same time share it.
    async fn kv(&self) -> Result<KvClient, Failure> {
        let mut client = self.client.lock().await;
        let connected = match client.take() {
            Some(connected) => connected,
            None => self.config.connect().await.map_err(Failure::NotConnected)?,
        };
        let kv = connected.kv_client().max_decoding_message_size(MAX_MESSAGE);
        *client = Some(connected);
        Ok(kv)
    }

    async fn within_limit<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let result = tokio::time::timeout(self.config.request_timeout, call)
            .await
            .unwrap_or(Err(Failure::NoAnswer));
        if let Err(failure) = &result
            && failure.is_of_connection()
        {
            tracing::debug!(why = %failure.describe(), "etcd request failed, the next one connects anew");
            *self.client.lock().await = None;
        }
        result
    }
}

impl Store for EtcdStore {
    fn read(&self, ranges: &[Range]) -> impl Future<Output = Result<Snapshot, StoreError>> + Send {
        self.read_ranges(ranges)
    }

    fn commit(&self, txn: &Txn) -> impl Future<Output = Result<CommitOutcome, StoreError>> + Send {
        self.commit_txn(txn)
    }
}

/// `reads` are what a refused transaction answers with.
fn etcd_txn(txn: &Txn, reads: Option<Vec<TxnOp>>) -> etcd_client::Txn {
    let of_keys = txn
        .guards
        .iter()
        .map(|guard| Compare::mod_revision(guard.key.as_bytes(), CompareOp::Equal, guard.mod_revision));
    // A comparison of a range holds if it does for every key in it.
    let of_prefixes = txn.prefix_guards.iter().map(|guard| {
        let (from, after) = (guard.prefix.as_bytes(), guard.revision.saturating_add(1));
        Compare::mod_revision(from, CompareOp::Less, after).with_range(prefix_end(from))
    });
    let compares: Vec<Compare> = of_keys.chain(of_prefixes).collect();
    let writes: Vec<TxnOp> = txn
        .writes
        .iter()
        .map(|write| match write {
            Write::Put { key, value } => TxnOp::put(key.as_bytes(), value.as_slice(), None),
            Write::Delete { key } => TxnOp::delete(key.as_bytes(), None),
        })
        .collect();
    let request = etcd_client::Txn::new().when(compares).and_then(writes);
    match reads {
        Some(reads) => request.or_else(reads),
        None => request,
    }
}
