//! What is wanted, as tables: facts of the model on the left, what follows on the right.

use super::*;
use crate::model::{
    DatastoreSnapshot, Encapsulation, Endpoint, EndpointId, Input, Interface, Learned, LearnedPath,
    MigrationRole, NatExclusions, NextHop, NodeFacts, Pool,
};

fn prefix(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn pool(cidr: &str) -> Pool {
    Pool {
        cidr: prefix(cidr),
        nat_outgoing: false,
        encapsulation: Encapsulation::None,
        disable_bgp_export: false,
    }
}

/// A model from texts: own blocks, workloads as `interface address address…`, learned routes as `prefix next-hop…`.
/// The links of all workloads exist, except those named `gone`.
pub(super) fn model(blocks: &[&str], workloads: &[&str], learned: &[&str]) -> Model {
    let mut model = Model::new("node-a".into());
    model.own_blocks = blocks.iter().map(|block| prefix(block)).collect();
    for workload in workloads {
        let mut words = workload.split_whitespace();
        let host_interface = words.next().unwrap().to_owned();
        let id = EndpointId {
            network: "n".into(),
            container_id: (*workload).into(),
            ifname: "eth0".into(),
        };
        if !host_interface.starts_with("gone") {
            model.links.insert(host_interface.clone());
        }
        let addresses = words.map(|address| address.parse().unwrap()).collect();
        let endpoint = Endpoint {
            host_interface,
            addresses,
            mac: None,
            namespace: None,
            pod: None,
            ..Endpoint::default()
        };
        model.endpoints.insert(id, endpoint);
    }
    for line in learned {
        let mut words = line.split_whitespace();
        let destination = prefix(words.next().unwrap());
        let hop = |address: &str| NextHop {
            address: address.parse().unwrap(),
            interface: None,
        };
        let learned = Learned::via(words.map(hop).collect());
        model
            .learned
            .extend(learned.map(|learned| (destination, learned)));
    }
    model
}

fn route_lines(model: &Model) -> Vec<String> {
    compute(model)
        .routes
        .iter()
        .map(|(key, route)| format!("{} {route}", key.destination))
        .collect()
}

#[test]
fn a_table_of_its_own_has_what_leads_elsewhere_and_rules_lead_to_it() {
    let mut model = model(
        &["10.65.0.0/26"],
        &["cali1 10.65.0.2", "cali2 10.65.7.7"],
        &[
            "0.0.0.0/0 192.0.2.9",
            "10.65.1.0/26 192.0.2.2",
            "10.65.0.9/32 192.0.2.3",
        ],
    );
    let blackhole = Learned {
        path: LearnedPath::Blackhole,
        priority: None,
    };
    model.learned.insert(prefix("10.65.1.7/32"), blackhole);
    model
        .peer_gateways
        .insert("198.51.100.1".parse().unwrap(), "192.0.2.9".parse().unwrap());
    assert!(compute(&model).rules.is_empty());
    model.settings.remote_route_table = 100;
    let in_table = |desired: &Desired, table| {
        let keys = desired.routes.keys().filter(move |key| key.table == table);
        keys.map(|key| key.destination.to_string()).collect::<Vec<_>>()
    };
    let lines = |desired: &Desired| desired.rules.iter().map(Rule::to_string).collect::<Vec<_>>();
    let ipv4 = [
        "inet priority 32000 lookup main suppress_prefixlength 0",
        "inet priority 32001 lookup 100",
    ];
    let desired = compute(&model);
    assert_eq!(in_table(&desired, 100), ["0.0.0.0/0", "10.65.1.0/26"]);
    assert_eq!(
        in_table(&desired, MAIN_TABLE),
        [
            "10.65.0.0/26",
            "10.65.0.2/32",
            "10.65.0.9/32",
            "10.65.1.7/32",
            "10.65.7.7/32",
            "198.51.100.1/32"
        ]
    );
    assert_eq!(lines(&desired), ipv4);
    // IPv6 has rules where it is used.
    model.pools.insert("v6".into(), pool("fd00::/48"));
    model.settings.rule_priority = 7;
    assert_eq!(
        lines(&compute(&model))[2..],
        [
            "inet6 priority 7 lookup main suppress_prefixlength 0",
            "inet6 priority 8 lookup 100"
        ]
    );
}

#[test]
fn the_node_answers_for_addresses_in_the_subnets_of_its_links_if_it_is_to() {
    let mut model = model(
        &[],
        &[
            "cali1 192.0.2.129 2001:db8::2",
            "cali2 10.65.0.2 198.51.100.9",
            "cali3 203.0.113.5 127.0.0.9",
            "gone1 192.0.2.3",
            "cali4 192.0.2.4",
        ],
        &[],
    );
    let interface = |up, addresses: &[&str]| Interface {
        index: 2,
        up,
        running: up,
        mtu: 1500,
        addresses: addresses.iter().map(|address| prefix(address)).collect(),
    };
    model.interfaces = [
        ("lo", interface(true, &["127.0.0.1/8"])),
        ("eth0", interface(true, &["192.0.2.1/24", "2001:db8::1/64"])),
        ("eth1", interface(true, &["192.0.2.130/25"])),
        ("eth2", interface(true, &["198.51.100.1/24"])),
        ("eth3", interface(true, &["198.51.100.2/24"])),
        ("eth4", interface(false, &["203.0.113.1/24"])),
    ]
    .map(|(name, interface)| (name.to_owned(), interface))
    .into();
    let to_come = BTreeMap::from([("cali4".to_owned(), MigrationRole::Target)]);
    model.absorb(Input::MigrationRoles(to_come));
    assert!(compute(&model).proxy_neighbors.is_empty());
    model.settings.proxy_neighbors = true;
    let desired = compute(&model);
    let lines: Vec<String> = desired.proxy_neighbors.iter().map(ToString::to_string).collect();
    assert_eq!(lines, ["192.0.2.129 dev eth1", "2001:db8::2 dev eth0"]);
    let parameters: Vec<&String> = desired
        .sysctls
        .keys()
        .filter(|path| path.ends_with("proxy_ndp") && !path.contains("cali"))
        .collect();
    assert_eq!(parameters, ["net/ipv6/conf/eth0/proxy_ndp"]);
}

#[test]
fn routes_follow_from_workloads_blocks_and_bgp() {
    let model = model(
        &["10.65.0.0/26", "10.65.9.9/32", "fd00::/122", "fd00:9::9/128"],
        &["cali1 10.65.0.2 fd00::2", "gone1 10.65.0.3"],
        &[
            "10.65.1.0/26 192.0.2.2 192.0.2.3",
            "fd00:1::/64 fe80::1",
            "10.0.0.0/8 192.0.2.4",
        ],
    );
    assert_eq!(
        route_lines(&model),
        [
            "10.0.0.0/8 via 192.0.2.4 (bgp)",
            "10.65.0.0/26 blackhole (local)",
            "10.65.0.2/32 dev cali1 (local)",
            "10.65.1.0/26 via 192.0.2.2 via 192.0.2.3 (bgp)",
            "fd00::/122 blackhole (local)",
            "fd00::2/128 dev cali1 (local)",
            "fd00:1::/64 via fe80::1 (bgp)",
        ]
    );
}

#[test]
fn of_own_blocks_only_borrowed_addresses_are_taken_from_peers() {
    let rows = [
        ("10.65.0.0/26", None, "the own block"),
        ("10.65.0.0/27", None, "a part of it"),
        ("10.65.0.64/26", Some("via 192.0.2.2 (bgp)"), "the block beside"),
        ("10.65.0.0/25", Some("via 192.0.2.2 (bgp)"), "a range around it"),
        (
            "10.65.0.9/32",
            Some("via 192.0.2.2 (bgp)"),
            "an address that another node borrowed",
        ),
        (
            "10.65.0.2/32",
            Some("dev cali1 (local)"),
            "an address of a workload here",
        ),
        ("10.66.0.1/32", None, "an own block of one address"),
        ("0.0.0.0/0", Some("via 192.0.2.2 (bgp)"), "the default route"),
    ];
    for (learned, expected, case) in rows {
        let model = model(
            &["10.65.0.0/26", "10.66.0.1/32"],
            &["cali1 10.65.0.2"],
            &[&format!("{learned} 192.0.2.2")],
        );
        let found = compute(&model)
            .routes
            .get(&RouteKey::main(prefix(learned)))
            .map(ToString::to_string);
        let expected = match (expected, learned) {
            (None, "10.65.0.0/26") => Some("blackhole (local)"),
            (expected, _) => expected,
        };
        assert_eq!(found.as_deref(), expected, "{case}: {learned}");
    }
}

#[test]
fn a_learned_route_without_next_hop_is_none() {
    assert!(route_lines(&model(&[], &[], &["10.65.1.0/26"])).is_empty());
}

#[test]
fn a_learned_route_has_the_metric_of_its_policy_and_may_drop() {
    let mut model = model(
        &[],
        &["cali1 10.65.0.2"],
        &["10.65.1.0/26 192.0.2.2", "10.65.0.2/32 192.0.2.2"],
    );
    let learned = |model: &mut Model, destination: &str, path, priority| {
        model
            .learned
            .insert(prefix(destination), Learned { path, priority });
    };
    learned(&mut model, "10.65.2.0/26", LearnedPath::Blackhole, None);
    let via = model.learned[&prefix("10.65.1.0/26")].path.clone();
    learned(&mut model, "10.65.1.0/26", via.clone(), Some(512));
    learned(&mut model, "10.65.0.2/32", via, Some(512));
    let routes = compute(&model).routes;
    let lines: Vec<String> = routes
        .iter()
        .map(|(key, route)| format!("{key} {route}"))
        .collect();
    assert_eq!(
        lines,
        [
            "10.65.0.2/32 metric 1024 dev cali1 (local)",
            "10.65.1.0/26 metric 512 via 192.0.2.2 (bgp)",
            "10.65.2.0/26 metric 1024 blackhole (bgp)",
        ]
    );
}

#[test]
fn a_peer_behind_a_gateway_has_a_route_that_nothing_learned_replaces() {
    let mut model = model(&[], &[], &["203.0.113.1/32 192.0.2.2"]);
    let addresses = ["203.0.113.1", "192.0.2.254"].map(|text| text.parse().unwrap());
    model.peer_gateways = BTreeMap::from([addresses.into()]);
    assert_eq!(route_lines(&model), ["203.0.113.1/32 via 192.0.2.254 (bgp)"]);
}

#[test]
fn next_hops_on_links_that_pass_nothing_are_left_out() {
    let mut model = model(&[], &[], &[]);
    let hop = |interface: &str| NextHop {
        address: "fe80::1".parse().unwrap(),
        interface: Some(interface.to_owned()),
    };
    let both = Learned::via([hop("eth0"), hop("eth1")].into()).unwrap();
    model.learned.insert(prefix("10.65.1.0/26"), both);
    let state = |model: &mut Model, name: &str, running| {
        let interface = Interface {
            index: 1,
            up: true,
            running,
            mtu: 1500,
            addresses: Vec::new(),
        };
        model.interfaces.insert(name.to_owned(), interface);
        route_lines(model)
    };
    assert_eq!(
        state(&mut model, "eth0", true),
        ["10.65.1.0/26 via fe80::1 dev eth0 via fe80::1 dev eth1 (bgp)"]
    );
    assert_eq!(
        state(&mut model, "eth0", false),
        ["10.65.1.0/26 via fe80::1 dev eth1 (bgp)"]
    );
    assert!(state(&mut model, "eth1", false).is_empty());
}

#[test]
fn a_route_has_a_bounded_number_of_gateways() {
    let hops: Vec<String> = (0..1000)
        .map(|n| format!("10.9.{}.{}", n / 250, n % 250))
        .collect();
    let lines = route_lines(&model(&[], &[], &[&format!("10.65.1.0/26 {}", hops.join(" "))]));
    assert_eq!(lines[0].matches("via").count(), 128);
}

#[test]
fn announced_are_blocks_and_borrowed_addresses_unless_their_pool_forbids() {
    let mut model = model(
        &["10.65.0.0/26", "10.66.0.0/26", "10.77.0.0/26"],
        &[
            "cali1 10.65.0.2",
            "cali2 10.65.3.3 10.66.3.3 10.99.0.1",
            "gone1 10.65.4.4",
        ],
        &["10.65.5.0/26 192.0.2.2"],
    );
    model.pools.insert("open".into(), pool("10.64.0.0/14"));
    model.pools.insert(
        "closed".into(),
        Pool {
            disable_bgp_export: true,
            ..pool("10.66.0.0/16")
        },
    );
    let announcements = compute(&model).announcements;
    let announced: Vec<String> = announcements
        .iter()
        .map(|(prefix, how)| format!("{prefix} {}", how.interface.as_deref().unwrap_or("-")))
        .collect();
    // 10.66.0.0/26: the more specific pool forbids. 10.77.0.0/26: its pool is gone. 10.99.0.1: in no pool at all.
    assert_eq!(
        announced,
        ["10.65.0.0/26 -", "10.65.3.3/32 cali2", "10.77.0.0/26 -"]
    );
    assert!(announcements.values().all(|how| how.priority == ROUTE_PRIORITY));
}

#[test]
fn nat_sets_have_no_range_within_another() {
    let mut model = model(&[], &[], &[]);
    for cidr in [
        "10.65.0.0/16",
        "10.65.8.0/24",
        "10.66.0.0/16",
        "fd00::/48",
        "fd00::/64",
    ] {
        model.pools.insert(
            cidr.into(),
            Pool {
                nat_outgoing: cidr != "10.66.0.0/16",
                ..pool(cidr)
            },
        );
    }
    let desired = compute(&model);
    let texts = |ranges: &BTreeSet<IpNetwork>| ranges.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&desired.nat_sources), ["10.65.0.0/16", "fd00::/48"]);
    assert_eq!(
        texts(&desired.nat_exempt),
        ["10.65.0.0/16", "10.66.0.0/16", "fd00::/48"]
    );
}

