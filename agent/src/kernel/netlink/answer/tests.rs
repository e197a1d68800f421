//! Datagrams as the kernel makes them, and as it does not.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A message: header, then payload, padded.
fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + payload.len()).unwrap();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(align(bytes.len()), 0);
    bytes
}

/// Error number, header of the request, extended message.
fn refusal(errno: i32, text: &str) -> Vec<u8> {
    let mut payload = errno.to_ne_bytes().to_vec();
    payload.extend([0; HEADER_BYTES]);
    payload.extend(u16::try_from(4 + text.len() + 1).unwrap().to_ne_bytes());
    payload.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
    payload.extend(text.as_bytes());
    payload.push(0);
    payload
}

fn dump(messages: &[Vec<u8>]) -> (Vec<Vec<u8>>, Result<Completeness, Failure>) {
    let bytes = messages.concat();
    let mut rest = bytes.as_slice();
    let mut dump = Dump::of(7);
    let mut objects = Vec::new();
    while !rest.is_empty() {
        let (received, next) = split_message(rest).unwrap();
        let mut parse = |payload: Option<&[u8]>| match payload {
            Some(b"bad!") => Err("bad".to_owned()),
            other => {
                objects.extend(other.map(<[u8]>::to_vec));
                Ok(())
            }
        };
        match dump.take(&received, &mut parse) {
            Ok(Flow::Continue) => rest = next,
            Ok(Flow::End) => return (objects, dump.end()),
            Err(failure) => return (objects, Err(failure)),
        }
    }
    panic!("the dump did not end");
}

#[test]
fn a_dump_is_torn_if_any_message_of_it_says_so() {
    let [a, b, done] = [
        message(24, 2, 7, b"aaaa"),
        message(24, 2, 7, b"bbbb"),
        message(NLMSG_DONE, 2, 7, &[0; 4]),
    ];
    let torn = |kind, payload| message(kind, 2 | NLM_F_DUMP_INTR, 7, payload);
    let rows = [
        (vec![a.clone(), b.clone(), done.clone()], Completeness::Whole),
        (
            vec![torn(24, b"aaaa"), b.clone(), done.clone()],
            Completeness::Torn,
        ),
        (vec![a.clone(), b, torn(NLMSG_DONE, &[0; 4])], Completeness::Torn),
    ];
    for (messages, expected) in rows {
        let (objects, end) = dump(&messages);
        assert_eq!(objects, [b"aaaa", b"bbbb"]);
        assert_eq!(end.unwrap(), expected);
    }
    // A leftover of an earlier dump belongs to no other.
    let leftover = message(24, 2 | NLM_F_DUMP_INTR, 6, b"old!");
    assert_eq!(dump(&[leftover, a, done]).1.unwrap(), Completeness::Whole);
}

#[test]
fn a_dump_that_breaks_off_or_is_not_understood_fails() {
    let done = message(NLMSG_DONE, 2, 7, &(-libc::ENOMEM).to_ne_bytes());
    assert!(matches!(
        dump(&[done]).1,
        Err(Failure::Refused {
            errno: libc::ENOMEM,
            ..
        })
    ));
    let rest = [
        message(24, 2, 7, b"bad!"),
        message(24, 2, 7, b"good"),
        message(NLMSG_DONE, 2, 7, &[0; 4]),
    ];
    let (objects, end) = dump(&rest);
    assert_eq!(objects, [b"good"], "read to its end");
    assert!(matches!(end, Err(Failure::Malformed(reason)) if reason == "bad"));
}

#[test]
fn an_error_carries_the_kernels_words() {
    let bytes = message(
        NLMSG_ERROR,
        NLM_F_CAPPED | NLM_F_ACK_TLVS,
        7,
        &refusal(-libc::EINVAL, "no such thing"),
    );
    let (received, rest) = split_message(&bytes).unwrap();
    assert!(rest.is_empty());
    match parse_error(&received) {
        Err(Failure::Refused {
            errno: libc::EINVAL,
            message: Some(text),
        }) => assert_eq!(text, "no such thing"),
        other => panic!("{other:?}"),
    }
    let acknowledged = message(NLMSG_ERROR, NLM_F_CAPPED, 7, &refusal(0, ""));
    assert!(parse_error(&split_message(&acknowledged).unwrap().0).is_ok());
}

proptest! {
    #[test]
    fn no_bytes_make_reading_panic(bytes in vec(any::<u8>(), 0..100), flags in any::<u16>(), cut in 0_usize..80) {
        let _ = split_message(&bytes);
        let mut answer = message(NLMSG_ERROR, flags, 7, &bytes);
        answer.truncate(cut.max(HEADER_BYTES));
        if let Some((received, _)) = split_message(&answer) {
            let _ = parse_error(&received);
            let _ = parse_done(&received);
        }
    }
}
