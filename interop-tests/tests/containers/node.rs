//! Nodes with containerd as their runtime and Calidris as their network, installed from the files in `deploy/`, and
//! what kubelet does with a pod.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::binaries::{Binaries, PLUGIN};
use calidris_interop::calico;
use calidris_interop::daemon::containerd::{self, Containerd};
use calidris_interop::daemon::{ESTABLISHED, Router};
use calidris_interop::eventually::eventually;
use calidris_interop::image::{self, BUSYBOX_IMAGE, SERVE, ask_script};
use calidris_interop::kernel;
use calidris_interop::lab::Lab;
use calidris_interop::machine::Machine;
use calidris_interop::process::Process;
use calidris_interop::racks::{NodeSite, OwnAddress, Racks};
use calidris_interop::require;
use calidris_interop::require::Need;

use crate::cri::{ContainerConfig, ContainerMetadata, Cri, ImageSpec, LinuxPodSandboxConfig};
use crate::cri::{PodSandboxConfig, PodSandboxMetadata};

const CONFLIST: &str = include_str!("../../../deploy/cni/10-calidris.conflist");
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How many lines of each log are shown when something fails.
const LOG_LINES: usize = 80;
/// How long etcd and the kernels may take to be as before.
const CLEAN_WITHIN: Duration = Duration::from_secs(30);

/// Two nodes in two racks.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    pub(crate) racks: Racks,
    pub(crate) nodes: Vec<Node>,
    /// The archive of the image that containers run.
    pub(crate) image: PathBuf,
}

/// A node.
pub(crate) struct Node {
    pub(crate) machine: Machine,
    pub(crate) containerd: Containerd,
    pub(crate) cri: Cri,
    binaries: Binaries,
    agent: Option<Process>,
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) node: usize,
    pub(crate) sandbox: String,
    pub(crate) address: IpAddr,
    container: String,
}

/// Proves something on a cluster of its own, and that nothing of any container is left afterwards. When it does not hold, the
/// ends of all logs are shown.
pub(crate) fn prove(
    test: &str,
    needs: &[Need],
    body: impl FnOnce(&mut Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    require!(needs);
    let mut cluster = Cluster::start(test)?;
    let held = body(&mut cluster)
        .and_then(|()| cluster.remove_all())
        .and_then(|()| cluster.nothing_is_left());
    if held.is_err() {
        println!("{}", cluster.lab.log_tails(LOG_LINES));
    }
    held?;
    cluster.lab.take_down()
}

impl Cluster {
    /// Brings both nodes up; returns when their agents are ready and have sessions with the router.
    fn start(test: &str) -> anyhow::Result<Self> {
        let lab = Lab::create(&format!("{test}-{}", std::process::id()))?;
        let started = Self::start_in(&lab).inspect_err(|_| println!("{}", lab.log_tails(LOG_LINES)));
        let (racks, nodes, image) = started?;
        Ok(Self {
            lab,
            racks,
            nodes,
            image,
        })
    }

    fn start_in(lab: &Lab) -> anyhow::Result<(Racks, Vec<Node>, PathBuf)> {
        let racks = Racks::lay(lab, OwnAddress::Configured)?;
        let binaries = Binaries::find()?;
        let image = image::busybox(&lab.folder("busybox-image")?)?;
        let mut nodes = Vec::new();
        for site in &racks.nodes {
            nodes.push(Node::start(lab, site, &binaries, &image)?);
        }
        eventually(
            "BGP sessions with the router are established",
            READY_WITHIN,
            || {
                let sessions = racks.router.sessions()?;
                ensure!(
                    sessions.values().all(|state| state == ESTABLISHED),
                    "{sessions:?}"
                );
                Ok(())
            },
        )?;
        Ok((racks, nodes, image))
    }

    /// Does with a pod what kubelet does: sandbox, address, container.
    pub(crate) fn run_pod(&self, node: usize, name: &str, attempt: u32) -> anyhow::Result<Pod> {
        let cri = &self.node(node)?.cri;
        let config = self.node(node)?.sandbox_config(name, attempt);
        let sandbox = cri
            .run_pod_sandbox(&config)
            .with_context(|| format!("run sandbox {name}"))?;
        let address = cri.pod_sandbox_address(&sandbox)?;
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "server".to_owned(),
            }),
            image: Some(ImageSpec {
                image: BUSYBOX_IMAGE.to_owned(),
            }),
            command: ["/bin/sh", "-c", SERVE].map(str::to_owned).to_vec(),
            linux: Some(crate::cri::Empty {}),
        };
        let container = cri.start_container(&sandbox, &config, container)?;
        Ok(Pod {
            node,
            sandbox,
            address: address
                .parse()
                .with_context(|| format!("{name} has the address {address:?}"))?,
            container,
        })
    }

    /// Stops and removes a sandbox as kubelet does: every step as often as it takes.
    pub(crate) fn remove(&self, node: usize, sandbox: &str) -> anyhow::Result<()> {
        let cri = &self.node(node)?.cri;
        eventually(&format!("sandbox {sandbox} is removed"), READY_WITHIN, || {
            cri.stop_pod_sandbox(sandbox)?;
            cri.remove_pod_sandbox(sandbox)?;
            Ok(())
        })
    }

    /// Removes every sandbox that the runtimes know, also those that no caller ever heard of.
    pub(crate) fn remove_all(&self) -> anyhow::Result<()> {
        for (node, place) in self.nodes.iter().enumerate() {
            for sandbox in place.cri.list_pod_sandbox()? {
                self.remove(node, &sandbox.id)?;
            }
        }
        Ok(())
    }

    /// One pod asks another, which sees the asker's own address. Routes of new blocks may have to travel first.
    pub(crate) fn talks_to(&self, asker: &Pod, other: &Pod) -> anyhow::Result<()> {
        let script = ask_script(&[format!("{}:80", other.address)]);
        let what = format!("{} gets an answer from {}", asker.address, other.address);
        eventually(&what, READY_WITHIN, || {
            let seen = self
                .node(asker.node)?
                .cri
                .exec(&asker.container, &["/bin/sh", "-c", &script])?;
            ensure!(seen.trim() == asker.address.to_string(), "it sees {seen:?}");
            Ok(())
        })
    }

    /// Waits until etcd has nothing of pods, nor have the nodes.
    pub(crate) fn nothing_is_left(&self) -> anyhow::Result<()> {
        eventually("nothing of any pod is left", CLEAN_WITHIN, || {
            let etcd = &self.racks.etcd;
            let (addresses, handles) = (calico::addresses(etcd)?, calico::handles(etcd)?);
            let endpoints = calico::workload_endpoints(etcd)?;
            ensure!(
                addresses.is_empty() && handles.is_empty() && endpoints.is_empty(),
                "addresses {addresses:?}, handles {handles:?}, endpoints {endpoints:?}"
            );
            for node in &self.nodes {
                let namespace = node.machine.namespace();
                let mut left = kernel::links(namespace)?;
                left.retain(|link| link.starts_with("cali"));
                let routes = kernel::routes(namespace)?.into_iter().map(|route| route.dst);
                left.extend(routes.filter(|dst| dst.starts_with("10.24") && !dst.contains('/')));
                ensure!(left.is_empty(), "{}: {left:?}", node.machine.name());
            }
            Ok(())
        })
    }

    pub(crate) fn node(&self, node: usize) -> anyhow::Result<&Node> {
        self.nodes.get(node).with_context(|| format!("no node {node}"))
    }
}

