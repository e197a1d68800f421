//! The agent ends, by SIGKILL or as it is told to for an update, and comes back while pods talk: nothing is lost,
//! nothing is touched.

use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::calico;
use calidris_interop::cluster::Cluster;
use calidris_interop::daemon::ESTABLISHED;
use calidris_interop::eventually::eventually;
use calidris_interop::kernel::RouteMonitor;
use calidris_interop::node::Node;
use calidris_interop::pinger;
use calidris_interop::progress::{Progress, Stream};
use calidris_interop::proof::{self, Proof};
use calidris_interop::require;
use calidris_interop::require::LAB;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_killed_agent_costs_no_packet_and_no_route_changes() -> anyhow::Result<()> {
    require!(LAB);
    restart_agents("kill9", Node::kill_agent)
}

#[test]
fn an_agent_restarted_by_sigterm_costs_no_packet_and_no_route_changes() -> anyhow::Result<()> {
    require!(LAB);
    restart_agents("sigterm", Node::terminate_agent)
}

fn restart_agents(test: &str, end: fn(&mut Node) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut cluster = Cluster::for_test(test, 3)?;
    cluster.topology.pods_per_node = 1;
    let progress = Progress::start(Stream::Error);
    let mut before = Proof::default();
    proof::prove_running(&mut cluster, &progress, &mut before)?;
    before.into_result()?;

    // One internal session (BIRD) and one external (FRR).
    for victim in ["node1", "node3"] {
        let learned = learned_routes(&cluster, victim)?;
        let monitors = monitors(&cluster, victim)?;
        let pingers = pinger::between_all(&cluster.pods)?;
        let (node, _) = cluster.node_mut(victim)?;
        end(node)?;
        wait_until_the_router_noticed(&cluster, victim)?;
        let (node, lab) = cluster.node_mut(victim)?;
        node.start_agent(lab)?;
        node.wait_until_ready()?;
        cluster.wait_for_sessions()?;
        wait_until_in_sync(&cluster, victim, learned)?;
        pinger::expect_no_loss(pingers)?;
        for (place, monitor) in monitors {
            let heard = monitor.heard()?;
            ensure!(
                heard.is_empty(),
                "{victim} was killed; routes changed on {place}: {heard:#?}"
            );
            monitor.stop()?;
        }
        progress.step(format_args!(
            "{victim}: killed and started again; no datagram lost, no route changed"
        ));
    }

    let (count, pod) = (cluster.pods.len(), "latecomer");
    let address = cluster.add_pod(0, pod)?.address;
    ensure!(calico::addresses(&cluster.etcd)?.len() == count + 1);
    let mut after = Proof::default();
    proof::pod_to_pod(&cluster, &progress, &mut after);
    after.into_result()?;
    cluster.delete_pod(pod)?;
    ensure!(
        !calico::addresses(&cluster.etcd)?.contains_key(&address),
        "{address} is still given out"
    );
    cluster.lab.take_down()
}

/// Listens to the kernels of all nodes and routers.
fn monitors(cluster: &Cluster, round: &str) -> anyhow::Result<Vec<(String, RouteMonitor)>> {
    let nodes = cluster.nodes.iter().map(|node| (node.name(), &node.namespace));
    let routers = cluster
        .routers
        .iter()
        .map(|router| (router.name.as_str(), &router.namespace));
    let mut monitors = Vec::new();
    for (name, namespace) in nodes.chain(routers) {
        let monitor = RouteMonitor::start(&cluster.lab, name, &format!("monitor-{round}"), namespace)?;
        monitors.push((name.to_owned(), monitor));
    }
    Ok(monitors)
}

/// Without this the agent could be back before anybody saw that it was gone.
fn wait_until_the_router_noticed(cluster: &Cluster, victim: &str) -> anyhow::Result<()> {
    let router = &cluster.node(victim)?.settings.router.0;
    let router = cluster
        .routers
        .iter()
        .find(|named| named.name == *router)
        .context("a node has a router")?;
    eventually(
        &format!("{} noticed that {victim} is gone", router.name),
        SOON,
        || {
            let sessions = router.daemon.sessions()?;
            ensure!(
                sessions.get(victim).is_some_and(|state| state != ESTABLISHED),
                "{sessions:?}"
            );
            Ok(())
        },
    )
}

/// Only when the agent has heard everything again does it remove what it did not hear: that moment must have passed.
fn wait_until_in_sync(cluster: &Cluster, node: &str, learned: usize) -> anyhow::Result<()> {
    eventually(&format!("{node} has learnt its routes again"), SOON, || {
        let status = cluster.node(node)?.status()?;
        let in_sync = status["bgp_in_sync"] == true && status["datastore_in_sync"] == true;
        ensure!(
            in_sync,
            "in sync: {} {}",
            status["bgp_in_sync"],
            status["datastore_in_sync"]
        );
        ensure!(
            learned_routes(cluster, node)? >= learned,
            "{}",
            status["learned_routes"]
        );
        Ok(())
    })
}

fn learned_routes(cluster: &Cluster, node: &str) -> anyhow::Result<usize> {
    let status = cluster.node(node)?.status()?;
    Ok(status["learned_routes"]
        .as_object()
        .map_or(0, serde_json::Map::<String, Value>::len))
}
