//! Message boundaries: every legal and illegal header.

use super::*;

fn message(length: u16, type_code: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    out.extend_from_slice(&length.to_be_bytes());
    out.push(type_code);
    out.extend_from_slice(body);
    out
}

fn refused(buffer: &[u8], limit: MessageLimit) -> ((u8, u8), Vec<u8>) {
    let error = Frame::parse(buffer, limit).unwrap_err();
    (error.code().numbers(), error.notification().data().to_vec())
}

#[test]
fn a_message_is_found_once_it_is_complete() {
    let mut buffer = message(23, 2, &[0, 0, 0, 0]);
    buffer.extend_from_slice(&[0xff; 5]);
    for end in 0..23 {
        assert_eq!(
            Frame::parse(&buffer[..end], MessageLimit::Standard),
            Ok(None),
            "after {end} octets"
        );
    }
    let frame = Frame::parse(&buffer, MessageLimit::Standard).unwrap().unwrap();
    assert_eq!(
        frame,
        Frame {
            message_type: MessageType::Update,
            body: &[0, 0, 0, 0]
        }
    );
    assert_eq!(frame.total_len(), 23);
}

#[test]
fn a_wrong_marker_is_not_synchronized() {
    let mut buffer = message(19, 4, &[]);
    buffer[15] = 0xfe;
    assert_eq!(refused(&buffer, MessageLimit::Standard), ((1, 1), vec![]));
}

#[test]
fn a_bad_length_is_refused_with_the_length_as_data() {
    use MessageLimit::{Extended, Standard};
    // Length, type, limit.
    let bad = [
        (0, 4, Standard),
        (18, 4, Standard),
        (4097, 2, Standard),
        (65535, 2, Standard),
        (28, 1, Standard),
        (4097, 1, Extended),
        (22, 2, Extended),
        (20, 3, Standard),
        (20, 4, Standard),
        (4096, 4, Extended),
        (22, 5, Standard),
    ];
    for (length, type_code, limit) in bad {
        let expected = ((1, 2), u16::to_be_bytes(length).to_vec());
        assert_eq!(
            refused(&message(length, type_code, &[]), limit),
            expected,
            "type {type_code}, length {length}"
        );
    }
}

#[test]
fn extended_messages_are_accepted_only_by_agreement() {
    let buffer = message(65535, 2, &vec![0; 65535 - 19]);
    let frame = Frame::parse(&buffer, MessageLimit::Extended).unwrap().unwrap();
    assert_eq!(frame.total_len(), 65535);
    assert_eq!(refused(&buffer, MessageLimit::Standard).0, (1, 2));
}

#[test]
fn an_unknown_type_is_refused_with_the_type_as_data() {
    for type_code in [0, 6, 255] {
        let refusal = refused(&message(19, type_code, &[]), MessageLimit::Standard);
        assert_eq!(refusal, ((1, 3), vec![type_code]));
    }
}

#[test]
fn a_keepalive_is_a_bare_header() {
    let mut out = vec![7];
    encode_keepalive(&mut out);
    assert_eq!(out[1..], message(19, 4, &[]));
}
