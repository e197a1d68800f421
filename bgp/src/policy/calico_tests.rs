//! Each field of Calico's BGPFilter, as a term: what it says and what it leaves out.

use super::*;
use crate::wire::attr::{AsPath, Attributes, LocalFacts};

/// A rule of a BGPFilter, with the names of its fields.
#[derive(Default)]
struct Rule {
    cidr: Option<&'static str>,
    match_operator: Option<&'static str>,
    prefix_length: Option<(Option<u8>, Option<u8>)>,
    source: Option<&'static str>,
    interface: Option<&'static str>,
    peer_type: Option<&'static str>,
    communities: &'static [(u16, u16)],
    as_path_prefix: &'static [u32],
    priority: Option<u32>,
    action: &'static str,
    add_community: Option<(u16, u16)>,
    prepend_as_path: &'static [u32],
    set_priority: Option<u32>,
}

impl Rule {
    /// The term that means the same.
    fn term(&self) -> Term {
        let mut when = Vec::new();
        if let Some(cidr) = self.cidr {
            let within: Prefix = cidr.parse().expect("prefix");
            let (min, max) = self.prefix_length.unwrap_or_default();
            let range = PrefixRange {
                within,
                min_length: min.unwrap_or(within.length()),
                max_length: max.unwrap_or(128),
            };
            let exact = PrefixRange::exact(within);
            when.push(match self.match_operator {
                Some("In") => Condition::Prefix(vec![range]),
                Some("NotIn") => Condition::NotPrefix(vec![range]),
                Some("Equal") => Condition::Prefix(vec![exact]),
                Some("NotEqual") => Condition::NotPrefix(vec![exact]),
                other => panic!("{other:?}"),
            });
        }
        if self.source == Some("RemotePeers") {
            when.push(Condition::Source(vec![SourceKind::Ebgp, SourceKind::Ibgp]));
        }
        if let Some(interface) = self.interface {
            when.push(Condition::Interface(vec![interface.to_owned()]));
        }
        when.extend(self.peer_type.map(|kind| {
            Condition::PeerKind(match kind {
                "eBGP" => PeerKind::Ebgp,
                _ => PeerKind::Ibgp,
            })
        }));
        let community = |(high, low): &(u16, u16)| Community::new(*high, *low);
        when.extend(
            self.communities
                .iter()
                .map(|one| Condition::Community(community(one))),
        );
        if !self.as_path_prefix.is_empty() {
            when.push(Condition::AsPathPrefix(self.as_path_prefix.to_vec()));
        }
        when.extend(self.priority.map(Condition::Priority));
        let mut set: Vec<Change> = Vec::new();
        set.extend(
            self.add_community
                .as_ref()
                .map(|one| Change::AddCommunity(community(one))),
        );
        // The first of the list ends up in front.
        let prepend = |asn: &u32| Change::Prepend { asn: *asn, times: 1 };
        set.extend(self.prepend_as_path.iter().rev().map(prepend));
        set.extend(self.set_priority.map(Change::Priority));
        Term {
            name: "rule".to_owned(),
            when,
            set,
            then: Some(match self.action {
                "Accept" => Verdict::Accept,
                _ => Verdict::Reject,
            }),
        }
    }
}

fn attributes() -> Attributes {
    Attributes {
        as_path: AsPath::from_sequence(&[65001, 65002]),
        communities: [Community::new(1, 1), Community::new(1, 2)].into_iter().collect(),
        local: LocalFacts {
            priority: Some(512),
            interface: Some("vxlan.calico".into()),
        },
        ..Attributes::default()
    }
}

/// What a filter of one rule makes of a route; what no rule matches is accepted, as Calico has it.
fn outcome(rule: &Rule, prefix: &str, source: SourceKind) -> Result<Attributes, Option<u16>> {
    let view = RouteView {
        prefix: prefix.parse().expect("prefix"),
        source,
        peer: "tor",
        peer_kind: PeerKind::Ebgp,
        interface: None,
    };
    let policy = Policy::accept_all().with(rule.term());
    match evaluate(&policy, &view, &attributes()) {
        Outcome::Accept(accepted) => Ok(accepted.into_owned()),
        Outcome::Reject { term } => Err(term),
    }
}

