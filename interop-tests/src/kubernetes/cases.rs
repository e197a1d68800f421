//! What is proved, one function for each fact, in the order in which they run. Each leaves Kubernetes as it found it
//! but for the pods of the Deployment `web`.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value, json};

use super::cluster::{Kubernetes, PLUGINS};
use super::control_plane::items;
use super::pods::{Pod, WITHIN, deployment, single};
use crate::calico;
use crate::daemon::Router;
use crate::daemon::containerd::ctr;
use crate::eventually::eventually;
use crate::image::{BUSYBOX, ask_script};
use crate::kernel;
use crate::racks::{POOL, SECOND_POOL, SECOND_POOL_NAME};

/// A fact and how it is proved.
pub type Case = (&'static str, fn(&mut Kubernetes<'_>) -> anyhow::Result<()>);

/// All of them.
pub const CASES: &[Case] = &[
    (
        "the plugin is installed under both names, the network configuration alone",
        installed,
    ),
    (
        "a Deployment of 20 pods comes up, addresses in etcd are theirs",
        comes_up,
    ),
    (
        "every pod reaches every pod, with its own address, also through BIRD",
        all_pairs,
    ),
    (
        "scaled to 30 and down to 6, addresses come and go with the pods",
        scaling,
    ),
    (
        "kubectl delete --force: the pod is replaced and its address free",
        forced_deletion,
    ),
    (
        "a kubelet killed and started: pods go on, new ones come",
        kubelet_restart,
    ),
    (
        "a containerd killed and started: pods go on, new ones come",
        containerd_restart,
    ),
    (
        "an agent killed during a roll-out: the roll-out completes",
        agent_killed,
    ),
    (
        "all agents replaced: pods keep addresses and connections",
        agents_replaced,
    ),
    ("a hostPort leads to the pod and goes with it", host_port),
    (
        "annotations: address, pool and MAC address are as asked",
        annotations,
    ),
    (
        "nothing is left: no address, endpoint, link, route or namespace",
        nothing_left,
    ),
];

/// How long the kernel and the router may need to follow the API server.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(30);
/// How many pods most cases work with.
const PODS: usize = 6;

fn installed(kubernetes: &mut Kubernetes<'_>) -> anyhow::Result<()> {
    for node in &kubernetes.nodes {
        for plugin in PLUGINS {
            let version = node
                .machine
                .run(Command::new(format!("/opt/cni/bin/{plugin}")).env("CNI_COMMAND", "VERSION"))?;
            ensure!(version.contains("1.1.0"), "{plugin}: {version}");
        }
        let folder = node.machine.path("/etc/cni/net.d");
        let files = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
        ensure!(files.len() == 1, "network configurations: {files:?}");
    }
    Ok(())
}

fn comes_up(kubernetes: &mut Kubernetes<'_>) -> anyhow::Result<()> {
    kubernetes.control.apply(&deployment(20))?;
    let pods = kubernetes.settled("web", 20)?;
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    ensure!(
        nodes.len() == kubernetes.nodes.len(),
        "all pods are on {nodes:?}: nothing crosses the router"
    );
    let pool: ipnetwork::IpNetwork = POOL.parse()?;
    let outside = pods
        .iter()
        .filter_map(|pod| pod.address)
        .find(|address| !pool.contains(*address));
    ensure!(outside.is_none(), "{outside:?} is not in {pool}");
    Ok(())
}

fn all_pairs(kubernetes: &mut Kubernetes<'_>) -> anyhow::Result<()> {
    let pods = web(kubernetes, 20)?;
    kubernetes.everybody_asks_everybody(&pods)
}

fn scaling(kubernetes: &mut Kubernetes<'_>) -> anyhow::Result<()> {
    web(kubernetes, 30)?;
    let pods = web(kubernetes, PODS)?;
    kubernetes.everybody_asks_everybody(&pods)
}

