//! The embedded datastore through the agent that has it open: one request, one answer, and the connection closes.
//!
//! Both are JSON, a value a line. The socket is for root alone. At most [`MAX_CLIENTS`] are served at a time, more wait in
//! the kernel's backlog; a request has at most [`MAX_REQUEST`] bytes; who does not send or read for [`PATIENCE`] is dropped.
//! Values are text, as all of Calico's are.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use calidris_ipam::{
    CommitOutcome, Guard, KeyValue, PrefixGuard, Range, Snapshot, Store, StoreError, Txn, Write,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

use crate::listen::attend_clients;

const MAX_CLIENTS: usize = 4;
const MAX_REQUEST: u64 = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    Read(Vec<Wanted>),
    Commit {
        /// Key and revision.
        guards: Vec<(String, i64)>,
        /// Prefix and revision.
        prefix_guards: Vec<(String, i64)>,
        /// Key and value; none deletes.
        writes: Vec<(String, Option<String>)>,
        reads_on_conflict: Vec<Wanted>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Wanted {
    Key(String),
    Prefix(String),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Snapshot(Contents),
    Committed(i64),
    Conflict(Contents),
    Failed(Failed),
}

#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    revision: i64,
    /// Key, value, revision.
    kvs: Vec<(String, String, i64)>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Failed {
    Unavailable(String),
    UnknownOutcome(String),
    NoSpace(String),
    Rejected(String),
}

/// A store behind the agent's socket.
#[derive(Debug, Clone)]
pub struct RemoteStore {
    socket: PathBuf,
}

impl RemoteStore {
    /// Behind `socket`.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    async fn ask(&self, request: &Request) -> io::Result<Answer> {
        let call = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            let mut line = serde_json::to_vec(request).map_err(io::Error::other)?;
            line.push(b'\n');
            stream.write_all(&line).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            serde_json::from_slice(&answer).map_err(io::Error::other)
        };
        tokio::time::timeout(PATIENCE, call).await?
    }

    fn cannot(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.place())
    }
}

impl Store for RemoteStore {
    async fn read(&self, ranges: &[Range]) -> Result<Snapshot, StoreError> {
        let wanted = ranges.iter().cloned().map(Wanted::from);
        match self.ask(&Request::Read(wanted.collect())).await {
            Ok(Answer::Snapshot(contents)) => Ok(contents.into()),
            Ok(Answer::Failed(failed)) => Err(failed.into()),
            Ok(other) => Err(StoreError::Unavailable(format!("a read answered with {other:?}"))),
            Err(error) => Err(StoreError::Unavailable(self.cannot(&error))),
        }
    }

    async fn commit(&self, txn: &Txn) -> Result<CommitOutcome, StoreError> {
        let guards = txn.guards.iter();
        let guards = guards
            .map(|guard| (guard.key.clone(), guard.mod_revision))
            .collect();
        let prefix_guards = txn.prefix_guards.iter();
        let prefix_guards = prefix_guards
            .map(|guard| (guard.prefix.clone(), guard.revision))
            .collect();
        let text = |value: &[u8]| String::from_utf8(value.to_vec());
        let writes = txn.writes.iter().map(|write| match write {
            Write::Put { key, value } => text(value).map(|value| (key.clone(), Some(value))),
            Write::Delete { key } => Ok((key.clone(), None)),
        });
        let writes = writes
            .collect::<Result<_, _>>()
            .map_err(|error| StoreError::Rejected(error.to_string()))?;
        let request = Request::Commit {
            guards,
            prefix_guards,
            writes,
            reads_on_conflict: txn.reads_on_conflict.iter().cloned().map(Wanted::from).collect(),
        };
        match self.ask(&request).await {
            Ok(Answer::Committed(revision)) => Ok(CommitOutcome::Committed { revision }),
            Ok(Answer::Conflict(contents)) => Ok(CommitOutcome::Conflict(contents.into())),
            Ok(Answer::Failed(failed)) => Err(failed.into()),
            Ok(other) => Err(StoreError::UnknownOutcome(format!(
                "a commit answered with {other:?}"
            ))),
            Err(error) => Err(StoreError::UnknownOutcome(self.cannot(&error))),
        }
    }
}

