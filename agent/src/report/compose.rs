//! From what the parts say to one report: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use calidris_bgp::session::State;
use calidris_bgp::status::{PeerStatus, SpeakerStatus};
use ipnetwork::IpNetwork;

use super::{
    BgpReport, BlockReport, CniReport, DataplaneReport, DatastoreReport, EndpointReport, PeerReport,
    PoolReport, RemoteReport, StatusReport, TunnelReport,
};
use crate::desired::{self, Transport};
use crate::model::{Encapsulation, Learned, LearnedPath, Model, TunnelKind};

/// What the node's thread says of itself.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// What is known.
    pub model: Model,
    /// What is announced by BGP.
    pub announced: BTreeSet<IpNetwork>,
    /// What was done to the kernel.
    pub dataplane: DataplaneReport,
}

/// What the parts of the agent say at one moment.
#[derive(Debug, Clone)]
pub struct Parts {
    /// This node's name.
    pub node: String,
    /// Since the agent started.
    pub uptime: Duration,
    /// The node's thread; `None` if it does not answer.
    pub status: Option<NodeStatus>,
    /// The datastore's connection.
    pub datastore: DatastoreReport,
    /// The speaker, if there is one and it answers.
    pub speaker: Option<SpeakerStatus>,
    /// The CNI server.
    pub cni: CniReport,
}

impl From<Parts> for StatusReport {
    fn from(parts: Parts) -> Self {
        let not_ready = not_ready(&parts);
        let Parts {
            node,
            uptime,
            status,
            datastore,
            speaker,
            cni,
        } = parts;
        let NodeStatus {
            model,
            announced,
            dataplane,
        } = status.unwrap_or_else(|| NodeStatus {
            model: Model::new(node.clone()),
            announced: BTreeSet::new(),
            dataplane: DataplaneReport::default(),
        });
        let own_blocks = model.own_blocks.iter().map(|&cidr| BlockReport {
            cidr,
            used_here: model
                .endpoints
                .values()
                .flat_map(|endpoint| &endpoint.addresses)
                .filter(|&&address| cidr.contains(address))
                .count(),
            announced: announced.contains(&cidr),
        });
        Self {
            format: Self::FORMAT,
            node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: uptime.as_secs(),
            not_ready,
            datastore,
            datastore_in_sync: model.in_sync.datastore,
            bgp_in_sync: model.in_sync.bgp,
            own_blocks: own_blocks.collect(),
            pools: pools(&model),
            tunnels: tunnels(&model),
            endpoints: endpoints(&model),
            learned_routes: learned_routes(&model),
            bgp: speaker.map(|speaker| BgpReport {
                local_as: speaker.local_as,
                router_id: speaker.router_id,
                originated: announced.into_iter().collect(),
                peers: speaker.peers.into_iter().map(peer).collect(),
            }),
            dataplane,
            cni,
        }
    }
}

/// Why pods cannot be served now.
fn not_ready(parts: &Parts) -> Vec<String> {
    let mut reasons = Vec::new();
    if !parts.datastore.connected {
        let why = parts.datastore.error.as_deref().unwrap_or("connecting");
        reasons.push(format!("the datastore is not connected ({why})"));
    }
    match &parts.status {
        None => reasons.push("the agent's node thread does not answer".to_owned()),
        Some(status) => {
            if !status.model.in_sync.datastore {
                reasons.push("the datastore has not been read yet".to_owned());
            }
            if !status.model.in_sync.bgp {
                reasons.push("BGP peers have not sent all their routes yet".to_owned());
            }
        }
    }
    if let Some(speaker) = &parts.speaker
        && !speaker.peers.is_empty()
        && speaker.peers.iter().all(|peer| peer.state != State::Established)
    {
        reasons.push("no BGP session is established".to_owned());
    }
    reasons
}

