//! Update groups: a peer is told exactly what it would be told alone, however fast its fellows read.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use calidris_bgp::config::{AddPathSend, ConnectMode};
use calidris_bgp::family::{AfiSafi, Ipv4Prefix, Ipv4Unicast};
use calidris_bgp::policy::{Change, Condition, Policy, PrefixRange, Term};
use calidris_bgp::session::ConnId;
use calidris_bgp::wire::attr::{AsPath, Attributes, Community, NextHop};
use calidris_bgp::wire::capability::{AddPath, AddPathDirection, Capabilities, Capability};
use calidris_bgp::wire::context::{DecodeContext, EncodeContext, PeerKind};
use calidris_bgp::wire::frame::{Frame, MessageLimit, MessageType, encode_keepalive};
use calidris_bgp::wire::nlri::{FamilyNlri, Nlri};
use calidris_bgp::wire::open::Open;
use calidris_bgp::wire::refresh::{RefreshSubtype, RouteRefresh};
use calidris_bgp::wire::update::{Update, UpdateTemplate};
use calidris_bgp::{PeerConfig, Speaker, SpeakerConfig, Time};
use proptest::prelude::*;

const US: u32 = 65001;
/// Peers: their AS, and whether they take several paths. Ours are reflector clients.
const PEERS: [(u32, bool); 7] = [
    (US, false),
    (US, false),
    (US, true),
    (US, true),
    (65003, false),
    (65004, false),
    (65005, false),
];

/// Whether peers that are treated alike share a group.
#[derive(Clone, Copy, PartialEq)]
enum Grouping {
    Shared,
    /// An own limit, never reached, keeps every peer alone.
    Alone,
}

fn config(grouping: Grouping, policy: u8) -> SpeakerConfig {
    let mut config = SpeakerConfig::new(US, Ipv4Addr::new(10, 255, 0, 1));
    for (number, (asn, several)) in PEERS.iter().enumerate() {
        let octet = u8::try_from(number).expect("few") + 2;
        let mut peer = PeerConfig::new(format!("peer{number}"), [10, 0, 0, octet].into(), *asn);
        peer.connect = ConnectMode::Passive;
        peer.route_reflector_client = *asn == US;
        peer.graceful_restart = None;
        (peer.idle_hold, peer.idle_hold_max) = (Duration::ZERO, Duration::ZERO);
        peer.import = Some(Policy::accept_all());
        peer.export = Some(export(policy, number));
        peer.add_path.send = several.then_some(AddPathSend::All);
        peer.prefix_limit_out = (grouping == Grouping::Alone).then_some(u32::MAX);
        config.peers.push(peer);
    }
    config
}

/// Bit n of `policy`: the policy of peer n is another one.
fn export(policy: u8, peer: usize) -> Policy {
    let other = policy >> peer & 1 == 1;
    if !other {
        return Policy::accept_all();
    }
    let refused = PrefixRange::exact(prefix(3).into());
    let marked = PrefixRange::exact(prefix(4).into());
    let mark = Term::accept("mark", vec![Condition::Prefix(vec![marked])])
        .set(Change::AddCommunity(Community::new(1, 2)));
    Policy::accept_all()
        .with(Term::reject("not-3", vec![Condition::Prefix(vec![refused])]))
        .with(mark)
}

fn prefix(number: u32) -> Ipv4Prefix {
    Ipv4Prefix::new(Ipv4Addr::from(0x0a80_0000 + (number << 8)), 24).expect("prefix")
}

/// What a peer knows, by prefix and path identifier.
type Belief = BTreeMap<(Ipv4Prefix, u32), Attributes>;

struct Net {
    speaker: Speaker,
    conns: Vec<ConnId>,
    beliefs: Vec<Belief>,
    /// UPDATEs each peer got since its session began.
    updates: Vec<usize>,
    /// Something a peer was told though it knew so, or had never heard of.
    idle_talk: Vec<String>,
    port: u16,
}

impl Net {
    fn new(grouping: Grouping) -> Self {
        let mut speaker = Speaker::new(config(grouping, 0), false, 1, Time::ZERO).expect("configuration");
        speaker.originate(BTreeMap::new(), Time::ZERO);
        let mut net = Self {
            speaker,
            conns: vec![ConnId { peer: 0, serial: 0 }; PEERS.len()],
            beliefs: vec![Belief::new(); PEERS.len()],
            updates: vec![0; PEERS.len()],
            idle_talk: Vec::new(),
            port: 40_000,
        };
        for peer in 0..PEERS.len() {
            net.connect(peer);
        }
        net
    }

