//! A peer's state survives being written down: what it agreed on, what it announced, how far it is. What is read back is judged like what a peer sends.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "wire_fuzz/allocation.rs"]
mod allocation;
mod simulation;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use calidris_bgp::config::{AddPathConfig, AddPathSend};
use calidris_bgp::family::Prefix;
use calidris_bgp::route::Origination;
use calidris_bgp::speaker::{PeerSnapshot, SnapshotError};
use calidris_bgp::status::{AttributesSummary, RouteFilter};
use calidris_bgp::wire::attr::{Community, LargeCommunity};
use proptest::prelude::*;
use simulation::{World, open_peer, speaker};

const SOON: Duration = Duration::from_secs(60);

/// `left` (AS 65001) and `right` (AS 65002), which announces `routes`.
fn world(add_path: bool, routes: BTreeMap<Prefix, Origination>) -> World {
    let mut world = World::new(Duration::from_millis(1));
    let both = AddPathConfig {
        receive: add_path,
        send: add_path.then_some(AddPathSend::All),
    };
    let peer = |name: &str, address: &str, asn: u32| {
        let mut peer = open_peer(name, address, asn);
        peer.add_path = both;
        peer
    };
    let mut left = speaker(65001, 1, vec![peer("right", "10.0.0.2", 65002)]);
    let mut right = speaker(65002, 2, vec![peer("left", "10.0.0.1", 65001)]);
    left.next_hop_ipv6 = Some("2001:db8::1".parse().expect("address"));
    right.next_hop_ipv6 = Some("2001:db8::2".parse().expect("address"));
    world.add("10.0.0.1", left);
    world.add("10.0.0.2", right);
    world.call(1, |speaker, now| speaker.originate(routes, now));
    world.originate(0, &[]);
    world.run_until(SOON, "the table", |world| {
        let families = world.peer(0, "right").families;
        families.len() == 2 && families.iter().all(|family| family.end_of_rib_received)
    });
    world.run_for(SOON);
    world
}

/// Routes of both families, some with attributes of their own.
fn some_routes() -> BTreeMap<Prefix, Origination> {
    let mut routes = BTreeMap::new();
    for number in 0..300_u32 {
        let origination = Origination {
            med: Some(number % 7),
            communities: vec!["65002:1".parse().expect("community")],
            ..Origination::default()
        };
        let prefix = format!("10.{}.{}.0/24", 100 + number / 250, number % 250);
        routes.insert(prefix.parse().expect("prefix"), origination);
    }
    routes.insert("2001:db8:7::/48".parse().expect("prefix"), Origination::default());
    routes
}

fn snapshot(world: &mut World) -> PeerSnapshot {
    let snapshot = world.speaker(0).snapshot("right");
    snapshot.expect("an Established session")
}

/// The routes of a snapshot, a line each.
fn kept(snapshot: &PeerSnapshot) -> Result<BTreeSet<String>, SnapshotError> {
    let mut kept = BTreeSet::new();
    snapshot.each_route(|prefix, path_id, attributes| {
        let line = format!("{prefix} {path_id} {:?}", AttributesSummary::of(attributes));
        assert!(kept.insert(line), "each route once");
    })?;
    Ok(kept)
}

/// What `left` has from `right`, in the same words.
fn held(world: &mut World) -> BTreeSet<String> {
    let filter = RouteFilter {
        from: Some("right".to_owned()),
        ..RouteFilter::default()
    };
    let routes = world.call(0, |speaker, now| speaker.routes(&filter, now));
    let candidates = routes.iter().flat_map(|route| {
        let candidates = route.candidates.iter();
        candidates.map(move |candidate| (route.prefix, candidate))
    });
    candidates
        .map(|(prefix, candidate)| {
            let received = candidate.received.as_ref().unwrap_or(&candidate.attributes);
            format!("{prefix} {} {received:?}", candidate.path_id)
        })
        .collect()
}

#[test]
fn what_a_peer_agreed_on_and_announced_survives_being_written_down() {
    for add_path in [false, true] {
        let mut world = world(add_path, some_routes());
        let snapshot = snapshot(&mut world);
        let text = serde_json::to_string(&snapshot).expect("serialisable");
        let read: PeerSnapshot = serde_json::from_str(&text).expect("what was written");
        assert_eq!(read, snapshot);
        assert_eq!((read.terms.remote_as, read.terms.families.len()), (65002, 2));
        assert!(
            read.families
                .values()
                .all(|family| family.end_of_rib_received && family.end_of_rib_sent)
        );
        let held = held(&mut world);
        assert_eq!(held.len(), 301);
        assert_eq!(kept(&read), Ok(held));
    }
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    let ipv4 = (any::<[u8; 2]>(), 8..=32_u8).prop_map(|([a, b], length)| (format!("10.{a}.{b}.0"), length));
    let ipv6 = (any::<u16>(), 32..=128_u8).prop_map(|(a, length)| (format!("2001:db8:{a:x}::"), length));
    let network = prop_oneof![ipv4, ipv6];
    network.prop_map(|(address, length)| {
        let network = ipnetwork::IpNetwork::new(address.parse().expect("address"), length).expect("length");
        Prefix::from(network)
    })
}

