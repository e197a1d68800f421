//! Import and export policy as an operator writes it: one word, or a list of rules about prefixes.

use std::fmt;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Unexpected, Visitor};

/// What passes a session in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutePolicy {
    /// `"accept"`: everything.
    Accept,
    /// `"reject"`: nothing.
    Reject,
    /// `"own-blocks"`: what this node originates. Means nothing for import.
    OwnBlocks,
    /// Rules in order; what none matches is rejected.
    Rules(Vec<PrefixRule>),
}

/// One rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PrefixRuleKeys")]
pub struct PrefixRule {
    /// The prefix within which it matches, host bits zero.
    pub prefix: IpNetwork,
    /// Shortest length that matches, in bits; not below the prefix's own.
    pub min_length: u8,
    /// Longest length that matches, in bits; not below `min_length`.
    pub max_length: u8,
    /// What becomes of a route that matches.
    pub action: Action,
}

/// What becomes of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It passes.
    Accept,
    /// It does not.
    Reject,
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
        f.write_str("\"accept\", \"reject\", \"own-blocks\" (export only) or a list of prefix rules")
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
        let mut rules = Vec::new();
        while let Some(rule) = list.next_element()? {
            rules.push(rule);
        }
        Ok(RoutePolicy::Rules(rules))
    }
}

/// The keys of a rule, before they are compared with each other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PrefixRuleKeys {
    prefix: IpNetwork,
    min_length: Option<u8>,
    max_length: Option<u8>,
    action: Action,
}

impl TryFrom<PrefixRuleKeys> for PrefixRule {
    type Error = String;

    fn try_from(keys: PrefixRuleKeys) -> Result<Self, String> {
        let prefix = keys.prefix;
        let longest = if prefix.is_ipv4() { 32 } else { 128 };
        let min_length = keys.min_length.unwrap_or_else(|| prefix.prefix());
        let max_length = keys.max_length.unwrap_or(if keys.min_length.is_some() {
            longest
        } else {
            prefix.prefix()
        });
        without_host_bits(prefix)?;
        if min_length < prefix.prefix() || max_length < min_length || max_length > longest {
            return Err(format!(
                "prefix {prefix} with min_length {min_length} and max_length {max_length} matches nothing; expected {} ≤ min_length ≤ max_length ≤ {longest}",
                prefix.prefix()
            ));
        }
        Ok(Self {
            prefix,
            min_length,
            max_length,
            action: keys.action,
        })
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
