//! The collector in a running agent: what is dead is released, what lives in any way stays.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

mod cluster;
mod namespaces;

use std::collections::BTreeMap;
use std::net::IpAddr;

use calidris_ipam::{AddressRequest, AssignRequest, Inventory, Ipam, UnixNanos, keys};
use calidris_ipam_etcd::{EtcdConfig, EtcdStore};
use cluster::{Agent, Cluster, Pod, Process, has_etcd};
use namespaces::{Namespace, possible};

const POOL: &str = r#"{"cidr":"10.65.0.0/24","blockSize":28}"#;
const SOON: &str = "[ipam]\ncollect_interval = \"200ms\"\ncollect_grace = \"1s\"\nblock_idle = \"1s\"\n";

macro_rules! require {
    ($test:literal) => {
        if !possible($test) || !has_etcd($test) {
            return;
        }
    };
}

#[test]
fn what_is_dead_is_released_with_its_proof_and_what_lives_stays() {
    require!("what_is_dead_is_released");
    let cluster = Cluster::new(POOL);
    let mut agent = cluster.start_agent_with(SOON);
    let pod = Pod::new("web-1", "c0ffee01");
    let reachable = agent.add(&pod).unwrap().ips[0].address.ip();

    // Another program's container: no endpoint, no route of ours, but a process with the address.
    let foreign = Namespace::new();
    foreign.sh("ip addr add 10.65.0.77/32 dev lo");
    let _alive = Process::start("sleep", &foreign, "sleep 600");
    // A route of ours (or Calico's) leads to the next, and nothing at all to the last.
    cluster
        .node
        .sh("ip link add cali0 type veth peer name x; ip link set cali0 up; ip link set x up");
    cluster.node.sh("ip route add 10.65.0.78/32 dev cali0");
    for (container, address) in [
        ("foreign", "10.65.0.77"),
        ("routed", "10.65.0.78"),
        ("dead", "10.65.0.79"),
    ] {
        assign(&cluster, "node1", container, address);
    }
    assign(&cluster, "node2", "elsewhere", "10.65.0.130");

    let line = agent.wait_for("released what nobody uses");
    for expected in [
        "10.65.0.79 of handle net.dead on node1",
        "no endpoint, no container, no interface",
    ] {
        assert!(line.contains(expected), "{line}");
    }
    // A later dead one goes when the others had their time, too.
    assign(&cluster, "node1", "dead-later", "10.65.0.90");
    agent.wait_for("net.dead-later");
    let handles: Vec<String> = inventory(&cluster).handles.into_keys().collect();
    assert_eq!(
        handles,
        ["net.c0ffee01", "net.elsewhere", "net.foreign", "net.routed"]
    );
    cluster.node.sh(&format!("ping -c1 -W5 {reachable}"));

    agent.del(&pod).unwrap();
    cluster.node.sh("ip route del 10.65.0.78/32");
    agent.wait_for("net.routed");
}

#[test]
fn an_attachment_that_nobody_calls_del_for_is_freed() {
    require!("an_attachment_that_nobody");
    let cluster = Cluster::new(POOL);
    let mut agent = cluster.start_agent_with(SOON);
    let (living, forgotten) = (Pod::new("web-1", "c0ffee01"), Pod::new("web-2", "c0ffee02"));
    let reachable = agent.add(&living).unwrap().ips[0].address.ip();
    agent.add(&forgotten).unwrap();
    assert_eq!(cluster.keys_of_pods().len(), 4, "{:?}", cluster.keys_of_pods());
    // Its network namespace goes, and its link with it.
    drop(forgotten);
    let line = agent.wait_for("nobody called DEL");
    assert!(line.contains("c0ffee02"), "{line}");
    let keys = cluster.keys_of_pods();
    assert!(
        keys.len() == 2
            && !keys
                .iter()
                .any(|key| key.contains("web--2") || key.contains("c0ffee02")),
        "{keys:?}"
    );
    cluster.node.sh(&format!("ping -c1 -W5 {reachable}"));
    agent.del(&living).unwrap();
    assert!(!cluster.node.sh("ip link; ip route").contains("cali"));
}

