//! The store in a file: its contract, what survives, who else may open it, and what a watch sees.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../tests/support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use calidris_ipam::{
    AddressRequest, AssignRequest, Change, CommitOutcome, Ipam, KeyValue, Range, ReleaseRequest, Store, Txn,
    WatchEvent, Write, keys,
};
use calidris_ipam_redb::{OpenError, RedbStore, Watch};
use support::{at, invariants, state, store_suite};

#[tokio::test]
async fn the_redb_store_keeps_the_contract() {
    let file = TestFile::new();
    store_suite::all_cases(&file.open()).await;
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart_with_its_revisions() {
    let file = TestFile::new();
    let store = file.open();
    put(&store, &[("/a", "1"), ("/b", "1")]).await;
    put(&store, &[("/b", "2")]).await;
    let before = store.read(&[Range::Prefix("/".to_owned())]).await.unwrap();
    drop(store);
    let store = file.open();
    assert_eq!(
        store.read(&[Range::Prefix("/".to_owned())]).await.unwrap(),
        before
    );
    assert_eq!(put(&store, &[("/c", "1")]).await, before.revision + 1);
}

#[tokio::test]
async fn a_file_in_use_and_a_file_of_something_else_are_refused_by_name() {
    let file = TestFile::new();
    let store = file.open();
    let error = RedbStore::open(&file.0).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    drop(store);
    std::fs::write(&file.0, "not a database").unwrap();
    let error = RedbStore::open(&file.0).unwrap_err();
    assert!(matches!(error, OpenError::Database { .. }), "{error}");
    assert!(error.to_string().contains(file.0.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn a_watch_sees_a_snapshot_and_then_the_changes_under_its_prefixes() {
    let file = TestFile::new();
    let store = file.open();
    put(&store, &[("/a/1", "x"), ("/other", "x")]).await;
    let mut watch = store.watch(vec!["/a/".to_owned(), "/b/".to_owned()]);
    let WatchEvent::Snapshot(snapshot) = watch.next().await.unwrap() else {
        panic!("no snapshot first")
    };
    assert_eq!(keys_of(&snapshot.kvs), ["/a/1"]);
    put(&store, &[("/other", "y")]).await;
    let revision = put(&store, &[("/b/1", "z"), ("/other", "z")]).await;
    let kv = KeyValue {
        key: "/b/1".to_owned(),
        value: b"z".to_vec(),
        mod_revision: revision,
    };
    assert_eq!(changes(&mut watch).await, [Change::Put(kv)]);
    let writes = vec![Write::Delete {
        key: "/a/1".to_owned(),
    }];
    let txn = Txn {
        writes,
        ..Txn::default()
    };
    store.commit(&txn).await.unwrap();
    let deleted = Change::Delete {
        key: "/a/1".to_owned(),
        mod_revision: revision + 1,
    };
    assert_eq!(changes(&mut watch).await, [deleted]);
}

#[tokio::test]
async fn a_watch_that_falls_behind_begins_anew_with_a_snapshot() {
    let file = TestFile::new();
    let store = file.open();
    let mut watch = store.watch(vec!["/a/".to_owned()]);
    watch.next().await.unwrap();
    // More than the feed keeps.
    for i in 0..300 {
        put(&store, &[("/a/1", &i.to_string())]).await;
    }
    let WatchEvent::Snapshot(snapshot) = watch.next().await.unwrap() else {
        panic!("changes were lost")
    };
    assert_eq!(snapshot.kvs[0].value, b"299");
    put(&store, &[("/a/2", "x")]).await;
    assert_eq!(changes(&mut watch).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_at_once_never_share_an_address() {
    let file = TestFile::new();
    let store = file.open();
    let pairs = state(1);
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    put(&store, &pairs).await;
    let ipam = Arc::new(Ipam::new(store.clone()));
    let mut tasks = Vec::new();
    for pod in 0..60 {
        let ipam = Arc::clone(&ipam);
        tasks.push(tokio::spawn(async move {
            let handle = format!("net.{pod}");
            let mut request = AssignRequest::new(&handle, "n");
            request.v4 = AddressRequest::Count(1);
            request.pools = vec!["default-ipv4".to_owned()];
            let assigned = ipam.assign(&request, at(pod)).await.unwrap();
            if pod % 3 == 0 {
                let request = ReleaseRequest {
                    handle_id: handle,
                    ..ReleaseRequest::default()
                };
                assert_eq!(
                    ipam.release(&request, at(pod)).await.unwrap().addresses,
                    assigned.addresses
                );
                return None;
            }
            Some(assigned.addresses[0].address)
        }));
    }
    let mut given = BTreeSet::new();
    for task in tasks {
        given.extend(task.await.unwrap());
    }
    assert_eq!(given.len(), 40);
    let stored = store.read(&[Range::Prefix("/".to_owned())]).await.unwrap();
    let stored = stored.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect();
    assert_eq!(invariants::violations(&stored), Vec::<String>::new());
    assert!(stored.keys().filter(|key| key.starts_with(keys::HANDLES)).count() == 40);
}

/// Distinguishes the files of one test process.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A file of a test's own, gone with the test.
struct TestFile(PathBuf);

impl TestFile {
    fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("calidris-test-redb-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn open(&self) -> RedbStore {
        RedbStore::open(&self.0).unwrap()
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Writes `pairs` in one transaction. Returns its revision.
async fn put(store: &RedbStore, pairs: &[(&str, &str)]) -> i64 {
    let writes = pairs
        .iter()
        .map(|(key, value)| Write::Put {
            key: (*key).to_owned(),
            value: value.as_bytes().to_vec(),
        })
        .collect();
    let txn = Txn {
        writes,
        ..Txn::default()
    };
    match store.commit(&txn).await.unwrap() {
        CommitOutcome::Committed { revision } => revision,
        conflict @ CommitOutcome::Conflict(_) => panic!("{conflict:?}"),
    }
}

async fn changes(watch: &mut Watch) -> Vec<Change> {
    match watch.next().await.unwrap() {
        WatchEvent::Changes(changes) => changes,
        other => panic!("{other:?}"),
    }
}

fn keys_of(kvs: &[KeyValue]) -> Vec<&str> {
    kvs.iter().map(|kv| kv.key.as_str()).collect()
}
