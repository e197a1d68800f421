//! AS paths (RFC 4271 section 5.1.2, RFC 5065), kept in the four-octet wire form: compact to store, quick to hash, compare
//! and send.
//!
//! Invariant: the octets are whole segments of known type with 1 to 255 AS numbers each.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::wire::cursor::Cursor;

/// Most AS numbers in one segment: its count is one octet.
const MAX_SEGMENT: usize = 255;

/// An AS path.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AsPath(Box<[u8]>);

/// The kinds of path segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SegmentKind {
    /// AS_SET, 1: unordered.
    Set = 1,
    /// AS_SEQUENCE, 2: the latest AS first.
    Sequence = 2,
    /// AS_CONFED_SEQUENCE, 3: member ASes of the local confederation, the latest first.
    ConfedSequence = 3,
    /// AS_CONFED_SET, 4: member ASes of the local confederation, unordered.
    ConfedSet = 4,
}

impl SegmentKind {
    pub(super) fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Set),
            2 => Some(Self::Sequence),
            3 => Some(Self::ConfedSequence),
            4 => Some(Self::ConfedSet),
            _ => None,
        }
    }

    /// Whether the segment is about the inside of a confederation.
    pub fn is_confederation(self) -> bool {
        matches!(self, Self::ConfedSequence | Self::ConfedSet)
    }
}

/// One segment of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Its kind.
    pub kind: SegmentKind,
    octets: &'a [u8],
}

impl<'a> Segment<'a> {
    /// The AS numbers in the order of the wire.
    pub fn asns(self) -> impl DoubleEndedIterator<Item = u32> + ExactSizeIterator + 'a {
        self.octets
            .chunks_exact(4)
            .map(|asn| asn.try_into().map(u32::from_be_bytes).unwrap_or_default())
    }

    /// How many AS numbers there are, at most 255.
    pub fn count(self) -> usize {
        self.octets.len() / 4
    }

    /// What the segment adds to the length of the path: a set counts one (RFC 4271 section 9.1.2.2), a segment of a
    /// confederation nothing (RFC 5065 section 5.3).
    pub fn path_length(self) -> usize {
        match self.kind {
            SegmentKind::Sequence => self.count(),
            SegmentKind::Set => 1,
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => 0,
        }
    }
}

impl AsPath {
    /// A path of one sequence, the latest AS first; more than 255 numbers take several segments.
    pub fn from_sequence(asns: &[u32]) -> Self {
        Self::from_segments(std::iter::once((SegmentKind::Sequence, asns)))
    }

