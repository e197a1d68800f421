//! A part against the whole: within its scope they are the same, whatever changes.

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::model::{
    Affected, Endpoint, EndpointId, HostPort, Input, Interface, Learned, LearnedPath, NextHop, Protocol,
};

/// Parameters that follow from all workloads together.
const OF_ALL: [&str; 2] = ["net/ipv6/conf/all/forwarding", "net/ipv6/conf/up0/proxy_ndp"];

fn id(number: u8) -> EndpointId {
    EndpointId {
        network: "n".into(),
        container_id: format!("c{number}"),
        ifname: "eth0".into(),
    }
}

fn address(number: u8) -> IpAddr {
    match number {
        0..4 => IpAddr::from([10, 65, 0, number]),
        _ => format!("fd00::{number}").parse().unwrap(),
    }
}

/// Few interfaces and addresses, so that they meet; rarely something that makes everything be looked at.
fn endpoint() -> impl Strategy<Value = Endpoint> {
    let special = prop_oneof![8 => Just(0_u8), 1 => Just(1), 1 => Just(2)];
    (0_u8..6, btree_set(0_u8..8, 0..3), special).prop_map(|(interface, addresses, special)| {
        let mut endpoint = Endpoint {
            host_interface: format!("cali{interface}"),
            addresses: addresses.into_iter().map(address).collect(),
            mac: (interface < 4).then_some([2, 0, 0, 0, 0, interface]),
            ..Endpoint::default()
        };
        match special {
            1 => {
                endpoint.host_ports.insert(HostPort {
                    protocol: Protocol::Tcp,
                    host_address: None,
                    host_port: 80,
                    port: 80,
                });
            }
            2 => {
                endpoint.allowed_sources.insert("192.0.2.0/24".parse().unwrap());
            }
            _ => {}
        }
        endpoint
    })
}

fn input() -> impl Strategy<Value = Input> {
    let attached = |(number, endpoint)| Input::Attached {
        id: id(number),
        endpoint,
        claimed_blocks: BTreeSet::new(),
    };
    prop_oneof![
        (0_u8..6, endpoint()).prop_map(attached),
        (0_u8..6, endpoint()).prop_map(|(number, endpoint)| Input::EndpointSeen(id(number), endpoint)),
        (0_u8..6).prop_map(|number| Input::Detached(id(number))),
        (0_u8..6).prop_map(|number| Input::EndpointUnseen(id(number))),
    ]
}

fn model() -> impl Strategy<Value = Model> {
    let learned = btree_set(0_u8..8, 0..2);
    (
        btree_map(0_u8..6, endpoint(), 0..6),
        btree_set(0_u8..6, 0..6),
        learned,
    )
        .prop_map(|(endpoints, links, learned)| {
            let mut model = Model::new("node-a".into());
            model.endpoints = endpoints
                .into_iter()
                .map(|(number, endpoint)| (id(number), endpoint))
                .collect();
            model.links = links.into_iter().map(|number| format!("cali{number}")).collect();
            model.own_blocks = ["10.65.0.0/26".parse().unwrap()].into();
            model.settings.proxy_neighbors = true;
            let uplink = Interface {
                index: 2,
                up: true,
                running: true,
                mtu: 1500,
                addresses: ["10.65.0.254/31", "10.65.0.1/30", "fd00::1:1/64"]
                    .map(|address| address.parse().unwrap())
                    .into(),
            };
            model.interfaces.insert("up0".into(), uplink);
            let hop = NextHop {
                address: "192.0.2.2".parse().unwrap(),
                interface: None,
            };
            model.learned = learned
                .into_iter()
                .filter_map(|number| {
                    let learned = Learned::via(BTreeSet::from([hop.clone()]))?;
                    Some((IpNetwork::from(address(number)), learned))
                })
                .collect();
            model
        })
}

/// What the whole says within the scope, and whether it says the same as before outside of it.
fn restricted(whole: &Desired, scope: &Scope) -> Part {
    let is_in_scope =
        |path: &str| OF_ALL.contains(&path) || path.split('/').any(|part| scope.interfaces.contains(part));
    let is_to_address = |key: &RouteKey| {
        let mut addresses = scope.addresses.iter();
        addresses.any(|address| *key == RouteKey::main(IpNetwork::from(*address)))
    };
    let mut whole = whole.clone();
    whole.links.retain(|name, _| scope.interfaces.contains(name));
    whole.workloads.retain(|name, _| scope.interfaces.contains(name));
    whole.routes.retain(|key, _| is_to_address(key));
    whole
        .neighbors
        .retain(|key, _| scope.interfaces.contains(&key.interface));
    whole
        .proxy_neighbors
        .retain(|proxy| scope.addresses.contains(&proxy.address));
    whole.sysctls.retain(|path, _| is_in_scope(path));
    Part {
        scope: scope.clone(),
        links: whole.links,
        neighbors: whole.neighbors,
        routes: whole.routes,
        proxy_neighbors: whole.proxy_neighbors,
        sysctls: whole.sysctls,
        workloads: whole.workloads,
    }
}

