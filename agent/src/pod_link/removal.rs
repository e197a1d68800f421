//! Removing pairs without waiting for the kernel to clear up after them.
//!
//! The kernel takes both ends, their addresses and their routes away at once (0.5 ms), says so to whoever listens
//! (`RTM_DELLINK`), and only then waits for everybody who may still look at the memory (`rcu_barrier` in
//! `netdev_run_todo`, 15 to 25 ms), with the caller held but without the lock of the network configuration. So the deletion
//! is sent by another thread, and [`Deleter::delete`] returns when the notification is there: from then on nobody can find,
//! use or be hindered by either end.
//!
//! Several links go with one message, by their link group, and share what the kernel waits for: a third less processor time.
//!
//! Invariants: at most [`MAX_AFTERWORK`] threads are held so; beyond that the caller waits for all of the deletion itself. A link
//! is in [`GROUP`] only on its way out, so that it is right whoever deletes the group.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{self, Timeout};
use socket2::{SockFilter, SockRef};
use tokio::runtime::Handle;

use crate::kernel::KernelError;
use crate::kernel::netlink::{NetlinkSocket, Request};
use crate::ours::GROUP_ON_ITS_WAY_OUT as GROUP;

/// Deletions that may be in their afterwork at a time.
const MAX_AFTERWORK: usize = 64;
/// `RTMGRP_LINK` of the kernel's `linux/rtnetlink.h`.
const NOTIFICATIONS_OF_LINKS: u32 = 1;
/// How long notifications are waited for before the deletion itself is asked how it went: only a refused one has none.
const LOOK: Duration = Duration::from_millis(10);
/// Larger than any notification about links.
const RECEIVE_BYTES: usize = 32 * 1024;

const RTM_DELLINK: u16 = 17;
/// Offsets in the kernel's `struct nlmsghdr`, and in the `struct ifinfomsg` behind it.
const TYPE: usize = 4;
const IFI_FAMILY: usize = 16;
const IFI_INDEX: usize = 16 + 4;

static AFTERWORK: AtomicUsize = AtomicUsize::new(0);

/// Deletes links of the network namespace that it was made in.
pub(super) struct Deleter {
    host: NetlinkSocket,
    /// Hears when links go; opened once, since its filter is compiled by the kernel. Without it deletions are waited for.
    notifications: Option<Socket>,
    /// Whose blocking threads, which are in the same namespace, do the waiting.
    runtime: Handle,
}

impl Deleter {
    /// One for the namespace of this thread.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub(super) fn open(runtime: Handle) -> Result<Self, KernelError> {
        Ok(Self {
            host: NetlinkSocket::open()?,
            notifications: listen().ok(),
            runtime,
        })
    }

    /// The socket that requests go through.
    pub(super) fn host(&mut self) -> &mut NetlinkSocket {
        &mut self.host
    }

    /// Deletes the links with these indexes, and with them the other ends. Whether each was there; in their order.
    pub(super) fn delete(&mut self, indexes: &[u32]) -> Vec<Result<bool, KernelError>> {
        let (marked, request) = match indexes {
            [] => return Vec::new(),
            [index] => (vec![Ok(true)], of_link(*index)),
            _ => (mark(&mut self.host, indexes), of_group()),
        };
        let doomed: BTreeSet<u32> = indexes
            .iter()
            .zip(&marked)
            .filter(|(_, marked)| matches!(marked, Ok(true)))
            .map(|(index, _)| *index)
            .collect();
        let outcome = self.delete_doomed(doomed, request);
        marked
            .into_iter()
            .map(|marked| match (marked, &outcome) {
                (Ok(true), Outcome::Done(was_there)) => Ok(*was_there),
                (Ok(true), Outcome::Failed(error)) => Err(error.repeated()),
                (marked, _) => marked,
            })
            .collect()
    }

    fn delete_doomed(&mut self, doomed: BTreeSet<u32>, request: Request) -> Outcome {
        let (Some(afterwork), Some(notifications)) = (Afterwork::begin(), &self.notifications) else {
            return send(&mut self.host, request).into();
        };
        forget_what_was_heard(notifications);
        match delete_meanwhile(&self.runtime, afterwork, request) {
            Ok(outcome) => wait(notifications, &outcome, doomed),
            Err(error) => Outcome::Failed(error),
        }
    }
}

