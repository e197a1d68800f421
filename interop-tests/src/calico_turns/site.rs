//! etcd and two nodes, each with our agent and both plugins, and the containers that are there.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use crate::binaries::{Binaries, PLUGIN};
use crate::calico;
use crate::cni::{self, Attachment, Runtime};
use crate::daemon::etcd::{self, Etcd};
use crate::eventually::eventually;
use crate::fabric::{self, Fabric};
use crate::lab::Lab;
use crate::netns::{Namespace, printed};
use crate::node::{NETWORK, Node, NodeSettings};
use crate::pod::attachment;
use crate::programs::Programs;
use crate::progress::Progress;
use crate::random::Random;

const SUBNET: &str = "lan";
/// The name under which our plugin manages addresses for others.
const OUR_IPAM: &str = "calidris-ipam";
const CONFIGURATION: &str = "/calico/ipam/v2/config";
/// How long the kernel may take to clear up a namespace.
const GONE_WITHIN: Duration = Duration::from_secs(20);
const AS_NUMBER: u32 = 64512;
/// The names of the nodes, and the last number of their addresses.
const NODES: [(&str, u8); 2] = [("node-a", 11), ("node-b", 12)];

/// What is applied with `calicoctl` before anything else. Small blocks, so that both nodes come to the end of theirs.
const RESOURCES: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: { name: four }
spec: { cidr: 10.90.0.0/26, blockSize: 29 }
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: { name: six }
spec: { cidr: 'fd00:90::/116', blockSize: 122 }
---
apiVersion: projectcalico.org/v3
kind: IPReservation
metadata: { name: gateways }
spec: { reservedCIDRs: [10.90.0.0/30, 10.90.0.63/32] }
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: { name: node-a, labels: { rack: r1 } }
spec: { bgp: { ipv4Address: 192.0.2.11/24 } }
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: { name: node-b, labels: { rack: r2 } }
spec: { bgp: { ipv4Address: 192.0.2.12/24 } }
";

/// Whose plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Ours,
    Calicos,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Ours, Self::Calicos];
}

/// Whether a node may borrow from blocks of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Affinity {
    Strict,
    Loose,
}

/// A container that was added.
#[derive(Clone, Debug)]
pub(super) struct Container {
    /// Where it is in [`Site::nodes`].
    pub(super) node: usize,
    pub(super) by: Side,
    pub(super) attachment: Attachment,
    pub(super) namespace: Namespace,
    result: Value,
    pub(super) addresses: Vec<IpAddr>,
}

/// The whole of it.
pub(super) struct Site<'a> {
    lab: &'a Lab,
    programs: &'a Programs,
    calidris: PathBuf,
    etcd: Etcd,
    namespace: Namespace,
    pub(super) nodes: Vec<Node>,
    calicos: Vec<Runtime>,
    /// By container ID.
    pub(super) containers: BTreeMap<String, Container>,
    made: usize,
    pub(super) random: Random,
}