#[test]
fn nodes_are_exempt_from_translation_if_the_operator_wants_it_so() {
    let mut model = model(&[], &[], &[]);
    let node = |address: &str| NodeFacts {
        ipv4: Some(address.parse().unwrap()),
        ..NodeFacts::default()
    };
    let nodes = [
        (model.node_name.clone(), node("192.0.2.11/24")),
        ("other".to_owned(), node("192.0.2.12/24")),
    ];
    model.cluster.nodes = nodes.into();
    assert_eq!(compute(&model).nat_exempt_nodes, BTreeSet::new());
    model.settings.nat_exclusions = NatExclusions::IpPoolsAndHostIps;
    let others: BTreeSet<IpAddr> = ["192.0.2.12".parse().unwrap()].into();
    assert_eq!(compute(&model).nat_exempt_nodes, others);
}

#[test]
fn ipv6_parameters_are_wanted_only_where_ipv6_is_used() {
    let paths = |model: &Model| compute(model).sysctls.into_keys().collect::<Vec<_>>();
    assert_eq!(
        paths(&model(&[], &["gone1 fd00::1"], &[])),
        ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]
    );
    let only_v4 = paths(&model(&[], &["cali1 10.65.0.2"], &[]));
    assert!(
        only_v4.iter().all(|path| path.starts_with("net/ipv4/")),
        "{only_v4:?}"
    );
    assert!(
        only_v4.contains(&"net/ipv4/neigh/cali1/proxy_delay".to_owned()),
        "{only_v4:?}"
    );
    let both = paths(&model(&[], &["cali1 10.65.0.2 fd00::2"], &[]));
    assert!(
        both.contains(&"net/ipv6/conf/cali1/proxy_ndp".to_owned()),
        "{both:?}"
    );
}