/// Deletes one link, and waits until the kernel has cleared up. Whether it was there.
pub(super) fn delete_and_wait(host: &mut NetlinkSocket, index: u32) -> Result<bool, KernelError> {
    match Outcome::from(send(host, of_link(index))) {
        Outcome::Done(was_there) => Ok(was_there),
        Outcome::Failed(error) => Err(error),
    }
}

/// How the deletion of what was marked went.
enum Outcome {
    /// It is gone. False: it went by itself, as with the pod's namespace.
    Done(bool),
    Failed(KernelError),
}

impl From<Result<(), KernelError>> for Outcome {
    fn from(result: Result<(), KernelError>) -> Self {
        match result {
            Ok(()) => Self::Done(true),
            Err(error) if error.errno() == Some(libc::ENODEV) => Self::Done(false),
            Err(error) => Self::Failed(error),
        }
    }
}

/// Puts the links into the group. Whether each was there.
fn mark(host: &mut NetlinkSocket, indexes: &[u32]) -> Vec<Result<bool, KernelError>> {
    let requests: Vec<Request> = indexes
        .iter()
        .map(|index| {
            let mut message = LinkMessage::default();
            message.header.index = *index;
            message.attributes.push(LinkAttribute::Group(GROUP));
            Request {
                message: RouteNetlinkMessage::SetLink(message),
                flags: 0,
            }
        })
        .collect();
    let action = |position: usize| format!("mark link #{:?} for deletion", indexes.get(position));
    let marked = host.batch(&requests, action).into_iter();
    marked
        .map(|marked| match marked {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        })
        .collect()
}

fn of_link(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request {
        message: RouteNetlinkMessage::DelLink(message),
        flags: 0,
    }
}

fn of_group() -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(GROUP));
    Request {
        message: RouteNetlinkMessage::DelLink(message),
        flags: 0,
    }
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

fn send(socket: &mut NetlinkSocket, request: Request) -> Result<(), KernelError> {
    socket.request(request, "delete links")
}

/// Deletes in another thread, and says there how it went.
fn delete_meanwhile(
    runtime: &Handle,
    afterwork: Afterwork,
    request: Request,
) -> Result<Receiver<Result<(), KernelError>>, KernelError> {
    let mut socket = NetlinkSocket::open()?;
    let (done, outcome) = channel();
    runtime.spawn_blocking(move || {
        let _afterwork = afterwork;
        // Nobody listens any more if the notifications came first.
        let _ = done.send(send(&mut socket, request));
    });
    Ok(outcome)
}

/// What is there is about links that went before, with their pods' namespaces for example.
fn forget_what_was_heard(notifications: &Socket) {
    let mut nothing = [0; 1];
    let flags = rustix::net::RecvFlags::DONTWAIT;
    // An overrun is told once, and is of no interest either.
    while matches!(
        rustix::net::recv(notifications, nothing.as_mut_slice(), flags),
        Ok(_) | Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR)
    ) {}
}

/// A socket that hears when links go, in the namespace of this thread.
fn listen() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    // Before it hears anything: of all that is told of links this alone counts.
    SockRef::from(&socket).attach_filter(&only_ends())?;
    socket.bind(&SocketAddr::new(0, NOTIFICATIONS_OF_LINKS))?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(LOOK))?;
    Ok(socket)
}

