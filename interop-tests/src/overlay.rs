//! The proof of the overlays: three nodes in two subnets, one lab that is taken through the modes of its pools.
//!
//! ```text
//!   pod1 - node1 --+-- node2 - pod2        node3 - pod3
//!                rack1 ------ router ------ rack2
//! ```
//!
//! The router knows the nodes' subnets, and pods only where there is BGP ([`Routing`]). In every mode the same is looked at ([`look`]),
//! with a capture on each node's uplink; a change of mode happens under a flood ([`switch`]). The same code runs in namespaces of this
//! machine and of a virtual one ([`crate::vm`]).

mod capture;
mod look;
mod mode;
mod router;
mod switch;

use std::time::Duration;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;
use serde_json::json;

use crate::binaries::{Binaries, PLUGIN};
use crate::calico;
use crate::cni::{self, Runtime};
use crate::daemon::etcd::{self, Etcd};
use crate::eventually::eventually;
use crate::fabric::{self, Fabric};
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::node::NETWORK;
use crate::pod::Pod;
use crate::process::Process;
use crate::progress::Progress;
use crate::topology::PoolSpec;
pub use mode::{Carriage, Mode, Routing, Tour, Way};

/// Time between two datagrams of a flood on a real machine.
pub const PACE: Duration = Duration::from_millis(1);
/// How long a change may take to be everywhere.
const WITHIN: Duration = Duration::from_secs(60);
/// The pools.
pub const POOLS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/64"];

/// A node of this lab.
#[derive(Debug)]
pub struct OverlayNode {
    /// Its name.
    pub name: &'static str,
    /// Its subnet, and the name of its uplink.
    pub subnet: &'static str,
    /// Its addresses, IPv4 and IPv6.
    pub addresses: [IpNetwork; 2],
    /// Its namespace.
    pub namespace: Namespace,
    runtime: Runtime,
    agent: Process,
}

/// The lab, up.
#[derive(Debug)]
pub struct Overlay {
    /// Its namespaces and processes.
    pub lab: Lab,
    /// The nodes.
    pub nodes: Vec<OverlayNode>,
    /// A pod on each node, in the same order.
    pub pods: Vec<Pod>,
    etcd: Etcd,
    binaries: Binaries,
    routing: Routing,
    /// What the pools have, and how often that has changed.
    mode: Mode,
    switches: usize,
}

const NODES: [(&str, &str, [&str; 2], &str); 3] = [
    (
        "node1",
        "rack1",
        ["192.0.2.11/24", "2001:db8:1::11/64"],
        "172.31.0.11/24",
    ),
    (
        "node2",
        "rack1",
        ["192.0.2.12/24", "2001:db8:1::12/64"],
        "172.31.0.12/24",
    ),
    (
        "node3",
        "rack2",
        ["198.51.100.13/24", "2001:db8:2::13/64"],
        "172.31.0.13/24",
    ),
];
const ROUTER: [(&str, [&str; 2]); 2] = [
    ("rack1", ["192.0.2.1/24", "2001:db8:1::1/64"]),
    ("rack2", ["198.51.100.1/24", "2001:db8:2::1/64"]),
];
const MANAGEMENT: &str = "mgmt";
const ETCD: &str = "172.31.0.1/24";

/// Takes a new lab through the modes, and shows in each that everything is as it should be. `pace` is the time between two
/// datagrams of a flood: as little as the machine can do without falling behind.
///
/// # Errors
/// The first thing that is not; the ends of all logs are shown before.
pub fn prove(tour: &Tour, pace: Duration, progress: &Progress) -> anyhow::Result<()> {
    let first = *tour.modes.first().context("no mode to show")?;
    let binaries = Binaries::find()?;
    let lab = Lab::create(&format!("overlay-{}", std::process::id()))?;
    let mut overlay = Overlay::start(lab, binaries, tour.routing, first)?;
    let result = overlay.go_through(tour, pace, progress);
    if result.is_err() {
        progress.line(overlay.lab.log_tails(crate::cluster::LOG_LINES));
        for node in &overlay.nodes {
            for what in ["route", "-6 route", "-d link", "neigh"] {
                progress.line(format!(
                    "--- {} ip {what}\n{}",
                    node.name,
                    node.namespace.ip(what)?
                ));
            }
        }
    }
    result?;
    overlay.lab.take_down()
}