fn any_origination() -> impl Strategy<Value = Origination> {
    let communities = prop::collection::vec(any::<[u16; 2]>(), 0..4);
    let large = prop::collection::vec(any::<[u32; 3]>(), 0..3);
    (any::<Option<u32>>(), communities, large).prop_map(|(med, communities, large)| Origination {
        med,
        // Those above are well-known and say that nobody is to hear of the route.
        communities: communities
            .into_iter()
            .map(|[high, low]| Community::new(high & 0x7fff, low))
            .collect(),
        large_communities: large
            .into_iter()
            .map(
                |[global_administrator, local_data_1, local_data_2]| LargeCommunity {
                    global_administrator,
                    local_data_1,
                    local_data_2,
                },
            )
            .collect(),
        ..Origination::default()
    })
}

/// A change to a row of octets: cut, one another, one more, one less, or a part again.
fn damage(octets: &mut Vec<u8>, (kind, at, octet): (u8, prop::sample::Index, u8)) {
    if octets.is_empty() {
        return octets.push(octet);
    }
    let at = at.index(octets.len());
    match kind % 5 {
        0 => octets.truncate(at),
        1 => octets[at] = octet,
        2 => octets.insert(at, octet),
        3 => {
            octets.remove(at);
        }
        _ => octets.extend_from_within(at..),
    }
}

/// Octets that reading a snapshot may take: those of a longest message, as `wire` promises.
const MOST: usize = 65_535 * 16 + 4096;

static WRITTEN: LazyLock<PeerSnapshot> = LazyLock::new(|| snapshot(&mut world(true, some_routes())));

/// Reads, whatever that gives, and takes no more memory than it may.
fn read(snapshot: &PeerSnapshot) -> Result<usize, SnapshotError> {
    let mut routes = 0;
    let (result, most) = allocation::measured(|| snapshot.each_route(|_, _, _| routes += 1));
    assert!(most <= MOST, "{most} octets");
    assert!(routes <= snapshot.adj_rib_in.len(), "no route without an octet");
    result.map(|()| routes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_was_announced_is_read_back(
        add_path in any::<bool>(),
        routes in prop::collection::btree_map(any_prefix(), any_origination(), 0..40),
    ) {
        let mut world = world(add_path, routes.clone());
        let snapshot = snapshot(&mut world);
        let text = serde_json::to_string(&snapshot).expect("serialisable");
        let read: PeerSnapshot = serde_json::from_str(&text).expect("what was written");
        prop_assert_eq!(&read, &snapshot);
        let held = held(&mut world);
        prop_assert_eq!(held.len(), routes.len());
        prop_assert_eq!(kept(&read), Ok(held));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_snapshot_gives_routes_or_says_what_is_wrong(
        changes in prop::collection::vec(any::<(u8, prop::sample::Index, u8)>(), 1..8),
    ) {
        let mut damaged = WRITTEN.clone();
        for change in changes {
            damage(&mut damaged.adj_rib_in, change);
        }
        if let Err(error) = read(&damaged) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn a_damaged_text_is_refused_or_read_like_any_other(
        changes in prop::collection::vec(any::<(u8, prop::sample::Index, u8)>(), 1..4),
    ) {
        let mut text = serde_json::to_vec(&*WRITTEN).expect("serialisable");
        for change in changes {
            damage(&mut text, change);
        }
        if let Ok(damaged) = serde_json::from_slice(&text) {
            let _either = read(&damaged);
        }
    }
}

#[test]
fn what_is_no_snapshot_of_this_form_is_refused_by_name() {
    let change = |change: &dyn Fn(&mut PeerSnapshot)| {
        let mut changed = WRITTEN.clone();
        change(&mut changed);
        read(&changed).expect_err("refused").to_string()
    };
    assert_eq!(change(&|it| it.version = 2), "version 2; expected 1");
    assert_eq!(
        change(&|it| it.unread = vec![0; 65_535]),
        "65535 octets of an unfinished message; expected less than 65535"
    );
    let end = WRITTEN.adj_rib_in.len();
    assert!(change(&|it| it.adj_rib_in.push(0xff)).contains(&format!("octet {end}: expected an UPDATE")));
    // A message of another type.
    let mut keepalive = vec![0xff; 16];
    keepalive.extend([0, 19, 4]);
    assert!(change(&|it| it.adj_rib_in.clone_from(&keepalive)).contains("octet 0: expected an UPDATE"));
    assert_eq!(read(&WRITTEN), Ok(301));
}

#[test]
fn without_a_session_there_is_nothing_to_write_down() {
    let mut world = world(false, some_routes());
    assert_eq!(world.speaker(0).snapshot("nobody"), None);
    world.kill(1);
    world.run_until(SOON, "the end of the session", |world| {
        !world.established(0, "right")
    });
    assert_eq!(world.speaker(0).snapshot("right"), None);
}
