//! Several paths to one prefix on one session (RFC 7911).

use std::num::NonZeroU8;

use crate::wire::capability::AddPathDirection;

/// What passes of several paths to one prefix. Each direction needs the consent of the peer; without it one path passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct AddPathConfig {
    /// Take several paths to a prefix from the peer.
    pub receive: bool,
    /// Announce several paths to a prefix to the peer; `None` announces the best one.
    pub send: Option<AddPathSend>,
}

/// Which paths to a prefix are announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddPathSend {
    /// All that may be used.
    All,
    /// So many of them, in the order of the decision process.
    Best(NonZeroU8),
}

impl AddPathSend {
    /// How many paths to a prefix are announced at most.
    pub fn limit(self) -> usize {
        match self {
            Self::All => usize::MAX,
            Self::Best(limit) => limit.get().into(),
        }
    }
}

impl AddPathConfig {
    /// What the capability says; `None` when it is not sent.
    pub(crate) fn direction(self) -> Option<AddPathDirection> {
        match (self.receive, self.send.is_some()) {
            (true, true) => Some(AddPathDirection::Both),
            (true, false) => Some(AddPathDirection::Receive),
            (false, true) => Some(AddPathDirection::Send),
            (false, false) => None,
        }
    }
}
