//! The agent's binary on a real kernel with a real etcd: pods come and go, the agent is killed, etcd is away.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

mod cluster;
mod namespaces;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;

use calidris_cni::error::ErrorCode;
use cluster::{Cluster, Pod, Process, has_etcd};
use namespaces::possible;

const POOL: &str = r#"{"cidr":"10.65.0.0/16","natOutgoing":true,"blockSize":26}"#;

macro_rules! require {
    ($test:literal) => {
        if !possible($test) || !has_etcd($test) {
            return;
        }
    };
}

fn address(result: &calidris_cni::result::AddResult) -> String {
    result.ips[0].address.ip().to_string()
}

#[test]
fn a_pod_is_reachable_when_add_returns_and_gone_when_del_returns() {
    require!("a_pod_is_reachable");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    let result = agent.add(&pod).unwrap();
    cluster.node.sh(&format!("ping -c1 -W5 {}", address(&result)));
    pod.namespace.sh("ping -c1 -W5 192.0.2.11");
    assert_eq!(result.interfaces[0].name, "cali751425ce827");
    assert_eq!(cluster.keys_of_pods().len(), 2, "{:?}", cluster.keys_of_pods());
    agent.check(&pod, &result).unwrap();
    assert_eq!(agent.add(&pod).unwrap_err().code, ErrorCode::ALREADY_ATTACHED);
    agent.check(&pod, &result).unwrap();

    let status = agent.status();
    assert_eq!(status.not_ready, [""; 0]);
    assert_eq!((status.endpoints.len(), status.own_blocks.len()), (1, 1));

    agent.del(&pod).unwrap();
    assert!(!cluster.node.sh("ip route").contains("cali"));
    assert!(!cluster.node.sh("ip link").contains("cali"));
    assert!(!pod.namespace.try_sh("ip link show eth0").status.success());
    assert_eq!(cluster.keys_of_pods(), [""; 0]);
    agent.del(&pod).unwrap();
    assert_eq!(
        agent.check(&pod, &result).unwrap_err().code,
        ErrorCode::UNKNOWN_CONTAINER
    );
}

#[test]
fn a_killed_agent_starts_again_without_writing_to_the_kernel() {
    require!("a_killed_agent");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    let result = agent.add(&pod).unwrap();
    agent.kill();

    let mut monitor = Process::start("ip monitor", &cluster.node, "ip monitor link address route");
    // A change of ours shows that the monitor hears.
    while cluster
        .node
        .try_sh("ip route add 198.51.100.0/24 dev lo; ip route del 198.51.100.0/24 dev lo")
        .status
        .success()
    {
        if monitor.hears("198.51.100.0/24") {
            break;
        }
    }
    let mut agent = cluster.start_agent_without_waiting();
    agent.wait_for("\"datastore\":true,\"bgp\":true");
    assert_eq!(agent.status().dataplane.operations, 0);
    monitor.signal(rustix::process::Signal::TERM);
    let (_, written) = monitor.rest();
    let written: Vec<&String> = written
        .iter()
        .filter(|line| !line.contains("198.51.100.0/24"))
        .collect();
    assert_eq!(written, [""; 0]);

    cluster.node.sh(&format!("ping -c1 -W5 {}", address(&result)));
    agent.check(&pod, &result).unwrap();
    assert_eq!(agent.add(&pod).unwrap_err().code, ErrorCode::ALREADY_ATTACHED);
    agent.del(&pod).unwrap();
    assert_eq!(cluster.keys_of_pods(), [""; 0]);
}

#[test]
fn a_terminated_agent_leaves_pods_reachable() {
    require!("a_terminated_agent");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    let result = agent.add(&pod).unwrap();
    assert_eq!(agent.terminate().code(), Some(0));
    cluster.node.sh(&format!("ping -c1 -W5 {}", address(&result)));
}

