//! Message boundaries in the byte stream: marker, length and type (RFC 4271 sections 4.1 and 6.1), with the larger
//! limit of extended messages (RFC 8654).
//!
//! Invariant: a [`Frame`] has a known type and a length that is legal for that type, so decoders see complete bodies.

use serde::{Deserialize, Serialize};

use super::cursor::Cursor;
use super::error::WireError;
use super::notification::{MessageHeaderError, NotificationCode};

/// Octets of the header every message begins with: marker, length, type.
pub const HEADER_LEN: usize = 19;
/// Longest message of a session without extended messages, header included (RFC 4271 section 4.1).
pub const MAX_MESSAGE_LEN: usize = 4096;
/// Longest message after both sides advertised extended messages (RFC 8654 section 3).
pub const MAX_EXTENDED_MESSAGE_LEN: usize = 65535;

const MARKER: [u8; 16] = [0xff; 16];

/// What a message is (RFC 4271 section 4.1, RFC 2918 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MessageType {
    /// Parameters of a session.
    Open = 1,
    /// Routes.
    Update = 2,
    /// The reason of the end.
    Notification = 3,
    /// A sign of life.
    Keepalive = 4,
    /// A request to send all routes again.
    RouteRefresh = 5,
}

impl MessageType {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Open,
            2 => Self::Update,
            3 => Self::Notification,
            4 => Self::Keepalive,
            5 => Self::RouteRefresh,
            _ => return None,
        })
    }

    /// Shortest and longest legal length, header included. OPEN and KEEPALIVE are never extended (RFC 8654 section 4).
    fn length_range(self, max: usize) -> (usize, usize) {
        match self {
            Self::Open => (29, MAX_MESSAGE_LEN),
            Self::Update => (23, max),
            Self::Notification => (21, max),
            Self::Keepalive => (HEADER_LEN, HEADER_LEN),
            Self::RouteRefresh => (23, max),
        }
    }
}

/// How long a message may be on this session at this time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MessageLimit {
    /// 4096 octets: before OPEN messages are exchanged, and without RFC 8654.
    #[default]
    Standard,
    /// 65535 octets: extended messages were advertised by both sides.
    Extended,
}

impl MessageLimit {
    /// The limit in octets, header included.
    pub fn octets(self) -> usize {
        match self {
            Self::Standard => MAX_MESSAGE_LEN,
            Self::Extended => MAX_EXTENDED_MESSAGE_LEN,
        }
    }
}

/// One whole message at the start of a receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The message type.
    pub message_type: MessageType,
    /// What follows the header.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Finds the message at the start of `buffer`. `None` when it is not complete yet: read more and ask again.
    /// A header is judged as soon as its 19 octets are there, so at most `limit` octets need ever be buffered.
    ///
    /// # Errors
    /// Message Header Error with the data RFC 4271 section 6.1 asks for: the length field for a bad length, the type for a bad type.
    pub fn parse(buffer: &'a [u8], limit: MessageLimit) -> Result<Option<Self>, WireError> {
        let mut cursor = Cursor::new(buffer);
        let Some(marker) = cursor.array::<16>() else {
            return Ok(None);
        };
        if marker != MARKER {
            let code = NotificationCode::MessageHeader(MessageHeaderError::ConnectionNotSynchronized);
            return Err(WireError::new(code, "marker is not all ones"));
        }
        let (Some(length), Some(type_code)) = (cursor.u16(), cursor.u8()) else {
            return Ok(None);
        };
        let bad_length = |detail: String| {
            let code = NotificationCode::MessageHeader(MessageHeaderError::BadMessageLength);
            WireError::with_data(code, &length.to_be_bytes(), detail)
        };
        let total = usize::from(length);
        if total < HEADER_LEN || total > limit.octets() {
            return Err(bad_length(format!(
                "message length {total}, expected {HEADER_LEN} to {}",
                limit.octets()
            )));
        }
        let Some(message_type) = MessageType::from_code(type_code) else {
            let code = NotificationCode::MessageHeader(MessageHeaderError::BadMessageType);
            return Err(WireError::with_data(
                code,
                &[type_code],
                format!("message type {type_code}"),
            ));
        };
        let (shortest, longest) = message_type.length_range(limit.octets());
        if total < shortest || total > longest {
            let detail =
                format!("{message_type:?} message of length {total}, expected {shortest} to {longest}");
            return Err(bad_length(detail));
        }
        Ok(cursor
            .take(total.saturating_sub(HEADER_LEN))
            .map(|body| Self { message_type, body }))
    }

    /// Octets the message takes in the buffer, header included.
    pub fn total_len(&self) -> usize {
        self.body.len().saturating_add(HEADER_LEN)
    }
}

/// Appends a header whose length is not known yet; [`finish_message`] fills it in. Returns where the message starts.
pub(crate) fn start_message(message_type: MessageType, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&MARKER);
    out.extend_from_slice(&[0, 0, message_type as u8]);
    start
}

/// Writes the length of the message that began at `start` and ends with `out`, and returns it.
pub(crate) fn finish_message(start: usize, out: &mut [u8]) -> usize {
    let length = out.len().saturating_sub(start);
    let field = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    if let Some(place) = out.get_mut(start.saturating_add(16)..start.saturating_add(18)) {
        place.copy_from_slice(&field);
    }
    length
}

/// Appends a KEEPALIVE (RFC 4271 section 4.4).
pub fn encode_keepalive(out: &mut Vec<u8>) {
    let start = start_message(MessageType::Keepalive, out);
    finish_message(start, out);
}

#[cfg(test)]
mod tests;
