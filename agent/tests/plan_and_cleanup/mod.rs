//! `calidris plan` and `calidris cleanup` beside what others have on the node.

use std::process::Output;

use super::cluster::{Agent, Cluster, Pod, has_etcd};
use super::namespaces::possible;
use super::{POOL, address};

/// Things of others that look as much like ours as can be.
const FOREIGN: &str = "\
ip link add calibration0 type veth peer name calibration1
ip link set calibration1 alias somebody:calidris
ip link set calibration0 up; ip link set calibration1 up
ip route add 10.65.9.0/24 via 192.0.2.77 proto 80
ip route add 10.65.8.8/32 dev calibration0 metric 1024
ip route add blackhole 10.98.0.0/16 proto bird metric 1024
ip route add 10.97.0.0/16 via 192.0.2.77 table 77
ip rule add from 10.65.0.0/16 lookup 77 priority 1077
ip neigh add 10.65.8.9 lladdr 02:00:00:00:00:09 dev calibration0
ip neigh add proxy 10.65.8.10 dev calibration0 proto static
ip rule add lookup main suppress_prefixlength 0 priority 32000 proto static
nft add table inet other
nft add chain inet other calidris '{ type nat hook postrouting priority 100; }'
nft add rule inet other calidris ip saddr 10.65.0.0/16 counter accept
nft add table ip calidris";

fn run(cluster: &Cluster, command: &str) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = cluster.calidris(command);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Everything in the namespace but what the kernel is still making up its mind about (IPv6 link-local addresses).
fn picture(cluster: &Cluster) -> String {
    cluster.node.sh(
        "ip -o link; ip -o -4 addr; ip -4 route show table all; ip -6 route show table all | grep -Ev 'fe80|ff00'; ip rule; ip -6 rule; ip neigh show nud permanent; ip neigh show proxy; nft -s list ruleset",
    )
}

fn with_pod(cluster: &Cluster) -> (Agent, Pod, String) {
    let agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    let address = address(&agent.add(&pod).unwrap());
    (agent, pod, address)
}

#[test]
fn a_plan_is_empty_on_a_settled_node_and_names_what_is_amiss_without_writing() {
    if !possible("a_plan_is_empty") || !has_etcd("a_plan_is_empty") {
        return;
    }
    let cluster = Cluster::new(POOL);
    let (agent, _pod, address) = with_pod(&cluster);
    let settled = (Some(0), String::new(), String::new());
    assert_eq!(
        run(&cluster, "plan --config {config}"),
        settled,
        "asked of the agent"
    );
    assert_eq!(agent.terminate().code(), Some(0));
    assert_eq!(
        run(&cluster, "plan --config {config}"),
        settled,
        "without an agent"
    );
    assert_eq!(run(&cluster, "agent --dry-run --config {config}"), settled);

    cluster.node.sh(&format!("ip route del {address}; ip route add blackhole 10.65.77.0/24 proto 202 metric 1024; echo 100 > /proc/sys/net/ipv4/neigh/cali751425ce827/proxy_delay; nft delete table inet calidris"));
    let before = picture(&cluster);
    let (code, out, _) = run(&cluster, "plan --config {config}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(code, Some(6), "{out}");
    let begin = [
        "sysctl: replace net/ipv4/neigh/cali751425ce827/proxy_delay 100 with 0".to_owned(),
        format!("route: create {address}/32 metric 1024 dev cali751425ce827 (local)"),
        "route: delete 10.65.77.0/24 metric 1024 blackhole (local)".to_owned(),
        "nft: create table inet calidris".to_owned(),
    ];
    for (line, begin) in lines.iter().zip(&begin) {
        assert!(
            line.starts_with(begin.as_str()),
            "{line} does not begin with {begin}"
        );
    }
    assert_eq!(lines.len(), begin.len(), "{out}");
    let (code, out, _) = run(&cluster, "plan --config {config} -o json");
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Some(6));
    assert_eq!(document["answered_by"], "datastore");
    assert_eq!(document["operations"].as_array().unwrap().len(), lines.len());
    assert!(
        picture(&cluster) == before,
        "a plan has written: {}",
        picture(&cluster)
    );
    assert_eq!(
        cluster
            .node
            .sh("cat /proc/sys/net/ipv4/neigh/cali751425ce827/proxy_delay")
            .trim(),
        "100",
        "a plan has written"
    );

    let _agent = cluster.start_agent();
    assert_eq!(
        run(&cluster, "plan --config {config}"),
        settled,
        "repaired at the start"
    );
}

#[test]
fn what_others_have_is_untouched_after_start_run_stop_and_cleanup() {
    if !possible("what_others_have") || !has_etcd("what_others_have") {
        return;
    }
    let cluster = Cluster::new(POOL);
    cluster.node.sh(FOREIGN);
    let before = picture(&cluster);
    let (agent, _pod, _) = with_pod(&cluster);
    let running = picture(&cluster);
    let (code, _, why) = run(&cluster, "cleanup --socket {status}");
    assert_eq!(code, Some(1), "{why}");
    assert!(why.contains("an agent answers"), "{why}");
    assert_eq!(picture(&cluster), running, "a refusal has written");
    assert_eq!(agent.terminate().code(), Some(0));
    assert_eq!(picture(&cluster), running, "a stop has written");

    let (code, planned, _) = run(&cluster, "cleanup --dry-run");
    assert_eq!(
        (code, picture(&cluster)),
        (Some(0), running),
        "a dry run has written"
    );
    let (code, removed, left) = run(&cluster, "cleanup");
    assert_eq!((code, &removed), (Some(0), &planned), "{left}");
    assert!(removed.lines().count() >= 4, "{removed}");
    assert!(left.contains("net/ipv4/ip_forward"), "{left}");
    assert_eq!(picture(&cluster), before, "after {removed}");
    assert_eq!(run(&cluster, "cleanup").1, "", "a second time");
}
