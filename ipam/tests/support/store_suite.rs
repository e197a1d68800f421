//! The contract of a store, checked on each implementation. Every case works under a prefix of its own.

use calidris_ipam::{CommitOutcome, Guard, KeyValue, PrefixGuard, Range, Snapshot, Store, Txn, Write};

/// Every case, in turn.
pub(crate) async fn all_cases(store: &impl Store) {
    what_is_written_is_read_back_in_order(store).await;
    a_guard_that_fails_stops_everything_and_shows_what_is_there(store).await;
    absence_can_be_guarded(store).await;
    a_prefix_can_be_guarded_against_what_is_new_or_changed(store).await;
    deletes_and_puts_happen_together(store).await;
    a_read_is_of_one_revision_however_large(store).await;
}

async fn what_is_written_is_read_back_in_order(store: &impl Store) {
    let txn = Txn {
        writes: vec![
            put("/order/b", "2"),
            put("/order/a/x", "1"),
            put("/orders", "other"),
            put("/order/c", ""),
        ],
        ..Txn::default()
    };
    let revision = committed(store, &txn).await;
    let snapshot = read(store, &[prefix("/order/"), key("/order/b"), key("/order/absent")]).await;
    let found: Vec<(&str, &[u8], i64)> = snapshot
        .kvs
        .iter()
        .map(|kv| (kv.key.as_str(), kv.value.as_slice(), kv.mod_revision))
        .collect();
    let expected: Vec<(&str, &[u8], i64)> = vec![
        ("/order/a/x", b"1", revision),
        ("/order/b", b"2", revision),
        ("/order/c", b"", revision),
    ];
    assert_eq!(found, expected);
    assert!(snapshot.revision >= revision);
}

async fn a_guard_that_fails_stops_everything_and_shows_what_is_there(store: &impl Store) {
    let first = committed(
        store,
        &Txn {
            writes: vec![put("/guard/a", "1")],
            ..Txn::default()
        },
    )
    .await;
    let update = Txn {
        guards: vec![guard("/guard/a", first)],
        writes: vec![put("/guard/a", "2")],
        ..Txn::default()
    };
    let second = committed(store, &update).await;
    assert!(second > first);
    let late = Txn {
        guards: vec![guard("/guard/none", 0), guard("/guard/a", first)],
        writes: vec![put("/guard/a", "3"), put("/guard/b", "3")],
        ..Txn::default()
    };
    let outcome = store.commit(&late).await.unwrap();
    let CommitOutcome::Conflict(present) = outcome else {
        panic!("an overtaken write committed: {outcome:?}")
    };
    let kv = KeyValue {
        key: "/guard/a".to_owned(),
        value: b"2".to_vec(),
        mod_revision: second,
    };
    assert_eq!(present.kvs, std::slice::from_ref(&kv));
    assert_eq!(read(store, &[prefix("/guard/")]).await.kvs, [kv]);
}

async fn absence_can_be_guarded(store: &impl Store) {
    let create = Txn {
        guards: vec![guard("/create/a", 0)],
        writes: vec![put("/create/a", "1")],
        ..Txn::default()
    };
    committed(store, &create).await;
    assert!(matches!(
        store.commit(&create).await.unwrap(),
        CommitOutcome::Conflict(_)
    ));
    committed(
        store,
        &Txn {
            writes: vec![delete("/create/a")],
            ..Txn::default()
        },
    )
    .await;
    committed(store, &create).await;
}

