//! NOTIFICATION messages: every assigned code and subcode with its name (RFC 4271 section 4.5, 4486, 6608, 7313, 9234,
//! 9384, 9687), the hard reset wrapper (RFC 8538) and the shutdown communication (RFC 9003).
//!
//! Unknown numbers survive decoding and encoding, so a peer's words are never lost.

use std::fmt;

use super::cursor::Cursor;
use super::error::WireError;
use super::frame::{MessageType, finish_message, start_message};

/// Most octets of a shutdown communication (RFC 9003 section 2).
pub const MAX_SHUTDOWN_COMMUNICATION: usize = 255;

/// Longest data we send: code, subcode and header must fit in a message of standard size.
const MAX_DATA: usize = 4096 - 21;

/// Generates a subcode enum: number, variant, IANA name.
macro_rules! subcodes {
    ($(#[$doc:meta])* $name:ident { $($number:literal $variant:ident $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $(#[doc = $text] $variant,)*
            /// A subcode without an assignment known here.
            Unknown(u8),
        }

        impl $name {
            /// The subcode as it stands on the wire.
            pub fn subcode(self) -> u8 {
                match self {
                    $(Self::$variant => $number,)*
                    Self::Unknown(subcode) => subcode,
                }
            }

            /// The meaning of a subcode.
            pub fn from_subcode(subcode: u8) -> Self {
                match subcode {
                    $($number => Self::$variant,)*
                    _ => Self::Unknown(subcode),
                }
            }

            /// The registered name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Unknown(_) => "Unknown",
                }
            }
        }
    };
}

subcodes!(
    /// Subcodes of the Message Header Error (RFC 4271 section 6.1).
    MessageHeaderError {
        0 Unspecific "Unspecific",
        1 ConnectionNotSynchronized "Connection Not Synchronized",
        2 BadMessageLength "Bad Message Length",
        3 BadMessageType "Bad Message Type",
    }
);
subcodes!(
    /// Subcodes of the OPEN Message Error (RFC 4271 section 6.2, 5492, 9234).
    OpenError {
        0 Unspecific "Unspecific",
        1 UnsupportedVersionNumber "Unsupported Version Number",
        2 BadPeerAs "Bad Peer AS",
        3 BadBgpIdentifier "Bad BGP Identifier",
        4 UnsupportedOptionalParameter "Unsupported Optional Parameter",
        6 UnacceptableHoldTime "Unacceptable Hold Time",
        7 UnsupportedCapability "Unsupported Capability",
        11 RoleMismatch "Role Mismatch",
    }
);
subcodes!(
    /// Subcodes of the UPDATE Message Error (RFC 4271 section 6.3).
    UpdateError {
        0 Unspecific "Unspecific",
        1 MalformedAttributeList "Malformed Attribute List",
        2 UnrecognizedWellKnownAttribute "Unrecognized Well-known Attribute",
        3 MissingWellKnownAttribute "Missing Well-known Attribute",
        4 AttributeFlagsError "Attribute Flags Error",
        5 AttributeLengthError "Attribute Length Error",
        6 InvalidOriginAttribute "Invalid ORIGIN Attribute",
        8 InvalidNextHopAttribute "Invalid NEXT_HOP Attribute",
        9 OptionalAttributeError "Optional Attribute Error",
        10 InvalidNetworkField "Invalid Network Field",
        11 MalformedAsPath "Malformed AS_PATH",
    }
);
subcodes!(
    /// Subcodes of the Finite State Machine Error (RFC 6608).
    FsmError {
        0 Unspecific "Unspecified Error",
        1 UnexpectedMessageInOpenSent "Receive Unexpected Message in OpenSent State",
        2 UnexpectedMessageInOpenConfirm "Receive Unexpected Message in OpenConfirm State",
        3 UnexpectedMessageInEstablished "Receive Unexpected Message in Established State",
    }
);
subcodes!(
    /// Subcodes of Cease (RFC 4486, 8538, 9384).
    CeaseError {
        0 Unspecific "Unspecific",
        1 MaximumNumberOfPrefixesReached "Maximum Number of Prefixes Reached",
        2 AdministrativeShutdown "Administrative Shutdown",
        3 PeerDeconfigured "Peer De-configured",
        4 AdministrativeReset "Administrative Reset",
        5 ConnectionRejected "Connection Rejected",
        6 OtherConfigurationChange "Other Configuration Change",
        7 ConnectionCollisionResolution "Connection Collision Resolution",
        8 OutOfResources "Out of Resources",
        9 HardReset "Hard Reset",
        10 BfdDown "BFD Down",
    }
);
subcodes!(
    /// Subcodes of the ROUTE-REFRESH Message Error (RFC 7313 section 5).
    RouteRefreshError {
        0 Unspecific "Reserved",
        1 InvalidMessageLength "Invalid Message Length",
    }
);

