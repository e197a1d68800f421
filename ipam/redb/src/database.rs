//! The file: its tables, reading and committing. Everything here blocks.
//!
//! Two tables: every key with the revision of its last change and its value, and the revision of the whole store. A
//! transaction that changes nothing makes no revision, as in etcd.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use calidris_ipam::{
    Change, CommitOutcome, Guard, KeyValue, PrefixGuard, Range, Snapshot, StoreError, Txn, Write,
};
use redb::{DatabaseError, ReadableDatabase as _, ReadableTable, StorageError, TableDefinition};

/// Key to revision of its last change and value.
const KEYS: TableDefinition<'_, &str, (i64, &[u8])> = TableDefinition::new("keys");
/// The numbers below.
const NUMBERS: TableDefinition<'_, &str, i64> = TableDefinition::new("numbers");
/// The revision of the whole store.
const REVISION: &str = "revision";
/// The meaning of the tables, [`FORMAT`].
const FORMAT_KEY: &str = "format";
const FORMAT: i64 = 1;

/// Why a file cannot be used as a store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{path} is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It was made by a version with another format.
    #[error("{path} has format {found}, expected {FORMAT}: another version of Calidris made it")]
    Format {
        /// The file.
        path: PathBuf,
        /// The number in the file.
        found: i64,
    },
    /// It cannot be opened, made or understood.
    #[error("cannot open {path} as a store: {source}")]
    Database {
        /// The file.
        path: PathBuf,
        /// What the database says.
        source: Box<redb::Error>,
    },
}

/// An open file.
pub(crate) struct Database {
    redb: redb::Database,
}

/// What a commit did.
pub(crate) struct Committed {
    pub(crate) outcome: CommitOutcome,
    pub(crate) changes: Vec<Change>,
}

impl Database {
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let path = path.to_owned();
        let redb = match redb::Database::create(&path) {
            Ok(redb) => redb,
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(OpenError::InUse { path }),
            Err(error) => {
                let source = Box::new(error.into());
                return Err(OpenError::Database { path, source });
            }
        };
        match prepare(&redb) {
            Ok(FORMAT) => Ok(Self { redb }),
            Ok(found) => Err(OpenError::Format { path, found }),
            Err(error) => {
                let source = Box::new(error);
                Err(OpenError::Database { path, source })
            }
        }
    }

    pub(crate) fn read(&self, ranges: &[Range]) -> Result<Snapshot, StoreError> {
        self.try_read(ranges).map_err(|error| store_error(&error))
    }

    fn try_read(&self, ranges: &[Range]) -> Result<Snapshot, redb::Error> {
        let transaction = self.redb.begin_read()?;
        let keys = transaction.open_table(KEYS)?;
        let revision = number(&transaction.open_table(NUMBERS)?, REVISION)?;
        read_ranges(&keys, revision, ranges)
    }

    pub(crate) fn commit(&self, txn: &Txn) -> Result<Committed, StoreError> {
        let transaction = self
            .redb
            .begin_write()
            .map_err(|error| store_error(&error.into()))?;
        // Dropped without a commit, a transaction leaves no trace.
        let committed = apply(&transaction, txn).map_err(|error| store_error(&error))?;
        if !committed.changes.is_empty() {
            transaction
                .commit()
                .map_err(|error| StoreError::UnknownOutcome(error.to_string()))?;
        }
        Ok(committed)
    }
}

/// Makes the tables if they are not there. Returns the format.
fn prepare(redb: &redb::Database) -> Result<i64, redb::Error> {
    let transaction = redb.begin_write()?;
    let format = {
        transaction.open_table(KEYS)?;
        let mut numbers = transaction.open_table(NUMBERS)?;
        if numbers.get(FORMAT_KEY)?.is_none() {
            numbers.insert(FORMAT_KEY, FORMAT)?;
        }
        number(&numbers, FORMAT_KEY)?
    };
    transaction.commit()?;
    Ok(format)
}