#[test]
fn what_an_agent_that_ended_had_still_to_undo_is_freed_by_its_successor() {
    require!("what_an_agent_that_ended");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    agent.add(&pod).unwrap();
    agent.kill();
    // What an ADD leaves that failed while the datastore was away and took effect there later: an endpoint without a link.
    cluster
        .node
        .sh("ip link del cali751425ce827; ip route flush proto 202");
    assert_eq!(cluster.keys_of_pods().len(), 2, "{:?}", cluster.keys_of_pods());
    let mut successor = cluster.start_agent_with(SOON);
    let line = successor.wait_for("nobody called DEL");
    assert!(line.contains("c0ffee01"), "{line}");
    assert_eq!(cluster.keys_of_pods(), [""; 0]);
}

#[test]
fn blocks_that_are_not_used_are_given_back_and_no_longer_routed() {
    require!("blocks_that_are_not_used");
    let cluster = Cluster::new(POOL);
    let mut agent = cluster.start_agent_with(SOON);
    let pod = Pod::new("web-1", "c0ffee01");
    agent.add(&pod).unwrap();
    let used = inventory(&cluster).blocks_of("node1");
    let named = ["10.65.0.0", "10.65.0.16", "10.65.0.32"].map(|address| address.parse::<IpAddr>().unwrap());
    assert!(
        used.len() == 1 && !used.iter().any(|block| named.contains(&block.ip())),
        "{used:?}"
    );
    // Two blocks more by name; their containers are dead.
    for (container, address) in [("one", "10.65.0.0"), ("two", "10.65.0.16")] {
        assign(&cluster, "node1", container, address);
    }
    for _ in 0..2 {
        agent.wait_for("released what nobody uses");
    }
    wait_for_all(
        &mut agent,
        &[
            "gave an unused block back\",\"proof\":\"block 10.65.0.0/28",
            "gave an unused block back\",\"proof\":\"block 10.65.0.16/28",
            "route: delete 10.65.0.0/28 metric 1024 blackhole",
            "route: delete 10.65.0.16/28 metric 1024 blackhole",
        ],
    );
    assert_eq!(inventory(&cluster).blocks_of("node1"), used);
    assert_eq!(inventory(&cluster).blocks.len(), 1);

    agent.del(&pod).unwrap();
    // The last one is kept. The proof that something was decided after it became empty: another dead one goes.
    assign(&cluster, "node1", "three", "10.65.0.32");
    agent.wait_for("released what nobody uses");
    agent.wait_for("gave an unused block back");
    assert_eq!(inventory(&cluster).blocks_of("node1").len(), 1);
}

/// Waits until each of `texts` was said, in whatever order.
fn wait_for_all(agent: &mut Agent, texts: &[&str]) {
    let mut missing = texts.to_vec();
    while !missing.is_empty() {
        let line = agent.wait_for("");
        missing.retain(|text| !line.contains(text));
    }
}

/// Gives `address` to a container of `node`, without an endpoint.
fn assign(cluster: &Cluster, node: &str, container: &str, address: &str) {
    let address: IpAddr = address.parse().unwrap();
    let request = AssignRequest {
        v4: AddressRequest::Exactly(vec![address]),
        attributes: BTreeMap::new(),
        ..AssignRequest::new(&format!("net.{container}"), node)
    };
    in_cluster(cluster, async |ipam| {
        ipam.assign(&request, UnixNanos(1_795_222_800_000_000_000))
            .await
            .unwrap();
    });
}

fn inventory(cluster: &Cluster) -> Inventory {
    in_cluster(cluster, async |ipam| ipam.inventory().await.unwrap())
}

/// Does `work` on the cluster's etcd, from within its namespace.
fn in_cluster<T: Send>(cluster: &Cluster, work: impl AsyncFn(Ipam<EtcdStore>) -> T + Sync) -> T {
    cluster.node.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let config = EtcdConfig::new(vec!["http://127.0.0.1:2379".to_owned()]);
        runtime.block_on(work(Ipam::new(EtcdStore::new(config))))
    })
}

#[test]
fn a_zero_interval_collects_nothing() {
    require!("a_zero_interval");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent_with("[ipam]\ncollect_interval = \"0s\"\n");
    assign(&cluster, "node1", "dead", "10.65.0.79");
    assert!(agent.terminate().success());
    assert!(inventory(&cluster).handles.contains_key("net.dead"));
    assert!(
        inventory(&cluster)
            .affinities
            .keys()
            .any(|(node, block)| keys::affinity(node, *block).contains("/node1/"))
    );
}
