//! CHECK: it looks and changes nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use calidris_cni::contract::Attachment;
use calidris_cni::error::{CniError, ErrorCode};
use calidris_cni::spec::NetConf;
use calidris_ipam::Store;
use tokio::sync::oneshot;

use super::request::{self, Subject};
use super::{CniServer, in_thread, refusal};
use crate::datastore::workload_endpoint::parse_mac;
use crate::inbox::Message;
use crate::model::Endpoint;
use crate::pod_link::{self, PodLink, ResultSays};

impl<S: Store + 'static> CniServer<S> {
    /// CHECK: the attachment is known, its addresses are assigned to it and are those of `prevResult`, and the link is
    /// as it was made. Every finding is in the error's details.
    pub(super) async fn check(
        &self,
        config: &NetConf,
        attachment: &Attachment,
        netns: Option<OwnedFd>,
    ) -> Result<(), CniError> {
        let subject = request::subject(config, attachment)?;
        let _held = self.locks.hold(&subject.host_interface).await;
        self.require_datastore()?;
        let Some((id, endpoint)) = self.find(&subject.id).await?.endpoint else {
            return Err(CniError::new(
                ErrorCode::UNKNOWN_CONTAINER,
                format!(
                    "container {} has no {} here",
                    subject.id.container_id, subject.id.ifname
                ),
            ));
        };
        let mut findings = of_previous_result(config, &subject, &endpoint);
        findings.extend(of_host_ports(config, &endpoint)?);
        // What another plugin manages it checks itself.
        if config.ipam_delegate()?.is_none() {
            findings.extend(self.of_allocation(&subject, &endpoint).await?);
        }
        findings.extend(self.of_node(&subject).await?);
        if let Some(netns) = netns {
            let link = PodLink {
                id,
                host_interface: endpoint.host_interface.clone(),
                addresses: endpoint.addresses.clone(),
                mac: endpoint.mac,
                mtu: self.pod_mtu(),
            };
            let result = result_says(config, &subject);
            let seen = in_thread(move || pod_link::inspect(netns.as_fd(), &link, &result)).await?;
            findings.extend(seen.map_err(|error| CniError::new(ErrorCode::DATAPLANE, error.to_string()))?);
        }
        if findings.is_empty() {
            return Ok(());
        }
        Err(
            CniError::new(ErrorCode::CHECK_FAILED, "the attachment is not as it was made")
                .with_details(findings.join("; ")),
        )
    }

    /// What the node's thread finds wrong on its side: link, parameters, routes, nftables. It mends that at once, so that
    /// the next CHECK may be content.
    async fn of_node(&self, subject: &Subject) -> Result<Vec<String>, CniError> {
        let (answer, findings) = oneshot::channel();
        self.ask(Message::Inspect(subject.id.clone(), answer), findings)
            .await
    }

    async fn of_allocation(&self, subject: &Subject, endpoint: &Endpoint) -> Result<Vec<String>, CniError> {
        let allocations = self
            .ipam
            .addresses_of_handle(&subject.handle_id)
            .await
            .map_err(|error| refusal::of_read(&error))?;
        let assigned: BTreeSet<IpAddr> = allocations.iter().map(|allocation| allocation.address).collect();
        let missing = endpoint.addresses.difference(&assigned);
        Ok(missing
            .map(|address| format!("{address} is not assigned to {}", subject.handle_id))
            .collect())
    }
}

/// What `prevResult` says of the container's interface: a plugin after us may have changed its MAC address (tuning does).
fn result_says(config: &NetConf, subject: &Subject) -> ResultSays {
    let Some(previous) = &config.prev_result else {
        return ResultSays::default();
    };
    let interface = previous
        .container_interface(&subject.id.ifname)
        .and_then(|index| previous.interfaces.get(index));
    let default_routes = previous.routes.iter().filter(|route| route.dst.prefix() == 0);
    ResultSays {
        mac: interface.and_then(|interface| parse_mac(&interface.mac)),
        default_routes: default_routes.filter_map(|route| route.gw).collect(),
    }
}

/// Ports of the node that are asked for and not written down. Whether their rules are in the kernel the node's thread says.
fn of_host_ports(config: &NetConf, endpoint: &Endpoint) -> Result<Vec<String>, CniError> {
    let wanted = request::host_ports(config)?;
    let missing = wanted.difference(&endpoint.host_ports);
    Ok(missing
        .map(|mapping| {
            format!(
                "{} host port {} is not mapped",
                mapping.protocol, mapping.host_port
            )
        })
        .collect())
}

/// Where `prevResult` and what we made differ. Later plugins may have added addresses; none may be missing.
fn of_previous_result(config: &NetConf, subject: &Subject, endpoint: &Endpoint) -> Vec<String> {
    let Some(previous) = &config.prev_result else {
        return Vec::new();
    };
    let Some(interface) = previous.container_interface(&subject.id.ifname) else {
        return vec![format!(
            "prevResult has no interface {} in a container",
            subject.id.ifname
        )];
    };
    let listed: BTreeSet<IpAddr> = previous
        .addresses_of(interface)
        .map(|ip| ip.address.ip())
        .collect();
    let missing = endpoint.addresses.difference(&listed);
    missing
        .map(|address| format!("{address} is missing in prevResult"))
        .collect()
}
