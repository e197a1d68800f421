//! Import and export policy as an operator writes it: one word, or a list of rules.
//!
//! A rule is a term of [`calidris_bgp::policy`]: all its conditions must hold; then its changes are made and its action
//! decides, or goes on to the next rule with the changed route. What no rule decides is rejected. A key that takes several values takes a
//! single one as well.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use calidris_bgp::family::Prefix;
use calidris_bgp::policy::{Change, Condition, PeerKind, Policy, PrefixRange, SourceKind, Term, Verdict};
use calidris_bgp::wire::attr::{Community, ExtendedCommunity, LargeCommunity};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde::de::value::{SeqAccessDeserializer, StrDeserializer};
use serde::de::{Deserializer, Error, SeqAccess, Unexpected, Visitor};

/// The most AS numbers that one rule puts in front of a path.
const MAX_PREPENDED: usize = 32;

/// What passes a session in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutePolicy {
    /// `"accept"`: everything.
    Accept,
    /// `"reject"`: nothing.
    Reject,
    /// `"own-blocks"`: what this node originates. Means nothing for import.
    OwnBlocks,
    /// Rules in order; what none decides is rejected.
    Rules(Vec<Term>),
}

/// What becomes of a route that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    /// It passes.
    Accept,
    /// It does not.
    Reject,
    /// The next rule looks at it, as this one changed it.
    Next,
}

/// A rule as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleKeys {
    /// Its name where a route is explained; `rule-N` when absent.
    name: Option<String>,
    /// The prefix lies in one of these.
    #[serde(default, deserialize_with = "several_prefixes")]
    prefix: Option<Vec<IpNetwork>>,
    /// The prefix lies in none of these.
    #[serde(default, deserialize_with = "several_prefixes")]
    not_prefix: Option<Vec<IpNetwork>>,
    /// Shortest length that counts, in bits.
    min_length: Option<u8>,
    /// Longest length that counts, in bits.
    max_length: Option<u8>,
    #[serde(default, deserialize_with = "several")]
    source: Option<Vec<SourceKind>>,
    peer_kind: Option<PeerKind>,
    #[serde(default, deserialize_with = "several")]
    peer: Option<Vec<String>>,
    #[serde(default, deserialize_with = "several")]
    interface: Option<Vec<String>>,
    #[serde(default, deserialize_with = "several_prefixes")]
    next_hop: Option<Vec<IpNetwork>>,
    as_path_prefix: Option<Vec<u32>>,
    #[serde(default, deserialize_with = "several")]
    communities: Option<Vec<Community>>,
    #[serde(default, deserialize_with = "several")]
    large_communities: Option<Vec<LargeCommunity>>,
    #[serde(default, deserialize_with = "several")]
    extended_communities: Option<Vec<ExtendedCommunity>>,
    priority: Option<u32>,
    action: Action,
    set_local_pref: Option<u32>,
    set_med: Option<u32>,
    #[serde(default)]
    remove_med: bool,
    set_priority: Option<u32>,
    set_next_hop: Option<IpAddr>,
    /// AS numbers to put in front of the path; the first one ends up foremost.
    #[serde(default)]
    prepend: Vec<u32>,
    set_communities: Option<Vec<Community>>,
    #[serde(default)]
    add_communities: Vec<Community>,
    #[serde(default)]
    remove_communities: Vec<Community>,
    set_large_communities: Option<Vec<LargeCommunity>>,
    #[serde(default)]
    add_large_communities: Vec<LargeCommunity>,
    #[serde(default)]
    remove_large_communities: Vec<LargeCommunity>,
    set_extended_communities: Option<Vec<ExtendedCommunity>>,
    #[serde(default)]
    add_extended_communities: Vec<ExtendedCommunity>,
    #[serde(default)]
    remove_extended_communities: Vec<ExtendedCommunity>,
}

/// A rule; its term has no name yet if the operator gave it none.
#[derive(Deserialize)]
#[serde(try_from = "RuleKeys")]
struct Rule(Term);

