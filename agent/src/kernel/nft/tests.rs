//! What counts as our table unchanged, and what does not. The real program is met in `tests/netns_dataplane.rs`.

use super::*;

fn table() -> NftTable {
    let set = NftSet {
        is_ipv6: false,
        elements: ["10.65.0.0/16", "10.1.2.3/32"].map(|e| e.parse().unwrap()).into(),
    };
    let chain = NftChain {
        kind: "nat".into(),
        hook: "postrouting".into(),
        priority: 100,
        policy: "accept".into(),
        rules: vec![NftRule::new("ip saddr @s masquerade")],
    };
    NftTable {
        sets: [("s".to_owned(), set)].into(),
        chains: [("c".to_owned(), chain)].into(),
    }
}

/// As nft 1.0.6 prints the table above.
fn listing() -> String {
    let comment = table().chains["c"].rules[0].comment.clone().unwrap();
    r#"{"nftables": [{"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
 {"table": {"family": "inet", "name": "calidris", "handle": 1}},
 {"set": {"family": "inet", "name": "s", "table": "calidris", "type": "ipv4_addr", "handle": 2, "flags": ["interval"],
  "elem": ["10.1.2.3", {"prefix": {"addr": "10.65.0.0", "len": 16}}]}},
 {"chain": {"family": "inet", "table": "calidris", "name": "c", "handle": 3, "type": "nat", "hook": "postrouting",
  "prio": 100, "policy": "accept"}},
 {"rule": {"family": "inet", "table": "calidris", "chain": "c", "handle": 4, "comment": "COMMENT",
  "expr": [{"masquerade": null}]}}]}"#
        .replace("COMMENT", &comment)
}

#[test]
fn our_table_as_printed_is_our_table() {
    assert!(table().is_same_as(&parse(listing().as_bytes()).unwrap()));
}

#[test]
fn every_difference_counts() {
    let rows = [
        ("\"10.1.2.3\", ", "", "an element less"),
        (
            "\"10.1.2.3\", ",
            "\"10.1.2.3\", \"10.9.9.9\", ",
            "an element more",
        ),
        (
            "\"10.1.2.3\", ",
            "{\"range\": [\"10.1.2.3\", \"10.1.2.9\"]}, ",
            "an element of another kind",
        ),
        ("\"len\": 16", "\"len\": 17", "another range"),
        ("[\"interval\"]", "[\"constant\"]", "another kind of set"),
        ("ipv4_addr", "ipv6_addr", "a set of the other family"),
        ("\"prio\": 100", "\"prio\": -100", "another priority"),
        ("accept", "drop", "another policy"),
        ("postrouting", "input", "another hook"),
        ("calidris:", "calidris:0", "another rule"),
        ("\"comment\"", "\"note\"", "a rule without comment"),
        ("{\"rule\"", "{\"map\": {\"name\": \"m\"}}, {\"rule\"", "a map"),
        (
            "{\"rule\"",
            "{\"chain\": {\"name\": \"d\"}}, {\"rule\"",
            "another chain",
        ),
    ];
    for (from, to, case) in rows {
        let changed = listing().replace(from, to);
        assert_ne!(changed, listing(), "{case}");
        let seen = parse(changed.as_bytes()).unwrap();
        assert!(!table().is_same_as(&seen), "{case}: {seen:#?}");
    }
}

#[test]
fn what_is_no_listing_is_an_error_not_a_panic() {
    for text in [
        "",
        "null",
        "[]",
        "{\"nftables\": 1}",
        "{\"nftables\": [1]}",
        "{\"nftables\": [{\"set\": {}}]}",
        "{\"nftables\": [{\"rule\": {\"chain\": \"none\"}}]}",
    ] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn the_script_replaces_the_table_in_one_transaction() {
    let script = table().script();
    assert!(
        script.starts_with("add table inet calidris\ndelete table inet calidris\ntable inet calidris {\n"),
        "{script}"
    );
    assert!(
        script.contains("elements = { 10.1.2.3/32, 10.65.0.0/16 }"),
        "{script}"
    );
    assert!(
        script.contains("type nat hook postrouting priority 100; policy accept;"),
        "{script}"
    );
}
