//! What two routers announce, in the kernel of a node: several gateways, metrics, black holes, next hops behind next hops, IPv6 gateways of
//! IPv4 routes, and what a dead link takes along.

use std::fs;

use super::cluster::{Cluster, Process, has_etcd};
use super::eventually::eventually;
use super::namespaces::{Namespace, possible};

/// A router beside the node: on a link of its own, with a session over IPv4 and one over IPv6.
struct Router {
    namespace: Namespace,
    _speaker: Process,
}

impl Router {
    /// Number `number`: link `rN` to the node, 10.0.N.0/24 and fd00:N::/64, the node at .1 and the router at .2. `routes` are sections
    /// `[[bgp.routes]]`.
    fn new(cluster: &Cluster, number: u8, name: &'static str, routes: &str) -> Self {
        let namespace = Namespace::new();
        let node = &cluster.node;
        node.sh(&format!(
            "ip link add r{number} type veth peer name up0 netns {0}; ip link set r{number} up; ip addr add 10.0.{number}.1/24 dev r{number}; ip addr add fd00:{number}::1/64 dev r{number} nodad",
            namespace.name()
        ));
        namespace.sh(&format!(
            "ip link set up0 up; ip addr add 10.0.{number}.2/24 dev up0; ip addr add fd00:{number}::2/64 dev up0 nodad"
        ));
        let peer = |family: &str, address: String, keys: &str| {
            format!(
                "[[bgp.peers]]\nname = \"node-{family}\"\naddress = \"{address}\"\nas_number = 64512\nfamilies = [\"ipv4\"]\npassive = true\n{keys}\n"
            )
        };
        let own = "import = \"accept\"\nexport = [{ communities = \"65000:6\", action = \"reject\" }, { action = \"accept\" }]";
        let six = "extended_next_hop = true\nimport = \"accept\"\nexport = [{ communities = \"65000:6\", action = \"accept\" }]";
        let config = cluster.folder().join(format!("{name}.toml"));
        let text = format!(
            "[bgp]\nas_number = 6500{number}\nrouter_id = \"10.0.{number}.2\"\n{routes}{}{}[control]\nsocket = \"{}\"\n",
            peer("v4", format!("10.0.{number}.1"), own),
            peer("v6", format!("fd00:{number}::1"), six),
            cluster.folder().join(format!("{name}.sock")).display(),
        );
        fs::write(&config, text).unwrap();
        let command = format!(
            "{} speaker --config {}",
            env!("CARGO_BIN_EXE_calidris"),
            config.display()
        );
        Self {
            _speaker: Process::start(name, &namespace, &command),
            namespace,
        }
    }
}

fn route(prefix: &str, keys: &str) -> String {
    format!("[[bgp.routes]]\nprefix = \"{prefix}\"\n{keys}\n")
}

/// The section `[bgp]` of the node.
fn node_config() -> String {
    let import = "import = [{ prefix = \"10.98.0.0/24\", action = \"accept\", set_priority = 512 }, { action = \"accept\" }]";
    let peer = |number: u8, family: &str, address: String, keys: &str| {
        format!(
            "[[bgp.peers]]\nname = \"router-{number}-{family}\"\naddress = \"{address}\"\nas_number = 6500{number}\nfamilies = [\"ipv4\"]\nconnect_retry = \"1s\"\nblackhole = true\n{import}\nexport = \"own-blocks\"\n{keys}\n"
        )
    };
    let peers: String = [1, 2]
        .into_iter()
        .map(|number| {
            let six = peer(
                number,
                "v6",
                format!("fd00:{number}::2"),
                "extended_next_hop = true",
            );
            peer(number, "v4", format!("10.0.{number}.2"), "") + &six
        })
        .collect();
    format!("\n[bgp]\nas_number = 64512\nrouter_id = \"192.0.2.11\"\n{peers}")
}

/// What `ip route` says of a prefix, on one line, once that fits.
fn kernel_has(cluster: &Cluster, prefix: &str, expected: &[&str]) {
    let what = format!("{prefix}: {expected:?}");
    eventually(&what, || {
        let found = cluster.node.sh(&format!("ip -o route show {prefix} proto 203"));
        expected.iter().all(|text| found.contains(text)).then_some(())
    });
}

fn kernel_lacks(cluster: &Cluster, prefix: &str, text: &str) {
    eventually(&format!("{prefix} without {text}"), || {
        let found = cluster.node.sh(&format!("ip -o route show {prefix} proto 203"));
        (!found.contains(text)).then_some(())
    });
}

fn bgp(cluster: &Cluster, question: &str) -> String {
    let socket = cluster.folder().join("control.sock");
    let output = cluster.calidris(&format!("bgp {question} --socket {}", socket.display()));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn all_established(cluster: &Cluster) {
    eventually("four sessions", || {
        let peers = bgp(cluster, "peers");
        (peers.matches("Established").count() == 4).then_some(())
    });
}

#[test]
fn what_routers_announce_is_in_the_kernel_while_there_is_a_way_to_it() {
    if !possible("what_routers_announce") || !has_etcd("what_routers_announce") {
        return;
    }
    let cluster = Cluster::new(super::POOL);
    let left = [
        route("10.99.0.0/24", ""),
        route("10.98.0.0/24", ""),
        route("10.97.0.7/32", "communities = [\"blackhole\"]"),
        route("10.96.0.0/24", "next_hop = \"10.95.0.1\""),
    ];
    let right = [
        route("10.99.0.0/24", ""),
        route("10.95.0.0/24", ""),
        route("10.94.0.0/24", "communities = [\"65000:6\"]"),
    ];
    let left = Router::new(&cluster, 1, "left", &left.concat());
    let _right = Router::new(&cluster, 2, "right", &right.concat());
    let _agent = cluster.start_agent_with(&node_config());
    all_established(&cluster);

    kernel_has(
        &cluster,
        "10.99.0.0/24",
        &["via 10.0.1.2 dev r1", "via 10.0.2.2 dev r2"],
    );
    kernel_has(&cluster, "10.98.0.0/24", &["via 10.0.1.2", "metric 512"]);
    kernel_has(&cluster, "10.97.0.7", &["blackhole"]);
    kernel_has(&cluster, "10.94.0.0/24", &["via inet6 fd00:2::2"]);
    // A next hop behind what the other router announces.
    kernel_has(&cluster, "10.96.0.0/24", &["via 10.0.2.2"]);
    let told = bgp(&cluster, "route 10.96.0.0/24");
    assert!(told.contains("10.95.0.1"), "{told}");

    // The other end of the link loses its carrier: nobody tells us but the kernel.
    left.namespace.sh("ip link set up0 down");
    kernel_lacks(&cluster, "10.98.0.0/24", "10.98");
    kernel_lacks(&cluster, "10.99.0.0/24", "10.0.1.2");
    kernel_has(&cluster, "10.99.0.0/24", &["via 10.0.2.2"]);
    all_established(&cluster);
    let told = bgp(&cluster, "route 10.98.0.0/24");
    assert!(told.contains("next hop out of reach"), "{told}");

    left.namespace.sh("ip link set up0 up");
    kernel_has(&cluster, "10.98.0.0/24", &["via 10.0.1.2", "metric 512"]);
    kernel_has(&cluster, "10.99.0.0/24", &["via 10.0.1.2", "via 10.0.2.2"]);
}
