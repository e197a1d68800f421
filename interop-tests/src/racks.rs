//! Two racks with a node each, a BIRD router between them, and an etcd with Calico's resources: the ground for tests
//! with real container runtimes, which bring their own machines.
//!
//! Each node has an autonomous system of its own and speaks EBGP with the router. etcd and nodes also share a
//! management network, so that the datastore does not depend on the routes under test.

use std::net::IpAddr;

use anyhow::Context;
use ipnetwork::IpNetwork;

use crate::calico;
use crate::daemon::bird::Bird;
use crate::daemon::etcd::{self, Etcd};
use crate::daemon::{Neighbor, RouterConfig};
use crate::fabric::Fabric;
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::topology::PoolSpec;

/// The pool that pods get addresses from unless they ask for another.
pub const POOL: &str = "10.244.0.0/16";
/// A pool for pods that ask for it.
pub const SECOND_POOL: &str = "10.250.0.0/24";
/// The name of [`SECOND_POOL`].
pub const SECOND_POOL_NAME: &str = "second";

const MANAGEMENT: &str = "mgmt";
const ETCD: &str = "172.31.0.1/24";
const ROUTER: &str = "router";
const ROUTER_AS: u32 = 65001;
const NODES: [NodePlan; 2] = [
    NodePlan {
        name: "node1",
        subnet: "rack1",
        address: "192.0.2.11/24",
        router: "192.0.2.1/24",
        as_number: 64511,
        management: "172.31.0.11/24",
    },
    NodePlan {
        name: "node2",
        subnet: "rack2",
        address: "198.51.100.11/24",
        router: "198.51.100.1/24",
        as_number: 64512,
        management: "172.31.0.12/24",
    },
];

struct NodePlan {
    name: &'static str,
    subnet: &'static str,
    address: &'static str,
    router: &'static str,
    as_number: u32,
    management: &'static str,
}

/// The ground, laid. It goes with its lab.
#[derive(Debug)]
pub struct Racks {
    /// Calidris' datastore, with two pools.
    pub etcd: Etcd,
    /// The router between the racks.
    pub router: Bird,
    /// The places for nodes.
    pub nodes: Vec<NodeSite>,
    fabric: Fabric,
}

/// How an agent knows its node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnAddress {
    /// It is in its configuration.
    Configured,
    /// Kubernetes tells it.
    OfKubernetes,
}

/// Where a node is to be.
#[derive(Clone, Debug)]
pub struct NodeSite {
    /// Its name.
    pub name: String,
    /// Its network namespace, with all interfaces.
    pub namespace: Namespace,
    /// Its address in its rack.
    pub address: IpAddr,
    /// Its address in the management network.
    pub management: IpAddr,
    /// Its agent's configuration; the sockets are at their usual paths.
    pub agent_config: String,
}

impl Racks {
    /// Makes networks and namespaces, starts etcd and the router. The agents' configuration says how they know their node's
    /// address.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn lay(lab: &Lab, own_address: OwnAddress) -> anyhow::Result<Self> {
        let fabric = Fabric::create(lab)?;
        for subnet in [MANAGEMENT]
            .into_iter()
            .chain(NODES.iter().map(|node| node.subnet))
        {
            fabric.add_subnet(subnet)?;
        }
        let namespace = lab.namespace(etcd::MEMBER)?;
        fabric.plug((etcd::MEMBER, &namespace), MANAGEMENT, address(ETCD)?)?;
        let etcd = Etcd::start(lab, &namespace, address(ETCD)?.ip())?;
        put_pools(&etcd)?;

        let namespace = lab.namespace(ROUTER)?;
        namespace.sysctl("net.ipv4.ip_forward", "1")?;
        for node in &NODES {
            fabric.plug((ROUTER, &namespace), node.subnet, address(node.router)?)?;
        }
        let router = Bird::start(lab, &namespace, &router_config()?)?;
        let nodes = NODES
            .iter()
            .map(|node| node.site(lab, &fabric, own_address))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            etcd,
            router,
            nodes,
            fabric,
        })
    }

    /// Makes a namespace in the management network that reaches the nodes' addresses through it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plug_into_management(&self, lab: &Lab, name: &str, at: IpNetwork) -> anyhow::Result<Namespace> {
        let namespace = lab.namespace(name)?;
        self.fabric.plug((name, &namespace), MANAGEMENT, at)?;
        for node in &self.nodes {
            namespace.ip(&format!("route add {} via {}", node.address, node.management))?;
        }
        Ok(namespace)
    }
}

impl NodePlan {
    fn site(&self, lab: &Lab, fabric: &Fabric, own_address: OwnAddress) -> anyhow::Result<NodeSite> {
        let namespace = lab.namespace(self.name)?;
        fabric.plug((self.name, &namespace), MANAGEMENT, address(self.management)?)?;
        fabric.plug((self.name, &namespace), self.subnet, address(self.address)?)?;
        Ok(NodeSite {
            name: self.name.to_owned(),
            namespace,
            address: address(self.address)?.ip(),
            management: address(self.management)?.ip(),
            agent_config: self.agent_config(own_address)?,
        })
    }

    /// As deploy/kubernetes/config.yaml has it, but for times that a test has to wait for.
    fn agent_config(&self, own_address: OwnAddress) -> anyhow::Result<String> {
        let own_address = match own_address {
            OwnAddress::Configured => format!("ipv4_address = {:?}", self.address),
            OwnAddress::OfKubernetes => "ipv4_detection = \"kubernetes-internal-ip\"".to_owned(),
        };
        Ok(format!(
            r#"node_name = "{name}"
[datastore]
endpoints = ["http://{etcd}:2379"]
[node]
{own_address}
[bgp]
as_number = {as_number}
[[bgp.peers]]
name = "{ROUTER}"
address = "{router}"
as_number = {ROUTER_AS}
hold_time = "9s"
connect_retry = "1s"
families = ["ipv4"]
import = "accept"
export = "own-blocks"
[ipam]
collect_interval = "1s"
collect_grace = "5s"
"#,
            name = self.name,
            etcd = address(ETCD)?.ip(),
            as_number = self.as_number,
            router = address(self.router)?.ip(),
        ))
    }
}

fn address(text: &str) -> anyhow::Result<IpNetwork> {
    text.parse()
        .with_context(|| format!("no address with prefix length: {text:?}"))
}

fn put_pools(etcd: &Etcd) -> anyhow::Result<()> {
    calico::put_cluster_information(etcd)?;
    for (name, cidr) in [("default-ipv4-ippool", POOL), (SECOND_POOL_NAME, SECOND_POOL)] {
        let pool = PoolSpec {
            name: name.to_owned(),
            cidr: cidr.parse()?,
            block_size: 26,
            nat_outgoing: false,
        };
        calico::put_pool(etcd, &pool, calico::PLAIN)?;
    }
    Ok(())
}

fn router_config() -> anyhow::Result<RouterConfig> {
    let mut announce = Vec::new();
    let mut neighbors = Vec::new();
    for node in &NODES {
        let at = address(node.address)?;
        announce.push(IpNetwork::new(at.network(), at.prefix())?);
        neighbors.push(Neighbor {
            name: node.name.to_owned(),
            address: at.ip(),
            as_number: node.as_number,
        });
    }
    Ok(RouterConfig {
        name: ROUTER.to_owned(),
        router_id: [192, 0, 2, 1].into(),
        as_number: ROUTER_AS,
        hold_time: 9,
        announce,
        neighbors,
    })
}
