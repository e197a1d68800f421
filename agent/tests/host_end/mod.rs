//! What the agent keeps right of a pod's link after ADD: the pod's neighbour on the host's end.

use super::cluster::{Cluster, Pod, has_etcd};
use super::eventually::eventually;
use super::namespaces::possible;
use super::{POOL, address};

#[test]
fn a_pods_neighbour_stays_once_learnt_unless_it_has_another_mac_address() {
    if !possible("a_pods_neighbour_stays") || !has_etcd("a_pods_neighbour_stays") {
        return;
    }
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let pods = [Pod::new("web-1", "c0ffee01"), Pod::new("web-2", "c0ffee02")];
    let results = [0, 1].map(|number: usize| agent.add(&pods[number]).unwrap());
    let permanent = |number: usize| {
        let link = &results[number].interfaces[0].name;
        cluster
            .node
            .sh(&format!("ip -d neigh show dev {link} nud permanent"))
    };
    // As the plugin tuning does. The pod forgets its gateway's address then; ARP for it is answered where there is a default route.
    cluster.node.sh("ip route add default via 192.0.2.254");
    pods[1].namespace.sh("ip link set eth0 address 02:00:00:44:55:66");
    // The other one first: when the second is kept, what was learnt of the first has been looked at.
    for number in [1, 0] {
        cluster
            .node
            .sh(&format!("ping -c1 -W5 {}", address(&results[number])));
    }
    let kept = format!(
        "{} lladdr {} PERMANENT proto 202",
        address(&results[0]),
        results[0].interfaces[1].mac
    );
    eventually(&kept, || (permanent(0).trim() == kept).then_some(()));
    assert_eq!(permanent(1), "");
    cluster.node.sh(&format!("ping -c1 -W5 {}", address(&results[1])));

    let plan = cluster.calidris("plan --config {config}");
    assert_eq!(String::from_utf8_lossy(&plan.stdout), "");
    agent.kill();
    let agent = cluster.start_agent();
    assert_eq!(agent.status().dataplane.operations, 0, "a restart writes");
    assert_eq!(permanent(0).trim(), kept);
    agent.del(&pods[0]).unwrap();
    assert!(
        !cluster
            .node
            .sh("ip neigh show nud permanent")
            .contains("proto 202")
    );
}
