//! What is left when a pod is deleted: nothing.

use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::Proof;
use crate::calico;
use crate::cluster::Cluster;
use crate::eventually::eventually;
use crate::kernel;
use crate::pod::{Pod, ask};
use crate::progress::Progress;

/// How long others may take to notice.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Deletes the first pod and checks that its route, its link, its address, its handle and its endpoint are gone.
///
/// # Errors
/// When the plugin refuses.
pub fn delete_one(cluster: &mut Cluster, progress: &Progress, proof: &mut Proof) -> anyhow::Result<()> {
    let name = cluster
        .pods
        .first()
        .context("there is no pod to delete")?
        .name
        .clone();
    let pod = cluster.delete_pod(&name)?;
    check_gone(cluster, &pod, progress, proof);
    progress.step(format_args!(
        "deleted {name} on {}: {} traces are gone",
        pod.node,
        proof.score(GROUP)
    ));
    for check in proof
        .checks
        .iter()
        .filter(|check| check.group == GROUP && check.failure.is_none())
    {
        progress.line(format_args!("  {}", check.name));
    }
    Ok(())
}

/// Deletes all other pods and checks that nothing is given out any more.
///
/// # Errors
/// When the plugin refuses.
pub fn delete_the_rest(cluster: &mut Cluster, progress: &Progress, proof: &mut Proof) -> anyhow::Result<()> {
    while let Some(pod) = cluster.pods.first() {
        let name = pod.name.clone();
        cluster.delete_pod(&name)?;
    }
    proof.check(progress, (GROUP_ALL, "no address is given out".to_owned()), {
        let is_of_pod = |(_, handle): &(_, String)| !is_of_tunnel(handle);
        calico::addresses(&cluster.etcd).and_then(|left| expect_empty(left.into_iter().filter(is_of_pod)))
    });
    proof.check(progress, (GROUP_ALL, "no handle is left".to_owned()), {
        let is_of_pod = |handle: &String| !is_of_tunnel(handle);
        calico::handles(&cluster.etcd).and_then(|left| expect_empty(left.into_iter().filter(is_of_pod)))
    });
    proof.check(progress, (GROUP_ALL, "no endpoint is left".to_owned()), {
        calico::workload_endpoints(&cluster.etcd).and_then(|left| expect_empty(left.iter()))
    });
    for node in &cluster.nodes {
        let name = format!("{} has no link of a pod", node.name());
        let links = kernel::links(&node.namespace);
        let result =
            links.and_then(|links| expect_empty(links.iter().filter(|link| link.starts_with("cali"))));
        proof.check(progress, (GROUP_ALL, name), result);
    }
    progress.step(format_args!(
        "after deleting all pods: {} kinds of things are gone",
        proof.score(GROUP_ALL)
    ));
    Ok(())
}

const GROUP: &str = "a deleted pod";
const GROUP_ALL: &str = "all pods deleted";

fn check_gone(cluster: &Cluster, pod: &Pod, progress: &Progress, proof: &mut Proof) {
    let address = pod.address;
    let mut check = |what: String, result| proof.check(progress, (GROUP, what), result);
    check(
        format!("the route to {address} is gone"),
        eventually("the route is gone", GONE_WITHIN, || {
            let routes = cluster.node(&pod.node)?.routes()?;
            expect_empty(routes.iter().filter(|route| route.dst == address.to_string()))
        }),
    );
    check(
        format!("the link of {} is gone", pod.name),
        eventually("the link is gone", GONE_WITHIN, || {
            let links = kernel::links(&cluster.node(&pod.node)?.namespace)?;
            let of_pods = links.iter().filter(|link| link.starts_with("cali")).count();
            let pods = cluster.pods.iter().filter(|other| other.node == pod.node).count();
            ensure!(of_pods == pods, "{of_pods} links for {pods} pods: {links:?}");
            Ok(())
        }),
    );
    check(format!("{address} is free in etcd"), {
        calico::addresses(&cluster.etcd).and_then(|all| match all.get(&address) {
            None => Ok(()),
            Some(handle) => bail!("it belongs to {handle:?}"),
        })
    });
    let of_container = |key: &&String| key.contains(&pod.attachment.container_id);
    check("its handle is gone from etcd".to_owned(), {
        calico::handles(&cluster.etcd).and_then(|all| expect_empty(all.iter().filter(of_container)))
    });
    check("its endpoint is gone from etcd".to_owned(), {
        calico::workload_endpoints(&cluster.etcd).and_then(|all| {
            ensure!(
                all.len() == cluster.pods.len(),
                "{} endpoints for {} pods",
                all.len(),
                cluster.pods.len()
            );
            Ok(())
        })
    });
    check(
        format!("nobody answers at {address}"),
        match cluster.nodes.last() {
            Some(node) => match ask(&node.namespace, address) {
                Ok(answer) => Err(anyhow::anyhow!("{} still answers", answer.host)),
                Err(_) => Ok(()),
            },
            None => Ok(()),
        },
    );
}

/// Tunnels keep their addresses as long as there is a pool for them, and a while longer.
fn is_of_tunnel(handle: &str) -> bool {
    handle.contains("-tunnel-addr-")
}

fn expect_empty<T: std::fmt::Debug>(left: impl Iterator<Item = T>) -> anyhow::Result<()> {
    let left: Vec<T> = left.collect();
    if left.is_empty() {
        Ok(())
    } else {
        bail!("there is still {left:?}")
    }
}
