//! Resources as `calicoctl` stores them.

use super::*;

/// A resource with this spec.
fn spec(spec: &str) -> Vec<u8> {
    format!(
        r#"{{"kind":"K","apiVersion":"projectcalico.org/v3","metadata":{{"name":"n"}},"spec":{{{spec}}}}}"#
    )
    .into_bytes()
}

#[test]
fn a_peer_says_who_peers_with_whom_and_how() {
    let rack = peer(&spec(
        r#""nodeSelector":"rack == 'r1'","peerIP":"[2001:db8:2::1]:1179","asNumber":65010,"keepOriginalNextHop":true,"password":{"secretKeyRef":{"name":"bgp-secrets","key":"tor"}},"sourceAddress":"None","maxRestartTime":"1m0s","numAllowedLocalASNumbers":2,"ttlSecurity":1,"filters":["no-default"]"#,
    ))
    .unwrap();
    assert!(matches!(rack.nodes, NodesOfPeer::Selected(_)));
    assert_eq!(
        rack.remote,
        RemoteOfPeer::Address {
            address: "2001:db8:2::1".parse().unwrap(),
            port: Some(1179),
            as_number: Some(65010),
        }
    );
    assert_eq!(rack.next_hop, PeerNextHop::KeepOutside);
    assert_eq!(rack.password.unwrap().key, "tor");
    assert_eq!(rack.restart_time, Some(Duration::from_secs(60)));
    assert_eq!(
        (rack.from_node_address, rack.allow_own_as, rack.ttl_security),
        (false, 2, Some(1))
    );
    assert_eq!(
        (rack.filters, rack.reverse),
        (vec!["no-default".to_owned()], true)
    );

    let reflectors = peer(&spec(
        r#""peerSelector":"has(route-reflector)","nextHopMode":"Self","localASNumber":"1.10","keepaliveTime":"10s","reversePeering":"Manual","color":"red""#,
    ))
    .unwrap();
    assert!(matches!(reflectors.remote, RemoteOfPeer::Selected(_)));
    assert_eq!(reflectors.nodes, NodesOfPeer::All);
    assert_eq!(
        (reflectors.next_hop, reflectors.reverse),
        (PeerNextHop::Itself, false)
    );
    assert_eq!(
        (reflectors.local_as, reflectors.from_node_address),
        (Some(65546), true)
    );
    assert_eq!(reflectors.unsupported, BTreeSet::from(["color".to_owned()]));
}