/// A filter (linux/filter.h) that lets notifications pass whose first message is `RTM_DELLINK`. It reads fields as if they
/// were in network byte order.
fn only_ends() -> [SockFilter; 4] {
    // The kernel's numbers of opcodes have 16 bits, libc's names for their parts more.
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, if_not, k| SockFilter::new(code, 0, if_not, k);
    [
        step(LOAD_HALF, 0, TYPE as u32),
        step(
            JUMP_IF_EQUAL,
            1,
            u16::from_be_bytes(RTM_DELLINK.to_ne_bytes()).into(),
        ),
        step(RETURN, 0, u32::MAX),
        step(RETURN, 0, 0),
    ]
}

/// Waits until all of them are gone, or the deletion has an answer.
fn wait(
    notifications: &Socket,
    outcome: &Receiver<Result<(), KernelError>>,
    mut doomed: BTreeSet<u32>,
) -> Outcome {
    let gone = || {
        Outcome::Failed(KernelError::Io {
            action: "delete links".to_owned(),
            source: io::Error::other("the thread that deletes has panicked"),
        })
    };
    let mut buffer = vec![0; RECEIVE_BYTES];
    while !doomed.is_empty() {
        match rustix::net::recv(
            notifications,
            buffer.as_mut_slice(),
            rustix::net::RecvFlags::empty(),
        ) {
            Ok((_, length)) => strike_gone(buffer.get(..length).unwrap_or_default(), &mut doomed),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => match outcome.try_recv() {
                Ok(result) => return result.into(),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return gone(),
            },
            // Notifications were lost: the deletion's own answer is as good, and later.
            Err(_) => return outcome.recv().map_or_else(|_| gone(), Outcome::from),
        }
    }
    Outcome::Done(true)
}

/// Strikes out the links that the datagram, one notification or several, says are gone.
fn strike_gone(datagram: &[u8], links: &mut BTreeSet<u32>) {
    let mut rest = datagram;
    while let Some(length) = word(rest, 0).and_then(|length| usize::try_from(length).ok()) {
        let kind = rest
            .get(TYPE..TYPE + 2)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u16::from_ne_bytes);
        // Of another family than 0 it says that the link has left a bridge.
        let is_of_link = rest.get(IFI_FAMILY) == Some(&0);
        if kind == Some(RTM_DELLINK)
            && is_of_link
            && let Some(index) = word(rest, IFI_INDEX)
        {
            links.remove(&index);
        }
        // Messages are aligned to four bytes. A length of nothing would go round for ever.
        rest = length
            .max(1)
            .checked_next_multiple_of(4)
            .and_then(|next| rest.get(next..))
            .unwrap_or_default();
    }
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

    /// Those of 7 and 8 that are left.
    fn left(datagram: &[u8]) -> Vec<u32> {
        let mut links = BTreeSet::from([7, 8]);
        strike_gone(datagram, &mut links);
        links.into_iter().collect()
    }

    #[test]
    fn only_the_end_of_a_link_itself_counts() {
        const RTM_NEWLINK: u16 = 16;
        assert_eq!(left(&notification(RTM_DELLINK, 7)), [8]);
        let both = [
            notification(RTM_NEWLINK, 7),
            notification(RTM_DELLINK, 7),
            notification(RTM_DELLINK, 8),
        ];
        assert_eq!(left(&both.concat()), [0; 0]);
        assert_eq!(left(&notification(RTM_DELLINK, 9)), [7, 8]);
        assert_eq!(left(&notification(RTM_NEWLINK, 7)), [7, 8]);
        let mut of_bridge = notification(RTM_DELLINK, 7);
        of_bridge[IFI_FAMILY] = 7;
        assert_eq!(left(&of_bridge), [7, 8]);
        for garbage in [
            vec![],
            vec![0; 40],
            vec![0xff; 40],
            notification(RTM_DELLINK, 7)[..18].to_vec(),
        ] {
            assert_eq!(left(&garbage), [7, 8], "{garbage:?}");
        }
    }
}