impl Overlay {
    /// Brings the lab up in a mode, with a pod on each node.
    ///
    /// # Errors
    /// The first step that failed; the lab is taken down.
    pub fn start(lab: Lab, binaries: Binaries, routing: Routing, mode: Mode) -> anyhow::Result<Self> {
        let fabric = Fabric::create(&lab)?;
        for subnet in ["rack1", "rack2", MANAGEMENT] {
            fabric.add_subnet(subnet)?;
        }
        let place = lab.namespace(etcd::MEMBER)?;
        let address: IpNetwork = ETCD.parse()?;
        fabric.plug((etcd::MEMBER, &place), MANAGEMENT, address)?;
        let etcd = Etcd::start(&lab, &place, address.ip())?;
        calico::put_cluster_information(&etcd)?;
        let router = lab.namespace("router")?;
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            router.sysctl(key, "1")?;
        }
        for (subnet, [v4, v6]) in ROUTER {
            fabric.plug(("router", &router), subnet, v4.parse()?)?;
            router.ip(&format!("addr add {v6} dev {subnet} nodad"))?;
        }
        if routing == Routing::Bgp {
            router::start(&lab, &router)?;
        }
        let mut overlay = Self {
            lab,
            nodes: Vec::new(),
            pods: Vec::new(),
            etcd,
            binaries,
            routing,
            mode,
            switches: 0,
        };
        overlay.put_pools(mode)?;
        for number in 0..NODES.len() {
            overlay.start_node(&fabric, number)?;
        }
        for node in &overlay.nodes {
            overlay.wait_for_mtu(node, mode)?;
        }
        for (number, node) in overlay.nodes.iter().enumerate() {
            let name = format!("pod{}", number + 1);
            let pod = Pod::start(&overlay.lab, &overlay.binaries, (node.name, &node.runtime), &name)?;
            overlay.pods.push(pod);
        }
        Ok(overlay)
    }

    fn start_node(&mut self, fabric: &Fabric, number: usize) -> anyhow::Result<()> {
        let (name, subnet, addresses, management) = NODES[number];
        let namespace = self.lab.namespace(name)?;
        let [v4, v6]: [IpNetwork; 2] = [addresses[0].parse()?, addresses[1].parse()?];
        fabric.plug((name, &namespace), subnet, v4)?;
        namespace.ip(&format!("addr add {v6} dev {subnet} nodad"))?;
        fabric.plug((name, &namespace), MANAGEMENT, management.parse()?)?;
        for address in router::addresses(subnet)? {
            fabric::default_route(&namespace, address.parse::<IpNetwork>()?.ip())?;
        }
        let folder = self.lab.folder(name)?;
        let socket = folder.join("cni.sock");
        let plugin = json!({ "type": PLUGIN, "socket": socket, "timeout_seconds": 30,
            "ipam": { "assign_ipv4": true, "assign_ipv6": true } });
        let configurations = folder.join("net.d");
        cni::write_configuration(&configurations, NETWORK, &plugin)?;
        let bgp = match self.routing {
            Routing::Direct => String::new(),
            Routing::Bgp => router::peers(number)?,
        };
        let config = format!(
            "node_name = \"{name}\"\n\
             [datastore]\nendpoints = [\"{endpoint}\"]\n\
             [node]\nipv4_detection = \"interface=rack.*\"\nipv6_detection = \"cidr=2001:db8::/32\"\n\
             [dataplane]\ndirect_routes = {direct}\nmtu_interfaces = \"^rack\"\n\
             [cni]\nsocket = \"{folder}/cni.sock\"\n\
             [status]\nsocket = \"{folder}/status.sock\"\n\
             [control]\nsocket = \"{folder}/control.sock\"\n\
             [log]\nlevel = \"info,calidris_agent=debug\"\n{bgp}",
            direct = self.routing == Routing::Direct,
            endpoint = self.etcd.endpoint(),
            folder = folder.display(),
        );
        let file = folder.join("calidris.toml");
        std::fs::write(&file, config)?;
        let mut command = std::process::Command::new(&self.binaries.agent);
        command.arg("agent").arg("--config").arg(&file);
        let agent = self.lab.start(name, "agent", &namespace, &mut command)?;
        let runtime = Runtime {
            namespace: namespace.clone(),
            configurations,
            plugins: vec![self.binaries.folder.clone()],
            capability_arguments: serde_json::Map::new(),
        };
        self.nodes.push(OverlayNode {
            name,
            subnet,
            addresses: [v4, v6],
            namespace,
            runtime,
            agent,
        });
        Ok(())
    }

    fn put_pools(&self, mode: Mode) -> anyhow::Result<()> {
        for (name, cidr) in ["pool4", "pool6"].into_iter().zip(POOLS) {
            let is_ipv6 = cidr.contains(':');
            let pool = PoolSpec {
                name: name.to_owned(),
                cidr: cidr.parse()?,
                block_size: if is_ipv6 { 122 } else { 26 },
                nat_outgoing: true,
            };
            calico::put_pool(&self.etcd, &pool, mode.of_pool(is_ipv6))?;
        }
        Ok(())
    }

    /// Until the node knows its pools, it would give pods the MTU of another mode.
    fn wait_for_mtu(&self, node: &OverlayNode, mode: Mode) -> anyhow::Result<()> {
        eventually(&format!("{} is ready for {mode:?}", node.name), WITHIN, || {
            let status = self.lab.folder(node.name)?.join("status.sock");
            let mut command = std::process::Command::new(&self.binaries.agent);
            let said = node
                .namespace
                .run(command.arg("status").arg("--socket").arg(&status));
            ensure!(said.is_ok(), "status: {said:?}");
            for kind in mode.tunnels() {
                let link = node.namespace.ip(&format!("addr show dev {kind} scope global"))?;
                ensure!(link.contains("UP") && link.contains("inet"), "{kind}: {link}");
            }
            Ok(())
        })
    }

    fn go_through(&mut self, tour: &Tour, pace: Duration, progress: &Progress) -> anyhow::Result<()> {
        for (position, mode) in tour.modes.iter().enumerate() {
            if position > 0 {
                switch::to(self, *mode, pace, progress)?;
            }
            self.wait_for_routes(*mode, &self.pairs())?;
            look::at(self, *mode).with_context(|| format!("in mode {mode:?}"))?;
            progress.step(format_args!("{mode:?} holds"));
        }
        // What a mode without tunnels makes of the uplinks' MTU is not to be seen before a pod has it.
        if let Some(last) = tour.modes.last().filter(|mode| !mode.tunnels().is_empty()) {
            look::larger_packets_are_refused(self, *last)?;
            progress.step("pods with a larger MTU are told so, and TCP follows");
            look::tunnels_and_new_pods_follow_the_uplinks(self, *last)?;
            progress.step(
                "tunnels and new pods follow the MTU of the uplinks; pods that are there are told by ICMP",
            );
        }
        for mode in &tour.changes {
            switch::to(self, *mode, pace, progress)?;
        }
        for node in &mut self.nodes {
            node.agent.check_alive()?;
        }
        Ok(())
    }

    /// Waits until the routes of these nodes to the blocks of those are those of the mode.
    fn wait_for_routes(&self, mode: Mode, pairs: &[(usize, usize)]) -> anyhow::Result<()> {
        for &(from, to) in pairs {
            for address in look::addresses(&self.pods[to])? {
                let node = &self.nodes[from];
                let what = format!("{} reaches {address} by {mode:?}", node.name);
                let way = self.way(mode, address.is_ipv6(), (from, to));
                let link = match way.carriage {
                    Carriage::Plain => node.subnet,
                    Carriage::Vxlan if address.is_ipv6() => "vxlan-v6.calico",
                    Carriage::Vxlan => "vxlan.calico",
                    Carriage::Ipip => "tunl0",
                    Carriage::Nothing => continue,
                };
                let (link, protocol) = (format!("dev {link} "), format!("proto {} ", way.protocol));
                eventually(&what, WITHIN, || {
                    let route = node.namespace.ip(&format!("route get fibmatch {address}"))?;
                    ensure!(route.contains(&link) && route.contains(&protocol), "{route}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// What leads from a node to the pods of another.
    fn way(&self, mode: Mode, is_ipv6: bool, (from, to): (usize, usize)) -> Way {
        let same_subnet = self.nodes[from].subnet == self.nodes[to].subnet;
        mode.way(self.routing, is_ipv6, same_subnet)
    }

    /// Every ordered pair of nodes.
    fn pairs(&self) -> Vec<(usize, usize)> {
        let all = 0..self.nodes.len();
        all.clone()
            .flat_map(|from| all.clone().map(move |to| (from, to)))
            .filter(|(from, to)| from != to)
            .collect()
    }
}
