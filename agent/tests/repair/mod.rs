//! What somebody changes behind a running agent is mended at once, by what the kernel reports: long before everything is
//! read back.

use super::cluster::{Cluster, Pod, has_etcd};
use super::eventually::eventually;
use super::namespaces::possible;

const VXLAN_POOL: &str = r#"{"cidr":"10.65.0.0/16","vxlanMode":"Always","natOutgoing":true,"blockSize":26}"#;
const OTHER_NODE: &str = r#"{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node2"},"spec":{"bgp":{"ipv4Address":"192.0.2.12/24"},"ipv4VXLANTunnelAddr":"10.65.64.0","vxlanTunnelMACAddr":"66:00:00:00:00:02"}}"#;
/// All there is of ours that the damages below concern, in lines. Of tables made anew the kernel chooses the order.
fn picture(cluster: &Cluster) -> Vec<String> {
    let text = cluster.node.sh(
        "for n in 202 203 204; do ip route show table all proto $n; done; ip -4 -o addr show dev vxlan.calico scope global | sed 's/^[0-9]*//'; \
         ip neigh show dev vxlan.calico nud permanent; bridge fdb show dev vxlan.calico | sort; \
         for d in vxlan.calico cali751425ce827; do cat /sys/class/net/$d/address /sys/class/net/$d/mtu; ip link show $d up | grep -o '[<,]UP[,>]'; done; \
         cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/cali751425ce827/forwarding /proc/sys/net/ipv4/conf/cali751425ce827/proxy_arp; nft --stateless list ruleset",
    );
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn damage_is_mended_as_it_happens() {
    if !possible("damage_is_mended") || !has_etcd("damage_is_mended") {
        return;
    }
    let cluster = Cluster::new(VXLAN_POOL);
    cluster.put("/calico/resources/v3/projectcalico.org/nodes/node2", OTHER_NODE);
    let (free, ordinals) = (
        vec!["null"; 64].join(","),
        (0..64).map(|n| n.to_string()).collect::<Vec<_>>(),
    );
    let block = format!(
        r#"{{"cidr":"10.65.64.0/26","affinity":"host:node2","allocations":[{free}],"unallocated":[{}],"attributes":[],"deleted":false}}"#,
        ordinals.join(",")
    );
    cluster.put("/calico/ipam/v2/assignment/ipv4/block/10.65.64.0-26", &block);
    let agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    agent.add(&pod).unwrap();
    eventually("the tunnel and the way to the other node are there", || {
        let routes = cluster.node.sh("ip route show proto 204");
        routes
            .contains("10.65.64.0/26 via 10.65.64.0 dev vxlan.calico")
            .then_some(())
    });
    let before = picture(&cluster);
    for damage in [
        "ip route flush proto 202",
        "ip route del 10.65.64.0/26 proto 204",
        "ip link set cali751425ce827 down",
        "ip link set cali751425ce827 down; ip link set cali751425ce827 up",
        "ip link set cali751425ce827 address 02:00:00:00:00:01",
        "ip link set vxlan.calico down",
        "ip link set vxlan.calico down; ip link set vxlan.calico up",
        "ip link set vxlan.calico mtu 1300",
        "ip link set vxlan.calico address 02:00:00:00:00:01",
        "ip link del vxlan.calico",
        "ip addr flush dev vxlan.calico",
        "ip neigh del 10.65.64.0 dev vxlan.calico",
        "bridge fdb del 66:00:00:00:00:02 dev vxlan.calico dst 192.0.2.12 self",
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
        "nft delete table inet calidris",
        "nft add rule inet calidris nat-outgoing accept",
    ] {
        cluster.node.sh(damage);
        eventually(&format!("as it was before: {damage}"), || {
            let now = picture(&cluster);
            let missing: Vec<&String> = before.iter().filter(|line| !now.contains(line)).collect();
            // Shown if it fails.
            println!("after {damage}: {missing:#?}");
            (now == before).then_some(())
        });
    }
    cluster.node.sh("ip link set up0 mtu 1400");
    eventually("the tunnel follows the uplink's MTU", || {
        let mtu = cluster.node.sh("cat /sys/class/net/vxlan.calico/mtu");
        (mtu.trim() == "1350").then_some(())
    });
}
