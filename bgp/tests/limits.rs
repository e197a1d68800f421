//! How many prefixes pass a session, and sessions that are not to be.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod raw_peer;
mod simulation;

use std::time::Duration;

use calidris_bgp::SpeakerConfig;
use calidris_bgp::config::{BeyondLimit, PrefixLimit};
use calidris_bgp::family::Ipv4Unicast;
use calidris_bgp::session::{RefusedConnection, State};
use calidris_bgp::speaker::LogEvent;
use calidris_bgp::wire::attr::{AsPath, Attributes, NextHop};
use calidris_bgp::wire::frame::MessageType;
use calidris_bgp::wire::nlri::Nlri;
use calidris_bgp::wire::update::UpdateTemplate;
use raw_peer::{PEER_AS, RawPeer, encode_context, open, peer_config};
use simulation::{World, open_peer, speaker};

const MINUTE: Duration = Duration::from_secs(60);

/// An UPDATE that announces 10.0.`n`.0/24 for each `n`.
fn announce(numbers: std::ops::Range<u8>) -> Vec<u8> {
    let attributes = Attributes {
        as_path: AsPath::from_sequence(&[PEER_AS]),
        next_hop: Some(NextHop::V4([10, 0, 0, 2].into())),
        ..Attributes::default()
    };
    let prefixes = numbers.map(|n| Nlri::new(format!("10.0.{n}.0/24").parse().expect("prefix")));
    let mut update = Vec::new();
    UpdateTemplate::<Ipv4Unicast>::announce(&attributes, &encode_context())
        .expect("attributes")
        .encode_all(prefixes, &mut update);
    update
}

fn limited(max: u32, beyond: BeyondLimit) -> RawPeer {
    let mut config = peer_config();
    config.prefix_limit_in = Some(PrefixLimit {
        max,
        warn_percent: 75,
        beyond,
    });
    let mut raw = RawPeer::new(config);
    raw.connect(&open(Vec::new()));
    raw
}

/// What was logged about the limit: how many prefixes there were.
fn reports(raw: &mut RawPeer) -> Vec<usize> {
    std::iter::from_fn(|| raw.speaker.poll_event())
        .filter_map(|event| match event {
            LogEvent::PrefixLimit { held, .. } => Some(held),
            _ => None,
        })
        .collect()
}

fn received(raw: &RawPeer) -> usize {
    let status = raw.speaker.status(raw.now);
    status.peers[0]
        .families
        .first()
        .map_or(0, |family| family.received)
}

#[test]
fn each_reason_to_end_a_session_has_its_cease_subcode() {
    type Change = fn(&mut SpeakerConfig);
    let cases: [(&str, Change, u8); 4] = [
        (
            "too many prefixes",
            |config| {
                config.peers[0].prefix_limit_in = Some(PrefixLimit {
                    max: 1,
                    warn_percent: 100,
                    beyond: BeyondLimit::Stop { retry_after: None },
                });
            },
            1,
        ),
        (
            "shut down",
            |config| config.peers[0].shutdown = Some("maintenance".to_owned()),
            2,
        ),
        ("removed", |config| config.peers.clear(), 3),
        ("another identity", |config| config.peers[0].remote_as = 65009, 6),
    ];
    for (reason, change, subcode) in cases {
        let mut world = World::new(Duration::from_millis(5));
        let peer = |name: &str, address: &str, asn: u32| {
            let mut peer = open_peer(name, address, asn);
            // With the agreement of RFC 8538 they would be inside Hard Resets.
            peer.graceful_restart = None;
            peer
        };
        world.add(
            "10.0.0.1",
            speaker(65001, 1, vec![peer("two", "10.0.0.2", 65002)]),
        );
        world.add(
            "10.0.0.2",
            speaker(65002, 2, vec![peer("one", "10.0.0.1", 65001)]),
        );
        world.originate(0, &[]);
        world.originate(1, &["10.1.0.0/24", "10.2.0.0/24"]);
        world.run_until(MINUTE, "routes", |world| world.has_best(0, "10.2.0.0/24"));
        let mut config = world.nodes[0].config.clone();
        change(&mut config);
        world
            .call(0, |speaker, now| speaker.configure(config, now))
            .expect("configure");
        world.run_until(MINUTE, reason, |world| !world.established(1, "one"));
        let error = world.peer(1, "one").last_error.expect("an error");
        assert_eq!(error.notification, Some((6, subcode)), "{reason}: {}", error.text);
        assert_eq!(error.by, calidris_bgp::status::EndedBy::Peer);
        assert_eq!(error.text.contains("maintenance"), subcode == 2, "{}", error.text);
    }
}

