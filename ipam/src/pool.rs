//! IP pools and reservations (v3 resources), and the arithmetic of addresses inside pools and blocks.
//!
//! Defaults are Calico's: block size 26 (IPv4) and 122 (IPv6), automatic assignment, for workloads and tunnels.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Family;
use crate::resource::Resource;

/// An IP pool.
pub type IpPool = Resource<IpPoolSpec>;

/// An IP reservation.
pub type IpReservation = Resource<IpReservationSpec>;

/// Spec of an IP pool. Fields that are not stored are `None` or empty; methods give the defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpPoolSpec {
    /// The addresses of the pool.
    pub cidr: String,
    /// VXLAN to other nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vxlan_mode: Option<EncapsulationMode>,
    /// IP-in-IP to other nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipip_mode: Option<EncapsulationMode>,
    /// Whether traffic from the pool to outside all pools leaves with the node's address.
    #[serde(default, skip_serializing_if = "is_false")]
    pub nat_outgoing: bool,
    /// No new addresses from this pool.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disabled: bool,
    /// Not announced by BGP.
    #[serde(rename = "disableBGPExport", default, skip_serializing_if = "is_false")]
    pub disable_bgp_export: bool,
    /// Prefix length of the blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u8>,
    /// Which nodes may claim blocks; a selector over the labels of Node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<String>,
    /// Which namespaces may use it; a selector over the labels of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<String>,
    /// What addresses may be used for: `Workload`, `Tunnel`, `LoadBalancer`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_uses: Vec<String>,
    /// Whether addresses are given without asking for the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment_mode: Option<AssignmentMode>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// When traffic between nodes is encapsulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncapsulationMode {
    /// Never.
    #[default]
    Never,
    /// Always.
    Always,
    /// Only to nodes in another subnet.
    CrossSubnet,
}

/// Whether a pool is used without being asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AssignmentMode {
    /// Yes.
    #[default]
    Automatic,
    /// Only for requests that name the pool or an address of it.
    Manual,
}

/// Spec of an IP reservation: addresses that are not assigned automatically.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IpReservationSpec {
    /// The reserved ranges.
    #[serde(rename = "reservedCIDRs", default)]
    pub reserved_cidrs: Vec<String>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A spec that contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Not a CIDR.
    #[error("cidr {0:?} is not a network in CIDR notation")]
    Cidr(String),
    /// Calico allows 20 to 32 (IPv4), 116 to 128 (IPv6), and no block larger than the pool.
    #[error("blockSize {block_size} is not between {least} and {most} for {cidr}")]
    BlockSize {
        /// The block size.
        block_size: u8,
        /// The least allowed here.
        least: u8,
        /// The most allowed here.
        most: u8,
        /// The pool.
        cidr: IpNetwork,
    },
}

/// The addresses of a pool, cut in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// The pool.
    pub(crate) cidr: IpNetwork,
    block_size: u8,
}

impl IpPoolSpec {
    /// The addresses of the pool.
    pub fn network(&self) -> Result<IpNetwork, PoolError> {
        let cidr: IpNetwork = self
            .cidr
            .parse()
            .map_err(|_| PoolError::Cidr(self.cidr.clone()))?;
        // Host bits are passed over, as Calico does.
        IpNetwork::new(cidr.network(), cidr.prefix()).map_err(|_| PoolError::Cidr(self.cidr.clone()))
    }

    /// Whether `use_` is allowed; `Workload` and `Tunnel` are if nothing is said.
    pub fn allows(&self, use_: &str) -> bool {
        if self.allowed_uses.is_empty() {
            return use_ == "Workload" || use_ == "Tunnel";
        }
        self.allowed_uses.iter().any(|allowed| allowed == use_)
    }

    pub(crate) fn geometry(&self) -> Result<Geometry, PoolError> {
        let cidr = self.network()?;
        let (least, default, most) = if cidr.is_ipv4() {
            (20, 26, 32)
        } else {
            (116, 122, 128)
        };
        let least = least.max(cidr.prefix());
        let block_size = self.block_size.filter(|&size| size != 0).unwrap_or(default);
        if !(least..=most).contains(&block_size) {
            return Err(PoolError::BlockSize {
                block_size,
                least,
                most,
                cidr,
            });
        }
        Ok(Geometry { cidr, block_size })
    }
}

impl Geometry {
    pub(crate) fn family(&self) -> Family {
        Family::of(self.cidr.ip())
    }

    /// Number of blocks, as a power of two.
    pub(crate) fn block_bits(&self) -> u8 {
        self.block_size.saturating_sub(self.cidr.prefix())
    }

