//! A peer's state as plain data, so that a successor of this process can go on with the session instead of beginning a new one.
//!
//! What a restart would do with it. The predecessor stops reading, waits until the transport has taken what it was given, writes the snapshot of
//! every peer, and hands the open sockets on. The successor starts with its own configuration and gives each snapshot to the speaker together with
//! the name of its connection. The speaker then has what it cannot learn again without a new session: the terms that two OPENs agreed on, the octets
//! of a message that has not come whole, and the Adj-RIB-In. The rest follows: routes are judged by the import policy in force, timers start anew, and
//! everything is announced again, which to the peer is an implicit replacement by the same (RFC 4271 §9.1.4); what it was told and should not
//! have any more goes with a refresh between marks where it knows RFC 7313, else with withdrawals of the prefixes it may still hold. Nothing here
//! names a socket, a table's slot, or a moment of this process's clock.
//!
//! The Adj-RIB-In is kept as UPDATE messages in the terms of the session, but always with four-octet AS numbers and long messages: the format is
//! that of the RFCs, and what reads it is the decoder that reads peers. Routes kept from before a restart of the *peer* are left out: the
//! session that is handed on did not bring them.
//!
//! Invariant: a snapshot comes from outside when it is read, and is worth no more trust than a message: whatever is in it, reading ends, takes memory for
//! one message at a time, and gives routes or says what is wrong.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{PeerEntry, Speaker};
use crate::family::{AfiSafi, Family, Prefix};
use crate::rib::{AttrId, AttrStore, LocRib, SourceId};
use crate::session::{Negotiated, State};
use crate::wire::attr::Attributes;
use crate::wire::context::{DecodeContext, EncodeContext, FamilyContext};
use crate::wire::error::WireError;
use crate::wire::frame::{Frame, MAX_EXTENDED_MESSAGE_LEN, MessageLimit, MessageType};
use crate::wire::nlri::{FamilyNlri, Nlri, NlriField};
use crate::wire::update::{Update, UpdateTemplate};

/// The Established session of one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSnapshot {
    /// Of this form of the data; another one is not understood.
    pub version: u16,
    /// The peer's configured name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// The kernel's number of the interface of a link-local address; 0 otherwise.
    pub scope_id: u32,
    /// Both ends of the TCP connection, ours first.
    pub transport: (SocketAddr, SocketAddr),
    /// What both OPENs agreed on.
    pub terms: Negotiated,
    /// Octets received that are no whole message yet.
    pub unread: Vec<u8>,
    /// How far the session is in each family.
    pub families: BTreeMap<AfiSafi, FamilySnapshot>,
    /// The Adj-RIB-In: UPDATE messages, one behind the other.
    pub adj_rib_in: Vec<u8>,
}

/// How far a session is in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilySnapshot {
    /// The peer's End-of-RIB came.
    pub end_of_rib_received: bool,
    /// Ours went out.
    pub end_of_rib_sent: bool,
}

/// Why a snapshot is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It is of another form.
    #[error("version {found}; expected {}", PeerSnapshot::VERSION)]
    Version {
        /// What it says.
        found: u16,
    },
    /// More is left of a message than a message can have.
    #[error("{octets} octets of an unfinished message; expected less than {MAX_EXTENDED_MESSAGE_LEN}")]
    Unread {
        /// How many.
        octets: usize,
    },
    /// The Adj-RIB-In is no row of messages.
    #[error("Adj-RIB-In, octet {at}: {source}")]
    Message {
        /// Where the message begins.
        at: usize,
        /// What is wrong with it.
        source: WireError,
    },
    /// It has something else than routes that were taken as they came.
    #[error("Adj-RIB-In, octet {at}: expected an UPDATE without errors that announces routes")]
    NoRoutes {
        /// Where the message begins.
        at: usize,
    },
}

impl PeerSnapshot {
    /// The form of the data.
    pub const VERSION: u16 = 1;

