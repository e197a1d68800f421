//! What passes a session: BGPFilters, then what Calico's nodes do by themselves.
//!
//! On import everything else is accepted. On export, behind the filters, routes get the communities of their
//! `prefixAdvertisements`; this node's own pass, those of others while they lie in a pool that may be exported, and nothing else.

use calidris_bgp::family::Prefix;
use calidris_bgp::policy::{Change, Condition, PeerKind, Policy, PrefixRange, SourceKind, Term, Verdict};

use super::Deriving;
use crate::desired::default_prefix;
use crate::model::peering::{AnyCommunity, CidrMatch, FilterOperation, FilterRule, PrefixAdvertisement};

impl Deriving<'_> {
    /// Import and export policy with these filters.
    pub(super) fn policies(&self, filters: &[String]) -> (Policy, Policy) {
        let (mut import, mut export) = (Policy::accept_all(), Policy::reject_all());
        for name in filters {
            if let Some(filter) = self.peering.filters.get(name) {
                import
                    .terms
                    .extend(filter.import.iter().map(|rule| term(name, rule)));
                export
                    .terms
                    .extend(filter.export.iter().map(|rule| term(name, rule)));
            }
        }
        let of_node = self.configuration_of(self.local.node);
        let advertisements = of_node
            .filter(|configuration| !configuration.prefix_advertisements.is_empty())
            .or_else(|| self.default_configuration())
            .map_or(&[][..], |configuration| {
                configuration.prefix_advertisements.as_slice()
            });
        export.terms.extend(advertisements.iter().map(communities));
        let own = vec![Condition::Source(vec![SourceKind::Originated])];
        export.terms.push(Term::accept("own-routes", own));
        let within = |is_exported: bool| {
            let pools = self.peering.pools.values();
            let pools = pools.filter(|pool| pool.disable_bgp_export != is_exported);
            let ranges = pools.map(|pool| PrefixRange::or_longer(Prefix::from(pool.cidr)));
            vec![Condition::Prefix(ranges.collect())]
        };
        export
            .terms
            .push(Term::reject("pools-not-exported", within(false)));
        export.terms.push(Term::accept("pools", within(true)));
        (import, export)
    }
}

/// The term of a rule, named by its place.
fn term(filter: &str, rule: &FilterRule) -> Term {
    let mut when = Vec::new();
    let is_bound = rule.cidr.is_some_and(|cidr| !cidr.negated);
    if !is_bound {
        when.push(Condition::Prefix(vec![PrefixRange::or_longer(Prefix::from(
            default_prefix(rule.is_ipv6),
        ))]));
    }
    when.extend(rule.cidr.map(prefix_condition));
    if rule.from_peers {
        when.push(Condition::Source(vec![SourceKind::Ebgp, SourceKind::Ibgp]));
    }
    when.extend(
        rule.interface
            .clone()
            .map(|pattern| Condition::Interface(vec![pattern])),
    );
    when.extend(
        rule.ebgp
            .map(|ebgp| Condition::PeerKind(if ebgp { PeerKind::Ebgp } else { PeerKind::Ibgp })),
    );
    when.extend(rule.communities.iter().map(|community| match community {
        AnyCommunity::Standard(standard) => Condition::Community(*standard),
        AnyCommunity::Large(large) => Condition::LargeCommunity(*large),
    }));
    if !rule.as_path_prefix.is_empty() {
        when.push(Condition::AsPathPrefix(rule.as_path_prefix.clone()));
    }
    when.extend(rule.priority.map(Condition::Priority));
    Term {
        name: format!("{filter} {}", rule.place),
        when,
        set: rule.operations.iter().flat_map(changes).collect(),
        then: Some(if rule.accept {
            Verdict::Accept
        } else {
            Verdict::Reject
        }),
    }
}

fn prefix_condition(cidr: CidrMatch) -> Condition {
    let within = Prefix::from(cidr.cidr);
    let range = if cidr.exact {
        PrefixRange::exact(within)
    } else {
        let all = PrefixRange::or_longer(within);
        PrefixRange {
            within,
            min_length: cidr.min_length.unwrap_or(all.min_length),
            max_length: cidr.max_length.unwrap_or(all.max_length),
        }
    };
    if cidr.negated {
        Condition::NotPrefix(vec![range])
    } else {
        Condition::Prefix(vec![range])
    }
}

fn changes(operation: &FilterOperation) -> Vec<Change> {
    match operation {
        FilterOperation::AddCommunity(community) => vec![add(community)],
        FilterOperation::PrependAsPath(asns) => {
            let prepend = |asn: &u32| Change::Prepend { asn: *asn, times: 1 };
            asns.iter().rev().map(prepend).collect()
        }
        FilterOperation::SetPriority(priority) => vec![Change::Priority(*priority)],
    }
}

fn add(community: &AnyCommunity) -> Change {
    match community {
        AnyCommunity::Standard(community) => Change::AddCommunity(*community),
        AnyCommunity::Large(community) => Change::AddLargeCommunity(*community),
    }
}

/// A term that marks what lies in the advertisement's range, and decides nothing.
fn communities(advertisement: &PrefixAdvertisement) -> Term {
    Term {
        name: format!("prefixAdvertisements {}", advertisement.cidr),
        when: vec![Condition::Prefix(vec![PrefixRange::or_longer(Prefix::from(
            advertisement.cidr,
        ))])],
        set: advertisement.communities.iter().map(add).collect(),
        then: None,
    }
}