impl<'a> Site<'a> {
    pub(super) fn start(
        lab: &'a Lab,
        (binaries, programs): (&Binaries, &'a Programs),
        seed: u64,
        progress: &Progress,
    ) -> anyhow::Result<Self> {
        let fabric = Fabric::create(lab)?;
        fabric.add_subnet(SUBNET)?;
        let namespace = lab.namespace(etcd::MEMBER)?;
        fabric.plug((etcd::MEMBER, &namespace), SUBNET, address(1)?)?;
        let mut site = Self {
            lab,
            programs,
            calidris: binaries.agent.clone(),
            etcd: Etcd::start(lab, &namespace, address(1)?.ip())?,
            namespace,
            nodes: Vec::new(),
            calicos: Vec::new(),
            containers: BTreeMap::new(),
            made: 0,
            random: Random::new(seed, 0),
        };
        let resources = site.file("resources.yaml")?;
        std::fs::write(&resources, RESOURCES)?;
        site.calicoctl(&format!("apply -f {}", resources.display()))?;
        progress.step("calicoctl has written pools, reservations and nodes");
        for (index, (name, number)) in NODES.into_iter().enumerate() {
            let node_namespace = lab.namespace(name)?;
            fabric.plug((name, &node_namespace), SUBNET, address(number)?)?;
            // Without one the kernel answers nobody's ARP for 169.254.1.1, which is how Calico's containers find the node.
            fabric::default_route(&node_namespace, address(1)?.ip())?;
            let other = NODES[(index + 1) % NODES.len()];
            let settings = NodeSettings {
                name: name.to_owned(),
                address: address(number)?,
                as_number: AS_NUMBER,
                hold_time: 9,
                router: (other.0.to_owned(), address(other.1)?.ip(), AS_NUMBER),
                etcd: site.etcd.endpoint().to_owned(),
                read_back_interval: None,
                log_level: "info,calidris_agent=debug".to_owned(),
                live_migration_settle_time: None,
            };
            let node = Node::prepare(lab, binaries, &node_namespace, settings)?;
            let folder = lab.folder(name)?;
            write_our_configuration(&node, &folder)?;
            let ipam = json!({ "type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true" });
            site.calicos
                .push(site.calicos_runtime(&node, "net.d-calico", &ipam)?);
            site.nodes.push(node);
        }
        for node in &mut site.nodes {
            node.start_agent(lab)?;
        }
        for node in &mut site.nodes {
            node.wait_until_ready()?;
        }
        progress.step("two nodes with agents; either plugin may be used on each");
        Ok(site)
    }

    /// The runtime that uses Calico's plugin on the first node, and our address management below it.
    pub(super) fn calico_with_our_ipam(&self) -> anyhow::Result<Runtime> {
        let node = self.nodes.first().context("no node")?;
        let socket = self.lab.folder(node.name())?.join("cni.sock");
        let ipam = json!({ "type": OUR_IPAM, "socket": socket, "assign_ipv6": "true", "subnet": "host" });
        let mut runtime = self.calicos_runtime(node, "net.d-mixed", &ipam)?;
        let plugins = self.lab.folder("plugins")?;
        let ours = self.calidris.with_file_name(PLUGIN);
        std::os::unix::fs::symlink(ours, plugins.join(OUR_IPAM))?;
        runtime.plugins.push(plugins);
        Ok(runtime)
    }

    /// The runtime that uses Calico's plugin on a node, configured in a folder of the node's.
    fn calicos_runtime(&self, node: &Node, configurations: &str, ipam: &Value) -> anyhow::Result<Runtime> {
        let folder = self.lab.folder(node.name())?;
        let configurations = folder.join(configurations);
        // Nothing of it lies outside the lab.
        let plugin = json!({
            "type": "calico",
            "datastore_type": "etcdv3",
            "etcd_endpoints": self.etcd.endpoint(),
            "nodename": node.name(),
            "nodename_file_optional": true,
            "ipam_lock_file": folder.join("ipam.lock"),
            "log_file_path": folder.join("calico.log"),
            "log_level": "warning",
            "ipam": ipam,
        });
        cni::write_configuration(&configurations, NETWORK, &plugin)?;
        Ok(Runtime {
            namespace: node.namespace.clone(),
            configurations,
            plugins: vec![self.programs.folder().to_owned()],
            capability_arguments: serde_json::Map::new(),
        })
    }

    pub(super) fn runtime(&self, side: Side, node: usize) -> anyhow::Result<&Runtime> {
        let runtime = match side {
            Side::Ours => self.nodes.get(node).map(|node| &node.runtime),
            Side::Calicos => self.calicos.get(node),
        };
        runtime.with_context(|| format!("no node {node}"))
    }

    /// A container that no plugin knows yet.
    pub(super) fn new_container(&mut self) -> anyhow::Result<(Attachment, Namespace)> {
        self.made += 1;
        let name = format!("c{}", self.made);
        let namespace = self.lab.namespace(&name)?;
        let attachment = Attachment {
            pod: None,
            ..attachment(&name, &namespace)?
        };
        Ok((attachment, namespace))
    }

    /// Adds a container with the plugin of `side`.
    pub(super) fn add(&mut self, side: Side, node: usize) -> anyhow::Result<Container> {
        let (attachment, namespace) = self.new_container()?;
        let added = self.runtime(side, node)?.add(&attachment);
        let added = added.with_context(|| format!("ADD by {side:?} on node {node}"))?;
        self.note((side, node), (attachment, namespace), added.result)
    }

    /// Notes what an ADD gave; fails if somebody has the address already.
    pub(super) fn note(
        &mut self,
        (by, node): (Side, usize),
        (attachment, namespace): (Attachment, Namespace),
        result: Value,
    ) -> anyhow::Result<Container> {
        let addresses = addresses_of(&result)?;
        for (id, other) in &self.containers {
            let twice = addresses.iter().find(|address| other.addresses.contains(address));
            ensure!(
                twice.is_none(),
                "{twice:?} was given by {by:?} while {id} has it, added by {:?}",
                other.by
            );
        }
        let container = Container {
            node,
            by,
            attachment,
            namespace,
            result,
            addresses,
        };
        let id = container.attachment.container_id.clone();
        self.containers.insert(id, container.clone());
        Ok(container)
    }

    /// Deletes a container with the plugin of `side`, whoever added it.
    pub(super) fn delete(&mut self, side: Side, id: &str) -> anyhow::Result<()> {
        let container = self.containers.remove(id).context("no such container")?;
        let deleted = self
            .runtime(side, container.node)?
            .del(&container.attachment, Some(&container.result));
        deleted.with_context(|| format!("DEL by {side:?} of what {:?} added", container.by))?;
        self.end(&container.attachment, container.node, &container.namespace)
    }

    /// What a runtime does after DEL: the namespace goes, and with it the link, if that was left (ours leaves a link that
    /// Calico's plugin has made).
    pub(super) fn end(
        &self,
        attachment: &Attachment,
        node: usize,
        namespace: &Namespace,
    ) -> anyhow::Result<()> {
        namespace.delete()?;
        let link: String = attachment.container_id.chars().take(11).collect();
        let node = self.nodes.get(node).context("no such node")?;
        eventually(&format!("cali{link} is gone"), GONE_WITHIN, || {
            let found = node.namespace.ip(&format!("-o link show dev cali{link}"));
            ensure!(found.is_err(), "{found:?}");
            Ok(())
        })
    }

    pub(super) fn delete_all(&mut self) -> anyhow::Result<()> {
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for (index, id) in ids.iter().enumerate() {
            self.delete(Side::BOTH[index % 2], id)?;
        }
        Ok(())
    }

    /// What is stored is what the containers have, and neither side finds anything wrong with it.
    pub(super) fn is_right(&self) -> anyhow::Result<()> {
        let mut held = BTreeMap::new();
        for (id, container) in &self.containers {
            let handle = format!("{NETWORK}.{id}");
            held.extend(
                container
                    .addresses
                    .iter()
                    .map(|&address| (address, handle.clone())),
            );
        }
        let stored = calico::addresses(&self.etcd)?;
        ensure!(stored == held, "stored {stored:?}, held {held:?}");
        let said = self.calicoctl("ipam check --show-problem-ips")?;
        ensure!(said.contains("found 0 problems"), "calicoctl ipam check: {said}");
        self.calidris("ipam check").map(drop)
    }

    /// Runs `calicoctl`, which must succeed.
    pub(super) fn calicoctl(&self, words: &str) -> anyhow::Result<String> {
        let mut command = Command::new(self.programs.folder().join("calicoctl"));
        self.on_the_datastore(command.env("DATASTORE_TYPE", "etcdv3"), words)
    }

    /// Runs `calidris`, which must succeed.
    pub(super) fn calidris(&self, words: &str) -> anyhow::Result<String> {
        self.on_the_datastore(&mut Command::new(&self.calidris), words)
    }

    /// What `calidris … -o json` prints.
    pub(super) fn calidris_json(&self, words: &str) -> anyhow::Result<Value> {
        let text = self.calidris(&format!("{words} -o json"))?;
        serde_json::from_str(&text).with_context(|| format!("calidris {words} printed {text:?}"))
    }

    /// Runs `calidris`, whatever its exit status.
    pub(super) fn calidris_output(&self, words: &str) -> anyhow::Result<Output> {
        let mut command = Command::new(&self.calidris);
        command.args(words.split_whitespace());
        self.namespace
            .output(command.env("ETCD_ENDPOINTS", self.etcd.endpoint()))
    }

    /// The second node as at first, its Node resource too.
    pub(super) fn bring_second_node_back(&mut self) -> anyhow::Result<()> {
        let resources = self.file("resources.yaml")?;
        self.calicoctl(&format!("apply -f {}", resources.display()))?;
        let node = self.nodes.get_mut(1).context("no second node")?;
        node.start_agent(self.lab)?;
        node.wait_until_ready()
    }

    /// Sets the cluster-wide configuration. `calicoctl` of this version has no word for the limit, and refuses to switch
    /// strict affinity off while there is one.
    pub(super) fn configure(&self, affinity: Affinity, max_blocks_per_host: u32) -> anyhow::Result<()> {
        self.limit_blocks(0)?;
        let is_strict = affinity == Affinity::Strict;
        self.calicoctl(&format!("ipam configure --strictaffinity={is_strict}"))?;
        self.limit_blocks(max_blocks_per_host)
    }

    /// Writes the limit into what is stored, if anything is; 0 for the default.
    fn limit_blocks(&self, max_blocks_per_host: u32) -> anyhow::Result<()> {
        for (key, value) in self.etcd.get_prefix(CONFIGURATION)? {
            let mut value: Value = serde_json::from_str(&value)?;
            value["maxBlocksPerHost"] = max_blocks_per_host.into();
            self.etcd.put(&key, &value.to_string())?;
        }
        Ok(())
    }

    pub(super) fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    /// A file of the operator.
    pub(super) fn file(&self, name: &str) -> anyhow::Result<PathBuf> {
        Ok(self.lab.folder("calicoctl")?.join(name))
    }

    fn on_the_datastore(&self, command: &mut Command, words: &str) -> anyhow::Result<String> {
        command
            .args(words.split_whitespace())
            .env("ETCD_ENDPOINTS", self.etcd.endpoint());
        let output = self.namespace.output(command)?;
        printed(command, &output)
    }
}

fn address(number: u8) -> anyhow::Result<IpNetwork> {
    Ok(IpNetwork::new([192, 0, 2, number].into(), 24)?)
}

/// Ours, with both families.
fn write_our_configuration(node: &Node, folder: &Path) -> anyhow::Result<()> {
    let plugin = json!({ "type": PLUGIN, "socket": folder.join("cni.sock"), "timeout_seconds": 30,
        "ipam": { "type": OUR_IPAM, "assign_ipv6": "true" } });
    cni::write_configuration(&node.runtime.configurations, NETWORK, &plugin)
}

fn addresses_of(result: &Value) -> anyhow::Result<Vec<IpAddr>> {
    let ips = result["ips"]
        .as_array()
        .with_context(|| format!("no addresses in {result}"))?;
    let mut addresses = Vec::new();
    for ip in ips {
        let address = ip["address"].as_str().unwrap_or_default();
        let network: IpNetwork = address
            .parse()
            .with_context(|| format!("no address {address:?}"))?;
        addresses.push(network.ip());
    }
    Ok(addresses)
}
