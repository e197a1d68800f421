//! One TCP connection: a task that reads into chunks of bounded size, and one that writes what it is given.
//!
//! The reader waits while the owner's inbox is full; the writer holds one chunk and the last words. Neither knows BGP.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use calidris_bgp::session::ConnId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::event::Event;

/// Octets read at a time.
const READ: usize = 64 * 1024;

/// How long last words may take.
const LINGER: Duration = Duration::from_secs(2);

/// What the writer is given.
#[derive(Debug)]
enum Outgoing {
    /// Write this and report it.
    Bytes(Vec<u8>),
    /// Write this, then close.
    LastWords(Vec<u8>),
}

/// The owner's side of a connection. Dropped without [`Handle::close`] it cuts the connection off.
#[derive(Debug)]
pub(crate) struct Handle {
    /// The same socket once more, for options that change while it is in use.
    socket: Option<OwnedFd>,
    writer: mpsc::Sender<Outgoing>,
    unwritten: usize,
    reading: AbortOnDrop,
    writing: AbortOnDrop,
}

impl Handle {
    /// Whether everything given is written.
    pub(crate) fn is_idle(&self) -> bool {
        self.unwritten == 0
    }

    /// The socket.
    pub(crate) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// `count` octets of what was given are written.
    pub(crate) fn note_written(&mut self, count: usize) {
        self.unwritten = self.unwritten.saturating_sub(count);
    }

    /// Gives a chunk to write, when idle.
    pub(crate) fn send(&mut self, bytes: Vec<u8>) {
        self.unwritten = bytes.len();
        // There is always room for one chunk; closed means that the writer has failed, which the reader sees too.
        let _ = self.writer.try_send(Outgoing::Bytes(bytes));
    }

    /// Writes `last_words` behind what was given before and closes, within a bounded time; ends when that is done.
    pub(crate) fn close(self, last_words: Vec<u8>) -> JoinHandle<()> {
        let Self {
            writer,
            reading,
            mut writing,
            ..
        } = self;
        drop(reading);
        let _ = writer.try_send(Outgoing::LastWords(last_words));
        tokio::spawn(async move {
            // The connection is over whether or not the peer listens.
            let _ = tokio::time::timeout(LINGER, &mut writing.0).await;
        })
    }
}

#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts both tasks.
pub(crate) fn spawn(conn: ConnId, stream: TcpStream, events: mpsc::Sender<Event>) -> Handle {
    // Without a second descriptor, when there are none left, options stay as they are.
    let socket = stream.as_fd().try_clone_to_owned().ok();
    let (read_half, write_half) = stream.into_split();
    let (writer, outgoing) = mpsc::channel(2);
    let reading = AbortOnDrop(tokio::spawn(read(conn, read_half, events.clone())));
    let writing = AbortOnDrop(tokio::spawn(write(conn, write_half, outgoing, events)));
    Handle {
        socket,
        writer,
        unwritten: 0,
        reading,
        writing,
    }
}

async fn read(conn: ConnId, mut stream: OwnedReadHalf, events: mpsc::Sender<Event>) {
    let mut buffer = vec![0; READ];
    loop {
        let event = match stream.read(&mut buffer).await {
            Ok(0) => Event::Lost(conn, "closed by the peer".to_owned()),
            Ok(count) => Event::Data(conn, buffer.get(..count).unwrap_or_default().to_vec()),
            Err(error) => Event::Lost(conn, error.to_string()),
        };
        let last = matches!(event, Event::Lost(..));
        if events.send(event).await.is_err() || last {
            return;
        }
    }
}

async fn write(
    conn: ConnId,
    mut stream: OwnedWriteHalf,
    mut outgoing: mpsc::Receiver<Outgoing>,
    events: mpsc::Sender<Event>,
) {
    while let Some(next) = outgoing.recv().await {
        match next {
            Outgoing::Bytes(bytes) => {
                // Reported piece by piece: the send hold timer is about progress.
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    // A failed write is seen by the reader too, which reports it.
                    let Ok(count @ 1..) = stream.write(rest).await else {
                        return;
                    };
                    rest = rest.get(count..).unwrap_or_default();
                    if events.send(Event::Written(conn, count)).await.is_err() {
                        return;
                    }
                }
            }
            Outgoing::LastWords(bytes) => {
                if stream.write_all(&bytes).await.is_ok() {
                    let _ = stream.shutdown().await;
                }
                return;
            }
        }
    }
}
