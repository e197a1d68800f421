//! Serves the CNI plugin: the agent's side of the contract in `calidris_cni`.
//!
//! Invariants:
//! - Bounded: so many requests are worked on at a time, so many more wait; the next one is answered at once with code 11. At
//!   most as many connections again are being read; further ones wait in the kernel's backlog.
//! - Requests about the same host interface (the same attachment, or an older container of the same pod) follow each
//!   other; others do not wait for them.
//! - An ADD that fails, takes too long or whose plugin has gone leaves nothing behind. A DEL tears down what is on this node
//!   even when the datastore is away, and then says that it must be repeated.

mod announced;
mod attach;
mod check;
mod detach;
mod given;
mod ipam_face;
mod lock;
mod orphans;
mod refusal;
mod request;
mod stages;
mod status;
mod undo;

pub use announced::{Announcements, Confirmed};
pub(crate) use request::handle_id;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as BlockingStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use calidris_cni::contract::{AddressManagement, Attachment, Operation, Reply, Request};
use calidris_cni::error::{CniError, ErrorCode};
use calidris_cni::socket::{self, Received};
use calidris_ipam::{Ipam, Store};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::{debug, info, warn};

use crate::clock;
use crate::config::Config;
use crate::inbox::{Found, Message, NotApplied};
use crate::listen::attend_clients;
use crate::metrics::Exposition;
use crate::model::{EndpointId, Input};
use crate::pod_link::{HostEnd, Remover};
use crate::report::{CniReport, DatastoreReport};
use stages::{Stage, StageHistograms, Stages};

/// How long a plugin may take to send its request: it sends it in one go.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a plugin may take to read its reply.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Pairs that are made at a time: the kernel makes one after the other anyway, and who waits for its lock keeps a processor busy.
const LINKS_AT_A_TIME: usize = 2;
/// What is kept of the plugin's own time limit to undo an ADD and still answer.
const MARGIN: Duration = Duration::from_secs(2);

/// What the server is told by its operator.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// This node's name in the datastore.
    pub node: String,
    /// Requests worked on at a time.
    pub max_concurrent: usize,
    /// Requests waiting beyond those.
    pub max_waiting: usize,
    /// Longest time for a request.
    pub request_timeout: Duration,
}

impl From<&Config> for ServerConfig {
    fn from(config: &Config) -> Self {
        Self {
            node: config.node_name.as_str().to_owned(),
            max_concurrent: usize::from(config.cni.max_concurrent),
            max_waiting: usize::from(config.cni.max_waiting),
            request_timeout: config.cni.request_timeout,
        }
    }
}

/// The server: what its requests share.
pub struct CniServer<S> {
    config: ServerConfig,
    ipam: Arc<Ipam<S>>,
    inbox: mpsc::Sender<Message>,
    datastore: watch::Receiver<DatastoreReport>,
    /// MTU of pods' interfaces in bytes.
    pod_mtu: watch::Receiver<u32>,
    announcements: Option<Announcements>,
    remover: Remover,
    locks: lock::Locks,
    to_undo: undo::ToUndo,
    /// Work going on.
    working: Semaphore,
    /// Pairs being made.
    making_links: Semaphore,
    counters: Counters,
}

/// Since the start.
#[derive(Debug, Default)]
struct Counters {
    answered: AtomicU64,
    failed: AtomicU64,
    in_progress: AtomicU64,
    /// By operation, in the order of [`OPERATIONS`].
    stages: [StageHistograms; OPERATIONS.len()],
    refused: [AtomicU64; OPERATIONS.len()],
}

/// The operations that are counted.
const OPERATIONS: [&str; 5] = ["ADD", "DEL", "CHECK", "STATUS", "GC"];

/// The node's thread is gone: the agent is ending.
fn ending() -> CniError {
    CniError::new(ErrorCode::TRY_AGAIN_LATER, "the agent is ending")
}

