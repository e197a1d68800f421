//! What the TCP connection of a peer needs.

/// What the TCP connection of a peer needs beyond addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TransportConfig {
    /// Key of RFC 2385 (TCP-MD5), 1 to 80 bytes.
    pub md5_password: Option<String>,
    /// Why the key that the peer is meant to have cannot be had: the session stays down until it can.
    pub missing_secret: Option<String>,
    /// How far away the peer may be.
    pub distance: Distance,
}

impl TransportConfig {
    /// Whether segments are, or shall be, signed (RFC 2385).
    pub const fn is_signed(&self) -> bool {
        self.md5_password.is_some() || self.missing_secret.is_some()
    }
}

/// How far away a peer may be, in terms of TTL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Distance {
    /// TTL 1 to EBGP peers, the kernel's default to IBGP peers.
    #[default]
    Auto,
    /// At most this many hops away: packets leave with this TTL.
    Multihop(u8),
    /// RFC 5082: packets leave with TTL 255, and those that come with less than 256 − `hops` are dropped.
    Gtsm {
        /// Hops to the peer, 1 for a neighbour on the same link.
        hops: u8,
    },
}
