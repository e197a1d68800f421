//! The state machine of one connection as a table: state × event → what is sent, and where it ends (RFC 4271 §8.2.2, RFC 6608).
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::time::Duration;

use calidris_bgp::Time;
use calidris_bgp::family::AfiSafi;
use calidris_bgp::jitter::Jitter;
use calidris_bgp::session::{CloseReason, Connection, ConnectionSettings, Event, State, Timer};
use calidris_bgp::wire::capability::{Capabilities, Capability};
use calidris_bgp::wire::frame::{Frame, MessageLimit, MessageType, encode_keepalive};
use calidris_bgp::wire::notification::{CeaseError, Notification, NotificationCode};
use calidris_bgp::wire::open::Open;
use calidris_bgp::wire::refresh::{RefreshSubtype, RouteRefresh};
use calidris_bgp::wire::update::encode_end_of_rib;

const OURS: u32 = 65001;
const THEIRS: u32 = 65002;

fn open(asn: u32, hold_time: u16, id: u8) -> Open {
    let capabilities = vec![
        Capability::Multiprotocol(AfiSafi::IPV4_UNICAST),
        Capability::FourOctetAs(asn),
    ];
    Open::new(
        asn,
        hold_time,
        [10, 255, 0, id].into(),
        Capabilities::new(capabilities),
    )
}

fn encoded(open: &Open) -> Vec<u8> {
    let mut bytes = Vec::new();
    open.encode(&mut bytes).expect("encodes");
    bytes
}

fn now(secs: u64) -> Time {
    Time::from_start(Duration::from_secs(secs))
}

fn connection(delay_open: Option<Duration>) -> Connection {
    let settings = ConnectionSettings {
        open: open(OURS, 90, 1),
        remote_as: calidris_bgp::config::RemoteAs::Is(THEIRS),
        strict_role: false,
        delay_open,
        send_hold_time: None,
    };
    Connection::new(settings, Jitter::new(1), now(0))
}

/// A connection brought to a state, with what it sent so far thrown away.
fn in_state(state: State) -> Connection {
    let mut connection = connection((state == State::Active).then_some(Duration::from_secs(10)));
    if matches!(state, State::OpenConfirm | State::Established) {
        connection.handle_data(&encoded(&open(THEIRS, 90, 2)));
        assert_eq!(connection.poll_event(now(0)), Some(Event::Open));
        connection.confirm(now(0));
    }
    if state == State::Established {
        connection.handle_data(&keepalive());
        assert_eq!(connection.poll_event(now(0)), Some(Event::Established));
    }
    assert_eq!(connection.state(), state);
    connection.take_transmit(&mut Vec::new());
    connection
}

fn keepalive() -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_keepalive(&mut bytes);
    bytes
}

fn update() -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_end_of_rib(AfiSafi::IPV4_UNICAST, &mut bytes);
    bytes
}

fn refresh() -> Vec<u8> {
    let mut bytes = Vec::new();
    RouteRefresh {
        family: AfiSafi::IPV4_UNICAST,
        subtype: RefreshSubtype::Request,
    }
    .encode(&mut bytes);
    bytes
}

fn cease() -> Vec<u8> {
    let mut bytes = Vec::new();
    Notification::bare(NotificationCode::Cease(CeaseError::AdministrativeReset)).encode(&mut bytes);
    bytes
}

fn bad_marker() -> Vec<u8> {
    vec![0; 19]
}

fn bad_length() -> Vec<u8> {
    let mut bytes = keepalive();
    bytes[17] = 20;
    bytes.push(0);
    bytes
}

fn bad_type() -> Vec<u8> {
    let mut bytes = keepalive();
    bytes[18] = 9;
    bytes
}

/// The messages in what a connection sent.
fn sent(connection: &mut Connection) -> Vec<(MessageType, Vec<u8>)> {
    let mut bytes = Vec::new();
    connection.take_transmit(&mut bytes);
    let mut rest = bytes.as_slice();
    let mut messages = Vec::new();
    while let Some(frame) = Frame::parse(rest, MessageLimit::Standard).expect("well-formed") {
        messages.push((frame.message_type, frame.body.to_vec()));
        rest = &rest[frame.total_len()..];
    }
    assert!(rest.is_empty());
    messages
}