#[test]
fn a_deleted_route_comes_back() {
    require!("a_deleted_route");
    let cluster = Cluster::new(POOL);
    let mut agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    let address = address(&agent.add(&pod).unwrap());
    agent.wait_for("pod attached");
    cluster.node.sh(&format!("ip route del {address}"));
    agent.wait_for(&format!("route: create {address}/32"));
    cluster.node.sh(&format!("ping -c1 -W5 {address}"));
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    require!("an_add_that_fails");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    pod.namespace.sh("ip link add eth0 type veth peer name other");
    let error = agent.add(&pod).unwrap_err();
    assert_eq!(error.code, ErrorCode::ALREADY_ATTACHED, "{error:?}");
    assert_eq!(cluster.keys_of_pods(), [""; 0]);
    assert!(!cluster.node.sh("ip link; ip route").contains("cali"));
    pod.namespace.sh("ip link del eth0");
    agent.add(&pod).unwrap();
}

#[test]
fn a_late_del_of_the_old_container_leaves_the_new_one_alone() {
    require!("a_late_del");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let (old, new) = (Pod::new("web-1", "c0ffee01"), Pod::new("web-1", "c0ffee02"));
    agent.add(&old).unwrap();
    let result = agent.add(&new).unwrap();
    agent.del(&old).unwrap();
    cluster.node.sh(&format!("ping -c1 -W5 {}", address(&result)));
    agent.check(&new, &result).unwrap();
    assert_eq!(cluster.keys_of_pods().len(), 2, "{:?}", cluster.keys_of_pods());
}

#[test]
fn without_datastore_add_is_refused_and_del_is_repeated_later() {
    require!("without_datastore");
    let mut cluster = Cluster::new(POOL);
    let mut agent = cluster.start_agent();
    let (first, second) = (Pod::new("web-1", "c0ffee01"), Pod::new("web-2", "c0ffee02"));
    let result = agent.add(&first).unwrap();
    cluster.kill_etcd();
    agent.wait_for("datastore lost");
    cluster.node.sh(&format!("ping -c1 -W5 {}", address(&result)));
    let error = agent.add(&second).unwrap_err();
    assert_eq!(error.code, ErrorCode::TRY_AGAIN_LATER);
    assert!(error.msg.contains("datastore"), "{error:?}");
    assert!(!agent.status().not_ready.is_empty());
    assert_eq!(agent.del(&first).unwrap_err().code, ErrorCode::TRY_AGAIN_LATER);
    assert!(
        !cluster.node.sh("ip link; ip route").contains("cali"),
        "the local part of DEL is done"
    );

    cluster.start_etcd();
    agent.wait_for("datastore is back");
    agent.del(&first).unwrap();
    assert_eq!(cluster.keys_of_pods(), [""; 0]);
    agent.add(&second).unwrap();
}