impl RoutePolicy {
    /// The speaker's policy.
    pub(super) fn to_policy(&self) -> Policy {
        match self {
            Self::Accept => Policy::accept_all(),
            Self::Reject => Policy::reject_all(),
            Self::OwnBlocks => Policy::reject_all().with(Term::accept(
                "own-blocks",
                vec![Condition::Source(vec![SourceKind::Originated])],
            )),
            Self::Rules(terms) => Policy {
                terms: terms.clone(),
                ..Policy::reject_all()
            },
        }
    }
}

impl TryFrom<RuleKeys> for Rule {
    type Error = String;

    fn try_from(keys: RuleKeys) -> Result<Self, String> {
        let (when, set) = (keys.conditions()?, keys.changes());
        if keys.action == Action::Reject && !set.is_empty() {
            return Err(
                "a rule with action = \"reject\" changes nothing; expected \"accept\" or \"next\", or no key that sets, adds, removes or prepends"
                    .to_owned(),
            );
        }
        if keys.prepend.len() > MAX_PREPENDED {
            return Err(format!(
                "prepend has {} AS numbers; expected at most {MAX_PREPENDED}",
                keys.prepend.len()
            ));
        }
        if keys.priority == Some(0) || keys.set_priority == Some(0) {
            return Err("priority and set_priority: expected 1 to 4294967295".to_owned());
        }
        let name = keys.name.unwrap_or_default();
        if name.len() > 64 || name.contains(char::is_control) {
            return Err(format!("name {name:?}: expected at most 64 printable characters"));
        }
        Ok(Self(Term {
            name,
            when,
            set,
            then: match keys.action {
                Action::Accept => Some(Verdict::Accept),
                Action::Reject => Some(Verdict::Reject),
                Action::Next => None,
            },
        }))
    }
}

impl RuleKeys {
    fn conditions(&self) -> Result<Vec<Condition>, String> {
        let mut when = Vec::new();
        let has_length = self.min_length.is_some() || self.max_length.is_some();
        if has_length && self.prefix.is_none() && self.not_prefix.is_none() {
            return Err("min_length and max_length say which lengths of prefix or not_prefix count; expected one of these".to_owned());
        }
        if let Some(prefixes) = &self.prefix {
            when.push(Condition::Prefix(self.ranges(prefixes)?));
        }
        if let Some(prefixes) = &self.not_prefix {
            when.push(Condition::NotPrefix(self.ranges(prefixes)?));
        }
        when.extend(self.source.clone().map(Condition::Source));
        when.extend(self.peer_kind.map(Condition::PeerKind));
        when.extend(self.peer.clone().map(Condition::Peer));
        when.extend(self.interface.clone().map(Condition::Interface));
        when.extend(self.next_hop.clone().map(Condition::NextHop));
        when.extend(self.as_path_prefix.clone().map(Condition::AsPathPrefix));
        when.extend(carried(&self.communities, Condition::Community));
        when.extend(carried(&self.large_communities, Condition::LargeCommunity));
        when.extend(carried(&self.extended_communities, Condition::ExtendedCommunity));
        when.extend(self.priority.map(Condition::Priority));
        Ok(when)
    }

    fn ranges(&self, prefixes: &[IpNetwork]) -> Result<Vec<PrefixRange>, String> {
        prefixes.iter().map(|prefix| self.range(*prefix)).collect()
    }

    fn range(&self, prefix: IpNetwork) -> Result<PrefixRange, String> {
        let longest = if prefix.is_ipv4() { 32 } else { 128 };
        let min_length = self.min_length.unwrap_or_else(|| prefix.prefix());
        let max_length = self.max_length.unwrap_or(if self.min_length.is_some() {
            longest
        } else {
            prefix.prefix()
        });
        if min_length < prefix.prefix() || max_length < min_length || max_length > longest {
            return Err(format!(
                "prefix {prefix} with min_length {min_length} and max_length {max_length} matches nothing; expected {} ≤ min_length ≤ max_length ≤ {longest}",
                prefix.prefix()
            ));
        }
        Ok(PrefixRange {
            within: Prefix::from(prefix),
            min_length,
            max_length,
        })
    }