    fn connect(&mut self, peer: usize) {
        let octet = u8::try_from(peer).expect("few") + 2;
        self.port = self.port.wrapping_add(1);
        let local = SocketAddr::from(([10, 0, 0, 1], 179));
        let remote = SocketAddr::from(([10, 0, 0, octet], self.port));
        let accepted = self.speaker.handle_accepted(local, remote, Time::ZERO);
        self.conns[peer] = accepted.expect("accepted");
        let (asn, several) = PEERS[peer];
        let mut capabilities = vec![
            Capability::Multiprotocol(AfiSafi::IPV4_UNICAST),
            Capability::RouteRefresh,
            Capability::FourOctetAs(asn),
        ];
        if several {
            capabilities.push(Capability::AddPath(vec![AddPath {
                family: AfiSafi::IPV4_UNICAST,
                direction: AddPathDirection::Receive,
            }]));
        }
        let open = Open::new(
            asn,
            90,
            Ipv4Addr::new(10, 255, 0, octet),
            Capabilities::new(capabilities),
        );
        let mut bytes = Vec::new();
        open.encode(&mut bytes).expect("OPEN");
        encode_keepalive(&mut bytes);
        self.beliefs[peer].clear();
        self.say(peer, &bytes);
    }

    fn say(&mut self, peer: usize, bytes: &[u8]) {
        self.speaker.handle_data(self.conns[peer], bytes, Time::ZERO);
        while self.speaker.poll_action().is_some() {}
    }

    /// One transmission to a peer; `false` when there is none.
    fn read(&mut self, peer: usize, refreshing: bool) -> bool {
        let conn = self.conns[peer];
        let Some(bytes) = self.speaker.poll_transmit(conn, Time::ZERO) else {
            return false;
        };
        self.speaker.handle_transmitted(conn, bytes.len(), Time::ZERO);
        let mut rest = bytes.as_slice();
        while let Some(frame) = Frame::parse(rest, MessageLimit::Standard).expect("frame") {
            if frame.message_type == MessageType::Update {
                self.updates[peer] += 1;
                self.learn(peer, frame.body, refreshing);
            }
            assert_ne!(frame.message_type, MessageType::Notification, "{:?}", frame.body);
            rest = &rest[frame.total_len()..];
        }
        true
    }

    fn learn(&mut self, peer: usize, body: &[u8], refreshing: bool) {
        let (asn, several) = PEERS[peer];
        let mut context = DecodeContext {
            four_octet_as: true,
            peer_kind: if asn == US {
                PeerKind::Internal
            } else {
                PeerKind::External
            },
            ..DecodeContext::default()
        };
        context.ipv4_unicast.negotiated = true;
        context.ipv4_unicast.add_path = several;
        let update = Update::decode(body, &context).expect("UPDATE");
        assert!(update.errors.is_empty(), "{:?}", update.errors);
        let belief = &mut self.beliefs[peer];
        for nlri in &update.unreach {
            let FamilyNlri::Ipv4(field) = nlri else { continue };
            for route in *field {
                if belief.remove(&(route.prefix, route.path_id)).is_none() {
                    self.idle_talk
                        .push(format!("peer {peer}: withdrawal of {route:?}"));
                }
            }
        }
        for reach in &update.reach {
            let FamilyNlri::Ipv4(field) = reach.nlri else {
                continue;
            };
            for route in field {
                let old = belief.insert((route.prefix, route.path_id), reach.attributes.clone());
                if old.as_ref() == Some(&reach.attributes) && !refreshing {
                    self.idle_talk.push(format!("peer {peer}: {route:?} again"));
                }
            }
        }
    }

    fn read_all(&mut self, refreshing: bool) {
        for peer in 0..PEERS.len() {
            while self.read(peer, refreshing) {}
        }
    }

    fn apply(&mut self, grouping: Grouping, event: &Event) {
        match *event {
            Event::Announce { peer, prefix, med } => self.say(peer, &announce(peer, prefix, med)),
            Event::Withdraw { peer, prefix: number } => {
                let mut bytes = Vec::new();
                let route = Nlri::new(prefix(number));
                UpdateTemplate::<Ipv4Unicast>::withdraw(&encode_context()).encode_all([route], &mut bytes);
                self.say(peer, &bytes);
            }
            Event::Read { peer } => {
                self.read(peer, true);
            }
            Event::Reset { peer } => {
                let conn = self.conns[peer];
                self.speaker.handle_transport_closed(conn, "reset", Time::ZERO);
                while self.speaker.poll_action().is_some() {}
                self.speaker.handle_timeout(Time::ZERO);
                self.connect(peer);
            }
            Event::Refresh { peer } => {
                let mut bytes = Vec::new();
                RouteRefresh {
                    family: AfiSafi::IPV4_UNICAST,
                    subtype: RefreshSubtype::Request,
                }
                .encode(&mut bytes);
                self.say(peer, &bytes);
            }
            Event::Policy { policy } => {
                let config = config(grouping, policy);
                self.speaker.configure(config, Time::ZERO).expect("configuration");
                while self.speaker.poll_action().is_some() {}
            }
        }
    }
}

