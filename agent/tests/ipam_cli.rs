//! `calidris ipam` as a process on a real etcd that holds what a real Calico left there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

mod cluster;
mod namespaces;

use std::collections::BTreeMap;
use std::process::Output;

use calidris_ipam::{Store as _, Txn, Write, keys};
use calidris_ipam_etcd::{EtcdConfig, EtcdStore};
use cluster::{Cluster, Pod, has_etcd};
use namespaces::possible;
use serde_json::{Value, json};

const STATE: &str = include_str!("../../ipam/tests/data/11_kubernetes_pods.json");
const CALICOCTL_SHOW_BLOCKS: &str = include_str!("../../ipam/tests/data/calicoctl_ipam_show_blocks.txt");
const WORKLOADS: &str = "/calico/resources/v3/projectcalico.org/workloadendpoints";

macro_rules! require {
    ($test:literal) => {
        if !possible($test) || !has_etcd($test) {
            return;
        }
    };
}

#[test]
fn show_counts_what_calicoctl_counts() {
    require!("show_counts_what_calicoctl_counts");
    let cluster = loaded();
    let usage = json(&calidris(&cluster, "show --blocks -o json"), 0);
    let mut ours = BTreeMap::new();
    for pool in usage["pools"].as_array().unwrap() {
        for counted in std::iter::once(pool).chain(pool["blocks"].as_array().into_iter().flatten()) {
            let number = |name: &str| counted[name].as_u64();
            let counts = [
                number("total"),
                number("in_use"),
                number("reserved"),
                number("free"),
            ];
            ours.insert(counted["cidr"].as_str().unwrap().to_owned(), counts);
        }
    }
    let mut compared = 0;
    for line in CALICOCTL_SHOW_BLOCKS.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, _, cidr, total, in_use, reserved, free, _] = cells.as_slice() else {
            continue;
        };
        // Theirs of the IPv6 pool are powers of ten and below zero.
        let number = |cell: &str| cell.split(' ').next().unwrap().parse::<u64>().ok();
        let theirs = [number(total), number(in_use), number(reserved), number(free)];
        if theirs.iter().all(Option::is_some) {
            assert_eq!(ours.get(*cidr), Some(&theirs), "{cidr}");
            compared += 1;
        }
    }
    assert_eq!((compared, ours.len()), (15, 16));

    let table = text(&calidris(&cluster, "show"), 0);
    assert_eq!(table.lines().count(), 7, "{table}");
    assert!(table.starts_with("POOL "), "{table}");
    assert!(
        table.contains("1208925819614629174706168"),
        "the free ones of 2^80: {table}"
    );
}

#[test]
fn show_tells_who_has_an_address_and_what_a_node_has() {
    require!("show_tells_who_has_an_address");
    let cluster = loaded();
    let address = text(&calidris(&cluster, "show --ip 10.244.0.11"), 0);
    for expected in [
        "state       allocated\n",
        "block       10.244.0.0/26 of host:node-a\n",
        "pod         web-1\n",
        "used by     endpoint shop/node--a-k8s-web--1-eth0\n",
    ] {
        assert!(address.contains(expected), "{address}");
    }
    for (ip, state) in [
        ("10.244.0.1", "reserved"),
        ("10.244.0.20", "free"),
        ("10.1.1.1", "outside-pools"),
    ] {
        let address = json(&calidris(&cluster, &format!("show --ip {ip} -o json")), 0);
        assert_eq!(address["state"], state, "{ip}");
    }
    let node = json(&calidris(&cluster, "show --node node-b -o json"), 0);
    assert_eq!(node["blocks"].as_array().unwrap().len(), 3);
    assert_eq!(node["addresses"].as_array().unwrap().len(), 3);
    assert_eq!(node["exists"], true);
    let borrowed = json(&calidris(&cluster, "show --borrowed -o json"), 0);
    let borrowed: Vec<&Value> = borrowed["borrowed"].as_array().unwrap().iter().collect();
    assert_eq!(borrowed.len(), 2);
    assert_eq!(
        (
            borrowed[0]["address"].as_str(),
            borrowed[0]["borrowed_by"].as_str()
        ),
        (Some("10.63.0.9"), Some("node-a"))
    );
    let configuration = json(&calidris(&cluster, "show --configuration -o json"), 0);
    assert_eq!(
        (
            &configuration["strict_affinity"],
            &configuration["max_blocks_per_host"]
        ),
        (&true.into(), &20.into())
    );
}

