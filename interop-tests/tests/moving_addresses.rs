//! Addresses that are not on the node that their block belongs to: borrowed ones, and that of a virtual machine that migrates. Routers
//! and nodes prefer the way to the address to that to its block.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::calico;
use calidris_interop::cluster::Cluster;
use calidris_interop::eventually::{eventually, steadily};
use calidris_interop::pinger::{Pinger, Pings};
use calidris_interop::pod::Pod;
use calidris_interop::progress::{Progress, Stream};
use calidris_interop::require;
use calidris_interop::require::{LAB, Need};
use calidris_interop::topology::PoolSpec;
use ipnetwork::IpNetwork;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
/// Where a pod is that migrates, and where it goes; a third node looks on.
const SOURCE: usize = 0;
const TARGET: usize = 1;
const CLIENT: usize = 2;
const MIGRATION: &str = "/calico/resources/v3/projectcalico.org/livemigrations/demo/m1";
/// Longer than a look takes.
const SETTLE_TIME: &str = "2s";
/// Time between two datagrams.
const PACE: Duration = Duration::from_millis(1);
/// Datagrams of a stream that may be lost when its way changes.
const IN_FLIGHT: usize = 2;

/// The route to exactly this address in the main table of a node, as `ip` shows it; empty without one.
fn route(cluster: &Cluster, node: usize, address: IpAddr) -> anyhow::Result<String> {
    cluster.nodes[node].namespace.ip(&format!("route show {address}"))
}

fn until_route(cluster: &Cluster, node: usize, address: IpAddr, parts: &[&str]) -> anyhow::Result<()> {
    let what = format!(
        "{} has a route to {address} with {parts:?}",
        cluster.nodes[node].name()
    );
    eventually(&what, SOON, || {
        let route = route(cluster, node, address)?;
        ensure!(parts.iter().all(|part| route.contains(part)), "{route}");
        Ok(())
    })
}

