//! Moves contract messages over a unix stream socket, blocking, each exchange within a time limit.
//!
//! Invariants: no call blocks longer than its `timeout`, however slowly the other side drips bytes; at most one
//! descriptor is accepted with a request, it is close-on-exec, and it must be of the kernel's namespace file system.
//! Both sides are here: [`call`] for the plugin, [`read_request`] and [`write_reply`] for the agent. An asynchronous
//! agent runs them where blocking is allowed.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::contract::{ContractError, HEADER_LENGTH, Operation, Reply, Request, Step, body_length};

/// `NSFS_MAGIC` of the kernel's `linux/magic.h`: the file system whose files are namespaces.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// A request and the namespace that came with it.
#[derive(Debug)]
pub struct Received {
    /// The request.
    pub request: Request,
    /// The container's network namespace: always there for ADD and CHECK, for DEL if it still exists.
    pub netns: Option<OwnedFd>,
}

/// The plugin's side: connects to the agent at `path`, sends `request` and `netns`, waits for the reply.
///
/// # Errors
/// Any [`ContractError`]; `Connect` with `NotFound` or `ConnectionRefused` means that no agent is there.
pub fn call(
    path: &Path,
    request: &Request,
    netns: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> Result<Reply, ContractError> {
    let deadline = Deadline::after(timeout);
    let message = request.encode()?;
    let stream = connect(path, &deadline)?;
    send(&stream, &message, netns, &deadline)?;
    Reply::decode(&receive_body(
        &stream,
        receive_header(&stream, &deadline)?,
        &deadline,
    )?)
}

/// The agent's side, first half: receives one request.
///
/// # Errors
/// Any [`ContractError`]; answer with [`Reply::to_unreadable_request`].
pub fn read_request(stream: &UnixStream, timeout: Duration) -> Result<Received, ContractError> {
    let deadline = Deadline::after(timeout);
    let (header, netns) = receive_header_with_descriptor(stream, &deadline)?;
    let request = Request::decode(&receive_body(stream, header, &deadline)?)?;
    match (&request.operation, &netns) {
        (Operation::Add(_) | Operation::Check(_), None) => Err(ContractError::Descriptor("missing")),
        (Operation::Status | Operation::Gc { .. }, Some(_)) => Err(ContractError::Descriptor("superfluous")),
        _ => Ok(Received { request, netns }),
    }
}

/// Whether a whole request has arrived, as it has as a rule when the connection is accepted: [`read_request`] does not block
/// then.
pub fn has_request(stream: &UnixStream) -> bool {
    let mut header = [0; HEADER_LENGTH];
    let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let is_header_there = rustix::net::recv(stream, header.as_mut_slice(), peek)
        .is_ok_and(|(length, _)| length == HEADER_LENGTH);
    let arrived = rustix::io::ioctl_fionread(stream).unwrap_or_default();
    is_header_there
        && body_length(header)
            .is_ok_and(|body| u64::try_from(HEADER_LENGTH + body).is_ok_and(|length| arrived >= length))
}

/// The agent's side, second half: sends the reply.
///
/// # Errors
/// `TooLong`, `TimedOut`, `Io` (the plugin has gone: undo an ADD).
pub fn write_reply(stream: &UnixStream, reply: &Reply, timeout: Duration) -> Result<(), ContractError> {
    send(stream, &reply.encode()?, None, &Deadline::after(timeout))
}

/// Whether `file` belongs to the kernel's namespace file system.
pub fn is_namespace(file: BorrowedFd<'_>) -> bool {
    // The type of `f_type` differs between architectures; the value fits all of them.
    rustix::fs::fstatfs(file)
        .is_ok_and(|stat| u64::try_from(stat.f_type).is_ok_and(|magic| magic == NSFS_MAGIC))
}

/// The moment at which an exchange has to be over.
struct Deadline {
    at: Instant,
}

impl Deadline {
    fn after(timeout: Duration) -> Self {
        Self {
            at: now() + timeout.min(crate::spec::MAX_TIMEOUT),
        }
    }

    /// What is left, for a socket option: never zero, which the kernel takes as "for ever".
    fn left(&self, step: Step) -> Result<Duration, ContractError> {
        match self.at.saturating_duration_since(now()) {
            Duration::ZERO => Err(ContractError::TimedOut(step)),
            left => Ok(left.max(Duration::from_millis(1))),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a plugin's process is its own clock; nothing pure depends on it"
)]
fn now() -> Instant {
    Instant::now()
}

fn connect(path: &Path, deadline: &Deadline) -> Result<UnixStream, ContractError> {
    let failed = |error: rustix::io::Errno| io_error(Step::Connect, error.into());
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed)?;
    // Connecting waits while the listener's backlog is full; the send timeout bounds that (unix(7), socket(7)).
    set_socket_timeout(&socket, Timeout::Send, Some(deadline.left(Step::Connect)?)).map_err(failed)?;
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    rustix::net::connect(&socket, &address).map_err(failed)?;
    Ok(socket.into())
}

fn send(
    stream: &UnixStream,
    message: &[u8],
    netns: Option<BorrowedFd<'_>>,
    deadline: &Deadline,
) -> Result<(), ContractError> {
    let failed = |error| io_error(Step::Send, error);
    let mut sent = 0;
    if let Some(netns) = netns {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [netns];
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(ContractError::Descriptor("does not fit its control message"));
        }
        stream
            .set_write_timeout(Some(deadline.left(Step::Send)?))
            .map_err(failed)?;
        sent = rustix::net::sendmsg(
            stream,
            &[IoSlice::new(message)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .map_err(|error| failed(error.into()))?;
    }
    let mut rest = message.get(sent..).unwrap_or_default();
    while !rest.is_empty() {
        stream
            .set_write_timeout(Some(deadline.left(Step::Send)?))
            .map_err(failed)?;
        // The standard library writes to sockets with MSG_NOSIGNAL.
        match (&mut &*stream).write(rest) {
            Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

fn receive_header(stream: &UnixStream, deadline: &Deadline) -> Result<[u8; HEADER_LENGTH], ContractError> {
    let mut header = [0; HEADER_LENGTH];
    receive_exactly(stream, &mut header, deadline)?;
    Ok(header)
}

fn receive_header_with_descriptor(
    stream: &UnixStream,
    deadline: &Deadline,
) -> Result<([u8; HEADER_LENGTH], Option<OwnedFd>), ContractError> {
    let failed = |error: io::Error| io_error(Step::Receive, error);
    let mut header = [0; HEADER_LENGTH];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    stream
        .set_read_timeout(Some(deadline.left(Step::Receive)?))
        .map_err(failed)?;
    let received = rustix::net::recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut header)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(|error| failed(error.into()))?;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > 1 {
        return Err(ContractError::Descriptor("more than one"));
    }
    let netns = descriptors.pop();
    if netns.as_ref().is_some_and(|netns| !is_namespace(netns.as_fd())) {
        return Err(ContractError::Descriptor("not a namespace"));
    }
    if received.bytes == 0 {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    }
    receive_exactly(
        stream,
        header.get_mut(received.bytes..).unwrap_or_default(),
        deadline,
    )?;
    Ok((header, netns))
}

fn receive_body(
    stream: &UnixStream,
    header: [u8; HEADER_LENGTH],
    deadline: &Deadline,
) -> Result<Vec<u8>, ContractError> {
    let mut body = vec![0; body_length(header)?];
    receive_exactly(stream, &mut body, deadline)?;
    Ok(body)
}

fn receive_exactly(
    mut stream: &UnixStream,
    mut rest: &mut [u8],
    deadline: &Deadline,
) -> Result<(), ContractError> {
    let failed = |error| io_error(Step::Receive, error);
    while !rest.is_empty() {
        stream
            .set_read_timeout(Some(deadline.left(Step::Receive)?))
            .map_err(failed)?;
        match stream.read(rest) {
            Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => rest = rest.get_mut(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// A socket timeout shows as `WouldBlock` (EAGAIN); everything else is what it is.
fn io_error(step: Step, source: io::Error) -> ContractError {
    if source.kind() == io::ErrorKind::WouldBlock {
        ContractError::TimedOut(step)
    } else {
        ContractError::Io { step, source }
    }
}