#[test]
fn what_contradicts_itself_is_refused_by_name() {
    for (text, expected) in [
        (
            r#""node":"a","nodeSelector":"all()","peerIP":"192.0.2.1""#,
            "exclude each other",
        ),
        (
            r#""peerSelector":"all()","asNumber":1"#,
            "excludes peerIP and asNumber",
        ),
        (r#""asNumber":1"#, "expected peerIP, peerSelector or"),
        (
            r#""peerIP":"192.0.2.1:0","asNumber":1"#,
            "nor an address with a port",
        ),
        (r#""peerIP":"192.0.2.1","asNumber":0"#, "not an AS number"),
        (r#""peerIP":"192.0.2.1","nodeSelector":"rack ="#.trim_end(), "EOF"),
        (r#""peerIP":"192.0.2.1","maxRestartTime":"1""#, "not a duration"),
        (r#""localWorkloadSelector":"all()""#, "needs an asNumber"),
        (
            r#""localWorkloadSelector":"all()","peerIP":"192.0.2.1","asNumber":1"#,
            "excludes peerIP and peerSelector",
        ),
    ] {
        let error = peer(&spec(text)).expect_err(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_configuration_says_what_holds_for_all_and_names_what_is_not_honoured() {
    let found = configuration(&spec(
        r#""logSeverityScreen":"Info","nodeToNodeMeshEnabled":false,"asNumber":64512,"serviceClusterIPs":[{"cidr":"10.96.0.0/12"}],"serviceExternalIPs":[],"communities":[{"name":"bgp-large","value":"64512:300:100"}],"prefixAdvertisements":[{"cidr":"10.244.0.0/16","communities":["bgp-large","64512:121"]}],"listenPort":1790,"nodeMeshPassword":{"secretKeyRef":{"name":"s","key":"k"}},"nodeMeshMaxRestartTime":"2m0s","ignoredInterfaces":["docker0"],"bindMode":"NodeIP""#,
    ))
    .unwrap();
    assert_eq!(
        (found.mesh, found.as_number, found.listen_port),
        (Some(false), Some(64512), Some(1790))
    );
    assert_eq!(found.mesh_restart_time, Some(Duration::from_secs(120)));
    let [advertised] = found.prefix_advertisements.as_slice() else {
        panic!("{found:?}")
    };
    let communities = ["64512:300:100", "64512:121"].map(|text| text.parse().unwrap());
    assert_eq!(advertised.communities, communities);
    let unsupported: Vec<&str> = found.unsupported.iter().map(String::as_str).collect();
    assert_eq!(unsupported, ["bindMode", "serviceClusterIPs"]);
}

/// The rows of a table in the document: field, and what becomes of it.
fn documented(heading: &str) -> Vec<(&'static str, &'static str)> {
    let document = include_str!("../../../CALICO-BGP.md");
    let section = document
        .split("\n## ")
        .find(|section| section.starts_with(heading))
        .unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let (field, rest) = row.split_once("` | ").unwrap();
        (field, rest.split(" |").next().unwrap())
    })
    .collect()
}

#[test]
fn the_document_says_what_becomes_of_each_field() {
    let values = |field: &str| match field {
        "node" | "reachableBy" | "nodeSelector" | "peerSelector" | "localWorkloadSelector" | "peerIP" => None,
        "nodeToNodeMeshEnabled" | "keepOriginalNextHop" => Some("true"),
        "asNumber"
        | "localASNumber"
        | "listenPort"
        | "numAllowedLocalASNumbers"
        | "ttlSecurity"
        | "ipv4NormalRoutePriority"
        | "ipv6NormalRoutePriority" => Some("7"),
        "communities" | "prefixAdvertisements" | "filters" => Some("[]"),
        "nodeMeshPassword" | "password" => Some(r#"{"secretKeyRef":{"name":"s","key":"k"}}"#),
        "nodeMeshMaxRestartTime" | "maxRestartTime" | "keepaliveTime" => Some(r#""10s""#),
        "localWorkloadPeeringIPV4" => Some(r#""169.254.0.1""#),
        "localWorkloadPeeringIPV6" => Some(r#""fd00::1""#),
        "reversePeering" => Some(r#""Auto""#),
        "nextHopMode" => Some(r#""Keep""#),
        "sourceAddress" => Some(r#""None""#),
        _ => Some(r#""something""#),
    };
    let mut told = 0;
    for (kind, field, says) in ["BGPConfiguration", "BGPPeer"].into_iter().flat_map(|kind| {
        let rows = documented(kind).into_iter();
        rows.map(move |(field, says)| (kind, field, says))
    }) {
        // The rest is in `a_peer_says_who_peers_with_whom_and_how`.
        let Some(value) = values(field) else {
            assert_eq!(says, "done", "{field}");
            continue;
        };
        let text = format!(r#""{field}":{value}"#);
        let unsupported = match kind {
            "BGPPeer" => {
                peer(&spec(&format!(r#""peerIP":"192.0.2.1",{text}"#))).map(|found| found.unsupported)
            }
            _ => configuration(&spec(&text)).map(|found| found.unsupported),
        };
        let unsupported = unsupported.unwrap_or_else(|why| panic!("{field}: {why}"));
        assert_eq!(
            unsupported.contains(field),
            says == "told",
            "{kind} {field}: {says}"
        );
        assert!(
            ["done", "nothing to do", "told"].contains(&says),
            "{field}: {says}"
        );
        told += unsupported.len();
    }
    assert!(told >= 9, "{told}");
    // Every key of a rule is known, or the rule would be refused.
    let rule = r#""cidr":"10.0.0.0/8","matchOperator":"In","prefixLength":{"min":9},"source":"RemotePeers","interface":"eth0","peerType":"eBGP","communities":{"values":["1:2"]},"asPathPrefix":[1],"priority":5,"action":"Accept","operations":[{"setPriority":{"value":1}}]"#;
    filter(&spec(&format!(r#""importV4":[{{{rule}}}]"#))).unwrap();
    for (field, says) in documented("BGPFilter") {
        assert!(
            rule.contains(&format!(r#""{field}":"#)) && says == "done",
            "{field}"
        );
    }
}

#[test]
fn a_filter_has_rules_with_places_and_refuses_what_it_does_not_know() {
    let found = filter(&spec(
        r#""exportV4":[{"cidr":"10.244.0.0/16","prefixLength":{"min":24},"matchOperator":"NotIn","source":"RemotePeers","action":"Reject"}],"importV6":[{"interface":"eth*","peerType":"iBGP","communities":{"values":["1:2","1:2:3"]},"asPathPrefix":[65001],"priority":512,"action":"Accept","operations":[{"addCommunity":{"value":"9:9"}},{"prependASPath":{"prefix":[1,2]}},{"setPriority":{"value":512}}]}]"#,
    ))
    .unwrap();
    let ([export], [import]) = (found.export.as_slice(), found.import.as_slice()) else {
        panic!("{found:?}")
    };
    assert_eq!(
        (export.place.as_str(), export.is_ipv6, export.from_peers),
        ("exportV4[0]", false, true)
    );
    let cidr = export.cidr.unwrap();
    assert_eq!(
        (cidr.exact, cidr.negated, cidr.min_length, cidr.max_length),
        (false, true, Some(24), None)
    );
    assert_eq!(
        (import.place.as_str(), import.is_ipv6, import.ebgp),
        ("importV6[0]", true, Some(false))
    );
    assert_eq!(
        (import.communities.len(), import.operations.len(), import.accept),
        (2, 3, true)
    );
    for (rule, expected) in [
        (r#""action":"Accept","colour":"red""#, "unknown field `colour`"),
        (
            r#""action":"Accept","cidr":"10.0.0.0/8""#,
            "importV4[0]: cidr and matchOperator go together",
        ),
        (
            r#""action":"Accept","cidr":"fd00::/8","matchOperator":"In""#,
            "other family",
        ),
        (
            r#""action":"Reject","operations":[{"setPriority":{"value":1}}]"#,
            "action Accept only",
        ),
        (
            r#""action":"Accept","prefixLength":{"max":33}"#,
            "beyond the family's",
        ),
        (r#""action":"Drop""#, "unknown variant `Drop`"),
    ] {
        let error = filter(&spec(&format!(r#""importV4":[{{{rule}}}]"#))).expect_err(rule);
        assert!(error.contains(expected), "{rule}: {error}");
    }
}

#[test]
fn a_node_says_where_it_is_and_whether_it_reflects() {
    let value = br#"{"metadata":{"name":"b","labels":{"rack":"r2"}},"spec":{"bgp":{"asNumber":64513,"ipv4Address":"192.0.2.12/24","routeReflectorClusterID":"224.0.0.1"}}}"#;
    let found = node(value).unwrap();
    assert_eq!(found.ipv4, Some("192.0.2.12".parse().unwrap()));
    assert_eq!((found.ipv6, found.as_number), (None, Some(64513)));
    assert_eq!(found.cluster_id, Some("224.0.0.1".parse().unwrap()));
    assert_eq!(found.labels["rack"], "r2");
    assert_eq!(
        node(br#"{"metadata":{"name":"c"},"spec":{}}"#).unwrap(),
        PeeringNode::default()
    );
    assert!(node(br#"{"spec":{"bgp":{"ipv4Address":"x"}}}"#).is_err());
}
