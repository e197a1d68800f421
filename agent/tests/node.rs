//! The agent's binary on a real kernel with a real etcd: pods come and go, the agent is killed, etcd is away.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

mod address_detection;
mod capabilities;
mod cluster;
mod eventually;
mod host_end;
mod learned_routes;
mod live_migration;
mod namespaces;
mod plan_and_cleanup;
mod repair;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;

use calidris_cni::error::ErrorCode;
use cluster::{Cluster, Pod, Process, has_etcd};
use eventually::eventually;
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
fn the_node_answers_for_a_pod_in_its_own_subnet_from_add_to_del() {
    require!("the_node_answers_for_a_pod");
    let cluster = Cluster::new(r#"{"cidr":"192.0.2.128/25","blockSize":26}"#);
    let proxies = || cluster.node.sh("ip neigh show proxy");
    let with_proxies = "\n[dataplane]\nproxy_neighbors = true\n";
    let agent = cluster.start_agent_with(with_proxies);
    let pod = Pod::new("web-1", "c0ffee01");
    let address = address(&agent.add(&pod).unwrap());
    let expected = format!("{address} dev up0 proxy proto 202 \n");
    assert_eq!(proxies(), expected);
    // The kernel takes it with the link.
    cluster.node.sh("ip link set up0 down; ip link set up0 up");
    eventually("it answers again", || (proxies() == expected).then_some(()));
    cluster
        .node
        .sh("ip addr flush dev up0; ip addr add 192.0.2.11/24 dev up0");
    eventually("it answers again", || (proxies() == expected).then_some(()));
    agent.kill();

    let mut agent = cluster.start_agent_with(with_proxies);
    agent.wait_for("\"bgp\":true");
    assert_eq!(agent.status().dataplane.operations, 0, "a second start writes");
    agent.del(&pod).unwrap();
    assert_eq!(proxies(), "");
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

#[test]
fn del_goes_by_identity_whatever_the_namespace() {
    require!("del_goes_by_identity");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let (gone, living) = (Pod::new("web-1", "c0ffee01"), Pod::new("web-2", "c0ffee02"));
    agent.add(&gone).unwrap();
    let result = agent.add(&living).unwrap();
    // A runtime that kept the path of a dead container's namespace, which is another container's by now.
    agent.del_with_namespace_of(&gone, &living).unwrap();
    agent.check(&living, &result).unwrap();
    cluster.node.sh(&format!("ping -c1 -W5 {}", address(&result)));
    assert_eq!(cluster.keys_of_pods().len(), 2, "{:?}", cluster.keys_of_pods());
    for _ in 0..2 {
        agent.del_without_namespace(&living).unwrap();
        assert_eq!(cluster.keys_of_pods(), [""; 0]);
    }
    assert!(!cluster.node.sh("ip link; ip route").contains("cali"));
    agent.add(&living).unwrap();
}

#[test]
fn after_a_reboot_del_frees_what_the_kernel_has_forgotten() {
    require!("after_a_reboot");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    agent.add(&pod).unwrap();
    agent.kill();
    // What a reboot leaves: the datastore, and no link, route or rule.
    cluster
        .node
        .sh("ip link del cali751425ce827; ip route flush proto 202; nft flush ruleset");
    let agent = cluster.start_agent();
    agent.del_without_namespace(&pod).unwrap();
    assert_eq!(cluster.keys_of_pods(), [""; 0]);
    let again = Pod::new("web-1", "c0ffee02");
    let result = agent.add(&again).unwrap();
    cluster.node.sh(&format!("ping -c1 -W5 {}", address(&result)));
}

#[test]
fn a_container_that_is_started_again_after_a_reboot_is_attached_anew() {
    require!("a_container_that_is_started_again");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    agent.add(&pod).unwrap();
    agent.kill();
    // Runtimes that keep containers over a reboot call no DEL, and then ADD for the same container (podman).
    let again = pod.started_again();
    drop(pod);
    cluster
        .node
        .sh("ip link del cali751425ce827; ip route flush proto 202; nft flush ruleset");
    let agent = cluster.start_agent();
    let result = agent.add(&again).unwrap();
    cluster.node.sh(&format!("ping -c1 -W5 {}", address(&result)));
    agent.check(&again, &result).unwrap();
    assert_eq!(cluster.keys_of_pods().len(), 2, "{:?}", cluster.keys_of_pods());
    assert_eq!(agent.add(&again).unwrap_err().code, ErrorCode::ALREADY_ATTACHED);
}

#[test]
fn check_names_what_is_damaged_and_the_nodes_side_is_mended() {
    require!("check_names_what_is_damaged");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    let result = agent.add(&pod).unwrap();
    agent.check(&pod, &result).unwrap();
    // On the node's side: CHECK says so, and it is mended.
    let host = "cali751425ce827";
    for (damage, complaint) in [
        (
            format!("sysctl -qw net.ipv4.conf.{host}.proxy_arp=0"),
            "proxy_arp",
        ),
        (
            format!("sysctl -qw net.ipv4.neigh.{host}.proxy_delay=80"),
            "proxy_delay",
        ),
        ("nft delete table inet calidris".to_owned(), "inet calidris"),
        (
            "nft flush set inet calidris workload-sources-ipv4".to_owned(),
            "workload-sources-ipv4",
        ),
    ] {
        // The agent may hear of it and mend it before CHECK looks.
        let error = eventually(&format!("CHECK sees: {damage}"), || {
            cluster.node.sh(&damage);
            agent.check(&pod, &result).err()
        });
        assert_eq!(error.code, ErrorCode::CHECK_FAILED, "{damage}: {error:?}");
        assert!(error.details.contains(complaint), "{damage}: {error:?}");
        agent.check(&pod, &result).unwrap();
    }
    // In the pod, which is the runtime's: CHECK says so until somebody mends it.
    for (damage, repair, complaint) in [
        (
            "ip route del default",
            "ip route add default via 169.254.1.1 dev eth0",
            "no default route",
        ),
        (
            "ip neigh del 169.254.1.1 dev eth0",
            "ip neigh add 169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee nud permanent",
            "permanent neighbour",
        ),
        (
            "ip link set eth0 down",
            "ip link set eth0 up",
            "eth0 in the pod is down",
        ),
    ] {
        pod.namespace.sh(damage);
        let error = agent.check(&pod, &result).unwrap_err();
        assert_eq!(error.code, ErrorCode::CHECK_FAILED, "{damage}: {error:?}");
        assert!(error.details.contains(complaint), "{damage}: {error:?}");
        pod.namespace.sh(repair);
    }
    pod.namespace.sh(
        "ip route replace 169.254.1.1 dev eth0 scope link; ip route replace default via 169.254.1.1 dev eth0",
    );
    pod.namespace
        .sh("ip neigh replace 169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee nud permanent");
    agent.check(&pod, &result).unwrap();
    let address = address(&result);
    pod.namespace.sh(&format!(
        "ip addr add 198.51.100.9/32 dev eth0; ip addr del {address}/32 dev eth0"
    ));
    let error = agent.check(&pod, &result).unwrap_err();
    assert!(
        error.details.contains(&format!("lacks the address {address}")),
        "{error:?}"
    );
    pod.namespace.sh(&format!("ip addr add {address}/32 dev eth0"));
    agent.check(&pod, &result).unwrap();
    // The address is no longer the pod's.
    cluster.delete("/calico/ipam/v2/handle/net.c0ffee01");
    let error = agent.check(&pod, &result).unwrap_err();
    assert!(error.details.contains("is not assigned"), "{error:?}");
}

#[test]
fn status_fails_when_add_could_not_be_served() {
    require!("status_fails_when");
    let mut cluster = Cluster::new(r#"{"cidr":"10.65.0.0/32","blockSize":32}"#);
    let mut agent = cluster.start_agent();
    agent.could_add().unwrap();
    let only = Pod::new("web-1", "c0ffee01");
    let unavailable = |agent: &cluster::Agent, why: &str| {
        let error = agent.could_add().unwrap_err();
        assert_eq!(error.code, ErrorCode::UNAVAILABLE, "{error:?}");
        assert!(error.to_string().contains(why), "{error:?}");
    };
    agent.add(&only).unwrap();
    unavailable(&agent, "no ");
    agent.del(&only).unwrap();
    agent.could_add().unwrap();
    assert_eq!(cluster.keys_of_pods(), [""; 0], "STATUS writes nothing");

    cluster.kill_etcd();
    agent.wait_for("datastore lost");
    unavailable(&agent, "datastore");
    agent.kill();
    let mut agent = cluster.start_agent_without_waiting();
    agent.wait_for("starting");
    agent.wait_for("datastore");
    unavailable(&agent, "datastore");
    cluster.start_etcd();
    // The node's thread says that it is in sync before the server of plugins has heard of it.
    eventually("STATUS succeeds again", || agent.could_add().ok());
    cluster.delete("/calico/resources/v3/projectcalico.org/ippools/");
    // The watch tells it; until then an address is looked for in vain.
    unavailable(&agent, "pool");
}

#[test]
fn status_tells_when_in_addition_pods_may_be_hard_to_reach() {
    require!("status_tells_when_in_addition");
    let cluster = Cluster::new(r#"{"cidr":"10.65.0.0/32","blockSize":32}"#);
    let agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    let address = address(&agent.add(&pod).unwrap());
    assert_eq!(agent.could_add().unwrap_err().code, ErrorCode::UNAVAILABLE);
    // A route of somebody else's in the place of the pod's.
    cluster.node.sh(&format!(
        "ip route replace unreachable {address} metric 1024 proto static"
    ));
    eventually("the kernel does not follow", || {
        let error = agent.could_add().unwrap_err();
        (error.code == ErrorCode::UNAVAILABLE_LIMITED).then_some(())
    });
    cluster.node.sh(&format!("ip route del unreachable {address}"));
    eventually("the kernel follows again", || {
        let error = agent.could_add().unwrap_err();
        (error.code == ErrorCode::UNAVAILABLE).then_some(())
    });
}

#[test]
fn status_is_about_what_the_network_asks_for() {
    require!("status_is_about");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    for (keys, code) in [
        (r#""ipam":{}"#, None),
        (r#""ipam":{"assign_ipv6":"true"}"#, Some(ErrorCode::UNAVAILABLE)),
        (r#""ipam":{"ipv4_pools":["pool"]}"#, None),
        (
            r#""ipam":{"ipv4_pools":["elsewhere"]}"#,
            Some(ErrorCode::UNAVAILABLE),
        ),
    ] {
        let error = agent.could_add_with(keys).err();
        assert_eq!(error.as_ref().map(|error| error.code), code, "{keys}: {error:?}");
    }
}

#[test]
fn the_runtimes_trace_is_in_the_log_and_the_stages_in_the_metrics() {
    require!("the_runtimes_trace");
    let cluster = Cluster::new(POOL);
    let mut agent = cluster.start_agent_with("[metrics]\nlisten = \"127.0.0.1:9091\"");
    let pod = Pod::new("web-1", "c0ffee01");
    agent.add(&pod).unwrap();
    let line = agent.wait_for("pod attached");
    for stage in ["datastore=", "link=", "pod=", "node="] {
        assert!(line.contains(stage), "{line}");
    }
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    agent.could_add_traced(trace).unwrap();
    let line = agent.wait_for(trace);
    assert!(line.contains("STATUS"), "{line}");
    let metrics = cluster.node.run(|| {
        let mut stream = TcpStream::connect("127.0.0.1:9091").unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    for sample in [
        "calidris_ready ",
        "calidris_endpoints 1\n",
        "calidris_cni_request_seconds_count{operation=\"ADD\"} 1\n",
        "calidris_cni_stage_seconds_count{operation=\"ADD\",stage=\"link\"} 1\n",
        "calidris_cni_failed_requests_total{operation=\"ADD\"} 0\n",
    ] {
        assert!(metrics.contains(sample), "no {sample:?} in {metrics}");
    }
}

#[test]
fn the_configuration_list_is_there_while_pods_can_be_attached() {
    require!("the_configuration_list");
    let mut cluster = Cluster::new(POOL);
    let (source, target) = (
        cluster.folder().join("source.conflist"),
        cluster.folder().join("net.d/10-calidris.conflist"),
    );
    std::fs::write(&source, include_str!("../../deploy/cni/10-calidris.conflist")).unwrap();
    let keys = format!("conflist_source = {source:?}\nconflist = {target:?}\nconflist_grace = \"2s\"");
    let mut agent = cluster.start_agent_with(&keys);
    agent.wait_for("network configuration installed");
    assert_eq!(std::fs::read(&source).unwrap(), std::fs::read(&target).unwrap());
    cluster.kill_etcd();
    agent.wait_for("network configuration removed");
    assert!(!target.exists());
    cluster.start_etcd();
    agent.wait_for("network configuration installed");
    // A restart does not make the node unready.
    assert_eq!(agent.terminate().code(), Some(0));
    assert!(target.exists());
}

#[test]
fn annotations_and_host_ports_are_kept_with_the_endpoint() {
    require!("annotations_and_host_ports");
    let cluster = Cluster::new(POOL);
    let agent = cluster.start_agent();
    let pod = Pod::new("web-1", "c0ffee01");
    let keys = r#""runtimeConfig":{
        "portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"192.0.2.11"},{"hostPort":0,"containerPort":81}],
        "io.kubernetes.cri.pod-annotations":{
            "cni.projectcalico.org/ipAddrs":"[\"10.65.7.7\"]",
            "cni.projectcalico.org/hwAddr":"02:00:00:11:22:33",
            "cni.projectcalico.org/allowedSourcePrefixes":"[\"203.0.113.0/24\"]"}}"#;
    let result = agent.add_with(&pod, keys).unwrap();
    assert_eq!(address(&result), "10.65.7.7");
    assert_eq!(result.interfaces[1].mac, "02:00:00:11:22:33");
    let key = cluster
        .keys_of_pods()
        .into_iter()
        .find(|key| key.contains("/workloadendpoints/"));
    let endpoint = cluster.value(&key.unwrap());
    for part in [
        r#""ports":[{"name":"","protocol":"TCP","port":80,"hostPort":8080,"hostIP":"192.0.2.11"}]"#,
        r#""allowSpoofedSourcePrefixes":["203.0.113.0/24"]"#,
    ] {
        assert!(endpoint.contains(part), "no {part} in {endpoint}");
    }
    for (keys, complaint) in [
        (
            r#""runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"icmp"}]}"#,
            "protocol",
        ),
        (
            r#""runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"cni.projectcalico.org/allowedSourcePrefixes":"[\"x\"]"}}"#,
            "allowedSourcePrefixes",
        ),
        (
            r#""runtimeConfig":{"ipRanges":[[{"subnet":"10.99.0.0/24"}]]}"#,
            "10.99.0.0/24",
        ),
    ] {
        let error = agent.add_with(&Pod::new("web-2", "c0ffee02"), keys).unwrap_err();
        assert_eq!(error.code, ErrorCode::INVALID_CONFIG, "{error:?}");
        assert!(error.msg.contains(complaint), "{error:?}");
    }
    let ranged = agent
        .add_with(
            &Pod::new("web-3", "c0ffee03"),
            r#""runtimeConfig":{"ipRanges":[[{"subnet":"10.65.0.0/16"}]]}"#,
        )
        .unwrap();
    assert!(address(&ranged).starts_with("10.65."), "{ranged:?}");
}
