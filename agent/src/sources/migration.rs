//! What there is to tell of workloads that migrate to this node: that one runs here now, and that the others have had their time to
//! hear of it.
//!
//! A virtual machine that resumes says so by gratuitous ARP (RFC 5227 §3) or, as QEMU does, by RARP (RFC 903). Where that is not
//! heard, the end of the migration says it.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{LinkAddr, recvfrom};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, info, warn};

use super::interface_name;
use crate::inbox::Message;
use crate::model::{Input, MigrationPhase};

/// linux/if_ether.h
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_RARP: u16 = 0x8035;
/// Larger than a frame of either.
const FRAME_BYTES: usize = 128;

/// By host interface.
type Phases = BTreeMap<String, MigrationPhase>;

/// Follows `phases` until the node's thread is gone. `settle_time` is how long routes stay preferred after a migration.
pub async fn run(mut phases: watch::Receiver<Phases>, settle_time: Duration, inbox: mpsc::Sender<Message>) {
    let mut listener: Option<Listener> = None;
    let mut timers = Timers::default();
    loop {
        let now = phases.borrow_and_update().clone();
        let is_awaited = |name: &str| now.get(name) == Some(&MigrationPhase::Awaited);
        timers.follow(&now, settle_time);
        if !now.values().any(|phase| *phase == MigrationPhase::Awaited) {
            listener = None;
        } else if listener.is_none() {
            listener = Listener::open()
                .inspect_err(|error| warn!(%error, "cannot listen for workloads that migrate here"))
                .ok();
        }
        let input = tokio::select! {
            changed = phases.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            heard = hear(listener.as_ref()) => match heard {
                Ok(name) if is_awaited(&name) => {
                    info!(interface = name, "a workload that migrates here runs here now");
                    Input::MigratedHere(name)
                }
                Ok(_) => continue,
                Err(error) => {
                    debug!(%error, "listening for workloads that migrate here");
                    listener = None;
                    continue;
                }
            },
            Some(Ok(name)) = timers.running.join_next() => {
                timers.handles.remove(&name);
                Input::MigrationSettled(name)
            }
        };
        if inbox.send(Message::Input(input)).await.is_err() {
            return;
        }
    }
}

/// The next interface on which one said that it is there. Without a listener: never.
async fn hear(listener: Option<&Listener>) -> io::Result<String> {
    match listener {
        Some(listener) => listener.next().await,
        None => std::future::pending().await,
    }
}

#[derive(Default)]
struct Timers {
    running: JoinSet<String>,
    handles: BTreeMap<String, AbortHandle>,
}

impl Timers {
    /// One for each workload that settles, from when it began to.
    fn follow(&mut self, phases: &Phases, settle_time: Duration) {
        let is_settling = |name: &String| phases.get(name) == Some(&MigrationPhase::Settling);
        self.handles.retain(|name, handle| {
            let stays = is_settling(name);
            if !stays {
                handle.abort();
            }
            stays
        });
        for name in phases.keys().filter(|name| is_settling(name)) {
            let running = &mut self.running;
            self.handles.entry(name.clone()).or_insert_with(|| {
                let name = name.clone();
                running.spawn(async move {
                    tokio::time::sleep(settle_time).await;
                    name
                })
            });
        }
    }
}

/// Hears ARP and RARP on all interfaces.
struct Listener {
    sockets: [AsyncFd<OwnedFd>; 2],
}

impl Listener {
    #[expect(
        deprecated,
        reason = "an OwnedFd keeps its descriptor as long as it lives; what replaces this is unsafe"
    )]
    fn open() -> io::Result<Self> {
        let open = |protocol: u16| -> io::Result<AsyncFd<OwnedFd>> {
            let protocol = NonZeroU32::new(protocol.to_be().into()).map(Protocol::from_raw);
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            AsyncFd::new(socket_with(
                AddressFamily::PACKET,
                SocketType::RAW,
                flags,
                protocol,
            )?)
        };
        Ok(Self {
            sockets: [open(ETH_P_ARP)?, open(ETH_P_RARP)?],
        })
    }

    async fn next(&self) -> io::Result<String> {
        let [arp, rarp] = &self.sockets;
        tokio::select! {
            name = next(arp) => name,
            name = next(rarp) => name,
        }
    }
}

async fn next(socket: &AsyncFd<OwnedFd>) -> io::Result<String> {
    loop {
        let mut ready = socket.readable().await?;
        let mut frame = [0; FRAME_BYTES];
        let received = ready.try_io(|socket| {
            let received = recvfrom::<LinkAddr>(socket.get_ref().as_raw_fd(), &mut frame);
            received.map_err(io::Error::from)
        });
        let (length, from) = match received {
            Ok(received) => received?,
            Err(_would_block) => continue,
        };
        let index = from.and_then(|from| u32::try_from(from.ifindex()).ok());
        if is_announcement(frame.get(..length).unwrap_or_default())
            && let Some(name) = index.and_then(interface_name)
        {
            return Ok(name);
        }
    }
}

/// Whether an Ethernet frame is gratuitous ARP (its sender's and its target's protocol address are one), or RARP.
fn is_announcement(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some(kind) if kind == ETH_P_RARP.to_be_bytes() => true,
        Some(kind) if kind == ETH_P_ARP.to_be_bytes() => {
            let (sender, target) = (frame.get(28..32), frame.get(38..42));
            sender.is_some() && sender == target && sender != Some(&[0; 4])
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u16, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0xff; 12];
        frame.extend(kind.to_be_bytes());
        // Ethernet and IPv4, a request.
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend([2, 0, 0, 0, 0, 1]);
        frame.extend(sender);
        frame.extend([0; 6]);
        frame.extend(target);
        frame
    }

    #[test]
    fn only_who_speaks_of_itself_announces_itself() {
        let own = [10, 65, 0, 2];
        assert!(is_announcement(&frame(ETH_P_ARP, own, own)));
        assert!(is_announcement(&frame(ETH_P_RARP, [0; 4], [0; 4])));
        assert!(
            !is_announcement(&frame(ETH_P_ARP, own, [169, 254, 1, 1])),
            "it asks"
        );
        assert!(!is_announcement(&frame(ETH_P_ARP, [0; 4], [0; 4])));
        assert!(!is_announcement(&frame(0x0800, own, own)));
        for length in 0..42 {
            assert!(
                !is_announcement(&frame(ETH_P_ARP, own, own)[..length]),
                "{length}"
            );
        }
    }
}
