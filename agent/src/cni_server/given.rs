//! Addresses that another plugin manages (`ipam.type` of our own plugin names it): they come with the request, and all that
//! is kept of them is the endpoint.

use std::net::IpAddr;

use calidris_cni::error::{CniError, ErrorCode};
use calidris_ipam::{Assigned, AssignedAddress, CommitOutcome, Store, Txn, Write};
use ipnetwork::IpNetwork;

use super::{CniServer, refusal};

impl<S: Store + 'static> CniServer<S> {
    /// Writes the endpoint with `addresses`. Whatever is under its key is an older container of the same pod.
    pub(super) async fn write_endpoint(
        &self,
        key: String,
        addresses: &[IpAddr],
        value: impl Fn(&[AssignedAddress]) -> Vec<u8>,
    ) -> Result<Assigned, CniError> {
        if addresses.is_empty() {
            return Err(CniError::new(
                ErrorCode::INVALID_CONFIG,
                "the plugin that ipam.type names gave no address",
            ));
        }
        let given: Vec<AssignedAddress> = addresses
            .iter()
            .map(|&address| AssignedAddress {
                address,
                block: IpNetwork::from(address),
                sequence_number: 0,
            })
            .collect();
        let txn = Txn {
            writes: vec![Write::Put {
                key,
                value: value(&given),
            }],
            ..Txn::default()
        };
        match self.ipam.store().commit(&txn).await {
            Ok(CommitOutcome::Committed { .. }) => Ok(Assigned {
                addresses: given,
                claimed_blocks: Vec::new(),
            }),
            Ok(CommitOutcome::Conflict(_)) => Err(CniError::new(
                ErrorCode::INTERNAL,
                "an unguarded write was refused",
            )),
            Err(error) => Err(refusal::of_store(&error)),
        }
    }
}