fn apply(transaction: &redb::WriteTransaction, txn: &Txn) -> Result<Committed, redb::Error> {
    let mut keys = transaction.open_table(KEYS)?;
    let mut numbers = transaction.open_table(NUMBERS)?;
    let revision = number(&numbers, REVISION)?;
    if !guards_hold(&keys, txn)? {
        return Ok(Committed {
            outcome: CommitOutcome::Conflict(read_ranges(&keys, revision, &txn.looked_at())?),
            changes: Vec::new(),
        });
    }
    let mod_revision = revision.saturating_add(1);
    let mut changes = Vec::new();
    for write in &txn.writes {
        match write {
            Write::Put { key, value } => {
                keys.insert(key.as_str(), (mod_revision, value.as_slice()))?;
                changes.push(Change::Put(KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    mod_revision,
                }));
            }
            Write::Delete { key } => {
                if keys.remove(key.as_str())?.is_some() {
                    let key = key.clone();
                    changes.push(Change::Delete { key, mod_revision });
                }
            }
        }
    }
    let revision = if changes.is_empty() {
        revision
    } else {
        mod_revision
    };
    numbers.insert(REVISION, revision)?;
    Ok(Committed {
        outcome: CommitOutcome::Committed { revision },
        changes,
    })
}

fn guards_hold(
    keys: &impl ReadableTable<&'static str, (i64, &'static [u8])>,
    txn: &Txn,
) -> Result<bool, redb::Error> {
    for Guard { key, mod_revision } in &txn.guards {
        let present = keys.get(key.as_str())?.map_or(0, |stored| stored.value().0);
        if present != *mod_revision {
            return Ok(false);
        }
    }
    for PrefixGuard { prefix, revision } in &txn.prefix_guards {
        for entry in keys.range(prefix.as_str()..)? {
            let (key, stored) = entry?;
            if !key.value().starts_with(prefix.as_str()) {
                break;
            }
            if stored.value().0 > *revision {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn read_ranges(
    keys: &impl ReadableTable<&'static str, (i64, &'static [u8])>,
    revision: i64,
    ranges: &[Range],
) -> Result<Snapshot, redb::Error> {
    let mut found: BTreeMap<String, KeyValue> = BTreeMap::new();
    let mut take = |key: &str, (mod_revision, value): (i64, &[u8])| {
        let kv = KeyValue {
            key: key.to_owned(),
            value: value.to_vec(),
            mod_revision,
        };
        found.insert(key.to_owned(), kv);
    };
    for range in ranges {
        match range {
            Range::Key(key) => {
                if let Some(stored) = keys.get(key.as_str())? {
                    take(key, stored.value());
                }
            }
            Range::Prefix(prefix) => {
                for entry in keys.range(prefix.as_str()..)? {
                    let (key, stored) = entry?;
                    if !key.value().starts_with(prefix.as_str()) {
                        break;
                    }
                    take(key.value(), stored.value());
                }
            }
        }
    }
    Ok(Snapshot {
        revision,
        kvs: found.into_values().collect(),
    })
}

fn number(numbers: &impl ReadableTable<&'static str, i64>, name: &str) -> Result<i64, StorageError> {
    Ok(numbers.get(name)?.map_or(0, |stored| stored.value()))
}

/// The error of what changed nothing.
fn store_error(error: &redb::Error) -> StoreError {
    match error {
        redb::Error::Io(io) if io.kind() == io::ErrorKind::StorageFull => {
            StoreError::NoSpace(error.to_string())
        }
        redb::Error::Io(io) if io.kind() == io::ErrorKind::PermissionDenied => {
            StoreError::PermissionDenied(error.to_string())
        }
        redb::Error::ValueTooLarge(_) => StoreError::Rejected(error.to_string()),
        _ => StoreError::Unavailable(error.to_string()),
    }
}