#[test]
fn host_ends_are_wanted_for_links_that_exist() {
    let desired = compute(&model(&[], &["cali1 10.65.0.2", "gone1 10.65.0.3"], &[]));
    assert_eq!(desired.links.keys().collect::<Vec<_>>(), ["cali1"]);
    assert_eq!(desired.links["cali1"].to_string(), "up address ee:ee:ee:ee:ee:ee");
}

#[test]
fn a_workload_that_migrates_here_has_no_route_and_then_a_preferred_one() {
    let mut model = model(
        &["10.65.0.0/26"],
        &["cali2 10.65.0.2 fd00:10:65::2", "cali3 10.65.9.3"],
        &["10.65.0.2/32 192.0.2.9"],
    );
    for name in ["10.65.0.0/16", "fd00:10:65::/64"] {
        model.pools.insert(name.into(), pool(name));
    }
    let endpoints = model.endpoints.iter();
    let endpoints = endpoints.map(|(id, endpoint)| (id.clone(), endpoint.clone()));
    let snapshot = DatastoreSnapshot {
        pools: model.pools.clone(),
        own_blocks: model.own_blocks.clone(),
        endpoints: endpoints.collect(),
        migrations: [("cali2".to_owned(), MigrationRole::Target)].into(),
    };
    model.absorb(Input::DatastoreSnapshot(snapshot));
    let lines = |model: &Model| {
        let desired = compute(model);
        let of_pod = |destination: IpNetwork| {
            ["10.65.0.2/32", "fd00:10:65::2/128"]
                .map(prefix)
                .contains(&destination)
        };
        let routes = desired.routes.iter().filter(|(key, _)| of_pod(key.destination));
        let routes: Vec<String> = routes
            .map(|(key, route)| format!("{key} {}", route.path))
            .collect();
        let announced = desired
            .announcements
            .iter()
            .filter(|(prefix, _)| of_pod(**prefix));
        let announced: Vec<String> = announced
            .map(|(prefix, said)| format!("{prefix} {}", said.priority))
            .collect();
        (routes, announced)
    };
    let of = |routes: &[&str], announced: &[&str]| {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        (owned(routes), owned(announced))
    };
    // It runs on the other node, which announces it: so packets go there.
    assert_eq!(
        lines(&model),
        of(&["10.65.0.2/32 metric 1024 via 192.0.2.9"], &[])
    );
    model.absorb(Input::MigratedHere("cali2".into()));
    let preferred = of(
        &[
            "10.65.0.2/32 metric 512 dev cali2",
            "fd00:10:65::2/128 metric 512 dev cali2",
        ],
        &["10.65.0.2/32 512", "fd00:10:65::2/128 512"],
    );
    assert_eq!(lines(&model), preferred);
    model.absorb(Input::MigrationRoles(BTreeMap::new()));
    assert_eq!(lines(&model), preferred);
    model.absorb(Input::MigrationSettled("cali2".into()));
    // The first is one of an own block, the second is not.
    let usual = of(
        &[
            "10.65.0.2/32 metric 1024 dev cali2",
            "fd00:10:65::2/128 metric 1024 dev cali2",
        ],
        &["fd00:10:65::2/128 1024"],
    );
    assert_eq!(lines(&model), usual);
}
