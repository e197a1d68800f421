//! A netlink socket that hears multicast groups, and reads what comes in bursts: what belongs together comes together.
//!
//! When the kernel drops notifications because nobody reads them in time (`ENOBUFS`), or there is no end of them, the burst
//! says that some were lost.

use std::io;
use std::time::Duration;

use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use tracing::warn;

/// Larger than any notification.
const DATAGRAM_BYTES: usize = 64 * 1024;
/// Notifications read in a burst, at most.
const MAX_READS: usize = 4096;

/// A socket that hears the notifications of the process's network namespace.
pub(super) struct Notifications {
    socket: TokioSocket,
    datagram: Vec<u8>,
}

/// Whether all of a burst was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// All of it.
    Whole,
    /// Some notifications were lost.
    Part,
}

impl Notifications {
    /// Opens the socket: from now on nothing is missed. `waiting_bytes` is the room for what is not read yet; the kernel
    /// doubles it. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses, or has no such protocol.
    pub(super) fn open(protocol: isize, groups: u32, waiting_bytes: usize) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_ref().set_rx_buf_sz(waiting_bytes)?;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self {
            socket,
            datagram: Vec::with_capacity(DATAGRAM_BYTES),
        })
    }

    /// Waits for a notification, gathers what comes within `gathering` after it, and hands each datagram to `take`.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub(super) async fn burst(
        &mut self,
        gathering: Duration,
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<Heard> {
        let mut heard = match self.socket.recv_from_full().await {
            Ok((datagram, _)) => {
                take(&datagram);
                Heard::Whole
            }
            Err(error) => passing(error)?,
        };
        tokio::time::sleep(gathering).await;
        for _ in 0..MAX_READS {
            self.datagram.clear();
            match self.socket.socket_ref().recv_from(&mut self.datagram, 0) {
                Ok(_) => take(&self.datagram),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(heard),
                Err(error) => {
                    if passing(error)? == Heard::Part {
                        heard = Heard::Part;
                    }
                }
            }
        }
        Ok(Heard::Part)
    }
}

/// What an error means that does not end the socket.
fn passing(error: io::Error) -> io::Result<Heard> {
    if error.kind() == io::ErrorKind::Interrupted {
        return Ok(Heard::Whole);
    }
    if error.raw_os_error() == Some(libc::ENOBUFS) {
        warn!("the kernel dropped notifications; reading back");
        return Ok(Heard::Part);
    }
    Err(error)
}
