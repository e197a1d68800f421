//! DEL and GC: everything of an attachment goes, and nothing of anybody else.
//!
//! The identity is (network, container, interface). A pod that was started again has the same name, the same host
//! interface and the same key in the datastore as its former self; a late DEL of the old container leaves all of that
//! alone and frees the old container's addresses only.

use std::collections::BTreeSet;

use calidris_cni::args::CniArgs;
use calidris_cni::contract::Attachment;
use calidris_cni::error::{CniError, ErrorCode};
use calidris_cni::spec::{AttachmentId, NetConf};
use calidris_ipam::{OwnRecord, ReleaseRequest, Store};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::lock::Held;
use super::request::{self, Subject};
use super::stages::{Stage, Stages};
use super::{CniServer, refusal};
use crate::clock;
use crate::datastore::workload_endpoint;
use crate::inbox::{Found, Message};
use crate::model::{Endpoint, EndpointId, Input, Model};
use crate::pod_link::PodLinkError;

/// An attachment that no other request is about, as long as this is kept.
#[derive(Debug)]
pub(super) struct Claimed {
    /// What the node knows of it.
    pub(super) found: Found,
    _held: (Held, Option<Held>),
}

impl<S: Store + 'static> CniServer<S> {
    /// Detaches the container; nothing to do if it is not attached.
    pub(super) async fn detach(
        &self,
        config: &NetConf,
        attachment: &Attachment,
        stages: &mut Stages,
    ) -> Result<(), CniError> {
        let subject = request::subject(config, attachment)?;
        let claimed = self.claim(&subject, stages).await?;
        let found = &claimed.found;
        let is_read = found.in_sync.datastore;
        self.tear_down(&subject, found.endpoint.as_ref(), stages).await?;
        if is_read {
            Ok(())
        } else {
            Err(CniError::new(
                ErrorCode::TRY_AGAIN_LATER,
                "the agent has just started and is reading the datastore",
            ))
        }
    }

    /// Waits until no other request is about the attachment, and looks it up.
    pub(super) async fn claim(&self, subject: &Subject, stages: &mut Stages) -> Result<Claimed, CniError> {
        let since = clock::now();
        let held = self.locks.hold(&subject.host_interface).await;
        stages.over(Stage::Wait, since);
        let found = self.find(&subject.id).await?;
        // A runtime may call DEL without CNI_ARGS: then the host interface is known only from what was stored.
        let other_name = found
            .endpoint
            .as_ref()
            .map(|(_, endpoint)| endpoint.host_interface.as_str());
        let also_held = match other_name.filter(|name| *name != subject.host_interface) {
            Some(name) => Some(self.locks.hold(name).await),
            None => None,
        };
        Ok(Claimed {
            found,
            _held: (held, also_held),
        })
    }

    /// Removes route, link, WorkloadEndpoint and addresses. The caller holds the locks.
    pub(super) async fn tear_down(
        &self,
        subject: &Subject,
        known: Option<&(EndpointId, Endpoint)>,
        stages: &mut Stages,
    ) -> Result<(), CniError> {
        let id = known.map_or(&subject.id, |(id, _)| id).clone();
        let host_interface = known
            .map_or(&subject.host_interface, |(_, endpoint)| &endpoint.host_interface)
            .clone();
        let pod = match known {
            Some((_, endpoint)) => endpoint.kubernetes_pod(),
            None => subject
                .pod
                .as_ref()
                .map(|(namespace, pod)| (namespace.as_str(), pod.as_str())),
        };
        let key = workload_endpoint::key(&self.config.node, &id, pod);

        let since = clock::now();
        if let Err(why) = self.apply(Input::Detached(id.clone())).await? {
            debug!(%why, "detached, but the kernel does not follow yet");
        }
        stages.over(Stage::Node, since);
        let since = clock::now();
        let removed = self.remover.remove(&host_interface, &id).await;
        stages.over(Stage::Link, since);
        match removed {
            Ok(_) => {}
            // Somebody else's, Calico's perhaps: it goes with the pod's namespace.
            Err(error @ PodLinkError::NameTaken(_)) => warn!(%error, "the link stays"),
            Err(error) => return Err(CniError::new(ErrorCode::DATAPLANE, error.to_string())),
        }
        self.require_datastore()?;
        let since = clock::now();
        self.release(subject, key).await?;
        stages.over(Stage::Datastore, since);
        Ok(())
    }

    /// Frees the addresses and deletes the WorkloadEndpoint, if it is this container's, in one transaction; as long as it
    /// is what was found, so that an ADD whose answer was lost leaves no endpoint behind when it takes effect meanwhile.
    async fn release(&self, subject: &Subject, key: String) -> Result<(), CniError> {
        let record = {
            let (node, key, id) = (self.config.node.clone(), key.clone(), subject.id.clone());
            OwnRecord::new(key.clone(), move |value| is_own(&node, &key, &id, value))
        };
        let request = ReleaseRequest {
            handle_id: subject.handle_id.clone(),
            fence: Some(self.config.node.clone()),
            ..ReleaseRequest::default()
        };
        let released = self.ipam.release_with(&request, &record, clock::wall()).await;
        let addresses = released
            .map_err(|error| refusal::of_release(&error))?
            .addresses
            .len();
        debug!(container = subject.id.container_id, addresses, "released");
        Ok(())
    }

    /// GC: detaches every container of the network that is not listed. Goes on after a failure and tells them all.
    pub(super) async fn collect(&self, config: &NetConf, valid: &[AttachmentId]) -> Result<(), CniError> {
        self.require_datastore()?;
        let model = self.model().await?;
        let valid: BTreeSet<&AttachmentId> = valid.iter().collect();
        let mut failures = Vec::new();
        for (id, endpoint) in model.endpoints.iter().filter(|(id, _)| id.network == config.name) {
            let attachment = attachment_of(id, endpoint);
            if valid.contains(&attachment.id) {
                continue;
            }
            match self.detach(config, &attachment, &mut Stages::default()).await {
                Ok(()) => debug!(container = id.container_id, "GC: detached"),
                Err(error) => failures.push(format!("{}/{}: {error}", id.container_id, id.ifname)),
            }
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(CniError::new(
                ErrorCode::TRY_AGAIN_LATER,
                "some attachments could not be removed",
            )
            .with_details(failures.join("; ")))
        }
    }

    /// What the node's thread knows.
    pub(super) async fn model(&self) -> Result<Model, CniError> {
        let (answer, status) = oneshot::channel();
        Ok(self.ask(Message::Status(answer), status).await?.model)
    }
}

/// Whether the WorkloadEndpoint with this value is that of the container, and not of another one of the same pod.
fn is_own(node: &str, key: &str, id: &EndpointId, value: &[u8]) -> bool {
    match workload_endpoint::read(node, key, value) {
        Ok(Some(written)) => written.id.container_id == id.container_id && written.id.ifname == id.ifname,
        Ok(None) => false,
        Err(why) => {
            warn!(key, %why, "a WorkloadEndpoint that cannot be read stays");
            false
        }
    }
}

/// The attachment as a runtime would name it in a DEL.
pub(super) fn attachment_of(id: &EndpointId, endpoint: &Endpoint) -> Attachment {
    let (pod_namespace, pod_name) = endpoint.kubernetes_pod().unwrap_or_default();
    Attachment {
        id: AttachmentId {
            container_id: id.container_id.clone(),
            ifname: id.ifname.clone(),
        },
        netns_path: String::new(),
        args: CniArgs {
            pod_namespace: pod_namespace.to_owned(),
            pod_name: pod_name.to_owned(),
            ..CniArgs::default()
        },
    }
}
