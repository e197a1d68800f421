//! Communities: text forms and set behaviour.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[test]
fn communities_have_text_forms() {
    assert_eq!("65000:1".parse(), Ok(Community::new(65000, 1)));
    assert_eq!("no-export".parse(), Ok(Community::NO_EXPORT));
    assert_eq!(Community::NO_EXPORT.to_string(), "65535:65281");
    assert_eq!(Community::BLACKHOLE.to_string(), "65535:666");
    for bad in ["", "1", "65536:1", "1:65536", "1:2:3", "-1:2"] {
        assert!(bad.parse::<Community>().is_err(), "{bad:?} was accepted");
    }
    let large: LargeCommunity = "4294967295:0:7".parse().unwrap();
    assert_eq!(large.to_string(), "4294967295:0:7");
    for bad in ["1:2", "1:2:3:4", "4294967296:0:0", "::"] {
        assert!(bad.parse::<LargeCommunity>().is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn extended_communities_show_targets_and_origins() {
    let rows = [
        ([0, 2, 0xfd, 0xe8, 0, 0, 0, 9], "rt:65000:9", true),
        ([1, 3, 10, 0, 0, 1, 0, 9], "soo:10.0.0.1:9", true),
        ([2, 2, 0, 1, 0, 1, 0, 9], "rt:65537:9", true),
        ([0x43, 0, 0, 0, 0, 0, 0, 1], "0x4300000000000001", false),
    ];
    for (octets, text, transitive) in rows {
        let community = ExtendedCommunity(octets);
        assert_eq!(
            (community.to_string().as_str(), community.is_transitive()),
            (text, transitive)
        );
        assert_eq!(text.parse(), Ok(community));
    }
    for bad in [
        "rt:1",
        "rt:1:4294967296",
        "rt:65536:65536",
        "xx:1:1",
        "0x1",
        "rt:10.0.0.1:65536",
    ] {
        assert!(bad.parse::<ExtendedCommunity>().is_err(), "{bad:?} was accepted");
    }
    let mut octets = [0; 20];
    (octets[1], octets[2], octets[3], octets[19]) = (2, 0x20, 1, 7);
    assert_eq!(Ipv6ExtendedCommunity(octets).to_string(), "rt:[2001::]:7");
}

proptest! {
    #[test]
    fn a_set_behaves_like_a_set(initial in prop::collection::vec(0..20u32, 0..10), added in 0..20u32) {
        let mut set: CommunitySet<Community> = initial.iter().copied().map(Community).collect();
        let mut model: BTreeSet<u32> = initial.into_iter().collect();
        prop_assert_eq!(set.contains(Community(added)), model.contains(&added));
        set.insert(Community(added));
        model.insert(added);
        set.retain(|community| community.0 % 3 != 0);
        model.retain(|community| community % 3 != 0);
        let members: Vec<u32> = set.as_slice().iter().map(|community| community.0).collect();
        prop_assert_eq!(members, model.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(set.is_empty(), set.as_slice().is_empty());
    }
}
