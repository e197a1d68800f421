//! A Kubernetes of two nodes in two subnets with a BIRD router between them. Calidris is installed as users do it:
//! its image, `deploy/kubernetes/calidris.yaml`, and a ConfigMap with a configuration for each node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use super::control_plane::{ControlPlane, items};
use super::kubelet::Kubelet;
use super::programs::Programs;
use crate::binaries::{Binaries, PLUGIN};
use crate::calico;
use crate::daemon::bird::Bird;
use crate::daemon::containerd::Containerd;
use crate::daemon::etcd::{self, Etcd};
use crate::daemon::{ESTABLISHED, Neighbor, Router, RouterConfig};
use crate::eventually::eventually;
use crate::fabric::Fabric;
use crate::image::{self, Image};
use crate::lab::Lab;
use crate::machine::Machine;
use crate::netns::Namespace;
use crate::progress::Progress;
use crate::topology::PoolSpec;

/// The pool that pods get addresses from unless they ask for another.
pub const POOL: &str = "10.244.0.0/16";
/// A pool for pods that ask for it.
pub const SECOND_POOL: &str = "10.250.0.0/24";
/// The name of [`SECOND_POOL`].
pub const SECOND_POOL_NAME: &str = "second";

/// How long the agents and then the nodes may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How long BGP sessions may take.
const SESSIONS_WITHIN: Duration = Duration::from_secs(60);
/// The autonomous system of the router and both nodes: the router reflects.
const AS_NUMBER: u32 = 65001;
/// What users apply.
const MANIFEST: &str = include_str!("../../../deploy/kubernetes/calidris.yaml");
/// What users have in the image.
const CONFLIST: &str = include_str!("../../../deploy/cni/10-calidris.conflist");
/// The image's name in [`MANIFEST`], as containerd completes it.
const IMAGE: &str = "docker.io/library/calidris:0.1.0";

/// Name, subnet, address there, router's address there, address in the management network.
const NODES: [(&str, &str, &str, &str, &str); 2] = [
    ("node1", "rack1", "192.0.2.11/24", "192.0.2.1", "172.31.0.11/24"),
    ("node2", "rack2", "198.51.100.11/24", "198.51.100.1", "172.31.0.12/24"),
];
const ETCD: &str = "172.31.0.1/24";
const CONTROL: &str = "172.31.0.2/24";

/// A Kubernetes that runs. It is taken down with its lab.
#[derive(Debug)]
pub struct Kubernetes {
    /// Its namespaces, processes and control groups.
    pub lab: Lab,
    /// Calidris' datastore.
    pub etcd: Etcd,
    /// Between the nodes' subnets.
    pub router: Bird,
    /// API server and the like.
    pub control: ControlPlane,
    /// Its nodes.
    pub nodes: Vec<KubernetesNode>,
}

/// A node: a machine with containerd and kubelet.
#[derive(Debug)]
pub struct KubernetesNode {
    /// The machine.
    pub machine: Machine,
    /// Its container runtime.
    pub containerd: Containerd,
    /// Its kubelet.
    pub kubelet: Kubelet,
    /// Its address in its rack.
    pub address: IpAddr,
}

