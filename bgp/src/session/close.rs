//! Why a connection ended, and whether the routes of the peer may outlive it.

use serde::{Deserialize, Serialize};

use std::fmt;

use crate::wire::notification::Notification;

/// Which side ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// We did.
    Us,
    /// The peer did.
    Peer,
    /// The transport failed.
    Transport,
}

/// The end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// What happened.
    pub reason: CloseReason,
    /// Whether the session had been Established.
    pub was_established: bool,
}

/// What ended a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// We sent this NOTIFICATION.
    Sent {
        /// The message.
        notification: Notification,
        /// More than the message says, for our own log; may be empty.
        detail: String,
    },
    /// The peer sent this NOTIFICATION.
    Received(Notification),
    /// We closed without a word: before our OPEN, for a restart, or because nothing can be sent any more.
    Silent(&'static str),
    /// The TCP connection failed or the peer closed it.
    Transport(String),
    /// The peer opened a new connection: it restarted, and this one is dead (RFC 4724 §5).
    PeerRestarted,
}

impl CloseReason {
    /// Which side ended the connection.
    pub const fn by(&self) -> EndedBy {
        match self {
            Self::Sent { .. } | Self::Silent(_) => EndedBy::Us,
            Self::Received(_) | Self::PeerRestarted => EndedBy::Peer,
            Self::Transport(_) => EndedBy::Transport,
        }
    }

    /// Code and subcode of the NOTIFICATION that was sent or received.
    pub fn notification(&self) -> Option<(u8, u8)> {
        match self {
            Self::Sent { notification, .. } | Self::Received(notification) => {
                Some(notification.code().numbers())
            }
            Self::Silent(_) | Self::Transport(_) | Self::PeerRestarted => None,
        }
    }

    /// Whether routes may be kept after this end. RFC 4724 §4.2 takes it for a restart of the peer when the connection went away without a
    /// NOTIFICATION; after the agreement of RFC 8538 (`notification`) only a Hard Reset means that nothing is to be kept.
    pub fn keeps_routes(&self, notification: bool) -> bool {
        match self {
            Self::Transport(_) | Self::PeerRestarted => true,
            Self::Sent {
                notification: sent, ..
            } => notification && !sent.is_hard_reset(),
            Self::Received(received) => notification && !received.is_hard_reset(),
            Self::Silent(_) => false,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent { notification, detail } if detail.is_empty() => write!(f, "sent {notification}"),
            Self::Sent { notification, detail } => write!(f, "sent {notification}: {detail}"),
            Self::Received(notification) => write!(f, "received {notification}"),
            Self::Silent(text) => f.write_str(text),
            Self::Transport(text) => write!(f, "connection lost: {text}"),
            Self::PeerRestarted => f.write_str("the peer restarted: it opened a new connection"),
        }
    }
}