    /// Shows each route to `see`, in no order that means anything: its prefix, its path identifier (0 without ADD-PATH) and its attributes as they were
    /// received.
    ///
    /// # Errors
    /// See [`SnapshotError`]. What was shown before counts for nothing then.
    pub fn each_route(&self, mut see: impl FnMut(Prefix, u32, &Attributes)) -> Result<(), SnapshotError> {
        if self.version != Self::VERSION {
            return Err(SnapshotError::Version { found: self.version });
        }
        if self.unread.len() >= MAX_EXTENDED_MESSAGE_LEN {
            return Err(SnapshotError::Unread {
                octets: self.unread.len(),
            });
        }
        let context = DecodeContext {
            four_octet_as: true,
            ..self.terms.decode_context()
        };
        let mut at = 0;
        while let Some(rest) = self.adj_rib_in.get(at..).filter(|rest| !rest.is_empty()) {
            let message = |source| SnapshotError::Message { at, source };
            let frame = Frame::parse(rest, MessageLimit::Extended).map_err(message)?;
            let frame = frame
                .filter(|frame| frame.message_type == MessageType::Update)
                .ok_or(SnapshotError::NoRoutes { at })?;
            let update = Update::decode(frame.body, &context).map_err(message)?;
            if update.reach.is_empty() || !update.unreach.is_empty() || !update.errors.is_empty() {
                return Err(SnapshotError::NoRoutes { at });
            }
            for reach in &update.reach {
                let mut see = |(prefix, path_id)| see(prefix, path_id, &reach.attributes);
                match reach.nlri {
                    FamilyNlri::Ipv4(field) => routes(field).for_each(&mut see),
                    FamilyNlri::Ipv6(field) => routes(field).for_each(&mut see),
                }
            }
            at += frame.total_len();
        }
        Ok(())
    }
}

fn routes<F: Family>(field: NlriField<'_, F>) -> impl Iterator<Item = (Prefix, u32)> {
    field.into_iter().map(|nlri| (nlri.prefix.into(), nlri.path_id))
}

impl Speaker {
    /// The state of the Established session with the peer of this name. `None` when there is no such session, or when the transport has not taken
    /// everything it was given yet.
    pub fn snapshot(&self, name: &str) -> Option<PeerSnapshot> {
        let index = self.index_of(name)?;
        let entry = self.peers.get(&index)?;
        let connection = entry.peer.established()?;
        let terms = entry.session.clone()?;
        if connection.state() != State::Established || !connection.can_transmit() {
            return None;
        }
        let mut adj_rib_in = Vec::new();
        let context = context_of(&terms);
        append(&self.ipv4.loc_rib, index, &self.attrs, &context, &mut adj_rib_in);
        append(&self.ipv6.loc_rib, index, &self.attrs, &context, &mut adj_rib_in);
        let config = entry.peer.config();
        Some(PeerSnapshot {
            version: PeerSnapshot::VERSION,
            name: config.name.clone(),
            address: config.address,
            scope_id: config.scope_id,
            transport: entry.peer.transport()?,
            unread: connection.unread().to_vec(),
            families: families(entry),
            adj_rib_in,
            terms,
        })
    }
}

fn families(entry: &PeerEntry) -> BTreeMap<AfiSafi, FamilySnapshot> {
    let progress = entry.progress.iter();
    progress
        .map(|(family, progress)| {
            let snapshot = FamilySnapshot {
                end_of_rib_received: progress.end_of_rib_received,
                end_of_rib_sent: progress.end_of_rib_sent,
            };
            (*family, snapshot)
        })
        .collect()
}

/// As the peer would write what it told us.
fn context_of(terms: &Negotiated) -> EncodeContext {
    let DecodeContext {
        ipv4_unicast,
        ipv6_unicast,
        ..
    } = terms.decode_context();
    let whole = |family: FamilyContext| FamilyContext {
        negotiated: true,
        ..family
    };
    EncodeContext {
        four_octet_as: true,
        message_limit: MessageLimit::Extended,
        ipv4_unicast: whole(ipv4_unicast),
        ipv6_unicast: whole(ipv6_unicast),
    }
}

/// Appends a family's paths from a peer, those with one attribute set together.
fn append<F: Family>(
    loc_rib: &LocRib<F>,
    index: u32,
    attrs: &AttrStore,
    context: &EncodeContext,
    out: &mut Vec<u8>,
) {
    let source = SourceId::peer(index);
    let mut by_set: BTreeMap<AttrId, Vec<Nlri<F>>> = BTreeMap::new();
    for (_, destination) in loc_rib.iter() {
        let paths = destination.paths().iter();
        for path in paths.filter(|path| path.source == source && !path.stale) {
            let prefix = destination.prefix;
            let path_id = path.path_id;
            by_set
                .entry(path.received)
                .or_default()
                .push(Nlri { prefix, path_id });
        }
    }
    for (set, routes) in by_set {
        // What came in a message fits into one, long as these may be.
        if let Ok(template) = UpdateTemplate::announce(attrs.get(set), context) {
            template.encode_all(routes, out);
        }
    }
}