fn pools(model: &Model) -> BTreeMap<String, PoolReport> {
    let report = |pool: &crate::model::Pool| PoolReport {
        cidr: pool.cidr,
        nat_outgoing: pool.nat_outgoing,
        encapsulation: match pool.encapsulation {
            Encapsulation::None => "none",
            Encapsulation::IpipAlways => "ipip-always",
            Encapsulation::IpipCrossSubnet => "ipip-cross-subnet",
            Encapsulation::VxlanAlways => "vxlan-always",
            Encapsulation::VxlanCrossSubnet => "vxlan-cross-subnet",
        }
        .to_owned(),
        disable_bgp_export: pool.disable_bgp_export,
    };
    model
        .pools
        .iter()
        .map(|(name, pool)| (name.clone(), report(pool)))
        .collect()
}

/// Those that the node should have. What the kernel has of them is in the model, as it has of other interfaces.
fn tunnels(model: &Model) -> Vec<TunnelReport> {
    let wanted = desired::tunnels(model);
    let of_kind = |kind: TunnelKind| {
        let device = kind.interface();
        let (mode, vni, port) = match wanted.get(device)?.transport {
            Transport::Vxlan { vni, port, .. } => ("vxlan", Some(vni), Some(port)),
            Transport::Ipip => ("ipip", None, None),
        };
        let found = model.interfaces.get(device);
        let state = match found {
            Some(found) if found.up => "up",
            Some(_) => "down",
            None => "missing",
        };
        Some(TunnelReport {
            device: device.to_owned(),
            mode: mode.to_owned(),
            state: state.to_owned(),
            vni,
            port,
            address: model.tunnel_addresses.get(&kind).copied().flatten(),
            local: model.own_address(kind.is_ipv6()).map(|address| address.ip()),
            mtu: found.map(|found| found.mtu),
            remotes: remotes(model, kind),
        })
    };
    TunnelKind::ALL.into_iter().filter_map(of_kind).collect()
}

fn remotes(model: &Model, kind: TunnelKind) -> BTreeMap<String, RemoteReport> {
    let nodes = model.cluster.nodes.iter();
    let others = nodes.filter(|(name, _)| **name != model.node_name);
    others
        .filter_map(|(name, node)| {
            let remote = RemoteReport {
                address: *node.tunnels.get(&kind)?,
                node: node.address(kind.is_ipv6())?.ip(),
            };
            Some((name.clone(), remote))
        })
        .collect()
}

fn endpoints(model: &Model) -> Vec<EndpointReport> {
    let report = |(id, endpoint): (&crate::model::EndpointId, &crate::model::Endpoint)| EndpointReport {
        network: id.network.clone(),
        container_id: id.container_id.clone(),
        ifname: id.ifname.clone(),
        host_interface: endpoint.host_interface.clone(),
        addresses: endpoint.addresses.iter().copied().collect(),
        namespace: endpoint.namespace.clone(),
        pod: endpoint.pod.clone(),
    };
    model.endpoints.iter().map(report).collect()
}

fn learned_routes(model: &Model) -> BTreeMap<IpNetwork, Vec<IpAddr>> {
    let next_hops = |learned: &Learned| match &learned.path {
        LearnedPath::Via(next_hops) => next_hops.iter().map(|hop| hop.address).collect(),
        LearnedPath::Blackhole => Vec::new(),
    };
    let learned = model.learned.iter();
    learned
        .map(|(&prefix, route)| (prefix, next_hops(route)))
        .collect()
}

fn peer(status: PeerStatus) -> PeerReport {
    let sum =
        |count: fn(&calidris_bgp::status::FamilyStatus) -> usize| status.families.iter().map(count).sum();
    PeerReport {
        address: status.address,
        remote_as: status.remote_as,
        state: status.state.name().to_owned(),
        since_seconds: status.since.as_secs(),
        received: sum(|family| family.received),
        accepted: sum(|family| family.accepted),
        announced: sum(|family| family.announced),
        established_count: status.established_count,
        last_error: status.last_error.map(|error| error.text),
        name: status.name,
    }
}
