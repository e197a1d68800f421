//! What should be, computed from the model: pure. One file a kind, paired with the file of the same name in `apply/`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// What the kernel and the BGP speaker should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Routes of ours.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Kernel parameters: path below `/proc/sys` to value.
    pub sysctls: BTreeMap<String, String>,
    /// Source ranges to be translated when the destination is outside `nat_exempt`.
    pub nat_sources: BTreeSet<IpNetwork>,
    /// Destinations inside the cluster: all pools.
    pub nat_exempt: BTreeSet<IpNetwork>,
    /// Prefixes to announce by BGP.
    pub announcements: BTreeSet<IpNetwork>,
}

/// What makes a route one route in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Routing table, 254 for main.
    pub table: u32,
    /// Destination, host bits zero.
    pub destination: IpNetwork,
    /// Metric (`priority`); IPv6 has no 0, there 0 means the kernel's default 1024.
    pub priority: u32,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Straight to a link, scope link: a workload.
    Link {
        /// Interface name.
        interface: String,
    },
    /// Through one or several gateways.
    Via {
        /// The gateways; several make a multipath route.
        gateways: BTreeSet<Gateway>,
    },
    /// Dropped silently: unused addresses of own blocks, so that they do not loop through the default route.
    Blackhole,
}

/// One gateway of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// Its address.
    pub address: IpAddr,
    /// Interface, where the address alone does not say.
    pub interface: Option<String>,
}