impl Kubernetes {
    /// Brings everything up; returns when Kubernetes says that all nodes are ready.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn start(
        lab: Lab,
        binaries: &Binaries,
        programs: &Programs,
        progress: &Progress,
    ) -> anyhow::Result<Self> {
        let ground = Ground::lay(&lab)?;
        let etcd = Etcd::start(&lab, &ground.etcd, address(ETCD)?.ip())?;
        put_pools(&etcd)?;
        let router = start_router(&lab, &ground.router)?;
        progress.step("network, etcd for Calidris, router");
        let images = [
            image::busybox(&lab.folder("busybox-image")?)?,
            calidris_image(&lab.folder("calidris-image")?, binaries)?,
        ];
        progress.step("container images");
        let control = ControlPlane::start(&lab, programs, &ground.control, address(CONTROL)?.ip())?;
        progress.step("control plane, with an etcd of its own");
        let mut nodes = Vec::new();
        for ((name, _, node_address, ..), namespace) in NODES.into_iter().zip(&ground.nodes) {
            let machine = Machine::boot(&lab, name, namespace)?;
            for plugin in ["loopback", "portmap"] {
                let from = Path::new("/usr/lib/cni").join(plugin);
                machine.install(&from, &format!("/opt/cni/bin/{plugin}"))?;
            }
            let containerd = Containerd::start(&lab, &machine, &images)?;
            let node_address = address(node_address)?.ip();
            let kubelet = Kubelet::start(&lab, &machine, (&control, programs), node_address)?;
            progress.step(format_args!("{name}: machine, containerd, kubelet"));
            nodes.push(KubernetesNode {
                machine,
                containerd,
                kubelet,
                address: node_address,
            });
        }
        let kubernetes = Self {
            lab,
            etcd,
            router,
            control,
            nodes,
        };
        kubernetes.install_calidris(progress)?;
        Ok(kubernetes)
    }

    /// The node of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> anyhow::Result<&KubernetesNode> {
        let node = self.nodes.iter().find(|node| node.machine.name() == name);
        node.with_context(|| format!("no node {name}"))
    }

    /// The addresses of pods that Calidris has given out.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn assigned(&self) -> anyhow::Result<BTreeSet<IpAddr>> {
        Ok(calico::addresses(&self.etcd)?.into_keys().collect())
    }

    fn install_calidris(&self, progress: &Progress) -> anyhow::Result<()> {
        let mut files = Map::new();
        for (name, _, node_address, router, _) in NODES {
            files.insert(format!("{name}.toml"), agent_config(name, node_address, router).into());
        }
        self.control.apply(&json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "calidris", "namespace": "kube-system" },
            "data": Value::Object(files),
        }))?;
        let manifest = self.lab.folder("control")?.join("calidris.yaml");
        std::fs::write(&manifest, MANIFEST)?;
        let manifest = manifest.to_str().context("the lab's folder is not UTF-8")?;
        self.control.kubectl(&["apply", "-f", manifest])?;
        eventually("an agent runs on every node, and all nodes are ready", READY_WITHIN, || {
            self.all_ready()
        })?;
        progress.step("Calidris is installed, nodes are ready");
        eventually("BGP sessions with the router are established", SESSIONS_WITHIN, || {
            let sessions = self.router.sessions()?;
            let up = sessions.values().filter(|state| *state == ESTABLISHED).count();
            ensure!(up == NODES.len(), "{sessions:?}");
            Ok(())
        })?;
        progress.step("BGP sessions with the router are established");
        Ok(())
    }

    fn all_ready(&self) -> anyhow::Result<()> {
        let agents = self.control.get(&["daemonset", "calidris", "-n", "kube-system"])?;
        let ready = agents.pointer("/status/numberReady").and_then(Value::as_u64);
        ensure!(
            ready == Some(u64::try_from(NODES.len())?),
            "{}",
            self.control.kubectl(&["get", "pods", "-A", "-o", "wide"])?
        );
        let nodes = self.control.get(&["nodes"])?;
        let ready = items(&nodes)?.iter().filter(|node| is_ready(node)).count();
        ensure!(
            ready == NODES.len(),
            "{}",
            self.control.kubectl(&["get", "nodes", "-o", "wide"])?
        );
        Ok(())
    }
}

/// Whether a node or pod has the condition Ready.
#[must_use]
pub fn is_ready(object: &Value) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let is = |condition: &Value, key: &str, value: &str| {
        condition.get(key).and_then(Value::as_str) == Some(value)
    };
    conditions
        .into_iter()
        .flatten()
        .any(|condition| is(condition, "type", "Ready") && is(condition, "status", "True"))
}

/// The namespaces and the networks between them.
struct Ground {
    etcd: Namespace,
    control: Namespace,
    router: Namespace,
    nodes: Vec<Namespace>,
}

