//! How many prefixes pass a session.

use std::time::Duration;

/// How many prefixes of one family a peer may announce, before import policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixLimit {
    /// The limit, for each family on its own.
    pub max: u32,
    /// At how many percent of it the operator is told, 1 to 100.
    pub warn_percent: u8,
    /// What becomes of more.
    pub beyond: BeyondLimit,
}

/// What becomes of prefixes beyond a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BeyondLimit {
    /// They are used all the same; the operator is told.
    Warn,
    /// They are forgotten. A higher limit, or a route refresh, brings them back.
    Discard,
    /// The session ends with Cease / Maximum Number of Prefixes Reached (RFC 4486 §4).
    Stop {
        /// How long the peer then stays Idle; `None`: until its configuration changes.
        retry_after: Option<Duration>,
    },
}

/// How many prefixes there are, compared with the limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    #[default]
    Low,
    Near,
    Beyond,
}

impl PrefixLimit {
    /// The most that is stored.
    pub(crate) fn stored(&self) -> Option<usize> {
        (self.beyond == BeyondLimit::Discard).then(|| self.max())
    }

    pub(crate) fn level(&self, held: usize, discarded: u64) -> Level {
        let near = self.max().saturating_mul(usize::from(self.warn_percent)) / 100;
        if held > self.max() || discarded > 0 {
            Level::Beyond
        } else if held >= near.max(1) {
            Level::Near
        } else {
            Level::Low
        }
    }

    fn max(&self) -> usize {
        usize::try_from(self.max).unwrap_or(usize::MAX)
    }
}
