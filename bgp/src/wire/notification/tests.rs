//! NOTIFICATION: numbers, names, shutdown texts, hard resets.

use super::*;

fn body(notification: &Notification) -> Vec<u8> {
    let mut out = Vec::new();
    notification.encode(&mut out);
    out.split_off(19)
}

#[test]
fn every_pair_of_numbers_survives() {
    for code in 0..=u8::MAX {
        for subcode in 0..=u8::MAX {
            assert_eq!(
                NotificationCode::from_numbers(code, subcode).numbers(),
                (code, subcode)
            );
            let notification = Notification::decode(&[code, subcode, 1, 2]).unwrap();
            assert_eq!(body(&notification), [code, subcode, 1, 2]);
        }
    }
}

#[test]
fn codes_have_their_registered_names() {
    let rows = [
        ((1, 2), "Message Header Error: Bad Message Length (1/2)"),
        ((2, 11), "OPEN Message Error: Role Mismatch (2/11)"),
        ((3, 5), "UPDATE Message Error: Attribute Length Error (3/5)"),
        ((4, 0), "Hold Timer Expired (4/0)"),
        ((4, 1), "Unknown Error (4/1)"),
        (
            (5, 3),
            "Finite State Machine Error: Receive Unexpected Message in Established State (5/3)",
        ),
        ((6, 2), "Cease: Administrative Shutdown (6/2)"),
        ((6, 77), "Cease: Unknown (6/77)"),
        (
            (7, 1),
            "ROUTE-REFRESH Message Error: Invalid Message Length (7/1)",
        ),
        ((8, 0), "Send Hold Timer Expired (8/0)"),
        ((99, 1), "Unknown Error (99/1)"),
    ];
    for ((code, subcode), text) in rows {
        assert_eq!(NotificationCode::from_numbers(code, subcode).to_string(), text);
    }
}

#[test]
fn shutdown_text_goes_both_ways() {
    let cease = Notification::cease_with_text(CeaseError::AdministrativeShutdown, "see you at 02:00");
    assert_eq!(body(&cease)[..4], [6, 2, 16, b's']);
    assert_eq!(
        cease.shutdown_communication(),
        Some(Ok("see you at 02:00".to_owned()))
    );
    let wrapped = cease.clone().into_hard_reset();
    assert_eq!(body(&wrapped)[..5], [6, 9, 6, 2, 16]);
    assert_eq!(wrapped.hard_reset_reason(), Some(cease));
    assert_eq!(
        wrapped.shutdown_communication(),
        Some(Ok("see you at 02:00".to_owned()))
    );
    let expected = "Cease: Hard Reset (6/9), Cease: Administrative Shutdown (6/2), \"see you at 02:00\"";
    assert_eq!(wrapped.to_string(), expected);
}

#[test]
fn long_shutdown_text_is_cut_at_a_character() {
    let text = "ä".repeat(200);
    let cease = Notification::cease_with_text(CeaseError::AdministrativeReset, &text);
    assert_eq!(cease.data().len(), 255);
    assert_eq!(cease.shutdown_communication(), Some(Ok("ä".repeat(127))));
}

#[test]
fn bad_shutdown_text_is_told_from_none() {
    let shutdown = |data: &[u8]| {
        Notification::new(NotificationCode::Cease(CeaseError::AdministrativeShutdown), data)
            .shutdown_communication()
    };
    assert_eq!(shutdown(&[]), None);
    assert_eq!(shutdown(&[0]), None);
    assert_eq!(shutdown(&[2, b'x']), Some(Err(ShutdownTextError::Length)));
    assert_eq!(shutdown(&[1, b'x', b'y']), Some(Err(ShutdownTextError::Length)));
    assert_eq!(shutdown(&[1, 0xff]), Some(Err(ShutdownTextError::NotUtf8)));
    let other = Notification::new(NotificationCode::Cease(CeaseError::PeerDeconfigured), &[1, b'x']);
    assert_eq!(other.shutdown_communication(), None);
}

#[test]
fn control_characters_of_the_peer_are_escaped_when_shown() {
    let cease = Notification::cease_with_text(CeaseError::AdministrativeShutdown, "\x1b[2J\n");
    assert!(cease.to_string().ends_with(r#""\u{1b}[2J\n""#), "{cease}");
}

#[test]
fn data_never_exceeds_a_message() {
    let mut out = Vec::new();
    Notification::new(NotificationCode::HoldTimerExpired, &[0; 10_000])
        .into_hard_reset()
        .encode(&mut out);
    assert_eq!(out.len(), 4096);
}
