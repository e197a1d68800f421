//! Policies as tables: a route, a policy, what becomes of it.

use std::borrow::Cow;

use super::*;
use crate::wire::attr::{AsPath, Attributes, LocalFacts};

fn prefix(text: &str) -> Prefix {
    text.parse().expect("prefix")
}

fn route(prefix: Prefix) -> RouteView<'static> {
    RouteView {
        prefix,
        source: SourceKind::Ebgp,
        peer: "tor",
        peer_kind: PeerKind::Ebgp,
    }
}

fn attributes() -> Attributes {
    Attributes {
        as_path: AsPath::from_sequence(&[65001, 65002]),
        next_hop: Some(IpAddr::from([192, 0, 2, 1]).into()),
        communities: [Community::new(65001, 7)].into_iter().collect(),
        extended_communities: [extended("rt:65001:7")].into_iter().collect(),
        local: LocalFacts {
            priority: Some(512),
            interface: Some("eth0".into()),
        },
        ..Attributes::default()
    }
}

fn extended(text: &str) -> ExtendedCommunity {
    text.parse().expect("extended community")
}

/// Of attributes that are there already.
fn outcome<'a>(policy: &Policy, view: &RouteView<'_>, attributes: &'a Attributes) -> Outcome<'a> {
    evaluate(policy, view, Cow::Borrowed(attributes))
}

fn accepts(condition: Condition, view: &RouteView<'_>) -> bool {
    let policy = Policy::reject_all().with(Term::accept("it", vec![condition]));
    matches!(outcome(&policy, view, &attributes()), Outcome::Accept(_))
}

#[test]
fn prefix_ranges_match_by_cover_and_length() {
    let range = |within, min_length, max_length| PrefixRange {
        within: prefix(within),
        min_length,
        max_length,
    };
    for (range, candidate, matches) in [
        (PrefixRange::exact(prefix("10.0.0.0/8")), "10.0.0.0/8", true),
        (PrefixRange::exact(prefix("10.0.0.0/8")), "10.0.0.0/9", false),
        (PrefixRange::or_longer(prefix("10.0.0.0/8")), "10.1.2.3/32", true),
        (PrefixRange::or_longer(prefix("10.0.0.0/8")), "11.0.0.0/8", false),
        (PrefixRange::or_longer(prefix("10.0.0.0/8")), "0.0.0.0/0", false),
        (range("10.244.0.0/16", 26, 28), "10.244.1.0/26", true),
        (range("10.244.0.0/16", 26, 28), "10.244.1.0/25", false),
        (range("10.244.0.0/16", 26, 28), "10.244.1.0/29", false),
        (PrefixRange::or_longer(prefix("::/0")), "2001:db8::/32", true),
        (PrefixRange::or_longer(prefix("::/0")), "10.0.0.0/8", false),
        (
            PrefixRange::or_longer(prefix("0.0.0.0/0")),
            "2001:db8::/32",
            false,
        ),
    ] {
        assert_eq!(
            range.contains(prefix(candidate)),
            matches,
            "{range:?} {candidate}"
        );
        let view = route(prefix(candidate));
        assert_eq!(accepts(Condition::Prefix(vec![range]), &view), matches);
        assert_eq!(accepts(Condition::NotPrefix(vec![range]), &view), !matches);
    }
}

#[test]
fn every_condition_can_hold_and_fail() {
    let view = route(prefix("10.0.0.0/8"));
    let network = |text: &str| text.parse::<IpNetwork>().expect("network");
    let large = LargeCommunity {
        global_administrator: 65001,
        local_data_1: 1,
        local_data_2: 2,
    };
    for (condition, expected) in [
        (
            Condition::Source(vec![SourceKind::Originated, SourceKind::Ebgp]),
            true,
        ),
        (Condition::Source(vec![SourceKind::Ibgp]), false),
        (Condition::AsPathPrefix(vec![]), true),
        (Condition::AsPathPrefix(vec![65001]), true),
        (Condition::AsPathPrefix(vec![65001, 65002]), true),
        (Condition::AsPathPrefix(vec![65002]), false),
        (Condition::AsPathPrefix(vec![65001, 65002, 65003]), false),
        (Condition::Community(Community::new(65001, 7)), true),
        (Condition::Community(Community::new(65001, 8)), false),
        (Condition::LargeCommunity(large), false),
        (Condition::ExtendedCommunity(extended("rt:65001:7")), true),
        (Condition::ExtendedCommunity(extended("soo:65001:7")), false),
        (Condition::NextHop(vec![network("192.0.2.0/24")]), true),
        (
            Condition::NextHop(vec![network("198.51.100.0/24"), network("2001:db8::/32")]),
            false,
        ),
        (Condition::Peer(vec!["spine".into(), "tor".into()]), true),
        (Condition::Peer(vec!["spine".into()]), false),
        (Condition::Interface(vec!["wlan*".into(), "eth*".into()]), true),
        (Condition::Interface(vec!["eth1".into()]), false),
        (Condition::Priority(512), true),
        (Condition::Priority(1024), false),
        (Condition::PeerKind(PeerKind::Ebgp), true),
        (Condition::PeerKind(PeerKind::Ibgp), false),
    ] {
        assert_eq!(accepts(condition.clone(), &view), expected, "{condition:?}");
    }
}

