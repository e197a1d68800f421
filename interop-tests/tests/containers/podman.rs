//! Under podman with its CNI backend, with the network configuration that containerd on the same node uses: containers of two
//! nodes talk, have the address, MAC address and port of the node that they ask for, and leave nothing.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::eventually::eventually;
use calidris_interop::image::{BUSYBOX, SERVE, ask_script};
use calidris_interop::require::Need;

use super::NEEDS;
use super::node::{Cluster, Node, prove};

/// The name in `deploy/cni/10-calidris.conflist`.
const NETWORK: &str = "k8s-pod-network";
const CONTAINERS_CONF: &str = r#"[network]
network_backend = "cni"
network_config_dir = "/etc/cni/net.d"
cni_plugin_dirs = ["/opt/cni/bin"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;
/// Copies instead of overlays: works on every file system.
const STORAGE_CONF: &str = r#"[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"#;
/// How long containers may take to reach each other.
const TALK_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn containers_of_two_nodes_talk_and_leave_nothing() -> anyhow::Result<()> {
    let needs = [NEEDS, &[Need::Podman]].concat();
    prove("podman", &needs, |cluster| {
        let podmen = [Podman::on(cluster, 0)?, Podman::on(cluster, 1)?];
        let [first, second] = &podmen;
        let asked = [
            "--ip",
            "10.244.77.7",
            "--mac-address",
            "02:00:00:11:22:33",
            "-p",
            "8080:80",
        ];
        let one = first.start("one", &asked)?;
        ensure!(
            one.to_string() == "10.244.77.7",
            "asked for another address than {one}"
        );
        let link = first.podman(&["exec", "one", "ip", "link", "show", "eth0"])?;
        ensure!(link.contains("02:00:00:11:22:33"), "{link}");
        let two = second.start("two", &[])?;
        first.talks("one", one, two)?;
        second.talks("two", two, one)?;
        // The other node asks the port of the first one.
        let address = cluster.racks.nodes.first().context("there are nodes")?.address;
        let script = ask_script(&[format!("{address}:8080")]);
        let seen = second
            .node
            .machine
            .run(Command::new(BUSYBOX).args(["sh", "-c", &script]))?;
        ensure!(!seen.trim().is_empty(), "port 8080 of the node does not answer");

        // The same container again: DEL, then ADD under the same ID.
        first.podman(&["restart", "--time", "2", "one"])?;
        first.talks("one", one, two)?;
        // Its monitor and its process killed: podman finds out, and clears up.
        second.podman(&["kill", "--signal", "KILL", "two"])?;
        first.podman(&["rm", "--force", "--time", "0", "one"])?;
        second.podman(&["rm", "--force", "--time", "0", "two"])?;
        Ok(())
    })
}

/// podman on a node.
struct Podman<'a> {
    node: &'a Node,
    image: String,
}

impl<'a> Podman<'a> {
    fn on(cluster: &'a Cluster, node: usize) -> anyhow::Result<Self> {
        let node = cluster.node(node)?;
        node.machine
            .write("/etc/containers/containers.conf", CONTAINERS_CONF)?;
        node.machine.write("/etc/containers/storage.conf", STORAGE_CONF)?;
        let mut podman = Self {
            node,
            image: String::new(),
        };
        let archive = cluster
            .image
            .to_str()
            .context("the archive's path is not UTF-8")?;
        podman.podman(&["load", "--quiet", "--input", archive])?;
        let image = podman.podman(&["images", "--quiet", "--no-trunc"])?;
        podman.image = image.trim().to_owned();
        Ok(podman)
    }

    /// Starts a server in a container; its address.
    fn start(&self, name: &str, options: &[&str]) -> anyhow::Result<IpAddr> {
        let cgroup = self.node.machine.cgroup();
        let run = [
            "run",
            "--detach",
            "--name",
            name,
            "--network",
            NETWORK,
            "--cgroup-parent",
            cgroup,
            "--entrypoint",
            "/bin/sh",
        ];
        let container = [self.image.as_str(), "-c", SERVE];
        self.podman(&[&run, options, &container].concat())?;
        let format = format!("{{{{(index .NetworkSettings.Networks {NETWORK:?}).IPAddress}}}}");
        let address = self.podman(&["inspect", "--format", &format, name])?;
        address
            .trim()
            .parse()
            .with_context(|| format!("{name} has the address {address:?}"))
    }

    /// A container gets an answer from an address, which sees its own.
    fn talks(&self, container: &str, own: IpAddr, other: IpAddr) -> anyhow::Result<()> {
        let script = ask_script(&[format!("{other}:80")]);
        eventually(
            &format!("{container} gets an answer from {other}"),
            TALK_WITHIN,
            || {
                let seen = self.podman(&["exec", container, "/bin/sh", "-c", &script])?;
                ensure!(seen.trim() == own.to_string(), "it sees {seen:?}");
                Ok(())
            },
        )
    }

    fn podman(&self, words: &[&str]) -> anyhow::Result<String> {
        self.node.machine.run(Command::new("podman").args(words))
    }
}