/// What is expected of a connection that got a message.
#[derive(Debug, Clone, Copy)]
enum Expect {
    /// It stays open, or goes on to this state.
    State(State),
    /// It sends a NOTIFICATION of this code and subcode and closes.
    Notification(u8, u8),
    /// It closes without a word.
    Silence,
    /// It closes because the peer said so.
    Received,
}

#[test]
fn every_message_in_every_state() {
    use Expect::{Notification as Sends, Received, Silence, State as Stays};
    use State::{Active, Established, OpenConfirm, OpenSent};
    let good_open = encoded(&open(THEIRS, 90, 2));
    let table: Vec<(State, &str, Vec<u8>, Expect)> = vec![
        (Active, "OPEN", good_open.clone(), Stays(OpenSent)),
        (Active, "KEEPALIVE", keepalive(), Silence),
        (Active, "UPDATE", update(), Silence),
        (Active, "NOTIFICATION", cease(), Received),
        (Active, "bad marker", bad_marker(), Silence),
        (OpenSent, "OPEN", good_open.clone(), Stays(OpenSent)),
        (
            OpenSent,
            "OPEN of a wrong AS",
            encoded(&open(65009, 90, 2)),
            Sends(2, 2),
        ),
        (
            OpenSent,
            "OPEN with hold time 1",
            encoded(&open(THEIRS, 1, 2)),
            Sends(2, 6),
        ),
        (
            OpenSent,
            "OPEN with hold time 2",
            encoded(&open(THEIRS, 2, 2)),
            Sends(2, 6),
        ),
        (OpenSent, "KEEPALIVE", keepalive(), Sends(5, 1)),
        (OpenSent, "UPDATE", update(), Sends(5, 1)),
        (OpenSent, "ROUTE-REFRESH", refresh(), Sends(5, 1)),
        (OpenSent, "NOTIFICATION", cease(), Received),
        (OpenSent, "bad marker", bad_marker(), Sends(1, 1)),
        (OpenSent, "bad length", bad_length(), Sends(1, 2)),
        (OpenSent, "bad type", bad_type(), Sends(1, 3)),
        (OpenConfirm, "KEEPALIVE", keepalive(), Stays(Established)),
        (OpenConfirm, "OPEN", good_open.clone(), Sends(5, 2)),
        (OpenConfirm, "UPDATE", update(), Sends(5, 2)),
        (OpenConfirm, "ROUTE-REFRESH", refresh(), Sends(5, 2)),
        (OpenConfirm, "NOTIFICATION", cease(), Received),
        (OpenConfirm, "bad marker", bad_marker(), Sends(1, 1)),
        (Established, "KEEPALIVE", keepalive(), Stays(Established)),
        (Established, "UPDATE", update(), Stays(Established)),
        (Established, "ROUTE-REFRESH", refresh(), Stays(Established)),
        (Established, "OPEN", good_open, Sends(5, 3)),
        (Established, "NOTIFICATION", cease(), Received),
        (Established, "bad marker", bad_marker(), Sends(1, 1)),
        (Established, "bad length", bad_length(), Sends(1, 2)),
        (Established, "bad type", bad_type(), Sends(1, 3)),
    ];
    for (state, name, bytes, expect) in table {
        let mut connection = in_state(state);
        connection.handle_data(&bytes);
        let event = connection.poll_event(now(1));
        let case = format!("{name} in {}", state.name());
        let last = sent(&mut connection).pop();
        match (expect, event) {
            (Stays(after), Some(event)) => {
                assert!(!matches!(event, Event::Closed(_)), "{case}: {event:?}");
                assert_eq!(connection.state(), after, "{case}");
            }
            (Sends(code, subcode), Some(Event::Closed(closed))) => {
                let (message, body) = last.expect("a NOTIFICATION");
                assert_eq!(
                    (message, &body[..2]),
                    (MessageType::Notification, &[code, subcode][..]),
                    "{case}"
                );
                assert!(matches!(closed.reason, CloseReason::Sent { .. }), "{case}");
            }
            (Silence, Some(Event::Closed(closed))) => {
                assert_eq!(last, None, "{case}");
                assert!(
                    matches!(closed.reason, CloseReason::Silent(_)),
                    "{case}: {closed:?}"
                );
            }
            (Received, Some(Event::Closed(closed))) => {
                assert_eq!(last, None, "{case}");
                assert!(matches!(closed.reason, CloseReason::Received(_)), "{case}");
            }
            (expect, event) => panic!("{case}: expected {expect:?}, got {event:?}"),
        }
    }
}

