//! Under containerd, driven over its CRI socket exactly as kubelet does, and by `ctr run --cni`: pods on two nodes talk
//! through a BIRD router; whatever is killed at a bad moment, nothing is left in the end.

use std::time::Duration;

use anyhow::ensure;
use calidris_interop::calico;
use calidris_interop::daemon::containerd::ctr;
use calidris_interop::eventually::eventually;
use calidris_interop::image::BUSYBOX_IMAGE;
use calidris_interop::lab::Lab;

use super::NEEDS;
use super::node::{Cluster, Node, Pod, prove};

/// How many pods are being made when something is killed.
const PODS: usize = 8;
/// How long the first addresses of a burst may take.
const UNDER_WAY_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn pods_of_two_nodes_talk_and_leave_nothing() -> anyhow::Result<()> {
    prove("cri-talk", NEEDS, |cluster| {
        let one = cluster.run_pod(0, "one", 0)?;
        let neighbor = cluster.run_pod(0, "neighbor", 0)?;
        let two = cluster.run_pod(1, "two", 0)?;
        for (asker, other) in [(&one, &two), (&two, &one), (&one, &neighbor)] {
            cluster.talks_to(asker, other)?;
        }
        // Kubelet stops a sandbox more than once: when the pod ends, and again before it removes it.
        let cri = &cluster.node(0)?.cri;
        cri.stop_pod_sandbox(&one.sandbox)?;
        cri.stop_pod_sandbox(&one.sandbox)?;
        Ok(())
    })
}

#[test]
fn containerd_killed_while_pods_are_made_leaves_nothing() -> anyhow::Result<()> {
    prove("cri-kill", NEEDS, |cluster| {
        let survivor = cluster.run_pod(0, "survivor", 0)?;
        let other = cluster.run_pod(1, "other", 0)?;
        in_the_middle(cluster, |node, lab| {
            node.containerd.kill()?;
            node.start_containerd(lab)
        })?;
        cluster.talks_to(&survivor, &other)?;
        try_again(cluster, &other)?;
        Ok(())
    })
}

#[test]
fn agent_killed_while_pods_are_made_leaves_nothing() -> anyhow::Result<()> {
    prove("cri-agent", NEEDS, |cluster| {
        let survivor = cluster.run_pod(0, "survivor", 0)?;
        let other = cluster.run_pod(1, "other", 0)?;
        in_the_middle(cluster, |node, lab| {
            node.kill_agent()?;
            node.start_agent(lab)
        })?;
        cluster.talks_to(&survivor, &other)?;
        try_again(cluster, &other)?;
        Ok(())
    })
}

#[test]
fn a_sandbox_stopped_while_no_agent_runs_is_freed_later() -> anyhow::Result<()> {
    prove("cri-down", NEEDS, |cluster| {
        let pod = cluster.run_pod(0, "pod", 0)?;
        let (node, lab) = (&mut cluster.nodes[0], &cluster.lab);
        node.kill_agent()?;
        let refused = node.cri.stop_pod_sandbox(&pod.sandbox);
        ensure!(
            refused.is_err(),
            "stopped, and nobody was there to free the address"
        );
        node.start_agent(lab)?;
        cluster.remove(0, &pod.sandbox)?;
        Ok(())
    })
}

#[test]
fn ctr_run_with_cni_gets_an_address_and_gives_it_back() -> anyhow::Result<()> {
    prove("cri-ctr", NEEDS, |cluster| {
        let machine = &cluster.node(0)?.machine;
        let cgroup = format!("{}/task", machine.cgroup());
        let words = [
            "run",
            "--cni",
            "--rm",
            "--snapshotter",
            "native",
            "--cgroup",
            &cgroup,
        ];
        let container = [BUSYBOX_IMAGE, "task", "/bin/ip", "-4", "address", "show", "eth0"];
        let printed = ctr(machine, &[&words[..], &container[..]].concat())?;
        ensure!(printed.contains("inet 10.244."), "{printed:?}");
        Ok(())
    })
}

/// Makes pods on the first node, all at a time, and does something to the node when some of them have addresses and
/// some may have not. What the runtime then answers is of no interest: kubelet tries again.
fn in_the_middle(
    cluster: &mut Cluster,
    interfere: impl FnOnce(&mut Node, &Lab) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let before = calico::addresses(&cluster.racks.etcd)?.len();
    let node = &mut cluster.nodes[0];
    let calls: Vec<_> = (0..PODS)
        .map(|pod| {
            let (cri, config) = (node.cri.clone(), node.sandbox_config(&format!("pod{pod}"), 0));
            std::thread::spawn(move || cri.run_pod_sandbox(&config))
        })
        .collect();
    let some = eventually("some of the pods have addresses", UNDER_WAY_WITHIN, || {
        let addresses = calico::addresses(&cluster.racks.etcd)?.len();
        ensure!(addresses > before, "{addresses} addresses, {before} before");
        Ok(())
    });
    let interfered = some.and_then(|()| interfere(node, &cluster.lab));
    let mut succeeded = 0;
    for call in calls {
        succeeded += usize::from(call.join().is_ok_and(|answer| answer.is_ok()));
    }
    println!("{succeeded} of {PODS} sandboxes were made nevertheless");
    interfered
}

/// The same pods once more, as kubelet tries again: what is known of the first attempt is removed, then comes the
/// second one, and it works.
fn try_again(cluster: &Cluster, other: &Pod) -> anyhow::Result<()> {
    for sandbox in cluster.nodes[0].cri.list_pod_sandbox()? {
        let name = sandbox.metadata.unwrap_or_default().name;
        if name.starts_with("pod") {
            cluster.remove(0, &sandbox.id)?;
        }
    }
    for pod in 0..PODS {
        let pod = cluster.run_pod(0, &format!("pod{pod}"), 1)?;
        cluster.talks_to(&pod, other)?;
    }
    Ok(())
}