fn encode_context() -> EncodeContext {
    let mut context = EncodeContext {
        four_octet_as: true,
        ..EncodeContext::default()
    };
    context.ipv4_unicast.negotiated = true;
    context
}

fn announce(peer: usize, number: u32, med: u32) -> Vec<u8> {
    let (asn, _) = PEERS[peer];
    let octet = u8::try_from(peer).expect("few") + 2;
    let attributes = Attributes {
        as_path: AsPath::from_sequence(if asn == US {
            &[]
        } else {
            std::slice::from_ref(&asn)
        }),
        next_hop: Some(NextHop::V4([10, 0, 0, octet].into())),
        med: Some(med),
        local_pref: (asn == US).then_some(100),
        ..Attributes::default()
    };
    let mut bytes = Vec::new();
    UpdateTemplate::<Ipv4Unicast>::announce(&attributes, &encode_context())
        .expect("attributes")
        .encode_all([Nlri::new(prefix(number))], &mut bytes);
    bytes
}

#[derive(Debug, Clone)]
enum Event {
    Announce { peer: usize, prefix: u32, med: u32 },
    Withdraw { peer: usize, prefix: u32 },
    Read { peer: usize },
    Reset { peer: usize },
    Refresh { peer: usize },
    Policy { policy: u8 },
}

