//! One peer: the state machine of a connection, the two connections a peer may have, and what both sides agreed on.
//!
//! RFC 4271 §8 describes one state machine that sometimes has two TCP connections. Here a [`Connection`] is the machine of
//! exactly one TCP connection from the moment it is up, and a [`Peer`] has at most two of them, one it opened and one
//! it accepted. Idle, Connect and Active are what a peer *without* a connection is; collision (§6.8) is a choice between two values.

mod close;
mod connection;
mod counters;
mod negotiate;
mod offer;
mod peer;
mod timers;

use serde::{Deserialize, Serialize};

pub use close::{CloseReason, Closed, EndedBy};
pub use connection::{Body, Connection, ConnectionSettings, Event};
pub use counters::Counters;
pub use negotiate::{GracefulRestart, Negotiated, RestartFamily, check_role, negotiate};
pub use peer::{ConnId, Direction, LocalSpeaker, Peer, PeerAction, PeerEvent, RefusedConnection};
pub use timers::{Timer, TimerTable};

/// The states of RFC 4271 §8.2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waiting before the next attempt, refusing connections.
    Idle,
    /// No connection; the next attempt is due later; connections are accepted. Also: the peer shall not send OPEN first (DelayOpen).
    Active,
    /// A TCP connection is being made.
    Connect,
    /// Our OPEN is sent, the peer's has not come.
    OpenSent,
    /// Both OPENs are there, the peer has not confirmed ours.
    OpenConfirm,
    /// Routes flow.
    Established,
}

impl State {
    /// The name the RFC gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "Idle",
            Self::Active => "Active",
            Self::Connect => "Connect",
            Self::OpenSent => "OpenSent",
            Self::OpenConfirm => "OpenConfirm",
            Self::Established => "Established",
        }
    }
}
