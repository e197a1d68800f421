//! Graceful restart through NOTIFICATIONs (RFC 8538).

use std::time::Duration;

use calidris_bgp::speaker::Farewell;
use calidris_bgp::status::EndedBy;
use calidris_bgp::wire::notification::{CeaseError, Notification, NotificationCode};

use super::simulation::World;
use super::{MINUTE, ROUTE, no_notification, stale, world, world_with};

const SECOND: Duration = Duration::from_secs(1);

/// Changes what can only change with a new session, so that node 0 ends it with Cease / Other Configuration Change.
fn reset_by_configuration(world: &mut World) {
    let mut config = world.nodes[0].config.clone();
    config.peers[0].local_address = Some([10, 0, 0, 1].into());
    world.call(0, |speaker, now| {
        speaker.configure(config, now).expect("configuration")
    });
}

#[test]
fn a_notification_is_survived_when_both_sides_said_so() {
    let mut world = world();
    assert!(
        world
            .peer(1, "a")
            .negotiated
            .expect("Established")
            .notification_survived
    );
    let told = world.peer(2, "b").counters.updates_in;
    reset_by_configuration(&mut world);
    world.run_until(SECOND, "the session ends", |w| !w.established(1, "a"));
    let error = world.peer(1, "a").last_error.expect("an end");
    assert!(error.text.contains("Other Configuration Change"), "{error:?}");
    assert_eq!((error.by, stale(&mut world)), (EndedBy::Peer, 2));
    world.run_until(MINUTE, "fresh again", |w| w.established(1, "a") && stale(w) == 0);
    world.run_for(MINUTE);
    assert!(world.has_best(2, ROUTE));
    assert_eq!(
        world.peer(2, "b").counters.updates_in,
        told,
        "nobody behind was told"
    );
}

#[test]
fn without_the_agreement_a_notification_ends_it_all() {
    let mut world = world_with(no_notification);
    let negotiated = world.peer(1, "a").negotiated.expect("Established");
    assert!(!negotiated.notification_survived && negotiated.graceful_restart.is_some());
    reset_by_configuration(&mut world);
    world.run_until(SECOND, "the session ends", |w| !w.established(1, "a"));
    assert!(world.route(1, ROUTE).is_none());
}

#[test]
fn an_expired_hold_timer_is_survived_on_the_side_that_noticed() {
    let mut world = world();
    world.cut(0, 1);
    world.run_until(2 * MINUTE, "hold timer", |w| !w.established(1, "a"));
    let error = world.peer(1, "a").last_error.expect("an end");
    assert!(error.text.contains("Hold Timer Expired"), "{error:?}");
    assert_eq!(stale(&mut world), 2);
    assert!(world.has_best(2, ROUTE));
    world.mend(0, 1);
    world.run_until(2 * MINUTE, "fresh again", |w| {
        w.established(1, "a") && stale(w) == 0
    });
}

#[test]
fn a_hard_reset_is_not_survived_and_carries_the_reason_and_the_words() {
    let mut world = world();
    let farewell = Farewell::Cease("moving to another rack".to_owned());
    world.call(0, |speaker, now| speaker.shutdown(&farewell, now));
    world.run_until(SECOND, "the session ends", |w| !w.established(1, "a"));
    assert!(world.route(1, ROUTE).is_none());
    let error = world.peer(1, "a").last_error.expect("an end");
    for words in [
        "Hard Reset (6/9)",
        "Administrative Shutdown (6/2)",
        "moving to another rack",
    ] {
        assert!(error.text.contains(words), "{words}: {error:?}");
    }
}

#[test]
fn a_removed_peer_is_told_by_hard_reset_and_without_agreement_by_name() {
    for (mut world, hard) in [(world(), true), (world_with(no_notification), false)] {
        let mut config = world.nodes[0].config.clone();
        config.peers.clear();
        world.call(0, |speaker, now| {
            speaker.configure(config, now).expect("configuration")
        });
        world.run_until(SECOND, "gone", |w| w.route(1, ROUTE).is_none());
        let error = world.peer(1, "a").last_error.expect("an end");
        assert!(error.text.contains("Peer De-configured (6/3)"), "{error:?}");
        assert_eq!(error.text.contains("Hard Reset"), hard, "{error:?}");
    }
}

#[test]
fn an_empty_hard_reset_is_one_too() {
    let bare = Notification::bare(NotificationCode::Cease(CeaseError::HardReset));
    assert!(bare.is_hard_reset() && bare.hard_reset_reason().is_none());
}

#[test]
fn failures_in_a_row_keep_the_routes_but_not_beyond_the_stale_time() {
    let mut world = world();
    // Each new session dies before its End-of-RIB: node 0 never says what it announces.
    let flap = |world: &mut World| {
        world.kill(0);
        world.run_for(10 * SECOND);
        world.restart(0);
        world.run_until(MINUTE, "session", |w| w.established(1, "a"));
    };
    for _ in 0..3 {
        flap(&mut world);
        assert_eq!(stale(&mut world), 2, "RFC 8538 §4.1: kept until a timer ends");
    }
    // Restart time and stale time, 120 s and 360 s, counted from the first failure.
    let bound = 480 * SECOND;
    let mut passed = Duration::ZERO;
    while world.route(1, ROUTE).is_some() {
        let before = world.now;
        flap(&mut world);
        passed += world.now.since(before);
        assert!(passed < bound + MINUTE, "stale for ever");
    }
}
