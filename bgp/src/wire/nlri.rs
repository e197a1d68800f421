//! NLRI fields (RFC 4271 section 4.3, RFC 4760 section 5), with path identifiers (RFC 7911 section 3).
//!
//! A field is checked once when the UPDATE is decoded; then it is iterated in place, without allocation and without errors.

use std::marker::PhantomData;

use super::cursor::Cursor;
use crate::family::{AfiSafi, Family, FamilyPrefix, Ipv4Unicast, Ipv6Unicast};

/// One entry of an NLRI field: a prefix and, with ADD-PATH, which of its paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nlri<F: Family> {
    /// The prefix.
    pub prefix: F::Prefix,
    /// The path identifier; 0 in sessions without ADD-PATH.
    pub path_id: u32,
}

impl<F: Family> Nlri<F> {
    /// The only path of a prefix, for sessions without ADD-PATH.
    pub fn new(prefix: F::Prefix) -> Self {
        Self { prefix, path_id: 0 }
    }
}

/// A checked NLRI field of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NlriField<'a, F> {
    octets: &'a [u8],
    add_path: bool,
    family: PhantomData<F>,
}

impl<'a, F: Family> NlriField<'a, F> {
    /// Checks that the field consists of whole entries with legal lengths (RFC 7606 section 5.3).
    pub(crate) fn parse(octets: &'a [u8], add_path: bool) -> Option<Self> {
        let mut cursor = Cursor::new(octets);
        while !cursor.is_empty() {
            skip_entry(&mut cursor, add_path, F::Prefix::MAX_LENGTH)?;
        }
        Some(Self {
            octets,
            add_path,
            family: PhantomData,
        })
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }

    /// The entries in the order of the wire.
    pub fn iter(&self) -> NlriIter<'a, F> {
        NlriIter {
            cursor: Cursor::new(self.octets),
            add_path: self.add_path,
            family: PhantomData,
        }
    }
}

impl<'a, F: Family> IntoIterator for NlriField<'a, F> {
    type Item = Nlri<F>;
    type IntoIter = NlriIter<'a, F>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Iterates over the entries of a field.
#[derive(Clone, Debug)]
pub struct NlriIter<'a, F> {
    cursor: Cursor<'a>,
    add_path: bool,
    family: PhantomData<F>,
}

impl<F: Family> Iterator for NlriIter<'_, F> {
    type Item = Nlri<F>;

    fn next(&mut self) -> Option<Self::Item> {
        let path_id = if self.add_path { self.cursor.u32()? } else { 0 };
        let length = self.cursor.u8()?;
        let octets = self.cursor.take(usize::from(length.div_ceil(8)))?;
        Some(Nlri {
            prefix: F::Prefix::from_nlri(length, octets)?,
            path_id,
        })
    }
}

/// A checked NLRI field of any family this speaker carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyNlri<'a> {
    /// IPv4 unicast.
    Ipv4(NlriField<'a, Ipv4Unicast>),
    /// IPv6 unicast.
    Ipv6(NlriField<'a, Ipv6Unicast>),
}

impl FamilyNlri<'_> {
    /// The family.
    pub fn family(&self) -> AfiSafi {
        match self {
            Self::Ipv4(_) => AfiSafi::IPV4_UNICAST,
            Self::Ipv6(_) => AfiSafi::IPV6_UNICAST,
        }
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Ipv4(field) => field.is_empty(),
            Self::Ipv6(field) => field.is_empty(),
        }
    }
}

fn skip_entry(cursor: &mut Cursor<'_>, add_path: bool, max_length: u8) -> Option<()> {
    if add_path {
        cursor.u32()?;
    }
    let length = cursor.u8().filter(|length| *length <= max_length)?;
    cursor.take(usize::from(length.div_ceil(8))).map(|_| ())
}

/// Appends one entry.
pub(crate) fn push_entry<F: Family>(nlri: Nlri<F>, add_path: bool, out: &mut Vec<u8>) {
    if add_path {
        out.extend_from_slice(&nlri.path_id.to_be_bytes());
    }
    nlri.prefix.write_nlri(out);
}