/// Error code and subcode of a NOTIFICATION.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotificationCode {
    /// 1: the header of a message.
    MessageHeader(MessageHeaderError),
    /// 2: an OPEN.
    Open(OpenError),
    /// 3: an UPDATE.
    Update(UpdateError),
    /// 4: nothing was received for the hold time. Its subcode is 0.
    HoldTimerExpired,
    /// 5: a message that does not belong into the state (RFC 6608).
    FiniteStateMachine(FsmError),
    /// 6: the session is closed for another reason.
    Cease(CeaseError),
    /// 7: a ROUTE-REFRESH (RFC 7313).
    RouteRefresh(RouteRefreshError),
    /// 8: nothing could be sent for the send hold time (RFC 9687). Its subcode is 0.
    SendHoldTimerExpired,
    /// A code without an assignment known here, or a subcode where none is defined.
    Unknown {
        /// The error code.
        code: u8,
        /// The error subcode.
        subcode: u8,
    },
}

impl NotificationCode {
    /// The meaning of a pair of numbers.
    pub fn from_numbers(code: u8, subcode: u8) -> Self {
        match (code, subcode) {
            (1, _) => Self::MessageHeader(MessageHeaderError::from_subcode(subcode)),
            (2, _) => Self::Open(OpenError::from_subcode(subcode)),
            (3, _) => Self::Update(UpdateError::from_subcode(subcode)),
            (4, 0) => Self::HoldTimerExpired,
            (5, _) => Self::FiniteStateMachine(FsmError::from_subcode(subcode)),
            (6, _) => Self::Cease(CeaseError::from_subcode(subcode)),
            (7, _) => Self::RouteRefresh(RouteRefreshError::from_subcode(subcode)),
            (8, 0) => Self::SendHoldTimerExpired,
            _ => Self::Unknown { code, subcode },
        }
    }

    /// Error code and subcode as they stand on the wire.
    pub fn numbers(self) -> (u8, u8) {
        match self {
            Self::MessageHeader(error) => (1, error.subcode()),
            Self::Open(error) => (2, error.subcode()),
            Self::Update(error) => (3, error.subcode()),
            Self::HoldTimerExpired => (4, 0),
            Self::FiniteStateMachine(error) => (5, error.subcode()),
            Self::Cease(error) => (6, error.subcode()),
            Self::RouteRefresh(error) => (7, error.subcode()),
            Self::SendHoldTimerExpired => (8, 0),
            Self::Unknown { code, subcode } => (code, subcode),
        }
    }
}

impl fmt::Display for NotificationCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (code, subcode) = self.numbers();
        let (name, detail) = match self {
            Self::MessageHeader(error) => ("Message Header Error", error.name()),
            Self::Open(error) => ("OPEN Message Error", error.name()),
            Self::Update(error) => ("UPDATE Message Error", error.name()),
            Self::HoldTimerExpired => return write!(f, "Hold Timer Expired ({code}/{subcode})"),
            Self::FiniteStateMachine(error) => ("Finite State Machine Error", error.name()),
            Self::Cease(error) => ("Cease", error.name()),
            Self::RouteRefresh(error) => ("ROUTE-REFRESH Message Error", error.name()),
            Self::SendHoldTimerExpired => return write!(f, "Send Hold Timer Expired ({code}/{subcode})"),
            Self::Unknown { .. } => return write!(f, "Unknown Error ({code}/{subcode})"),
        };
        write!(f, "{name}: {detail} ({code}/{subcode})")
    }
}

/// A NOTIFICATION: the last word of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    code: NotificationCode,
    data: Box<[u8]>,
}

/// Why a shutdown communication could not be read. The session ends all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShutdownTextError {
    /// The length octet does not match the data.
    #[error("shutdown communication has a wrong length")]
    Length,
    /// The text is not UTF-8.
    #[error("shutdown communication is not UTF-8")]
    NotUtf8,
}

impl Notification {
    /// A NOTIFICATION with the given data, of which no more is kept than fits in a message of standard size.
    pub fn new(code: NotificationCode, data: &[u8]) -> Self {
        Self {
            code,
            data: data.get(..MAX_DATA).unwrap_or(data).into(),
        }
    }

