//! ADD: addresses and WorkloadEndpoint in one transaction, the link, the route; or nothing at all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use calidris_cni::contract::{Attachment, Request};
use calidris_cni::error::{CniError, ErrorCode};
use calidris_cni::result::{AddResult, Dns, Interface, IpConfig, Route};
use calidris_ipam::{AddressRequest, AssignRequest, Assigned, AssignedAddress, Expect, ExtraWrite, Store};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::request::{self, Subject, Wanted};
use super::stages::{Stage, Stages, timed};
use super::{CniServer, ending, in_thread, refusal};
use crate::clock;
use crate::datastore::workload_endpoint::{self, Written, mac_text};
use crate::inbox::Message;
use crate::model::{Endpoint, EndpointId, Input};
use crate::ours::HOST_MAC;
use crate::pod_link::{self, Earlier, Families, NewLink, PodLinkError};

impl<S: Store + 'static> CniServer<S> {
    /// Attaches the container.
    pub(super) async fn add(
        &self,
        request: &Request,
        attachment: &Attachment,
        netns: Option<OwnedFd>,
        stages: &mut Stages,
    ) -> Result<AddResult, CniError> {
        let subject = request::subject(&request.config, attachment)?;
        let wanted = request::wanted(&request.config, attachment, &subject)?.with(&request.addresses);
        let netns = netns.ok_or_else(|| {
            CniError::new(
                ErrorCode::INVALID_ENVIRONMENT,
                "CNI_NETNS: the plugin sent no namespace",
            )
        })?;
        let deadline = Instant::from_std(clock::now() + self.time_for(request));
        let since = clock::now();
        let _held = timeout_at(deadline, self.locks.hold(&subject.host_interface))
            .await
            .map_err(|_| too_late("another request for the same pod"))?;
        stages.over(Stage::Wait, since);
        self.require_datastore()?;
        // From here on the node's thread hears how it ended: attached, or, by the undoing, detached.
        let found = self.begin(&subject.id).await?;
        if !found.in_sync.datastore {
            return Err(CniError::new(
                ErrorCode::TRY_AGAIN_LATER,
                "the agent has just started and is reading the datastore",
            ));
        }
        if let Some(known) = &found.endpoint {
            if self.has_link(known).await? {
                return Err(CniError::new(
                    ErrorCode::ALREADY_ATTACHED,
                    format!(
                        "container {} already has {}; DEL comes before another ADD",
                        subject.id.container_id, subject.id.ifname
                    ),
                ));
            }
            // Its namespace has gone without a DEL, as at a reboot; now the container is started again.
            warn!(
                container = subject.id.container_id,
                "added before, and never deleted: what is left of it goes first"
            );
            self.tear_down(&subject, Some(known), stages).await?;
            let coming = Message::Input(Input::Attaching(subject.id.clone()));
            self.inbox.send(coming).await.map_err(|_| ending())?;
        }
        match self.attach((&subject, &wanted), netns, deadline, stages).await {
            Ok((endpoint, gateways, mtu)) => Ok(result(
                &subject,
                &endpoint,
                (&gateways, mtu),
                &attachment.netns_path,
            )),
            Err(error) => {
                self.undo_attaching(&subject).await;
                Err(error)
            }
        }
    }

    /// Whether the attachment has its link still.
    pub(super) async fn has_link(&self, (id, endpoint): &(EndpointId, Endpoint)) -> Result<bool, CniError> {
        let (id, host_interface) = (id.clone(), endpoint.host_interface.clone());
        let is_there = in_thread(move || pod_link::is_there(&host_interface, &id)).await?;
        is_there.map_err(|error| of_link(&error))
    }

    async fn attach(
        &self,
        (subject, wanted): (&Subject, &Wanted),
        netns: OwnedFd,
        deadline: Instant,
        stages: &mut Stages,
    ) -> Result<(Endpoint, Vec<IpAddr>, u32), CniError> {
        let mtu = self.pod_mtu();
        let new_link = NewLink {
            id: subject.id.clone(),
            host_interface: subject.host_interface.clone(),
            mac: Some(wanted.mac),
            mtu,
            families: Families {
                v4: wanted.v4 != AddressRequest::None,
                v6: wanted.v6 != AddressRequest::None,
            },
        };
        // The pair is made while the addresses are being committed; but if there is a link of an earlier container of the
        // same pod, which has to go for it, then only when there are addresses. Not under the deadline, and always waited
        // for: a thread cannot be stopped, and what it makes must be known to be undone.
        let netns = Arc::new(netns);
        let prepare = |earlier| {
            let (netns, link) = (Arc::clone(&netns), new_link.clone());
            async move {
                let _turn = self.making_links.acquire().await.map_err(|_| ending())?;
                in_thread(move || pod_link::prepare(netns.as_fd(), link, earlier)).await
            }
        };
        let ((assigned, datastore), (prepared, link)) = tokio::join!(
            timed(self.assign(subject, wanted, deadline)),
            timed(prepare(Earlier::Stays))
        );
        stages.note(Stage::Datastore, datastore);
        stages.note(Stage::Link, link);
        let (assigned, prepared) = (assigned?, prepared?);
        let prepared = match prepared {
            Err(PodLinkError::Earlier(_)) => prepare(Earlier::Goes).await?,
            other => other,
        }
        .map_err(|error| of_link(&error))?;
        let addresses: BTreeSet<IpAddr> = assigned
            .addresses
            .iter()
            .map(|assigned| assigned.address)
            .collect();
        let endpoint = endpoint(subject, wanted, addresses.clone());
        debug!(container = subject.id.container_id, addresses = ?endpoint.addresses, "assigned");
        // The node's side needs the host end only, and is made so while the pod's end gets its addresses.
        let made = prepared.host_end();
        let input = Input::Attached {
            id: subject.id.clone(),
            endpoint: endpoint.clone(),
            claimed_blocks: assigned.claimed_blocks.iter().copied().collect(),
        };
        let ((completed, pod), (applied, node)) = tokio::join!(
            timed(in_thread(move || prepared.complete(&addresses))),
            timed(timeout_at(deadline, self.apply_made(input, made)))
        );
        stages.note(Stage::Pod, pod);
        stages.note(Stage::Node, node);
        let gateways = completed?.map_err(|error| of_link(&error))?.gateways;
        applied.map_err(|_| too_late("the kernel"))??.map_err(|why| {
            CniError::new(ErrorCode::DATAPLANE, "the kernel did not take the pod's route")
                .with_details(why.to_string())
        })?;
        self.wait_for_announcement(&assigned, stages).await?;
        Ok((endpoint, gateways, mtu))
    }

    async fn assign(
        &self,
        subject: &Subject,
        wanted: &Wanted,
        deadline: Instant,
    ) -> Result<Assigned, CniError> {
        let now = clock::wall();
        let written = Written {
            id: subject.id.clone(),
            endpoint: endpoint(subject, wanted, BTreeSet::new()),
        };
        let (node, uid) = (self.config.node.clone(), clock::uuid());
        let pod = subject
            .pod
            .as_ref()
            .map(|(namespace, pod)| (namespace.as_str(), pod.as_str()));
        // Whatever is there is an older container of the same pod: its DEL sees that it has been replaced.
        let key = workload_endpoint::key(&self.config.node, &subject.id, pod);
        let value = move |addresses: &[AssignedAddress]| {
            let mut written = written.clone();
            written.endpoint.addresses = addresses.iter().map(|assigned| assigned.address).collect();
            workload_endpoint::compose(&node, &written, &uid, now).to_json()
        };
        if let Some(given) = &wanted.given {
            return self.write_endpoint(key, given, value).await;
        }
        let write = ExtraWrite::new(key, Expect::Anything, value);
        let mut attributes = BTreeMap::new();
        if let Some((namespace, pod)) = &subject.pod {
            attributes.insert("namespace".to_owned(), namespace.clone());
            attributes.insert("pod".to_owned(), pod.clone());
        }
        let request = AssignRequest {
            v4: wanted.v4.clone(),
            v6: wanted.v6.clone(),
            pools: wanted.pools.clone(),
            namespace: subject.pod.as_ref().map(|(namespace, _)| namespace.clone()),
            attributes,
            keep: wanted.keep.clone(),
            extra_writes: vec![write],
            ..AssignRequest::new(&subject.handle_id, &self.config.node)
        };
        timeout_at(deadline, self.ipam.assign(&request, now))
            .await
            .map_err(|_| too_late("the datastore"))?
            .map_err(|error| refusal::of_assign(&error))
    }
}

