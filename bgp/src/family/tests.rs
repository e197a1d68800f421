//! Prefixes and families: text, octets, order, containment.

use std::mem::size_of;
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::*;

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn nlri_octets(prefix: impl FamilyPrefix) -> Vec<u8> {
    let mut out = Vec::new();
    prefix.write_nlri(&mut out);
    assert_eq!(out.len(), prefix.nlri_len());
    out
}

#[test]
fn prefixes_are_small() {
    assert_eq!(size_of::<Ipv4Prefix>(), 8);
    assert_eq!(size_of::<Ipv6Prefix>(), 17);
}

#[test]
fn host_bits_are_cleared_by_constructors_and_refused_in_text() {
    let cleared = Prefix::new("10.1.2.3".parse().unwrap(), 8).unwrap();
    assert_eq!(cleared.to_string(), "10.0.0.0/8");
    let error = "10.1.2.3/8".parse::<Prefix>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"10.1.2.3/8\" has host bits set: did you mean 10.0.0.0/8?"
    );
    let network: IpNetwork = "2001:db8::1/32".parse().unwrap();
    assert_eq!(Prefix::from(network), prefix("2001:db8::/32"));
}

#[test]
fn text_forms_are_read_or_refused() {
    for good in [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "192.0.2.1/32",
        "::/0",
        "2001:db8::/32",
        "2001:db8::1/128",
    ] {
        assert_eq!(prefix(good).to_string(), good);
    }
    assert_eq!(prefix("192.0.2.1"), prefix("192.0.2.1/32"));
    assert_eq!(prefix("::1"), prefix("::1/128"));
    for bad in [
        "",
        "/",
        "10.0.0.0/",
        "10.0.0.0/33",
        "::/129",
        "10.0.0.0/+8",
        "10.0.0.0/08",
        "10.0.0/8",
        "x/8",
        "10.0.0.0/8/8",
    ] {
        assert!(bad.parse::<Prefix>().is_err(), "{bad:?} was accepted");
    }
    assert!("::/0".parse::<Ipv4Prefix>().is_err());
    assert!("0.0.0.0/0".parse::<Ipv6Prefix>().is_err());
}

#[test]
fn nlri_has_only_the_octets_the_length_needs() {
    assert_eq!(nlri_octets("0.0.0.0/0".parse::<Ipv4Prefix>().unwrap()), [0]);
    assert_eq!(
        nlri_octets("10.128.0.0/9".parse::<Ipv4Prefix>().unwrap()),
        [9, 10, 128]
    );
    assert_eq!(
        nlri_octets("192.0.2.1/32".parse::<Ipv4Prefix>().unwrap()),
        [32, 192, 0, 2, 1]
    );
    assert_eq!(
        nlri_octets("2001:db8::/32".parse::<Ipv6Prefix>().unwrap()),
        [32, 0x20, 1, 0x0d, 0xb8]
    );
}

#[test]
fn trailing_bits_of_nlri_are_ignored_and_excess_is_refused() {
    assert_eq!(
        Ipv4Prefix::from_nlri(13, &[11, 15]),
        Some("11.8.0.0/13".parse().unwrap())
    );
    assert_eq!(Ipv4Prefix::from_nlri(33, &[1, 2, 3, 4, 5]), None);
    assert_eq!(Ipv4Prefix::from_nlri(8, &[1, 2]), None);
    assert_eq!(Ipv6Prefix::from_nlri(129, &[0; 17]), None);
}

#[test]
fn families_have_names_that_read_back() {
    for family in [
        AfiSafi::IPV4_UNICAST,
        AfiSafi::IPV6_UNICAST,
        AfiSafi { afi: 25, safi: 70 },
    ] {
        assert_eq!(family.to_string().parse(), Ok(family));
    }
    assert!("ipv4".parse::<AfiSafi>().is_err());
}

#[test]
fn prefixes_serialize_as_text() {
    let json = serde_test_text(&prefix("10.0.0.0/8"));
    assert_eq!(json, "10.0.0.0/8");
}

/// What a value serializes to, if that is a string.
fn serde_test_text<T: Serialize>(value: &T) -> String {
    // `Display` of a serializer for `fmt::Formatter` is the one serde itself brings.
    struct Shown<'a, T>(&'a T);
    impl<T: Serialize> fmt::Display for Shown<'_, T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.serialize(f)
        }
    }
    Shown(value).to_string()
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    prop_oneof![
        (any::<u32>(), 0..=32u8)
            .prop_map(|(bits, length)| Prefix::new(IpAddr::V4(bits.into()), length).unwrap()),
        (any::<u128>(), 0..=128u8).prop_map(|(bits, length)| Prefix::new(
            IpAddr::V6(Ipv6Addr::from(bits)),
            length
        )
        .unwrap()),
    ]
}

fn nlri_round_trip<P: FamilyPrefix>(prefix: P) -> Option<P> {
    let octets = nlri_octets(prefix);
    P::from_nlri(octets[0], &octets[1..])
}

proptest! {
    #[test]
    fn every_prefix_survives_text_network_and_nlri(prefix in any_prefix()) {
        prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
        prop_assert_eq!(Prefix::from(IpNetwork::from(prefix)), prefix);
        match prefix {
            Prefix::V4(prefix) => prop_assert_eq!(nlri_round_trip(prefix), Some(prefix)),
            Prefix::V6(prefix) => prop_assert_eq!(nlri_round_trip(prefix), Some(prefix)),
        }
    }

    #[test]
    fn covering_agrees_with_networks(outer in any_prefix(), inner in any_prefix()) {
        let (outer_net, inner_net) = (IpNetwork::from(outer), IpNetwork::from(inner));
        let expected = outer_net.prefix() <= inner_net.prefix() && outer_net.contains(inner_net.network());
        prop_assert_eq!(outer.covers(inner), expected);
        prop_assert!(outer.covers(outer));
    }

    #[test]
    fn order_is_by_address_then_length(a in any_prefix(), b in any_prefix()) {
        prop_assert_eq!(a.cmp(&b), (a.address(), a.length()).cmp(&(b.address(), b.length())));
    }
}
