//! A watch over several prefixes that goes on whatever happens to etcd.
//!
//! The consumer sees a [`WatchEvent::Snapshot`] first and then every change, each once and in order within a prefix:
//! - after a lost connection the watch goes on at the revision after the last one seen ([`WatchEvent::Resynced`]);
//! - if that revision is compacted there is another `Snapshot`, to be compared with what the consumer has;
//! - a member that is frozen or cut off from its leader is noticed in seconds and another one is tried.
//!
//! What etcd 3.4 does that the protocol does not say: a watch at a compacted revision is answered `created`, then
//! `canceled` with `compact_revision`, and the stream then stays open and silent. A progress report that was asked for may
//! overtake events, so that it serves as a sign of life only, never to move the revision.
//!
//! Changes of one transaction under two prefixes come in two events. The channel to the consumer is bounded: a slow
//! consumer makes etcd wait, and at worst means another snapshot.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use calidris_ipam::{Change, Range, WatchEvent};
use etcd_client::{Client, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::config::EtcdConfig;
use crate::failure::Failure;
use crate::list::{MAX_MESSAGE, key_value, prefix_end, read_at_one_revision};

/// Events waiting for the consumer.
const CHANNEL: usize = 64;
/// After this long without a message etcd is asked for a sign of life.
const SILENCE: Duration = Duration::from_secs(5);
/// Pause after the first failure; doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A running watch. Ends when dropped.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<WatchEvent>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Starts watching everything under `prefixes`. Must be called in a tokio runtime.
    pub fn start(config: EtcdConfig, prefixes: Vec<String>) -> Self {
        let (sender, events) = mpsc::channel(CHANNEL);
        let task = tokio::spawn(Watcher::new(config, prefixes, sender).run());
        Self { events, task }
    }

    /// The next event. `None` only if the runtime is shutting down.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.events.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Watcher {
    config: EtcdConfig,
    prefixes: Vec<Prefix>,
    events: mpsc::Sender<WatchEvent>,
    /// The cluster that the revisions are of; 0 before the first answer.
    cluster_id: u64,
    /// Whether the consumer was told of a loss and not yet of its end.
    lost: bool,
    failures: u32,
}

struct Prefix {
    prefix: String,
    /// The first revision not seen yet; `None` before the first snapshot.
    next_revision: Option<i64>,
}

/// Why a connection's time is over.
enum End {
    /// The changes since the last one seen cannot be had: compacted, or this is another history.
    HistoryLost(&'static str),
    /// Something failed.
    Lost(String),
    /// Nobody listens any more.
    Unwanted,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        if failure.is_compacted() {
            Self::HistoryLost("compacted")
        } else {
            Self::Lost(failure.describe())
        }
    }
}

impl Watcher {
    fn new(config: EtcdConfig, prefixes: Vec<String>, events: mpsc::Sender<WatchEvent>) -> Self {
        let prefixes = prefixes
            .into_iter()
            .map(|prefix| Prefix {
                prefix,
                next_revision: None,
            })
            .collect();
        Self {
            config,
            prefixes,
            events,
            cluster_id: 0,
            lost: false,
            failures: 0,
        }
    }

    async fn run(mut self) {
        loop {
            let end = match self.connection().await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            match end {
                End::Unwanted => return,
                End::HistoryLost(why) => {
                    tracing::info!(why, "the watch cannot go on where it was, listing anew");
                    for prefix in &mut self.prefixes {
                        prefix.next_revision = None;
                    }
                }
                End::Lost(why) => {
                    tracing::warn!(why, "etcd watch lost");
                    if !self.lost {
                        self.lost = true;
                        if self.tell(WatchEvent::Disconnected { why }).await.is_err() {
                            return;
                        }
                    }
                }
            }
            tokio::time::sleep(pause_after(self.failures)).await;
            self.failures = self.failures.saturating_add(1);
        }
    }

    /// One connection, from its beginning to its end.
    async fn connection(&mut self) -> Result<std::convert::Infallible, End> {
        let client = self
            .config
            .connect()
            .await
            .map_err(|error| End::Lost(error.to_string()))?;
        self.check_history(&client).await?;
        if self.prefixes.iter().any(|prefix| prefix.next_revision.is_none()) {
            self.list(&client).await?;
        }
        let mut stream = self.open(&client).await?;
        let mut by_id = vec![None; self.prefixes.len()];
        let mut created = 0;
        loop {
            let message = self.message(&mut stream).await?;
            let id = message.watch_id();
            if message.created() && !message.canceled() {
                // etcd answers in the order of the requests.
                if let Some(slot) = by_id.get_mut(created) {
                    *slot = Some(id);
                }
                created += 1;
                if created == self.prefixes.len() {
                    self.established().await?;
                }
            }
            if message.compact_revision() > 0 {
                return Err(End::HistoryLost("compacted"));
            }
            if message.canceled() {
                return Err(End::Lost(format!(
                    "etcd ended the watch: {}",
                    message.cancel_reason()
                )));
            }
            let index = by_id.iter().position(|known| *known == Some(id));
            if let Some(prefix) = index.and_then(|index| self.prefixes.get_mut(index)) {
                let changes = prefix.take_in(&message);
                if !changes.is_empty() {
                    self.tell(WatchEvent::Changes(changes)).await?;
                }
            }
        }
    }

