//! A node of the cluster: a namespace with an agent, the configuration of both its agent and its runtime, and a
//! server that answers on the node's own address.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;
use rustix::process::Signal;
use serde::Serialize;
use serde_json::{Value, json};

use crate::binaries::{Binaries, PLUGIN};
use crate::cni::{self, Runtime};
use crate::eventually::eventually;
use crate::kernel::{self, Route};
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::process::Process;

/// How long the agent may take until it can serve pods.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// The CNI network of all nodes; handles and endpoints in etcd begin with it.
pub const NETWORK: &str = "k8s-pod-network";
/// Where Debian has the plugins of the CNI project.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// What a node is told.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Its name in the lab and in etcd.
    pub name: String,
    /// Its address, with the prefix length of the subnet.
    pub address: IpNetwork,
    /// Its autonomous system.
    pub as_number: u32,
    /// Hold time it offers, seconds.
    pub hold_time: u16,
    /// The router: name, address, autonomous system.
    pub router: (String, IpAddr, u32),
    /// etcd's URL.
    pub etcd: String,
    /// How often the agent reads the kernel back, such as `5s`; its default if nothing is said.
    pub read_back_interval: Option<String>,
    /// What it logs, as in the agent's `log.level`.
    pub log_level: String,
    /// How long routes to a workload stay preferred after it has migrated here, such as `2s`; the agent's default if nothing is said.
    pub live_migration_settle_time: Option<String>,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// What it is told.
    pub settings: NodeSettings,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its container runtime.
    pub runtime: Runtime,
    program: PathBuf,
    folder: PathBuf,
    agent: Option<Process>,
}

impl Node {
    /// Writes the configuration of agent and plugin; nothing runs yet.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn prepare(
        lab: &Lab,
        binaries: &Binaries,
        namespace: &Namespace,
        settings: NodeSettings,
    ) -> anyhow::Result<Self> {
        let folder = lab.folder(&settings.name)?;
        let configurations = folder.join("net.d");
        cni::write_configuration(&configurations, NETWORK, &plugin(&folder))?;
        write_agent_config(&settings, &folder)?;
        let runtime = Runtime {
            namespace: namespace.clone(),
            configurations,
            plugins: vec![binaries.folder.clone()],
            capability_arguments: serde_json::Map::new(),
        };
        let program = binaries.agent.clone();
        Ok(Self {
            settings,
            namespace: namespace.clone(),
            runtime,
            program,
            folder,
            agent: None,
        })
    }

    /// A runtime whose pods get their addresses from a pool.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn runtime_for(&self, pool: &str) -> anyhow::Result<Runtime> {
        self.runtime_with(pool, &json!({ "ipv4_pools": [pool] }))
    }

    /// A runtime whose pods have this address, as a virtual machine has that migrates here.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn runtime_giving(&self, address: IpAddr) -> anyhow::Result<Runtime> {
        let address = IpNetwork::from(address);
        let ipam = json!({ "type": "static", "addresses": [{ "address": address }] });
        let mut runtime = self.runtime_with("static", &ipam)?;
        runtime.plugins.push(REFERENCE_PLUGINS.into());
        Ok(runtime)
    }

    fn runtime_with(&self, name: &str, ipam: &Value) -> anyhow::Result<Runtime> {
        let configurations = self.folder.join(format!("net.d-{name}"));
        let mut plugin = plugin(&self.folder);
        plugin["ipam"] = ipam.clone();
        cni::write_configuration(&configurations, NETWORK, &plugin)?;
        Ok(Runtime {
            configurations,
            ..self.runtime.clone()
        })
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// The node's address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.settings.address.ip()
    }

    /// Changes what the node is told; an agent that is started later reads it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut NodeSettings)) -> anyhow::Result<()> {
        change(&mut self.settings);
        write_agent_config(&self.settings, &self.folder)
    }

    /// Starts the agent, without waiting for anything.
    ///
    /// # Errors
    /// When it cannot be started, or one runs already.
    pub fn start_agent(&mut self, lab: &Lab) -> anyhow::Result<()> {
        ensure!(self.agent.is_none(), "the agent of {} runs already", self.name());
        let mut command = Command::new(&self.program);
        command
            .arg("agent")
            .arg("--config")
            .arg(self.folder.join("calidris.toml"));
        self.agent = Some(lab.start(self.name(), "agent", &self.namespace, &mut command)?);
        Ok(())
    }

    /// Waits until the agent says that it can serve pods.
    ///
    /// # Errors
    /// When it does not in time, or ends.
    pub fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let what = format!("the agent of {} is ready", self.name());
        let mut agent = self.agent.take().context("no agent runs")?;
        let ready = eventually(&what, READY_WITHIN, || {
            agent.check_alive()?;
            // Its exit status says whether it is ready.
            self.namespace.run(&mut self.status_command()).map(drop)
        });
        self.agent = Some(agent);
        ready
    }

    /// Stops the agent in its tracks (SIGSTOP).
    ///
    /// # Errors
    /// When none runs.
    pub fn freeze_agent(&self) -> anyhow::Result<()> {
        self.agent.as_ref().context("no agent runs")?.signal(Signal::STOP)
    }

    /// Lets the agent go on after [`Node::freeze_agent`].
    ///
    /// # Errors
    /// When none runs.
    pub fn thaw_agent(&self) -> anyhow::Result<()> {
        self.agent.as_ref().context("no agent runs")?.signal(Signal::CONT)
    }

    /// Kills the agent with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// When none runs.
    pub fn kill_agent(&mut self) -> anyhow::Result<()> {
        self.agent.take().context("no agent runs")?.kill()
    }

    /// Asks the agent to end with SIGTERM and waits until it has.
    ///
    /// # Errors
    /// When none runs, or it does not end.
    pub fn terminate_agent(&mut self) -> anyhow::Result<()> {
        self.agent.take().context("no agent runs")?.terminate()
    }

    /// The agent's process, if one runs.
    #[must_use]
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(|agent| agent.id().pid)
    }

    /// What the agent says of itself, ready or not: the JSON of `calidris status`.
    ///
    /// # Errors
    /// When no agent answers.
    pub fn status(&self) -> anyhow::Result<Value> {
        let output = self.namespace.output(&mut self.status_command())?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "status of {}: {}",
                self.name(),
                String::from_utf8_lossy(&output.stderr).trim()
            )
        })
    }

    /// One number of [`Node::status`], for example `/dataplane/operations` (a JSON pointer, RFC 6901).
    ///
    /// # Errors
    /// When no agent answers, or there is no such number.
    pub fn status_number(&self, pointer: &str) -> anyhow::Result<u64> {
        let status = self.status()?;
        let number = status.pointer(pointer).and_then(Value::as_u64);
        number.with_context(|| format!("status of {}: no number {pointer} in {status}", self.name()))
    }

    /// The node's routes.
    ///
    /// # Errors
    /// When `ip route` fails.
    pub fn routes(&self) -> anyhow::Result<Vec<Route>> {
        kernel::routes(&self.namespace)
    }

    /// Commands that a person can type to look inside.
    #[must_use]
    pub fn look_inside(&self) -> Vec<String> {
        let inside = format!("ip netns exec {}", self.namespace.name());
        let socket = self.folder.join("status.sock");
        vec![
            format!("{} status --socket {}", self.program.display(), socket.display()),
            format!("{inside} ip route"),
            format!("{inside} nft list ruleset"),
        ]
    }

    fn status_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["status", "-o", "json", "--socket"])
            .arg(self.folder.join("status.sock"));
        command
    }
}