/// Serves `store` until the task is dropped.
pub async fn serve<S: Store + Clone + 'static>(listener: UnixListener, store: S) {
    attend_clients("datastore", listener, MAX_CLIENTS, |stream| {
        let store = store.clone();
        async move {
            if let Err(error) = answer(stream, &store).await {
                warn!(%error, "datastore socket: a request was not answered");
            }
        }
    })
    .await;
}

async fn answer(mut stream: UnixStream, store: &impl Store) -> io::Result<()> {
    let mut line = Vec::new();
    let (receiving, mut sending) = stream.split();
    let mut limited = BufReader::new(receiving.take(MAX_REQUEST));
    tokio::time::timeout(PATIENCE, limited.read_until(b'\n', &mut line)).await??;
    let answer = match serde_json::from_slice(&line) {
        Ok(request) => carry_out(request, store).await,
        Err(error) => Answer::Failed(Failed::Rejected(format!("not a request: {error}"))),
    };
    let text = serde_json::to_vec(&answer).map_err(io::Error::other)?;
    tokio::time::timeout(PATIENCE, sending.write_all(&text)).await?
}

async fn carry_out(request: Request, store: &impl Store) -> Answer {
    let result = match request {
        Request::Read(wanted) => {
            let ranges: Vec<Range> = wanted.into_iter().map(Range::from).collect();
            store
                .read(&ranges)
                .await
                .map(|snapshot| Answer::Snapshot(snapshot.into()))
        }
        Request::Commit {
            guards,
            prefix_guards,
            writes,
            reads_on_conflict,
        } => {
            let guards = guards.into_iter();
            let prefix_guards = prefix_guards.into_iter();
            let txn = Txn {
                guards: guards
                    .map(|(key, mod_revision)| Guard { key, mod_revision })
                    .collect(),
                prefix_guards: prefix_guards
                    .map(|(prefix, revision)| PrefixGuard { prefix, revision })
                    .collect(),
                writes: writes
                    .into_iter()
                    .map(|(key, value)| match value {
                        Some(value) => Write::Put {
                            key,
                            value: value.into_bytes(),
                        },
                        None => Write::Delete { key },
                    })
                    .collect(),
                reads_on_conflict: reads_on_conflict.into_iter().map(Range::from).collect(),
            };
            store.commit(&txn).await.map(|outcome| match outcome {
                CommitOutcome::Committed { revision } => Answer::Committed(revision),
                CommitOutcome::Conflict(present) => Answer::Conflict(present.into()),
            })
        }
    };
    result.unwrap_or_else(|error| Answer::Failed(error.into()))
}

impl From<Range> for Wanted {
    fn from(range: Range) -> Self {
        match range {
            Range::Key(key) => Self::Key(key),
            Range::Prefix(prefix) => Self::Prefix(prefix),
        }
    }
}

impl From<Wanted> for Range {
    fn from(wanted: Wanted) -> Self {
        match wanted {
            Wanted::Key(key) => Self::Key(key),
            Wanted::Prefix(prefix) => Self::Prefix(prefix),
        }
    }
}

impl From<Snapshot> for Contents {
    fn from(snapshot: Snapshot) -> Self {
        let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
        let kvs = snapshot.kvs.into_iter();
        Self {
            revision: snapshot.revision,
            kvs: kvs.map(|kv| (kv.key, text(kv.value), kv.mod_revision)).collect(),
        }
    }
}

impl From<Contents> for Snapshot {
    fn from(contents: Contents) -> Self {
        let kvs = contents.kvs.into_iter();
        Self {
            revision: contents.revision,
            kvs: kvs
                .map(|(key, value, mod_revision)| KeyValue {
                    key,
                    value: value.into_bytes(),
                    mod_revision,
                })
                .collect(),
        }
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::Unavailable(_) | StoreError::Timeout(_) => Self::Unavailable(text),
            StoreError::UnknownOutcome(_) => Self::UnknownOutcome(text),
            StoreError::NoSpace(_) => Self::NoSpace(text),
            StoreError::PermissionDenied(_) | StoreError::Rejected(_) => Self::Rejected(text),
        }
    }
}

impl From<Failed> for StoreError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Unavailable(why) => Self::Unavailable(why),
            Failed::UnknownOutcome(why) => Self::UnknownOutcome(why),
            Failed::NoSpace(why) => Self::NoSpace(why),
            Failed::Rejected(why) => Self::Rejected(why),
        }
    }
}
