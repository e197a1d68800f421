//! A whole cluster from a topology: fabric, etcd, routers, nodes with their agents, hosts, pods.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::binaries::Binaries;
use crate::calico;
use crate::cni::Runtime;
use crate::daemon::etcd::{self, Etcd};
use crate::daemon::{ESTABLISHED, Router, start_router};
use crate::eventually::eventually;
use crate::fabric::{self, Fabric};
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::node::{Node, NodeSettings};
use crate::pod::{self, Pod};
use crate::progress::{Progress, Stream};
use crate::topology::{DEMO, Topology};

/// How many lines of each log are shown when something fails.
pub const LOG_LINES: usize = 12;

/// How long routes may take to be everywhere.
const ROUTES_WITHIN: Duration = Duration::from_secs(20);

/// How long all BGP sessions may take to come up.
const SESSIONS_WITHIN: Duration = Duration::from_secs(60);

/// A cluster that runs. It is taken down with its lab.
#[derive(Debug)]
pub struct Cluster {
    /// What it was made from.
    pub topology: Topology,
    /// Its namespaces and processes.
    pub lab: Lab,
    /// Its cables.
    pub fabric: Fabric,
    /// Its datastore.
    pub etcd: Etcd,
    /// Its routers, in the order of the topology.
    pub routers: Vec<NamedRouter>,
    /// Its nodes, in the order of the topology.
    pub nodes: Vec<Node>,
    /// The hosts outside.
    pub hosts: Vec<Host>,
    /// Its pods.
    pub pods: Vec<Pod>,
    binaries: Binaries,
}

/// A router and its name.
#[derive(Debug)]
pub struct NamedRouter {
    /// Its name in the topology.
    pub name: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// The daemon.
    pub daemon: Box<dyn Router + Send>,
}

/// A host outside the cluster.
#[derive(Debug)]
pub struct Host {
    /// Its name in the topology.
    pub name: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its address.
    pub address: IpAddr,
}

impl Cluster {
    /// Brings everything up but pods, and returns when all agents are ready and all BGP sessions are up.
    ///
    /// # Errors
    /// The first step that failed, after showing the ends of all logs; the lab is taken down unless it is kept.
    pub fn start(
        lab: Lab,
        topology: Topology,
        binaries: Binaries,
        progress: &Progress,
    ) -> anyhow::Result<Self> {
        let (fabric, etcd) = start_ground(&lab, &topology, progress)
            .inspect_err(|_| progress.line(lab.log_tails(LOG_LINES)))?;
        let mut cluster = Self {
            topology,
            lab,
            fabric,
            etcd,
            routers: Vec::new(),
            nodes: Vec::new(),
            hosts: Vec::new(),
            pods: Vec::new(),
            binaries,
        };
        cluster
            .bring_up(progress)
            .inspect_err(|_| progress.line(cluster.lab.log_tails(LOG_LINES)))?;
        Ok(cluster)
    }

    /// The demo's cluster with that many nodes, under a name that no other process uses: what a test needs.
    ///
    /// # Errors
    /// As [`Cluster::start`]; also when the programs under test are not built.
    pub fn for_test(test: &str, nodes: usize) -> anyhow::Result<Self> {
        let mut topology = Topology::parse(DEMO)?;
        topology.scale(nodes)?;
        let binaries = Binaries::find()?;
        let lab = Lab::create(&format!("{test}-{}", std::process::id()))?;
        Self::start(lab, topology, binaries, &Progress::start(Stream::Error))
    }

    /// Adds a pod to a node by running the plugin.
    ///
    /// # Errors
    /// When the plugin refuses, or the pod cannot be made.
    pub fn add_pod(&mut self, node: usize, name: &str) -> anyhow::Result<&Pod> {
        let runtime = self.nodes.get(node).context("no such node")?.runtime.clone();
        self.add_pod_by(node, name, &runtime)
    }

    /// As [`Cluster::add_pod`], with an address of a pool.
    ///
    /// # Errors
    /// As there.
    pub fn add_pod_from(&mut self, node: usize, name: &str, pool: &str) -> anyhow::Result<&Pod> {
        let runtime = self.nodes.get(node).context("no such node")?.runtime_for(pool)?;
        self.add_pod_by(node, name, &runtime)
    }