impl Ground {
    fn lay(lab: &Lab) -> anyhow::Result<Self> {
        let fabric = Fabric::create(lab)?;
        for subnet in ["mgmt", "rack1", "rack2"] {
            fabric.add_subnet(subnet)?;
        }
        let plug = |name: &str, subnet: &str, at: &str| -> anyhow::Result<Namespace> {
            let namespace = lab.namespace(name)?;
            fabric.plug((name, &namespace), subnet, address(at)?)?;
            Ok(namespace)
        };
        let ground = Self {
            etcd: plug(etcd::MEMBER, "mgmt", ETCD)?,
            control: plug("control", "mgmt", CONTROL)?,
            router: lab.namespace("router")?,
            nodes: NODES
                .into_iter()
                .map(|(name, .., management)| plug(name, "mgmt", management))
                .collect::<anyhow::Result<_>>()?,
        };
        ground.router.sysctl("net.ipv4.ip_forward", "1")?;
        for ((name, subnet, node_address, router, management), namespace) in NODES.into_iter().zip(&ground.nodes) {
            let node_address = address(node_address)?;
            fabric.plug((name, namespace), subnet, node_address)?;
            let router = IpNetwork::new(router.parse()?, node_address.prefix())?;
            fabric.plug(("router", &ground.router), subnet, router)?;
            // The API server reaches the kubelets without the routes under test.
            let management = address(management)?.ip();
            ground
                .control
                .ip(&format!("route add {} via {management}", node_address.ip()))?;
        }
        Ok(ground)
    }
}

fn address(text: &str) -> anyhow::Result<IpNetwork> {
    text.parse().with_context(|| format!("no address with prefix length: {text:?}"))
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
        calico::put_pool(etcd, &pool)?;
    }
    Ok(())
}

fn start_router(lab: &Lab, namespace: &Namespace) -> anyhow::Result<Bird> {
    let mut announce = Vec::new();
    let mut neighbors = Vec::new();
    for (name, _, node_address, ..) in NODES {
        let node_address = address(node_address)?;
        announce.push(IpNetwork::new(node_address.network(), node_address.prefix())?);
        neighbors.push(Neighbor {
            name: name.to_owned(),
            address: node_address.ip(),
            as_number: AS_NUMBER,
        });
    }
    let config = RouterConfig {
        name: "router".to_owned(),
        router_id: [192, 0, 2, 1].into(),
        as_number: AS_NUMBER,
        hold_time: 9,
        announce,
        neighbors,
    };
    Bird::start(lab, namespace, config)
}

/// What deploy/Containerfile puts into the image, with busybox for Debian's shell.
fn calidris_image(folder: &Path, binaries: &Binaries) -> anyhow::Result<PathBuf> {
    let image = Image::create(IMAGE, folder)?;
    image.add_busybox()?;
    image.add_program(&binaries.agent, "/usr/local/bin/calidris")?;
    image.add_program(Path::new("/usr/sbin/nft"), "/usr/sbin/nft")?;
    let library = "/usr/local/lib/calidris";
    // On the node itself, where it runs, its shared libraries are at hand.
    image.add_file(&binaries.folder.join(PLUGIN), &format!("{library}/{PLUGIN}"))?;
    let conflist = folder.join("conflist");
    std::fs::write(&conflist, CONFLIST)?;
    image.add_file(&conflist, &format!("{library}/10-calidris.conflist"))?;
    image.pack(&["/usr/local/bin/calidris"])
}

/// As deploy/kubernetes/config.yaml has it.
fn agent_config(name: &str, node_address: &str, router: &str) -> String {
    let endpoint = ETCD.split('/').next().unwrap_or_default();
    format!(
        r#"
node_name = "{name}"
[datastore]
endpoints = ["http://{endpoint}:2379"]
[node]
ipv4_address = "{node_address}"
[bgp]
as_number = {AS_NUMBER}
[[bgp.peers]]
name = "router"
address = "{router}"
as_number = {AS_NUMBER}
hold_time = "9s"
connect_retry = "1s"
families = ["ipv4"]
"#
    )
}
