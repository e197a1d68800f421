//! What somebody else removes from a node comes back.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::cluster::Cluster;
use calidris_interop::eventually::eventually;
use calidris_interop::progress::{Progress, Stream};
use calidris_interop::proof::{self, Proof};
use calidris_interop::require;
use calidris_interop::require::LAB;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn routes_that_somebody_deleted_come_back_and_foreign_ones_stay() -> anyhow::Result<()> {
    require!(LAB);
    let mut cluster = Cluster::for_test("repair", 3)?;
    cluster.topology.pods_per_node = 1;
    let progress = Progress::start(Stream::Error);
    let mut proof = Proof::default();
    proof::prove_running(&mut cluster, &progress, &mut proof)?;

    let node = cluster.node("node1")?;
    node.namespace
        .ip("route add 198.18.0.0/15 via 192.0.2.1 proto static")?;
    let before = node.routes()?;
    let ours: Vec<_> = before
        .iter()
        .filter(|route| !matches!(route.protocol.as_deref(), Some("kernel" | "static")))
        .cloned()
        .collect();
    ensure!(
        ours.len() >= 6,
        "expected routes to a pod, a block and what BGP told: {ours:?}"
    );
    for route in &ours {
        let kind = route.kind.as_deref().unwrap_or("unicast");
        let protocol = route.protocol.as_deref().context("a route without a protocol")?;
        node.namespace
            .ip(&format!("route del {kind} {} proto {protocol}", route.dst))?;
        eventually(&format!("{} is back", route.dst), SOON, || {
            let now = node.routes()?;
            ensure!(now.contains(route), "{now:#?}");
            Ok(())
        })?;
    }
    let now = node.routes()?;
    ensure!(now == before, "before: {before:#?}\nnow: {now:#?}");
    proof::pod_to_pod(&cluster, &progress, &mut proof);
    proof.into_result()?;
    cluster.lab.take_down()
}

#[test]
fn a_flushed_ruleset_comes_back_when_the_kernel_is_read_again() -> anyhow::Result<()> {
    require!(LAB);
    let mut cluster = Cluster::for_test("flush", 1)?;
    let (node, lab) = cluster.node_mut("node1")?;
    node.terminate_agent()?;
    // The kernel does not tell of changes to nftables in a way that the agent listens to: it must look.
    node.reconfigure(|settings| settings.read_back_interval = Some("1s".to_owned()))?;
    node.start_agent(lab)?;
    node.wait_until_ready()?;
    cluster.add_pod(0, "pod")?;
    let node = cluster.node("node1")?;
    let ruleset = || {
        node.namespace
            .run(Command::new("nft").args(["--stateless", "list", "ruleset"]))
    };
    let before = ruleset()?;
    ensure!(before.contains("masquerade"), "{before}");
    node.namespace
        .run(Command::new("nft").args(["flush", "ruleset"]))?;
    eventually("the ruleset is back", SOON, || {
        let now = ruleset()?;
        ensure!(now == before, "{now:?}");
        Ok(())
    })?;
    cluster.lab.take_down()
}
