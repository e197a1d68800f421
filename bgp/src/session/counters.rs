//! What a peer's connections have carried.

use serde::{Deserialize, Serialize};

/// Messages counted since the peer was configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// UPDATE messages received.
    pub updates_in: u64,
    /// UPDATE messages sent.
    pub updates_out: u64,
    /// Messages of any type received.
    pub messages_in: u64,
    /// Messages of any type sent.
    pub messages_out: u64,
    /// OPEN messages received.
    pub opens_in: u64,
    /// OPEN messages sent.
    pub opens_out: u64,
    /// KEEPALIVE messages received.
    pub keepalives_in: u64,
    /// KEEPALIVE messages sent.
    pub keepalives_out: u64,
    /// NOTIFICATION messages received.
    pub notifications_in: u64,
    /// NOTIFICATION messages sent.
    pub notifications_out: u64,
    /// ROUTE-REFRESH messages received.
    pub route_refreshes_in: u64,
    /// ROUTE-REFRESH messages sent.
    pub route_refreshes_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// UPDATE messages whose routes were treated as withdrawn (RFC 7606).
    pub treated_as_withdraw: u64,
    /// Attributes discarded (RFC 7606).
    pub attributes_discarded: u64,
}

impl Counters {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: &Self) -> Self {
        Self {
            updates_in: self.updates_in + other.updates_in,
            updates_out: self.updates_out + other.updates_out,
            messages_in: self.messages_in + other.messages_in,
            messages_out: self.messages_out + other.messages_out,
            opens_in: self.opens_in + other.opens_in,
            opens_out: self.opens_out + other.opens_out,
            keepalives_in: self.keepalives_in + other.keepalives_in,
            keepalives_out: self.keepalives_out + other.keepalives_out,
            notifications_in: self.notifications_in + other.notifications_in,
            notifications_out: self.notifications_out + other.notifications_out,
            route_refreshes_in: self.route_refreshes_in + other.route_refreshes_in,
            route_refreshes_out: self.route_refreshes_out + other.route_refreshes_out,
            bytes_in: self.bytes_in + other.bytes_in,
            bytes_out: self.bytes_out + other.bytes_out,
            treated_as_withdraw: self.treated_as_withdraw + other.treated_as_withdraw,
            attributes_discarded: self.attributes_discarded + other.attributes_discarded,
        }
    }
}
