//! The same life of addresses on each datastore that an agent can have: the real plugin, the agent and the operator's
//! commands, with etcd and with a file. (The memory store has no process around it: `ipam/tests`.)

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::binaries::{Binaries, PLUGIN};
use calidris_interop::cni::{Attachment, Runtime};
use calidris_interop::daemon::etcd::Etcd;
use calidris_interop::eventually::eventually;
use calidris_interop::lab::Lab;
use calidris_interop::netns::Namespace;
use calidris_interop::pod::{attachment, first_address};
use calidris_interop::process::Process;
use calidris_interop::require;
use calidris_interop::require::LAB;
use serde_json::{Value, json};

/// How long the agent may take until it serves.
const READY_WITHIN: Duration = Duration::from_secs(30);
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

#[test]
fn addresses_live_the_same_in_etcd() -> anyhow::Result<()> {
    require!(LAB);
    whole_life("etcd")
}

#[test]
fn addresses_live_the_same_in_a_file() -> anyhow::Result<()> {
    require!(LAB);
    whole_life("embedded")
}

fn whole_life(kind: &str) -> anyhow::Result<()> {
    let mut node = Node::start(kind)?;
    let result = pods_come_and_go(&mut node).inspect_err(|_| eprintln!("{}", node.lab.log_tails(20)));
    drop(node.etcd.take());
    node.lab.take_down()?;
    result
}

fn pods_come_and_go(node: &mut Node) -> anyhow::Result<()> {
    let web = node.pod("web")?;
    let web_result = node.runtime(json!({})).add(&web)?.result;
    let addresses = web_result["ips"].as_array().context("ips")?.len();
    ensure!(addresses == 2, "dual stack in one request: {web_result}");
    node.reaches(&web_result)?;

    // An address by name; nobody else gets it.
    let by_name = json!({ "cni.projectcalico.org/ipAddrs": "[\"10.90.0.77\"]" });
    let fixed = node.pod("fixed")?;
    let fixed_result = node.runtime(by_name.clone()).add(&fixed)?.result;
    ensure!(first_address(&fixed_result)?.ip().to_string() == "10.90.0.77");
    let thief = node.pod("thief")?;
    let refused = node.runtime(by_name).add(&thief).map(|added| added.result);
    let why = format!("{:#}", refused.err().context("an address was given twice")?);
    ensure!(why.contains("already assigned to k8s-pod-network."), "{why}");

    // What is asked with the agent, what without.
    let keeps = json!({ "calidris/keep-address": "1h" });
    let db = node.pod("db-0")?;
    let db_result = node.runtime(keeps.clone()).add(&db)?.result;
    let kept = first_address(&db_result)?.ip().to_string();
    for (pod, result) in [(&web, &web_result), (&fixed, &fixed_result), (&db, &db_result)] {
        node.runtime(json!({})).check(pod, result)?;
    }
    node.finds_nothing()?;
    node.kill_agent()?;
    node.finds_nothing()?;
    let shown = node.calidris("ipam show --ip 10.90.0.77 -o json", 0)?;
    let shown: Value = serde_json::from_slice(&shown.stdout)?;
    ensure!(
        shown["state"] == "allocated" && shown["notes"]["pod"] == "fixed",
        "{shown}"
    );
    let without_agent = node.runtime(json!({})).del(&fixed, Some(&fixed_result));
    ensure!(without_agent.is_err(), "DEL without an agent");
    node.start_agent()?;
    for (pod, result) in [(&web, &web_result), (&fixed, &fixed_result), (&db, &db_result)] {
        node.runtime(json!({})).check(pod, result)?;
        node.reaches(result)?;
    }

    // The workload comes again, under another container, and has its address.
    node.runtime(json!({})).del(&db, Some(&db_result))?;
    let listed = node.calidris("ipam show --kept -o json", 0)?;
    let listed: Value = serde_json::from_slice(&listed.stdout)?;
    ensure!(
        listed["kept"][0]["address"] == kept && listed["kept"][0]["workload"] == "demo/db-0",
        "{listed}"
    );
    let other = node.pod("other")?;
    let other_result = node.runtime(json!({})).add(&other)?.result;
    ensure!(
        first_address(&other_result)?.ip().to_string() != kept,
        "a kept address was given"
    );
    node.finds_nothing()?;
    let again = node.pod_of(&db)?;
    let again_result = node.runtime(keeps).add(&again)?.result;
    ensure!(
        first_address(&again_result)?.ip().to_string() == kept,
        "{again_result}"
    );
    node.reaches(&again_result)?;
    node.runtime(json!({})).del(&again, Some(&again_result))?;
    let keeper = listed["kept"][0]["handle_id"].as_str().context("a keeper")?;
    node.calidris(&format!("ipam release --handle {keeper}"), 0)?;
    let shown = node.calidris(&format!("ipam show --ip {kept} -o json"), 0)?;
    ensure!(String::from_utf8_lossy(&shown.stdout).contains("\"state\": \"free\""));

    // What the runtime does not list goes.
    node.collect(&[&web])?;
    node.runtime(json!({})).check(&web, &web_result)?;
    for (pod, result) in [(&fixed, &fixed_result), (&other, &other_result)] {
        ensure!(
            node.runtime(json!({})).check(pod, result).is_err(),
            "{pod:?} outlived GC"
        );
    }
    node.runtime(json!({})).del(&web, Some(&web_result))?;
    node.finds_nothing()?;
    let left = node.calidris("ipam show --blocks -o json", 0)?;
    let left: Value = serde_json::from_slice(&left.stdout)?;
    ensure!(in_use(&left) == 0, "{left}");
    Ok(())
}

