//! Each field of a BGPFilter: what of routes it says and what it leaves out, from the text of the resource to the verdict.

use std::borrow::Cow;

use calidris_bgp::policy::{Outcome, PeerKind, RouteView, SourceKind, evaluate};
use calidris_bgp::wire::attr::{AsPath, Attributes, Community, LocalFacts};

use super::policies;

/// What everybody is asked about: AS path 65001 65002, communities 1:1 and 1:2 and a large one, priority 512, by vxlan.calico.
fn attributes() -> Attributes {
    Attributes {
        as_path: AsPath::from_sequence(&[65001, 65002]),
        communities: [Community::new(1, 1), Community::new(1, 2)].into_iter().collect(),
        large_communities: ["1:2:3".parse().unwrap()].into_iter().collect(),
        local: LocalFacts {
            priority: Some(512),
            interface: Some("vxlan.calico".into()),
        },
        ..Attributes::default()
    }
}

/// What a filter of one IPv4 rule makes of a route from `source`, towards or from an external peer.
fn outcome(rule: &str, prefix: &str, source: SourceKind) -> Result<Attributes, Option<u16>> {
    let filter = format!(r#"{{"importV4":[{{{rule}}}]}}"#);
    let peer = r#"{"peerIP":"192.0.2.1","asNumber":65000,"filters":["f"]}"#;
    let (import, _) = policies(&[("peer/tor", peer), ("filter/f", &filter)]);
    let view = RouteView {
        prefix: prefix.parse().unwrap(),
        source,
        peer: "tor",
        peer_kind: PeerKind::Ebgp,
    };
    match evaluate(&import, &view, Cow::Owned(attributes())) {
        Outcome::Accept(accepted) => Ok(accepted.into_owned()),
        Outcome::Reject { term } => Err(term),
    }
}

#[test]
fn every_condition_of_a_filter_holds_and_fails_as_in_calico() {
    let cidr = |operator: &str, lengths: &str| {
        let lengths = if lengths.is_empty() {
            String::new()
        } else {
            format!(r#","prefixLength":{{{lengths}}}"#)
        };
        format!(r#""cidr":"10.1.0.0/16","matchOperator":"{operator}"{lengths}"#)
    };
    let plain = str::to_owned;
    let lengths = r#""min":24,"max":26"#;
    for (conditions, prefix, matches) in [
        (plain(""), "10.9.0.0/16", true),
        (plain(""), "2001:db8::/32", false),
        (cidr("In", ""), "10.1.0.0/16", true),
        (cidr("In", ""), "10.1.2.0/24", true),
        (cidr("In", ""), "10.2.0.0/16", false),
        (cidr("In", ""), "10.0.0.0/8", false),
        (cidr("In", lengths), "10.1.2.0/24", true),
        (cidr("In", lengths), "10.1.2.0/27", false),
        (cidr("In", lengths), "10.1.0.0/16", false),
        (cidr("In", r#""min":24"#), "10.1.2.3/32", true),
        (cidr("In", r#""min":8"#), "10.0.0.0/8", false),
        (cidr("In", r#""max":20"#), "10.1.0.0/20", true),
        (cidr("In", r#""max":20"#), "10.1.0.0/21", false),
        (cidr("NotIn", ""), "10.1.2.0/24", false),
        (cidr("NotIn", ""), "10.2.0.0/16", true),
        (cidr("NotIn", lengths), "10.1.2.0/24", false),
        (cidr("NotIn", lengths), "10.1.2.0/27", true),
        (cidr("Equal", ""), "10.1.0.0/16", true),
        (cidr("Equal", ""), "10.1.2.0/24", false),
        (cidr("NotEqual", ""), "10.1.0.0/16", false),
        (cidr("NotEqual", ""), "10.1.2.0/24", true),
        (plain(r#""interface":"*.calico""#), "10.9.0.0/16", true),
        (plain(r#""interface":"eth*""#), "10.9.0.0/16", false),
        (plain(r#""peerType":"eBGP""#), "10.9.0.0/16", true),
        (plain(r#""peerType":"iBGP""#), "10.9.0.0/16", false),
        (plain(r#""communities":{"values":["1:1"]}"#), "10.9.0.0/16", true),
        (plain(r#""communities":{"values":["1:3"]}"#), "10.9.0.0/16", false),
        (
            plain(r#""communities":{"values":["1:2:3"]}"#),
            "10.9.0.0/16",
            true,
        ),
        (
            plain(r#""communities":{"values":["1:2:4"]}"#),
            "10.9.0.0/16",
            false,
        ),
        (plain(r#""asPathPrefix":[65001]"#), "10.9.0.0/16", true),
        (plain(r#""asPathPrefix":[65001,65002]"#), "10.9.0.0/16", true),
        (plain(r#""asPathPrefix":[65002]"#), "10.9.0.0/16", false),
        (plain(r#""priority":512"#), "10.9.0.0/16", true),
        (plain(r#""priority":1024"#), "10.9.0.0/16", false),
        (
            plain(r#""priority":512,"interface":"eth*""#),
            "10.9.0.0/16",
            false,
        ),
    ] {
        let comma = if conditions.is_empty() { "" } else { "," };
        let rule = format!(r#"{conditions}{comma}"action":"Reject""#);
        // What no rule matches is accepted, as Calico has it.
        let refused = outcome(&rule, prefix, SourceKind::Ebgp).err();
        assert_eq!(refused, matches.then_some(Some(0)), "{rule} {prefix}");
    }
}

#[test]
fn the_source_of_a_filter_tells_peers_from_ourselves() {
    let rule = r#""source":"RemotePeers","action":"Reject""#;
    for (source, refused) in [
        (SourceKind::Ebgp, true),
        (SourceKind::Ibgp, true),
        (SourceKind::Originated, false),
    ] {
        assert_eq!(
            outcome(rule, "10.1.0.0/16", source).is_err(),
            refused,
            "{source:?}"
        );
    }
}

#[test]
fn operations_of_a_filter_change_what_it_accepts() {
    let rule = r#""action":"Accept","operations":[{"addCommunity":{"value":"9:9"}},{"addCommunity":{"value":"9:9:9"}},{"prependASPath":{"prefix":[65010,65011]}},{"setPriority":{"value":1024}}]"#;
    let accepted = outcome(rule, "10.1.0.0/16", SourceKind::Ebgp).unwrap();
    assert!(accepted.communities.contains(Community::new(9, 9)));
    assert!(accepted.large_communities.contains("9:9:9".parse().unwrap()));
    // The first of the list ends up in front.
    assert_eq!(accepted.as_path.to_string(), "65010 65011 65001 65002");
    assert_eq!(accepted.local.priority, Some(1024));
}
