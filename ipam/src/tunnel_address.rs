//! The address of a node's tunnel device: one, kept while its pool may be used for it, and given back.

use crate::client::Ipam;
use crate::error::{AssignError, AssignRefusal, Family, ReleaseError};
use crate::keys;
use crate::plan::{
    AddressRequest, AssignRequest, AssignedAddress, IntendedUse, ReleaseRequest, tunnel_pools,
};
use crate::store::{Range, Store};
use crate::timestamp::UnixNanos;
use crate::tunnel::Tunnel;
use crate::view::View;

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
    /// The address of a tunnel device of `node`: the one it has, or a new one if it has none, or if there are other pools to be
    /// used for that than its own. Nothing is written if all is right.
    ///
    /// Where no pool uses such tunnels any more, the address stays: other nodes may send to it still, and when to give it back
    /// is for the caller to say.
    ///
    /// # Errors
    /// As [`Ipam::assign`]; refused with [`crate::AssignRefusal::Exhausted`] if it has none and no pool uses such tunnels.
    pub async fn tunnel_address(
        &self,
        tunnel: Tunnel,
        node: &str,
        now: UnixNanos,
    ) -> Result<AssignedAddress, AssignError> {
        let request = AssignRequest::tunnel(tunnel, node);
        let is_good = async |assigned: &AssignedAddress| {
            let ranges = [
                Range::Prefix(keys::IP_POOLS.to_owned()),
                Range::Key(keys::resource("nodes", node)),
            ];
            let mut view = View::default();
            view.absorb(&ranges, self.store().read(&ranges).await?);
            let pools = tunnel_pools(&view, &request, tunnel.family())?;
            let is_of_one = pools.iter().any(|pool| pool.contains(assigned.address));
            Ok::<bool, AssignError>(is_of_one || pools.is_empty())
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
                ReleaseError::Refused(refusal) => AssignRefusal::InvalidRequest(refusal.to_string()).into(),
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
        assigned
            .addresses
            .first()
            .copied()
            .ok_or_else(|| AssignRefusal::InvalidRequest("the plan gave no address".to_owned()).into())
    }
}
