//! Who knows the way: the nodes' blocks in the routers' tables, and everything in the nodes' kernels.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;

use super::Proof;
use crate::calico;
use crate::cluster::{Cluster, NamedRouter};
use crate::eventually::eventually;
use crate::kernel::Route;
use crate::node::Node;
use crate::progress::Progress;

/// How long routes may take to be everywhere after the last pod was added.
const CONVERGES_WITHIN: Duration = Duration::from_secs(20);

/// The blocks of each node by its name.
type Blocks = BTreeMap<String, BTreeSet<IpNetwork>>;

/// Waits until all routers and nodes have all routes, then shows them.
///
/// # Errors
/// When etcd or a daemon does not answer.
pub fn routes_everywhere(cluster: &Cluster, progress: &Progress, proof: &mut Proof) -> anyhow::Result<()> {
    let mut blocks = Blocks::new();
    for node in &cluster.nodes {
        blocks.insert(
            node.name().to_owned(),
            calico::blocks_of(&cluster.etcd, node.name())?,
        );
    }
    for node in &cluster.nodes {
        let with_pods = cluster.pods.iter().any(|pod| pod.node == node.name());
        let has_block = blocks.get(node.name()).is_some_and(|blocks| !blocks.is_empty());
        if with_pods {
            let result = if has_block {
                Ok(())
            } else {
                Err(anyhow::anyhow!("none in etcd"))
            };
            proof.check(
                progress,
                ("blocks in etcd", format!("{} has a block", node.name())),
                result,
            );
        }
    }
    for router in &cluster.routers {
        router_knows_blocks(cluster, router, &blocks, (progress, proof))?;
    }
    for node in &cluster.nodes {
        node_has_routes(cluster, node, &blocks, (progress, proof));
    }
    if let Some(node) = cluster.nodes.first() {
        progress.step(format_args!("ip route on {}:", node.name()));
        show(progress, &node.namespace.ip("-4 route show")?, |_| true);
    }
    Ok(())
}

/// The router sends what belongs to a node's block to that node, or to a router that is nearer.
fn router_knows_blocks(
    cluster: &Cluster,
    router: &NamedRouter,
    blocks: &Blocks,
    (progress, proof): (&Progress, &mut Proof),
) -> anyhow::Result<()> {
    for (node, block) in pairs(blocks) {
        let spec = &cluster.node(node)?.settings;
        let direct = spec.router.0 == router.name;
        let name = format!(
            "{} sends {block} to {}",
            router.name,
            if direct { node } else { &spec.router.0 }
        );
        let result = eventually(&name, CONVERGES_WITHIN, || {
            let routes = router.daemon.routes()?;
            let hops = routes
                .get(&block)
                .with_context(|| format!("not among {:?}", routes.keys()))?;
            let right = if direct {
                hops.contains(&spec.address.ip())
            } else {
                !hops.is_empty()
            };
            ensure!(right, "next hops {hops:?}");
            Ok(())
        });
        proof.check(progress, ("blocks at the routers", name), result);
    }
    progress.step(format_args!("the pods' blocks as {} shows them:", router.name));
    let pools: Vec<IpNetwork> = cluster.topology.pools.iter().map(|pool| pool.cidr).collect();
    let mut in_block = false;
    show(progress, &router.daemon.show_routes()?, |line| {
        // BIRD puts the next hop on a line of its own below the prefix.
        let prefix = line
            .split_ascii_whitespace()
            .find_map(|word| word.parse::<IpNetwork>().ok());
        let continued =
            line.starts_with(char::is_whitespace) && prefix.is_none_or(|prefix| prefix.prefix() == 32);
        in_block = prefix.is_some_and(|prefix| {
            pools
                .iter()
                .any(|pool| pool.contains(prefix.ip()) && prefix.prefix() > pool.prefix())
        }) || (in_block && continued);
        in_block
    });
    Ok(())
}

/// A node delivers to its pods one by one, drops the rest of its blocks, and sends others' blocks on their way.
fn node_has_routes(
    cluster: &Cluster,
    node: &Node,
    blocks: &Blocks,
    (progress, proof): (&Progress, &mut Proof),
) {
    const GROUP: &str = "routes of nodes";
    for pod in cluster.pods.iter().filter(|pod| pod.node == node.name()) {
        let name = format!(
            "{} has a route to {} on a link of its own",
            node.name(),
            pod.address
        );
        let destination = pod.address.to_string();
        proof.check(
            progress,
            (GROUP, name.clone()),
            has_route(node, &name, &destination, &|route| {
                route.dev.as_deref().is_some_and(|dev| dev.starts_with("cali"))
                    && route.scope.as_deref() == Some("link")
            }),
        );
    }
    for (owner, block) in pairs(blocks) {
        let destination = block.to_string();
        if owner == node.name() {
            let name = format!("{} drops what is left of {block}", node.name());
            let result = has_route(node, &name, &destination, &|route| {
                route.kind.as_deref() == Some("blackhole")
            });
            proof.check(progress, (GROUP, name), result);
        } else if let Ok(owner) = cluster.node(owner) {
            let gateways = expected_gateways(node, owner);
            let name = format!("{} sends {block} to {}", node.name(), gateways.join(" or "));
            let result = has_route(node, &name, &destination, &|route| {
                let found = route.gateways();
                !found.is_empty() && found.iter().all(|gateway| gateways.iter().any(|g| g == gateway))
            });
            proof.check(progress, (GROUP, name), result);
        }
    }
}

/// Reflector clients in one subnet send to each other directly, which is what the unchanged next hop of RFC 4456 is
/// for. An external speaker may name itself or, in a shared subnet, the other (RFC 4271 §5.1.3).
fn expected_gateways(node: &Node, owner: &Node) -> Vec<String> {
    let (router, owner_address) = (node.settings.router.1.to_string(), owner.address().to_string());
    let one_subnet =
        node.settings.router.0 == owner.settings.router.0 && node.settings.address.contains(owner.address());
    let internal = |node: &Node| node.settings.as_number == node.settings.router.2;
    if !one_subnet {
        vec![router]
    } else if internal(node) && internal(owner) {
        vec![owner_address]
    } else {
        vec![owner_address, router]
    }
}

fn has_route(
    node: &Node,
    what: &str,
    destination: &str,
    is_right: &dyn Fn(&Route) -> bool,
) -> anyhow::Result<()> {
    eventually(what, CONVERGES_WITHIN, || {
        let routes = node.routes()?;
        let found: Vec<&Route> = routes.iter().filter(|route| route.dst == destination).collect();
        ensure!(!found.is_empty(), "no route to {destination}");
        ensure!(found.iter().any(|route| is_right(route)), "{found:?}");
        Ok(())
    })
}

fn pairs(blocks: &Blocks) -> impl Iterator<Item = (&str, IpNetwork)> {
    blocks
        .iter()
        .flat_map(|(node, blocks)| blocks.iter().map(move |block| (node.as_str(), *block)))
}

fn show(progress: &Progress, text: &str, mut wanted: impl FnMut(&str) -> bool) {
    for line in text.lines().filter(|line| wanted(line)) {
        progress.line(format_args!("  {}", line.replace('\t', "        ").trim_end()));
    }
}
