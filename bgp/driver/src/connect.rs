//! Attempts to connect: one task each, bounded in time, that reports the stream or the error.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use calidris_bgp::session::ConnId;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::event::Event;
use crate::socket::SocketOptions;

/// How long an attempt may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Where to connect, and how.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) remote: SocketAddr,
    pub(crate) local: Option<IpAddr>,
    pub(crate) options: SocketOptions,
}

/// Starts an attempt; aborting the task ends it.
pub(crate) fn spawn(conn: ConnId, target: Target, events: mpsc::Sender<Event>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let result = match tokio::time::timeout(TIMEOUT, connect(&target)).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        // The owner is gone only when everything is over.
        let _ = events.send(Event::Connected(conn, result)).await;
    })
}

async fn connect(target: &Target) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(target.remote),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    target.options.apply_connecting(&socket)?;
    if let Some(local) = target.local {
        // Several peers may be reached from the same address.
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    TcpSocket::from_std_stream(socket.into())
        .connect(target.remote)
        .await
}
