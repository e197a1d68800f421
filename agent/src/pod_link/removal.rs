//! Removing a pair without waiting for the kernel to clear up after it.
//!
//! The kernel takes both ends, their addresses and their routes away at once (0.5 ms), says so to whoever listens
//! (`RTM_DELLINK`), and only then waits for everybody who may still look at the memory (`rcu_barrier` in
//! `netdev_run_todo`, 15 to 25 ms), with the caller held but without the lock of the network configuration. So the deletion
//! is sent by a thread of its own, and [`delete`] returns when the notification is there: from then on nobody can find,
//! use or be hindered by either end.
//!
//! Invariant: at most [`MAX_AFTERWORK`] such threads; beyond that the caller waits for all of the deletion itself.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{self, Timeout};
use socket2::{SockFilter, SockRef};

use super::pod_end;
use crate::kernel::KernelError;
use crate::kernel::netlink::{NetlinkSocket, Request};

/// Deletions that may be in their afterwork at a time.
const MAX_AFTERWORK: usize = 64;
/// `RTMGRP_LINK` of the kernel's `linux/rtnetlink.h`.
const GROUP_LINK: u32 = 1;
/// How long the notification is waited for before the deletion itself is asked how it went: only a refused one has none.
const LOOK: Duration = Duration::from_millis(2);
/// Larger than any notification about links.
const RECEIVE_BYTES: usize = 64 * 1024;

const RTM_DELLINK: u16 = 17;
/// Offsets in the kernel's `struct nlmsghdr`, and in the `struct ifinfomsg` behind it.
const TYPE: usize = 4;
const IFI_FAMILY: usize = 16;
const IFI_INDEX: usize = 16 + 4;

static AFTERWORK: AtomicUsize = AtomicUsize::new(0);

/// Deletes the link with this index, and with it the other end.
pub(super) fn delete(host: &mut NetlinkSocket, name: &str, index: u32) -> Result<(), KernelError> {
    let Some(afterwork) = Afterwork::begin() else {
        return send(host, name, index);
    };
    // Before the deletion, so that its notification is not missed. Without one the deletion is waited for.
    let Ok(notifications) = listen(index) else {
        return send(host, name, index);
    };
    let (done, outcome) = channel();
    let mut socket = NetlinkSocket::open()?;
    let link = name.to_owned();
    std::thread::Builder::new()
        .name("link-removal".to_owned())
        .spawn(move || {
            let _afterwork = afterwork;
            // Nobody listens any more if the notification came first.
            let _ = done.send(send(&mut socket, &link, index));
        })
        .map_err(|source| KernelError::Io {
            action: format!("start a thread to delete link {name}"),
            source,
        })?;
    wait(&notifications, &outcome, index)
}

/// A place among the deletions in their afterwork, given up when dropped.
struct Afterwork;

impl Afterwork {
    fn begin() -> Option<Self> {
        let before = AFTERWORK.fetch_add(1, Ordering::Relaxed);
        let place = Self;
        (before < MAX_AFTERWORK).then_some(place)
    }
}

impl Drop for Afterwork {
    fn drop(&mut self) {
        AFTERWORK.fetch_sub(1, Ordering::Relaxed);
    }
}

fn send(socket: &mut NetlinkSocket, name: &str, index: u32) -> Result<(), KernelError> {
    let request = Request {
        message: pod_end::delete(index),
        flags: 0,
    };
    socket.request(request, &format!("delete link {name}"))
}

/// A socket that hears when the link with this index goes, in the namespace of this thread.
fn listen(index: u32) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    // Before it hears anything: of many links that go at once, each wakes its own listener only.
    SockRef::from(&socket).attach_filter(&only_end_of(index))?;
    socket.bind(&SocketAddr::new(0, GROUP_LINK))?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(LOOK))?;
    Ok(socket)
}

/// A filter (linux/filter.h) that lets notifications pass whose first message is `RTM_DELLINK` of this index. It reads fields
/// as if they were in network byte order.
fn only_end_of(index: u32) -> [SockFilter; 6] {
    // The kernel's numbers of opcodes have 16 bits, libc's names for their parts more.
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, if_not, k| SockFilter::new(code, 0, if_not, k);
    [
        step(LOAD_HALF, 0, TYPE as u32),
        step(
            JUMP_IF_EQUAL,
            3,
            u16::from_be_bytes(RTM_DELLINK.to_ne_bytes()).into(),
        ),
        step(LOAD_WORD, 0, IFI_INDEX as u32),
        step(JUMP_IF_EQUAL, 1, u32::from_be_bytes(index.to_ne_bytes())),
        step(RETURN, 0, u32::MAX),
        step(RETURN, 0, 0),
    ]
}

fn wait(
    notifications: &Socket,
    outcome: &Receiver<Result<(), KernelError>>,
    index: u32,
) -> Result<(), KernelError> {
    let gone = || KernelError::Io {
        action: format!("delete link #{index}"),
        source: io::Error::other("the thread that deletes has panicked"),
    };
    let mut buffer = vec![0; RECEIVE_BYTES];
    loop {
        match rustix::net::recv(
            notifications,
            buffer.as_mut_slice(),
            rustix::net::RecvFlags::empty(),
        ) {
            Ok((_, length)) => {
                if says_gone(buffer.get(..length).unwrap_or_default(), index) {
                    return Ok(());
                }
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => match outcome.try_recv() {
                Ok(result) => return result,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err(gone()),
            },
            // Notifications were lost: the deletion's own answer is as good, and later.
            Err(_) => return outcome.recv().unwrap_or_else(|_| Err(gone())),
        }
    }
}

/// Whether the datagram, one notification or several, says that the link with this index is gone.
fn says_gone(datagram: &[u8], index: u32) -> bool {
    let mut rest = datagram;
    while let Some(length) = word(rest, 0).and_then(|length| usize::try_from(length).ok()) {
        let kind = rest
            .get(TYPE..TYPE + 2)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u16::from_ne_bytes);
        // Of another family than 0 it says that the link has left a bridge.
        let is_of_link = rest.get(IFI_FAMILY) == Some(&0);
        if kind == Some(RTM_DELLINK) && is_of_link && word(rest, IFI_INDEX) == Some(index) {
            return true;
        }
        // Messages are aligned to four bytes. A length of nothing would go round for ever.
        rest = length
            .max(1)
            .checked_next_multiple_of(4)
            .and_then(|next| rest.get(next..))
            .unwrap_or_default();
    }
    false
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A notification: header, then `struct ifinfomsg` with this index.
    fn notification(kind: u16, index: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(32_u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([0; 4]);
        bytes.extend(index.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes
    }

    #[test]
    fn only_the_end_of_the_link_itself_counts() {
        const RTM_NEWLINK: u16 = 16;
        assert!(says_gone(&notification(RTM_DELLINK, 7), 7));
        assert!(says_gone(
            &[notification(RTM_NEWLINK, 7), notification(RTM_DELLINK, 7)].concat(),
            7
        ));
        assert!(!says_gone(&notification(RTM_DELLINK, 8), 7));
        assert!(!says_gone(&notification(RTM_NEWLINK, 7), 7));
        let mut of_bridge = notification(RTM_DELLINK, 7);
        of_bridge[IFI_FAMILY] = 7;
        assert!(!says_gone(&of_bridge, 7));
        for garbage in [
            vec![],
            vec![0; 40],
            vec![0xff; 40],
            notification(RTM_DELLINK, 7)[..18].to_vec(),
        ] {
            assert!(!says_gone(&garbage, 7), "{garbage:?}");
        }
    }
}
