//! Import and export policy: an ordered list of terms, the first that decides wins.
//!
//! A term matches when all its conditions do; then its changes are made, and its verdict accepts, rejects, or goes on to the next
//! term with the changed route. A route no term decided gets the policy's default. Evaluation is total and pure: whatever the route, there is
//! a verdict and the term that gave it, so that `why is this route not there` always has an answer.
//!
//! Without a policy RFC 8212 holds: nothing passes an EBGP session in either direction; IBGP passes everything.

mod evaluate;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::family::Prefix;
use crate::wire::attr::{Community, ExtendedCommunity, LargeCommunity};

pub(crate) use evaluate::matching_terms;
pub use evaluate::{Outcome, RouteView, evaluate};

/// Terms in order, and what happens to a route that none of them decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Tried from first to last; at most [`MAX_TERMS`] are looked at.
    pub terms: Vec<Term>,
    /// For routes no term decided.
    pub default: Verdict,
}

/// Terms of a policy beyond this many are refused by [`crate::SpeakerConfig::check`]: a refused route stores the number of its term in 16 bits.
pub const MAX_TERMS: usize = 65_000;

impl Policy {
    /// Lets every route pass unchanged.
    pub const fn accept_all() -> Self {
        Self {
            terms: Vec::new(),
            default: Verdict::Accept,
        }
    }

    /// Lets no route pass.
    pub const fn reject_all() -> Self {
        Self {
            terms: Vec::new(),
            default: Verdict::Reject,
        }
    }

    /// Adds `term` behind the others.
    #[must_use]
    pub fn with(mut self, term: Term) -> Self {
        self.terms.push(term);
        self
    }
}

/// One rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// Name, for the operator who asks why.
    pub name: String,
    /// All must hold; none means every route matches.
    #[serde(default)]
    pub when: Vec<Condition>,
    /// Changes to a route that matches, made in order.
    #[serde(default)]
    pub set: Vec<Change>,
    /// What becomes of a route that matches; `None` goes on to the next term.
    pub then: Option<Verdict>,
}

impl Term {
    /// A term that accepts what matches `when`.
    pub fn accept(name: impl Into<String>, when: Vec<Condition>) -> Self {
        Self {
            name: name.into(),
            when,
            set: Vec::new(),
            then: Some(Verdict::Accept),
        }
    }

    /// A term that rejects what matches `when`.
    pub fn reject(name: impl Into<String>, when: Vec<Condition>) -> Self {
        Self {
            name: name.into(),
            when,
            set: Vec::new(),
            then: Some(Verdict::Reject),
        }
    }

    /// The same term, making `change` as well.
    #[must_use]
    pub fn set(mut self, change: Change) -> Self {
        self.set.push(change);
        self
    }
}

/// Whether a route passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It does.
    Accept,
    /// It does not.
    Reject,
}

/// Something true or false of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// The prefix lies in one of these ranges.
    Prefix(Vec<PrefixRange>),
    /// The prefix lies in none of these ranges.
    NotPrefix(Vec<PrefixRange>),
    /// The route came into this speaker by one of these ways.
    Source(Vec<SourceKind>),
    /// The AS_PATH begins with these ASes, the neighbour first.
    AsPathPrefix(Vec<u32>),
    /// The route leaves by a link whose name matches one of these patterns, in which `*` stands for any text. Of a received route it is the link
    /// towards its next hop, of several the first by name: as the underlay says (see [`crate::Speaker::handle_underlay`]), or that of an unnumbered peer; of
    /// our own what [`crate::route::Origination::interface`] says. A route without a known link does not match.
    Interface(Vec<String>),
    /// The route has this priority, Calico's `priority`: the metric that it is to have in a forwarding table. We set it, or it came in LOCAL_PREF
    /// ([`crate::config::PeerConfig::priority_in_local_pref`]).
    Priority(u32),
    /// The route carries this community (RFC 1997).
    Community(Community),
    /// The route carries this large community (RFC 8092).
    LargeCommunity(LargeCommunity),
    /// The route carries this extended community (RFC 4360).
    ExtendedCommunity(ExtendedCommunity),
    /// The next hop lies in one of these networks.
    NextHop(Vec<IpNetwork>),
    /// The peer on the other side of this policy has one of these names.
    Peer(Vec<String>),
    /// The peer on the other side of this policy is of this kind.
    PeerKind(PeerKind),
}

/// A prefix and how long the prefixes below it may be that count as matching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixRange {
    /// The prefix that must cover the route's.
    pub within: Prefix,
    /// Shortest length that matches, in bits.
    pub min_length: u8,
    /// Longest length that matches, in bits.
    pub max_length: u8,
}

impl PrefixRange {
    /// Exactly `prefix`.
    pub fn exact(prefix: Prefix) -> Self {
        Self {
            within: prefix,
            min_length: prefix.length(),
            max_length: prefix.length(),
        }
    }

    /// `prefix` and everything inside.
    pub fn or_longer(prefix: Prefix) -> Self {
        Self {
            within: prefix,
            min_length: prefix.length(),
            max_length: 128,
        }
    }

    /// Whether `prefix` is in the range.
    pub fn contains(&self, prefix: Prefix) -> bool {
        (self.min_length..=self.max_length).contains(&prefix.length()) && self.within.covers(prefix)
    }
}

/// How a route came into this speaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// We announce it ourselves.
    Originated,
    /// From a peer in another AS.
    Ebgp,
    /// From a peer in our AS.
    Ibgp,
}

/// Whether a peer is in our AS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerKind {
    /// It is in another.
    Ebgp,
    /// It is in ours.
    Ibgp,
}

impl From<PeerKind> for SourceKind {
    fn from(kind: PeerKind) -> Self {
        match kind {
            PeerKind::Ebgp => Self::Ebgp,
            PeerKind::Ibgp => Self::Ibgp,
        }
    }
}

/// A change to a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Sets LOCAL_PREF.
    LocalPref(u32),
    /// Sets MULTI_EXIT_DISC.
    Med(u32),
    /// Removes MULTI_EXIT_DISC.
    RemoveMed,
    /// Adds a community.
    AddCommunity(Community),
    /// Removes a community.
    RemoveCommunity(Community),
    /// Adds a large community.
    AddLargeCommunity(LargeCommunity),
    /// Removes a large community.
    RemoveLargeCommunity(LargeCommunity),
    /// Adds an extended community.
    AddExtendedCommunity(ExtendedCommunity),
    /// Removes an extended community.
    RemoveExtendedCommunity(ExtendedCommunity),
    /// Makes the communities exactly these.
    SetCommunities(Vec<Community>),
    /// Makes the large communities exactly these.
    SetLargeCommunities(Vec<LargeCommunity>),
    /// Makes the extended communities exactly these.
    SetExtendedCommunities(Vec<ExtendedCommunity>),
    /// Puts `asn` in front of the AS_PATH `times` times.
    Prepend {
        /// The AS, usually our own.
        asn: u32,
        /// How often, at most 32.
        times: u8,
    },
    /// Sets the priority: see [`Condition::Priority`].
    Priority(u32),
    /// Sets the next hop.
    NextHop(IpAddr),
}
