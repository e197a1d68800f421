//! What can be wrong with a path attribute and what is done about it (RFC 7606).

use std::fmt;

use crate::wire::notification::{NotificationCode, UpdateError};

/// One thing that was wrong in an UPDATE, and its consequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeError {
    /// The attribute's type code.
    pub type_code: u8,
    /// What was wrong.
    pub kind: AttributeErrorKind,
    /// What follows for the message.
    pub action: AttributeAction,
}

/// The consequences of an attribute error, the weakest first (RFC 7606 section 2); the strongest of a message applies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttributeAction {
    /// The attribute is ignored, the routes are used.
    Discard,
    /// The routes of the message are treated as withdrawn.
    TreatAsWithdraw,
    /// The session is reset.
    Reset {
        /// The subcode of UPDATE Message Error.
        subcode: UpdateError,
        /// The data of the NOTIFICATION.
        data: Box<[u8]>,
    },
}

impl AttributeAction {
    /// The NOTIFICATION code of a reset.
    pub fn code(&self) -> Option<NotificationCode> {
        match self {
            Self::Reset { subcode, .. } => Some(NotificationCode::Update(*subcode)),
            _ => None,
        }
    }
}

/// What is wrong with an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AttributeErrorKind {
    /// Optional or Transitive bit contradict the type.
    #[error("flags contradict the attribute type")]
    Flags,
    /// The length is not one the attribute can have.
    #[error("bad length")]
    Length,
    /// The attribute list ends inside an attribute.
    #[error("attribute runs out of the attribute list")]
    Truncated,
    /// An attribute that may stand only once came again.
    #[error("attribute is repeated")]
    Repeated,
    /// A mandatory attribute is missing.
    #[error("mandatory attribute is missing")]
    Missing,
    /// ORIGIN is none of the three values.
    #[error("undefined ORIGIN value")]
    Origin,
    /// An AS_PATH segment has an undefined type, no AS number, or more than there are octets.
    #[error("malformed path segment")]
    PathSegment,
    /// Confederation segments from a peer outside the confederation (RFC 5065 section 5).
    #[error("confederation segment from outside the confederation")]
    ConfederationSegment,
    /// AS number 0 (RFC 7607).
    #[error("AS number 0")]
    AsZero,
    /// The next hop is no unicast address.
    #[error("next hop is not a unicast address")]
    NextHop,
    /// The attribute is for internal peers only.
    #[error("attribute is not for external peers")]
    ExternalPeer,
    /// AS4_PATH or AS4_AGGREGATOR from a four-octet AS speaker (RFC 6793 section 6).
    #[error("attribute is not for four-octet AS speakers")]
    FourOctetSpeaker,
    /// A well-known attribute (Optional bit clear) with an unknown type.
    #[error("unrecognized well-known attribute")]
    UnrecognizedWellKnown,
    /// Prefixes cannot be parsed.
    #[error("malformed NLRI")]
    Nlri,
    /// Routes of a family that was not negotiated.
    #[error("address family was not negotiated")]
    FamilyNotNegotiated,
    /// The TLV structure of AIGP is broken (RFC 7311 section 3).
    #[error("malformed TLV")]
    Tlv,
}

impl fmt::Display for AttributeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.action {
            AttributeAction::Discard => "ignored",
            AttributeAction::TreatAsWithdraw => "treated as withdraw",
            AttributeAction::Reset { .. } => "session reset",
        };
        write!(f, "attribute {}: {}, {action}", self.type_code, self.kind)
    }
}
