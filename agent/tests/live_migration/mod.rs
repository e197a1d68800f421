//! A workload that migrates to this node: no route before it runs here, preferred ones when it does, and for a while after.

use std::net::IpAddr;

use calidris_cni::result::AddResult;

use super::POOL;
use super::cluster::{Cluster, Pod, has_etcd};
use super::eventually::eventually;
use super::namespaces::possible;

const V6_POOL: &str = r#"{"cidr":"fd00:10:65::/64","blockSize":122}"#;
const BOTH_FAMILIES: &str = r#""ipam":{"assign_ipv4":"true","assign_ipv6":"true"}"#;
const MIGRATION: &str = "/calico/resources/v3/projectcalico.org/livemigrations/shop/m1";
const SPEC: &str = r#"{"kind":"LiveMigration","apiVersion":"projectcalico.org/v3","metadata":{"name":"m1","namespace":"shop"},"spec":{"Source":null,"Target":{"Workload":{"Hostname":"","OrchestratorID":"k8s","WorkloadID":"shop/vm-1"}}}}"#;
/// Longer than a look takes, shorter than anybody waits.
const SETTLE_TIME: &str = "[dataplane]\nlive_migration_settle_time = \"3s\"";

/// The metrics of the routes to the pod, in both families.
fn metrics(cluster: &Cluster, result: &AddResult) -> Vec<Option<u32>> {
    let metric = |address: IpAddr| {
        let family = if address.is_ipv4() { 4 } else { 6 };
        let route = cluster.node.sh(&format!("ip -{family} route show {address}"));
        let mut words = route.split_whitespace().skip_while(|word| *word != "metric");
        words.nth(1).map(|metric| metric.parse().unwrap())
    };
    result.ips.iter().map(|ip| metric(ip.address.ip())).collect()
}

#[test]
fn a_workload_that_migrates_here_is_preferred_once_it_runs_here_and_for_a_while() {
    if !possible("a_workload_that_migrates") || !has_etcd("a_workload_that_migrates") {
        return;
    }
    let cluster = Cluster::new(POOL);
    cluster.put_pool("pool6", V6_POOL);
    cluster.put(MIGRATION, SPEC);
    let agent = cluster.start_agent_with(SETTLE_TIME);
    let pods = [Pod::new("vm-1", "c0ffee01"), Pod::new("web-1", "c0ffee02")];
    let [vm, web] = [0, 1].map(|number: usize| agent.add_with(&pods[number], BOTH_FAMILIES).unwrap());
    let until = |metric: Option<u32>, when: &str| {
        eventually(&format!("metric {metric:?} {when}"), || {
            (metrics(&cluster, &vm) == [metric; 2]).then_some(())
        });
    };
    until(None, "before it runs here");
    // It says so, as a machine that resumes does: the kernel makes gratuitous ARP of this. It also makes the pod forget its
    // gateway; ARP for that is answered where there is a default route.
    cluster.node.sh("ip route add default via 192.0.2.254");
    pods[0]
        .namespace
        .sh("echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_notify");
    let announce = || {
        let mac = pods[0].namespace.sh("cat /sys/class/net/eth0/address");
        pods[0].namespace.sh(&format!("ip link set eth0 address {mac}"));
    };
    eventually("what it says is heard", || {
        announce();
        (metrics(&cluster, &vm) == [Some(512); 2]).then_some(())
    });
    assert_eq!(metrics(&cluster, &web), [Some(1024); 2], "the other one");
    cluster
        .node
        .sh(&format!("ping -c1 -W5 {}", vm.ips[0].address.ip()));

    // Another agent knows nothing of what was said, and takes the kernel's word.
    agent.kill();
    let agent = cluster.start_agent_with(SETTLE_TIME);
    assert_eq!(agent.status().dataplane.operations, 0, "a restart writes");
    let plan = cluster.calidris("plan --config {config}");
    assert_eq!(String::from_utf8_lossy(&plan.stdout), "");

    cluster.delete(MIGRATION);
    assert_eq!(
        metrics(&cluster, &vm),
        [Some(512); 2],
        "the others are hearing of it"
    );
    until(Some(1024), "when the others have heard of it");
}