/// The addresses in use in all pools.
fn in_use(usage: &Value) -> u64 {
    let pools = usage["pools"].as_array().into_iter().flatten();
    pools.filter_map(|pool| pool["in_use"].as_u64()).sum()
}

/// A node with an agent.
struct Node {
    lab: Lab,
    namespace: Namespace,
    folder: PathBuf,
    binaries: Binaries,
    etcd: Option<Etcd>,
    agent: Option<Process>,
}

impl Node {
    fn start(kind: &str) -> anyhow::Result<Self> {
        let lab = Lab::create(&format!("store-{kind}-{}", std::process::id()))?;
        let namespace = lab.namespace("node")?;
        namespace.ip("link add up0 type veth peer name up1")?;
        namespace.ip("link set up1 up")?;
        namespace.ip("link set up0 up")?;
        namespace.ip("addr add 192.0.2.11/24 dev up0")?;
        let folder = lab.folder("node")?;
        let etcd = match kind {
            "etcd" => Some(Etcd::start(&lab, &namespace, [127, 0, 0, 1].into())?),
            _ => None,
        };
        std::fs::write(folder.join("calidris.toml"), configuration(kind, &folder))?;
        let plugin = json!({ "type": PLUGIN, "socket": folder.join("cni.sock"),
            "capabilities": { (ANNOTATIONS): true }, "ipam": { "assign_ipv6": true } });
        let list = json!({ "cniVersion": "1.1.0", "name": "k8s-pod-network", "plugins": [plugin] });
        std::fs::create_dir_all(folder.join("net.d"))?;
        std::fs::write(folder.join("net.d/10-calidris.conflist"), list.to_string())?;
        let mut node = Self {
            lab,
            namespace,
            folder,
            binaries: Binaries::find()?,
            etcd,
            agent: None,
        };
        node.start_agent()?;
        Ok(node)
    }

