//! The address of a node's tunnel device: allocated under the handles and with the notes that Calico uses, so that either
//! finds what the other has made (calico node/pkg/allocateip).

use std::fmt;

use crate::client::Ipam;
use crate::error::{AssignError, Family, ReleaseError};
use crate::keys;
use crate::plan::{
    AddressRequest, AssignRequest, AssignedAddress, IntendedUse, ReleaseRequest, tunnel_pools,
};
use crate::pool::{EncapsulationMode, IpPoolSpec};
use crate::store::Store;
use crate::timestamp::UnixNanos;
use crate::view::View;

/// A kind of tunnel device that has an address from a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tunnel {
    /// IP-in-IP, `tunl0`.
    Ipip,
    /// VXLAN over IPv4, `vxlan.calico`.
    Vxlan,
    /// VXLAN over IPv6, `vxlan-v6.calico`.
    VxlanV6,
}

impl Tunnel {
    /// The handle of the address on `node`.
    pub fn handle_id(self, node: &str) -> String {
        match self {
            Self::Ipip => format!("ipip-tunnel-addr-{node}"),
            Self::Vxlan => format!("vxlan-tunnel-addr-{node}"),
            Self::VxlanV6 => format!("vxlan-v6-tunnel-addr-{node}"),
        }
    }

    /// What is noted as `type` with the allocation.
    pub fn attribute_type(self) -> &'static str {
        match self {
            Self::Ipip => "ipipTunnelAddress",
            Self::Vxlan => "vxlanTunnelAddress",
            Self::VxlanV6 => "vxlanV6TunnelAddress",
        }
    }

    /// The family of the address.
    pub fn family(self) -> Family {
        match self {
            Self::Ipip | Self::Vxlan => Family::V4,
            Self::VxlanV6 => Family::V6,
        }
    }

    /// Whether the pool sends through this kind of tunnel.
    pub(crate) fn is_used_by(self, pool: &IpPoolSpec) -> bool {
        let mode = match self {
            Self::Ipip => pool.ipip_mode,
            Self::Vxlan | Self::VxlanV6 => pool.vxlan_mode,
        };
        mode.unwrap_or_default() != EncapsulationMode::Never
    }
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipip => "IP-in-IP",
            Self::Vxlan => "VXLAN",
            Self::VxlanV6 => "VXLAN (IPv6)",
        })
    }
}

impl AssignRequest {
    /// A request for the address of a tunnel device of `node`: one, from a pool that uses such tunnels, allows the use
    /// `Tunnel` and selects the node. Made again it finds the address that is there.
    pub fn tunnel(tunnel: Tunnel, node: &str) -> Self {
        let mut request = Self::new(&tunnel.handle_id(node), node);
        let one = AddressRequest::Count(1);
        match tunnel.family() {
            Family::V4 => request.v4 = one,
            Family::V6 => request.v6 = one,
        }
        request.intended_use = IntendedUse::Tunnel(tunnel);
        request
            .attributes
            .insert("type".to_owned(), tunnel.attribute_type().to_owned());
        request
    }
}

impl<S: Store> Ipam<S> {
    /// The address of a tunnel device of `node`: the one it has, or a new one if it has none or its pool may no longer be
    /// used for that. Nothing is written if all is right.
    ///
    /// # Errors
    /// As [`Ipam::assign`]; refused with [`crate::AssignRefusal::Exhausted`] if no pool uses such tunnels.
    pub async fn tunnel_address(
        &self,
        tunnel: Tunnel,
        node: &str,
        now: UnixNanos,
    ) -> Result<AssignedAddress, AssignError> {
        let request = AssignRequest::tunnel(tunnel, node);
        let is_good = async |assigned: &AssignedAddress| {
            let ranges = [
                crate::store::Range::Prefix(keys::IP_POOLS.to_owned()),
                crate::store::Range::Key(keys::resource("nodes", node)),
            ];
            let mut view = View::default();
            view.absorb(&ranges, self.store().read(&ranges).await?);
            let pools = tunnel_pools(&view, &request, tunnel.family())?;
            Ok::<bool, AssignError>(pools.iter().any(|pool| pool.contains(assigned.address)))
        };
        let first = self.one(&request, now).await?;
        if is_good(&first).await? {
            return Ok(first);
        }
        self.release_tunnel_address(tunnel, node, now)
            .await
            .map_err(|error| match error {
                ReleaseError::Store(error) => AssignError::Store(error),
                ReleaseError::Contention { attempts } => AssignError::Contention { attempts },
                ReleaseError::Refused(refusal) => {
                    crate::error::AssignRefusal::InvalidRequest(refusal.to_string()).into()
                }
            })?;
        self.one(&request, now).await
    }

    /// Gives the address of a tunnel device back; nothing to do if there is none.
    ///
    /// # Errors
    /// As [`Ipam::release`].
    pub async fn release_tunnel_address(
        &self,
        tunnel: Tunnel,
        node: &str,
        now: UnixNanos,
    ) -> Result<(), ReleaseError> {
        let request = ReleaseRequest {
            handle_id: tunnel.handle_id(node),
            fence: Some(node.to_owned()),
            ..ReleaseRequest::default()
        };
        self.release(&request, now).await.map(drop)
    }

    async fn one(&self, request: &AssignRequest, now: UnixNanos) -> Result<AssignedAddress, AssignError> {
        let assigned = self.assign(request, now).await?;
        // A request for one is answered with one or refused.
        assigned.addresses.first().copied().ok_or_else(|| {
            crate::error::AssignRefusal::InvalidRequest("the plan gave no address".to_owned()).into()
        })
    }
}
