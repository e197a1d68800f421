//! Sessions between speakers on virtual time: coming up, colliding, failing, ending.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "sessions/dynamic.rs"]
mod dynamic;
#[path = "sessions/ipv6_next_hop.rs"]
mod ipv6_next_hop;
mod simulation;

use std::time::Duration;

use calidris_bgp::config::ConnectMode;
use calidris_bgp::session::{CloseReason, State};
use calidris_bgp::speaker::{Farewell, LogEvent};
use calidris_bgp::status::EndedBy;
use simulation::{World, open_peer, speaker};

const MINUTE: Duration = Duration::from_secs(60);

fn pair(latency: Duration) -> World {
    let mut world = World::new(latency);
    world.add(
        "10.0.0.1",
        speaker(65001, 1, vec![open_peer("b", "10.0.0.2", 65002)]),
    );
    world.add(
        "10.0.0.2",
        speaker(65002, 2, vec![open_peer("a", "10.0.0.1", 65001)]),
    );
    world
}

fn up(world: &mut World) {
    world.run_until(MINUTE, "both Established", |w| {
        w.established(0, "b") && w.established(1, "a")
    });
}

#[test]
fn two_speakers_that_connect_to_each_other_end_with_one_session() {
    for latency in [0, 1, 5, 20, 100, 700] {
        let mut world = pair(Duration::from_millis(latency));
        up(&mut world);
        world.run_for(MINUTE);
        assert!(
            world.established(0, "b") && world.established(1, "a"),
            "latency {latency} ms"
        );
        assert_eq!(world.peer(0, "b").established_count, 1, "latency {latency} ms");
        assert_eq!(world.peer(1, "a").established_count, 1, "latency {latency} ms");
        // RFC 4271 §6.8: node 1 has the higher identifier, so the connection it opened survives.
        let (ours, theirs) = world.peer(0, "b").transport.expect("transport");
        assert_eq!(
            (ours.port(), theirs.port() >= 40_000),
            (179, true),
            "latency {latency} ms"
        );
        let (mirrored_theirs, mirrored_ours) = world.peer(1, "a").transport.expect("transport");
        assert_eq!(
            (ours, theirs),
            (mirrored_ours, mirrored_theirs),
            "both ends kept the same connection"
        );
    }
}

#[test]
fn a_session_stays_up_by_keepalives() {
    let mut world = pair(Duration::from_millis(5));
    up(&mut world);
    world.run_for(60 * MINUTE);
    assert_eq!(world.peer(0, "b").established_count, 1);
    assert!(world.peer(0, "b").counters.messages_in >= 120);
}

#[test]
fn hold_timer_expiry_sends_notification_and_closes() {
    let mut world = pair(Duration::from_millis(5));
    up(&mut world);
    world.cut(0, 1);
    world.run_until(2 * MINUTE, "hold timer expires", |w| !w.established(0, "b"));
    let error = world.peer(0, "b").last_error.expect("error");
    assert_eq!(error.by, EndedBy::Us);
    assert!(error.text.contains("Hold Timer Expired"), "{}", error.text);
    world.mend(0, 1);
    world.run_until(5 * MINUTE, "up again", |w| {
        w.established(0, "b") && w.established(1, "a")
    });
}

#[test]
fn a_reset_connection_is_opened_again_soon() {
    let mut world = pair(Duration::from_millis(5));
    up(&mut world);
    world.run_for(2 * MINUTE);
    let before = world.now;
    world.reset_connections(0, 1);
    assert!(!world.established(0, "b"));
    up(&mut world);
    assert!(world.now.since(before) < Duration::from_secs(5));
}

#[test]
fn a_passive_peer_waits_and_two_passive_peers_wait_forever() {
    for (a, b, comes_up) in [
        (ConnectMode::Active, ConnectMode::Passive, true),
        (ConnectMode::Passive, ConnectMode::Active, true),
        (ConnectMode::Passive, ConnectMode::Passive, false),
    ] {
        let mut world = World::new(Duration::from_millis(5));
        let (mut to_b, mut to_a) = (
            open_peer("b", "10.0.0.2", 65002),
            open_peer("a", "10.0.0.1", 65001),
        );
        (to_b.connect, to_a.connect) = (a, b);
        world.add("10.0.0.1", speaker(65001, 1, vec![to_b]));
        world.add("10.0.0.2", speaker(65002, 2, vec![to_a]));
        world.run_for(MINUTE);
        assert_eq!(world.established(0, "b"), comes_up);
        if !comes_up {
            assert_eq!(world.peer(0, "b").state, State::Active);
        }
    }
}

#[test]
fn a_wrong_as_is_refused_by_name_and_retried_ever_more_slowly() {
    let mut world = World::new(Duration::from_millis(5));
    world.add(
        "10.0.0.1",
        speaker(65001, 1, vec![open_peer("b", "10.0.0.2", 65009)]),
    );
    world.add(
        "10.0.0.2",
        speaker(65002, 2, vec![open_peer("a", "10.0.0.1", 65001)]),
    );
    world.run_for(10 * MINUTE);
    assert_eq!(world.peer(0, "b").established_count, 0);
    let attempts = |log: &[LogEvent]| {
        let refusals = log.iter().filter(|event| {
            matches!(event, LogEvent::Down { closed, .. } if closed.reason.to_string().contains("Bad Peer AS"))
        });
        refusals.count()
    };
    let seen = attempts(&world.nodes[0].log);
    assert!((5..60).contains(&seen), "{seen} attempts in ten minutes");
}

