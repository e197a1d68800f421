//! A router is killed and started again: everything comes back.

use calidris_interop::cluster::Cluster;
use calidris_interop::progress::{Progress, Stream};
use calidris_interop::proof::{self, Proof};
use calidris_interop::require;
use calidris_interop::require::LAB;

#[test]
fn everything_is_reachable_again_after_bird_was_killed() -> anyhow::Result<()> {
    require!(LAB);
    restart("bird-restart", "router1")
}

#[test]
fn everything_is_reachable_again_after_frr_was_killed() -> anyhow::Result<()> {
    require!(LAB);
    restart("frr-restart", "router2")
}

fn restart(test: &str, router: &str) -> anyhow::Result<()> {
    let mut cluster = Cluster::for_test(test, 3)?;
    cluster.topology.pods_per_node = 1;
    let progress = Progress::start(Stream::Error);
    let mut proof = Proof::default();
    proof::prove_running(&mut cluster, &progress, &mut proof)?;

    let (router, lab) = cluster.router_mut(router)?;
    router.daemon.restart(lab)?;
    cluster.wait_for_sessions()?;
    cluster.wait_for_subnets()?;
    proof::routes_everywhere(&cluster, &progress, &mut proof)?;
    proof::pod_to_pod(&cluster, &progress, &mut proof);
    proof::nodes_and_outside(&cluster, &progress, &mut proof);
    proof.into_result()?;
    cluster.lab.take_down()
}
