//! The task that owns the speaker.

use tokio::sync::{mpsc, watch};

use crate::{Command, DriverConfig, Notice, StartError};

/// Opens the listening sockets and spawns the task.
pub(crate) async fn start(
    config: DriverConfig,
    mut inbox: mpsc::Receiver<Command>,
    notify: watch::Sender<Notice>,
) -> Result<(), StartError> {
    config.speaker.check()?;
    for address in &config.listen {
        tokio::net::TcpListener::bind(address)
            .await
            .map_err(|source| StartError::Listen {
                address: *address,
                source,
            })?;
    }
    tokio::spawn(async move {
        while let Some(command) = inbox.recv().await {
            drop(command);
            notify.send_replace(Notice {
                routes_changed: false,
                in_sync: true,
            });
        }
    });
    Ok(())
}