/// Waits until both routers send packets to an address another way than those to its block: BIRD straight to the node.
fn until_routers_prefer(cluster: &Cluster, address: IpAddr, node: usize) -> anyhow::Result<()> {
    let prefix = IpNetwork::from(address);
    for (router, next_hop) in cluster
        .routers
        .iter()
        .zip([Some(cluster.nodes[node].address()), None])
    {
        eventually(&format!("{} knows {prefix}", router.name), SOON, || {
            let routes = router.daemon.routes()?;
            let hops = routes.get(&prefix).with_context(|| format!("{routes:?}"))?;
            ensure!(next_hop.is_none_or(|next_hop| hops == &[next_hop]), "{hops:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn pod<'a>(cluster: &'a Cluster, name: &str) -> anyhow::Result<&'a Pod> {
    let found = cluster.pods.iter().find(|pod| pod.name == name);
    found.with_context(|| format!("no pod {name}"))
}

#[test]
fn borrowed_addresses_and_a_machine_that_migrates_are_reached_where_they_are() -> anyhow::Result<()> {
    require!(LAB);
    require!(&[Need::ReferencePlugins]);
    let mut cluster = Cluster::for_test("moving", 3)?;
    let progress = Progress::start(Stream::Error);
    let (node, lab) = cluster.node_mut("node2")?;
    node.terminate_agent()?;
    node.reconfigure(|settings| settings.live_migration_settle_time = Some(SETTLE_TIME.to_owned()))?;
    node.start_agent(lab)?;
    node.wait_until_ready()?;
    cluster.wait_for_sessions()?;
    cluster.add_pod(CLIENT, "client")?;
    borrowed_addresses_are_preferred_to_their_blocks(&mut cluster)?;
    progress.step("a borrowed address is reached by BGP, and by the datastore");
    a_machine_migrates(&mut cluster, &progress)?;
    cluster.lab.take_down()
}

/// There is one block for two nodes: the second one borrows.
fn borrowed_addresses_are_preferred_to_their_blocks(cluster: &mut Cluster) -> anyhow::Result<()> {
    let pool = PoolSpec {
        name: "one-block".to_owned(),
        cidr: "10.246.0.0/29".parse()?,
        block_size: 29,
        nat_outgoing: false,
    };
    calico::put_pool(&cluster.etcd, &pool, calico::PLAIN)?;
    let owner = cluster.add_pod_from(SOURCE, "owner", &pool.name)?.address;
    let borrower = cluster.add_pod_from(TARGET, "borrower", &pool.name)?.address;
    ensure!(pool.cidr.contains(borrower), "{borrower}");
    ensure!(calico::blocks_of(&cluster.etcd, "node1")?.contains(&pool.cidr));
    ensure!(!calico::blocks_of(&cluster.etcd, "node2")?.contains(&pool.cidr));
    let via = format!("via {} ", cluster.nodes[TARGET].address());
    until_route(cluster, SOURCE, borrower, &[&via, "proto 203"])?;
    until_route(cluster, CLIENT, borrower, &["proto 203"])?;
    until_routers_prefer(cluster, borrower, TARGET)?;
    let reached = |cluster: &Cluster| -> anyhow::Result<()> {
        for (from, to) in [
            ("client", borrower),
            ("owner", borrower),
            ("client", owner),
            ("borrower", owner),
        ] {
            let from = pod(cluster, from)?;
            let answer = eventually(&format!("{to} answers {}", from.name), SOON, || from.ask(to))?;
            ensure!(answer.you == from.address, "{answer:?}");
        }
        Ok(())
    };
    reached(cluster)?;
    // The same by what the datastore says.
    calico::put_pool(&cluster.etcd, &pool, ("Never", "Always"))?;
    for node in [SOURCE, CLIENT] {
        until_route(cluster, node, borrower, &["dev vxlan.calico", "proto 204"])?;
    }
    reached(cluster)
}

/// A pod's address goes from the first node to the second one, as Calico does it for KubeVirt.
fn a_machine_migrates(cluster: &mut Cluster, progress: &Progress) -> anyhow::Result<()> {
    let pool = cluster
        .topology
        .pools
        .first()
        .context("the demo has a pool")?
        .name
        .clone();
    let address = cluster.add_pod_from(SOURCE, "source", &pool)?.address;
    cluster.add_pod_from(SOURCE, "near", &pool)?;
    let (client, near) = (pod(cluster, "client")?, pod(cluster, "near")?);
    let client_address = client.address;
    for from in [client, near] {
        eventually("the machine answers", SOON, || from.ask(address))?;
    }
    let streams = [
        Pinger::start_every(PACE, &client.namespace, address)?,
        Pinger::start_every(PACE, &near.namespace, address)?,
    ];
    cluster.etcd.put(MIGRATION, &migration())?;

    // It is made on the other node, and does not run there yet.
    let runtime = cluster.nodes[TARGET].runtime_giving(address)?;
    let target = cluster.add_pod_by(TARGET, "target", &runtime)?.namespace.clone();
    steadily(
        "there is no route to it where it does not run",
        Duration::from_millis(300),
        || {
            let route = route(cluster, TARGET, address)?;
            ensure!(!route.contains("dev cali"), "{route}");
            Ok(())
        },
    )?;

    // It runs there, and says so: the kernel makes gratuitous ARP of this, and forgets the gateway.
    target.sysctl("net.ipv4.conf.eth0.arp_notify", "1")?;
    let links: Value = serde_json::from_str(&target.ip("-j link show eth0")?)?;
    let mac = links
        .pointer("/0/address")
        .and_then(Value::as_str)
        .context("a MAC address")?;
    target.ip(&format!("link set eth0 address {mac}"))?;
    target.ip("neigh replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent")?;
    until_route(cluster, TARGET, address, &["dev cali", "proto 202", "metric 512"])?;
    until_routers_prefer(cluster, address, TARGET)?;
    until_route(cluster, CLIENT, address, &["proto 203"])?;
    until_route(cluster, SOURCE, address, &["dev cali", "metric 1024"])?;

    // It ends where it was: what is there now leads to where it is, and what was tracked is forgotten.
    let tracked = |cluster: &Cluster| {
        let mut command = Command::new("conntrack");
        command.args([
            "-L",
            "-s",
            &client_address.to_string(),
            "-d",
            &address.to_string(),
        ]);
        cluster.nodes[SOURCE].namespace.run(&mut command)
    };
    let before = tracked(cluster)?;
    ensure!(before.contains("udp"), "nothing was tracked: {before}");
    cluster.delete_pod("source")?;
    let via = format!("via {} ", cluster.nodes[TARGET].address());
    until_route(cluster, SOURCE, address, &[&via, "proto 203"])?;
    eventually("the connections of the address are forgotten", SOON, || {
        let tracked = tracked(cluster)?;
        ensure!(tracked.is_empty(), "{tracked}");
        Ok(())
    })?;
    cluster.etcd.delete_prefix(MIGRATION)?;
    until_route(cluster, TARGET, address, &["dev cali", "metric 1024"])?;
    let route = route(cluster, TARGET, address)?;
    ensure!(!route.contains("metric 512"), "{route}");
    until_routers_prefer(cluster, address, TARGET)?;

    for stream in streams {
        let path = stream.path().to_owned();
        let Pings { sent, lost } = stream.stop()?;
        progress.step(format_args!("{path}: {} of {sent} datagrams lost", lost.len()));
        ensure!(
            sent > 0 && lost.len() <= IN_FLIGHT,
            "{path}: {} of {sent} lost, sent at {lost:?}",
            lost.len()
        );
    }
    Ok(())
}

fn migration() -> String {
    let end = |pod: &str| {
        format!(r#"{{"Workload":{{"Hostname":"","OrchestratorID":"k8s","WorkloadID":"demo/{pod}"}}}}"#)
    };
    format!(
        r#"{{"kind":"LiveMigration","apiVersion":"projectcalico.org/v3","metadata":{{"name":"m1","namespace":"demo"}},"spec":{{"Source":{},"Target":{}}}}}"#,
        end("source"),
        end("target")
    )
}
