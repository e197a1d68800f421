//! Runs a policy over one route.

use std::borrow::Cow;
use std::net::IpAddr;

use super::{Change, Condition, MAX_TERMS, PeerKind, Policy, SourceKind, Term, Verdict};
use crate::family::Prefix;
use crate::wire::attr::Attributes;

/// Most times an AS is put in front of a path by one change.
const MAX_PREPEND: u8 = 32;

/// What a policy sees of a route besides its attributes.
#[derive(Debug, Clone, Copy)]
pub struct RouteView<'a> {
    /// Where it leads.
    pub prefix: Prefix,
    /// How it came into this speaker.
    pub source: SourceKind,
    /// Name of the peer on the other side of the policy.
    pub peer: &'a str,
    /// Whether that peer is in our AS.
    pub peer_kind: PeerKind,
}

/// What a policy made of a route.
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "lives for one evaluation, on the stack")]
pub enum Outcome<'a> {
    /// It passes, with these attributes.
    Accept(Cow<'a, Attributes>),
    /// It does not.
    Reject {
        /// The number of the term that refused it; `None`: the default.
        term: Option<u16>,
    },
}

/// The outcome for one route. Later terms see the changes of earlier ones.
pub fn evaluate<'a>(policy: &Policy, route: &RouteView<'_>, attributes: Cow<'a, Attributes>) -> Outcome<'a> {
    evaluate_and_note(policy, route, attributes, |_| {})
}

/// The names of the terms that match a route, in order, up to the one that decides.
pub(crate) fn matching_terms(policy: &Policy, route: &RouteView<'_>, attributes: &Attributes) -> Vec<String> {
    let mut names = Vec::new();
    let attributes = Cow::Borrowed(attributes);
    let _outcome = evaluate_and_note(policy, route, attributes, |term| names.push(term.name.clone()));
    names
}

fn evaluate_and_note<'a>(
    policy: &Policy,
    route: &RouteView<'_>,
    mut attributes: Cow<'a, Attributes>,
    mut note: impl FnMut(&Term),
) -> Outcome<'a> {
    for (number, term) in policy.terms.iter().take(MAX_TERMS).enumerate() {
        if !term
            .when
            .iter()
            .all(|condition| holds(condition, route, &attributes))
        {
            continue;
        }
        note(term);
        if term.then == Some(Verdict::Reject) {
            return Outcome::Reject {
                term: u16::try_from(number).ok(),
            };
        }
        for change in &term.set {
            apply(change, attributes.to_mut());
        }
        if term.then == Some(Verdict::Accept) {
            return Outcome::Accept(attributes);
        }
    }
    match policy.default {
        Verdict::Accept => Outcome::Accept(attributes),
        Verdict::Reject => Outcome::Reject { term: None },
    }
}

impl Policy {
    /// Whether the outcome may differ between prefixes with the same attributes.
    pub(crate) fn depends_on_prefix(&self) -> bool {
        let by_prefix =
            |condition: &Condition| matches!(condition, Condition::Prefix(_) | Condition::NotPrefix(_));
        self.terms.iter().flat_map(|term| &term.when).any(by_prefix)
    }

    /// Whether the outcome may depend on the name of the peer.
    pub(crate) fn depends_on_peer(&self) -> bool {
        let by_name = |condition: &Condition| matches!(condition, Condition::Peer(_));
        self.terms.iter().flat_map(|term| &term.when).any(by_name)
    }

    /// Whether the outcome may depend on the link that a route leaves by.
    pub(crate) fn depends_on_link(&self) -> bool {
        let by_link = |condition: &Condition| matches!(condition, Condition::Interface(_));
        self.terms.iter().flat_map(|term| &term.when).any(by_link)
    }
}

fn holds(condition: &Condition, route: &RouteView<'_>, attributes: &Attributes) -> bool {
    match condition {
        Condition::Prefix(ranges) => ranges.iter().any(|range| range.contains(route.prefix)),
        Condition::NotPrefix(ranges) => !ranges.iter().any(|range| range.contains(route.prefix)),
        Condition::Source(kinds) => kinds.contains(&route.source),
        Condition::AsPathPrefix(asns) => {
            let mut path = attributes.as_path.asns();
            asns.iter().all(|asn| path.next() == Some(*asn))
        }
        Condition::Interface(patterns) => {
            let link = attributes.local.interface.as_deref();
            link.is_some_and(|name| patterns.iter().any(|pattern| fits(pattern, name)))
        }
        Condition::Priority(priority) => attributes.local.priority == Some(*priority),
        Condition::Community(community) => attributes.communities.contains(*community),
        Condition::LargeCommunity(community) => attributes.large_communities.contains(*community),
        Condition::ExtendedCommunity(community) => attributes.extended_communities.contains(*community),
        Condition::NextHop(networks) => attributes.next_hop.is_some_and(|next_hop| {
            networks
                .iter()
                .any(|network| network.contains(next_hop.address()))
        }),
        Condition::Peer(names) => names.iter().any(|name| name == route.peer),
        Condition::PeerKind(kind) => *kind == route.peer_kind,
    }
}

fn apply(change: &Change, attributes: &mut Attributes) {
    match change {
        Change::LocalPref(value) => attributes.local_pref = Some(*value),
        Change::Med(value) => attributes.med = Some(*value),
        Change::RemoveMed => attributes.med = None,
        Change::AddCommunity(community) => attributes.communities.insert(*community),
        Change::RemoveCommunity(community) => attributes.communities.retain(|other| other != community),
        Change::AddLargeCommunity(community) => attributes.large_communities.insert(*community),
        Change::RemoveLargeCommunity(community) => {
            attributes.large_communities.retain(|other| other != community);
        }
        Change::AddExtendedCommunity(community) => attributes.extended_communities.insert(*community),
        Change::RemoveExtendedCommunity(community) => {
            attributes.extended_communities.retain(|other| other != community);
        }
        Change::SetCommunities(all) => attributes.communities = all.iter().copied().collect(),
        Change::SetLargeCommunities(all) => attributes.large_communities = all.iter().copied().collect(),
        Change::SetExtendedCommunities(all) => {
            attributes.extended_communities = all.iter().copied().collect();
        }
        Change::Prepend { asn, times } => {
            attributes.as_path = attributes.as_path.prepend(*asn, (*times).min(MAX_PREPEND));
        }
        Change::Priority(priority) => attributes.local.priority = Some(*priority),
        Change::NextHop(address) => attributes.next_hop = Some(IpAddr::into(*address)),
    }
}

/// Whether `text` is what `pattern` says, in which `*` stands for any text.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(first) else {
        return false;
    };
    let mut pieces = rest.split('*').peekable();
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return text.ends_with(piece);
        }
        match text.split_once(piece) {
            Some((_, behind)) => text = behind,
            None => return false,
        }
    }
    true
}