async fn a_prefix_can_be_guarded_against_what_is_new_or_changed(store: &impl Store) {
    let write = |write| Txn {
        writes: vec![write],
        ..Txn::default()
    };
    let at = |revision, number: &str| Txn {
        prefix_guards: vec![PrefixGuard {
            prefix: "/prefix/".to_owned(),
            revision,
        }],
        writes: vec![put("/prefixed", number)],
        ..Txn::default()
    };
    // Nothing is under it yet.
    let empty = read(store, &[prefix("/prefix/")]).await.revision;
    committed(store, &at(empty, "1")).await;
    committed(store, &write(put("/prefix0", "a neighbour"))).await;
    committed(store, &at(empty, "2")).await;

    let created = committed(store, &write(put("/prefix/a", "1"))).await;
    let outcome = store.commit(&at(created - 1, "3")).await.unwrap();
    let CommitOutcome::Conflict(present) = outcome else {
        panic!("a new key went unnoticed: {outcome:?}")
    };
    let keys: Vec<&str> = present.kvs.iter().map(|kv| kv.key.as_str()).collect();
    assert_eq!(keys, ["/prefix/a"]);
    let curious = Txn {
        reads_on_conflict: ["/prefixed", "/prefix0", "/nothing"]
            .map(|key| Range::Key(key.to_owned()))
            .to_vec(),
        ..at(created - 1, "3")
    };
    let CommitOutcome::Conflict(present) = store.commit(&curious).await.unwrap() else {
        panic!("a new key went unnoticed")
    };
    let keys: Vec<&str> = present.kvs.iter().map(|kv| kv.key.as_str()).collect();
    assert_eq!(keys, ["/prefix/a", "/prefix0", "/prefixed"]);
    assert_eq!(present.revision, created);
    committed(store, &at(created, "3")).await;

    let both = Txn {
        guards: vec![guard("/prefix/a", created)],
        ..at(created, "4")
    };
    committed(store, &both).await;
    committed(store, &write(put("/prefix/a", "2"))).await;
    let outcome = store.commit(&both).await.unwrap();
    assert!(matches!(outcome, CommitOutcome::Conflict(present) if present.kvs.len() == 1));
    committed(store, &write(delete("/prefix/a"))).await;
    committed(store, &at(created, "5")).await;
}

async fn deletes_and_puts_happen_together(store: &impl Store) {
    committed(
        store,
        &Txn {
            writes: vec![put("/move/a", "1")],
            ..Txn::default()
        },
    )
    .await;
    let moving = Txn {
        writes: vec![delete("/move/a"), put("/move/b", "1"), delete("/move/none")],
        ..Txn::default()
    };
    let revision = committed(store, &moving).await;
    let snapshot = read(store, &[prefix("/move/")]).await;
    assert_eq!(
        snapshot.kvs,
        [KeyValue {
            key: "/move/b".to_owned(),
            value: b"1".to_vec(),
            mod_revision: revision
        }]
    );
}

async fn a_read_is_of_one_revision_however_large(store: &impl Store) {
    // More keys than an etcd transaction has operations, and more under a prefix than one answer has.
    let value = "x".repeat(2_000);
    for batch in 0..12 {
        let writes = (0..100)
            .map(|i| put(&format!("/many/{batch:02}{i:02}"), &value))
            .collect();
        committed(
            store,
            &Txn {
                writes,
                ..Txn::default()
            },
        )
        .await;
    }
    let mut ranges: Vec<Range> = (0..250).map(|i| key(&format!("/many/{i:04}"))).collect();
    ranges.push(prefix("/many/"));
    let snapshot = read(store, &ranges).await;
    assert_eq!(snapshot.kvs.len(), 1_200);
    assert!(snapshot.kvs.is_sorted_by(|a, b| a.key < b.key));
    assert!(snapshot.kvs.iter().all(|kv| kv.mod_revision <= snapshot.revision));
}

async fn read(store: &impl Store, ranges: &[Range]) -> Snapshot {
    store.read(ranges).await.unwrap()
}

async fn committed(store: &impl Store, txn: &Txn) -> i64 {
    match store.commit(txn).await.unwrap() {
        CommitOutcome::Committed { revision } => revision,
        conflict @ CommitOutcome::Conflict(_) => panic!("{conflict:?}"),
    }
}

fn key(key: &str) -> Range {
    Range::Key(key.to_owned())
}

fn prefix(prefix: &str) -> Range {
    Range::Prefix(prefix.to_owned())
}

fn guard(key: &str, mod_revision: i64) -> Guard {
    Guard {
        key: key.to_owned(),
        mod_revision,
    }
}

fn put(key: &str, value: &str) -> Write {
    Write::Put {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
    }
}

fn delete(key: &str) -> Write {
    Write::Delete { key: key.to_owned() }
}