    /// In an order in which each does what it says: a set first, then what is added to it and removed from it.
    fn changes(&self) -> Vec<Change> {
        let mut set = Vec::new();
        set.extend(self.set_local_pref.map(Change::LocalPref));
        set.extend(self.remove_med.then_some(Change::RemoveMed));
        set.extend(self.set_med.map(Change::Med));
        set.extend(self.set_priority.map(Change::Priority));
        set.extend(self.set_next_hop.map(Change::NextHop));
        let prepend = |asn: &u32| Change::Prepend { asn: *asn, times: 1 };
        set.extend(self.prepend.iter().rev().map(prepend));
        set.extend(self.set_communities.clone().map(Change::SetCommunities));
        set.extend(self.add_communities.iter().copied().map(Change::AddCommunity));
        set.extend(
            self.remove_communities
                .iter()
                .copied()
                .map(Change::RemoveCommunity),
        );
        set.extend(
            self.set_large_communities
                .clone()
                .map(Change::SetLargeCommunities),
        );
        set.extend(
            self.add_large_communities
                .iter()
                .copied()
                .map(Change::AddLargeCommunity),
        );
        let removed = self.remove_large_communities.iter().copied();
        set.extend(removed.map(Change::RemoveLargeCommunity));
        set.extend(
            self.set_extended_communities
                .clone()
                .map(Change::SetExtendedCommunities),
        );
        let added = self.add_extended_communities.iter().copied();
        set.extend(added.map(Change::AddExtendedCommunity));
        let removed = self.remove_extended_communities.iter().copied();
        set.extend(removed.map(Change::RemoveExtendedCommunity));
        set
    }
}

/// A condition for each of the communities: a route must carry them all.
fn carried<T: Copy>(
    communities: &Option<Vec<T>>,
    condition: impl Fn(T) -> Condition,
) -> impl Iterator<Item = Condition> {
    communities.iter().flatten().copied().map(condition)
}

impl<'de> Deserialize<'de> for RoutePolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PolicyVisitor)
    }
}

struct PolicyVisitor;

impl<'de> Visitor<'de> for PolicyVisitor {
    type Value = RoutePolicy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"accept\", \"reject\", \"own-blocks\" (export only) or a list of rules")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<RoutePolicy, E> {
        match word {
            "accept" => Ok(RoutePolicy::Accept),
            "reject" => Ok(RoutePolicy::Reject),
            "own-blocks" => Ok(RoutePolicy::OwnBlocks),
            _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RoutePolicy, A::Error> {
        let mut terms = Vec::new();
        while let Some(Rule(mut term)) = list.next_element()? {
            if term.name.is_empty() {
                term.name = format!("rule-{}", terms.len().saturating_add(1));
            }
            terms.push(term);
        }
        Ok(RoutePolicy::Rules(terms))
    }
}

/// `prefix`, if no bit behind its length is set.
///
/// # Errors
/// What was expected instead.
pub(super) fn without_host_bits(prefix: IpNetwork) -> Result<IpNetwork, String> {
    if prefix.network() == prefix.ip() {
        return Ok(prefix);
    }
    Err(format!(
        "prefix {prefix} has host bits set; expected {}/{}",
        prefix.network(),
        prefix.prefix()
    ))
}

/// Reads one value, or a list of at least one.
fn several<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    deserializer
        .deserialize_any(SeveralVisitor(PhantomData))
        .map(Some)
}

/// As [`several`], for prefixes without host bits.
fn several_prefixes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<IpNetwork>>, D::Error> {
    let prefixes: Option<Vec<IpNetwork>> = several(deserializer)?;
    for prefix in prefixes.iter().flatten() {
        without_host_bits(*prefix).map_err(D::Error::custom)?;
    }
    Ok(prefixes)
}

struct SeveralVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for SeveralVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, or a list of at least one")
    }

    fn visit_str<E: Error>(self, one: &str) -> Result<Vec<T>, E> {
        Ok(vec![T::deserialize(StrDeserializer::new(one))?])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<T>, A::Error> {
        let all = Vec::deserialize(SeqAccessDeserializer::new(list))?;
        if all.is_empty() {
            return Err(A::Error::custom("the list is empty; expected at least one"));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests;