fn forced_deletion(kubernetes: &mut Kubernetes<'_>) -> anyhow::Result<()> {
    let pods = web(kubernetes, PODS)?;
    let victim = pods.first().context("there are pods")?;
    kubernetes
        .control
        .kubectl(&["delete", "pod", &victim.name, "--force", "--grace-period=0"])?;
    let pods = kubernetes.settled("web", PODS)?;
    ensure!(
        pods.iter().all(|pod| pod.name != victim.name),
        "{} is still there",
        victim.name
    );
    kubernetes.everybody_asks_everybody(&pods)
}

fn kubelet_restart(kubernetes: &mut Kubernetes<'_>) -> anyhow::Result<()> {
    let before = web(kubernetes, PODS)?;
    let node = kubernetes.nodes.first_mut().context("there are nodes")?;
    node.kubelet.kill()?;
    // A pod that is deleted while nobody is there to do it.
    let victim = before
        .iter()
        .find(|pod| pod.node == node.machine.name())
        .context("a pod on that node")?;
    kubernetes
        .control
        .kubectl(&["delete", "pod", &victim.name, "--wait=false"])?;
    node.kubelet.launch(kubernetes.lab, &node.machine)?;
    after_restart(kubernetes, &before, Some(&victim.name))
}

fn containerd_restart(kubernetes: &mut Kubernetes<'_>) -> anyhow::Result<()> {
    let before = web(kubernetes, PODS)?;
    // In the middle of something: while pods are being made.
    scale(kubernetes, PODS + 6)?;
    let node = kubernetes.nodes.first_mut().context("there are nodes")?;
    node.containerd.kill()?;
    node.containerd.launch(kubernetes.lab, &node.machine)?;
    let after = kubernetes.settled("web", PODS + 6)?;
    ensure!(
        before.iter().all(|pod| after.contains(pod)),
        "before {before:?}, after {after:?}"
    );
    let before = web(kubernetes, PODS)?;
    after_restart(kubernetes, &before, None)
}

fn agent_killed(kubernetes: &mut Kubernetes<'_>) -> anyhow::Result<()> {
    web(kubernetes, 20)?;
    kubernetes
        .control
        .kubectl(&["rollout", "restart", "deployment/web"])?;
    eventually("some new pods of the roll-out are there", WITHIN, || {
        let web = kubernetes.control.get(&["deployment", "web"])?;
        let updated = web
            .pointer("/status/updatedReplicas")
            .and_then(Value::as_u64)
            .unwrap_or(0);
        ensure!(updated >= 3, "{updated} pods");
        Ok(())
    })?;
    let killed = kill_agent(kubernetes, "node1")?;
    eventually("the roll-out is complete", WITHIN, || {
        let web = kubernetes.control.get(&["deployment", "web"])?;
        let number = |key: &str| web.pointer(&format!("/status/{key}")).and_then(Value::as_u64);
        let all = Some(20);
        ensure!(
            number("updatedReplicas") == all && number("replicas") == all && number("readyReplicas") == all,
            "{}",
            web["status"]
        );
        Ok(())
    })?;
    let pods = kubernetes.settled("web", 20)?;
    kubernetes.everybody_asks_everybody(&pods)?;
    web(kubernetes, PODS)?;
    ensure!(
        agent_container(kubernetes, "node1")? != killed,
        "the agent was not started again"
    );
    Ok(())
}

fn agents_replaced(kubernetes: &mut Kubernetes<'_>) -> anyhow::Result<()> {
    let before = web(kubernetes, PODS)?;
    let control = &kubernetes.control;
    control.kubectl(&["rollout", "restart", "daemonset/calidris", "-n", "kube-system"])?;
    let status = [
        "rollout",
        "status",
        "daemonset/calidris",
        "-n",
        "kube-system",
        "--timeout=10s",
    ];
    eventually("all agents are replaced", WITHIN, || {
        // Whatever happens to the agents, pods talk.
        kubernetes.everybody_asks_everybody(&before)?;
        control.kubectl(&status)
    })?;
    let after = kubernetes.settled("web", PODS)?;
    ensure!(before == after, "before {before:?}, after {after:?}");
    kubernetes.everybody_asks_everybody(&after)
}

