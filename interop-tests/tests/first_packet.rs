//! When ADD has returned, the pod's link passes packets: not even the first one is dropped.

use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::cluster::Cluster;
use calidris_interop::pod::{Pod, time_until_answer};
use calidris_interop::require;
use calidris_interop::require::LAB;
use serde_json::Value;

/// A link that is not ready at once is rare enough to need many tries.
const PODS: usize = 40;

#[test]
fn a_new_pod_s_link_drops_nothing() -> anyhow::Result<()> {
    require!(LAB);
    let mut cluster = Cluster::for_test("first-packet", 1)?;
    let node = cluster.node("node1")?.namespace.clone();
    for number in 0..PODS {
        let name = format!("pod{number}");
        let pod = cluster.add_pod(0, &name)?;
        let took = time_until_answer(&node, pod.address, Duration::from_secs(10))?;
        let dropped = dropped_by(pod)?;
        ensure!(
            dropped == 0,
            "{name} dropped {dropped} packets and answered {took:?} after ADD"
        );
        cluster.delete_pod(&name)?;
    }
    cluster.lab.take_down()
}

/// How many packets the pod's link refused to send.
fn dropped_by(pod: &Pod) -> anyhow::Result<u64> {
    let text = pod.namespace.ip("-j -s link show eth0")?;
    let links: Value = serde_json::from_str(&text)?;
    let dropped = links.pointer("/0/stats64/tx/dropped").and_then(Value::as_u64);
    dropped.with_context(|| format!("no number of dropped packets in {text}"))
}
