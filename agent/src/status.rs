//! The status socket: whoever connects is sent the [`StatusReport`] as JSON, and the connection closes.
//!
//! Invariants: the server keeps no state and sends from the latest snapshots; at most eight clients at a time,
//! more wait in the kernel's backlog; a client that does not read is dropped after five seconds.

use std::future::Future;
use std::io::{self, Read as _};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tracing::debug;

use crate::listen::attend_clients;
use crate::report::StatusReport;

/// Clients served at a time.
const MAX_CLIENTS: usize = 8;
/// How long a client may take to read its answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long `calidris status` waits for the agent.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest report `calidris status` reads, in bytes.
const MAX_REPORT: u64 = 256 << 20;

/// Why there is no status to show.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody listens.
    #[error("no agent answers at {}: {source}; is it running, with this status.socket in its configuration?", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer did not come.
    #[error("{}: the agent did not answer: {source}", path.display())]
    Receive {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer is not one.
    #[error("{}: the answer is not a status report: {source}; are agent and command of one version?", path.display())]
    Decode {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Asks the agent at `path`.
///
/// # Errors
/// See [`FetchError`].
pub fn fetch(path: &Path) -> Result<StatusReport, FetchError> {
    let receive = |source| FetchError::Receive {
        path: path.to_owned(),
        source,
    };
    let stream = BlockingStream::connect(path).map_err(|source| FetchError::NoAgent {
        path: path.to_owned(),
        source,
    })?;
    stream.set_read_timeout(Some(FETCH_TIMEOUT)).map_err(receive)?;
    let mut text = Vec::new();
    stream.take(MAX_REPORT).read_to_end(&mut text).map_err(receive)?;
    serde_json::from_slice(&text).map_err(|source| FetchError::Decode {
        path: path.to_owned(),
        source,
    })
}

/// Serves `report` until the task is dropped.
pub async fn serve<Report, Answer>(listener: UnixListener, report: Report)
where
    Report: Fn() -> Answer + Send + Sync + 'static,
    Answer: Future<Output = StatusReport> + Send,
{
    let report = Arc::new(report);
    attend_clients("status", listener, MAX_CLIENTS, |stream| {
        let report = Arc::clone(&report);
        async move {
            let report = report().await;
            let sent = tokio::time::timeout(SEND_TIMEOUT, send(stream, &report)).await;
            if let Err(error) = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                debug!(%error, "status socket: the client did not take its answer");
            }
        }
    })
    .await;
}

async fn send(mut stream: UnixStream, report: &StatusReport) -> io::Result<()> {
    let text = serde_json::to_vec(report)?;
    stream.write_all(&text).await?;
    stream.shutdown().await
}