fn host_port(kubernetes: &mut Kubernetes<'_>) -> anyhow::Result<()> {
    let node = kubernetes.nodes.last().context("there are nodes")?;
    let name = node.machine.name();
    kubernetes.start_pod(&single("hostport", name, &Map::new(), Some(8080)))?;
    let script = ask_script(&[format!("{}:8080", node.address)]);
    let first = kubernetes.nodes.first().context("there are nodes")?;
    let ask = || {
        first
            .machine
            .run(Command::new(BUSYBOX).args(["sh", "-c", &script]))
    };
    let seen = ask().context("from the other node")?;
    ensure!(
        seen.trim() == first.address.to_string(),
        "the pod saw {seen:?} instead of {}",
        first.address
    );
    kubernetes.control.kubectl(&["delete", "pod", "hostport"])?;
    ensure!(ask()?.trim().is_empty(), "port 8080 of {name} still answers");
    let rules = node.machine.run(Command::new("nft").args(["list", "ruleset"]))?;
    let left: Vec<&str> = rules.lines().filter(|line| line.contains("8080")).collect();
    ensure!(left.is_empty(), "rules are left: {left:?}");
    Ok(())
}

fn annotations(kubernetes: &mut Kubernetes<'_>) -> anyhow::Result<()> {
    let (address, mac) = ("10.244.77.7", "02:00:00:11:22:33");
    let mut asked = Map::new();
    asked.insert(
        "cni.projectcalico.org/ipAddrs".to_owned(),
        json!([address]).to_string().into(),
    );
    asked.insert("cni.projectcalico.org/hwAddr".to_owned(), mac.into());
    let fixed = kubernetes.start_pod(&single("fixed", "node1", &asked, None))?;
    ensure!(
        fixed.address.map(|found| found.to_string()).as_deref() == Some(address),
        "asked for {address}, got {fixed:?}"
    );
    let found = kubernetes
        .control
        .kubectl(&["exec", "fixed", "--", "cat", "/sys/class/net/eth0/address"])?;
    ensure!(found.trim() == mac, "asked for {mac}, got {found:?}");

    let mut asked = Map::new();
    let pools = json!([SECOND_POOL_NAME]).to_string();
    asked.insert("cni.projectcalico.org/ipv4pools".to_owned(), pools.into());
    let pooled = kubernetes.start_pod(&single("pooled", "node2", &asked, None))?;
    let pool: ipnetwork::IpNetwork = SECOND_POOL.parse()?;
    ensure!(
        pooled.address.is_some_and(|address| pool.contains(address)),
        "asked for {pool}, got {pooled:?}"
    );
    // An address or a block that was not there a moment ago must travel through the router.
    eventually("the two reach each other", FOLLOWS_WITHIN, || {
        kubernetes.everybody_asks_everybody(&[fixed.clone(), pooled.clone()])
    })?;
    kubernetes
        .control
        .kubectl(&["delete", "pod", "fixed", "pooled"])?;
    Ok(())
}

