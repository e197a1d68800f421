//! The control socket: one request of an operator, one answer, and the connection closes.
//!
//! Both are JSON, a value a line. The answer to a request is any number of [`Answer`]s of which the last, and only the
//! last, is [`Answer::Done`] or [`Answer::Refused`]: an answer that was cut off is recognised.
//!
//! Invariants: the socket is for root alone (see [`crate::listen`]); at most [`MAX_CLIENTS`] are served at a time, more
//! wait in the kernel's backlog; a client that does not send or does not read for [`PATIENCE`] is dropped; a request has at
//! most [`MAX_REQUEST`] bytes. Large tables are read page by page: no peer waits for an operator.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use calidris_bgp::family::AfiSafi;
use calidris_bgp::status::{RouteCursor, RouteFilter, RouteStatus, SpeakerStatus};
use calidris_bgp_driver::BgpHandle;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::inbox::Message;
use crate::listen::attend_clients;
use crate::plan::PlanReport;
use crate::reload::{ReloadMode, ReloadReport, ReloadRequest};

/// Clients served at a time.
pub const MAX_CLIENTS: usize = 8;
/// Longest request, in bytes.
pub const MAX_REQUEST: u64 = 64 << 10;
/// How long either side waits for the other.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What an operator may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The speaker and its peers: one [`Answer::BgpStatus`].
    BgpStatus,
    /// Routes: an [`Answer::BgpRoute`] each, in no order that means anything.
    BgpRoutes(RouteFilter),
    /// Ask a peer to send all its routes of a family again (RFC 2918).
    BgpRefresh {
        /// Name of the peer.
        peer: String,
        /// Which family.
        family: AfiSafi,
    },
    /// What the agent would change on this node now: one [`Answer::NodePlan`].
    NodePlan,
    /// Read the configuration again and tell what it would change: one [`Answer::Reload`].
    Plan,
    /// Read the configuration again and apply it: one [`Answer::Reload`].
    Reload,
}

/// Part of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The speaker and its peers.
    BgpStatus(SpeakerStatus),
    /// One prefix.
    BgpRoute(RouteStatus),
    /// What the agent would change.
    NodePlan(PlanReport),
    /// What a configuration changes.
    Reload(ReloadReport),
    /// That was all.
    Done,
    /// It cannot be had or done, and why.
    Refused(String),
}

/// What [`serve`] answers for.
#[derive(Debug, Clone)]
pub struct Controlled {
    /// The BGP speaker, if there is one.
    pub speaker: Option<BgpHandle>,
    /// The node's thread; `None` for a speaker alone.
    pub node: Option<mpsc::Sender<Message>>,
    /// Who reads the configuration again; `None` where only a restart does.
    pub reload: Option<mpsc::Sender<ReloadRequest>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("nobody answers at {}: {source}; is it running, with this control.socket in its configuration?", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer did not come, or not all of it.
    #[error("{}: no complete answer: {source}", path.display())]
    Receive {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer is not one.
    #[error("{}: the answer is not one: {source}; are both sides of one version?", path.display())]
    Decode {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The other side says no.
    #[error("{0}")]
    Refused(String),
}

/// Asks whoever listens at `path`, and gives each part of the answer to `take`.
///
/// # Errors
/// See [`AskError`].
pub fn ask(path: &Path, request: &Request, mut take: impl FnMut(Answer)) -> Result<(), AskError> {
    let receive = |source| AskError::Receive {
        path: path.to_owned(),
        source,
    };
    let decode = |source| AskError::Decode {
        path: path.to_owned(),
        source,
    };
    let mut stream = BlockingStream::connect(path).map_err(|source| AskError::NoAgent {
        path: path.to_owned(),
        source,
    })?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(receive)?;
    let mut line = serde_json::to_vec(request).map_err(decode)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(receive)?;
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line.map_err(receive)?).map_err(decode)? {
            Answer::Done => return Ok(()),
            Answer::Refused(why) => return Err(AskError::Refused(why)),
            part => take(part),
        }
    }
    Err(receive(io::ErrorKind::UnexpectedEof.into()))
}

/// Serves until the task is dropped.
pub async fn serve(listener: UnixListener, controlled: Controlled) {
    attend_clients("control", listener, MAX_CLIENTS, |stream| {
        let controlled = controlled.clone();
        async move {
            let client = Client { stream };
            if let Err(error) = client.attend(&controlled).await {
                debug!(%error, "control socket: the client did not take its answer");
            }
        }
    })
    .await;
}

struct Client {
    stream: UnixStream,
}

impl Client {
    async fn attend(mut self, controlled: &Controlled) -> io::Result<()> {
        let end = match self.request().await? {
            Ok(request) => match self.answer(request, controlled).await? {
                Ok(()) => Answer::Done,
                Err(why) => Answer::Refused(why),
            },
            Err(error) => Answer::Refused(format!("not a request: {error}")),
        };
        self.send(&[end]).await?;
        self.stream.shutdown().await
    }

