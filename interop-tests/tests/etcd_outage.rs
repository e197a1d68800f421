//! The datastore is away for ten seconds, once without an answer and once refusing connections.

use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::calico;
use calidris_interop::cluster::Cluster;
use calidris_interop::cni::PluginError;
use calidris_interop::eventually::{Stopwatch, eventually};
use calidris_interop::kernel;
use calidris_interop::pinger;
use calidris_interop::progress::{Progress, Stream};
use calidris_interop::proof::{self, Proof};
use calidris_interop::require;
use calidris_interop::require::LAB;

const OUTAGE: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(30);
/// "Try again later" (CNI specification, section 5).
const TRY_AGAIN_LATER: u64 = 11;

#[test]
fn pods_talk_on_while_etcd_does_not_answer() -> anyhow::Result<()> {
    require!(LAB);
    outage(
        "etcd-frozen",
        |cluster| cluster.etcd.freeze(),
        |cluster| cluster.etcd.thaw(),
    )
}

#[test]
fn pods_talk_on_while_etcd_is_dead() -> anyhow::Result<()> {
    require!(LAB);
    outage(
        "etcd-dead",
        |cluster| cluster.etcd.kill(),
        |cluster| cluster.etcd.launch(&cluster.lab),
    )
}

fn outage(
    test: &str,
    begin: impl FnOnce(&mut Cluster) -> anyhow::Result<()>,
    end: impl FnOnce(&mut Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut cluster = Cluster::for_test(test, 3)?;
    cluster.topology.pods_per_node = 1;
    let progress = Progress::start(Stream::Error);
    let mut proof = Proof::default();
    proof::prove_running(&mut cluster, &progress, &mut proof)?;
    let links = kernel::links(&cluster.node("node1")?.namespace)?;
    let addresses = calico::addresses(&cluster.etcd)?;

    let pingers = pinger::between_all(&cluster.pods)?;
    let watch = Stopwatch::start();
    begin(&mut cluster)?;
    let refused = cluster
        .add_pod(0, "refused")
        .err()
        .context("ADD succeeded without etcd")?;
    progress.step(format_args!("ADD without etcd: {refused:#}"));
    let refusal = refused
        .downcast_ref::<PluginError>()
        .context(format!("no CNI error: {refused:#}"))?;
    ensure!(
        refusal.code == TRY_AGAIN_LATER && refusal.msg.len() > 10,
        "{refusal}"
    );
    eventually("the outage has lasted long enough", OUTAGE * 2, || {
        ensure!(watch.elapsed() >= OUTAGE, "{:?}", watch.elapsed());
        Ok(())
    })?;
    end(&mut cluster)?;
    pinger::expect_no_loss(pingers)?;

    eventually("the refused ADD left nothing", SOON, || {
        let now = kernel::links(&cluster.node("node1")?.namespace)?;
        ensure!(now == links, "links {now:?} instead of {links:?}");
        let now = calico::addresses(&cluster.etcd)?;
        ensure!(now == addresses, "addresses {now:?} instead of {addresses:?}");
        Ok(())
    })?;
    let mut attempt = 0;
    eventually("a pod can be added again", SOON, || {
        attempt += 1;
        cluster.add_pod(0, &format!("after{attempt}")).map(drop)
    })?;
    proof::routes_everywhere(&cluster, &progress, &mut proof)?;
    proof::pod_to_pod(&cluster, &progress, &mut proof);
    proof.into_result()?;
    cluster.lab.take_down()
}
