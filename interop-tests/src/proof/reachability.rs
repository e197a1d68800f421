//! Who reaches whom, and with which address the server sees the client.

use std::net::IpAddr;

use anyhow::ensure;

use super::Proof;
use super::matrix::Matrix;
use crate::cluster::Cluster;
use crate::netns::Namespace;
use crate::pod::{Pod, ask};
use crate::progress::Progress;

/// How many pods still fit as columns on a screen; more are shown by node.
const WIDEST: usize = 12;

/// Every pod asks every other, and every server must see the client's own address.
pub fn pod_to_pod(cluster: &Cluster, progress: &Progress, proof: &mut Proof) {
    const GROUP: &str = "pod to pod";
    let by_node = cluster.pods.len() > WIDEST;
    let label = |pod: &Pod| {
        if by_node {
            pod.node.clone()
        } else {
            pod.name.clone()
        }
    };
    let mut labels: Vec<String> = cluster.pods.iter().map(label).collect();
    labels.dedup();
    let mut matrix = Matrix::new(labels);
    for client in &cluster.pods {
        for server in cluster.pods.iter().filter(|server| server.name != client.name) {
            let result = expect(&client.namespace, server, client.address);
            matrix.record(&label(client), &label(server), result.is_ok());
            let name = format!("{} asks {}, seen as {}", client.name, server.name, client.address);
            proof.check(progress, (GROUP, name), result);
        }
    }
    progress.step(format_args!(
        "pod to pod: {} clients (rows) got an answer from the server (columns), which saw their own address",
        proof.score(GROUP)
    ));
    for line in matrix.lines() {
        progress.line(format_args!("  {line}"));
    }
}

/// Pods and nodes ask each other, pods ask the outside and the outside asks pods. What leaves the pools is seen with
/// the node's address (`natOutgoing`), all else with its own.
pub fn nodes_and_outside(cluster: &Cluster, progress: &Progress, proof: &mut Proof) {
    for pod in &cluster.pods {
        let nat_address = cluster
            .node(&pod.node)
            .map_or(pod.address, crate::node::Node::address);
        for node in &cluster.nodes {
            let own = pod.node == node.name();
            let seen_as = if own { pod.address } else { nat_address };
            let name = format!("{} asks {}, seen as {seen_as}", pod.name, node.name());
            proof.check(
                progress,
                (POD_TO_NODE, name),
                expect_at(&pod.namespace, node.address(), seen_as),
            );
            let name = format!("{} asks {}, seen as {}", node.name(), pod.name, node.address());
            proof.check(
                progress,
                (NODE_TO_POD, name),
                expect(&node.namespace, pod, node.address()),
            );
        }
        for host in &cluster.hosts {
            let name = format!("{} asks {}, seen as {nat_address}", pod.name, host.name);
            proof.check(
                progress,
                (POD_TO_OUTSIDE, name),
                expect_at(&pod.namespace, host.address, nat_address),
            );
            let name = format!("{} asks {}, seen as {}", host.name, pod.name, host.address);
            proof.check(
                progress,
                (OUTSIDE_TO_POD, name),
                expect(&host.namespace, pod, host.address),
            );
        }
    }
    let explained = [
        (
            POD_TO_NODE,
            "seen with the address of the pod's node, with its own by that node itself",
        ),
        (NODE_TO_POD, "seen with the node's address"),
        (
            POD_TO_OUTSIDE,
            "seen with the address of the pod's node (natOutgoing)",
        ),
        (OUTSIDE_TO_POD, "seen with the outside host's own address"),
    ];
    for (group, explanation) in explained {
        progress.step(format_args!(
            "{group}: {} answered, {explanation}",
            proof.score(group)
        ));
    }
}

const POD_TO_NODE: &str = "pod to node";
const NODE_TO_POD: &str = "node to pod";
const POD_TO_OUTSIDE: &str = "pod to outside";
const OUTSIDE_TO_POD: &str = "outside to pod";

pub(super) fn expect(from: &Namespace, server: &Pod, seen_as: IpAddr) -> anyhow::Result<()> {
    let answer = ask(from, server.address)?;
    ensure!(
        answer.host == server.name,
        "{} answered instead of {}",
        answer.host,
        server.name
    );
    ensure!(
        answer.you == seen_as,
        "seen as {} instead of {seen_as}",
        answer.you
    );
    Ok(())
}

fn expect_at(from: &Namespace, server: IpAddr, seen_as: IpAddr) -> anyhow::Result<()> {
    let answer = ask(from, server)?;
    ensure!(answer.me == server, "{} answered instead of {server}", answer.me);
    ensure!(
        answer.you == seen_as,
        "seen as {} instead of {seen_as}",
        answer.you
    );
    Ok(())
}