#[test]
fn check_says_what_is_wrong_and_its_exit_status_whether() {
    require!("check_says_what_is_wrong");
    let cluster = loaded();
    let report = json(&calidris(&cluster, "check -o json"), 1);
    assert_eq!(report["findings"].as_array().unwrap().len(), 4);
    let printed = text(&calidris(&cluster, "check"), 1);
    assert!(
        printed.contains("\n10.244.0.2 is not allocated, but used by a tunnel device of node-a\n"),
        "{printed}"
    );
    assert!(printed.ends_with("\n4 findings\n"), "{printed}");

    clean_up(&cluster);
    let printed = text(&calidris(&cluster, "check"), 0);
    assert!(
        printed.ends_with(
            "\nnot looked at: what runs on node-a and one other node; their endpoints stand for it \
             (--this-node, on each)\nnothing is wrong\n"
        ),
        "{printed}"
    );

    // What runs here: nothing does, and then a container that nobody knows.
    let report = json(&calidris(&cluster, "check --this-node node-b -o json"), 1);
    let problems = |report: &Value| -> Vec<String> {
        let findings = report["findings"].as_array().unwrap().iter();
        findings
            .map(|finding| finding["problem"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(problems(&report), ["endpoint-not-running"; 3]);
    assert_eq!(report["not_compared"], json!(["node-a"]));
    cluster
        .node
        .sh("ip link add cali0 type veth peer name x; ip link set cali0 up; ip link set x up");
    for address in ["10.63.0.8/32", "10.244.218.64/32", "10.244.218.99/32"] {
        cluster.node.sh(&format!("ip route add {address} dev cali0"));
    }
    cluster
        .node
        .sh("ip -6 route add fd00:10:244:da40:995e:89a6:1d37:a7c0/128 dev cali0");
    let report = json(&calidris(&cluster, "check --this-node node-b -o json"), 1);
    assert_eq!(
        problems(&report),
        ["in-use-not-allocated", "running-without-endpoint"]
    );
}

#[test]
fn release_refuses_what_is_in_use_unless_forced() {
    require!("release_refuses_what_is_in_use");
    let cluster = loaded();
    clean_up(&cluster);
    let before = dump(&cluster);
    let refused = text(&calidris(&cluster, "release --ip 10.244.3.7 --ip 10.244.3.8"), 1);
    assert!(
        refused.contains("REFUSED     release 10.244.3.7  10.244.3.7 is in use by endpoint shop/node--a-k8s-web--2-eth0; if that is not so, say --force"),
        "{refused}"
    );
    assert!(
        refused.contains("not needed  release 10.244.3.8  it is not allocated"),
        "{refused}"
    );
    text(
        &calidris(&cluster, "release --ip 10.244.3.7 --force --dry-run"),
        0,
    );
    text(&calidris(&cluster, "release --node node-b"), 1);
    text(
        &calidris(&cluster, "release --handle k8s-pod-network.c0ffee01"),
        1,
    );
    assert_eq!(dump(&cluster), before);

    let released = json(&calidris(&cluster, "release --ip 10.244.3.7 --force -o json"), 0);
    assert_eq!(released["steps"][0]["result"], "done");
    cluster_delete(&cluster, &format!("{WORKLOADS}/shop/node--a-k8s-web--2-eth0"));
    // Without its endpoint a container's handle can be released whole.
    cluster_delete(
        &cluster,
        &format!("{WORKLOADS}/default/node--a-cni-c0ffee01-eth0"),
    );
    let released = text(
        &calidris(&cluster, "release --handle k8s-pod-network.c0ffee01"),
        0,
    );
    assert!(
        released.contains(
            "release 10.244.174.128, fd00:10:244:6d15:74ba:80e:4835:8080 of handle k8s-pod-network.c0ffee01"
        ),
        "{released}"
    );
    text(&calidris(&cluster, "check"), 0);
}

#[test]
fn a_departed_node_gives_everything_back() {
    require!("a_departed_node_gives_everything_back");
    let cluster = loaded();
    clean_up(&cluster);
    cluster_delete(&cluster, &keys::resource("nodes", "node-b"));
    let report = text(&calidris(&cluster, "check"), 1);
    assert!(
        report.contains("node node-b does not exist, but has 3 blocks, 3 addresses and 2 endpoints"),
        "{report}"
    );
    text(&calidris(&cluster, "release --node node-b"), 0);
    text(&calidris(&cluster, "check"), 0);
    let of_node_b = ["/host/node-b/", "/node--b-"];
    let mut left = dump(&cluster).into_keys();
    assert_eq!(
        left.find(|key| of_node_b.iter().any(|part| key.contains(part))),
        None
    );
    assert_eq!(
        text(&calidris(&cluster, "release --node node-b"), 0),
        "nothing to do\n"
    );
}

#[test]
fn what_a_report_says_is_repaired_if_it_is_still_so() {
    require!("what_a_report_says_is_repaired");
    let cluster = loaded();
    clean_up(&cluster);
    // A leak, an interrupted claim, and a handle that somebody deleted.
    cluster_delete(
        &cluster,
        &format!("{WORKLOADS}/default/node--a-cni-c0ffee03-eth0"),
    );
    cluster_delete(
        &cluster,
        &format!("{WORKLOADS}/default/node--a-cni-c0ffee05-eth0"),
    );
    cluster_delete(&cluster, &keys::handle("k8s-pod-network.c0ffee07"));
    let pending = keys::affinity("node-b", "10.244.99.0/26".parse().unwrap());
    cluster.put(&pending, r#"{"state":"pending"}"#);
    let file = std::env::temp_dir().join(format!("calidris-report-{}", std::process::id()));
    let report = calidris(&cluster, "check -o json");
    assert_eq!(json(&report, 1)["findings"].as_array().unwrap().len(), 4);
    std::fs::write(&file, &report.stdout).unwrap();
    // One of the leaks is repaired by hand meanwhile.
    text(&calidris(&cluster, "release --ip 10.244.0.9"), 0);

    let repair = |more: &str| {
        calidris(
            &cluster,
            &format!("release --from-report {} {more}", file.display()),
        )
    };
    let young = text(&repair("--grace 999999h --dry-run"), 1);
    assert!(young.contains("its container may be starting"), "{young}");
    let done = text(&repair("--grace 0s"), 0);
    assert_eq!(done.matches("\ndone ").count(), 3, "{done}");
    assert_eq!(
        done.matches("\nnot needed ").count() + done.matches("it is no longer so").count(),
        2,
        "{done}"
    );
    text(&calidris(&cluster, "check"), 0);
    text(&repair("--grace 0s"), 0);

    std::fs::write(&file, "{}").unwrap();
    let error = repair("");
    assert_eq!(error.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&error.stderr).contains("not a report of"));
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_datastore_that_does_not_answer_is_status_5_and_a_wrong_address_of_it_2() {
    require!("a_datastore_that_does_not_answer");
    let mut cluster = loaded();
    cluster.kill_etcd();
    let output = calidris(&cluster, "check");
    assert_eq!(output.status.code(), Some(5));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.starts_with("calidris: the datastore") && error.lines().count() == 1,
        "{error}"
    );
    let output = cluster.node.try_sh(&format!(
        "ETCD_ENDPOINTS=somewhere {} ipam show",
        env!("CARGO_BIN_EXE_calidris")
    ));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_running_agent_leaves_nothing_to_find() {
    require!("a_running_agent_leaves_nothing_to_find");
    let cluster = Cluster::new(r#"{"cidr":"10.65.0.0/24","blockSize":30}"#);
    let agent = cluster.start_agent();
    let pods =
        ["web-1", "web-2", "web-3", "web-4", "web-5"].map(|name| Pod::new(name, &format!("c0ffee{name}")));
    for pod in &pods {
        agent.add(pod).unwrap();
    }
    text(&calidris(&cluster, "check --this-node node1"), 0);
    let [first, .., last] = &pods;
    agent.del(first).unwrap();
    agent.del(last).unwrap();
    let node = json(&calidris(&cluster, "show --node node1 -o json"), 0);
    assert_eq!(node["addresses"].as_array().unwrap().len(), 3);
    text(&calidris(&cluster, "check --this-node node1"), 0);
    // A container of the same pod whose predecessor was never deleted: the collector's case.
    let again = Pod::new("web-2", "c0ffeenew");
    agent.add(&again).unwrap();
    let left = text(&calidris(&cluster, "check --this-node node1"), 1);
    assert!(
        left.contains("is allocated to \"net.c0ffeeweb-2\" on node1"),
        "{left}"
    );
    assert!(left.ends_with("\n1 finding\n"), "{left}");
}

/// A cluster with a real Calico's state in its etcd.
fn loaded() -> Cluster {
    let cluster = Cluster::new(r#"{"cidr":"198.51.100.0/24","disabled":true}"#);
    let entries: Vec<BTreeMap<String, String>> = serde_json::from_str(STATE).unwrap();
    let mut writes: Vec<Write> = entries
        .into_iter()
        .map(|mut entry| Write::Put {
            key: entry.remove("key").unwrap(),
            value: entry.remove("value").unwrap().into_bytes(),
        })
        .collect();
    writes.push(Write::Delete {
        key: format!("{}pool", keys::IP_POOLS),
    });
    commit(&cluster, writes);
    cluster
}

/// Removes what was made wrong in that state on purpose.
fn clean_up(cluster: &Cluster) {
    cluster_delete(cluster, &format!("{WORKLOADS}/default/node--a-cni-c0ffee06-eth0"));
    cluster_delete(
        cluster,
        &format!("{WORKLOADS}/shop/node--b-k8s-web--7d4b9c6f5--x2x9z-eth0"),
    );
    let key = keys::resource("nodes", "node-a");
    let mut node: Value = serde_json::from_slice(&dump(cluster)[&key]).unwrap();
    let spec = node["spec"].as_object_mut().unwrap();
    spec.remove("ipv4VXLANTunnelAddr").unwrap();
    spec["bgp"]
        .as_object_mut()
        .unwrap()
        .remove("ipv4IPIPTunnelAddr")
        .unwrap();
    let value = node.to_string().into_bytes();
    commit(cluster, vec![Write::Put { key, value }]);
}

fn cluster_delete(cluster: &Cluster, key: &str) {
    commit(cluster, vec![Write::Delete { key: key.to_owned() }]);
}

fn commit(cluster: &Cluster, writes: Vec<Write>) {
    let txn = Txn {
        writes,
        ..Txn::default()
    };
    in_cluster(cluster, async |store| {
        store.commit(&txn).await.unwrap();
    });
}

fn dump(cluster: &Cluster) -> BTreeMap<String, Vec<u8>> {
    let everything = calidris_ipam::Range::Prefix("/calico/".to_owned());
    in_cluster(cluster, async |store| {
        let snapshot = store.read(std::slice::from_ref(&everything)).await.unwrap();
        snapshot.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect()
    })
}

/// Does `work` on the cluster's etcd, from within its namespace.
fn in_cluster<T: Send>(cluster: &Cluster, work: impl AsyncFn(EtcdStore) -> T + Sync) -> T {
    cluster.node.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let config = EtcdConfig::new(vec!["http://127.0.0.1:2379".to_owned()]);
        runtime.block_on(work(EtcdStore::new(config)))
    })
}

/// Without configuration and environment: the default endpoint is the cluster's.
fn calidris(cluster: &Cluster, arguments: &str) -> Output {
    let command = format!("{} ipam {arguments}", env!("CARGO_BIN_EXE_calidris"));
    cluster.node.try_sh(&command)
}

fn text(output: &Output, status: i32) -> String {
    let printed = String::from_utf8(output.stdout.clone()).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{printed}\n{errors}");
    assert!(output.stderr.is_empty() || status == 1, "{errors}");
    printed
}

fn json(output: &Output, status: i32) -> Value {
    serde_json::from_str(&text(output, status)).unwrap()
}
