//! Next hops: whether packets get there, over which neighbours, and what that costs (RFC 4271 §9.1.2.1, §9.1.2.2 e).
//!
//! The driver says how the machine reaches other addresses without BGP, the *underlay*: its links, and what an IGP or an operator put into its
//! routing table. A next hop is resolved by the longest match among these and the best routes of BGP itself, whose next hops are resolved in turn;
//! a chain never passes the same next hop twice, so that no route holds itself up.
//!
//! Without an underlay every next hop counts as reachable at no cost. A link-local next hop always does: its link is the session's.
//! What a next hop resolves to is kept here for all that attribute sets name; routes that depend on it are looked at again when it changes. So is, where a
//! policy asks for it, the name of the link that packets leave by. Where there is no underlay, the subnets of the machine's links tell that of a next hop
//! on one of them, and nothing else.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::config::LinkNames;
use crate::family::{FamilyPrefix, Ipv4Prefix, Ipv6Prefix, Prefix};
use crate::route::NextHop;

/// Routes of BGP that may lie between a next hop and the underlay.
const MAX_DEPTH: usize = 8;

/// Next hops resolved at a time; more than any network has, and few enough to resolve again at once. Others are unreachable.
const MAX_NEXT_HOPS: usize = 16_384;

/// How the machine reaches prefixes without BGP.
pub type Underlay = BTreeMap<Prefix, UnderlayRoute>;

/// Names of the machine's links by the subnets on them.
pub type Links = BTreeMap<Prefix, String>;

/// How the machine reaches one prefix without BGP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnderlayRoute {
    /// What it costs; lower is nearer.
    pub metric: u32,
    /// The neighbours packets go to; none when the prefix is on a link of ours.
    pub via: Vec<NextHop>,
    /// Names of the links they leave by.
    pub links: Vec<String>,
}

/// Where packets to a next hop go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    /// What it costs.
    pub cost: u32,
    /// The neighbours on our links: the next hop itself, or those on the way to it. Ascending, without duplicates.
    pub via: Vec<NextHop>,
    /// The name of the link that packets leave by, of several the first; `None` where the underlay does not say.
    pub link: Option<String>,
}

/// What a next hop resolves to.
#[derive(Debug, Clone, Default)]
struct Entry {
    resolved: Option<Resolved>,
    /// The prefix that was its longest match in the underlay: only longer ones of BGP can change the answer.
    underlay: Option<Prefix>,
}

/// All next hops in use, resolved.
#[derive(Debug, Default)]
pub struct NextHops {
    underlay: Option<Underlay>,
    /// Asked for names only, and only without an underlay.
    links: Links,
    entries: BTreeMap<IpAddr, Entry>,
    /// Some have not been resolved through BGP yet.
    pending: bool,
    link_names: LinkNames,
}

impl NextHops {
    /// Whether next hops are resolved at all.
    pub const fn is_active(&self) -> bool {
        self.underlay.is_some()
    }

    /// Whether there is a next hop that nobody has resolved yet.
    pub const fn is_pending(&self) -> bool {
        self.pending
    }

    /// Replaces the underlay; `None`: every next hop is reachable. [`NextHops::resolve_all`] is to follow.
    pub fn set_underlay(&mut self, underlay: Option<Underlay>) {
        self.underlay = underlay;
        self.pending = true;
    }

    /// What it costs to get to `next_hop`; `None` when there is no way. One that is new is noted, and unreachable until it is resolved.
    pub fn cost(&mut self, next_hop: Option<IpAddr>) -> Option<u32> {
        let (Some(address), true) = (next_hop, self.is_active()) else {
            return Some(0);
        };
        if is_link_local(address) {
            return Some(0);
        }
        if let Some(entry) = self.entries.get(&address) {
            return entry.resolved.as_ref().map(|resolved| resolved.cost);
        }
        if self.entries.len() < MAX_NEXT_HOPS {
            self.entries.insert(address, Entry::default());
            self.pending = true;
        }
        None
    }

    /// Where packets to `next_hop` go.
    pub fn via(&self, next_hop: NextHop) -> Vec<NextHop> {
        if !self.is_active() || is_link_local(next_hop.address) {
            return vec![next_hop];
        }
        let entry = self.entries.get(&next_hop.address);
        let resolved = entry.and_then(|entry| entry.resolved.as_ref());
        resolved.map_or_else(Vec::new, |resolved| resolved.via.clone())
    }

    /// Whether anybody asks for the names of links.
    pub const fn notes_links(&self) -> bool {
        matches!(self.link_names, LinkNames::Noted)
    }

    /// Has the names of links noted or not; whether that is new.
    pub fn note_links(&mut self, link_names: LinkNames) -> bool {
        std::mem::replace(&mut self.link_names, link_names) != link_names
    }

    /// Replaces what is known of the links; whether that makes other names.
    pub fn set_links(&mut self, links: Links) -> bool {
        let is_new = self.links != links;
        self.links = links;
        is_new && self.notes_links() && !self.is_active()
    }

