//! Why an operation did not happen. Every error is of one class, which says what to do about it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::resource::ResourceError;
use crate::store::{ErrorClass, StoreError};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Why no address was assigned. Nothing was changed, except perhaps after `Store(UnknownOutcome)`: releasing the handle
/// settles that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    /// The datastore failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else was faster, every time.
    #[error("gave up after {attempts} attempts: other writers were faster each time")]
    Contention {
        /// Number of transactions tried.
        attempts: u32,
    },
    /// The request cannot be met.
    #[error(transparent)]
    Refused(#[from] AssignRefusal),
}

/// Why a request for addresses cannot be met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignRefusal {
    /// `datastoreReady` is false.
    #[error(
        "Calico is currently not ready to process requests: the datastore is locked (datastoreReady is false)"
    )]
    DatastoreLocked,
    /// The request makes no sense in itself.
    #[error("invalid request: {0}")]
    InvalidRequest(String),
    /// A value that is needed cannot be read.
    #[error(transparent)]
    Corrupt(#[from] ResourceError),
    /// A pool was asked for that does not exist or is disabled.
    #[error("the given pool ({pool}) does not exist, or is not enabled")]
    UnknownPool {
        /// Name or CIDR, as asked for.
        pool: String,
    },
    /// A pool needs the node's labels and there is no Node.
    #[error("pool {pool} selects nodes by label, but there is no Node resource {node}")]
    UnknownNode {
        /// The pool.
        pool: String,
        /// The node.
        node: String,
    },
    /// An address was asked for that is in no enabled pool.
    #[error("the requested address {address} is not in an enabled pool")]
    OutsidePools {
        /// The address.
        address: IpAddr,
    },
    /// An address was asked for that somebody has.
    #[error("the requested address {address} is already assigned to {owner}")]
    AlreadyAssigned {
        /// The address.
        address: IpAddr,
        /// Its handle.
        owner: String,
    },
    /// An address was asked for in a block that cannot be used.
    #[error("the requested address {address} is in block {block}, which cannot be used: {why}")]
    BlockUnusable {
        /// The address.
        address: IpAddr,
        /// The block.
        block: IpNetwork,
        /// Why not.
        why: String,
    },
    /// Not enough free addresses: what was tried and why each failed.
    #[error(
        "no free {family} address for node {node} ({assigned} of {wanted} found): {}",
        PoolReports(pools)
    )]
    Exhausted {
        /// The family.
        family: Family,
        /// The node.
        node: String,
        /// How many were asked for.
        wanted: usize,
        /// How many could have been given (none were).
        assigned: usize,
        /// Every pool of the family, with the reason.
        pools: Vec<PoolReport>,
    },
    /// A key that the caller wants to write has changed.
    #[error("{key} was changed by somebody else")]
    ExtraConflict {
        /// The key.
        key: String,
    },
}

/// Why a pool gave no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolReport {
    /// Name of the pool.
    pub pool: String,
    /// The reason.
    pub why: String,
}

/// Why nothing was released.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// The datastore failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else was faster, every time.
    #[error("gave up after {attempts} attempts: other writers were faster each time")]
    Contention {
        /// Number of transactions tried.
        attempts: u32,
    },
    /// The request must not be carried out.
    #[error(transparent)]
    Refused(#[from] ReleaseRefusal),
}

/// Why a release must not be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseRefusal {
    /// `datastoreReady` is false.
    #[error(
        "Calico is currently not ready to process requests: the datastore is locked (datastoreReady is false)"
    )]
    DatastoreLocked,
    /// The request makes no sense in itself.
    #[error("invalid request: {0}")]
    InvalidRequest(String),
    /// A value that is needed cannot be read.
    #[error(transparent)]
    Corrupt(#[from] ResourceError),
    /// The address was released and assigned anew since the caller looked.
    #[error("address {address} was assigned anew: its sequence number is {present}, not {expected}")]
    Reassigned {
        /// The address.
        address: IpAddr,
        /// The caller's number.
        expected: u64,
        /// The number now.
        present: u64,
    },
    /// A key that the caller wants to delete has changed.
    #[error("{key} was changed by somebody else")]
    ExtraConflict {
        /// The key.
        key: String,
    },
}

/// Why nothing was repaired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepairError {
    /// The datastore failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else was faster, every time.
    #[error("gave up after {attempts} attempts: other writers were faster each time")]
    Contention {
        /// Number of transactions tried.
        attempts: u32,
    },
    /// The repair must not be carried out.
    #[error(transparent)]
    Refused(#[from] RepairRefusal),
}

/// Why a repair must not be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepairRefusal {
    /// `datastoreReady` is false.
    #[error(
        "Calico is currently not ready to process requests: the datastore is locked (datastoreReady is false)"
    )]
    DatastoreLocked,
    /// The request makes no sense in itself.
    #[error("invalid request: {0}")]
    InvalidRequest(String),
    /// A value that is needed cannot be read.
    #[error(transparent)]
    Corrupt(#[from] ResourceError),
    /// What the repair is based on has changed since the caller looked.
    #[error("{what} has changed: its sequence number is {present}, not {expected}")]
    Changed {
        /// What.
        what: String,
        /// The caller's number.
        expected: u64,
        /// The number now.
        present: u64,
    },
    /// The block to give back has addresses in use.
    #[error("block {block} has {allocated} addresses in use")]
    InUse {
        /// The block.
        block: IpNetwork,
        /// How many.
        allocated: usize,
    },
    /// The address to free has a handle: it is released by that.
    #[error("{address} belongs to handle {handle_id:?}: release that")]
    HasHandle {
        /// The address.
        address: IpAddr,
        /// Its handle.
        handle_id: String,
    },
    /// A key that the caller wants to delete has changed.
    #[error("{key} was changed by somebody else")]
    ExtraConflict {
        /// The key.
        key: String,
    },
}

/// Why a question was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The datastore failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A value that is needed cannot be read.
    #[error(transparent)]
    Corrupt(#[from] ResourceError),
}

impl AssignError {
    /// What the caller can do.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Contention { .. } => ErrorClass::Transient,
            Self::Refused(AssignRefusal::ExtraConflict { .. }) => ErrorClass::Reevaluate,
            Self::Refused(_) => ErrorClass::Refused,
        }
    }
}

impl ReleaseError {
    /// What the caller can do.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Contention { .. } => ErrorClass::Transient,
            Self::Refused(ReleaseRefusal::ExtraConflict { .. } | ReleaseRefusal::Reassigned { .. }) => {
                ErrorClass::Reevaluate
            }
            Self::Refused(_) => ErrorClass::Refused,
        }
    }
}

impl RepairError {
    /// What the caller can do.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Contention { .. } => ErrorClass::Transient,
            Self::Refused(
                RepairRefusal::Changed { .. }
                | RepairRefusal::InUse { .. }
                | RepairRefusal::HasHandle { .. }
                | RepairRefusal::ExtraConflict { .. },
            ) => ErrorClass::Reevaluate,
            Self::Refused(_) => ErrorClass::Refused,
        }
    }
}

impl Family {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The unspecified address of the family.
    pub(crate) fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

struct PoolReports<'a>(&'a [PoolReport]);

impl fmt::Display for PoolReports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("there is no pool of this family");
        }
        for (index, report) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}pool {}: {}", report.pool, report.why)?;
        }
        Ok(())
    }
}
