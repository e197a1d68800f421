//! A pod comes and goes two hundred times, and nothing stays behind.

use std::process::Command;

use anyhow::{Context, ensure};
use calidris_interop::calico;
use calidris_interop::cluster::Cluster;
use calidris_interop::kernel;
use calidris_interop::netns::{self, Namespace};
use calidris_interop::pod::attachment;
use calidris_interop::require;
use calidris_interop::require::LAB;

const TIMES: usize = 200;

#[test]
fn nothing_is_left_of_two_hundred_pods() -> anyhow::Result<()> {
    require!(LAB);
    let mut cluster = Cluster::for_test("churn", 1)?;
    let stayer = cluster.add_pod(0, "stayer")?.address;
    let node = cluster.node("node1")?;
    // The first pod claimed the block; from here on all must be as it is now.
    let before = State::of(&cluster, node.name())?;
    for round in 0..TIMES {
        let namespace = cluster.lab.namespace("churner")?;
        let attachment = attachment("churner", &namespace)?;
        let added = node
            .runtime
            .add(&attachment)
            .with_context(|| format!("round {round}"))?;
        node.runtime
            .del(&attachment, Some(&added.result))
            .with_context(|| format!("round {round}"))?;
        namespace.delete()?;
    }
    let after = State::of(&cluster, node.name())?;
    ensure!(after == before, "before: {before:#?}\nafter: {after:#?}");
    ensure!(calico::addresses(&cluster.etcd)?.keys().eq([&stayer]));
    ensure!(
        node.status()?["endpoints"]
            .as_array()
            .is_some_and(|endpoints| endpoints.len() == 1)
    );
    cluster.lab.take_down()
}

/// Everything that pods leave traces in.
#[derive(Debug, PartialEq, Eq)]
struct State {
    links: Vec<String>,
    routes: Vec<kernel::Route>,
    neighbors: String,
    nft: String,
    addresses: Vec<String>,
    handles: usize,
    endpoints: usize,
    namespaces: Vec<String>,
}

impl State {
    fn of(cluster: &Cluster, node: &str) -> anyhow::Result<Self> {
        let inside: &Namespace = &cluster.node(node)?.namespace;
        let namespaces = netns::run(Command::new("ip").args(["netns", "list"]))?;
        let prefix = format!("cal-{}-", cluster.lab.name());
        let mut namespaces: Vec<String> = namespaces
            .lines()
            .filter(|line| line.starts_with(&prefix))
            .map(str::to_owned)
            .collect();
        namespaces.sort();
        Ok(Self {
            links: kernel::links(inside)?,
            routes: kernel::routes(inside)?,
            neighbors: inside.ip("neigh show nud permanent")?,
            nft: inside.run(Command::new("nft").args(["--stateless", "list", "ruleset"]))?,
            addresses: calico::addresses(&cluster.etcd)?
                .keys()
                .map(ToString::to_string)
                .collect(),
            handles: calico::handles(&cluster.etcd)?.len(),
            endpoints: calico::workload_endpoints(&cluster.etcd)?.len(),
            namespaces,
        })
    }
}
