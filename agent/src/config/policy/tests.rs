//! Every key of a rule, and the term that it becomes.

use calidris_bgp::policy::{Change, Condition, PeerKind, PrefixRange, SourceKind, Term, Verdict};

use super::RoutePolicy;

#[derive(serde::Deserialize)]
struct Wrapped {
    import: RoutePolicy,
}

/// The terms of a list of rules.
fn terms(rules: &str) -> Vec<Term> {
    let parsed: Wrapped = toml::from_str(&format!("import = [{rules}]")).unwrap();
    parsed.import.to_policy().terms
}

#[test]
fn every_condition_of_a_rule_becomes_the_cores() {
    let range = |within: &str, min_length, max_length| PrefixRange {
        within: within.parse().unwrap(),
        min_length,
        max_length,
    };
    let text = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let rows = [
        (
            "prefix = \"10.0.0.0/8\"",
            vec![Condition::Prefix(vec![range("10.0.0.0/8", 8, 8)])],
        ),
        (
            "prefix = [\"10.0.0.0/8\", \"fd00::/8\"], min_length = 16",
            vec![Condition::Prefix(vec![
                range("10.0.0.0/8", 16, 32),
                range("fd00::/8", 16, 128),
            ])],
        ),
        (
            "not_prefix = \"10.0.0.0/8\", max_length = 24",
            vec![Condition::NotPrefix(vec![range("10.0.0.0/8", 8, 24)])],
        ),
        (
            "source = [\"originated\", \"ibgp\"]",
            vec![Condition::Source(vec![SourceKind::Originated, SourceKind::Ibgp])],
        ),
        ("peer_kind = \"ebgp\"", vec![Condition::PeerKind(PeerKind::Ebgp)]),
        ("peer = \"tor\"", vec![Condition::Peer(text(&["tor"]))]),
        (
            "interface = [\"eth*\", \"lo\"]",
            vec![Condition::Interface(text(&["eth*", "lo"]))],
        ),
        (
            "next_hop = \"192.0.2.0/24\"",
            vec![Condition::NextHop(vec!["192.0.2.0/24".parse().unwrap()])],
        ),
        (
            "as_path_prefix = [1, 2]",
            vec![Condition::AsPathPrefix(vec![1, 2])],
        ),
        (
            "communities = [\"1:2\", \"no-export\"]",
            vec![
                Condition::Community("1:2".parse().unwrap()),
                Condition::Community("65535:65281".parse().unwrap()),
            ],
        ),
        (
            "large_communities = \"1:2:3\", extended_communities = \"rt:1:2\", priority = 512",
            vec![
                Condition::LargeCommunity("1:2:3".parse().unwrap()),
                Condition::ExtendedCommunity("rt:1:2".parse().unwrap()),
                Condition::Priority(512),
            ],
        ),
    ];
    for (keys, expected) in rows {
        let [term] = terms(&format!("{{ {keys}, action = \"reject\" }}"))
            .try_into()
            .unwrap();
        assert_eq!(
            (term.when, term.then),
            (expected, Some(Verdict::Reject)),
            "{keys}"
        );
    }
}

#[test]
fn every_change_of_a_rule_becomes_the_cores() {
    let one = "1:2".parse().unwrap();
    let large = "1:2:3".parse().unwrap();
    let extended = "rt:1:2".parse().unwrap();
    let rows = [
        ("set_local_pref = 7", vec![Change::LocalPref(7)]),
        ("set_med = 7, remove_med = false", vec![Change::Med(7)]),
        ("remove_med = true", vec![Change::RemoveMed]),
        ("set_priority = 512", vec![Change::Priority(512)]),
        (
            "set_next_hop = \"::1\"",
            vec![Change::NextHop("::1".parse().unwrap())],
        ),
        (
            "prepend = [1, 2]",
            vec![
                Change::Prepend { asn: 2, times: 1 },
                Change::Prepend { asn: 1, times: 1 },
            ],
        ),
        (
            "add_communities = [\"1:2\"], remove_communities = [\"1:2\"], set_communities = []",
            vec![
                Change::SetCommunities(vec![]),
                Change::AddCommunity(one),
                Change::RemoveCommunity(one),
            ],
        ),
        (
            "add_large_communities = [\"1:2:3\"], remove_large_communities = [\"1:2:3\"], set_large_communities = [\"1:2:3\"]",
            vec![
                Change::SetLargeCommunities(vec![large]),
                Change::AddLargeCommunity(large),
                Change::RemoveLargeCommunity(large),
            ],
        ),
        (
            "add_extended_communities = [\"rt:1:2\"], remove_extended_communities = [\"rt:1:2\"], set_extended_communities = []",
            vec![
                Change::SetExtendedCommunities(vec![]),
                Change::AddExtendedCommunity(extended),
                Change::RemoveExtendedCommunity(extended),
            ],
        ),
    ];
    for (keys, expected) in rows {
        let [term] = terms(&format!("{{ {keys}, action = \"next\" }}"))
            .try_into()
            .unwrap();
        assert_eq!((term.set, term.then), (expected, None), "{keys}");
    }
}

#[test]
fn rules_have_names_in_order_unless_they_bring_their_own() {
    let names: Vec<String> =
        terms("{ action = \"next\" }, { name = \"mine\", action = \"next\" }, { action = \"accept\" }")
            .into_iter()
            .map(|term| term.name)
            .collect();
    assert_eq!(names, ["rule-1", "mine", "rule-3"]);
}