#[test]
fn the_same_identifier_in_one_as_is_refused() {
    let mut world = World::new(Duration::from_millis(5));
    world.add(
        "10.0.0.1",
        speaker(65001, 1, vec![open_peer("b", "10.0.0.2", 65001)]),
    );
    world.add(
        "10.0.0.2",
        speaker(65001, 1, vec![open_peer("a", "10.0.0.1", 65001)]),
    );
    world.run_for(MINUTE);
    assert_eq!(world.peer(0, "b").established_count, 0);
    let bad = |event: &LogEvent| matches!(event, LogEvent::Down { closed, .. } if closed.reason.to_string().contains("Bad BGP Identifier"));
    assert!(world.nodes[0].log.iter().chain(&world.nodes[1].log).any(bad));
}

#[test]
fn equal_identifiers_in_different_ases_collide_to_one_session() {
    let mut world = World::new(Duration::from_millis(5));
    world.add(
        "10.0.0.1",
        speaker(65001, 1, vec![open_peer("b", "10.0.0.2", 65002)]),
    );
    world.add(
        "10.0.0.2",
        speaker(65002, 1, vec![open_peer("a", "10.0.0.1", 65001)]),
    );
    up(&mut world);
    world.run_for(MINUTE);
    assert_eq!(
        (
            world.peer(0, "b").established_count,
            world.peer(1, "a").established_count
        ),
        (1, 1)
    );
}

#[test]
fn hold_time_zero_never_expires_and_sends_no_keepalives() {
    let mut world = World::new(Duration::from_millis(5));
    let mut to_b = open_peer("b", "10.0.0.2", 65002);
    to_b.hold_time = 0;
    world.add("10.0.0.1", speaker(65001, 1, vec![to_b]));
    world.add(
        "10.0.0.2",
        speaker(65002, 2, vec![open_peer("a", "10.0.0.1", 65001)]),
    );
    up(&mut world);
    let before = world.peer(0, "b").counters.messages_out;
    world.run_for(60 * MINUTE);
    assert!(world.established(0, "b"));
    // End-of-RIB of two families after the wait for peers, and nothing else.
    assert!(world.peer(0, "b").counters.messages_out <= before + 2);
}

#[test]
fn delay_open_lets_the_other_side_speak_first() {
    for delays in [(Some(30), None), (None, Some(30)), (Some(10), Some(20))] {
        let mut world = World::new(Duration::from_millis(5));
        let (mut to_b, mut to_a) = (
            open_peer("b", "10.0.0.2", 65002),
            open_peer("a", "10.0.0.1", 65001),
        );
        to_b.delay_open = delays.0.map(Duration::from_secs);
        to_a.delay_open = delays.1.map(Duration::from_secs);
        world.add("10.0.0.1", speaker(65001, 1, vec![to_b]));
        world.add("10.0.0.2", speaker(65002, 2, vec![to_a]));
        up(&mut world);
        world.run_for(2 * MINUTE);
        assert!(
            world.established(0, "b") && world.established(1, "a"),
            "{delays:?}"
        );
    }
}

#[test]
fn an_administrative_shutdown_reaches_the_peer_with_its_words() {
    let mut world = pair(Duration::from_millis(5));
    up(&mut world);
    world.call(0, |speaker, now| {
        speaker.shutdown(&Farewell::Cease("kernel upgrade".into()), now);
    });
    world.run_until(MINUTE, "peer hears of it", |w| !w.established(1, "a"));
    let error = world.peer(1, "a").last_error.expect("error");
    assert_eq!(error.by, EndedBy::Peer);
    assert!(
        error.text.contains("Administrative Shutdown") && error.text.contains("kernel upgrade"),
        "{}",
        error.text
    );
    world.run_for(5 * MINUTE);
    assert_eq!(world.peer(0, "b").state, State::Idle, "it stays down");
}

#[test]
fn a_peer_that_stops_reading_is_given_up_after_the_send_hold_time() {
    let mut world = World::new(Duration::from_millis(5));
    // Hold time 0 on one side's wish: only the send hold timer is left to notice.
    let mut to_b = open_peer("b", "10.0.0.2", 65002);
    to_b.hold_time = 0;
    world.add("10.0.0.1", speaker(65001, 1, vec![to_b]));
    world.add(
        "10.0.0.2",
        speaker(65002, 2, vec![open_peer("a", "10.0.0.1", 65001)]),
    );
    up(&mut world);
    world.run_for(5 * MINUTE);
    world.stuck.insert(1);
    world.originate(0, &["10.1.0.0/16"]);
    world.run_for(7 * MINUTE);
    assert!(world.established(0, "b"), "eight minutes are not over");
    world.run_for(2 * MINUTE);
    let given_up = |event: &LogEvent| {
        matches!(event, LogEvent::Down { closed, .. }
            if matches!(&closed.reason, CloseReason::Silent(why) if why.contains("send hold")))
    };
    assert!(
        world.nodes[0].log.iter().any(given_up),
        "{:?}",
        world.nodes[0].log
    );
}
