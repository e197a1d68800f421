//! What becomes of routes while a session is down (RFC 4724, 8538, 9494).

use std::time::Duration;

/// Graceful restart with a peer (RFC 4724).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GracefulRestartConfig {
    /// How long the peer should keep our routes while we are away, up to 4095 seconds. 0: not at all, or only by [`LongLivedConfig`].
    pub restart_time: u16,
    /// How long, at most, routes of a restarted peer stay stale when its End-of-RIB never comes. With RFC 8538 no route stays stale
    /// longer than the restart time and this, however often the session fails meanwhile.
    pub stale_time: Duration,
    /// Routes survive NOTIFICATIONs and an expired hold timer too, except for Hard Resets (RFC 8538), when both sides say so.
    pub notification: bool,
    /// What follows when the restart time is over.
    pub long_lived: LongLivedConfig,
}

impl Default for GracefulRestartConfig {
    fn default() -> Self {
        Self {
            restart_time: 120,
            stale_time: Duration::from_secs(360),
            notification: true,
            long_lived: LongLivedConfig::default(),
        }
    }
}

/// Long-lived graceful restart (RFC 9494). The default only knows of it: stale routes that others keep are used last and may be told to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LongLivedConfig {
    /// How long the peer should keep our routes beyond the restart time, in seconds, up to 2^24 - 1. 0: not at all.
    pub stale_time: u32,
    /// How long, at most, we keep those of the peer, whatever it asks for. Zero: not at all.
    pub keep: Duration,
    /// Whether the peer hears of stale routes though it does not know what they are.
    pub export: StaleExport,
}

/// What becomes of long-lived stale routes towards a peer that has not announced RFC 9494.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StaleExport {
    /// It is not told of them (§4.3).
    #[default]
    Withhold,
    /// An internal peer is told with LOCAL_PREF 0 and NO_EXPORT (§4.6); an external one is not.
    Depreference,
}
