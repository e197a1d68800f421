//! Which sessions result on which node, as tables over a small cluster; and what passes them.

mod filters;

use calidris_bgp::policy::{Condition, Policy, Verdict};

use super::*;
use crate::datastore::peering as read;
use crate::model::peering::PeeringPool;

/// Nodes a (rack r1, both families), b (a reflector of cluster 224.0.0.1), c (IPv4 only), d (AS 64999, IPv4 only).
fn cluster(resources: &[(&str, &str)]) -> Peering {
    let node = |labels: &str, bgp: &str| {
        let value = format!(r#"{{"metadata":{{"labels":{{{labels}}}}},"spec":{{"bgp":{{{bgp}}}}}}}"#);
        read::node(value.as_bytes()).unwrap()
    };
    let mut peering = Peering {
        nodes: BTreeMap::from([
            (
                "a".to_owned(),
                node(
                    r#""rack":"r1""#,
                    r#""ipv4Address":"192.0.2.9/24","ipv6Address":"2001:db8::9/64""#,
                ),
            ),
            (
                "b".to_owned(),
                node(
                    r#""rack":"r2","rr":"true""#,
                    r#""ipv4Address":"192.0.2.12/24","ipv6Address":"2001:db8::12/64","routeReflectorClusterID":"224.0.0.1""#,
                ),
            ),
            ("c".to_owned(), node("", r#""ipv4Address":"192.0.2.13/24""#)),
            (
                "d".to_owned(),
                node("", r#""ipv4Address":"192.0.2.14/24","asNumber":64999"#),
            ),
        ]),
        ..Peering::default()
    };
    for (name, spec) in resources {
        let value = format!(r#"{{"metadata":{{}},"spec":{spec}}}"#);
        let (kind, name) = name.split_once('/').unwrap();
        let (name, value) = (name.to_owned(), value.as_bytes());
        match kind {
            "peer" => drop(peering.peers.insert(name, read::peer(value).unwrap())),
            "filter" => drop(peering.filters.insert(name, read::filter(value).unwrap())),
            _ => drop(
                peering
                    .configurations
                    .insert(name, read::configuration(value).unwrap()),
            ),
        }
    }
    peering
}

fn derived(peering: &Peering, node: &str) -> Sessions {
    derived_beside(&PeeringWorkloads::new(), peering, node)
}

fn derived_beside(workloads: &PeeringWorkloads, peering: &Peering, node: &str) -> Sessions {
    let local = Local {
        node,
        as_number: peering.nodes[node].as_number.unwrap_or(64512),
        listen_port: 179,
    };
    sessions(peering, workloads, local, |secret| match secret.name.as_str() {
        "there" => Ok(format!("word of {}", secret.key)),
        _ => Err(format!("no secret {}", secret.name)),
    })
}

/// `NAME AS [port N] [waits] [client]` of each session.
fn lines(resources: &[(&str, &str)], node: &str) -> Vec<String> {
    let line = |peer: &PeerConfig| {
        let mut line = format!("{} {}", peer.name, peer.remote_as);
        if peer.port != 179 {
            line += &format!(" port {}", peer.port);
        }
        if peer.connect == ConnectMode::Passive {
            line += " waits";
        }
        if peer.route_reflector_client {
            line += " client";
        }
        line
    };
    derived(&cluster(resources), node)
        .peers
        .iter()
        .map(line)
        .collect()
}

const NO_MESH: (&str, &str) = ("configuration/default", r#"{"nodeToNodeMeshEnabled":false}"#);

#[test]
fn without_resources_all_nodes_but_reflectors_are_a_mesh_that_one_side_opens() {
    // As texts: "192.0.2.13" and "192.0.2.14" come before "192.0.2.9".
    assert_eq!(
        lines(&[], "a"),
        ["mesh-192.0.2.13 64512", "mesh-192.0.2.14 64999"]
    );
    assert_eq!(
        lines(&[], "c"),
        ["mesh-192.0.2.9 64512 waits", "mesh-192.0.2.14 64999 waits"]
    );
    assert_eq!(
        lines(&[], "d"),
        ["mesh-192.0.2.9 64512 waits", "mesh-192.0.2.13 64512"]
    );
    assert!(lines(&[], "b").is_empty(), "a reflector");
    assert!(lines(&[NO_MESH], "a").is_empty());
}

#[test]
fn a_peer_of_all_nodes_of_one_or_of_some() {
    let global = ("peer/tor", r#"{"peerIP":"192.0.2.1","asNumber":65000}"#);
    let of_one = (
        "peer/one",
        r#"{"node":"c","peerIP":"192.0.2.2:1179","asNumber":65001}"#,
    );
    let of_rack = (
        "peer/rack",
        r#"{"nodeSelector":"rack == 'r1'","peerIP":"[2001:db8::1]:1179","asNumber":65010}"#,
    );
    let all = [NO_MESH, global, of_one, of_rack];
    assert_eq!(
        lines(&all, "a"),
        ["tor-192.0.2.1 65000", "rack-2001:db8::1 65010 port 1179"]
    );
    assert_eq!(lines(&all, "b"), ["tor-192.0.2.1 65000"]);
    assert_eq!(
        lines(&all, "c"),
        ["tor-192.0.2.1 65000", "one-192.0.2.2 65001 port 1179"]
    );
    // The node has no address of the family.
    let v6 = ("peer/v6", r#"{"peerIP":"2001:db8::1","asNumber":65000}"#);
    assert!(lines(&[NO_MESH, v6], "c").is_empty());
    // One for all nodes comes before one for some; a second word about an address is not heard.
    let again = (
        "peer/again",
        r#"{"node":"a","peerIP":"192.0.2.1","asNumber":65009}"#,
    );
    assert_eq!(lines(&[NO_MESH, global, again], "a"), ["tor-192.0.2.1 65000"]);
}

#[test]
fn a_selector_of_peers_holds_in_both_directions() {
    let to_reflectors = (
        "peer/rr",
        r#"{"nodeSelector":"!has(rr)","peerSelector":"has(rr)"}"#,
    );
    let all = [NO_MESH, to_reflectors];
    assert_eq!(lines(&all, "a"), ["rr-192.0.2.12 64512", "rr-2001:db8::12 64512"]);
    assert_eq!(
        lines(&all, "c"),
        ["rr-192.0.2.12 64512"],
        "an IPv6 address is missing"
    );
    // Backwards; who is in another AS is no client.
    assert_eq!(
        lines(&all, "b"),
        [
            "rr-192.0.2.9 64512 client",
            "rr-192.0.2.13 64512 client",
            "rr-192.0.2.14 64999",
            "rr-2001:db8::9 64512 client",
        ]
    );
    let manual = r#"{"nodeSelector":"!has(rr)","peerSelector":"has(rr)","reversePeering":"Manual"}"#;
    assert!(lines(&[NO_MESH, ("peer/rr", manual)], "b").is_empty());
    // Reflectors of one cluster among themselves are no clients; everybody with everybody leaves out oneself.
    let mut twins = cluster(&[
        NO_MESH,
        ("peer/all", r#"{"nodeSelector":"all()","peerSelector":"all()"}"#),
    ]);
    let b = twins.nodes["b"].clone();
    let c = twins.nodes.get_mut("c").unwrap();
    (c.cluster_id, c.as_number) = (b.cluster_id, b.as_number);
    let sessions = derived(&twins, "b");
    let clients: Vec<(&str, bool)> = sessions
        .peers
        .iter()
        .map(|peer| (peer.name.as_str(), peer.route_reflector_client))
        .collect();
    assert_eq!(
        clients,
        [
            ("all-192.0.2.9", true),
            ("all-192.0.2.13", false),
            ("all-192.0.2.14", false),
            ("all-2001:db8::9", true),
        ]
    );
    assert_eq!(sessions.cluster_id, Some(Ipv4Addr::new(224, 0, 0, 1)));
}

#[test]
fn an_address_of_a_node_is_that_node() {
    let to_c = ("peer/c", r#"{"node":"a","peerIP":"192.0.2.13"}"#);
    assert_eq!(lines(&[NO_MESH, to_c], "a"), ["c-192.0.2.13 64512"]);
    assert_eq!(
        lines(&[NO_MESH, to_c], "c"),
        ["c-192.0.2.9 64512"],
        "backwards, over the same family"
    );
    let wrong_as = ("peer/d", r#"{"node":"a","peerIP":"192.0.2.14","asNumber":64512}"#);
    assert!(
        lines(&[NO_MESH, wrong_as], "d").is_empty(),
        "that is not the node's AS"
    );
    // For all nodes: oneself is left out, and the later address waits.
    let global = ("peer/c", r#"{"peerIP":"192.0.2.9"}"#);
    assert_eq!(lines(&[NO_MESH, global], "c"), ["c-192.0.2.9 64512 waits"]);
    let others = ["c-192.0.2.12 64512", "c-192.0.2.13 64512", "c-192.0.2.14 64999"];
    assert_eq!(lines(&[NO_MESH, global], "a"), others, "backwards");
}

#[test]
fn ports_come_from_the_peer_then_its_node_then_all_nodes() {
    let default = ("configuration/default", r#"{"listenPort":1790,"asNumber":64600}"#);
    let of_c = ("configuration/node.c", r#"{"listenPort":1791}"#);
    assert_eq!(
        lines(&[default, of_c], "a"),
        [
            "mesh-192.0.2.13 64600 port 1791",
            "mesh-192.0.2.14 64999 port 1790"
        ]
    );
    let peering = cluster(&[default]);
    let problems = derived(&peering, "a").problems;
    assert!(
        problems
            .iter()
            .any(|problem| problem.contains("listenPort is 1790")),
        "{problems:?}"
    );
}

#[test]
fn every_field_of_a_peer_has_its_effect() {
    let spec = r#"{"node":"a","peerIP":"192.0.2.1","asNumber":65000,"sourceAddress":"None","keepOriginalNextHop":true,"maxRestartTime":"1m","keepaliveTime":"10s","numAllowedLocalASNumbers":2,"ttlSecurity":1,"localASNumber":64777,"reachableBy":"192.0.2.254","password":{"secretKeyRef":{"name":"there","key":"tor"}}}"#;
    let sessions = derived(&cluster(&[NO_MESH, ("peer/tor", spec)]), "a");
    let [peer] = sessions.peers.as_slice() else {
        panic!("{sessions:?}")
    };
    assert_eq!(peer.local_address, None);
    assert_eq!(
        (peer.next_hop, peer.hold_time, peer.allow_own_as),
        (NextHopMode::Keep, 30, 2)
    );
    assert_eq!(peer.graceful_restart.as_ref().unwrap().restart_time, 60);
    assert_eq!(peer.local_as.unwrap().asn, 64777);
    assert_eq!(peer.transport.md5_password.as_deref(), Some("word of tor"));
    assert_eq!(peer.transport.distance, Distance::Gtsm { hops: 1 });
    assert_eq!(peer.families, BTreeSet::from([AfiSafi::IPV4_UNICAST]));
    let addresses = |texts: [&str; 2]| texts.map(|text| text.parse::<IpAddr>().unwrap());
    let [tor, gateway] = addresses(["192.0.2.1", "192.0.2.254"]);
    assert_eq!(sessions.gateways, BTreeMap::from([(tor, gateway)]));
    calidris_bgp::config::SpeakerConfig {
        peers: sessions.peers.clone(),
        ..calidris_bgp::config::SpeakerConfig::new(64512, Ipv4Addr::new(192, 0, 2, 9))
    }
    .check()
    .unwrap();

    let plain = derived(
        &cluster(&[
            NO_MESH,
            ("peer/tor", r#"{"peerIP":"192.0.2.1","asNumber":65000}"#),
        ]),
        "a",
    );
    let peer = &plain.peers[0];
    assert_eq!(peer.local_address, Some("192.0.2.9".parse().unwrap()));
    assert_eq!(
        (peer.next_hop, peer.transport.distance),
        (NextHopMode::Auto, Distance::Multihop(64))
    );
    assert_eq!(peer.graceful_restart.as_ref().unwrap().restart_time, 120);
    assert!(peer.priority_in_local_pref);
}

#[test]
fn to_be_in_the_peers_own_as_makes_an_internal_session() {
    let spec = r#"{"peerIP":"192.0.2.2","asNumber":65000,"localASNumber":65000,"keepOriginalNextHop":true}"#;
    let sessions = derived(&cluster(&[NO_MESH, ("peer/same", spec)]), "b");
    let [peer] = sessions.peers.as_slice() else {
        panic!("{sessions:?}")
    };
    assert_eq!(peer.local_as.unwrap().asn, 65000);
    // What holds for internal ones only: a reflector has clients, and next hops are as ever.
    assert!(peer.route_reflector_client);
    assert_eq!(
        (peer.next_hop, peer.transport.distance),
        (NextHopMode::Auto, Distance::Auto)
    );
    assert_eq!(sessions.problems, BTreeSet::new());
}

#[test]
fn workloads_that_a_peer_selects_open_sessions_to_an_address_of_their_host_ends() {
    let workload = |color: &str, interface: &str, networks: &str| {
        let value = format!(
            r#"{{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{{"name":"n","labels":{{"color":"{color}"}}}},"spec":{{"orchestrator":"k8s","node":"a","containerID":"c","endpoint":"eth0","interfaceName":"{interface}","ipNetworks":[{networks}]}}}}"#
        );
        (
            interface.to_owned(),
            read::workload("a", "key", value.as_bytes()).unwrap().unwrap(),
        )
    };
    let both = r#""10.244.0.5/32","10.244.0.6/32","fd00:10:244::5/128""#;
    let workloads = PeeringWorkloads::from([
        workload("red", "cali1", both),
        workload("blue", "cali2", r#""10.244.0.7/32""#),
        workload("green", "cali3", r#""10.244.0.8/32""#),
    ]);
    let addresses = r#"{"nodeToNodeMeshEnabled":false,"localWorkloadPeeringIPV4":"169.254.0.179","localWorkloadPeeringIPV6":"fd12::1"}"#;
    let red = r#"{"localWorkloadSelector":"color == 'red'","asNumber":65401,"localASNumber":65002,"filters":["none"],"password":{"secretKeyRef":{"name":"there","key":"red"}}}"#;
    let peering = cluster(&[
        ("configuration/default", addresses),
        ("filter/none", r#"{"exportV4":[{"action":"Reject"}]}"#),
        ("peer/red", red),
        (
            "peer/blue",
            r#"{"nodeSelector":"rack == 'r1'","localWorkloadSelector":"color == 'blue'","asNumber":65402}"#,
        ),
        (
            "peer/elsewhere",
            r#"{"node":"c","localWorkloadSelector":"all()","asNumber":65403}"#,
        ),
    ]);
    let sessions = derived_beside(&workloads, &peering, "a");
    let lines: Vec<String> = sessions
        .peers
        .iter()
        .map(|peer| {
            let local = peer.local_address.unwrap();
            format!("{} {} at {local} {:?}", peer.name, peer.remote_as, peer.connect)
        })
        .collect();
    assert_eq!(
        lines,
        [
            "red-10.244.0.5 65401 at 169.254.0.179 Passive",
            "blue-10.244.0.7 65402 at 169.254.0.179 Passive",
            "red-fd00:10:244::5 65401 at fd12::1 Passive",
        ]
    );
    let first = &sessions.peers[0];
    assert_eq!(first.local_as.unwrap().asn, 65002);
    assert_eq!(first.transport.md5_password.as_deref(), Some("word of red"));
    assert_eq!(first.transport.distance, Distance::Multihop(64));
    assert_eq!(first.export.as_ref().unwrap().terms[0].name, "none exportV4[0]");
    let ends: Vec<&str> = sessions.workloads.values().map(String::as_str).collect();
    assert_eq!(ends, ["cali1", "cali2", "cali1"]);
    let has = |end: &str| -> Vec<String> {
        let addresses = sessions.workload_addresses[end].iter();
        addresses.map(ToString::to_string).collect()
    };
    assert_eq!(has("cali1"), ["169.254.0.179", "fd12::1"]);
    assert_eq!(has("cali2"), ["169.254.0.179"]);
    // Of an endpoint on another node nothing is taken.
    let other = workload("red", "cali9", both).1;
    assert_eq!(other.labels["color"], "red");
    let elsewhere = r#"{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"n"},"spec":{"orchestrator":"k8s","node":"b","containerID":"c","endpoint":"eth0","interfaceName":"cali1"}}"#;
    assert_eq!(read::workload("a", "key", elsewhere.as_bytes()), Ok(None));
    // Without an address for it, workloads may still connect to the node's own.
    let bare = cluster(&[
        NO_MESH,
        (
            "peer/red",
            r#"{"localWorkloadSelector":"color == 'red'","asNumber":65401}"#,
        ),
    ]);
    let sessions = derived_beside(&workloads, &bare, "c");
    assert_eq!(sessions.peers.len(), 1, "the node has no IPv6 address");
    assert_eq!(sessions.peers[0].local_address, None);
    assert!(sessions.workload_addresses["cali1"].is_empty());
}

#[test]
fn a_password_that_cannot_be_had_keeps_the_session_down_and_never_is_empty() {
    let mesh = r#"{"nodeMeshPassword":{"secretKeyRef":{"name":"gone","key":"k"}}}"#;
    for resource in [
        ("configuration/default", mesh),
        (
            "peer/tor",
            r#"{"peerIP":"192.0.2.13","asNumber":64512,"password":{"secretKeyRef":{"name":"gone","key":"k"}}}"#,
        ),
    ] {
        let sessions = derived(&cluster(&[resource]), "a");
        let peer = sessions
            .peers
            .iter()
            .find(|peer| peer.address.to_string() == "192.0.2.13")
            .unwrap();
        assert_eq!(peer.transport.md5_password, None);
        assert!(
            peer.held_down().unwrap().contains("no secret gone"),
            "{:?}",
            peer.held_down()
        );
    }
}

#[test]
fn what_is_not_done_is_told() {
    let sessions = derived(
        &cluster(&[
            (
                "configuration/default",
                r#"{"serviceClusterIPs":[{"cidr":"10.96.0.0/12"}],"bindMode":"NodeIP","programClusterRoutes":"Enabled","ipv4NormalRoutePriority":1024,"ipv6NormalRoutePriority":2048,"localWorkloadPeeringIPV6":"fe80::179"}"#,
            ),
            (
                "peer/tor",
                r#"{"peerIP":"192.0.2.1","asNumber":65000,"filters":["nowhere"],"color":1}"#,
            ),
            ("peer/twin", r#"{"peerIP":"192.0.2.1:1179","asNumber":65000}"#),
        ]),
        "a",
    );
    let problems: Vec<&str> = sessions.problems.iter().map(String::as_str).collect();
    assert_eq!(
        problems,
        [
            "BGPConfiguration default: bindMode is not supported",
            "BGPConfiguration default: ipv6NormalRoutePriority is 2048, and routes of this node have 1024",
            "BGPConfiguration default: localWorkloadPeeringIPV6 is a link-local address; expected a global one",
            "BGPConfiguration default: serviceClusterIPs is not supported",
            "BGPPeer tor: color is not supported",
            "BGPPeer tor: there is no BGPFilter nowhere; it is passed over",
            "twin-192.0.2.1: there is a session with 192.0.2.1 at another port already",
        ]
    );
}

fn policies(resources: &[(&str, &str)]) -> (Policy, Policy) {
    let mut peering = cluster(resources);
    for (name, cidr, disable_bgp_export) in
        [("open", "10.244.0.0/16", false), ("closed", "10.60.0.0/16", true)]
    {
        let cidr = cidr.parse().unwrap();
        peering.pools.insert(
            name.to_owned(),
            PeeringPool {
                cidr,
                disable_bgp_export,
            },
        );
    }
    let sessions = derived(&peering, "a");
    let peer = sessions
        .peers
        .into_iter()
        .find(|peer| peer.name.starts_with("tor"))
        .unwrap();
    (peer.import.unwrap(), peer.export.unwrap())
}

fn names(policy: &Policy) -> Vec<String> {
    policy.terms.iter().map(|term| term.name.clone()).collect()
}

#[test]
fn filters_come_in_order_before_what_calico_does_by_itself() {
    let (import, export) = policies(&[
        (
            "peer/tor",
            r#"{"peerIP":"192.0.2.1","asNumber":65000,"filters":["second","first"]}"#,
        ),
        (
            "filter/first",
            r#"{"exportV4":[{"action":"Accept"}],"importV6":[{"action":"Reject"}]}"#,
        ),
        (
            "filter/second",
            r#"{"exportV6":[{"action":"Reject"}],"exportV4":[{"action":"Reject"}]}"#,
        ),
        (
            "configuration/default",
            r#"{"prefixAdvertisements":[{"cidr":"10.244.0.0/16","communities":["64512:1","64512:1:2"]}]}"#,
        ),
    ]);
    assert_eq!(names(&import), ["first importV6[0]"]);
    assert_eq!(import.default, Verdict::Accept);
    assert_eq!(
        names(&export),
        [
            "second exportV4[0]",
            "second exportV6[0]",
            "first exportV4[0]",
            "prefixAdvertisements 10.244.0.0/16",
            "own-routes",
            "pools-not-exported",
            "pools",
        ]
    );
    assert_eq!(export.default, Verdict::Reject);
    let marks = &export.terms[3];
    assert_eq!((marks.set.len(), marks.then), (2, None));
}

#[test]
fn a_rule_matches_routes_of_its_family_only() {
    let (import, _) = policies(&[
        (
            "peer/tor",
            r#"{"peerIP":"192.0.2.1","asNumber":65000,"filters":["f"]}"#,
        ),
        (
            "filter/f",
            r#"{"importV4":[{"action":"Reject"},{"cidr":"10.0.0.0/8","matchOperator":"NotIn","action":"Reject"},{"cidr":"10.0.0.0/8","matchOperator":"In","prefixLength":{"max":24},"action":"Accept"},{"cidr":"10.0.0.0/8","matchOperator":"Equal","action":"Accept"}]}"#,
        ),
    ]);
    let shapes: Vec<String> = import
        .terms
        .iter()
        .map(|term| {
            let shape = |condition: &Condition| match condition {
                Condition::Prefix(ranges) => {
                    let range = ranges[0];
                    format!("in {} {}-{}", range.within, range.min_length, range.max_length)
                }
                Condition::NotPrefix(ranges) => format!("not in {}", ranges[0].within),
                other => format!("{other:?}"),
            };
            term.when.iter().map(shape).collect::<Vec<_>>().join(", ")
        })
        .collect();
    assert_eq!(
        shapes,
        [
            "in 0.0.0.0/0 0-128",
            "in 0.0.0.0/0 0-128, not in 10.0.0.0/8",
            "in 10.0.0.0/8 8-24",
            "in 10.0.0.0/8 8-8",
        ]
    );
}