impl<S: Store + 'static> CniServer<S> {
    /// A server that allocates from `ipam`, tells the node's thread through `inbox` and has links removed by `remover`.
    pub fn new(
        config: ServerConfig,
        ipam: Arc<Ipam<S>>,
        inbox: mpsc::Sender<Message>,
        (datastore, pod_mtu): (watch::Receiver<DatastoreReport>, watch::Receiver<u32>),
        announcements: Option<Announcements>,
        remover: Remover,
    ) -> Self {
        Self {
            working: Semaphore::new(config.max_concurrent),
            making_links: Semaphore::new(LINKS_AT_A_TIME),
            config,
            ipam,
            inbox,
            datastore,
            pod_mtu,
            announcements,
            remover,
            locks: lock::Locks::default(),
            to_undo: undo::ToUndo::default(),
            counters: Counters::default(),
        }
    }

    /// MTU of pods' interfaces now, in bytes.
    fn pod_mtu(&self) -> u32 {
        *self.pod_mtu.borrow()
    }

    /// Serves until the task is dropped; requests being worked on then go on to their end.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        let allowed = self.config.max_concurrent.saturating_add(self.config.max_waiting);
        attend_clients("CNI", listener, allowed.saturating_mul(2).max(1), |stream| {
            let server = Arc::clone(&self);
            async move {
                // The request comes a moment after the connection, whole as a rule; a thread that waits for it costs more.
                let says_something = tokio::time::timeout(RECEIVE_TIMEOUT, stream.readable()).await;
                let time_left = says_something.map_or(Duration::ZERO, |_| RECEIVE_TIMEOUT);
                match blocking(stream) {
                    Ok(stream) => server.converse(stream, time_left).await,
                    Err(error) => warn!(%error, "CNI: a connection cannot be used"),
                }
            }
        })
        .await;
    }

    /// What the status says of the server.
    pub fn report(&self) -> CniReport {
        CniReport {
            answered: self.counters.answered.load(Ordering::Relaxed),
            failed: self.counters.failed.load(Ordering::Relaxed),
            in_progress: self.counters.in_progress.load(Ordering::Relaxed),
        }
    }

    /// One connection: one request, one reply.
    async fn converse(&self, stream: BlockingStream, time_to_receive: Duration) {
        let has_request = socket::has_request(&stream);
        let read = move || {
            let received = socket::read_request(&stream, time_to_receive);
            (stream, received)
        };
        let (stream, received) = match in_thread_unless(has_request, read).await {
            Ok(read) => read,
            Err(error) => {
                warn!(%error, "CNI: reading a request failed");
                return;
            }
        };
        let (request, reply, answer_to) = match received {
            Ok(Received { request, netns }) => {
                let request = Arc::new(request);
                let reply = self.reply_within_bounds(Arc::clone(&request), netns).await;
                (Some(request), reply, "request")
            }
            Err(error) => {
                warn!(%error, "CNI: a request that cannot be read");
                (None, Reply::to_unreadable_request(&error), "unreadable request")
            }
        };
        let is_added = matches!(reply, Reply::Added { .. });
        self.count(&reply);
        let is_short = is_short(&reply);
        let send = move || socket::write_reply(&stream, &reply, SEND_TIMEOUT);
        let sent = in_thread_unless(is_short, send).await;
        let Ok(Err(error)) = sent else { return };
        warn!(%error, answer_to, "CNI: the plugin has gone without its answer");
        if let Some(request) = request.filter(|_| is_added)
            && let Some(attachment) = request.operation.attachment()
            && let Err(error) = self.undo(&request, attachment).await
        {
            warn!(%error, "CNI: an ADD nobody waits for could not be undone; DEL will");
        }
    }

    async fn undo(&self, request: &Request, attachment: &Attachment) -> Result<(), CniError> {
        if request.addresses == AddressManagement::Only {
            return self.take_back(&request.config, attachment).await;
        }
        let undone = self
            .detach(&request.config, attachment, &mut Stages::default())
            .await;
        if let Err(error) = undone {
            self.leave_to_undo(&request::subject(&request.config, attachment)?, &error);
        }
        Ok(())
    }

    async fn reply_within_bounds(&self, request: Arc<Request>, netns: Option<OwnedFd>) -> Reply {
        let allowed = u64::try_from(self.config.max_concurrent.saturating_add(self.config.max_waiting));
        let arrived = clock::now();
        let before = self.counters.in_progress.fetch_add(1, Ordering::Relaxed);
        let reply = if before >= allowed.unwrap_or(u64::MAX) {
            Reply::Failed {
                error: CniError::new(
                    ErrorCode::TRY_AGAIN_LATER,
                    format!("the agent has {before} requests to work on and takes no more now"),
                ),
            }
        } else {
            match self.working.acquire().await {
                Ok(_permit) => self.reply(&request, netns, arrived).await,
                Err(_) => Reply::Failed { error: ending() },
            }
        };
        self.counters.in_progress.fetch_sub(1, Ordering::Relaxed);
        reply
    }

    async fn reply(&self, request: &Request, netns: Option<OwnedFd>, arrived: Instant) -> Reply {
        let mut stages = Stages::default();
        stages.over(Stage::Wait, arrived);
        let is_for_addresses = request.addresses == AddressManagement::Only;
        let reply: Reply = match &request.operation {
            _ if is_for_addresses => self.addresses_only(request).await,
            Operation::Add(attachment) => self.add(request, attachment, netns, &mut stages).await.into(),
            Operation::Del(attachment) => self.detach(&request.config, attachment, &mut stages).await.into(),
            Operation::Check(attachment) => self.check(&request.config, attachment, netns).await.into(),
            Operation::Status => self.status(&request.config).await.into(),
            Operation::Gc { valid_attachments } => {
                self.collect(&request.config, valid_attachments).await.into()
            }
        };
        let took = clock::now().saturating_duration_since(arrived);
        let command = request.operation.command();
        if let Some(operation) = OPERATIONS.iter().position(|operation| *operation == command) {
            if let Some(histograms) = self.counters.stages.get(operation) {
                histograms.observe(&stages, took);
            }
            if let (Reply::Failed { .. }, Some(refused)) = (&reply, self.counters.refused.get(operation)) {
                refused.fetch_add(1, Ordering::Relaxed);
            }
        }
        log(request, &reply, took, &stages);
        reply
    }

    /// How many requests there were and how long they and their stages took.
    pub fn metrics(&self, to: &mut Exposition) {
        let operations = || OPERATIONS.iter().zip(&self.counters.stages);
        to.family(
            "calidris_cni_request_seconds",
            "histogram",
            "CNI requests, from arrival to answer.",
        );
        for (operation, histograms) in operations() {
            let labels = [("operation", *operation)];
            to.histogram("calidris_cni_request_seconds", &labels, &histograms.total);
        }
        to.family(
            "calidris_cni_stage_seconds",
            "histogram",
            "Stages of CNI requests; some overlap.",
        );
        for (operation, histograms) in operations() {
            for (stage, histogram) in histograms.iter().filter(|(_, histogram)| histogram.count() > 0) {
                let labels = [("operation", *operation), ("stage", stage.as_str())];
                to.histogram("calidris_cni_stage_seconds", &labels, histogram);
            }
        }
        let failed = "calidris_cni_failed_requests_total";
        to.family(failed, "counter", "CNI requests answered with an error.");
        for (operation, refused) in OPERATIONS.iter().zip(&self.counters.refused) {
            let refused = u32::try_from(refused.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
            to.sample(failed, &[("operation", *operation)], f64::from(refused));
        }
        let waiting = self.counters.in_progress.load(Ordering::Relaxed);
        let name = "calidris_cni_requests_in_progress";
        to.family(name, "gauge", "CNI requests being worked on or waiting.");
        to.sample(name, &[], f64::from(u32::try_from(waiting).unwrap_or(u32::MAX)));
    }

    fn count(&self, reply: &Reply) {
        self.counters.answered.fetch_add(1, Ordering::Relaxed);
        if matches!(reply, Reply::Failed { .. }) {
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How long this request may take: our limit, and what the plugin's own leaves.
    fn time_for(&self, request: &Request) -> Duration {
        let plugins = Duration::from_millis(request.timeout_ms);
        let usable = plugins.saturating_sub(MARGIN).max(plugins / 2);
        usable.min(self.config.request_timeout)
    }

    /// What the node knows of an attachment.
    async fn find(&self, id: &EndpointId) -> Result<Found, CniError> {
        let (answer, found) = oneshot::channel();
        self.ask(Message::Find(id.clone(), answer), found).await
    }

    /// As [`Self::find`], of one that is about to be made.
    async fn begin(&self, id: &EndpointId) -> Result<Found, CniError> {
        let (answer, found) = oneshot::channel();
        self.ask(Message::Begin(id.clone(), answer), found).await
    }

    async fn ask<T>(&self, question: Message, answer: oneshot::Receiver<T>) -> Result<T, CniError> {
        self.inbox.send(question).await.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())
    }

    /// Tells the node's thread and waits until the kernel has followed.
    async fn apply(&self, input: Input) -> Result<Result<(), NotApplied>, CniError> {
        let (done, applied) = oneshot::channel();
        self.ask(Message::Apply(input, done), applied).await
    }

    /// As [`Self::apply`], for a pod whose link was made a moment ago.
    async fn apply_made(&self, input: Input, made: HostEnd) -> Result<Result<(), NotApplied>, CniError> {
        let (done, applied) = oneshot::channel();
        self.ask(Message::ApplyMade(input, Box::new(made), done), applied)
            .await
    }

    /// An error if the datastore cannot be used now.
    fn require_datastore(&self) -> Result<(), CniError> {
        let state = self.datastore.borrow();
        if state.connected {
            return Ok(());
        }
        let why = state
            .error
            .clone()
            .unwrap_or_else(|| "not connected yet".to_owned());
        Err(CniError::new(ErrorCode::TRY_AGAIN_LATER, "the datastore is unreachable").with_details(why))
    }
}

/// One line for each request, with the time of each stage and the runtime's trace.
fn log(request: &Request, reply: &Reply, took: Duration, stages: &Stages) {
    let command = request.operation.command();
    let container = request
        .operation
        .attachment()
        .map(|attachment| attachment.id.container_id.as_str());
    let network = request.config.name.as_str();
    let traceparent = request.trace_parent.as_deref();
    let stages = stages.text();
    match reply {
        Reply::Failed { error } => {
            warn!(command, network, container, ?took, stages, traceparent, code = error.code.0, details = %error.details, "CNI: {}", error.msg);
        }
        Reply::Added { .. } => {
            info!(
                command,
                network,
                container,
                ?took,
                stages,
                traceparent,
                "CNI: pod attached"
            );
        }
        Reply::Done if matches!(request.operation, Operation::Del(_)) => {
            info!(
                command,
                network,
                container,
                ?took,
                stages,
                traceparent,
                "CNI: pod detached"
            );
        }
        Reply::Done => debug!(command, network, container, ?took, traceparent, "CNI: done"),
    }
}

/// Runs what blocks in a thread of its own.
async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, CniError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        CniError::new(ErrorCode::INTERNAL, "a defect in the agent").with_details(error.to_string())
    })
}

/// As [`in_thread`], unless it is known that the work does not block: then a thread costs more than the work.
async fn in_thread_unless<T: Send + 'static>(
    does_not_block: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CniError> {
    if does_not_block {
        Ok(work())
    } else {
        in_thread(work).await
    }
}

/// Whether the reply fits into the empty buffer of a socket, which holds some hundred addresses and more.
fn is_short(reply: &Reply) -> bool {
    match reply {
        Reply::Added { result } => result.ips.len() <= 16,
        Reply::Done => true,
        Reply::Failed { .. } => false,
    }
}

fn blocking(stream: tokio::net::UnixStream) -> io::Result<BlockingStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}
