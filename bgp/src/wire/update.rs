//! UPDATE messages (RFC 4271 section 4.3, RFC 4760, RFC 7606).
//!
//! Reading: [`Update::decode`] turns a body into what to withdraw and what to announce, with everything RFC 7606 lets
//! survive already resolved: treat-as-withdraw moves the announced prefixes to [`Update::unreach`].
//! Writing: [`UpdateTemplate`] holds an encoded attribute set and packs prefixes behind it.

use smallvec::SmallVec;

use super::attr::{AttributeError, Attributes};
use super::nlri::FamilyNlri;
use crate::family::AfiSafi;

pub use encode::{UpdateEncodeError, UpdateTemplate, encode_end_of_rib};

mod decode;
mod encode;

/// A received UPDATE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update<'a> {
    /// Prefixes that are no longer reachable; to be handled before [`Self::reach`]. With treat-as-withdraw the announced ones are here.
    pub unreach: SmallVec<[FamilyNlri<'a>; 2]>,
    /// Prefixes that are reachable, by attribute set: at most one of the message's own NLRI field and one of MP_REACH_NLRI.
    pub reach: SmallVec<[Reach<'a>; 1]>,
    /// The family whose first full set of routes is complete (RFC 4724 section 2).
    pub end_of_rib: Option<AfiSafi>,
    /// Whether announced prefixes were treated as withdrawn (RFC 7606).
    pub treat_as_withdraw: bool,
    /// What was wrong, in the order found; for the log.
    pub errors: Vec<AttributeError>,
}

/// Announced prefixes and their attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach<'a> {
    /// The attributes, next hop included.
    pub attributes: Attributes,
    /// The prefixes.
    pub nlri: FamilyNlri<'a>,
}

#[cfg(test)]
mod rfc7606_tests;
#[cfg(test)]
mod tests;