    /// The name of the link that packets to `next_hop` leave by, where it is known and somebody asks.
    pub fn link(&self, next_hop: IpAddr) -> Option<&str> {
        if !self.notes_links() {
            return None;
        }
        if !self.is_active() {
            let link = prefixes_of(next_hop).find_map(|prefix| self.links.get(&prefix));
            return link.map(String::as_str);
        }
        self.entries.get(&next_hop)?.resolved.as_ref()?.link.as_deref()
    }

    /// Whether a change of the best route to `prefix` may change what a next hop resolves to.
    pub fn depend_on(&self, prefix: Prefix) -> bool {
        let longer = |entry: &Entry| {
            entry
                .underlay
                .is_none_or(|underlay| prefix.length() > underlay.length())
        };
        let mut covered = self
            .entries
            .range(prefix.address()..)
            .take_while(|(address, _)| prefix.covers(host(**address)));
        self.is_active() && covered.any(|(_, entry)| longer(entry))
    }

    /// Forgets the next hops that are not `in_use`.
    pub fn retain(&mut self, in_use: impl Fn(IpAddr) -> bool) {
        self.entries.retain(|address, _| in_use(*address));
    }

    /// Resolves every next hop anew; `best` tells the next hops of the best route to exactly a prefix, if peers announced it. Returns those for which the answer is another one than before, ascending.
    pub fn resolve_all(&mut self, best: impl Fn(Prefix) -> Option<Vec<NextHop>>) -> Vec<IpAddr> {
        self.pending = false;
        let addresses: Vec<IpAddr> = self.entries.keys().copied().collect();
        let mut changed = Vec::new();
        for address in addresses {
            let underlay = self.underlay.as_ref();
            let new = Entry {
                underlay: underlay.and_then(|underlay| longest(underlay, address)),
                resolved: underlay.and_then(|underlay| resolve(underlay, &best, address, &mut Vec::new())),
            };
            if let Some(entry) = self.entries.get_mut(&address) {
                if entry.resolved != new.resolved {
                    changed.push(address);
                }
                *entry = new;
            }
        }
        changed
    }
}

/// `chain` holds the next hops that led here.
fn resolve(
    underlay: &Underlay,
    best: &impl Fn(Prefix) -> Option<Vec<NextHop>>,
    address: IpAddr,
    chain: &mut Vec<IpAddr>,
) -> Option<Resolved> {
    if chain.len() >= MAX_DEPTH || chain.contains(&address) {
        return None;
    }
    chain.push(address);
    let found = prefixes_of(address).find_map(|prefix| {
        if let Some(route) = underlay.get(&prefix) {
            return Some(route.resolved(address));
        }
        through(underlay, best, &best(prefix)?, chain)
    });
    chain.pop();
    found
}

/// Through a route of BGP: over all its next hops that lead somewhere, at the cost of the nearest.
fn through(
    underlay: &Underlay,
    best: &impl Fn(Prefix) -> Option<Vec<NextHop>>,
    next_hops: &[NextHop],
    chain: &mut Vec<IpAddr>,
) -> Option<Resolved> {
    let mut all: Option<Resolved> = None;
    for next_hop in next_hops {
        let one = if is_link_local(next_hop.address) {
            Some(Resolved {
                via: vec![*next_hop],
                ..Resolved::default()
            })
        } else {
            resolve(underlay, best, next_hop.address, chain)
        };
        all = match (all, one) {
            (Some(mut all), Some(one)) => {
                all.cost = all.cost.min(one.cost);
                all.via.extend(one.via);
                all.link = all.link.into_iter().chain(one.link).min();
                Some(all)
            }
            (all, one) => all.or(one),
        };
    }
    let mut all = all?;
    all.via.sort_unstable();
    all.via.dedup();
    Some(all)
}

impl UnderlayRoute {
    fn resolved(&self, address: IpAddr) -> Resolved {
        let mut via = self.via.clone();
        if via.is_empty() {
            via.push(NextHop {
                address,
                scope_id: None,
            });
        }
        via.sort_unstable();
        via.dedup();
        Resolved {
            cost: self.metric,
            via,
            link: self.links.iter().min().cloned(),
        }
    }
}

fn longest(underlay: &Underlay, address: IpAddr) -> Option<Prefix> {
    prefixes_of(address).find(|prefix| underlay.contains_key(prefix))
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn host(address: IpAddr) -> Prefix {
    match address {
        IpAddr::V4(address) => Prefix::V4(Ipv4Prefix::host(address)),
        IpAddr::V6(address) => Prefix::V6(Ipv6Prefix::host(address)),
    }
}

/// All prefixes that cover an address, the longest first.
fn prefixes_of(address: IpAddr) -> impl Iterator<Item = Prefix> {
    let longest = match address {
        IpAddr::V4(_) => Ipv4Prefix::MAX_LENGTH,
        IpAddr::V6(_) => Ipv6Prefix::MAX_LENGTH,
    };
    (0..=longest).rev().filter_map(move |length| match address {
        IpAddr::V4(address) => Ipv4Prefix::new(address, length).map(Prefix::V4),
        IpAddr::V6(address) => Ipv6Prefix::new(address, length).map(Prefix::V6),
    })
}