    fn start_agent(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.binaries.agent);
        command
            .args(["agent", "--config"])
            .arg(self.folder.join("calidris.toml"));
        let mut agent = self.lab.start("node", "agent", &self.namespace, &mut command)?;
        eventually("the agent is ready", READY_WITHIN, || {
            agent.check_alive()?;
            let socket = self.folder.join("status.sock");
            self.calidris(&format!("status --socket {}", socket.display()), 0)
        })?;
        self.agent = Some(agent);
        Ok(())
    }

    fn kill_agent(&mut self) -> anyhow::Result<()> {
        self.agent.take().context("no agent runs")?.kill()
    }

    fn pod(&self, name: &str) -> anyhow::Result<Attachment> {
        attachment(name, &self.lab.namespace(name)?)
    }

    /// Another container of the same pod.
    fn pod_of(&self, former: &Attachment) -> anyhow::Result<Attachment> {
        let (_, name) = former.pod.as_ref().context("a pod")?;
        attachment(name, &self.lab.namespace(&format!("{name}b"))?)
    }

    fn runtime(&self, annotations: Value) -> Runtime {
        Runtime {
            namespace: self.namespace.clone(),
            configurations: self.folder.join("net.d"),
            plugins: vec![self.binaries.folder.clone()],
            capability_arguments: serde_json::Map::from_iter([(ANNOTATIONS.to_owned(), annotations)]),
        }
    }

    /// GC with these as the only valid attachments.
    fn collect(&self, valid: &[&Attachment]) -> anyhow::Result<()> {
        let runtime = self.runtime(json!({}));
        let list = runtime.configuration()?;
        let plugin = list.plugins.first().context("a plugin")?.clone();
        let mut config = list.for_plugin(plugin, None, &serde_json::Map::new())?;
        config["cni.dev/valid-attachments"] = valid
            .iter()
            .map(|pod| json!({ "containerID": pod.container_id, "ifname": pod.interface }))
            .collect();
        let path = runtime.cni_path();
        let environment = [("CNI_COMMAND", "GC"), ("CNI_PATH", path.as_str())];
        let output = runtime.run_plugin(PLUGIN, &environment, &config.to_string())?;
        ensure!(
            output.status.success(),
            "GC: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(())
    }

    fn reaches(&self, result: &Value) -> anyhow::Result<()> {
        let address = first_address(result)?.ip().to_string();
        let mut ping = Command::new("ping");
        self.namespace.run(ping.args(["-c", "1", "-W", "5", &address]))?;
        Ok(())
    }

    fn finds_nothing(&self) -> anyhow::Result<()> {
        self.calidris("ipam check --this-node node1", 0).map(drop)
    }

    /// Runs the operator's program; `ipam` commands on the agent's configuration.
    fn calidris(&self, arguments: &str, status: i32) -> anyhow::Result<Output> {
        let mut command = Command::new(&self.binaries.agent);
        command.args(arguments.split_whitespace());
        if arguments.starts_with("ipam ") {
            command.arg("--config").arg(self.folder.join("calidris.toml"));
        }
        let output = self.namespace.output(&mut command)?;
        ensure!(
            output.status.code() == Some(status),
            "calidris {arguments}: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }
}

fn configuration(kind: &str, folder: &Path) -> String {
    let folder = folder.display();
    let endpoints = match kind {
        "etcd" => "endpoints = [\"http://127.0.0.1:2379\"]",
        _ => "",
    };
    format!(
        "node_name = \"node1\"\n\
         [datastore]\nkind = \"{kind}\"\n{endpoints}\npath = \"{folder}/store/datastore.redb\"\nsocket = \"{folder}/datastore.sock\"\n\
         [node]\nipv4_address = \"192.0.2.11/24\"\n\
         [[ipam.pools]]\nname = \"four\"\ncidr = \"10.90.0.0/16\"\n\
         [[ipam.pools]]\nname = \"six\"\ncidr = \"fd00:90::/112\"\n\
         [cni]\nsocket = \"{folder}/cni.sock\"\n\
         [status]\nsocket = \"{folder}/status.sock\"\n\
         [control]\nsocket = \"{folder}/control.sock\"\n\
         [log]\nlevel = \"info,calidris_agent=debug\"\n"
    )
}
