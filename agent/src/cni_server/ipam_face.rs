//! Address management for other plugins (`ipam.type` is `calidris-ipam` under `bridge`, `ptp`, `macvlan`, …): addresses
//! only, no link, no route, no endpoint of ours.
//!
//! Keys of the object `ipam`, besides those of our own plugin: `subnet`, what prefix length the addresses are told with:
//! that of the `pool` (default), of the `block`, or `host` (/32, /128); `gateways`, at most one of each family; and
//! `routes`, handed through. With `pool` the gateway is the pool's first address unless one is named; with
//! the others there is none unless named. A gateway is never assigned by this face.
//!
//! Such an address has no endpoint: the collector knows that it is in use by the interface that has it, and GC releases it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use calidris_cni::contract::{Attachment, Operation, Reply, Request};
use calidris_cni::error::{CniError, ErrorCode};
use calidris_cni::result::{AddResult, IpConfig, Route};
use calidris_cni::spec::{AttachmentId, NetConf};
use calidris_ipam::{
    AddressRequest, AllocationBlock, AssignRequest, AssignedAddress, IpPool, Range, ReleaseRequest, Store,
    keys,
};
use ipnetwork::IpNetwork;
use serde::Deserialize;

use super::request::{self, Subject};
use super::{CniServer, refusal};
use crate::clock;

/// How the addresses are told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Subnet {
    #[default]
    Pool,
    Block,
    Host,
}

/// The keys of this face.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Options {
    subnet: Subnet,
    gateways: Vec<IpAddr>,
    routes: Vec<Route>,
}