    /// The block at `index`, counted modulo the number of blocks.
    pub(crate) fn block(&self, index: u128) -> IpNetwork {
        let bits = u32::from(self.block_bits());
        let index = if bits >= 128 {
            index
        } else {
            index & ((1 << bits) - 1)
        };
        let width = width_of(self.cidr);
        let shift = u32::from(width - self.block_size);
        let offset = index.checked_shl(shift).unwrap_or(0);
        cidr_at(self.cidr, to_number(self.cidr.ip()) | offset, self.block_size)
    }

    /// The block that `address` of this pool is in.
    pub(crate) fn block_of(&self, address: IpAddr) -> IpNetwork {
        let shift = u32::from(width_of(self.cidr) - self.block_size);
        let mask = u128::MAX.checked_shl(shift).unwrap_or(0);
        cidr_at(self.cidr, to_number(address) & mask, self.block_size)
    }

    /// Whether `cidr` is inside the pool.
    pub(crate) fn contains_block(&self, cidr: IpNetwork) -> bool {
        cidr.prefix() >= self.cidr.prefix() && self.cidr.contains(cidr.ip())
    }
}

/// The address at `ordinal` of `cidr`.
pub(crate) fn address_at(cidr: IpNetwork, ordinal: usize) -> IpAddr {
    // An ordinal is below 4096 and the CIDR is aligned, so that this cannot overflow for a checked block.
    from_number(cidr, to_number(cidr.ip()).wrapping_add(ordinal as u128))
}

/// The position of `address` in `cidr`, `None` if it is not inside.
pub(crate) fn ordinal_of(cidr: IpNetwork, address: IpAddr) -> Option<usize> {
    if !cidr.contains(address) {
        return None;
    }
    usize::try_from(to_number(address) - to_number(cidr.network())).ok()
}

fn width_of(cidr: IpNetwork) -> u8 {
    if cidr.is_ipv4() { 32 } else { 128 }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn from_number(like: IpNetwork, number: u128) -> IpAddr {
    match like {
        // Only the lower 32 bits are an IPv4 address.
        IpNetwork::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
        IpNetwork::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

fn cidr_at(like: IpNetwork, number: u128, prefix: u8) -> IpNetwork {
    // The prefix was checked against the family's width; the pool itself is what a wrong one would give.
    IpNetwork::new(from_number(like, number), prefix).unwrap_or(like)
}

// serde's skip_serializing_if wants a reference.
fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(cidr: &str, block_size: Option<u8>) -> Result<Geometry, PoolError> {
        let spec = serde_json::json!({"cidr": cidr, "blockSize": block_size});
        serde_json::from_value::<IpPoolSpec>(spec).unwrap().geometry()
    }

    #[test]
    fn a_pool_is_cut_in_blocks_that_cover_it() {
        let pool = geometry("10.244.0.0/16", None).unwrap();
        assert_eq!(pool.block_bits(), 10);
        assert_eq!(pool.block(0).to_string(), "10.244.0.0/26");
        assert_eq!(pool.block(1023).to_string(), "10.244.255.192/26");
        assert_eq!(pool.block(1024), pool.block(0));
        assert_eq!(
            pool.block_of("10.244.174.130".parse().unwrap()).to_string(),
            "10.244.174.128/26"
        );
        let pool = geometry("fd00:10:244::/48", Some(122)).unwrap();
        assert_eq!(pool.block_bits(), 74);
        assert_eq!(
            pool.block(u128::MAX).to_string(),
            "fd00:10:244:ffff:ffff:ffff:ffff:ffc0/122"
        );
        let pool = geometry("10.0.0.8/32", Some(32)).unwrap();
        assert_eq!(
            (pool.block_bits(), pool.block(7).to_string()),
            (0, "10.0.0.8/32".to_owned())
        );
    }

    #[test]
    fn a_block_size_that_calico_refuses_is_an_error() {
        for (cidr, size) in [
            ("10.0.0.0/16", 19),
            ("10.0.0.0/28", 26),
            ("10.0.0.0/16", 33),
            ("fd00::/64", 64),
        ] {
            let error = geometry(cidr, Some(size)).unwrap_err();
            assert!(
                matches!(error, PoolError::BlockSize { .. }),
                "{cidr} {size}: {error}"
            );
        }
        assert_eq!(
            geometry("10.0.0/8", None),
            Err(PoolError::Cidr("10.0.0/8".to_owned()))
        );
    }

    #[test]
    fn an_ordinal_is_the_place_in_the_block() {
        let block: IpNetwork = "fd00::40/122".parse().unwrap();
        for ordinal in [0, 1, 63] {
            assert_eq!(ordinal_of(block, address_at(block, ordinal)), Some(ordinal));
        }
        assert_eq!(ordinal_of(block, "fd00::80".parse().unwrap()), None);
        assert_eq!(ordinal_of(block, "10.0.0.1".parse().unwrap()), None);
    }
}