#[test]
fn an_exhausted_pool_says_so() {
    require!("an_exhausted_pool");
    let cluster = Cluster::new(r#"{"cidr":"10.65.0.0/32","blockSize":32}"#);
    let agent = cluster.start_agent();
    let (first, second) = (Pod::new("web-1", "c0ffee01"), Pod::new("web-2", "c0ffee02"));
    agent.add(&first).unwrap();
    let error = agent.add(&second).unwrap_err();
    assert_eq!(error.code, ErrorCode::ADDRESSES_EXHAUSTED, "{error:?}");
    assert!(error.msg.contains("pool"), "{error:?}");
    agent.del(&first).unwrap();
    agent.add(&second).unwrap();
}

#[test]
fn garbage_collection_removes_what_the_runtime_does_not_list() {
    require!("garbage_collection");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let (kept, stale) = (Pod::new("web-1", "c0ffee01"), Pod::new("web-2", "c0ffee02"));
    let result = agent.add(&kept).unwrap();
    agent.add(&stale).unwrap();
    agent.collect(&kept, &[&kept]).unwrap();
    agent.check(&kept, &result).unwrap();
    assert_eq!(cluster.keys_of_pods().len(), 2, "{:?}", cluster.keys_of_pods());
    assert!(!stale.namespace.try_sh("ip link show eth0").status.success());
}

#[test]
fn a_malformed_value_in_the_datastore_changes_nothing() {
    require!("a_malformed_value");
    let cluster = Cluster::new(POOL);
    let mut agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    let result = agent.add(&pod).unwrap();
    for key in cluster
        .keys_of_pods()
        .iter()
        .filter(|key| key.contains("/workloadendpoints/"))
    {
        cluster.put(key, "{broken");
        let line = agent.wait_for("keeping the last good one");
        assert!(line.contains(key), "{line}");
    }
    cluster.node.sh(&format!("ping -c1 -W5 {}", address(&result)));
    let status = agent.status();
    assert_eq!(
        (status.datastore.malformed_values, status.endpoints.len()),
        (1, 1)
    );
}

#[test]
fn a_second_agent_on_the_same_sockets_is_refused() {
    require!("a_second_agent");
    let cluster = Cluster::new(POOL);
    let first = cluster.start_agent();
    let mut second = cluster.start_agent_without_waiting();
    second.wait_for("is an agent running already?");
    assert_eq!(first.status().node, "node1");
}

#[test]
fn pods_added_all_at_once_have_addresses_of_their_own() {
    require!("pods_added_all_at_once");
    let cluster = Cluster::new(POOL);
    let process = cluster.start_agent();
    let agent = process.runtime();
    let pods: Vec<Pod> = (0..20)
        .map(|n| Pod::new(&format!("web-{n}"), &format!("c0ffee{n:02}")))
        .collect();
    let addresses: BTreeSet<String> = thread::scope(|scope| {
        let adding: Vec<_> = pods
            .iter()
            .map(|pod| scope.spawn(|| address(&agent.add(pod).unwrap())))
            .collect();
        adding.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(addresses.len(), pods.len());
    for address in &addresses {
        cluster.node.sh(&format!("ping -c1 -W5 {address}"));
    }
    thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| agent.del(pod).unwrap());
        }
    });
    assert_eq!(cluster.keys_of_pods(), [""; 0]);
    assert!(!cluster.node.sh("ip link; ip route").contains("cali"));
    assert_eq!(agent.status().cni.in_progress, 0);
}

#[test]
fn requests_beyond_the_bound_are_told_to_come_again() {
    require!("requests_beyond_the_bound");
    let mut cluster = Cluster::new(POOL);
    let process = cluster.start_agent_with("max_concurrent = 1\nmax_waiting = 1");
    let agent = process.runtime();
    // While etcd is frozen, nothing that was begun ends.
    cluster.freeze_etcd();
    let pods: Vec<Pod> = (0..6)
        .map(|n| Pod::new(&format!("web-{n}"), &format!("c0ffee{n:02}")))
        .collect();
    let errors: Vec<_> = thread::scope(|scope| {
        let adding: Vec<_> = pods
            .iter()
            .map(|pod| scope.spawn(|| agent.add(pod).unwrap_err()))
            .collect();
        adding.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(
        errors
            .iter()
            .all(|error| error.code == ErrorCode::TRY_AGAIN_LATER),
        "{errors:?}"
    );
    let refused = errors
        .iter()
        .filter(|error| error.msg.contains("takes no more now"))
        .count();
    assert_eq!(refused, 4, "{errors:?}");
    cluster.kill_etcd();
}

#[test]
fn nonsense_on_the_socket_is_answered_and_forgotten() {
    require!("nonsense_on_the_socket");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let framed = |body: &[u8]| [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat();
    for (nonsense, expected) in [
        (framed(b"not json"), "malformed"),
        (framed(b"{\"contract\":99}"), "contract version"),
        (
            framed(b"{\"contract\":1,\"operation\":{\"command\":\"FLY\"}}"),
            "malformed",
        ),
        (u32::MAX.to_be_bytes().to_vec(), "exceeds the limit"),
    ] {
        let mut stream = agent.connect();
        stream.write_all(&nonsense).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.contains(expected),
            "{:?}: {answer:?}",
            String::from_utf8_lossy(&nonsense)
        );
    }
    // Connections that say nothing, or stop half way, do not keep others from being served.
    let mut silent: Vec<_> = (0..8).map(|_| agent.connect()).collect();
    for stream in silent.iter_mut().take(4) {
        stream.write_all(&[0, 0, 1]).unwrap();
    }
    let pod = Pod::new("web-1", "c0ffee01");
    agent.add(&pod).unwrap();
    agent.del(&pod).unwrap();
}