    /// As [`Cluster::add_pod`], by a runtime of the node with a configuration of its own.
    ///
    /// # Errors
    /// As there.
    pub fn add_pod_by(&mut self, node: usize, name: &str, runtime: &Runtime) -> anyhow::Result<&Pod> {
        let node = self.nodes.get(node).context("no such node")?;
        let pod = Pod::start(&self.lab, &self.binaries, (node.name(), runtime), name)?;
        self.pods.push(pod);
        self.pods.last().context("a pod was just added")
    }

    /// Deletes a pod by running the plugin. Its namespace and server stay, as those of a container that is stopping.
    ///
    /// # Errors
    /// When the plugin refuses; the pod is then still listed.
    pub fn delete_pod(&mut self, name: &str) -> anyhow::Result<Pod> {
        let index = self.pods.iter().position(|pod| pod.name == name);
        let index = index.with_context(|| format!("no pod {name}"))?;
        let pod = self.pods.get(index).context("the index was just found")?;
        let node = self.node(&pod.node)?;
        node.runtime.del(&pod.attachment, Some(&pod.added.result))?;
        Ok(self.pods.remove(index))
    }

    /// The node of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> anyhow::Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .with_context(|| format!("no node {name}"))
    }

    /// The node of that name, to change.
    ///
    /// # Errors
    /// When there is none.
    pub fn node_mut(&mut self, name: &str) -> anyhow::Result<(&mut Node, &Lab)> {
        let node = self.nodes.iter_mut().find(|node| node.name() == name);
        Ok((node.with_context(|| format!("no node {name}"))?, &self.lab))
    }

    /// The router of that name, to change.
    ///
    /// # Errors
    /// When there is none.
    pub fn router_mut(&mut self, name: &str) -> anyhow::Result<(&mut NamedRouter, &Lab)> {
        let router = self.routers.iter_mut().find(|router| router.name == name);
        Ok((router.with_context(|| format!("no router {name}"))?, &self.lab))
    }

    /// Waits until every router has a session with every neighbour.
    ///
    /// # Errors
    /// When one does not come up; with the states of all of that router.
    pub fn wait_for_sessions(&self) -> anyhow::Result<()> {
        for router in &self.routers {
            let what = format!("all sessions of {} are established", router.name);
            eventually(&what, SESSIONS_WITHIN, || {
                let sessions = router.daemon.sessions()?;
                ensure!(
                    sessions.values().all(|state| state == ESTABLISHED),
                    "{sessions:?}"
                );
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Waits until every node has a route to every subnet that a router announces.
    ///
    /// # Errors
    /// When a node does not get one; with the routes that it has.
    pub fn wait_for_subnets(&self) -> anyhow::Result<()> {
        let announced = self.topology.routers.iter().flat_map(|router| &router.announce);
        let mut destinations = Vec::new();
        for subnet in announced {
            destinations.push(self.topology.subnet(subnet)?.cidr.to_string());
        }
        for node in &self.nodes {
            eventually(&format!("{} has all routes", node.name()), ROUTES_WITHIN, || {
                let known: Vec<String> = node.routes()?.into_iter().map(|route| route.dst).collect();
                let missing: Vec<_> = destinations
                    .iter()
                    .filter(|subnet| !known.contains(subnet))
                    .collect();
                ensure!(missing.is_empty(), "no route to {missing:?} among {known:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Commands that a person can type to look inside.
    #[must_use]
    pub fn look_inside(&self) -> Vec<String> {
        let routers = self.routers.iter().flat_map(|router| router.daemon.look_inside());
        let nodes = self.nodes.iter().flat_map(Node::look_inside);
        let pods = self
            .pods
            .iter()
            .map(|pod| format!("ip netns exec {} ip address", pod.namespace.name()));
        self.etcd
            .look_inside()
            .into_iter()
            .chain(routers)
            .chain(nodes)
            .chain(pods)
            .collect()
    }

    fn bring_up(&mut self, progress: &Progress) -> anyhow::Result<()> {
        self.start_routers(progress)?;
        self.start_hosts(progress)?;
        self.start_nodes(progress)?;
        self.wait_for_sessions()?;
        progress.step("all BGP sessions are established");
        self.wait_for_subnets()?;
        progress.step("all nodes have learnt the routers' subnets");
        Ok(())
    }

    fn start_routers(&mut self, progress: &Progress) -> anyhow::Result<()> {
        for spec in &self.topology.routers {
            let namespace = self.lab.namespace(&spec.name)?;
            namespace.sysctl("net.ipv4.ip_forward", "1")?;
            for (subnet, address) in &spec.addresses {
                let interface = self.topology.interface(subnet, *address)?;
                self.fabric.plug((&spec.name, &namespace), subnet, interface)?;
            }
            let config = self.topology.router_config(&spec.name)?;
            let daemon = start_router(&self.lab, spec.kind, &namespace, config)?;
            self.routers.push(NamedRouter {
                name: spec.name.clone(),
                namespace,
                daemon,
            });
            progress.step(format_args!(
                "{} ({}, AS {}) answers",
                spec.name, spec.kind, spec.as_number
            ));
        }
        Ok(())
    }

    fn start_hosts(&mut self, progress: &Progress) -> anyhow::Result<()> {
        for spec in &self.topology.hosts {
            let namespace = self.lab.namespace(&spec.name)?;
            let interface = self.topology.interface(&spec.subnet, spec.address)?;
            self.fabric
                .plug((&spec.name, &namespace), &spec.subnet, interface)?;
            let gateway = self.topology.router_address(&spec.router, &spec.subnet)?;
            fabric::default_route(&namespace, gateway)?;
            pod::start_server(&self.lab, &self.binaries, &spec.name, &namespace)?;
            self.hosts.push(Host {
                name: spec.name.clone(),
                namespace,
                address: spec.address,
            });
            progress.step(format_args!(
                "host {} {} outside the cluster",
                spec.name, spec.address
            ));
        }
        Ok(())
    }

    fn start_nodes(&mut self, progress: &Progress) -> anyhow::Result<()> {
        for (index, spec) in self.topology.nodes.iter().enumerate() {
            let namespace = self.lab.namespace(&spec.name)?;
            let address = self.topology.interface(&spec.subnet, spec.address)?;
            self.fabric
                .plug((&spec.name, &namespace), &spec.subnet, address)?;
            let management = &self.topology.management.name;
            let management_address = self.topology.node_management_address(index)?;
            let interface = self.topology.interface(management, management_address)?;
            self.fabric
                .plug((&spec.name, &namespace), management, interface)?;
            pod::start_server(&self.lab, &self.binaries, &spec.name, &namespace)?;
            let router = self.topology.router(&spec.router)?;
            let router_address = self.topology.router_address(&spec.router, &spec.subnet)?;
            let settings = NodeSettings {
                name: spec.name.clone(),
                address,
                as_number: spec.as_number,
                hold_time: self.topology.hold_time,
                router: (router.name.clone(), router_address, router.as_number),
                etcd: self.etcd.endpoint().to_owned(),
                read_back_interval: None,
                log_level: self.topology.log_level.clone(),
                live_migration_settle_time: None,
            };
            let mut node = Node::prepare(&self.lab, &self.binaries, &namespace, settings)?;
            node.start_agent(&self.lab)?;
            self.nodes.push(node);
        }
        for node in &mut self.nodes {
            node.wait_until_ready()?;
            let settings = &node.settings;
            progress.step(format_args!(
                "{} ({}, AS {}): the agent is ready",
                settings.name, settings.address, settings.as_number
            ));
        }
        Ok(())
    }
}

/// What everything else stands on: the networks and the datastore.
fn start_ground(lab: &Lab, topology: &Topology, progress: &Progress) -> anyhow::Result<(Fabric, Etcd)> {
    let fabric = Fabric::create(lab)?;
    for subnet in topology.subnets.iter().chain([&topology.management]) {
        fabric.add_subnet(&subnet.name)?;
        progress.step(format_args!("network {} {}", subnet.name, subnet.cidr));
    }
    let namespace = lab.namespace(etcd::MEMBER)?;
    let address = topology.etcd_address()?;
    let management = &topology.management.name;
    fabric.plug(
        (etcd::MEMBER, &namespace),
        management,
        topology.interface(management, address)?,
    )?;
    let etcd = Etcd::start(lab, &namespace, address)?;
    calico::put_cluster_information(&etcd)?;
    for pool in &topology.pools {
        calico::put_pool(&etcd, pool, calico::PLAIN)?;
    }
    progress.step(format_args!("etcd answers on {}", etcd.endpoint()));
    Ok((fabric, etcd))
}
