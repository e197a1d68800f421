//! AS paths: lengths, ends, prepending, merging with AS4_PATH.

use proptest::prelude::*;

use super::SegmentKind::{ConfedSequence, ConfedSet, Sequence, Set};
use super::*;

fn path(segments: &[(SegmentKind, &[u32])]) -> AsPath {
    AsPath::from_segments(segments.iter().copied())
}

#[test]
fn length_counts_sets_once_and_confederations_not_at_all() {
    let rows = [
        (path(&[]), 0),
        (path(&[(Sequence, &[1, 2, 3])]), 3),
        (path(&[(Sequence, &[1, 2]), (Set, &[3, 4, 5])]), 3),
        (
            path(&[(ConfedSequence, &[7, 8]), (ConfedSet, &[9]), (Sequence, &[1])]),
            1,
        ),
    ];
    for (path, length) in rows {
        assert_eq!(path.path_length(), length, "{path:?}");
    }
}

#[test]
fn neighbor_and_origin_are_the_ends_outside_the_confederation() {
    let rows = [
        (path(&[]), None, None),
        (path(&[(Sequence, &[1, 2, 3])]), Some(1), Some(3)),
        (
            path(&[(ConfedSequence, &[9]), (Sequence, &[1])]),
            Some(1),
            Some(1),
        ),
        (path(&[(ConfedSequence, &[9])]), None, None),
        (path(&[(Set, &[1, 2])]), None, None),
        (path(&[(Sequence, &[1]), (Set, &[2, 3])]), Some(1), None),
    ];
    for (path, neighbor, origin) in rows {
        assert_eq!(
            (path.neighbor_as(), path.origin_as()),
            (neighbor, origin),
            "{path:?}"
        );
    }
}

#[test]
fn text_shows_the_kinds_of_segments() {
    let all = path(&[
        (ConfedSequence, &[1, 2]),
        (ConfedSet, &[3, 4]),
        (Sequence, &[5, 6]),
        (Set, &[7, 8]),
    ]);
    assert_eq!(all.to_string(), "(1 2) [3,4] 5 6 {7,8}");
    assert_eq!(all.without_confederation().to_string(), "5 6 {7,8}");
}

#[test]
fn prepending_joins_the_first_sequence_until_it_is_full() {
    let once = path(&[(Sequence, &[2])]).prepend(1, 2);
    assert_eq!(once, path(&[(Sequence, &[1, 1, 2])]));
    assert_eq!(once.prepend(1, 0), once);
    assert_eq!(AsPath::default().prepend(1, 1), path(&[(Sequence, &[1])]));
    assert_eq!(
        path(&[(Set, &[2])]).prepend(1, 1),
        path(&[(Sequence, &[1]), (Set, &[2])])
    );
    let full = AsPath::from_sequence(&[9; 254]).prepend(1, 2);
    assert_eq!(full.segments().map(Segment::count).collect::<Vec<_>>(), [2, 254]);
    assert_eq!(
        AsPath::from_sequence(&[9; 254]).prepend(1, 1).segments().count(),
        1
    );
    assert_eq!(
        once.prepend_confederation(7),
        path(&[(ConfedSequence, &[7]), (Sequence, &[1, 1, 2])])
    );
}

#[test]
fn long_sequences_are_split_and_empty_segments_left_out() {
    let long = AsPath::from_sequence(&[9; 600]);
    assert_eq!(
        long.segments().map(Segment::count).collect::<Vec<_>>(),
        [255, 255, 90]
    );
    assert_eq!(path(&[(Sequence, &[]), (Set, &[])]), AsPath::default());
}

#[test]
fn numbers_can_be_replaced_and_removed() {
    let replaced = path(&[(Sequence, &[1, 64512, 2]), (Set, &[64512])]);
    assert_eq!(
        replaced.map_asns(|asn| (asn != 64512).then_some(asn)),
        path(&[(Sequence, &[1, 2])])
    );
    assert_eq!(
        replaced
            .map_asns(|asn| Some(if asn == 64512 { 7 } else { asn }))
            .count(7),
        2
    );
    assert!(replaced.contains(2) && !replaced.contains(3));
}

#[test]
fn as4_paths_replace_the_tail_they_cover() {
    // Path of the two-octet speaker, AS4_PATH, what was meant (RFC 6793 section 4.2.3).
    let rows: [(AsPath, AsPath, &str); 7] = [
        (
            path(&[(Sequence, &[1, 23456, 3])]),
            path(&[(Sequence, &[65537, 3])]),
            "1 65537 3",
        ),
        (
            path(&[(Sequence, &[23456, 3])]),
            path(&[(Sequence, &[65537, 3])]),
            "65537 3",
        ),
        (path(&[(Sequence, &[1])]), path(&[(Sequence, &[65537, 3])]), "1"),
        (
            path(&[(Sequence, &[1, 23456]), (Set, &[5, 6])]),
            path(&[(Sequence, &[65537]), (Set, &[5, 70000])]),
            "1 65537 {5,70000}",
        ),
        (
            path(&[(ConfedSequence, &[7]), (Sequence, &[1, 23456])]),
            path(&[(Sequence, &[65537])]),
            "(7) 1 65537",
        ),
        (
            path(&[(Set, &[1, 2]), (Sequence, &[23456])]),
            path(&[(Sequence, &[65537])]),
            "{1,2} 65537",
        ),
        (
            path(&[(Sequence, &[1, 23456]), (ConfedSequence, &[7])]),
            path(&[(Sequence, &[65537])]),
            "1 65537",
        ),
    ];
    for (old, as4_path, expected) in rows {
        assert_eq!(old.merged_with_as4_path(&as4_path).to_string(), expected);
    }
}

fn any_path() -> impl Strategy<Value = AsPath> {
    let kind = prop_oneof![Just(Set), Just(Sequence), Just(ConfedSequence), Just(ConfedSet)];
    let segment = (kind, prop::collection::vec(1..=u32::MAX, 0..300));
    prop::collection::vec(segment, 0..5).prop_map(|segments| {
        AsPath::from_segments(segments.iter().map(|(kind, asns)| (*kind, asns.as_slice())))
    })
}

proptest! {
    #[test]
    fn prepending_adds_to_length_and_keeps_the_rest(path in any_path(), asn in 1..=u32::MAX, times in any::<u8>()) {
        let longer = path.prepend(asn, times);
        prop_assert_eq!(longer.path_length(), path.path_length() + usize::from(times));
        let tail: Vec<u32> = longer.asns().skip(times.into()).collect();
        prop_assert_eq!(tail, path.asns().collect::<Vec<_>>());
    }

    #[test]
    fn merging_never_changes_the_length(old in any_path(), as4_path in any_path()) {
        let merged = old.merged_with_as4_path(&as4_path.without_confederation());
        prop_assert_eq!(merged.path_length(), old.path_length());
    }
}
