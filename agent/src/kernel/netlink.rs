//! A blocking rtnetlink socket: single requests, batches with one acknowledgement, dumps that are whole.
//!
//! Batches: messages are packed into datagrams of up to 64 KiB; only the last message of a datagram asks for an
//! acknowledgement, since the kernel reports every error anyway, with the sequence number of the message it belongs to
//! (`netlink_rcv_skb`). Answers with an unknown sequence number are leftovers of a call that gave up, and ignored.
//! Dumps: a dump during which the table changed (`NLM_F_DUMP_INTR`) is torn, and repeated.
//! See the kernel's Documentation/userspace-api/netlink/intro.rst.

mod answer;

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{RecvFlags, recv};

use super::KernelError;
use answer::{
    Completeness, Dump, Failure, Flow, HEADER_BYTES, NLMSG_ERROR, Received, align, copy_of, parse_error,
    split_message,
};

/// Largest datagram sent. The kernel accepts more; errors of one datagram must fit into the receive buffer.
const BATCH_BYTES: usize = 64 * 1024;
/// The kernel fills datagrams of a dump up to 32 KiB less its own overhead, however large the buffer; single messages larger than
/// that do not occur.
const RECEIVE_BYTES: usize = 32 * 1024;
/// Receive buffer of the socket: the errors of a whole batch, with the kernel's overhead of about 1 KiB each.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// How long to wait for one answer. Answers to requests are there when sending returns; this is for a stuck kernel.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How often a torn dump is repeated.
const DUMP_ATTEMPTS: u32 = 16;

/// A blocking rtnetlink socket in the network namespace of the thread that opened it.
pub struct NetlinkSocket {
    protocol: isize,
    socket: Socket,
    port_id: u32,
    sequence: u32,
    receive: Vec<u8>,
}

/// One message to the kernel.
pub struct Request {
    /// The message.
    pub message: RouteNetlinkMessage,
    /// Its flags besides `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub flags: u16,
}

impl NetlinkSocket {
    /// Opens a socket.
    ///
    /// # Errors
    /// When the kernel has no rtnetlink or no memory.
    pub fn open() -> Result<Self, KernelError> {
        Self::open_for(NETLINK_ROUTE)
    }

