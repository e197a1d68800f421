//! What the kernel answers: acknowledgements, errors with its own words, dumps. Bytes to values, no socket.

use std::io;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NlasIterator};

use crate::kernel::KernelError;

// linux/netlink.h
pub(super) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(super) const HEADER_BYTES: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Header of a received message, and its payload.
pub(super) struct Received<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

#[derive(PartialEq, Eq)]
pub(super) enum Flow {
    Continue,
    End,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Completeness {
    Whole,
    Torn,
}

#[derive(Debug)]
pub(super) enum Failure {
    Refused { errno: i32, message: Option<String> },
    Io(io::Error),
    Timeout,
    Malformed(String),
}

impl Failure {
    pub(super) fn into_error(self, action: String, limit: Duration) -> KernelError {
        match self {
            Self::Refused { errno, message } => KernelError::Refused {
                action,
                errno,
                message,
            },
            Self::Io(source) => KernelError::Io { action, source },
            Self::Timeout => KernelError::Timeout { action, limit },
            Self::Malformed(reason) => KernelError::Malformed { action, reason },
        }
    }

    pub(super) fn copy(&self) -> Self {
        match self {
            Self::Refused { errno, message } => Self::Refused {
                errno: *errno,
                message: message.clone(),
            },
            Self::Io(error) => Self::Io(copy_of(error)),
            Self::Timeout => Self::Timeout,
            Self::Malformed(reason) => Self::Malformed(reason.clone()),
        }
    }
}

/// One attempt to read a table.
pub(super) struct Dump {
    sequence: u32,
    completeness: Completeness,
    /// The dump is read to its end even if a message is not understood: until then the kernel starts no other.
    not_understood: Option<String>,
}

impl Dump {
    /// The answers to the request with this number.
    pub(super) fn of(sequence: u32) -> Self {
        Self {
            sequence,
            completeness: Completeness::Whole,
            not_understood: None,
        }
    }

    pub(super) fn take(
        &mut self,
        received: &Received<'_>,
        parse: &mut impl FnMut(Option<&[u8]>) -> Result<(), String>,
    ) -> Result<Flow, Failure> {
        if received.sequence != self.sequence {
            return Ok(Flow::Continue);
        }
        if received.flags & NLM_F_DUMP_INTR != 0 {
            self.completeness = Completeness::Torn;
        }
        match received.kind {
            NLMSG_ERROR => parse_error(received).map(|()| Flow::End),
            // Carries an error number where the dump broke off.
            NLMSG_DONE => parse_done(received).map(|()| Flow::End),
            _ => {
                if let Err(reason) = parse(Some(received.payload)) {
                    self.not_understood.get_or_insert(reason);
                }
                Ok(Flow::Continue)
            }
        }
    }

    pub(super) fn end(self) -> Result<Completeness, Failure> {
        self.not_understood
            .map_or(Ok(self.completeness), |reason| Err(Failure::Malformed(reason)))
    }
}

pub(super) fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

pub(super) fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The first message of a datagram, and what follows it.
pub(super) fn split_message(bytes: &[u8]) -> Option<(Received<'_>, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
    let received = Received {
        kind: u16::from_ne_bytes([header[4], header[5]]),
        flags: u16::from_ne_bytes([header[6], header[7]]),
        sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
        payload: bytes.get(HEADER_BYTES..length)?,
    };
    Some((received, bytes.get(align(length)..).unwrap_or_default()))
}

/// `NLMSG_ERROR`: error number, the header of the request (the whole request unless capped), then attributes.
pub(super) fn parse_error(received: &Received<'_>) -> Result<(), Failure> {
    let errno = leading_i32(received.payload)?;
    if errno == 0 {
        return Ok(());
    }
    let request = received.payload.get(4..).unwrap_or_default();
    let echoed = if received.flags & NLM_F_CAPPED != 0 {
        HEADER_BYTES
    } else {
        request
            .first_chunk()
            .map_or(0, |length| align(u32::from_ne_bytes(*length) as usize))
    };
    let attributes = request.get(echoed..).unwrap_or_default();
    Err(Failure::Refused {
        errno: errno.saturating_neg(),
        message: extended_message(received.flags, attributes),
    })
}

/// `NLMSG_DONE`: an error number, then attributes.
fn parse_done(received: &Received<'_>) -> Result<(), Failure> {
    if received.payload.is_empty() {
        return Ok(());
    }
    match leading_i32(received.payload)? {
        errno if errno < 0 => {
            let attributes = received.payload.get(4..).unwrap_or_default();
            let message = extended_message(received.flags, attributes);
            Err(Failure::Refused {
                errno: errno.saturating_neg(),
                message,
            })
        }
        _ => Ok(()),
    }
}

fn leading_i32(payload: &[u8]) -> Result<i32, Failure> {
    let bytes = payload
        .first_chunk()
        .ok_or_else(|| Failure::Malformed("no error number".to_owned()))?;
    Ok(i32::from_ne_bytes(*bytes))
}

fn extended_message(flags: u16, attributes: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| {
            String::from_utf8_lossy(attribute.value())
                .trim_end_matches('\0')
                .to_owned()
        })
}

#[cfg(test)]
mod tests;