    /// A path of the given segments; empty ones are left out, ones of more than 255 numbers are split.
    pub fn from_segments<'a>(segments: impl IntoIterator<Item = (SegmentKind, &'a [u32])>) -> Self {
        let mut octets = Vec::new();
        for (kind, asns) in segments {
            for asns in asns.chunks(MAX_SEGMENT) {
                push_segment(kind, asns.iter().copied(), &mut octets);
            }
        }
        Self(octets.into())
    }

    /// The segments in order.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        let mut cursor = Cursor::new(&self.0);
        std::iter::from_fn(move || {
            let (kind, count) = (SegmentKind::from_code(cursor.u8()?)?, cursor.u8()?);
            Some(Segment {
                kind,
                octets: cursor.take(usize::from(count).saturating_mul(4))?,
            })
        })
    }

    /// All AS numbers of all segments.
    pub fn asns(&self) -> impl Iterator<Item = u32> + '_ {
        self.segments().flat_map(Segment::asns)
    }

    /// Whether the path is empty, as that of a route from inside the AS is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The length the decision process compares (RFC 4271 section 9.1.2.2, RFC 5065 section 5.3).
    pub fn path_length(&self) -> usize {
        self.segments()
            .map(Segment::path_length)
            .fold(0, usize::saturating_add)
    }

    /// Whether `asn` is anywhere in the path, confederation segments included.
    pub fn contains(&self, asn: u32) -> bool {
        self.asns().any(|other| other == asn)
    }

    /// How often `asn` is in the path.
    pub fn count(&self, asn: u32) -> usize {
        self.asns().filter(|other| *other == asn).count()
    }

    /// The AS the route was received from (RFC 4271 section 9.1.2.2 c): the first of the first segment that is not a
    /// confederation's, if that is a sequence.
    pub fn neighbor_as(&self) -> Option<u32> {
        let first = self.segments().find(|segment| !segment.kind.is_confederation())?;
        if first.kind != SegmentKind::Sequence {
            return None;
        }
        first.asns().next()
    }

    /// The AS that originated the route: the last of the path if it ends with a sequence.
    pub fn origin_as(&self) -> Option<u32> {
        let last = self
            .segments()
            .last()
            .filter(|segment| segment.kind == SegmentKind::Sequence)?;
        last.asns().next_back()
    }

    /// The path with `asn` put in front `times` times (RFC 4271 section 5.1.2), in a sequence of its own if the first one is full.
    #[must_use]
    pub fn prepend(&self, asn: u32, times: u8) -> Self {
        self.prepend_to(SegmentKind::Sequence, asn, times)
    }

    /// The path with `asn` put in front as a member AS of a confederation (RFC 5065 section 4.1).
    #[must_use]
    pub fn prepend_confederation(&self, asn: u32) -> Self {
        self.prepend_to(SegmentKind::ConfedSequence, asn, 1)
    }

    fn prepend_to(&self, kind: SegmentKind, asn: u32, times: u8) -> Self {
        if times == 0 {
            return self.clone();
        }
        let mut cursor = Cursor::new(&self.0);
        let head = (cursor.u8(), cursor.u8());
        let joined = match head {
            (Some(code), Some(count)) if code == kind as u8 => count.checked_add(times),
            _ => None,
        };
        let mut octets = Vec::with_capacity(
            self.0
                .len()
                .saturating_add(usize::from(times).saturating_mul(4))
                .saturating_add(2),
        );
        octets.extend_from_slice(&[kind as u8, joined.unwrap_or(times)]);
        for _ in 0..times {
            octets.extend_from_slice(&asn.to_be_bytes());
        }
        octets.extend_from_slice(if joined.is_some() { cursor.rest() } else { &self.0 });
        Self(octets.into())
    }

    /// The path without confederation segments, as it leaves the confederation (RFC 5065 section 4.1).
    #[must_use]
    pub fn without_confederation(&self) -> Self {
        let mut octets = Vec::new();
        for segment in self.segments().filter(|segment| !segment.kind.is_confederation()) {
            push_segment(segment.kind, segment.asns(), &mut octets);
        }
        Self(octets.into())
    }

    /// The path with every AS number passed through `map`; those for which it returns `None` are left out.
    #[must_use]
    pub fn map_asns(&self, mut map: impl FnMut(u32) -> Option<u32>) -> Self {
        let mut octets = Vec::new();
        for segment in self.segments() {
            let asns: Vec<u32> = segment.asns().filter_map(&mut map).collect();
            push_segment(segment.kind, asns.iter().copied(), &mut octets);
        }
        Self(octets.into())
    }

    /// Puts the AS numbers of AS4_PATH into a path received from a two-octet AS speaker (RFC 6793 section 4.2.3): the
    /// leading part that AS4_PATH lacks is kept. A longer AS4_PATH than the path itself is ignored.
    pub(super) fn merged_with_as4_path(&self, as4_path: &Self) -> Self {
        let Some(mut missing) = self.path_length().checked_sub(as4_path.path_length()) else {
            return self.clone();
        };
        let mut segments: Vec<(SegmentKind, Vec<u32>)> = Vec::new();
        let mut cut = false;
        for segment in self.segments() {
            // Confederation segments count nothing and stay when they lead or adjoin what stays.
            if cut || (missing == 0 && !segment.kind.is_confederation()) {
                break;
            }
            let all = segment.count();
            let kept = if segment.kind == SegmentKind::Sequence {
                missing.min(all)
            } else {
                all
            };
            segments.push((segment.kind, segment.asns().take(kept).collect()));
            missing = missing.saturating_sub(segment.path_length());
            cut = kept < all;
        }
        for segment in as4_path.segments() {
            let fits = |asns: &Vec<u32>| asns.len().saturating_add(segment.count()) <= MAX_SEGMENT;
            match segments.last_mut() {
                // The two parts of what was one sequence become one again.
                Some((SegmentKind::Sequence, asns))
                    if cut && segment.kind == SegmentKind::Sequence && fits(asns) =>
                {
                    asns.extend(segment.asns());
                }
                _ => segments.push((segment.kind, segment.asns().collect())),
            }
            cut = false;
        }
        Self::from_segments(segments.iter().map(|(kind, asns)| (*kind, asns.as_slice())))
    }

    /// The four-octet wire form.
    pub(super) fn octets(&self) -> &[u8] {
        &self.0
    }

    /// Takes octets whose form has been checked.
    pub(super) fn from_checked_octets(octets: Vec<u8>) -> Self {
        Self(octets.into())
    }
}

/// Appends a segment of at most 255 numbers; an empty one is left out.
pub(super) fn push_segment(
    kind: SegmentKind,
    asns: impl ExactSizeIterator<Item = u32>,
    octets: &mut Vec<u8>,
) {
    let Ok(count @ 1..) = u8::try_from(asns.len()) else {
        return;
    };
    octets.extend_from_slice(&[kind as u8, count]);
    octets.extend(asns.flat_map(u32::to_be_bytes));
}

impl fmt::Display for AsPath {
    /// Sequences as they are, sets in braces, confederation segments in parentheses or brackets: `65001 65002 {65003,65004}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.segments().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            let (open, between, close) = match segment.kind {
                SegmentKind::Sequence => ("", " ", ""),
                SegmentKind::Set => ("{", ",", "}"),
                SegmentKind::ConfedSequence => ("(", " ", ")"),
                SegmentKind::ConfedSet => ("[", ",", "]"),
            };
            f.write_str(open)?;
            for (index, asn) in segment.asns().enumerate() {
                write!(f, "{}{asn}", if index > 0 { between } else { "" })?;
            }
            f.write_str(close)?;
        }
        Ok(())
    }
}

impl fmt::Debug for AsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

impl Serialize for AsPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests;