#[test]
fn the_agreed_hold_time_is_the_smaller_one_and_keepalives_come_three_times_as_often() {
    for (theirs, hold, keepalive) in [(90, 90, 30), (30, 30, 10), (180, 90, 30), (3, 3, 1), (0, 0, 0)] {
        let mut connection = connection(None);
        connection.handle_data(&encoded(&open(THEIRS, theirs, 2)));
        assert_eq!(connection.poll_event(now(0)), Some(Event::Open));
        connection.confirm(now(0));
        let terms = connection.negotiated().expect("terms");
        assert_eq!((terms.hold_time, terms.keepalive), (hold, keepalive));
        assert_eq!(
            connection.timers().deadline(Timer::Hold),
            (hold > 0).then(|| now(hold.into()))
        );
        assert_eq!(
            connection.timers().deadline(Timer::Keepalive).is_some(),
            keepalive > 0
        );
    }
}

#[test]
fn silence_in_every_state_ends_with_the_hold_timer() {
    for (state, secs) in [
        (State::OpenSent, 240),
        (State::OpenConfirm, 90),
        (State::Established, 90),
    ] {
        let mut connection = in_state(state);
        connection.handle_timeout(now(secs - 1));
        assert_eq!(connection.poll_event(now(secs - 1)), None, "{}", state.name());
        connection.handle_timeout(now(secs));
        let Some(Event::Closed(closed)) = connection.poll_event(now(secs)) else {
            panic!("{}", state.name())
        };
        assert!(
            closed.reason.to_string().contains("Hold Timer Expired"),
            "{closed:?}"
        );
        assert_eq!(closed.was_established, state == State::Established);
    }
}

#[test]
fn a_message_in_pieces_is_one_message_and_two_in_one_piece_are_two() {
    let mut connection = in_state(State::OpenSent);
    let mut bytes = encoded(&open(THEIRS, 90, 2));
    let last = bytes.pop().expect("not empty");
    for byte in bytes {
        connection.handle_data(&[byte]);
        assert_eq!(connection.poll_event(now(0)), None);
    }
    let mut rest = vec![last];
    rest.extend(keepalive());
    connection.handle_data(&rest);
    assert_eq!(connection.poll_event(now(0)), Some(Event::Open));
    assert_eq!(
        connection.poll_event(now(0)),
        None,
        "nothing more before the collision is decided"
    );
    connection.confirm(now(0));
    assert_eq!(connection.poll_event(now(0)), Some(Event::Established));
}

#[test]
fn only_one_keepalive_waits_for_a_peer_that_does_not_read() {
    let mut connection = in_state(State::Established);
    for secs in (1..80).step_by(8) {
        connection.handle_timeout(now(secs));
    }
    assert_eq!(sent(&mut connection).len(), 1);
}

#[test]
fn an_old_speaker_without_capabilities_agrees_on_two_octets_and_ipv4() {
    let mut connection = in_state(State::OpenSent);
    let old = Open::new(THEIRS, 90, [10, 255, 0, 2].into(), Capabilities::default());
    connection.handle_data(&encoded(&old));
    assert_eq!(connection.poll_event(now(0)), Some(Event::Open));
    let terms = connection.negotiated().expect("terms");
    assert!(!terms.four_octet_as && !terms.route_refresh && terms.graceful_restart.is_none());
    assert_eq!(
        terms.families.iter().copied().collect::<Vec<_>>(),
        [AfiSafi::IPV4_UNICAST]
    );
}

#[test]
fn nothing_happens_after_the_end() {
    let mut connection = in_state(State::Established);
    connection.handle_transport_closed("reset");
    assert!(matches!(connection.poll_event(now(0)), Some(Event::Closed(_))));
    connection.handle_data(&keepalive());
    connection.handle_timeout(now(1000));
    connection.close(Notification::bare(NotificationCode::HoldTimerExpired), "");
    assert_eq!(connection.poll_event(now(1000)), None);
    assert!(sent(&mut connection).is_empty());
    assert_eq!(connection.timers().next(), None);
}