#[test]
fn every_condition_of_a_filter_holds_and_fails_as_in_calico() {
    let cidr = |match_operator, prefix_length| Rule {
        cidr: Some("10.1.0.0/16"),
        match_operator: Some(match_operator),
        prefix_length,
        ..Rule::default()
    };
    let lengths = Some((Some(24), Some(26)));
    let other = Rule::default;
    for (rule, prefix, matches) in [
        (other(), "10.9.0.0/16", true),
        (cidr("In", None), "10.1.0.0/16", true),
        (cidr("In", None), "10.1.2.0/24", true),
        (cidr("In", None), "10.2.0.0/16", false),
        (cidr("In", None), "10.0.0.0/8", false),
        (cidr("In", lengths), "10.1.2.0/24", true),
        (cidr("In", lengths), "10.1.2.0/27", false),
        (cidr("In", lengths), "10.1.0.0/16", false),
        (cidr("In", Some((Some(24), None))), "10.1.2.3/32", true),
        (cidr("In", Some((None, Some(20)))), "10.1.0.0/20", true),
        (cidr("In", Some((None, Some(20)))), "10.1.0.0/21", false),
        (cidr("NotIn", None), "10.1.2.0/24", false),
        (cidr("NotIn", None), "10.2.0.0/16", true),
        (cidr("NotIn", lengths), "10.1.2.0/24", false),
        (cidr("NotIn", lengths), "10.1.2.0/27", true),
        (cidr("Equal", None), "10.1.0.0/16", true),
        (cidr("Equal", None), "10.1.2.0/24", false),
        (cidr("NotEqual", None), "10.1.0.0/16", false),
        (cidr("NotEqual", None), "10.1.2.0/24", true),
        (
            Rule {
                interface: Some("*.calico"),
                ..other()
            },
            "10.9.0.0/16",
            true,
        ),
        (
            Rule {
                interface: Some("eth*"),
                ..other()
            },
            "10.9.0.0/16",
            false,
        ),
        (
            Rule {
                peer_type: Some("eBGP"),
                ..other()
            },
            "10.9.0.0/16",
            true,
        ),
        (
            Rule {
                peer_type: Some("iBGP"),
                ..other()
            },
            "10.9.0.0/16",
            false,
        ),
        (
            Rule {
                communities: &[(1, 1)],
                ..other()
            },
            "10.9.0.0/16",
            true,
        ),
        (
            Rule {
                communities: &[(1, 1), (1, 2)],
                ..other()
            },
            "10.9.0.0/16",
            true,
        ),
        (
            Rule {
                communities: &[(1, 1), (1, 3)],
                ..other()
            },
            "10.9.0.0/16",
            false,
        ),
        (
            Rule {
                as_path_prefix: &[65001],
                ..other()
            },
            "10.9.0.0/16",
            true,
        ),
        (
            Rule {
                as_path_prefix: &[65002],
                ..other()
            },
            "10.9.0.0/16",
            false,
        ),
        (
            Rule {
                priority: Some(512),
                ..other()
            },
            "10.9.0.0/16",
            true,
        ),
        (
            Rule {
                priority: Some(1024),
                ..other()
            },
            "10.9.0.0/16",
            false,
        ),
    ] {
        let rule = Rule {
            action: "Reject",
            ..rule
        };
        let refused = outcome(&rule, prefix, SourceKind::Ebgp).err();
        assert_eq!(refused, matches.then_some(Some(0)), "{:?} {prefix}", rule.term());
    }
}

#[test]
fn the_source_of_a_filter_tells_peers_from_ourselves() {
    let rule = Rule {
        source: Some("RemotePeers"),
        action: "Reject",
        ..Rule::default()
    };
    for (source, refused) in [
        (SourceKind::Ebgp, true),
        (SourceKind::Ibgp, true),
        (SourceKind::Originated, false),
    ] {
        assert_eq!(
            outcome(&rule, "10.1.0.0/16", source).is_err(),
            refused,
            "{source:?}"
        );
    }
}

#[test]
fn operations_of_a_filter_change_what_it_accepts() {
    let rule = Rule {
        action: "Accept",
        add_community: Some((9, 9)),
        prepend_as_path: &[65010, 65011],
        set_priority: Some(1024),
        ..Rule::default()
    };
    let accepted = outcome(&rule, "10.1.0.0/16", SourceKind::Ebgp).expect("accepted");
    assert!(accepted.communities.contains(Community::new(9, 9)));
    assert_eq!(accepted.as_path.to_string(), "65010 65011 65001 65002");
    assert_eq!(accepted.local.priority, Some(1024));
}