    /// Revisions mean nothing after etcd was restored from a backup or made anew: then the cluster's identity is another
    /// one, or its revision lies before what was seen. (A read that is not local: a member that lags is no such case.)
    async fn check_history(&mut self, client: &Client) -> Result<(), End> {
        let Some(first) = self.prefixes.first() else {
            return Ok(());
        };
        let mut kv = client.kv_client();
        let reading = kv.get(first.prefix.as_bytes(), None);
        let answer = tokio::time::timeout(self.config.request_timeout, reading)
            .await
            .map_err(|_| Failure::NoAnswer)?;
        let answer = answer.map_err(Failure::Etcd)?;
        let header = answer.header().ok_or(Failure::Malformed("no header"))?;
        let known = std::mem::replace(&mut self.cluster_id, header.cluster_id());
        if known != 0 && known != header.cluster_id() {
            return Err(End::HistoryLost("another cluster answers"));
        }
        let seen = self
            .prefixes
            .iter()
            .filter_map(|prefix| prefix.next_revision)
            .max()
            .unwrap_or(0)
            - 1;
        if header.revision() < seen {
            Err(End::HistoryLost("the revision went back"))
        } else {
            Ok(())
        }
    }

    async fn list(&mut self, client: &Client) -> Result<(), End> {
        let ranges: Vec<Range> = self
            .prefixes
            .iter()
            .map(|p| Range::Prefix(p.prefix.clone()))
            .collect();
        let mut kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
        let reading = read_at_one_revision(&mut kv, &ranges);
        let snapshot = tokio::time::timeout(self.config.request_timeout, reading)
            .await
            .unwrap_or(Err(Failure::NoAnswer))?;
        for prefix in &mut self.prefixes {
            prefix.next_revision = Some(snapshot.revision + 1);
        }
        self.lost = false;
        self.tell(WatchEvent::Snapshot(snapshot)).await
    }

    /// Opens the stream and asks for all prefixes on it.
    async fn open(&self, client: &Client) -> Result<WatchStream, End> {
        let mut watch = client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        let opening = async {
            let mut requests = self.prefixes.iter().map(Prefix::request);
            let (key, options) = requests
                .next()
                .ok_or(Failure::Malformed("a watch without prefixes"))?;
            let mut stream = watch.watch(key, Some(options)).await.map_err(Failure::Etcd)?;
            for (key, options) in requests {
                stream.watch(key, Some(options)).await.map_err(Failure::Etcd)?;
            }
            Ok(stream)
        };
        Ok(tokio::time::timeout(self.config.request_timeout, opening)
            .await
            .unwrap_or(Err(Failure::NoAnswer))?)
    }

    /// The next message. A silent stream is asked for a sign of life.
    async fn message(&self, stream: &mut WatchStream) -> Result<WatchResponse, End> {
        let message = match tokio::time::timeout(SILENCE, stream.message()).await {
            Ok(message) => message,
            Err(_) => {
                stream.request_progress().await.map_err(Failure::Etcd)?;
                tokio::time::timeout(self.config.request_timeout, stream.message())
                    .await
                    .map_err(|_| End::Lost("etcd gives no sign of life".to_owned()))?
            }
        };
        message
            .map_err(Failure::Etcd)?
            .ok_or_else(|| End::Lost("etcd closed the watch".to_owned()))
    }

    /// All prefixes are watched again.
    async fn established(&mut self) -> Result<(), End> {
        self.failures = 0;
        if std::mem::take(&mut self.lost) {
            tracing::info!("etcd watch goes on");
            self.tell(WatchEvent::Resynced).await?;
        }
        Ok(())
    }

    async fn tell(&self, event: WatchEvent) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Unwanted)
    }
}

impl Prefix {
    fn request(&self) -> (Vec<u8>, WatchOptions) {
        let options = WatchOptions::new()
            .with_range(prefix_end(self.prefix.as_bytes()))
            .with_start_revision(self.next_revision.unwrap_or(0))
            .with_progress_notify();
        (self.prefix.as_bytes().to_vec(), options)
    }

    /// The changes in `message` that were not seen yet.
    fn take_in(&mut self, message: &WatchResponse) -> Vec<Change> {
        let seen = self.next_revision.unwrap_or(0);
        let events = message.events().iter().filter_map(etcd_client::Event::kv);
        let changes: Vec<Change> = events
            .filter(|kv| kv.mod_revision() >= seen)
            .filter_map(change)
            .collect();
        let last = message.events().last().and_then(etcd_client::Event::kv);
        if let Some(kv) = last {
            self.next_revision = Some(seen.max(kv.mod_revision() + 1));
        }
        changes
    }
}

/// A deletion has no version. (The client's own accessor for the type panics on types it does not know.)
fn change(kv: &etcd_client::KeyValue) -> Option<Change> {
    let key_value = key_value(kv)?;
    Some(if kv.version() > 0 {
        Change::Put(key_value)
    } else {
        Change::Delete {
            key: key_value.key,
            mod_revision: key_value.mod_revision,
        }
    })
}

/// Doubles from [`FIRST_PAUSE`] to [`LONGEST_PAUSE`], less up to a half at random, so that the nodes of a cluster do not
/// come back to a restarted etcd all at once.
fn pause_after(failures: u32) -> Duration {
    let full = FIRST_PAUSE
        .saturating_mul(1 << failures.min(10))
        .min(LONGEST_PAUSE);
    // RandomState is seeded by the system; an empty hash is 64 random bits.
    let random = RandomState::new().build_hasher().finish();
    let thousandths = u32::try_from(random % 500).unwrap_or(0);
    full - full / 1000 * thousandths
}