fn result(
    subject: &Subject,
    endpoint: &Endpoint,
    (gateways, mtu): (&[IpAddr], u32),
    netns_path: &str,
) -> AddResult {
    let mtu = Some(mtu);
    let host = Interface {
        name: endpoint.host_interface.clone(),
        mac: mac_text(HOST_MAC),
        mtu,
        ..Interface::default()
    };
    let container = Interface {
        name: subject.id.ifname.clone(),
        mac: endpoint.mac.map(mac_text).unwrap_or_default(),
        mtu,
        sandbox: netns_path.to_owned(),
        ..Interface::default()
    };
    let ips = endpoint.addresses.iter().map(|&address| IpConfig {
        address: IpNetwork::from(address),
        gateway: None,
        interface: Some(1),
    });
    AddResult {
        interfaces: vec![host, container],
        ips: ips.collect(),
        routes: gateways
            .iter()
            .filter_map(|gateway| default_route(*gateway))
            .collect(),
        dns: Dns::default(),
    }
}

fn endpoint(subject: &Subject, wanted: &Wanted, addresses: BTreeSet<IpAddr>) -> Endpoint {
    let (namespace, pod) = subject.pod.clone().unzip();
    Endpoint {
        host_interface: subject.host_interface.clone(),
        addresses,
        mac: Some(wanted.mac),
        namespace,
        pod,
        host_ports: wanted.host_ports.clone(),
        allowed_sources: wanted.allowed_sources.clone(),
    }
}

/// The default route through a gateway.
fn default_route(gateway: IpAddr) -> Option<Route> {
    let dst = match gateway {
        IpAddr::V4(_) => IpNetwork::V4(Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).ok()?),
        IpAddr::V6(_) => IpNetwork::V6(Ipv6Network::new(Ipv6Addr::UNSPECIFIED, 0).ok()?),
    };
    Some(Route {
        dst,
        gw: Some(gateway),
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
    })
}

fn of_link(error: &PodLinkError) -> CniError {
    let code = match error {
        PodLinkError::Namespace(_) | PodLinkError::HostNamespace => ErrorCode::INVALID_ENVIRONMENT,
        // The only name that somebody else can have in the pod is that of its interface.
        PodLinkError::Kernel(error) if error.errno() == Some(libc::EEXIST) => ErrorCode::ALREADY_ATTACHED,
        PodLinkError::NameTaken(_)
        | PodLinkError::Earlier(_)
        | PodLinkError::Kernel(_)
        | PodLinkError::Remover(_) => ErrorCode::DATAPLANE,
    };
    CniError::new(code, error.to_string())
}

fn too_late(what: &str) -> CniError {
    CniError::new(
        ErrorCode::TRY_AGAIN_LATER,
        format!("the time allowed is over while waiting for {what}; everything was undone"),
    )
}
