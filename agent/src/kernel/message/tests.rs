//! What is sent is what is read back, and no bytes whatsoever make reading panic.

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::delta::Change;
use crate::desired::Route;

fn name_of(index: u32) -> String {
    format!("if{index}")
}

/// The request that creates the route, without the header of netlink.
fn bytes_of(key: &RouteKey, origin: RouteOrigin, path: &RoutePath) -> Vec<u8> {
    let path = path.clone();
    let change = Change::Create {
        key: key.clone(),
        value: Route { origin, path },
    };
    let names: Vec<String> = (1..1000).map(name_of).collect();
    let indexes: Indexes<'_> = names.iter().map(String::as_str).zip(1..).collect();
    let mut bytes = Vec::new();
    route_change(&change, &indexes, &mut bytes);
    assert_eq!(bytes.len() % 4, 0, "not aligned");
    assert_eq!(
        bytes.len(),
        u32::from_ne_bytes(*bytes.first_chunk().unwrap()) as usize
    );
    bytes.split_off(16)
}

fn any_destination() -> impl Strategy<Value = IpNetwork> {
    let v4 = (any::<u32>(), 0_u8..=32).prop_map(|(bits, prefix)| (IpAddr::V4(bits.into()), prefix));
    let v6 = (any::<u128>(), 0_u8..=128).prop_map(|(bits, prefix)| (IpAddr::V6(bits.into()), prefix));
    prop_oneof![v4, v6].prop_map(|(address, prefix)| {
        let network = IpNetwork::new(address, prefix).unwrap();
        IpNetwork::new(network.network(), prefix).unwrap()
    })
}

fn any_gateway() -> impl Strategy<Value = Gateway> {
    let address = prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
    ];
    (address, 1_u32..1000).prop_map(|(address, index)| Gateway {
        address,
        interface: Some(name_of(index)),
    })
}

fn any_path() -> impl Strategy<Value = RoutePath> {
    prop_oneof![
        Just(RoutePath::Blackhole),
        (1_u32..1000).prop_map(|index| RoutePath::Link {
            interface: name_of(index)
        }),
        btree_set(any_gateway(), 1..5).prop_map(RoutePath::via),
        any::<u32>().prop_map(|id| RoutePath::Group { id }),
    ]
}

proptest! {
    #[test]
    fn a_route_is_read_as_it_was_written(
        destination in any_destination(),
        path in any_path(),
        is_bgp in any::<bool>(),
        table in prop_oneof![Just(MAIN_TABLE), 1_u32..100_000],
        priority in 1_u32..5000,
    ) {
        let key = RouteKey { table, destination, priority };
        let origin = if is_bgp { RouteOrigin::Bgp } else { RouteOrigin::Local };
        let seen = parse_route(&bytes_of(&key, origin, &path), &mut name_of).unwrap().unwrap();
        prop_assert_eq!(seen.key, key);
        prop_assert_eq!(self::origin(seen.protocol), Some(origin));
        prop_assert_eq!(seen.path, Some(path));
    }

    #[test]
    fn no_bytes_make_reading_panic(mut bytes in vec(any::<u8>(), 0..200), family in 0_u8..12) {
        if let Some(first) = bytes.first_mut() {
            *first = family;
        }
        let _ = parse_route(&bytes, &mut name_of);
        let _ = parse_link(&bytes);
        let _ = parse_address_of(&bytes, 7);
    }

    #[test]
    fn no_cut_and_no_flipped_byte_makes_reading_panic(
        path in any_path(),
        cut in 0_usize..300,
        position in 0_usize..300,
        value in any::<u8>(),
    ) {
        let key = RouteKey::main("10.0.0.0/8".parse().unwrap());
        let mut bytes = bytes_of(&key, RouteOrigin::Bgp, &path);
        if let Some(byte) = bytes.get_mut(position) {
            *byte = value;
        }
        bytes.truncate(cut);
        let _ = parse_route(&bytes, &mut name_of);
    }
}

#[test]
fn a_foreign_route_is_described_as_ip_route_would() {
    let gateway = Gateway {
        address: "192.0.2.1".parse().unwrap(),
        interface: Some("up0".into()),
    };
    let key = RouteKey {
        table: 77,
        ..RouteKey::main("10.0.0.0/8".parse().unwrap())
    };
    let route = SeenRoute {
        key,
        protocol: 4,
        path: Some(RoutePath::via([gateway])),
    };
    assert_eq!(
        describe(&route),
        "10.0.0.0/8 via 192.0.2.1 dev up0 proto 4 metric 1024 table 77"
    );
}
