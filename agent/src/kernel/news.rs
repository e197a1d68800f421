//! What the kernel reports by itself. It concerns what the dataplane has read back, and so never enters the model.

use std::collections::{BTreeMap, BTreeSet};

use super::{Link, ObservedNeighbor};
use crate::desired::NeighborKey;

/// One report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelNews {
    /// Something we may own changed: read that kind back.
    Changed(KernelChange),
    /// Of links with our prefix, by name: the last of what the kernel said of each.
    WorkloadLinks(BTreeMap<String, LinkNews>),
    /// Links that went down and are up again, by name.
    Bounced(BTreeSet<String>),
    /// Of neighbours on links with our prefix: the last of what the kernel said of each; `None`: it is gone, or what is found is not
    /// known any more.
    WorkloadNeighbors(BTreeMap<NeighborKey, Option<ObservedNeighbor>>),
}

/// What the kernel said of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkNews {
    /// It was so.
    Seen(Link),
    /// The one with this index is gone.
    Gone(u32),
}

/// Which kind of kernel object changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelChange {
    /// Links appeared, vanished or changed.
    Links,
    /// Routes changed.
    Routes,
    /// Rules of ours changed.
    Rules,
    /// Addresses changed.
    Addresses,
    /// Neighbours on a tunnel changed.
    Neighbors,
    /// Parameters of all interfaces changed, as forwarding.
    Sysctls,
    /// Our nftables tables changed.
    Nft,
    /// The monitor lost messages: everything must be read back.
    Everything,
}