/// The plugin's part of the network's configuration.
fn plugin(folder: &Path) -> Value {
    json!({ "type": PLUGIN, "socket": folder.join("cni.sock"), "timeout_seconds": 30 })
}

fn write_agent_config(settings: &NodeSettings, folder: &Path) -> anyhow::Result<()> {
    let text = toml::to_string(&AgentConfig::new(settings, folder))?;
    let path = folder.join("calidris.toml");
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// The agent's configuration file, as far as the lab sets it; `deploy/calidris.toml` explains every key.
#[derive(Serialize)]
struct AgentConfig {
    node_name: String,
    datastore: DatastoreConfig,
    node: NodeConfig,
    bgp: BgpConfig,
    dataplane: DataplaneConfig,
    cni: SocketConfig,
    status: SocketConfig,
    control: SocketConfig,
    log: LogConfig,
}

#[derive(Serialize)]
struct DatastoreConfig {
    kind: &'static str,
    endpoints: Vec<String>,
    connect_timeout: &'static str,
    request_timeout: &'static str,
}

#[derive(Serialize)]
struct NodeConfig {
    ipv4_address: IpNetwork,
}

#[derive(Serialize)]
struct BgpConfig {
    as_number: u32,
    router_id: IpAddr,
    peers: Vec<PeerConfig>,
}

#[derive(Serialize)]
struct PeerConfig {
    name: String,
    address: IpAddr,
    as_number: u32,
    hold_time: String,
    connect_retry: &'static str,
    families: [&'static str; 1],
    import: &'static str,
    export: &'static str,
}

#[derive(Serialize)]
struct DataplaneConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    read_back_interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    live_migration_settle_time: Option<String>,
}

#[derive(Serialize)]
struct SocketConfig {
    socket: PathBuf,
}

#[derive(Serialize)]
struct LogConfig {
    level: String,
}

impl AgentConfig {
    fn new(settings: &NodeSettings, folder: &Path) -> Self {
        let (name, address, as_number) = settings.router.clone();
        let peer = PeerConfig {
            name,
            address,
            as_number,
            hold_time: format!("{}s", settings.hold_time),
            connect_retry: "1s",
            families: ["ipv4"],
            import: "accept",
            export: "own-blocks",
        };
        Self {
            node_name: settings.name.clone(),
            datastore: DatastoreConfig {
                kind: "etcd",
                endpoints: vec![settings.etcd.clone()],
                connect_timeout: "2s",
                request_timeout: "3s",
            },
            node: NodeConfig {
                ipv4_address: settings.address,
            },
            bgp: BgpConfig {
                as_number: settings.as_number,
                router_id: settings.address.ip(),
                peers: vec![peer],
            },
            dataplane: DataplaneConfig {
                read_back_interval: settings.read_back_interval.clone(),
                live_migration_settle_time: settings.live_migration_settle_time.clone(),
            },
            cni: SocketConfig {
                socket: folder.join("cni.sock"),
            },
            status: SocketConfig {
                socket: folder.join("status.sock"),
            },
            control: SocketConfig {
                socket: folder.join("control.sock"),
            },
            log: LogConfig {
                level: settings.log_level.clone(),
            },
        }
    }
}