    /// Opens a socket of another netlink protocol.
    pub(super) fn open_for(protocol: isize) -> Result<Self, KernelError> {
        let io_error = |source| KernelError::Io {
            action: "open a netlink socket".to_owned(),
            source,
        };
        let mut socket = Socket::new(protocol).map_err(io_error)?;
        let address = socket.bind_auto().map_err(io_error)?;
        // From here on only the kernel can send to this socket.
        socket.connect(&SocketAddr::new(0, 0)).map_err(io_error)?;
        socket.set_cap_ack(true).map_err(io_error)?;
        socket.set_ext_ack(true).map_err(io_error)?;
        socket.set_netlink_get_strict_chk(true).map_err(io_error)?;
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))
            .map_err(|errno| io_error(errno.into()))?;
        // Above the system's limit with CAP_NET_ADMIN only; a smaller buffer is no error, overruns are noticed.
        if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
        }
        Ok(Self {
            protocol,
            socket,
            port_id: address.port_number(),
            sequence: 0,
            receive: vec![0; RECEIVE_BYTES],
        })
    }

    /// Port of this socket: the kernel puts it into the notifications of changes that were made through it.
    #[must_use]
    pub fn port_id(&self) -> u32 {
        self.port_id
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sends one request and waits for its acknowledgement. `action` is for the error.
    ///
    /// # Errors
    /// When the kernel refuses or does not answer.
    pub fn request(&mut self, request: Request, action: &str) -> Result<(), KernelError> {
        self.batch(&[request], |_| action.to_owned())
            .pop()
            .unwrap_or(Ok(()))
    }

    /// Sends the requests in order and returns one result each. `action` says, for an error, what a request is.
    pub fn batch(
        &mut self,
        requests: &[Request],
        action: impl Fn(usize) -> String,
    ) -> Vec<Result<(), KernelError>> {
        let write = |position: usize, datagram: &mut Vec<u8>| {
            if let Some(Request { message, flags }) = requests.get(position) {
                serialize(message, flags | NLM_F_REQUEST, datagram);
            }
        };
        self.batch_bytes(requests.len(), write, action)
    }

    /// As [`Self::batch`], with a function that appends request number so-and-so to the datagram: a whole message, padded, whose
    /// sequence number is filled in here.
    pub(crate) fn batch_bytes(
        &mut self,
        count: usize,
        write: impl Fn(usize, &mut Vec<u8>),
        action: impl Fn(usize) -> String,
    ) -> Vec<Result<(), KernelError>> {
        let mut results = Vec::with_capacity(count);
        let mut datagram = Vec::new();
        while results.len() < count {
            let first = results.len();
            let (count, first_sequence) = self.pack(first..count, &write, &mut datagram);
            let answers = self.exchange(&datagram, count, first_sequence);
            results.extend(answers.into_iter().enumerate().map(|(position, answer)| {
                answer.map_err(|failure| failure.into_error(action(first + position), ANSWER_LIMIT))
            }));
        }
        results
    }

    /// Reads a table of the kernel whole. `parse` gets the payload of each message of an attempt and `None` at the
    /// begin of each attempt, when what it collected before is void.
    ///
    /// # Errors
    /// When the kernel refuses, does not answer, or changes the table during each of several attempts.
    pub fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
        action: &str,
        parse: impl FnMut(Option<&[u8]>) -> Result<(), String>,
    ) -> Result<(), KernelError> {
        let mut request = Vec::new();
        serialize(message, NLM_F_REQUEST | NLM_F_DUMP, &mut request);
        self.dump_bytes(&request, action, parse)
    }

    /// As [`Self::dump`], with the request as a whole message.
    pub(super) fn dump_bytes(
        &mut self,
        request: &[u8],
        action: &str,
        mut parse: impl FnMut(Option<&[u8]>) -> Result<(), String>,
    ) -> Result<(), KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            parse(None).map_err(|reason| KernelError::Malformed {
                action: action.to_owned(),
                reason,
            })?;
            match self.dump_once(request, &mut parse) {
                Ok(Completeness::Whole) => return Ok(()),
                Ok(Completeness::Torn) => {}
                Err(failure) => return Err(failure.into_error(action.to_owned(), ANSWER_LIMIT)),
            }
        }
        Err(KernelError::Interrupted {
            action: action.to_owned(),
            attempts: DUMP_ATTEMPTS,
        })
    }

    /// Asks for one object and parses the answer.
    ///
    /// # Errors
    /// When the kernel refuses (it does not have the object), does not answer, or the answer does not parse.
    pub fn ask<T>(
        &mut self,
        message: &RouteNetlinkMessage,
        action: &str,
        mut parse: impl FnMut(&[u8]) -> Result<T, String>,
    ) -> Result<T, KernelError> {
        let mut request = Vec::new();
        serialize(message, NLM_F_REQUEST, &mut request);
        let sequence = self.number(&mut request);
        let mut found = None;
        let mut outcome = self.send(&request).map(|()| Flow::Continue).map_err(Failure::Io);
        while let (Ok(Flow::Continue), None) = (&outcome, &found) {
            outcome = self.receive(|received| {
                if received.sequence == sequence {
                    match received.kind {
                        NLMSG_ERROR => parse_error(&received)?,
                        _ => found = Some(parse(received.payload).map_err(Failure::Malformed)?),
                    }
                }
                Ok(Flow::Continue)
            });
        }
        outcome.map_err(|failure| failure.into_error(action.to_owned(), ANSWER_LIMIT))?;
        found.ok_or_else(|| KernelError::Malformed {
            action: action.to_owned(),
            reason: "no answer".to_owned(),
        })
    }

    /// Sends whole messages that the kernel takes as one, such as a batch of nfnetlink, in one datagram. They are numbered here;
    /// each that asks for an acknowledgement must get it. `action` is for the error.
    ///
    /// The kernel has answered all of them when sending returns: nothing is waited for.
    ///
    /// # Errors
    /// When the kernel refuses one of the messages, or all of them by refusing the first; then it has done nothing. Any
    /// other error leaves open what it has done.
    pub(super) fn transaction(&mut self, mut datagram: Vec<u8>, action: &str) -> Result<(), KernelError> {
        self.transact(&mut datagram).map_err(|failure| {
            // What is left unread is nobody's answer.
            if !matches!(failure, Failure::Refused { .. }) {
                self.reopen();
            }
            failure.into_error(action.to_owned(), ANSWER_LIMIT)
        })
    }

    fn transact(&mut self, datagram: &mut [u8]) -> Result<(), Failure> {
        let first_sequence = self.sequence.wrapping_add(1);
        let (mut count, mut unanswered) = (0_u32, 0_u32);
        let mut start = 0;
        while let Some((message, _)) = datagram.get(start..).and_then(split_message) {
            let length = align(HEADER_BYTES + message.payload.len());
            unanswered += u32::from(message.flags & NLM_F_ACK != 0);
            count += 1;
            self.number(datagram.get_mut(start..).unwrap_or_default());
            start += length;
        }
        self.send(datagram).map_err(Failure::Io)?;
        let mut refused = None;
        loop {
            let outcome = self.receive_with(RecvFlags::DONTWAIT, |received| {
                if received.kind == NLMSG_ERROR && received.sequence.wrapping_sub(first_sequence) < count {
                    match parse_error(&received) {
                        Ok(()) => unanswered = unanswered.saturating_sub(1),
                        Err(failure) => {
                            refused.get_or_insert(failure);
                        }
                    }
                }
                Ok(Flow::Continue)
            });
            match outcome {
                Ok(_) => {}
                // Nothing more has been answered.
                Err(Failure::Timeout) => break,
                Err(failure) => return Err(failure),
            }
        }
        match refused {
            Some(failure) => Err(failure),
            None if unanswered == 0 => Ok(()),
            None => Err(Failure::Malformed(format!(
                "{unanswered} messages were not answered"
            ))),
        }
    }

    /// Packs as many of the requests as fit into one datagram, at least one: how many, and the first sequence number.
    fn pack(
        &mut self,
        positions: std::ops::Range<usize>,
        write: &impl Fn(usize, &mut Vec<u8>),
        datagram: &mut Vec<u8>,
    ) -> (usize, u32) {
        datagram.clear();
        let first_sequence = self.sequence.wrapping_add(1);
        let mut last_start = 0;
        let mut count = 0;
        for position in positions {
            let start = datagram.len();
            write(position, datagram);
            if count > 0 && datagram.len() > BATCH_BYTES {
                datagram.truncate(start);
                break;
            }
            self.number(&mut datagram[start..]);
            last_start = start;
            count += 1;
        }
        // nlmsg_flags of the last message, in host byte order at offset 6.
        if let Some(flags) = datagram.get_mut(last_start + 6..last_start + 8) {
            let with_ack = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
            flags.copy_from_slice(&with_ack.to_ne_bytes());
        }
        (count, first_sequence)
    }

    /// Gives a message the next sequence number: nlmsg_seq, in host byte order at offset 8.
    fn number(&mut self, message: &mut [u8]) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        if let Some(number) = message.get_mut(8..12) {
            number.copy_from_slice(&self.sequence.to_ne_bytes());
        }
        self.sequence
    }

    fn exchange(&mut self, datagram: &[u8], count: usize, first_sequence: u32) -> Vec<Result<(), Failure>> {
        if let Err(error) = self.send(datagram) {
            return (0..count).map(|_| Err(Failure::Io(copy_of(&error)))).collect();
        }
        let mut answers: Vec<Result<(), Failure>> = (0..count).map(|_| Ok(())).collect();
        loop {
            let outcome = self.receive(|received| {
                let position = received.sequence.wrapping_sub(first_sequence) as usize;
                if received.kind != NLMSG_ERROR || position >= count {
                    return Ok(Flow::Continue);
                }
                answers[position] = parse_error(&received);
                Ok(if position + 1 == count {
                    Flow::End
                } else {
                    Flow::Continue
                })
            });
            match outcome {
                Ok(Flow::End) => return answers,
                Ok(Flow::Continue) => {}
                // Answers were lost: what arrived may be a part only, so nothing is known of any.
                Err(failure) => {
                    self.reopen();
                    return (0..count).map(|_| Err(failure.copy())).collect();
                }
            }
        }
    }

    fn dump_once(
        &mut self,
        request: &[u8],
        parse: &mut impl FnMut(Option<&[u8]>) -> Result<(), String>,
    ) -> Result<Completeness, Failure> {
        let mut request = request.to_vec();
        let sequence = self.number(&mut request);
        self.send(&request).map_err(Failure::Io)?;
        let mut dump = Dump::of(sequence);
        loop {
            let outcome = self.receive(|received| dump.take(&received, parse));
            match outcome {
                Ok(Flow::Continue) => {}
                Ok(Flow::End) => return dump.end(),
                Err(failure @ Failure::Refused { .. }) => return Err(failure),
                Err(failure) => {
                    self.reopen();
                    return Err(failure);
                }
            }
        }
    }

    /// Answers were lost or are still to come: a new socket has none. If there is none to be had, the old one stays.
    fn reopen(&mut self) {
        if let Ok(fresh) = Self::open_for(self.protocol) {
            *self = fresh;
        }
    }

    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send(datagram, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives one datagram and hands its messages to `handle` until that says `End`.
    fn receive(
        &mut self,
        handle: impl FnMut(Received<'_>) -> Result<Flow, Failure>,
    ) -> Result<Flow, Failure> {
        self.receive_with(RecvFlags::empty(), handle)
    }

    fn receive_with(
        &mut self,
        flags: RecvFlags,
        mut handle: impl FnMut(Received<'_>) -> Result<Flow, Failure>,
    ) -> Result<Flow, Failure> {
        let flags = flags | RecvFlags::TRUNC;
        let length = loop {
            match recv(&self.socket, self.receive.as_mut_slice(), flags) {
                Ok((_, length)) => break length,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Err(Failure::Timeout),
                Err(errno) => return Err(Failure::Io(errno.into())),
            }
        };
        let Some(mut rest) = self.receive.get(..length) else {
            return Err(Failure::Malformed(format!(
                "a datagram of {length} bytes does not fit"
            )));
        };
        while !rest.is_empty() {
            let (received, next) = split_message(rest).ok_or_else(|| {
                Failure::Malformed(format!("message cut short with {} bytes left", rest.len()))
            })?;
            if handle(received)? == Flow::End {
                return Ok(Flow::End);
            }
            rest = next;
        }
        Ok(Flow::Continue)
    }
}

/// Appends a message, padded to the alignment of netlink messages. Its sequence number is 0.
fn serialize(message: &RouteNetlinkMessage, flags: u16, datagram: &mut Vec<u8>) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message.clone()));
    message.finalize();
    let (start, length) = (datagram.len(), message.buffer_len());
    datagram.resize(start + align(length), 0);
    message.serialize(&mut datagram[start..start + length]);
}