    /// A NOTIFICATION without data.
    pub fn bare(code: NotificationCode) -> Self {
        Self::new(code, &[])
    }

    /// A Cease that tells the operator on the other side why (RFC 9003): `error` is an administrative shutdown or reset.
    /// A longer text than 255 octets is cut at a character boundary; an empty one is left out.
    pub fn cease_with_text(error: CeaseError, text: &str) -> Self {
        let mut end = text.len().min(MAX_SHUTDOWN_COMMUNICATION);
        while !text.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        let text = text.get(..end).unwrap_or_default().as_bytes();
        let mut data = Vec::with_capacity(text.len().saturating_add(1));
        if !text.is_empty() {
            data.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
            data.extend_from_slice(text);
        }
        Self::new(NotificationCode::Cease(error), &data)
    }

    /// Wraps the notification into a Hard Reset, which tells a graceful-restart peer that routes must not be kept (RFC 8538 section 3.1).
    pub fn into_hard_reset(self) -> Self {
        let (code, subcode) = self.code.numbers();
        let mut data = vec![code, subcode];
        data.extend_from_slice(&self.data);
        Self::new(NotificationCode::Cease(CeaseError::HardReset), &data)
    }

    /// Whether it is a Hard Reset, also one that gives no reason.
    pub fn is_hard_reset(&self) -> bool {
        self.code == NotificationCode::Cease(CeaseError::HardReset)
    }

    /// The notification inside a Hard Reset; `None` for any other, and for a Hard Reset too short to hold one.
    pub fn hard_reset_reason(&self) -> Option<Self> {
        if !self.is_hard_reset() {
            return None;
        }
        let mut cursor = Cursor::new(&self.data);
        let (code, subcode) = (cursor.u8()?, cursor.u8()?);
        Some(Self::new(
            NotificationCode::from_numbers(code, subcode),
            cursor.rest(),
        ))
    }

    /// The text a peer's operator left (RFC 9003), also inside a Hard Reset. `None` when there is none.
    /// The text is the peer's: escape it before it reaches a terminal.
    ///
    /// # Errors
    /// When the data is not a length octet followed by as many octets of UTF-8.
    pub fn shutdown_communication(&self) -> Option<Result<String, ShutdownTextError>> {
        if let Some(reason) = self.hard_reset_reason() {
            // A wrapped Hard Reset would be nonsense; looking one level deep also bounds the recursion.
            return reason.shutdown_text();
        }
        self.shutdown_text()
    }

    fn shutdown_text(&self) -> Option<Result<String, ShutdownTextError>> {
        let with_text = matches!(
            self.code,
            NotificationCode::Cease(CeaseError::AdministrativeShutdown | CeaseError::AdministrativeReset)
        );
        let (length, text) = self.data.split_first().filter(|_| with_text)?;
        if *length == 0 && text.is_empty() {
            return None;
        }
        if usize::from(*length) != text.len() {
            return Some(Err(ShutdownTextError::Length));
        }
        Some(
            str::from_utf8(text)
                .map(str::to_owned)
                .map_err(|_| ShutdownTextError::NotUtf8),
        )
    }

    /// Error code and subcode.
    pub fn code(&self) -> NotificationCode {
        self.code
    }

    /// The data field.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Reads the body of a NOTIFICATION frame. Any content is accepted: there is nobody left to complain to.
    ///
    /// # Errors
    /// When code or subcode is missing, which a frame of legal length rules out.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor::new(body);
        let (Some(code), Some(subcode)) = (cursor.u8(), cursor.u8()) else {
            let code = NotificationCode::MessageHeader(MessageHeaderError::BadMessageLength);
            return Err(WireError::new(code, "NOTIFICATION without code and subcode"));
        };
        Ok(Self {
            code: NotificationCode::from_numbers(code, subcode),
            data: cursor.rest().into(),
        })
    }

    /// Appends the message to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = start_message(MessageType::Notification, out);
        let (code, subcode) = self.code.numbers();
        out.extend_from_slice(&[code, subcode]);
        out.extend_from_slice(self.data.get(..MAX_DATA).unwrap_or(&self.data));
        finish_message(start, out);
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(reason) = self.hard_reset_reason() {
            write!(f, ", {}", reason.code)?;
        }
        match self.shutdown_communication() {
            Some(Ok(text)) => write!(f, ", {text:?}"),
            Some(Err(error)) => write!(f, ", {error}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
