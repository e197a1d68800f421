//! An overlay beside BGP: a pool whose packets go in VXLAN between subnets, on nodes that have routes by BGP for the other pool.

use anyhow::ensure;

use super::Proof;
use super::reachability::expect;
use crate::calico;
use crate::cluster::Cluster;
use crate::eventually::eventually;
use crate::node::Node;
use crate::pod::Pod;
use crate::progress::Progress;
use crate::topology::PoolSpec;

const GROUP: &str = "overlay beside BGP";
/// How long tunnels and routes may take to be there.
const READY_WITHIN: std::time::Duration = std::time::Duration::from_secs(20);

/// Adds the pool, and a pod of it to each node; then they, the pods of the other pool and the outside reach each other, each
/// by its way. The pods stay.
///
/// # Errors
/// When etcd does not answer or the plugin refuses.
pub fn overlay_beside_bgp(
    cluster: &mut Cluster,
    progress: &Progress,
    proof: &mut Proof,
) -> anyhow::Result<()> {
    let pool = PoolSpec {
        name: "overlay-ipv4".to_owned(),
        cidr: "10.245.0.0/16".parse()?,
        block_size: 26,
        nat_outgoing: true,
    };
    calico::put_pool(&cluster.etcd, &pool, ("Never", "CrossSubnet"))?;
    for node in &cluster.nodes {
        let what = format!("{} has a tunnel to every other node", node.name());
        let result = has_tunnel(node, cluster.nodes.len() - 1, &what);
        proof.check(progress, (GROUP, what), result);
    }
    let by_bgp = cluster.pods.len();
    for number in 0..cluster.nodes.len() {
        cluster.add_pod_from(number, &format!("overlay{}", number + 1), &pool.name)?;
    }
    let (others, overlaid) = cluster.pods.split_at(by_bgp);
    for node in &cluster.nodes {
        for pod in others
            .iter()
            .chain(overlaid)
            .filter(|pod| pod.node != node.name())
        {
            let is_overlaid = pool.cidr.contains(pod.address);
            let owner = cluster.node(&pod.node)?;
            let (way, wanted) = way(node, owner, is_overlaid);
            let what = format!("{} sends {} {way}", node.name(), pod.address);
            let result = sends(node, pod, &wanted, &what);
            proof.check(progress, (GROUP, what), result);
        }
    }
    let pairs = overlaid
        .iter()
        .flat_map(|one| cluster.pods.iter().map(move |other| (one, other)))
        .filter(|(one, other)| one.name != other.name);
    for (one, other) in pairs {
        for (client, server) in [(one, other), (other, one)] {
            let what = format!("{} asks {}, seen as {}", client.name, server.name, client.address);
            let result = expect(&client.namespace, server, client.address);
            proof.check(progress, (GROUP, what), result);
        }
    }
    for host in &cluster.hosts {
        for pod in overlaid {
            let what = format!("{} asks {}, seen as {}", host.name, pod.name, host.address);
            let result = expect(&host.namespace, pod, host.address);
            proof.check(progress, (GROUP, what), result);
        }
    }
    progress.step(format_args!(
        "a VXLAN pool beside the one with BGP: {} facts hold about its tunnels, its routes, and who reaches whom",
        proof.score(GROUP)
    ));
    Ok(())
}

fn has_tunnel(node: &Node, remotes: usize, what: &str) -> anyhow::Result<()> {
    eventually(what, READY_WITHIN, || {
        let status = node.status()?;
        let tunnel = &status["tunnels"][0];
        let known = tunnel["remotes"].as_object().map_or(0, serde_json::Map::len);
        let is_ready = tunnel["device"] == "vxlan.calico" && tunnel["state"] == "up" && known == remotes;
        ensure!(is_ready, "{}", status["tunnels"]);
        Ok(())
    })
}

/// How packets for a pod travel from a node to another, and what the route says of it.
fn way(from: &Node, to: &Node, is_overlaid: bool) -> (&'static str, Vec<String>) {
    let is_near = from.settings.address.contains(to.address());
    match (is_overlaid, is_near) {
        (true, true) => (
            "straight",
            vec![format!("via {} ", to.address()), "proto 204".to_owned()],
        ),
        (true, false) => (
            "in VXLAN",
            vec!["dev vxlan.calico ".to_owned(), "proto 204".to_owned()],
        ),
        (false, _) => ("as BGP says", vec!["proto 203".to_owned()]),
    }
}

fn sends(node: &Node, pod: &Pod, wanted: &[String], what: &str) -> anyhow::Result<()> {
    eventually(what, READY_WITHIN, || {
        let route = node
            .namespace
            .ip(&format!("route get fibmatch {}", pod.address))?;
        ensure!(wanted.iter().all(|part| route.contains(part)), "{route}");
        Ok(())
    })
}
