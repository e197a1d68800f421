//! Writing UPDATE messages: an attribute set is encoded once, then prefixes are packed behind it, message after message.

use std::iter::Peekable;
use std::marker::PhantomData;

use smallvec::SmallVec;

use crate::family::{AfiSafi, Family, FamilyPrefix};
use crate::wire::attr::encode::encode_attributes;
use crate::wire::attr::{Attributes, NextHop, flags, type_code};
use crate::wire::context::EncodeContext;
use crate::wire::frame::{MessageType, finish_message, start_message};
use crate::wire::nlri::{Nlri, push_entry};

/// Why no message can carry these attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateEncodeError {
    /// The attributes leave no room for a prefix: the route must be withdrawn from this peer instead (RFC 8654 section 4, RFC 4271 section 9.2).
    #[error("path attributes of {octets} octets leave no room for a prefix in a message of {limit}")]
    TooLong {
        /// Length of a message without prefixes.
        octets: usize,
        /// The session's limit.
        limit: usize,
    },
    /// The attributes have no next hop.
    #[error("path attributes without a next hop")]
    NoNextHop,
    /// The next hop's address family cannot be told for this route family on this session.
    #[error("next hop {next_hop} cannot be used for {family} on this session")]
    NextHopFamily {
        /// The next hop.
        next_hop: NextHop,
        /// The family of the routes.
        family: AfiSafi,
    },
}

/// Everything of an UPDATE except its prefixes, for one attribute set or for withdrawals: encoded once, used for any
/// number of prefixes and for every session with an equal [`EncodeContext`].
#[derive(Clone, Debug)]
pub struct UpdateTemplate<F> {
    /// The message up to its prefixes, beginning with the header.
    head: Vec<u8>,
    /// What comes after the prefixes.
    tail: Vec<u8>,
    /// Where in `head` the two-octet lengths stand that the prefixes add to; they hold the length without prefixes.
    lengths: SmallVec<[usize; 2]>,
    add_path: bool,
    limit: usize,
    family: PhantomData<F>,
}

impl<F: Family> UpdateTemplate<F> {
    /// For announcing prefixes with `attributes`. IPv4 with an IPv4 next hop takes the message's own NLRI field, everything else
    /// MP_REACH_NLRI, as the first attribute (RFC 7606 section 5.1).
    ///
    /// # Errors
    /// When the attributes cannot be told to peers with this context.
    pub fn announce(attributes: &Attributes, context: &EncodeContext) -> Result<Self, UpdateEncodeError> {
        let next_hop = attributes.next_hop.ok_or(UpdateEncodeError::NoNextHop)?;
        let family = F::AFI_SAFI;
        let mut template = Self::new(context);
        // No withdrawn routes.
        template.head.extend_from_slice(&[0, 0]);
        match (family, next_hop) {
            (AfiSafi::IPV4_UNICAST, NextHop::V4(next_hop)) => {
                let length_at = template.push_length(0);
                encode_attributes(attributes, Some(next_hop), context, &mut template.head);
                let length = template.head.len().saturating_sub(length_at).saturating_sub(2);
                add_to_length(&mut template.head, length_at, length);
            }
            (AfiSafi::IPV4_UNICAST, _) if !context.ipv4_unicast.extended_next_hop => {
                return Err(UpdateEncodeError::NextHopFamily { next_hop, family });
            }
            (_, NextHop::V4(_)) => return Err(UpdateEncodeError::NextHopFamily { next_hop, family }),
            _ => {
                encode_attributes(attributes, None, context, &mut template.tail);
                let mut fields = Vec::with_capacity(34);
                push_next_hop(next_hop, &mut fields);
                // The octet that was "number of SNPAs" (RFC 4760 section 3).
                fields.push(0);
                template.push_mp_attribute(type_code::MP_REACH_NLRI, &fields);
            }
        }
        template.with_room_for_a_prefix()
    }

    /// For withdrawing prefixes.
    pub fn withdraw(context: &EncodeContext) -> Self {
        let mut template = Self::new(context);
        if F::AFI_SAFI == AfiSafi::IPV4_UNICAST {
            let length_at = template.push_length(0);
            template.lengths.push(length_at);
            // No path attributes.
            template.tail.extend_from_slice(&[0, 0]);
        } else {
            template.head.extend_from_slice(&[0, 0]);
            template.push_mp_attribute(type_code::MP_UNREACH_NLRI, &[]);
        }
        template
    }