impl<S: Store + 'static> CniServer<S> {
    /// Serves a request that wants addresses only.
    pub(super) async fn addresses_only(&self, request: &Request) -> Reply {
        let config = &request.config;
        match &request.operation {
            Operation::Add(attachment) => self.give(config, attachment).await.into(),
            Operation::Del(attachment) => self.take_back(config, attachment).await.into(),
            Operation::Check(attachment) => self.check_given(config, attachment).await.into(),
            Operation::Status => self.status(config).await.into(),
            Operation::Gc { valid_attachments } => self.keep_only(config, valid_attachments).await.into(),
        }
    }

    async fn give(&self, config: &NetConf, attachment: &Attachment) -> Result<AddResult, CniError> {
        let subject = request::subject(config, attachment)?;
        let wanted = request::wanted(config, attachment, &subject)?;
        let options = options(config)?;
        let _held = self.locks.hold(&subject.handle_id).await;
        self.require_datastore()?;
        let pools = self.pools().await?;
        if !self.addresses_of(&subject).await?.is_empty() {
            return Err(CniError::new(
                ErrorCode::ALREADY_ATTACHED,
                format!(
                    "container {} already has addresses for {}; DEL comes before another ADD",
                    subject.id.container_id, subject.id.ifname
                ),
            ));
        }
        let mut attributes = BTreeMap::new();
        if let Some((namespace, pod)) = &subject.pod {
            attributes.insert("namespace".to_owned(), namespace.clone());
            attributes.insert("pod".to_owned(), pod.clone());
        }
        let named = |asked: &AddressRequest, gateway: &IpAddr| matches!(asked, AddressRequest::Exactly(addresses) if addresses.contains(gateway));
        let gateways = gateways(&options, &pools);
        if let Some(gateway) = gateways
            .iter()
            .find(|gateway| named(&wanted.v4, gateway) || named(&wanted.v6, gateway))
        {
            return Err(invalid(&format!(
                "{gateway} is the gateway and cannot be assigned"
            )));
        }
        let request = AssignRequest {
            v4: wanted.v4,
            v6: wanted.v6,
            pools: wanted.pools,
            namespace: subject.pod.as_ref().map(|(namespace, _)| namespace.clone()),
            attributes,
            keep: wanted.keep,
            excluded: gateways.iter().copied().map(IpNetwork::from).collect(),
            ..AssignRequest::new(&subject.handle_id, &self.config.node)
        };
        let assigned = match self.ipam.assign(&request, clock::wall()).await {
            Ok(assigned) => assigned,
            Err(error) => {
                // Whatever may still come of it is shut out.
                let _ = self.release_all(&subject.handle_id).await;
                return Err(refusal::of_assign(&error));
            }
        };
        let ips = assigned
            .addresses
            .iter()
            .map(|address| told(address, &options, &pools));
        Ok(AddResult {
            ips: ips.collect(),
            routes: options.routes.clone(),
            ..AddResult::default()
        })
    }

    pub(super) async fn take_back(&self, config: &NetConf, attachment: &Attachment) -> Result<(), CniError> {
        let subject = request::subject(config, attachment)?;
        let _held = self.locks.hold(&subject.handle_id).await;
        self.require_datastore()?;
        self.release_all(&subject.handle_id).await
    }

    async fn check_given(&self, config: &NetConf, attachment: &Attachment) -> Result<(), CniError> {
        let subject = request::subject(config, attachment)?;
        self.require_datastore()?;
        let given = self.addresses_of(&subject).await?;
        if given.is_empty() {
            return Err(CniError::new(
                ErrorCode::CHECK_FAILED,
                format!("no address is assigned to {}", subject.handle_id),
            ));
        }
        let previous = config.prev_result.iter().flat_map(|previous| &previous.ips);
        let listed: BTreeSet<IpAddr> = previous.map(|ip| ip.address.ip()).collect();
        let missing: Vec<String> = given.difference(&listed).map(IpAddr::to_string).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(
            CniError::new(ErrorCode::CHECK_FAILED, "prevResult lacks assigned addresses")
                .with_details(missing.join(", ")),
        )
    }

    /// GC: releases what the network's attachments on this node have that are not listed, in blocks of this node.
    async fn keep_only(&self, config: &NetConf, valid: &[AttachmentId]) -> Result<(), CniError> {
        self.require_datastore()?;
        let valid: BTreeSet<String> = valid
            .iter()
            .map(|id| {
                super::handle_id(&crate::model::EndpointId {
                    network: config.name.clone(),
                    container_id: id.container_id.clone(),
                    ifname: id.ifname.clone(),
                })
            })
            .collect();
        let node = &self.config.node;
        let blocks = self
            .ipam
            .affinities(node)
            .await
            .map_err(|error| refusal::of_read(&error))?;
        let ranges: Vec<Range> = blocks
            .iter()
            .map(|block| Range::Key(keys::block(block.cidr)))
            .collect();
        let snapshot = self.ipam.store().read(&ranges).await;
        let snapshot = snapshot.map_err(|error| refusal::of_store(&error))?;
        let network = format!("{}.", config.name);
        let mut dead: BTreeSet<String> = BTreeSet::new();
        for kv in &snapshot.kvs {
            let Ok(block) = AllocationBlock::parse(&kv.key, &kv.value) else {
                continue;
            };
            let of_network = block.allocations().filter_map(|allocation| {
                let of_node = allocation.attribute.secondary.get("node") == Some(node);
                let handle = allocation.attribute.handle()?.to_owned();
                (of_node && handle.starts_with(&network) && !valid.contains(&handle)).then_some(handle)
            });
            dead.extend(of_network);
        }
        let mut failures = Vec::new();
        for handle_id in dead {
            if let Err(error) = self.release_all(&handle_id).await {
                failures.push(format!("{handle_id}: {error}"));
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(
            CniError::new(ErrorCode::TRY_AGAIN_LATER, "some addresses could not be released")
                .with_details(failures.join("; ")),
        )
    }

    async fn release_all(&self, handle_id: &str) -> Result<(), CniError> {
        let request = ReleaseRequest {
            handle_id: handle_id.to_owned(),
            fence: Some(self.config.node.clone()),
            ..ReleaseRequest::default()
        };
        let released = self.ipam.release(&request, clock::wall()).await;
        released.map(drop).map_err(|error| refusal::of_release(&error))
    }

    async fn addresses_of(&self, subject: &Subject) -> Result<BTreeSet<IpAddr>, CniError> {
        let allocations = self.ipam.addresses_of_handle(&subject.handle_id).await;
        let allocations = allocations.map_err(|error| refusal::of_read(&error))?;
        Ok(allocations.iter().map(|allocation| allocation.address).collect())
    }

    async fn pools(&self) -> Result<Vec<IpNetwork>, CniError> {
        let range = [Range::Prefix(keys::IP_POOLS.to_owned())];
        let snapshot = self.ipam.store().read(&range).await;
        let snapshot = snapshot.map_err(|error| refusal::of_store(&error))?;
        let pools = snapshot.kvs.iter().filter_map(|kv| {
            let pool = IpPool::parse(&kv.key, "IPPool", &kv.value).ok()?;
            pool.spec.network().ok()
        });
        Ok(pools.collect())
    }
}

fn options(config: &NetConf) -> Result<Options, CniError> {
    let options: Options = match config.other.get("ipam") {
        None => Options::default(),
        Some(ipam) => serde_json::from_value(ipam.clone()).map_err(|error| invalid(&error.to_string()))?,
    };
    for is_v4 in [true, false] {
        let of_family = options
            .gateways
            .iter()
            .filter(|gateway| gateway.is_ipv4() == is_v4);
        if of_family.count() > 1 {
            return Err(invalid("gateways: more than one of a family"));
        }
    }
    Ok(options)
}

/// What must not be assigned.
fn gateways(options: &Options, pools: &[IpNetwork]) -> Vec<IpAddr> {
    let mut gateways = options.gateways.clone();
    if options.subnet == Subnet::Pool {
        gateways.extend(pools.iter().filter_map(first_host));
    }
    gateways
}

fn told(assigned: &AssignedAddress, options: &Options, pools: &[IpNetwork]) -> IpConfig {
    let address = assigned.address;
    let subnet = match options.subnet {
        Subnet::Pool => pools.iter().find(|pool| pool.contains(address)).copied(),
        Subnet::Block => Some(assigned.block),
        Subnet::Host => None,
    };
    let named = options
        .gateways
        .iter()
        .find(|gateway| gateway.is_ipv4() == address.is_ipv4());
    let first = subnet.filter(|_| options.subnet == Subnet::Pool);
    let prefix = subnet.map_or(if address.is_ipv4() { 32 } else { 128 }, |subnet| subnet.prefix());
    IpConfig {
        address: IpNetwork::new(address, prefix).unwrap_or_else(|_| IpNetwork::from(address)),
        gateway: named.copied().or_else(|| first.as_ref().and_then(first_host)),
        interface: None,
    }
}

/// The first address after the network's own.
fn first_host(network: &IpNetwork) -> Option<IpAddr> {
    let host = match network.network() {
        IpAddr::V4(address) => IpAddr::V4(u32::from(address).checked_add(1)?.into()),
        IpAddr::V6(address) => IpAddr::V6(u128::from(address).checked_add(1)?.into()),
    };
    network.contains(host).then_some(host)
}

fn invalid(why: &str) -> CniError {
    CniError::new(
        ErrorCode::INVALID_CONFIG,
        format!("invalid network configuration: ipam: {why}"),
    )
}
