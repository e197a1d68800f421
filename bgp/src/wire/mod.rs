//! BGP-4 messages: octets ⇄ values. Nothing here keeps state, does I/O or knows the time.
//!
//! Reading: [`frame::Frame`] finds a message in the stream, [`Message::decode`] tells what it is,
//! [`update::Update::decode`] reads routes with what the session negotiated ([`context::DecodeContext`]).
//! Writing: every message type has `encode(&self, out)`, which appends to a buffer; [`update::UpdateTemplate`] packs
//! many prefixes of one attribute set.
//!
//! Invariants: no input can panic or allocate more than a small multiple of the message; an error that ends the
//! session carries its NOTIFICATION ([`error::WireError`]), one that does not carries what was done about it
//! ([`attr::AttributeError`], RFC 7606).
//!
//! RFC 1997, 2545, 2918, 4271, 4360, 4456, 4486, 4724, 4760, 5065, 5492, 5701, 6286, 6608, 6793, 7311, 7313, 7606, 7607,
//! 7911, 8092, 8538, 8654, 8950, 9003, 9072, 9234, 9384, 9494, 9687.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

pub mod attr;
pub mod capability;
pub mod context;
mod cursor;
pub mod error;
pub mod frame;
pub mod nlri;
pub mod notification;
pub mod open;
pub mod refresh;
pub mod update;

use error::WireError;
use frame::{Frame, MessageType};
use notification::Notification;
use open::Open;
use refresh::RouteRefresh;

/// A received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// OPEN.
    Open(Open),
    /// The body of an UPDATE, for [`update::Update::decode`].
    Update(&'a [u8]),
    /// NOTIFICATION.
    Notification(Notification),
    /// KEEPALIVE.
    Keepalive,
    /// ROUTE-REFRESH.
    RouteRefresh(RouteRefresh),
}

impl<'a> Message<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    /// Those of the message type's own `decode`.
    pub fn decode(frame: Frame<'a>) -> Result<Self, WireError> {
        Ok(match frame.message_type {
            MessageType::Open => Self::Open(Open::decode(frame.body)?),
            MessageType::Update => Self::Update(frame.body),
            MessageType::Notification => Self::Notification(Notification::decode(frame.body)?),
            MessageType::Keepalive => Self::Keepalive,
            MessageType::RouteRefresh => Self::RouteRefresh(RouteRefresh::decode(frame.body)?),
        })
    }
}