    /// Appends one message with as many of `prefixes` as fit and returns how many that were; 0, and nothing appended, only
    /// when there are none left.
    pub fn encode_message<I>(&self, prefixes: &mut Peekable<I>, out: &mut Vec<u8>) -> usize
    where
        I: Iterator<Item = Nlri<F>>,
    {
        if prefixes.peek().is_none() {
            return 0;
        }
        let start = out.len();
        out.extend_from_slice(&self.head);
        let prefixes_at = out.len();
        let end = start.saturating_add(self.limit).saturating_sub(self.tail.len());
        let mut count: usize = 0;
        while let Some(nlri) = prefixes.next_if(|nlri| {
            let path_id_len = if self.add_path { 4 } else { 0 };
            out.len()
                .saturating_add(nlri.prefix.nlri_len())
                .saturating_add(path_id_len)
                <= end
        }) {
            push_entry(nlri, self.add_path, out);
            count = count.saturating_add(1);
        }
        let added = out.len().saturating_sub(prefixes_at);
        out.extend_from_slice(&self.tail);
        if let Some(message) = out.get_mut(start..) {
            for length_at in &self.lengths {
                add_to_length(message, *length_at, added);
            }
        }
        finish_message(start, out);
        count
    }

    /// Appends messages until all of `prefixes` are in them; returns how many messages that were.
    pub fn encode_all(&self, prefixes: impl IntoIterator<Item = Nlri<F>>, out: &mut Vec<u8>) -> usize {
        let mut prefixes = prefixes.into_iter().peekable();
        let mut messages: usize = 0;
        while self.encode_message(&mut prefixes, out) > 0 {
            messages = messages.saturating_add(1);
        }
        messages
    }

    fn new(context: &EncodeContext) -> Self {
        let mut head = Vec::with_capacity(256);
        start_message(MessageType::Update, &mut head);
        Self {
            head,
            tail: Vec::new(),
            lengths: SmallVec::new(),
            add_path: context.family(F::AFI_SAFI).add_path,
            limit: context.message_limit.octets(),
            family: PhantomData,
        }
    }

    /// Appends a two-octet length and returns where it stands.
    fn push_length(&mut self, length: usize) -> usize {
        let at = self.head.len();
        self.head
            .extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        at
    }

    /// Appends the length of the path attributes and the head of MP_REACH_NLRI or MP_UNREACH_NLRI, in front of the attributes
    /// that are in `tail` already.
    fn push_mp_attribute(&mut self, type_code: u8, fields: &[u8]) {
        let family = F::AFI_SAFI;
        let value_len = fields.len().saturating_add(3);
        let total_at = self.push_length(value_len.saturating_add(4).saturating_add(self.tail.len()));
        self.head
            .extend_from_slice(&[flags::OPTIONAL | flags::EXTENDED_LENGTH, type_code]);
        let value_at = self.push_length(value_len);
        self.lengths.extend([total_at, value_at]);
        self.head.extend_from_slice(&family.afi.to_be_bytes());
        self.head.push(family.safi);
        self.head.extend_from_slice(fields);
    }

    fn with_room_for_a_prefix(self) -> Result<Self, UpdateEncodeError> {
        // A length octet, the octets of the longest prefix, a path identifier.
        let longest = usize::from(F::Prefix::MAX_LENGTH).div_ceil(8).saturating_add(5);
        let octets = self.head.len().saturating_add(self.tail.len());
        if octets.saturating_add(longest) > self.limit {
            return Err(UpdateEncodeError::TooLong {
                octets,
                limit: self.limit,
            });
        }
        Ok(self)
    }
}

/// Adds to a length field that stands at `at`.
fn add_to_length(message: &mut [u8], at: usize, added: usize) {
    let field = message.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>);
    if let Some(field) = field {
        let length = usize::from(u16::from_be_bytes(*field)).saturating_add(added);
        *field = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    }
}

/// Appends length and octets of the next hop field (RFC 4760 section 3, 2545 section 3, 8950 section 3).
fn push_next_hop(next_hop: NextHop, out: &mut Vec<u8>) {
    match next_hop {
        NextHop::V4(address) => {
            out.push(4);
            out.extend_from_slice(&address.octets());
        }
        NextHop::V6(address) => {
            out.push(16);
            out.extend_from_slice(&address.octets());
        }
        NextHop::V6WithLinkLocal { global, link_local } => {
            out.push(32);
            out.extend_from_slice(&global.octets());
            out.extend_from_slice(&link_local.octets());
        }
    }
}

/// Appends an End-of-RIB marker (RFC 4724 section 2).
pub fn encode_end_of_rib(family: AfiSafi, out: &mut Vec<u8>) {
    let start = start_message(MessageType::Update, out);
    out.extend_from_slice(&[0, 0]);
    if family == AfiSafi::IPV4_UNICAST {
        out.extend_from_slice(&[0, 0]);
    } else {
        out.extend_from_slice(&[0, 6, flags::OPTIONAL, type_code::MP_UNREACH_NLRI, 3]);
        out.extend_from_slice(&family.afi.to_be_bytes());
        out.push(family.safi);
    }
    finish_message(start, out);
}
