//! nftables: tables are made by the `nft` program (a script on its standard input) and read back by it (JSON from its
//! standard output); where only elements of sets differ, they are written to the kernel directly (`elements.rs`).
//!
//! Rules are recognised by a comment that each of them carries, the digest of its text: how `nft` prints a rule differs
//! between versions, the comment does not. Sets and chains are compared by what they contain. A pod that comes or goes
//! changes elements only: it costs no process, and the same beside ten others and beside a thousand.

mod change;
mod element;
mod elements;
mod parse;
mod ports;
mod program;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnetwork::IpNetwork;
use sha1::{Digest as _, Sha1};

pub use change::{ElementChange, NftChange, TableChange};
pub use element::{NftElement, NftPart};
pub use ports::OwnPorts;
pub(super) use program::{delete, list, tables};
pub(super) use writer::Writer;

/// A family of nftables in which there is a table of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NftFamily {
    /// IPv4 and IPv6.
    Inet,
    /// ARP.
    Arp,
}

/// Our tables, by family.
pub type NftTables = BTreeMap<NftFamily, NftTable>;

/// Our table of one family, as wanted or as seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NftTable {
    /// Named sets and maps.
    pub sets: BTreeMap<String, NftSet>,
    /// Base chains.
    pub chains: BTreeMap<String, NftChain>,
}

/// A named set or map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NftSet {
    /// Type of its elements: `ipv4_addr`, `ifname . ipv4_addr`.
    pub kind: String,
    /// Type of what they are mapped to; `None` for a set.
    pub maps_to: Option<String>,
    /// Whether an element may be a range of addresses (`flags interval`); no range lies in another.
    pub is_interval: bool,
    /// Its elements.
    pub elements: BTreeSet<NftElement>,
}

/// A base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftChain {
    /// Chain type: `nat`, `filter`.
    pub kind: String,
    /// Netfilter hook.
    pub hook: String,
    /// Priority in the hook.
    pub priority: i64,
    /// What happens to packets that no rule decides.
    pub policy: String,
    /// Its rules in order.
    pub rules: Vec<NftRule>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftRule {
    /// Its text in the language of `nft`; empty if it was read back.
    pub text: String,
    /// Its comment; `None` for a rule read back that has none, and so is not ours.
    pub comment: Option<String>,
}

impl NftFamily {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Inet, Self::Arp];

    /// Its name in `nft`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Arp => "arp",
        }
    }
}

impl NftSet {
    /// An empty set.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            ..Self::default()
        }
    }

    /// A set of address ranges of one family.
    #[must_use]
    pub fn of_ranges(is_ipv6: bool, ranges: impl IntoIterator<Item = IpNetwork>) -> Self {
        Self {
            is_interval: true,
            elements: ranges
                .into_iter()
                .filter(|range| range.is_ipv6() == is_ipv6)
                .map(|range| NftElement::key([NftPart::range(range)]))
                .collect(),
            ..Self::new(if is_ipv6 { "ipv6_addr" } else { "ipv4_addr" })
        }
    }

    /// Its elements whose key begins with this interface.
    pub fn elements_of(&self, interface: &str) -> impl Iterator<Item = &NftElement> {
        // Keys are ordered part by part: the shortest one comes first.
        let first = NftElement::key([NftPart::Interface(interface.to_owned())]);
        let is_of_interface = move |element: &&NftElement| matches!(element.key_parts(), [NftPart::Interface(name), ..] if name == interface);
        self.elements.range(first..).take_while(is_of_interface)
    }

    fn is_of_same_type(&self, other: &Self) -> bool {
        (&self.kind, &self.maps_to, self.is_interval) == (&other.kind, &other.maps_to, other.is_interval)
    }
}

impl NftRule {
    /// A rule of ours.
    #[must_use]
    pub fn new(text: &str) -> Self {
        use fmt::Write as _;

        let digest = Sha1::digest(text.as_bytes());
        let hex = digest.iter().take(8).fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        Self {
            text: text.to_owned(),
            comment: Some(format!("calidris:{hex}")),
        }
    }
}

impl NftTable {
    /// Whether a table that was read back has the chains, rules and sets of this one; the sets' elements aside.
    #[must_use]
    pub fn has_same_skeleton_as(&self, seen: &Self) -> bool {
        let comments = |chain: &NftChain| -> Vec<Option<String>> {
            chain.rules.iter().map(|rule| rule.comment.clone()).collect()
        };
        self.sets.keys().eq(seen.sets.keys())
            && self
                .sets
                .values()
                .zip(seen.sets.values())
                .all(|(wanted, seen)| wanted.is_of_same_type(seen))
            && self.chains.keys().eq(seen.chains.keys())
            && self
                .chains
                .values()
                .zip(seen.chains.values())
                .all(|(wanted, seen)| {
                    (&wanted.kind, &wanted.hook, wanted.priority, &wanted.policy)
                        == (&seen.kind, &seen.hook, seen.priority, &seen.policy)
                        && comments(wanted) == comments(seen)
                })
    }
}

impl fmt::Display for NftFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