fn nothing_left(kubernetes: &mut Kubernetes<'_>) -> anyhow::Result<()> {
    kubernetes.control.kubectl(&["delete", "deployment", "web"])?;
    eventually("all pods are gone", WITHIN, || {
        let pods = kubernetes.control.kubectl(&["get", "pods", "-o", "name"])?;
        ensure!(pods.trim().is_empty(), "{pods}");
        Ok(())
    })?;
    eventually("etcd has nothing of pods", FOLLOWS_WITHIN, || {
        let etcd = &kubernetes.racks.etcd;
        let (addresses, handles) = (calico::addresses(etcd)?, calico::handles(etcd)?);
        let endpoints = calico::workload_endpoints(etcd)?;
        ensure!(
            addresses.is_empty() && handles.is_empty() && endpoints.is_empty(),
            "addresses {addresses:?}, handles {handles:?}, endpoints {endpoints:?}"
        );
        Ok(())
    })?;
    eventually("no kernel has anything of pods", FOLLOWS_WITHIN, || {
        kubernetes.nodes.iter().try_for_each(|node| {
            let namespace = node.machine.namespace();
            let mut left: Vec<String> = kernel::links(namespace)?;
            left.retain(|link| link.starts_with("cali"));
            let routes = kernel::routes(namespace)?;
            let is_of_pod = |destination: &str| destination.starts_with("10.2") && !destination.contains('/');
            left.extend(
                routes
                    .into_iter()
                    .map(|route| route.dst)
                    .filter(|dst| is_of_pod(dst)),
            );
            for entry in std::fs::read_dir(node.machine.path("/run/netns"))? {
                left.push(entry?.file_name().to_string_lossy().into_owned());
            }
            ensure!(left.is_empty(), "{}: {left:?}", node.machine.name());
            Ok(())
        })
    })?;
    eventually("the router has no route to a single pod", FOLLOWS_WITHIN, || {
        let routes = kubernetes.racks.router.routes()?;
        let single: Vec<_> = routes.keys().filter(|prefix| prefix.prefix() == 32).collect();
        ensure!(single.is_empty(), "{single:?}");
        Ok(())
    })
}

/// The Deployment `web` with that many pods, all ready.
fn web(kubernetes: &Kubernetes<'_>, replicas: usize) -> anyhow::Result<Vec<Pod>> {
    scale(kubernetes, replicas)?;
    kubernetes.settled("web", replicas)
}

fn scale(kubernetes: &Kubernetes<'_>, replicas: usize) -> anyhow::Result<()> {
    let replicas = format!("--replicas={replicas}");
    kubernetes
        .control
        .kubectl(&["scale", "deployment/web", &replicas])
        .map(drop)
}

/// The pods of before are still the same, but for one that was deleted; a new one can be made on the first node.
fn after_restart(kubernetes: &Kubernetes<'_>, before: &[Pod], deleted: Option<&str>) -> anyhow::Result<()> {
    let name = kubernetes
        .nodes
        .first()
        .context("there are nodes")?
        .machine
        .name();
    kubernetes.start_pod(&single("after", name, &Map::new(), None))?;
    kubernetes.control.kubectl(&["delete", "pod", "after"])?;
    let after = kubernetes.settled("web", PODS)?;
    for pod in before.iter().filter(|pod| Some(pod.name.as_str()) != deleted) {
        ensure!(after.contains(pod), "{pod:?} is not as it was: {after:?}");
    }
    kubernetes.everybody_asks_everybody(&after)
}

/// Kills the agent of a node as if it had crashed. Returns the container that it ran in.
fn kill_agent(kubernetes: &Kubernetes<'_>, node: &str) -> anyhow::Result<String> {
    let container = agent_container(kubernetes, node)?;
    let words = ["tasks", "kill", "--signal", "SIGKILL", &container];
    ctr(&kubernetes.node(node)?.machine, &words)?;
    Ok(container)
}

fn agent_container(kubernetes: &Kubernetes<'_>, node: &str) -> anyhow::Result<String> {
    let label = "app.kubernetes.io/name=calidris";
    let agents = kubernetes
        .control
        .get(&["pods", "-n", "kube-system", "-l", label])?;
    for agent in items(&agents)? {
        let text = |pointer: &str| agent.pointer(pointer).and_then(Value::as_str);
        if text("/spec/nodeName") == Some(node)
            && let Some(id) = text("/status/containerStatuses/0/containerID")
        {
            return Ok(id.trim_start_matches("containerd://").to_owned());
        }
    }
    bail!("no agent runs on {node}: {agents}")
}