#[test]
fn a_peer_beyond_its_limit_is_stopped_and_may_come_back_later() {
    let pause = Duration::from_secs(300);
    let mut raw = limited(
        4,
        BeyondLimit::Stop {
            retry_after: Some(pause),
        },
    );
    raw.send(&announce(0..4));
    assert_eq!(received(&raw), 4, "the limit itself is allowed");
    let sent = raw.send(&announce(4..5));
    assert_eq!(
        sent,
        [(MessageType::Notification, vec![6, 1, 0, 1, 1, 0, 0, 0, 4])],
        "RFC 4486: family and limit"
    );
    assert_eq!(received(&raw), 0);
    raw.wait(pause - Duration::from_secs(1));
    assert_eq!(raw.speaker.status(raw.now).peers[0].state, State::Idle);
    raw.wait(Duration::from_secs(2));
    raw.connect(&open(Vec::new()));
    assert_eq!(raw.speaker.status(raw.now).peers[0].state, State::Established);
}

#[test]
fn without_a_time_to_come_back_the_operator_decides() {
    let mut raw = limited(1, BeyondLimit::Stop { retry_after: None });
    raw.send(&announce(0..2));
    raw.wait(60 * MINUTE);
    let ends = ["10.0.0.1:179", "10.0.0.2:40001"].map(|end| end.parse().expect("address"));
    let refused = raw.speaker.handle_accepted(ends[0], ends[1], raw.now);
    assert_eq!(refused, Err(RefusedConnection::Idle));
    let error = raw.speaker.status(raw.now).peers[0]
        .last_error
        .clone()
        .expect("error");
    assert!(error.text.contains("expected at most 1"), "{}", error.text);
    let mut config = raw.speaker.config().clone();
    config.peers[0].prefix_limit_in = None;
    raw.speaker.configure(config, raw.now).expect("configure");
    raw.connect(&open(Vec::new()));
    raw.send(&announce(0..2));
    assert_eq!(received(&raw), 2);
}

#[test]
fn what_is_beyond_the_limit_is_discarded_and_what_is_known_may_change() {
    let mut raw = limited(2, BeyondLimit::Discard);
    raw.send(&announce(0..1));
    assert_eq!(reports(&mut raw), [1], "75 percent of 2 is 1");
    raw.wait(Duration::from_secs(11));
    raw.send(&announce(0..6));
    assert_eq!(received(&raw), 2);
    assert_eq!(reports(&mut raw), [2]);
    raw.send(&announce(0..6));
    raw.wait(Duration::from_secs(11));
    raw.send(&announce(2..6));
    assert!(reports(&mut raw).is_empty(), "told once");
    assert_eq!(raw.speaker.status(raw.now).peers[0].families[0].beyond_limit, 12);

    // A higher limit asks for what is missing.
    let mut config = raw.speaker.config().clone();
    config.peers[0].prefix_limit_in = None;
    raw.speaker.configure(config, raw.now).expect("configure");
    let sent = raw.take();
    assert!(
        sent.contains(&(MessageType::RouteRefresh, vec![0, 1, 0, 1])),
        "{sent:?}"
    );
    raw.send(&announce(0..6));
    assert_eq!(received(&raw), 6);
}

#[test]
fn a_warning_changes_nothing_else() {
    let mut raw = limited(4, BeyondLimit::Warn);
    raw.send(&announce(0..2));
    assert!(reports(&mut raw).is_empty());
    raw.send(&announce(0..9));
    assert_eq!((received(&raw), reports(&mut raw)), (9, vec![9]));
}

fn pair() -> World {
    let mut world = World::new(Duration::from_millis(5));
    let a = speaker(65001, 1, vec![open_peer("b", "10.0.0.2", 65002)]);
    world.add("10.0.0.1", a);
    let b = speaker(65002, 2, vec![open_peer("a", "10.0.0.1", 65001)]);
    world.add("10.0.0.2", b);
    world
}

fn change(world: &mut World, change: impl FnOnce(&mut calidris_bgp::PeerConfig)) {
    let mut config = world.speaker(0).config().clone();
    change(&mut config.peers[0]);
    world
        .call(0, |speaker, now| speaker.configure(config, now))
        .expect("configure");
}

#[test]
fn a_peer_is_told_no_more_than_its_limit_and_the_rest_when_there_is_room() {
    let mut world = pair();
    change(&mut world, |peer| peer.prefix_limit_out = Some(2));
    let routes = ["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"];
    world.originate(0, &routes);
    let known = |w: &mut World| routes.iter().filter(|route| w.has_best(1, route)).count();
    world.run_for(MINUTE);
    assert_eq!(known(&mut world), 2);
    // One that the peer knows goes.
    world.originate(0, &routes[1..]);
    world.run_until(MINUTE, "the other two", |w| {
        w.has_best(1, routes[1]) && w.has_best(1, routes[2])
    });
    world.originate(0, &routes);
    change(&mut world, |peer| peer.prefix_limit_out = None);
    world.run_until(MINUTE, "all", |w| known(w) == 3);
    change(&mut world, |peer| peer.prefix_limit_out = Some(1));
    world.run_until(MINUTE, "one", |w| known(w) == 1);
}

