//! Adding the pods, and how fast that is.

use std::time::Duration;

use super::{PodTimes, Proof};
use crate::cluster::Cluster;
use crate::netns::Namespace;
use crate::pod::time_until_answer;
use crate::progress::Progress;

/// How long a pod may take to answer after ADD: routes may have to travel through three BGP speakers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

/// Adds the pods of every node, one after the other, and waits for each to answer a client on another node.
///
/// # Errors
/// When the plugin refuses.
pub fn add_pods(cluster: &mut Cluster, progress: &Progress, proof: &mut Proof) -> anyhow::Result<()> {
    const GROUP: &str = "a new pod";
    for node in 0..cluster.nodes.len() {
        let other = namespace_elsewhere(cluster, node);
        for number in 1..=cluster.topology.pods_per_node {
            let name = match cluster.nodes.get(node) {
                Some(node) => format!("{}pod{number}", node.name()),
                None => continue,
            };
            let pod = cluster.add_pod(node, &name)?;
            let answered = other
                .as_ref()
                .map(|from| time_until_answer(from, pod.address, ANSWERS_WITHIN));
            let times = PodTimes {
                name,
                node: pod.node.clone(),
                address: pod.address,
                add_ms: milliseconds(pod.added.took),
                answered_ms: answered
                    .as_ref()
                    .and_then(|took| took.as_ref().ok().copied())
                    .map(milliseconds),
            };
            let after = times.answered_ms.map_or_else(
                || "did not answer another node".to_owned(),
                |after| format!("answered another node {after:.1} ms later"),
            );
            progress.step(format_args!(
                "{} {} on {}: ADD took {:.1} ms; it {after}",
                times.name, times.address, times.node, times.add_ms
            ));
            if let Some(answered) = answered {
                let name = format!("{} answers a client on another node", times.name);
                proof.check(progress, (GROUP, name), answered.map(drop));
            }
            proof.pods.push(times);
        }
    }
    Ok(())
}

/// Has every runtime check its pods, as it may at any time.
pub fn runtimes_check(cluster: &Cluster, progress: &Progress, proof: &mut Proof) {
    const GROUP: &str = "CNI CHECK";
    for pod in &cluster.pods {
        let checked = cluster
            .node(&pod.node)
            .and_then(|node| node.runtime.check(&pod.attachment, &pod.added.result));
        proof.check(
            progress,
            (GROUP, format!("{} is as ADD left it", pod.name)),
            checked,
        );
    }
    progress.step(format_args!(
        "CNI CHECK: {} pods are as ADD left them",
        proof.score(GROUP)
    ));
}

/// The namespace of the node after this one; a host's if there is only one node.
fn namespace_elsewhere(cluster: &Cluster, node: usize) -> Option<Namespace> {
    let count = cluster.nodes.len();
    let next = (0..count)
        .map(|step| (node + 1 + step) % count)
        .find(|next| *next != node);
    let node = next
        .and_then(|next| cluster.nodes.get(next))
        .map(|node| &node.namespace);
    node.or_else(|| cluster.hosts.first().map(|host| &host.namespace))
        .cloned()
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