    async fn request(&mut self) -> io::Result<Result<Request, serde_json::Error>> {
        let mut line = Vec::new();
        let mut reader = tokio::io::BufReader::new(&mut self.stream).take(MAX_REQUEST);
        within_patience(reader.read_until(b'\n', &mut line)).await?;
        Ok(serde_json::from_slice(&line))
    }

    /// Sends all but the end of an answer; the inner error is for the operator.
    async fn answer(&mut self, request: Request, controlled: &Controlled) -> io::Result<Result<(), String>> {
        if request == Request::NodePlan {
            return self.plan(controlled).await;
        }
        let Some(speaker) = &controlled.speaker else {
            return Ok(Err("no BGP speaker is configured here".to_owned()));
        };
        match request {
            Request::BgpStatus => match speaker.status().await {
                Ok(status) => self.send(&[Answer::BgpStatus(status)]).await.map(Ok),
                Err(stopped) => Ok(Err(stopped.to_string())),
            },
            Request::BgpRoutes(filter) => self.send_routes(filter, speaker).await,
            Request::BgpRefresh { peer, family } => {
                Ok(match speaker.request_refresh(peer.clone(), family).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(format!(
                        "peer {peer:?} has no Established session that carries {family} and knows of route refresh"
                    )),
                    Err(stopped) => Err(stopped.to_string()),
                })
            }
            Request::NodePlan => Ok(Ok(())),
            Request::Plan => self.reload(ReloadMode::Plan, controlled).await,
            Request::Reload => self.reload(ReloadMode::Apply, controlled).await,
        }
    }

    async fn plan(&mut self, controlled: &Controlled) -> io::Result<Result<(), String>> {
        let Some(node) = &controlled.node else {
            return Ok(Err(
                "this is a speaker alone: it changes nothing on the node".to_owned()
            ));
        };
        let (answer, told) = oneshot::channel();
        let asked = node.send(Message::Plan(answer)).await.is_ok();
        match told.await {
            Ok(plan) if asked => self.send(&[Answer::NodePlan(plan)]).await.map(Ok),
            _ => Ok(Err("the agent is ending".to_owned())),
        }
    }

    async fn send_routes(
        &mut self,
        filter: RouteFilter,
        speaker: &BgpHandle,
    ) -> io::Result<Result<(), String>> {
        let mut left = match filter.limit {
            0 => usize::MAX,
            limit => limit,
        };
        let mut next = Some(RouteCursor::START);
        while let Some(cursor) = next
            && left > 0
        {
            let page = match speaker.routes(filter.clone(), cursor).await {
                Ok(page) => page,
                Err(stopped) => return Ok(Err(stopped.to_string())),
            };
            next = page.next;
            let answers: Vec<Answer> = page.routes.into_iter().take(left).map(Answer::BgpRoute).collect();
            left = left.saturating_sub(answers.len());
            self.send(&answers).await?;
        }
        Ok(Ok(()))
    }

    async fn reload(&mut self, mode: ReloadMode, controlled: &Controlled) -> io::Result<Result<(), String>> {
        let Some(reload) = &controlled.reload else {
            return Ok(Err(
                "this process reads its configuration only at its start".to_owned()
            ));
        };
        let (answer, told) = oneshot::channel();
        let asked = reload.send(ReloadRequest { mode, answer }).await.is_ok();
        match told.await {
            Ok(Ok(report)) if asked => self.send(&[Answer::Reload(report)]).await.map(Ok),
            Ok(Err(why)) => Ok(Err(why)),
            _ => Ok(Err("ending: the configuration is not read any more".to_owned())),
        }
    }

    async fn send(&mut self, answers: &[Answer]) -> io::Result<()> {
        let mut text = Vec::new();
        for answer in answers {
            serde_json::to_writer(&mut text, answer)?;
            text.push(b'\n');
        }
        within_patience(self.stream.write_all(&text)).await
    }
}

async fn within_patience<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
