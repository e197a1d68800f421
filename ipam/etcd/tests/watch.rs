//! The watch on a real etcd that is killed, restarted, compacted and frozen under it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use calidris_ipam::Snapshot;
use calidris_ipam_etcd::{Change, Watch, WatchEvent};
use etcd_client::Client;
use server::TestEtcd;

/// How long something that will happen may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(40);

#[tokio::test]
async fn a_watch_begins_with_what_is_there_and_goes_on_with_every_change() {
    let Some(etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    let mut client = etcd.client().await;
    put(&mut client, "/a/1", "old").await;
    put(&mut client, "/other/1", "unseen").await;
    let mut mirror = Mirror::start(&etcd);
    mirror.until("the snapshot", |mirror| mirror.snapshots == 1).await;
    assert_eq!(mirror.text(), [("/a/1", "old")]);
    put(&mut client, "/a/1", "new").await;
    put(&mut client, "/b/1", "new").await;
    put(&mut client, "/other/1", "unseen too").await;
    client.delete("/a/1", None).await.unwrap();
    put(&mut client, "/a/2", "new").await;
    mirror
        .until("the changes", |mirror| {
            mirror.text() == [("/a/2", "new"), ("/b/1", "new")]
        })
        .await;
    assert_eq!((mirror.snapshots, mirror.changes, mirror.losses), (1, 4, 0));
}

#[tokio::test]
async fn a_watch_that_starts_before_etcd_gets_its_snapshot_when_etcd_comes() {
    let Some(mut etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    etcd.kill();
    let mut mirror = Mirror::start(&etcd);
    mirror.until("the loss", |mirror| mirror.losses == 1).await;
    etcd.run().await;
    mirror.until("the snapshot", |mirror| mirror.snapshots == 1).await;
}

#[tokio::test]
async fn a_watch_resumes_after_a_restart_and_misses_nothing() {
    let Some(mut etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    put(&mut etcd.client().await, "/a/1", "1").await;
    let mut mirror = Mirror::start(&etcd);
    mirror.until("the snapshot", |mirror| mirror.snapshots == 1).await;
    etcd.kill();
    mirror.until("the loss", |mirror| mirror.losses == 1).await;
    etcd.run().await;
    // Perhaps before the watch is back: it must see them all the same.
    let mut client = etcd.client().await;
    put(&mut client, "/a/2", "2").await;
    client.delete("/a/1", None).await.unwrap();
    mirror
        .until("the changes", |mirror| {
            mirror.resyncs == 1 && mirror.text() == [("/a/2", "2")]
        })
        .await;
    assert_eq!((mirror.snapshots, mirror.changes, mirror.losses), (1, 2, 1));
}

#[tokio::test]
async fn a_watch_lists_anew_when_what_it_missed_is_compacted() {
    let Some(mut etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    put(&mut etcd.client().await, "/a/1", "1").await;
    let mut mirror = Mirror::start(&etcd);
    mirror.until("the snapshot", |mirror| mirror.snapshots == 1).await;
    etcd.kill();
    // Changes and a compaction where the watch cannot see them: on a port that it does not know.
    let known = etcd.use_another_port();
    etcd.run().await;
    let mut client = etcd.client().await;
    client.delete("/a/1", None).await.unwrap();
    put(&mut client, "/a/2", "2").await;
    let revision = put(&mut client, "/a/3", "3").await;
    client.compact(revision, None).await.unwrap();
    etcd.kill();
    etcd.use_port(known);
    etcd.run().await;
    mirror
        .until("the second snapshot", |mirror| mirror.snapshots == 2)
        .await;
    assert_eq!(mirror.text(), [("/a/2", "2"), ("/a/3", "3")]);
    put(&mut etcd.client().await, "/a/4", "4").await;
    mirror
        .until("a change after it", |mirror| mirror.text().len() == 3)
        .await;
}

#[tokio::test]
async fn a_frozen_etcd_is_noticed_and_a_thawed_one_resumed() {
    let Some(etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    put(&mut etcd.client().await, "/a/1", "1").await;
    let mut mirror = Mirror::start(&etcd);
    mirror.until("the snapshot", |mirror| mirror.snapshots == 1).await;
    etcd.freeze();
    mirror.until("the loss", |mirror| mirror.losses == 1).await;
    etcd.thaw();
    put(&mut etcd.client().await, "/a/2", "2").await;
    mirror
        .until("the change", |mirror| {
            mirror.resyncs == 1 && mirror.text().len() == 2
        })
        .await;
    assert_eq!((mirror.snapshots, mirror.losses), (1, 1));
}

#[tokio::test]
async fn a_watch_lists_anew_when_another_history_answers() {
    let Some(mut etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    let mut client = etcd.client().await;
    for i in 0..5 {
        put(&mut client, "/a/1", &i.to_string()).await;
    }
    let mut mirror = Mirror::start(&etcd);
    mirror.until("the snapshot", |mirror| mirror.snapshots == 1).await;
    etcd.kill();
    etcd.forget_everything();
    etcd.run().await;
    put(&mut etcd.client().await, "/a/9", "restored").await;
    mirror
        .until("the new history", |mirror| {
            mirror.text() == [("/a/9", "restored")]
        })
        .await;
    assert!(mirror.snapshots >= 2);
}

#[tokio::test]
async fn a_burst_larger_than_every_buffer_arrives_whole_at_a_slow_consumer() {
    let Some(etcd) = TestEtcd::start(&[]).await else {
        return;
    };
    let mut mirror = Mirror::start(&etcd);
    mirror.until("the snapshot", |mirror| mirror.snapshots == 1).await;
    let mut client = etcd.client().await;
    for i in 0..2_000 {
        put(&mut client, &format!("/a/{i}"), "x").await;
    }
    mirror
        .until("all of them", |mirror| mirror.keys.len() == 2_000)
        .await;
    assert_eq!((mirror.snapshots, mirror.losses), (1, 0));
}

/// What a consumer of the watch knows.
struct Mirror {
    watch: Watch,
    keys: BTreeMap<String, Vec<u8>>,
    snapshots: usize,
    changes: usize,
    losses: usize,
    resyncs: usize,
}

impl Mirror {
    fn start(etcd: &TestEtcd) -> Self {
        let watch = Watch::start(etcd.config(), vec!["/a/".to_owned(), "/b/".to_owned()]);
        Self {
            watch,
            keys: BTreeMap::new(),
            snapshots: 0,
            changes: 0,
            losses: 0,
            resyncs: 0,
        }
    }

    /// Takes events in until `condition` holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            match tokio::time::timeout(LIMIT, self.watch.next()).await {
                Ok(event) => self.take_in(event.unwrap()),
                Err(_) => panic!(
                    "waiting for {what} with {:?}, {} snapshots, {} losses, {} resyncs",
                    self.text(),
                    self.snapshots,
                    self.losses,
                    self.resyncs
                ),
            }
        }
    }

    fn take_in(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Snapshot(Snapshot { kvs, .. }) => {
                self.snapshots += 1;
                self.keys = kvs.into_iter().map(|kv| (kv.key, kv.value)).collect();
            }
            WatchEvent::Changes(changes) => {
                for change in changes {
                    self.changes += 1;
                    match change {
                        Change::Put(kv) => {
                            self.keys.insert(kv.key, kv.value);
                        }
                        Change::Delete { key, .. } => {
                            self.keys.remove(&key);
                        }
                    }
                }
            }
            WatchEvent::Disconnected { .. } => self.losses += 1,
            WatchEvent::Resynced => self.resyncs += 1,
        }
    }

    fn text(&self) -> Vec<(&str, &str)> {
        self.keys
            .iter()
            .map(|(key, value)| (key.as_str(), std::str::from_utf8(value).unwrap()))
            .collect()
    }
}

async fn put(client: &mut Client, key: &str, value: &str) -> i64 {
    client
        .put(key, value, None)
        .await
        .unwrap()
        .header()
        .unwrap()
        .revision()
}