#[test]
fn a_session_shut_down_by_configuration_says_why_and_comes_back() {
    let mut world = pair();
    world.originate(0, &[]);
    world.run_until(MINUTE, "up", |w| w.established(0, "b") && w.established(1, "a"));
    change(&mut world, |peer| peer.shutdown = Some("new cable".to_owned()));
    world.run_for(MINUTE);
    assert_eq!(world.peer(0, "b").state, State::Idle);
    let error = world.peer(1, "a").last_error.expect("error");
    // A peer that tries again is refused without a word; the words are those of the session's end.
    assert!(world.speaker(0).in_sync(), "nobody waits for it");
    let heard = world.nodes[1].log.iter().any(
        |event| matches!(event, LogEvent::Down { closed, .. } if closed.reason.to_string().contains("new cable")),
    );
    assert!(heard, "{error:?}");
    change(&mut world, |peer| peer.shutdown = None);
    world.run_until(5 * MINUTE, "up again", |w| w.established(0, "b"));
}

#[test]
fn hostile_input_does_not_fill_the_log() {
    let mut raw = RawPeer::new(peer_config());
    raw.connect(&open(Vec::new()));
    // An UPDATE whose ORIGIN has an impossible value: survived, and worth a line (RFC 7606).
    let mut bad = announce(0..1);
    let origin = bad.windows(3).position(|at| at == [0x40, 1, 1]).expect("ORIGIN");
    bad[origin + 3] = 77;
    let mut lines = 0;
    for _ in 0..60 {
        for _ in 0..200 {
            raw.send(&bad);
        }
        lines += std::iter::from_fn(|| raw.speaker.poll_event()).count();
        raw.wait(Duration::from_secs(1));
    }
    let status = raw.speaker.status(raw.now);
    assert_eq!(status.peers[0].counters.treated_as_withdraw, 12_000);
    // The session's beginning, "in sync", and one line in ten seconds.
    assert!(
        lines <= 2 + 7,
        "{lines} lines for 12000 malformed UPDATEs in a minute"
    );
}

#[test]
fn a_peer_that_fails_again_and_again_is_let_in_ever_more_rarely() {
    let mut raw = RawPeer::new(peer_config());
    let (mut lines, mut refused) = (0, 0);
    // Ten minutes of attempts every tenth of a second, each of which ends a session by nonsense.
    for _ in 0..6000 {
        let ends = ("10.0.0.1:179", "10.0.0.2:40000");
        let parse = |text: &str| text.parse().expect("address");
        match raw.speaker.handle_accepted(parse(ends.0), parse(ends.1), raw.now) {
            Ok(conn) => raw.speaker.handle_data(conn, &[0; 64], raw.now),
            Err(_) => refused += 1,
        }
        raw.take();
        lines += std::iter::from_fn(|| raw.speaker.poll_event()).count();
        raw.wait(Duration::from_millis(100));
    }
    assert!(refused > 5900, "{refused} refused");
    // Waits of 1, 2, 4, … 60 s: about 16 in ten minutes.
    assert!(lines < 30, "{lines} lines in ten minutes");
}

#[test]
fn a_connection_that_goes_before_the_peers_open_leads_to_active() {
    let mut config = peer_config();
    config.connect_retry = Duration::from_secs(2);
    let mut raw = RawPeer::new(config);
    for _ in 0..20 {
        raw.knock().expect("whoever was not ready may come again at once");
        raw.cut();
        assert_eq!(raw.speaker.status(raw.now).peers[0].state, State::Active);
    }
    // And an OPEN that is heard at last is as good as the first.
    raw.connect(&open(Vec::new()));
    assert_eq!(raw.speaker.status(raw.now).peers[0].state, State::Established);
}

/// What the speaker keeps of a connection whose peer sends and never reads, beside the tables: less than this many octets to send.
const MOST_UNSENT: usize = 64 * 1024;

#[test]
fn a_peer_that_asks_and_never_reads_costs_bounded_memory() {
    let mut raw = RawPeer::new(peer_config());
    raw.connect(&open(vec![
        calidris_bgp::wire::capability::Capability::EnhancedRouteRefresh,
    ]));
    let request = calidris_bgp::wire::refresh::RouteRefresh {
        family: calidris_bgp::family::AfiSafi::IPV4_UNICAST,
        subtype: calidris_bgp::wire::refresh::RefreshSubtype::Request,
    };
    let mut questions = Vec::new();
    for _ in 0..1000 {
        request.encode(&mut questions);
    }
    for _ in 0..100 {
        raw.hear(&questions);
    }
    let counted = raw.speaker.status(raw.now).peers[0].counters.route_refreshes_in;
    assert_eq!(counted, 100_000);
    let unsent = raw.unsent();
    assert!(
        unsent < MOST_UNSENT,
        "{unsent} octets wait for a peer that does not read"
    );
    // Half a message, again and again: what is received is kept only until it is a message.
    assert_eq!(received(&raw), 0);
}