#[test]
fn the_first_term_that_decides_wins_and_a_refusal_names_its_term() {
    let view = route(prefix("10.0.0.0/8"));
    let policy = Policy::accept_all()
        .with(Term::reject(
            "not this",
            vec![Condition::Peer(vec!["spine".into()])],
        ))
        .with(Term::reject("this", vec![]))
        .with(Term::accept("too late", vec![]));
    assert_eq!(
        outcome(&policy, &view, &attributes()),
        Outcome::Reject { term: Some(1) }
    );
    assert_eq!(
        outcome(&Policy::reject_all(), &view, &attributes()),
        Outcome::Reject { term: None }
    );
}

#[test]
fn later_terms_see_the_changes_of_earlier_ones() {
    let tag = Community::new(65000, 1);
    let policy = Policy::reject_all()
        .with(
            Term {
                then: None,
                ..Term::accept("tag", vec![])
            }
            .set(Change::AddCommunity(tag)),
        )
        .with(Term::accept("tagged", vec![Condition::Community(tag)]).set(Change::Med(5)));
    let given = attributes();
    let outcome = outcome(&policy, &route(prefix("10.0.0.0/8")), &given);
    let Outcome::Accept(changed) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(changed.communities.contains(tag) && changed.med == Some(5));
}

#[test]
fn an_unchanged_route_is_not_copied() {
    let given = attributes();
    let outcome = outcome(&Policy::accept_all(), &route(prefix("10.0.0.0/8")), &given);
    assert!(matches!(outcome, Outcome::Accept(Cow::Borrowed(_))));
}

#[test]
fn every_change_changes() {
    let view = route(prefix("10.0.0.0/8"));
    let large = LargeCommunity {
        global_administrator: 65001,
        local_data_1: 1,
        local_data_2: 2,
    };
    let after = |changes: Vec<Change>| {
        let term = Term {
            set: changes,
            ..Term::accept("change", vec![])
        };
        match outcome(&Policy::reject_all().with(term), &view, &attributes()) {
            Outcome::Accept(changed) => changed.into_owned(),
            Outcome::Reject { .. } => panic!("accepted by the term"),
        }
    };
    assert_eq!(after(vec![Change::LocalPref(7)]).local_pref, Some(7));
    assert_eq!(after(vec![Change::Med(7)]).med, Some(7));
    assert_eq!(after(vec![Change::Med(7), Change::RemoveMed]).med, None);
    assert!(
        after(vec![Change::RemoveCommunity(Community::new(65001, 7))])
            .communities
            .is_empty()
    );
    assert!(
        after(vec![Change::AddLargeCommunity(large)])
            .large_communities
            .contains(large)
    );
    let removed = after(vec![
        Change::AddLargeCommunity(large),
        Change::RemoveLargeCommunity(large),
    ]);
    assert!(removed.large_communities.is_empty());
    let (target, origin) = (extended("rt:65001:7"), extended("soo:1:1"));
    let extended = after(vec![
        Change::AddExtendedCommunity(origin),
        Change::RemoveExtendedCommunity(target),
    ]);
    assert_eq!(extended.extended_communities.as_slice(), [origin]);
    let exactly = after(vec![
        Change::SetCommunities(vec![Community::NO_EXPORT]),
        Change::SetLargeCommunities(vec![large]),
        Change::SetExtendedCommunities(vec![origin]),
    ]);
    assert_eq!(exactly.communities.as_slice(), [Community::NO_EXPORT]);
    assert_eq!(exactly.large_communities.as_slice(), [large]);
    assert_eq!(exactly.extended_communities.as_slice(), [origin]);
    let prepended = after(vec![Change::Prepend { asn: 65000, times: 2 }]).as_path;
    assert_eq!(prepended.to_string(), "65000 65000 65001 65002");
    assert_eq!(
        after(vec![Change::Prepend { asn: 1, times: 255 }])
            .as_path
            .path_length(),
        34
    );
    let next_hop = IpAddr::from([192, 0, 2, 9]);
    assert_eq!(
        after(vec![Change::NextHop(next_hop)]).next_hop,
        Some(next_hop.into())
    );
}

#[test]
fn patterns_of_links_match_with_stars() {
    for (pattern, name, fits) in [
        ("eth0", "eth0", true),
        ("eth0", "eth01", false),
        ("eth*", "eth01", true),
        ("*", "", true),
        ("*.calico", "vxlan.calico", true),
        ("*.calico", "vxlan.calico2", false),
        ("*.calico", "vxlan-calico", false),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-c-b", false),
        ("a*a", "a", false),
    ] {
        assert_eq!(passes_by(pattern, Some(name)), fits, "{pattern} {name}");
    }
    assert!(
        !passes_by("*", None),
        "of a link that is not known nothing is true"
    );
}

/// Whether a route that leaves by `link` fits a pattern.
fn passes_by(pattern: &str, link: Option<&str>) -> bool {
    let condition = Condition::Interface(vec![pattern.to_owned()]);
    let policy = Policy::reject_all().with(Term::accept("it", vec![condition]));
    let attributes = Attributes {
        local: LocalFacts {
            interface: link.map(Into::into),
            priority: None,
        },
        ..Attributes::default()
    };
    let outcome = outcome(&policy, &route(prefix("10.0.0.0/8")), &attributes);
    matches!(outcome, Outcome::Accept(_))
}
