//! A transaction that reaches etcd long after whoever sent it has gone on: the node's fence shuts it out.
//!
//! A relay between client and etcd keeps what it is sent and hands it over when the test wants it: what a frozen switch or
//! a member that wakes up do, at a chosen moment.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod server;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use calidris_ipam::{AddressRequest, AssignRequest, Ipam, ReleaseRequest, keys};
use calidris_ipam_etcd::{EtcdConfig, EtcdStore};
use etcd_client::GetOptions;
use serde_json::json;
use server::TestEtcd;
use support::at;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// Without the fence the late transaction takes effect: nobody knows of the address that it gives. That is what makes this
/// a test of the fence.
#[tokio::test]
async fn a_commit_that_takes_effect_late_is_shut_out_by_the_fence_alone() {
    for fence in [None, Some("node-a".to_owned())] {
        let Some(etcd) = TestEtcd::start(&[]).await else {
            return;
        };
        let pool = json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "p"},
            "spec": {"cidr": "10.0.0.0/24"}});
        let mut admin = etcd.client().await;
        admin
            .put(format!("{}p", keys::IP_POOLS), pool.to_string(), None)
            .await
            .unwrap();
        let relay = Relay::start(etcd.endpoint().trim_start_matches("http://").to_owned()).await;
        let config = EtcdConfig {
            request_timeout: Duration::from_secs(1),
            ..EtcdConfig::new(vec![relay.endpoint.clone()])
        };
        let ipam = Arc::new(Ipam::new(EtcdStore::new(config)));
        ipam.assign(&request("net.first"), at(0)).await.unwrap();

        // The caller's time is over while its transaction is on its way.
        relay.stage.send_replace(Stage::Keep);
        let late = request("net.late");
        let call = ipam.assign(&late, at(1));
        tokio::time::timeout(Duration::from_millis(500), call)
            .await
            .unwrap_err();
        relay.stage.send_replace(Stage::Ignore);
        let release = ReleaseRequest {
            handle_id: "net.late".to_owned(),
            fence: fence.clone(),
            ..ReleaseRequest::default()
        };
        // The first attempts find the old connection dead.
        let released = async { while ipam.release(&release, at(2)).await.is_err() {} };
        tokio::time::timeout(LIMIT, released).await.unwrap();
        assert_eq!(handles(&mut admin).await, ["net.first"]);

        relay.stage.send_replace(Stage::HandOver);
        if fence.is_some() {
            relay.wait_for_late_answer().await;
            assert_eq!(handles(&mut admin).await, ["net.first"]);
        } else {
            let taken = async { while handles(&mut admin).await != ["net.first", "net.late"] {} };
            tokio::time::timeout(LIMIT, taken).await.unwrap();
        }
    }
}

fn request(handle: &str) -> AssignRequest {
    let mut request = AssignRequest::new(handle, "node-a");
    request.v4 = AddressRequest::Count(1);
    request
}

async fn handles(admin: &mut etcd_client::Client) -> Vec<String> {
    let options = GetOptions::new().with_prefix();
    let found = admin.get(keys::HANDLES, Some(options)).await.unwrap();
    let keys = found.kvs().iter().map(|kv| kv.key_str().unwrap());
    keys.map(|key| key[keys::HANDLES.len()..].to_owned()).collect()
}

/// What the relay does with what the client sends on connections that it already has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Pass,
    /// It keeps it.
    Keep,
    /// It loses it: so that a client cannot take back what it has sent.
    Ignore,
    /// It hands over what it has kept, and loses the rest.
    HandOver,
}

struct Relay {
    endpoint: String,
    stage: watch::Sender<Stage>,
    /// What etcd answered to what was handed over late.
    answers: watch::Receiver<Vec<u8>>,
}

impl Relay {
    async fn start(etcd: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let stage = watch::Sender::new(Stage::Pass);
        let late_answers = watch::Sender::new(Vec::new());
        let answers = late_answers.subscribe();
        let stages = stage.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (from_client, to_client) = client.into_split();
                let (from_etcd, to_etcd) = TcpStream::connect(&etcd).await.unwrap().into_split();
                // Connections that are made after the first stage are left alone.
                let stages = (*stages.borrow() == Stage::Pass).then(|| stages.clone());
                tokio::spawn(forward(from_client, to_etcd, stages.clone()));
                tokio::spawn(back(from_etcd, to_client, stages, late_answers.clone()));
            }
        });
        Self {
            endpoint,
            stage,
            answers,
        }
    }

    /// Waits until etcd has answered what was handed over late: the only request that it had on that connection.
    async fn wait_for_late_answer(&self) {
        let mut answers = self.answers.clone();
        let answered = answers.wait_for(|bytes| has_message(bytes));
        tokio::time::timeout(LIMIT, answered).await.unwrap().unwrap();
    }
}

/// Whether there is a DATA frame (RFC 9113, 4.1 and 6.1) among the frames: gRPC has its messages in those.
fn has_message(mut frames: &[u8]) -> bool {
    while let [high, middle, low, kind, _, _, _, _, _, rest @ ..] = frames {
        let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        if *kind == 0 && length > 0 {
            return true;
        }
        frames = rest.get(length..).unwrap_or_default();
    }
    false
}

async fn forward(
    mut client: OwnedReadHalf,
    mut etcd: OwnedWriteHalf,
    mut stages: Option<watch::Receiver<Stage>>,
) {
    let mut kept: Vec<u8> = Vec::new();
    let mut buffer = [0; 64 << 10];
    let mut is_open = true;
    loop {
        let stage = stages
            .as_mut()
            .map_or(Stage::Pass, |stages| *stages.borrow_and_update());
        if stage == Stage::HandOver {
            etcd.write_all(&std::mem::take(&mut kept)).await.unwrap();
        }
        let next_stage = async {
            match &mut stages {
                Some(stages) => stages.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            is_running = next_stage => {
                if !is_running {
                    return;
                }
            }
            read = client.read(&mut buffer), if is_open => {
                let read = read.unwrap_or(0);
                is_open = read > 0;
                let bytes = &buffer[..read];
                match stage {
                    Stage::Pass => {
                        if !is_open || etcd.write_all(bytes).await.is_err() {
                            return;
                        }
                    }
                    Stage::Keep => kept.extend_from_slice(bytes),
                    Stage::Ignore | Stage::HandOver => {}
                }
            }
        }
    }
}

async fn back(
    mut etcd: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    stages: Option<watch::Receiver<Stage>>,
    late_answers: watch::Sender<Vec<u8>>,
) {
    let mut buffer = [0; 64 << 10];
    while let Ok(read) = etcd.read(&mut buffer).await {
        if read == 0 {
            return;
        }
        let is_late = stages
            .as_ref()
            .is_some_and(|stages| *stages.borrow() == Stage::HandOver);
        if is_late {
            late_answers.send_modify(|answers| answers.extend_from_slice(&buffer[..read]));
        }
        // The client may have gone: that is what this is about.
        let _ = client.write_all(&buffer[..read]).await;
    }
}
