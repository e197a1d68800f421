//! A Kubernetes of two nodes in two racks. Calidris is installed as users do it: its image,
//! `deploy/kubernetes/calidris.yaml`, and a ConfigMap with a configuration for each node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use super::control_plane::{ControlPlane, items};
use super::kubelet::Kubelet;
use crate::binaries::{Binaries, PLUGIN};
use crate::calico;
use crate::daemon::containerd::Containerd;
use crate::daemon::{ESTABLISHED, Router};
use crate::eventually::eventually;
use crate::image::{self, Image};
use crate::lab::Lab;
use crate::machine::Machine;
use crate::programs::Programs;
use crate::progress::Progress;
use crate::racks::{OwnAddress, Racks};

/// How long the agents and then the nodes may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How long BGP sessions may take.
const SESSIONS_WITHIN: Duration = Duration::from_secs(60);
/// What users apply.
const MANIFEST: &str = include_str!("../../../deploy/kubernetes/calidris.yaml");
/// What the agents' configuration has in addition: they install the network configuration.
const INSTALL: &str = r#"[cni]
conflist_source = "/usr/local/lib/calidris/10-calidris.conflist"
conflist = "/etc/cni/net.d/10-calidris.conflist"
"#;
/// What users have in the image.
const CONFLIST: &str = include_str!("../../../deploy/cni/10-calidris.conflist");
/// The image's name in [`MANIFEST`], as containerd completes it.
const IMAGE: &str = "docker.io/library/calidris:0.1.0";

/// The names under which the plugin is installed on a node.
pub const PLUGINS: [&str; 2] = [PLUGIN, "calidris-ipam"];

/// The API server's address.
const CONTROL: &str = "172.31.0.2/24";

/// A Kubernetes that runs. It is taken down with its lab.
#[derive(Debug)]
pub struct Kubernetes<'a> {
    /// Its namespaces, processes and control groups.
    pub lab: &'a Lab,
    /// The networks, Calidris' datastore, and the router between the nodes.
    pub racks: Racks,
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

impl<'a> Kubernetes<'a> {
    /// Brings everything up; returns when Kubernetes says that all nodes are ready.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn start(
        lab: &'a Lab,
        binaries: &Binaries,
        programs: &Programs,
        progress: &Progress,
    ) -> anyhow::Result<Self> {
        let racks = Racks::lay(lab, OwnAddress::OfKubernetes)?;
        progress.step("network, etcd for Calidris, router");
        let images = [
            image::busybox(&lab.folder("busybox-image")?)?,
            calidris_image(&lab.folder("calidris-image")?, binaries)?,
        ];
        progress.step("container images");
        let at: IpNetwork = CONTROL.parse()?;
        let namespace = racks.plug_into_management(lab, "control", at)?;
        let control = ControlPlane::start(lab, programs, &namespace, at.ip())?;
        progress.step("control plane, with an etcd of its own");
        let mut nodes = Vec::new();
        for site in &racks.nodes {
            let machine = Machine::boot(lab, &site.name, &site.namespace)?;
            machine.install(Path::new("/usr/lib/cni/loopback"), "/opt/cni/bin/loopback")?;
            let containerd = Containerd::start(lab, &machine, &images)?;
            let kubelet = Kubelet::start(lab, &machine, (&control, programs), site.address)?;
            progress.step(format_args!("{}: machine, containerd, kubelet", site.name));
            nodes.push(KubernetesNode {
                machine,
                containerd,
                kubelet,
                address: site.address,
            });
        }
        let kubernetes = Self {
            lab,
            racks,
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
        Ok(calico::addresses(&self.racks.etcd)?.into_keys().collect())
    }

    fn install_calidris(&self, progress: &Progress) -> anyhow::Result<()> {
        let mut files = Map::new();
        for site in &self.racks.nodes {
            let config = format!("{}{INSTALL}", site.agent_config);
            files.insert(format!("{}.toml", site.name), config.into());
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
        eventually(
            "an agent runs on every node, and all nodes are ready",
            READY_WITHIN,
            || self.all_ready(),
        )?;
        progress.step("Calidris is installed, nodes are ready");
        eventually(
            "BGP sessions with the router are established",
            SESSIONS_WITHIN,
            || {
                let sessions = self.racks.router.sessions()?;
                let up = sessions.values().filter(|state| *state == ESTABLISHED).count();
                ensure!(up == self.nodes.len(), "{sessions:?}");
                Ok(())
            },
        )?;
        progress.step("BGP sessions with the router are established");
        Ok(())
    }

    fn all_ready(&self) -> anyhow::Result<()> {
        let agents = self
            .control
            .get(&["daemonset", "calidris", "-n", "kube-system"])?;
        let ready = agents.pointer("/status/numberReady").and_then(Value::as_u64);
        ensure!(
            ready == Some(u64::try_from(self.nodes.len())?),
            "{}",
            self.control.kubectl(&["get", "pods", "-A", "-o", "wide"])?
        );
        let nodes = self.control.get(&["nodes"])?;
        let ready = items(&nodes)?.iter().filter(|node| is_ready(node)).count();
        ensure!(
            ready == self.nodes.len(),
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
    let is =
        |condition: &Value, key: &str, value: &str| condition.get(key).and_then(Value::as_str) == Some(value);
    conditions
        .into_iter()
        .flatten()
        .any(|condition| is(condition, "type", "Ready") && is(condition, "status", "True"))
}

/// What deploy/Containerfile puts into the image, with busybox for Debian's shell.
fn calidris_image(folder: &Path, binaries: &Binaries) -> anyhow::Result<PathBuf> {
    let image = Image::create(IMAGE, folder)?;
    image.add_busybox()?;
    image.add_program(&binaries.agent, "/usr/local/bin/calidris")?;
    image.add_program(Path::new("/usr/sbin/nft"), "/usr/sbin/nft")?;
    let library = "/usr/local/lib/calidris";
    // On the node itself, where it runs, its shared libraries are at hand.
    for name in PLUGINS {
        image.add_file(&binaries.folder.join(PLUGIN), &format!("{library}/{name}"))?;
    }
    let conflist = folder.join("conflist");
    std::fs::write(&conflist, CONFLIST)?;
    image.add_file(&conflist, &format!("{library}/10-calidris.conflist"))?;
    image.pack(&["/usr/local/bin/calidris"])
}