/// The whole without what is in the scope.
fn rest(mut whole: Desired, scope: &Scope) -> Desired {
    let part = restricted(&whole, scope);
    whole.links.retain(|name, _| !part.links.contains_key(name));
    whole
        .workloads
        .retain(|name, _| !part.workloads.contains_key(name));
    whole.routes.retain(|key, _| !part.routes.contains_key(key));
    whole.neighbors.retain(|key, _| !part.neighbors.contains_key(key));
    whole
        .proxy_neighbors
        .retain(|proxy| !part.proxy_neighbors.contains(proxy));
    whole.sysctls.retain(|path, _| !part.sysctls.contains_key(path));
    whole
}

proptest! {
    #[test]
    fn a_part_is_what_the_whole_says_and_nothing_else_changes(
        mut model in model(),
        inputs in vec(input(), 1..4),
    ) {
        let before = compute(&model);
        let affected = inputs
            .into_iter()
            .fold(Affected::Nothing, |affected, input| affected.and(model.absorb(input)));
        let after = compute(&model);
        match affected {
            Affected::Nothing => prop_assert_eq!(before, after),
            Affected::Everything => {}
            Affected::Workloads(touched) => {
                if let Some(mut part) = part(&model, &touched) {
                    let scope = part.scope.clone();
                    let mut expected = restricted(&after, &scope);
                    // Wanted as soon as any workload has IPv6; the part says so only if one of its own has.
                    for of_all in OF_ALL {
                        if part.sysctls.remove(of_all).is_some() {
                            prop_assert!(after.sysctls.contains_key(of_all));
                        }
                        expected.sysctls.remove(of_all);
                    }
                    prop_assert_eq!(part, expected);
                    let (mut before, mut after) = (rest(before, &scope), rest(after, &scope));
                    for whole in [&mut before, &mut after] {
                        whole.sysctls.retain(|path, _| !OF_ALL.contains(&path.as_str()));
                        whole.announcements.clear();
                    }
                    prop_assert_eq!(before, after);
                }
            }
        }
    }
}

#[test]
fn of_two_that_claim_an_address_the_same_one_has_it_in_the_part_and_in_the_whole() {
    let mut model = Model::new("node-a".into());
    // The order of the interfaces is not that of the identities.
    for (number, interface) in [(1, "cali9"), (2, "cali0")] {
        let endpoint = Endpoint {
            host_interface: interface.into(),
            addresses: [address(3)].into(),
            ..Endpoint::default()
        };
        model.endpoints.insert(id(number), endpoint);
        model.links.insert(interface.into());
    }
    let touched: Vec<Endpoint> = model.endpoints.values().cloned().collect();
    let part = part(&model, &touched).unwrap();
    assert_eq!(part.routes.len(), 1);
    assert_eq!(part.routes, restricted(&compute(&model), &part.scope).routes);
}

#[test]
fn what_somebody_else_claims_too_makes_everything_be_looked_at() {
    let plain = |interface: &str, number| Endpoint {
        host_interface: interface.into(),
        addresses: [address(number)].into(),
        ..Endpoint::default()
    };
    let model = |change: fn(&mut Model)| {
        let mut model = Model::new("node-a".into());
        model.links = ["cali1".to_owned(), "cali2".to_owned()].into();
        model.endpoints.insert(id(1), plain("cali1", 1));
        change(&mut model);
        model
    };
    let touched = [plain("cali1", 1)];
    assert!(part(&model(|_| {}), &touched).is_some());
    let learned = model(|model| {
        let learned = Learned {
            path: LearnedPath::Blackhole,
            priority: None,
        };
        model.learned.insert(IpNetwork::from(address(1)), learned);
    });
    assert_eq!(part(&learned, &touched), None);
    let block = model(|model| {
        model.own_blocks.insert(IpNetwork::from(address(1)));
    });
    assert_eq!(part(&block, &touched), None);
    let mut other = model(|_| {});
    other.endpoints.insert(id(2), plain("cali2", 1));
    assert_eq!(part(&other, &touched), None);
}
