//! Configurations that are none.

use std::net::IpAddr;

use crate::family::Prefix;
use crate::policy::MAX_TERMS;

/// A configuration the speaker does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// RFC 7607.
    #[error("the local AS is 0; expected 1 to 4294967295")]
    LocalAsZero,
    /// RFC 6286.
    #[error("the router identifier is 0.0.0.0; expected any other address, unique within the AS")]
    RouterIdZero,
    /// Names identify peers.
    #[error("two peers are named {name:?}; expected a name of its own for each")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// An incoming connection is recognised by its address.
    #[error("peers {name:?} and {other:?} have the same address {address}; expected one peer per address")]
    DuplicateAddress {
        /// The later peer.
        name: String,
        /// The earlier one.
        other: String,
        /// Their address.
        address: IpAddr,
    },
    /// RFC 7607.
    #[error("peer {name:?}: the remote AS is 0; expected 1 to 4294967295")]
    RemoteAsZero {
        /// The peer.
        name: String,
    },
    /// RFC 7607.
    #[error("peer {name:?}: its local AS is 0; expected 1 to 4294967295")]
    PeerLocalAsZero {
        /// The peer.
        name: String,
    },
    /// RFC 4271 §4.2.
    #[error("peer {name:?}: hold time {hold_time} s; expected 0 or at least 3")]
    HoldTime {
        /// The peer.
        name: String,
        /// What was asked for.
        hold_time: u16,
    },
    /// RFC 9234 §4.1.
    #[error("peer {name:?}: role {value}; expected one of 0 to 4")]
    Role {
        /// The peer.
        name: String,
        /// What was asked for.
        value: u8,
    },
    /// A part of the limit.
    #[error("peer {name:?}: warning at {percent} percent of the prefix limit; expected 1 to 100")]
    WarnPercent {
        /// The peer.
        name: String,
        /// What was asked for.
        percent: u8,
    },
    /// A refused route stores the number of its term in 16 bits.
    #[error("peer {name:?}: a policy has more than {MAX_TERMS} terms")]
    TooManyTerms {
        /// The peer.
        name: String,
    },
    /// A session without a family carries nothing.
    #[error("peer {name:?}: no address family; expected at least one")]
    NoFamily {
        /// The peer.
        name: String,
    },
    /// One TCP connection, one IP version.
    #[error("peer {name:?}: local address and peer address are of different IP versions")]
    MixedAddresses {
        /// The peer.
        name: String,
    },
    /// The kernel's limits on keys.
    #[error("peer {name:?}: the TCP-MD5 password must have 1 to 80 bytes")]
    Password {
        /// The peer.
        name: String,
    },
    /// One range, one set of rules.
    #[error("ranges {name:?} and {other:?} are both {range}; expected each range once")]
    DuplicateRange {
        /// The later one.
        name: String,
        /// The earlier one.
        other: String,
        /// The range.
        range: Prefix,
    },
    /// A range without peers is none.
    #[error("range {name:?}: at most 0 peers; expected at least 1")]
    NoDynamicPeers {
        /// The range.
        name: String,
    },
    /// One peer behind an interface.
    #[error("peers {name:?} and {other:?} are both behind interface {interface:?}; expected one")]
    DuplicateInterface {
        /// The later peer.
        name: String,
        /// The earlier one.
        other: String,
        /// The interface.
        interface: String,
    },
    /// Its addresses are found.
    #[error("peer {name:?} is behind an interface; expected no address and no local address")]
    AddressOfUnnumbered {
        /// The peer.
        name: String,
    },
    /// Linux would drop its segments.
    #[error(
        "peer {name:?} has no TCP-MD5 password and is inside range {range:?}, which has; expected one for both"
    )]
    UnsignedInRange {
        /// The peer.
        name: String,
        /// The range.
        range: String,
    },
}
