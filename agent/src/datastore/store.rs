//! The datastore, whichever it is: etcd, a file of this node's own, or that file through the agent that has it open.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use calidris_ipam::{CommitOutcome, Range, Snapshot, Store, StoreError, Txn, WatchEvent};
use calidris_ipam_etcd::{EtcdConfig, EtcdStore};
use calidris_ipam_redb::{OpenError, RedbStore};

use super::remote::RemoteStore;
use crate::config::{Datastore, DatastoreKind, Environment};

/// Pause after a watch of the file could not read it.
const PAUSE: Duration = Duration::from_secs(1);

/// A datastore of one of the kinds.
#[derive(Debug)]
pub enum AnyStore {
    /// etcd.
    Etcd(Box<EtcdStore>, Box<EtcdConfig>),
    /// A file.
    Embedded(RedbStore, String),
    /// A file that the agent has open.
    Remote(RemoteStore),
}

/// A watch on it.
#[derive(Debug)]
pub enum AnyWatch {
    /// etcd's.
    Etcd(calidris_ipam_etcd::Watch),
    /// The file's.
    Embedded(calidris_ipam_redb::Watch),
}

impl AnyStore {
    /// What the agent works on. Makes the file of the embedded datastore if it is not there.
    ///
    /// # Errors
    /// A configuration that makes no sense, or a file that cannot be had.
    pub fn open(config: &Datastore, environment: &Environment) -> anyhow::Result<Self> {
        match config.kind {
            DatastoreKind::Etcd => {
                let etcd = config.etcd(environment)?;
                Ok(Self::Etcd(Box::new(EtcdStore::new(etcd.clone())), Box::new(etcd)))
            }
            DatastoreKind::Embedded => {
                if let Some(folder) = config.path.parent() {
                    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
                }
                Ok(Self::Embedded(RedbStore::open(&config.path)?, told(&config.path)))
            }
        }
    }

    /// What an operator's command works on: the file itself if no agent has it.
    ///
    /// # Errors
    /// As [`Self::open`]; a file that is not there is not made.
    pub fn open_for_operator(config: &Datastore, environment: &Environment) -> anyhow::Result<Self> {
        if config.kind == DatastoreKind::Etcd {
            return Self::open(config, environment);
        }
        let path = &config.path;
        anyhow::ensure!(
            path.exists(),
            "{}: there is no embedded datastore; the agent makes it when it first starts",
            path.display()
        );
        match RedbStore::open(path) {
            Ok(store) => Ok(Self::Embedded(store, told(path))),
            Err(OpenError::InUse { .. }) => Ok(Self::Remote(RemoteStore::new(config.socket.as_path()))),
            Err(error) => Err(error.into()),
        }
    }

    /// Where it is, for people.
    pub fn places(&self) -> Vec<String> {
        match self {
            Self::Etcd(_, config) => config.endpoints.clone(),
            Self::Embedded(_, place) => vec![place.clone()],
            Self::Remote(remote) => vec![remote.place()],
        }
    }

    /// Starts watching everything under `prefixes`. `None` through another process, which watches itself.
    pub fn watch(&self, prefixes: Vec<String>) -> Option<AnyWatch> {
        match self {
            Self::Etcd(_, config) => Some(AnyWatch::Etcd(calidris_ipam_etcd::Watch::start(
                EtcdConfig::clone(config),
                prefixes,
            ))),
            Self::Embedded(store, _) => Some(AnyWatch::Embedded(store.watch(prefixes))),
            Self::Remote(_) => None,
        }
    }

    /// The file, if this process has one.
    pub fn embedded(&self) -> Option<RedbStore> {
        match self {
            Self::Embedded(store, _) => Some(store.clone()),
            _ => None,
        }
    }
}

fn told(path: &Path) -> String {
    format!("file:{}", path.display())
}

impl AnyWatch {
    /// The next event; `None` when there will be none any more.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        match self {
            Self::Etcd(watch) => watch.next().await,
            Self::Embedded(watch) => match watch.next().await {
                Ok(event) => Some(event),
                Err(error) => {
                    tokio::time::sleep(PAUSE).await;
                    Some(WatchEvent::Disconnected {
                        why: error.to_string(),
                    })
                }
            },
        }
    }
}

impl Store for AnyStore {
    async fn read(&self, ranges: &[Range]) -> Result<Snapshot, StoreError> {
        match self {
            Self::Etcd(store, _) => store.read(ranges).await,
            Self::Embedded(store, _) => store.read(ranges).await,
            Self::Remote(store) => store.read(ranges).await,
        }
    }

    async fn commit(&self, txn: &Txn) -> Result<CommitOutcome, StoreError> {
        match self {
            Self::Etcd(store, _) => store.commit(txn).await,
            Self::Embedded(store, _) => store.commit(txn).await,
            Self::Remote(store) => store.commit(txn).await,
        }
    }
}