fn event() -> impl Strategy<Value = Event> {
    let peer = 0..PEERS.len();
    prop_oneof![
        8 => (peer.clone(), 0..6u32, 0..3u32).prop_map(|(peer, prefix, med)| Event::Announce { peer, prefix, med }),
        4 => (peer.clone(), 0..6u32).prop_map(|(peer, prefix)| Event::Withdraw { peer, prefix }),
        6 => peer.clone().prop_map(|peer| Event::Read { peer }),
        1 => peer.clone().prop_map(|peer| Event::Reset { peer }),
        1 => peer.prop_map(|peer| Event::Refresh { peer }),
        1 => (0..128u8).prop_map(|policy| Event::Policy { policy }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_peer_of_a_group_is_told_what_it_would_be_told_alone(events in prop::collection::vec(event(), 0..80)) {
        let mut shared = Net::new(Grouping::Shared);
        let mut alone = Net::new(Grouping::Alone);
        for event in &events {
            shared.apply(Grouping::Shared, event);
            alone.apply(Grouping::Alone, event);
        }
        shared.read_all(true);
        alone.read_all(true);
        for peer in 0..PEERS.len() {
            prop_assert_eq!(&shared.beliefs[peer], &alone.beliefs[peer], "peer {}", peer);
        }
        // Nothing is left of what groups and peers were told once all have gone.
        for peer in 0..PEERS.len() {
            shared.speaker.handle_transport_closed(shared.conns[peer], "gone", Time::ZERO);
        }
        prop_assert_eq!(shared.speaker.table_sizes(), (0, 0));
    }

    #[test]
    fn peers_that_read_at_once_hear_nothing_twice_and_nothing_in_vain(
        events in prop::collection::vec((0..PEERS.len(), 0..6u32, proptest::option::of(0..3u32)), 0..60),
    ) {
        let mut net = Net::new(Grouping::Shared);
        net.read_all(false);
        for (peer, prefix, med) in events {
            let event = match med {
                Some(med) => Event::Announce { peer, prefix, med },
                None => Event::Withdraw { peer, prefix },
            };
            net.apply(Grouping::Shared, &event);
            net.read_all(false);
            prop_assert!(net.idle_talk.is_empty(), "{:?}", net.idle_talk);
        }
    }
}

#[test]
fn peers_with_the_same_treatment_share_a_group_and_come_together_again() {
    let mut net = Net::new(Grouping::Shared);
    let groups = |net: &Net| net.speaker.status(Time::ZERO).update_groups;
    net.read_all(false);
    assert_eq!(
        groups(&net),
        3,
        "clients, clients with several paths, external peers"
    );
    net.apply(Grouping::Shared, &Event::Policy { policy: 0b001_0001 });
    net.read_all(false);
    assert_eq!(groups(&net), 5);
    net.apply(Grouping::Shared, &Event::Policy { policy: 0 });
    net.read_all(false);
    assert_eq!(groups(&net), 3);
    let mut net = Net::new(Grouping::Alone);
    net.read_all(false);
    assert_eq!(groups(&net), PEERS.len());
}

#[test]
fn a_peer_with_several_paths_hears_of_each_under_an_identifier_that_stays() {
    let mut net = Net::new(Grouping::Shared);
    for (peer, med) in [(4, 1), (5, 2), (0, 3)] {
        net.say(peer, &announce(peer, 1, med));
    }
    net.read_all(false);
    let ids = |net: &Net, peer: usize| -> Vec<(u32, Option<u32>)> {
        let belief = net.beliefs[peer].iter();
        belief
            .map(|((_, id), attributes)| (*id, attributes.med))
            .collect()
    };
    assert_eq!(ids(&net, 2), [(1, Some(1)), (2, Some(2)), (3, Some(3))]);
    assert_eq!(ids(&net, 1).len(), 1, "without ADD-PATH the best alone");
    net.apply(Grouping::Shared, &Event::Withdraw { peer: 4, prefix: 1 });
    net.read_all(false);
    assert_eq!(ids(&net, 2), [(2, Some(2)), (3, Some(3))]);
    // A peer does not hear of its own path.
    net.say(2, &announce(2, 1, 0));
    net.read_all(false);
    assert_eq!(ids(&net, 2).len(), 2);
    assert_eq!(ids(&net, 3).len(), 3);
    assert!(net.idle_talk.is_empty(), "{:?}", net.idle_talk);
}

#[test]
fn the_best_so_many_paths_are_told_where_that_is_asked_for() {
    let mut net = Net::new(Grouping::Shared);
    let mut limited = config(Grouping::Shared, 0);
    limited.peers[2].add_path.send = Some(AddPathSend::Best(2.try_into().expect("not 0")));
    net.speaker.configure(limited, Time::ZERO).expect("configuration");
    for peer in [4, 5, 6] {
        net.say(peer, &announce(peer, 1, 0));
    }
    net.read_all(false);
    let ases = |net: &Net, peer: usize| -> BTreeSet<Option<u32>> {
        let belief = net.beliefs[peer].values();
        belief
            .map(|attributes| attributes.as_path.neighbor_as())
            .collect()
    };
    assert_eq!(ases(&net, 2), BTreeSet::from([Some(65003), Some(65004)]));
    assert_eq!(ases(&net, 3).len(), 3);
    net.apply(Grouping::Shared, &Event::Withdraw { peer: 4, prefix: 1 });
    net.read_all(false);
    assert_eq!(ases(&net, 2), BTreeSet::from([Some(65004), Some(65005)]));
}

#[test]
fn a_slow_peer_loses_its_place_and_is_told_the_latest_state_only() {
    let mut net = Net::new(Grouping::Shared);
    net.read_all(false);
    // Every route with attributes of its own, so that messages are many; over and over again.
    for round in 0..2 {
        for number in 0..9_000 {
            net.say(4, &announce(4, number, round * 100_000 + number));
        }
        while net.read(0, false) {}
        while net.read(5, false) {}
    }
    for number in 0..3_000 {
        net.apply(
            Grouping::Shared,
            &Event::Withdraw {
                peer: 4,
                prefix: number,
            },
        );
    }
    while net.read(0, false) {}
    while net.read(5, false) {}
    net.read_all(true);
    assert_eq!(net.beliefs[0].len(), 6_000);
    assert_eq!(net.beliefs[0], net.beliefs[1]);
    assert_eq!(net.beliefs[5], net.beliefs[6]);
    assert!(net.updates[0] > 18_000, "{}", net.updates[0]);
    assert!(net.updates[1] < 16_000, "{}", net.updates[1]);
}

#[test]
fn a_peer_that_falls_behind_while_the_table_grows_hears_each_route_once() {
    let mut net = Net::new(Grouping::Shared);
    for number in 0..1_000 {
        net.say(4, &announce(4, number, number));
    }
    net.read_all(false);
    // One peer of each group reads on; the others lose their place again and again, and each time much more than is noted route
    // by route. In between they read a little.
    for number in 1_000..100_000 {
        net.say(4, &announce(4, number, number));
        if number % 500 == 0 {
            for reader in [0, 2, 5] {
                while net.read(reader, false) {}
            }
        }
        if number % 30_000 == 0 {
            for reader in [1, 3, 6] {
                (0..3).for_each(|_| {
                    net.read(reader, false);
                });
            }
        }
    }
    net.read_all(false);
    assert_eq!(net.beliefs[1].len(), 100_000);
    assert!(net.idle_talk.is_empty(), "{:?}", net.idle_talk.first());
}
