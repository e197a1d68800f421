//! How a fresh process knows what is ours. Nothing else is ever changed or deleted.
//!
//! | kind | ours is what |
//! |---|---|
//! | routes | carries protocol [`ROUTE_PROTOCOL_LOCAL`], [`ROUTE_PROTOCOL_BGP`] or [`ROUTE_PROTOCOL_CLUSTER`], in any table |
//! | rules | carries protocol [`ROUTE_PROTOCOL_LOCAL`] (Linux 4.17) |
//! | nexthop objects | has a number of [`NEXTHOP_IDS`] *and* protocol [`ROUTE_PROTOCOL_BGP`] |
//! | links | has a name that begins with [`LINK_PREFIX`] *and* an alias that begins with [`ALIAS_PREFIX`] |
//! | a link group | is [`GROUP_ON_ITS_WAY_OUT`], which is deleted whole |
//! | tunnels | has one of the [`TUNNELS`]' names and is of the kind; removed only with the alias [`TUNNEL_ALIAS`] |
//! | addresses | is a global one on a tunnel of ours that we keep up, or on a link of ours |
//! | neighbours | is a permanent one on a tunnel of ours that we keep up, or on a link with our prefix and carries protocol [`ROUTE_PROTOCOL_LOCAL`] |
//! | proxy neighbours | carries protocol [`ROUTE_PROTOCOL_LOCAL`] (Linux 5.0) |
//! | nftables | is the table `inet calidris` or `arp calidris` ([`NFT_TABLE`]) |
//! | sysctls | is listed in `desired/sysctl.rs`; they are set, never reset |
//!
//! [`Link`](crate::kernel::Link) has the questions about links.
//!
//! A foreign route with the key of one of ours (destination, metric, table) is in the way: ours is then not made
//! and that is reported, unless theirs leads the same way, as Calico's IPv6 routes to its pods do: then nothing is left to do, and it stays. The kernel refuses the creation (`NLM_F_EXCL`), so there is no race. What `ip route append`
//! adds *behind* one of ours is not noticed until ours is replaced. A foreign route that refers to a nexthop group of ours goes with it:
//! the kernel has it so. A proxy neighbour of somebody else does what one of ours would: none is made. One that comes between the look and the
//! creation becomes ours, since the kernel creates over it.

use std::ops::RangeInclusive;

/// Route protocol of routes that follow from the datastore: workloads and blackholes. Not used by any other program
/// known to us (`/etc/iproute2/rt_protos`, FRR and Calico's 80 were looked at).
pub const ROUTE_PROTOCOL_LOCAL: u8 = 202;

/// Route protocol of routes learned by BGP.
pub const ROUTE_PROTOCOL_BGP: u8 = 203;

/// Route protocol of routes to other nodes' blocks that follow from the datastore.
pub const ROUTE_PROTOCOL_CLUSTER: u8 = 204;

/// All route protocols of ours.
pub const ROUTE_PROTOCOLS: [u8; 3] = [ROUTE_PROTOCOL_LOCAL, ROUTE_PROTOCOL_BGP, ROUTE_PROTOCOL_CLUSTER];

/// Numbers of our nexthop objects. The kernel itself counts from 1 up, FRR's zebra likewise; a number in this range that somebody else
/// has is passed over.
pub const NEXTHOP_IDS: RangeInclusive<u32> = 0xca1d_0000..=0xca1d_ffff;

/// Name of the VXLAN device for IPv4, as Calico's: a node that Calico ran on keeps its device.
pub const VXLAN_V4: &str = "vxlan.calico";

/// Name of the VXLAN device for IPv6, as Calico's.
pub const VXLAN_V6: &str = "vxlan-v6.calico";

/// Name of the IPIP device: the one that the kernel makes with the module.
pub const IPIP: &str = "tunl0";

/// Names of all tunnels.
pub const TUNNELS: [&str; 3] = [VXLAN_V4, VXLAN_V6, IPIP];

/// The alias that marks a tunnel that we made or took over: only such a one is removed when it is no longer wanted.
pub const TUNNEL_ALIAS: &str = "calidris:tunnel";

/// What the names of host ends begin with, as Calico's do.
pub const LINK_PREFIX: &str = "cali";

/// What the alias (`ip link set … alias`) of a host end begins with. The endpoint's identity follows.
pub const ALIAS_PREFIX: &str = "calidris:";

/// Link group (`ip link show group …`) of host ends that are being deleted, several at once. Nothing else is in it.
pub const GROUP_ON_ITS_WAY_OUT: u32 = 0x0ca1_1d05;

/// Name of our nftables tables, families `inet` and `arp`.
pub const NFT_TABLE: &str = "calidris";

/// MAC address of every host end: pods ask for 169.254.1.1 and all get the same answer (Calico's choice).
pub const HOST_MAC: [u8; 6] = [0xee; 6];
