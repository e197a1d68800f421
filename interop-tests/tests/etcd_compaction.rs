//! An agent that slept through a compaction reads everything anew, and forgets what was deleted meanwhile.

use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::calico;
use calidris_interop::cluster::Cluster;
use calidris_interop::eventually::eventually;
use calidris_interop::require;
use calidris_interop::require::LAB;
use calidris_interop::topology::PoolSpec;

fn pool(name: &str, cidr: &str) -> anyhow::Result<PoolSpec> {
    Ok(PoolSpec {
        name: name.to_owned(),
        cidr: cidr.parse()?,
        block_size: 26,
        nat_outgoing: true,
    })
}

#[test]
fn changes_before_a_compaction_are_not_missed() -> anyhow::Result<()> {
    require!(LAB);
    let mut cluster = Cluster::for_test("compaction", 1)?;
    calico::put_pool(&cluster.etcd, &pool("old", "10.245.0.0/16")?, calico::PLAIN)?;
    let pools = |cluster: &Cluster| -> anyhow::Result<Vec<String>> {
        let status = cluster.node("node1")?.status()?;
        let pools = status["pools"].as_object().context("pools in the status")?;
        Ok(pools.keys().cloned().collect())
    };
    eventually("the agent knows the pool old", Duration::from_secs(10), || {
        let known = pools(&cluster)?;
        ensure!(known == ["default-ipv4", "old"], "{known:?}");
        Ok(())
    })?;

    cluster.node("node1")?.freeze_agent()?;
    // The watch is cut, so that what happens now cannot wait for the agent in the connection's buffers.
    cluster.etcd.kill()?;
    cluster.etcd.launch(&cluster.lab)?;
    calico::delete_pool(&cluster.etcd, "old")?;
    calico::put_pool(&cluster.etcd, &pool("new", "10.246.0.0/16")?, calico::PLAIN)?;
    cluster.etcd.compact()?;
    cluster.node("node1")?.thaw_agent()?;

    eventually(
        "the agent knows the pool new and no more the pool old",
        Duration::from_secs(30),
        || {
            let known = pools(&cluster)?;
            ensure!(known == ["default-ipv4", "new"], "{known:?}");
            Ok(())
        },
    )?;
    cluster.add_pod(0, "pod")?;
    cluster.lab.take_down()
}
