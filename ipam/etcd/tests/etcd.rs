//! The store on a real etcd: its contract, what it says when etcd fails, and address management on it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod server;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use calidris_ipam::{
    AddressRequest, AssignError, AssignRequest, CommitOutcome, Expect, ExtraWrite, Guard, Ipam, Range,
    ReleaseRequest, Store, StoreError, Txn, Write, keys,
};
use calidris_ipam_etcd::{EtcdConfig, EtcdStore};
use server::TestEtcd;
use support::{at, invariants, state, store_suite};

#[tokio::test]
async fn the_etcd_store_keeps_the_contract() {
    let Some(etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    store_suite::all_cases(&EtcdStore::new(etcd.config())).await;
}

#[tokio::test]
async fn nodes_that_assign_and_release_at_once_never_share_an_address() {
    let Some(etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    load_state(&etcd, 1).await;
    let mut tasks = Vec::new();
    for node in 0..4 {
        let config = etcd.config();
        tasks.push(tokio::spawn(async move {
            let ipam = Arc::new(Ipam::new(EtcdStore::new(config)));
            let mut given = Vec::new();
            for pod in 0..10 {
                let assigned = ipam.assign(&dual(node, pod), at(node * 100 + pod)).await.unwrap();
                given.extend(assigned.addresses.iter().map(|assigned| assigned.address));
                if pod % 3 == 0 {
                    let released = ipam.release(&release(node, pod), at(0)).await.unwrap();
                    assert_eq!(released.addresses, assigned.addresses);
                    given.truncate(given.len() - 2);
                }
            }
            given
        }));
    }
    let mut given = Vec::new();
    for task in tasks {
        given.extend(task.await.unwrap());
    }
    let count = given.len();
    given.sort();
    given.dedup();
    assert_eq!((given.len(), count), (48, 48));
    assert_eq!(
        invariants::violations(&everything(&etcd).await),
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn many_nodes_that_claim_in_a_tiny_pool_at_once_settle_without_a_double() {
    let Some(etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    load_state(&etcd, 5).await;
    let mut tasks = Vec::new();
    // The pool `tiny` has 5 free addresses in a block of node-b; 8 nodes want one each.
    for node in 0..8 {
        let ipam = Ipam::new(EtcdStore::new(etcd.config()));
        tasks.push(tokio::spawn(async move {
            let mut request = AssignRequest::new(&format!("net.{node}"), &format!("new-{node}"));
            request.v4 = AddressRequest::Count(1);
            request.pools = vec!["tiny".to_owned()];
            ipam.assign(&request, at(7200 + node)).await
        }));
    }
    let mut given = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(assigned) => given += assigned.addresses.len(),
            Err(AssignError::Refused(why)) => {
                assert!(why.to_string().contains("pool tiny: all 2 blocks"), "{why}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(given, 5);
    assert_eq!(
        invariants::violations(&everything(&etcd).await),
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn an_assignment_costs_one_transaction_and_the_endpoint_is_written_with_it() {
    let Some(etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    load_state(&etcd, 1).await;
    let ipam = Ipam::new(EtcdStore::new(etcd.config()));
    let before = revision(&etcd).await;
    let mut request = dual(0, 0);
    let key = keys::namespaced_resource("workloadendpoints", "shop", "w");
    request
        .extra_writes
        .push(ExtraWrite::new(key.clone(), Expect::Absent, |addresses| {
            addresses
                .iter()
                .map(|assigned| assigned.network().to_string())
                .collect::<Vec<_>>()
                .join(",")
                .into_bytes()
        }));
    let assigned = ipam.assign(&request, at(0)).await.unwrap();
    assert_eq!(revision(&etcd).await, before + 1);
    let stored = &everything(&etcd).await[&key];
    let networks = format!(
        "{}/32,{}/128",
        assigned.addresses[0].address, assigned.addresses[1].address
    );
    assert_eq!(String::from_utf8_lossy(stored), networks);
    // Asked again, as after a lost answer: the same addresses, and nothing written.
    assert_eq!(
        ipam.assign(&request, at(0)).await.unwrap().addresses,
        assigned.addresses
    );
    assert_eq!(revision(&etcd).await, before + 1);
}

#[tokio::test]
async fn a_burst_of_a_hundred_takes_fewer_than_twenty_transactions() {
    let Some(etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    load_state(&etcd, 1).await;
    let ipam = Arc::new(Ipam::new(EtcdStore::new(etcd.config())));
    let before = revision(&etcd).await;
    let mut tasks = Vec::new();
    for pod in 0..100 {
        let ipam = Arc::clone(&ipam);
        tasks.push(tokio::spawn(
            async move { ipam.assign(&dual(0, pod), at(pod)).await },
        ));
    }
    let mut given = BTreeSet::new();
    for task in tasks {
        given.extend(task.await.unwrap().unwrap().addresses.iter().map(|a| a.address));
    }
    assert_eq!(given.len(), 200);
    let transactions = revision(&etcd).await - before;
    assert!(transactions < 20, "{transactions}");
    assert_eq!(
        invariants::violations(&everything(&etcd).await),
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn a_stopped_etcd_is_unavailable_in_bounded_time_and_the_same_store_works_after_it_is_back() {
    let Some(mut etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    let store = EtcdStore::new(etcd.config());
    write(&store, "/a", "1").await.unwrap();
    etcd.kill();
    let limit = etcd.config().request_timeout + Duration::from_secs(10);
    let error = tokio::time::timeout(limit, store.read(&[Range::Key("/a".to_owned())]))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(error, StoreError::Unavailable(_) | StoreError::Timeout(_)),
        "{error}"
    );
    etcd.run().await;
    let snapshot = store.read(&[Range::Key("/a".to_owned())]).await.unwrap();
    assert_eq!(snapshot.kvs[0].value, b"1");
}

#[tokio::test]
async fn a_commit_to_a_frozen_etcd_has_an_unknown_outcome_that_reading_back_resolves() {
    let Some(etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    load_state(&etcd, 1).await;
    let store = EtcdStore::new(etcd.config());
    write(&store, "/a", "1").await.unwrap();
    etcd.freeze();
    let error = write(&store, "/a", "2").await.unwrap_err();
    assert!(matches!(error, StoreError::UnknownOutcome(_)), "{error}");
    etcd.thaw();
    // Whatever became of the first attempt, a guarded second one has one winner.
    let present = store.read(&[Range::Key("/a".to_owned())]).await.unwrap();
    let txn = Txn {
        guards: vec![Guard {
            key: "/a".to_owned(),
            mod_revision: present.kvs[0].mod_revision,
        }],
        writes: vec![Write::Put {
            key: "/a".to_owned(),
            value: b"3".to_vec(),
        }],
        ..Txn::default()
    };
    match store.commit(&txn).await.unwrap() {
        CommitOutcome::Committed { .. } => {}
        CommitOutcome::Conflict(present) => assert_eq!(present.kvs[0].value, b"2"),
    }
}

#[tokio::test]
async fn a_full_database_is_told_apart_from_everything_else() {
    let Some(etcd) = TestEtcd::start(&["--quota-backend-bytes", "2000000"]).await else {
        return;
    };
    let store = EtcdStore::new(etcd.config());
    let value = "x".repeat(100_000);
    // etcd learns the size of its database only when it commits a batch to disk, every 100 ms: on a quick
    // disk many times the quota go in before the first refusal.
    for i in 0..2_000 {
        match write(&store, &format!("/fill/{i}"), &value).await {
            Ok(()) => {}
            Err(StoreError::NoSpace(_)) => return,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("two hundred megabytes went into two");
}

#[tokio::test]
async fn a_transaction_that_is_too_large_is_rejected_and_not_tried_again() {
    let Some(etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    let store = EtcdStore::new(etcd.config());
    let writes = (0..200)
        .map(|i| Write::Put {
            key: format!("/big/{i}"),
            value: Vec::new(),
        })
        .collect();
    let error = store
        .commit(&Txn {
            writes,
            ..Txn::default()
        })
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Rejected(_)), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_a_right_one_let_in() {
    let Some(etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    let mut admin = etcd.client().await;
    admin.user_add("root", "secret", None).await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.auth_enable().await.unwrap();
    let with = |user: Option<(&str, &str)>| {
        let mut config = etcd.config();
        config.user = user.map(|(name, password)| (name.to_owned(), password.to_owned()));
        EtcdStore::new(config)
    };
    write(&with(Some(("root", "secret"))), "/a", "1").await.unwrap();
    for wrong in [None, Some(("root", "guess"))] {
        let error = write(&with(wrong), "/a", "2").await.unwrap_err();
        assert!(
            matches!(error, StoreError::PermissionDenied(_)),
            "{wrong:?}: {error}"
        );
    }
}

#[tokio::test]
async fn certificates_are_used_and_replaced_ones_are_picked_up() {
    let Some(mut etcd) = TestEtcd::start_with_tls().await else {
        return;
    };
    let store = EtcdStore::new(etcd.config());
    write(&store, "/a", "1").await.unwrap();
    let mut without = etcd.config();
    without.tls.as_mut().unwrap().identity_files = None;
    let error = write(&EtcdStore::new(without), "/a", "2").await.unwrap_err();
    assert!(!matches!(error, StoreError::PermissionDenied(_)), "{error}");
    // A new authority, and all certificates anew: the old client cannot get in again with what it has read.
    etcd.kill();
    etcd.make_certificates();
    etcd.run().await;
    let mut tries = 0;
    while let Err(error) = write(&store, "/a", "3").await {
        // The first call finds the old connection dead; the next one reads the files again.
        tries += 1;
        assert!(tries < 4, "{error}");
    }
    assert_eq!(
        store.read(&[Range::Key("/a".to_owned())]).await.unwrap().kvs[0].value,
        b"3"
    );
}

#[tokio::test]
async fn a_missing_certificate_file_is_named() {
    let mut config = EtcdConfig::new(vec!["https://127.0.0.1:1".to_owned()]);
    let ca_file = "/nonexistent/ca.pem".into();
    config.tls = Some(calidris_ipam_etcd::TlsFiles {
        ca_file,
        identity_files: None,
    });
    let error = EtcdStore::new(config).read(&[]).await.unwrap_err();
    assert!(
        error.to_string().contains("cannot read /nonexistent/ca.pem"),
        "{error}"
    );
}

async fn load_state(etcd: &TestEtcd, number: usize) {
    let store = EtcdStore::new(etcd.config());
    let writes: Vec<Write> = state(number)
        .into_iter()
        .map(|(key, value)| Write::Put {
            key,
            value: value.into_bytes(),
        })
        .collect();
    for batch in writes.chunks(100) {
        store
            .commit(&Txn {
                writes: batch.to_vec(),
                ..Txn::default()
            })
            .await
            .unwrap();
    }
}

async fn everything(etcd: &TestEtcd) -> BTreeMap<String, Vec<u8>> {
    let snapshot = EtcdStore::new(etcd.config())
        .read(&[Range::Prefix("/".to_owned())])
        .await
        .unwrap();
    snapshot.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect()
}

async fn revision(etcd: &TestEtcd) -> i64 {
    EtcdStore::new(etcd.config())
        .read(&[Range::Key("/".to_owned())])
        .await
        .unwrap()
        .revision
}

async fn write(store: &EtcdStore, key: &str, value: &str) -> Result<(), StoreError> {
    let writes = vec![Write::Put {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
    }];
    store
        .commit(&Txn {
            writes,
            ..Txn::default()
        })
        .await
        .map(|_| ())
}

fn dual(node: i64, pod: i64) -> AssignRequest {
    let mut request = AssignRequest::new(&format!("net.{node}-{pod}"), &format!("worker-{node}"));
    request.v4 = AddressRequest::Count(1);
    request.v6 = AddressRequest::Count(1);
    request.pools = vec!["default-ipv4".to_owned(), "default-ipv6".to_owned()];
    request
}

fn release(node: i64, pod: i64) -> ReleaseRequest {
    ReleaseRequest {
        handle_id: format!("net.{node}-{pod}"),
        ..ReleaseRequest::default()
    }
}
