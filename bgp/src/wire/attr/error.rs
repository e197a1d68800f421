//! What can be wrong with a path attribute and what is done about it (RFC 7606).

use std::fmt;

use crate::wire::notification::UpdateError;

/// One thing that was wrong in an UPDATE, and its consequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttributeError {
    /// The attribute's type code; 0 for the fields of the message that are no attributes.
    pub type_code: u8,
    /// What was wrong.
    pub kind: AttributeErrorKind,
    /// What follows for the message.
    pub action: AttributeAction,
}

/// The consequences of an attribute error, the weakest first (RFC 7606 section 2); the strongest of a message applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttributeAction {
    /// The attribute is ignored, the routes are used.
    Discard,
    /// The routes of the message are treated as withdrawn.
    TreatAsWithdraw,
    /// The session is reset, with [`AttributeErrorKind::subcode`].
    Reset,
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
    /// A path from another member AS that does not begin with AS_CONFED_SEQUENCE (RFC 5065 section 5).
    #[error("path from a confederation peer without a leading confederation sequence")]
    ConfederationSegmentMissing,
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
    /// The prefixes of the withdrawn routes or NLRI field cannot be parsed.
    #[error("malformed prefixes")]
    NetworkField,
    /// MP_REACH_NLRI or MP_UNREACH_NLRI cannot be parsed, so its prefixes are lost.
    #[error("malformed multiprotocol attribute")]
    MpField,
    /// Routes of a family that was not negotiated.
    #[error("address family was not negotiated")]
    FamilyNotNegotiated,
    /// The TLV structure of AIGP is broken (RFC 7311 section 3).
    #[error("malformed TLV")]
    Tlv,
}

impl AttributeErrorKind {
    /// The subcode of UPDATE Message Error with which the session is reset, where it has to be (RFC 4271 section 6.3, 4760 section 7).
    pub fn subcode(self) -> UpdateError {
        match self {
            Self::Flags => UpdateError::AttributeFlagsError,
            Self::Length | Self::Truncated => UpdateError::AttributeLengthError,
            Self::Missing => UpdateError::MissingWellKnownAttribute,
            Self::Origin => UpdateError::InvalidOriginAttribute,
            Self::PathSegment
            | Self::ConfederationSegment
            | Self::ConfederationSegmentMissing
            | Self::AsZero => UpdateError::MalformedAsPath,
            Self::NextHop => UpdateError::InvalidNextHopAttribute,
            Self::UnrecognizedWellKnown => UpdateError::UnrecognizedWellKnownAttribute,
            Self::NetworkField => UpdateError::InvalidNetworkField,
            Self::Repeated => UpdateError::MalformedAttributeList,
            Self::MpField | Self::Tlv => UpdateError::OptionalAttributeError,
            Self::ExternalPeer | Self::FourOctetSpeaker | Self::FamilyNotNegotiated => {
                UpdateError::Unspecific
            }
        }
    }
}

impl fmt::Display for AttributeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.action {
            AttributeAction::Discard => "ignored",
            AttributeAction::TreatAsWithdraw => "treated as withdraw",
            AttributeAction::Reset => "session reset",
        };
        write!(f, "attribute {}: {}, {action}", self.type_code, self.kind)
    }
}
