//! STATUS: could an ADD be served now? Nothing is changed.
//!
//! Code 50 says that it could not (the agent is not in sync, the datastore is away, there is no address left); 51 that in
//! addition pods that are there may be hard to reach, since the kernel does not follow.

use calidris_cni::error::{CniError, ErrorCode};
use calidris_cni::spec::NetConf;
use calidris_ipam::{AssignRequest, Store};
use tokio::sync::oneshot;

use super::{CniServer, refusal, request};
use crate::clock;
use crate::inbox::{Message, Readiness};

impl<S: Store + 'static> CniServer<S> {
    /// STATUS for a network with this configuration.
    pub(super) async fn status(&self, config: &NetConf) -> Result<(), CniError> {
        let readiness = self.readiness().await.map_err(|error| CniError {
            code: ErrorCode::UNAVAILABLE,
            ..error
        })?;
        self.could_add(config, &readiness)
            .await
            .map_err(|error| CniError {
                code: if readiness.kernel_fails {
                    ErrorCode::UNAVAILABLE_LIMITED
                } else {
                    ErrorCode::UNAVAILABLE
                },
                ..error
            })
    }

    /// Whether pods can be attached, whatever a network's configuration says.
    pub async fn is_ready(&self) -> bool {
        match self.readiness().await {
            Ok(readiness) => self.require_datastore().is_ok() && in_sync_with_pools(&readiness).is_ok(),
            Err(_) => false,
        }
    }

    async fn could_add(&self, config: &NetConf, readiness: &Readiness) -> Result<(), CniError> {
        self.require_datastore()?;
        if config.ipam_delegate()?.is_some() && readiness.in_sync.datastore {
            // The plugin that manages addresses is asked by ours.
            return Ok(());
        }
        in_sync_with_pools(readiness)?;
        let (v4, v6, pools) = request::wanted_of_network(config)?;
        let request = AssignRequest {
            v4,
            v6,
            pools,
            // A handle that no container can have: names begin with a letter or digit.
            ..AssignRequest::new("-status", &self.config.node)
        };
        self.ipam
            .could_assign(&request, clock::wall())
            .await
            .map_err(|error| refusal::of_assign(&error))
    }

    async fn readiness(&self) -> Result<Readiness, CniError> {
        let (answer, readiness) = oneshot::channel();
        self.ask(Message::Readiness(answer), readiness).await
    }
}

fn in_sync_with_pools(readiness: &Readiness) -> Result<(), CniError> {
    let unavailable = |what: &str| Err(CniError::new(ErrorCode::UNAVAILABLE, what));
    if !readiness.in_sync.datastore {
        unavailable("the agent is reading the datastore")
    } else if readiness.pools == 0 {
        unavailable("there is no IP pool to assign addresses from")
    } else {
        Ok(())
    }
}