impl Node {
    fn start(lab: &Lab, site: &NodeSite, binaries: &Binaries, image: &Path) -> anyhow::Result<Self> {
        let machine = Machine::boot(lab, &site.name, &site.namespace)?;
        machine.install(Path::new("/usr/lib/cni/loopback"), "/opt/cni/bin/loopback")?;
        machine.install(&binaries.folder.join(PLUGIN), &format!("/opt/cni/bin/{PLUGIN}"))?;
        machine.write("/etc/calidris/calidris.toml", &site.agent_config)?;
        machine.write("/etc/cni/net.d/10-calidris.conflist", CONFLIST)?;
        let containerd = Containerd::start(lab, &machine, &[image.to_owned()])?;
        let cri = Cri::new(machine.path(containerd::SOCKET));
        let mut node = Self {
            machine,
            containerd,
            cri,
            binaries: binaries.clone(),
            agent: None,
        };
        node.start_agent(lab)?;
        node.wait_for_network()?;
        Ok(node)
    }

    /// Starts containerd again and waits until it says that it can make sandboxes, as kubelet does.
    pub(crate) fn start_containerd(&mut self, lab: &Lab) -> anyhow::Result<()> {
        self.containerd.launch(lab, &self.machine)?;
        self.wait_for_network()
    }

    fn wait_for_network(&self) -> anyhow::Result<()> {
        eventually("containerd finds the network ready", READY_WITHIN, || {
            ensure!(self.cri.network_is_ready()?, "it does not");
            Ok(())
        })
    }

    /// Starts the agent and waits until it is ready.
    pub(crate) fn start_agent(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let mut command = Command::new(&self.binaries.agent);
        let mut agent = lab.start(self.machine.name(), "agent", &self.machine, command.arg("agent"))?;
        eventually("the agent is ready", READY_WITHIN, || {
            agent.check_alive()?;
            self.machine.run(Command::new(&self.binaries.agent).arg("status"))
        })?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Kills the agent with SIGKILL.
    pub(crate) fn kill_agent(&mut self) -> anyhow::Result<()> {
        self.agent.take().context("no agent runs")?.kill()
    }

    /// What kubelet asks for.
    pub(crate) fn sandbox_config(&self, name: &str, attempt: u32) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-of-{name}"),
                namespace: "default".to_owned(),
                attempt,
            }),
            hostname: name.to_owned(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.machine.cgroup().to_owned(),
            }),
            ..PodSandboxConfig::default()
        }
    }
}
