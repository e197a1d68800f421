//! An operator clears a node's session on FRR.

use std::time::Duration;

use anyhow::ensure;
use calidris_interop::cluster::Cluster;
use calidris_interop::eventually::eventually;
use calidris_interop::progress::{Progress, Stream};
use calidris_interop::proof::{self, Proof};
use calidris_interop::require;
use calidris_interop::require::LAB;

const ESTABLISHED_COUNT: &str = "/bgp/peers/0/established_count";

#[test]
fn a_cleared_session_comes_back_with_all_routes() -> anyhow::Result<()> {
    require!(LAB);
    let mut cluster = Cluster::for_test("frr-clear", 3)?;
    cluster.topology.pods_per_node = 1;
    let progress = Progress::start(Stream::Error);
    let mut proof = Proof::default();
    proof::prove_running(&mut cluster, &progress, &mut proof)?;

    let before = cluster.node("node3")?.status_number(ESTABLISHED_COUNT)?;
    let (router, _) = cluster.router_mut("router2")?;
    router.daemon.clear("node3")?;
    eventually(
        "the session is established once more",
        Duration::from_secs(30),
        || {
            let now = cluster.node("node3")?.status_number(ESTABLISHED_COUNT)?;
            ensure!(now > before, "established {now} times, {before} before");
            Ok(())
        },
    )?;
    cluster.wait_for_sessions()?;
    proof::routes_everywhere(&cluster, &progress, &mut proof)?;
    proof::pod_to_pod(&cluster, &progress, &mut proof);
    proof.into_result()?;
    cluster.lab.take_down()
}
