//! What counts as our table unchanged, and what does not. The real program is met in `tests/netns_dataplane.rs`.

use std::collections::BTreeSet;

use super::parse::parse;
use super::*;

fn table() -> NftTable {
    let ranges = ["10.65.0.0/16", "10.1.2.3/32"].map(|e| e.parse().unwrap());
    let set = NftSet::of_ranges(false, ranges);
    let ports = NftSet {
        maps_to: Some("ipv4_addr . inet_service".into()),
        elements: [NftElement::mapping(
            [NftPart::Protocol(6), NftPart::Port(8080)],
            [NftPart::Address("10.65.0.2".parse().unwrap()), NftPart::Port(80)],
        )]
        .into(),
        ..NftSet::new("inet_proto . inet_service")
    };
    let interfaces = NftSet {
        elements: [NftElement::key([NftPart::Interface("cali1".into())])].into(),
        ..NftSet::new("ifname")
    };
    let chain = NftChain {
        kind: "nat".into(),
        hook: "postrouting".into(),
        priority: 100,
        policy: "accept".into(),
        rules: vec![NftRule::new("ip saddr @s masquerade")],
    };
    NftTable {
        sets: [("m", ports), ("n", interfaces), ("s", set)]
            .map(|(name, set)| (name.to_owned(), set))
            .into(),
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
 {"map": {"family": "inet", "name": "m", "table": "calidris", "type": ["inet_proto", "inet_service"], "handle": 5,
  "map": "ipv4_addr . inet_service", "elem": [[{"concat": ["tcp", 8080]}, {"concat": ["10.65.0.2", 80]}]]}},
 {"set": {"family": "inet", "name": "n", "table": "calidris", "type": "ifname", "handle": 6, "elem": ["cali1"]}},
 {"chain": {"family": "inet", "table": "calidris", "name": "c", "handle": 3, "type": "nat", "hook": "postrouting",
  "prio": 100, "policy": "accept"}},
 {"rule": {"family": "inet", "table": "calidris", "chain": "c", "handle": 4, "comment": "COMMENT",
  "expr": [{"masquerade": null}]}}]}"#
        .replace("COMMENT", &comment)
}

#[test]
fn our_table_as_printed_is_our_table() {
    let seen = parse(listing().as_bytes()).unwrap();
    assert_eq!(TableChange::between(Some(&seen), &table()), None, "{seen:#?}");
    // Where there is no /etc/protocols.
    let seen = parse(listing().replace("\"tcp\"", "6").as_bytes()).unwrap();
    assert_eq!(TableChange::between(Some(&seen), &table()), None, "{seen:#?}");
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
        ("{\"rule\"", "{\"map\": {\"name\": \"x\"}}, {\"rule\"", "a map"),
        ("8080", "8081", "another port"),
        (
            "\"ipv4_addr . inet_service\"",
            "\"ipv4_addr\"",
            "a map to something else",
        ),
        ("[\"cali1\"]", "[\"cali1\", \"cali2\"]", "an interface more"),
        (
            "[\"cali1\"]",
            "[{\"elem\": {\"val\": \"cali1\", \"timeout\": 9}}]",
            "an element that ends",
        ),
        (
            "{\"rule\"",
            "{\"flowtable\": {\"name\": \"f\"}}, {\"rule\"",
            "an object of a kind that is not ours",
        ),
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
        assert_ne!(
            TableChange::between(Some(&seen), &table()),
            None,
            "{case}: {seen:#?}"
        );
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
    let change = NftChange {
        family: NftFamily::Inet,
        change: TableChange::between(None, &table()).unwrap(),
    };
    let script = change.script();
    assert!(
        script.starts_with("add table inet calidris\ndelete table inet calidris\ntable inet calidris {\n"),
        "{script}"
    );
    for part in [
        "elements = { 10.1.2.3, 10.65.0.0/16 }",
        "elements = { 6 . 8080 : 10.65.0.2 . 80 }",
        "elements = { \"cali1\" }",
        "type nat hook postrouting priority 100; policy accept;",
    ] {
        assert!(script.contains(part), "no {part} in {script}");
    }
}

#[test]
fn where_only_elements_differ_only_those_are_written() {
    let interfaces = |names: &[&str]| -> BTreeSet<NftElement> {
        names
            .iter()
            .map(|name| NftElement::key([NftPart::Interface((*name).to_owned())]))
            .collect()
    };
    let mut wanted = table();
    wanted.sets.get_mut("n").unwrap().elements = interfaces(&["cali2", "cali3"]);
    let change = NftChange {
        family: NftFamily::Inet,
        change: TableChange::between(Some(&table()), &wanted).unwrap(),
    };
    assert_eq!(
        change.script(),
        "delete element inet calidris n { \"cali1\" }\nadd element inet calidris n { \"cali2\", \"cali3\" }\n"
    );
    assert_eq!(
        change.to_string(),
        "change table inet calidris n-={\"cali1\"} n+={\"cali2\", \"cali3\"}"
    );
    let mut tables = NftTables::from([(NftFamily::Inet, table())]);
    change.carry_out(&mut tables);
    assert_eq!(tables[&NftFamily::Inet], wanted);

    // Ranges are not changed one by one.
    wanted.sets.get_mut("s").unwrap().elements.clear();
    let change = TableChange::between(Some(&table()), &wanted).unwrap();
    assert!(matches!(change, TableChange::Whole { .. }), "{change:?}");
}
