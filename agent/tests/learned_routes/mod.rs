//! BGP on a node, beside routers in namespaces. What they announce, in the kernel: several gateways, metrics, black holes, next hops behind next hops, IPv6 gateways of
//! IPv4 routes, and what a dead link takes along. And what a new
//! configuration, or a resource in the datastore, does to sessions.

use std::fs;

use super::cluster::{Cluster, Pod, Process, has_etcd};
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
        Self::with_keys(cluster, number, (name, routes), "")
    }

    /// The same, with more keys of the peer that the node is over IPv4.
    fn with_keys(cluster: &Cluster, number: u8, (name, routes): (&'static str, &str), keys: &str) -> Self {
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
            peer("v4", format!("10.0.{number}.1"), &format!("{keys}{own}")),
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

/// The routes that BGP made in a table, and the rules of ours.
fn table_and_rules(cluster: &Cluster, table: &str) -> (String, String) {
    let routes = format!("ip -o route show table {table} proto 203 | sed 's/  *$//'");
    (
        cluster.node.sh(&routes),
        cluster.node.sh("ip rule | grep 'proto 202' || true"),
    )
}

#[test]
fn a_restart_moves_what_was_learned_to_another_table_and_back_and_then_writes_nothing() {
    if !possible("a_restart_moves_what_was_learned") || !has_etcd("a_restart_moves_what_was_learned") {
        return;
    }
    let cluster = Cluster::new(super::POOL);
    let routes = [route("10.99.0.0/24", ""), route("0.0.0.0/0", "")].concat();
    let _left = Router::new(&cluster, 1, "left", &routes);
    let _right = Router::new(&cluster, 2, "right", "");
    let with_table = |table: u32| format!("{}[dataplane]\nremote_route_table = {table}\n", node_config());
    let is_at = |table: &str, rules: usize| {
        eventually(&format!("two routes in table {table}"), || {
            let (routes, ours) = table_and_rules(&cluster, table);
            (routes.lines().count() == 2 && ours.lines().count() == rules).then_some(())
        });
    };
    let agent = cluster.start_agent_with(&node_config());
    is_at("main", 0);
    let pod = Pod::new("web-1", "c0ffee01");
    let address = super::address(&agent.add(&pod).unwrap());
    agent.kill();

    for (table, name, other, rules) in [(100, "100", "main", 2), (254, "main", "100", 0)] {
        let agent = cluster.start_agent_with(&with_table(table));
        is_at(name, rules);
        eventually("none is left", || {
            table_and_rules(&cluster, other).0.is_empty().then_some(())
        });
        // What a peer announces covers everything, and the pod is still here.
        cluster.node.sh(&format!("ping -c1 -W5 {address}"));
        for damage in ["ip rule flush proto 202", "ip route del 10.99.0.0/24 table 100"] {
            if table == 100 {
                cluster.node.sh(damage);
                is_at(name, rules);
            }
        }
        agent.kill();
        let mut agent = cluster.start_agent_with(&with_table(table));
        agent.wait_for("\"bgp\":true");
        is_at(name, rules);
        assert_eq!(agent.status().dataplane.operations, 0, "a second start writes");
        agent.kill();
    }
}

fn peer(cluster: &Cluster, name: &str) -> Option<serde_json::Value> {
    serde_json::from_str(&bgp(cluster, &format!("peer {name} -o json"))).ok()
}

fn established(cluster: &Cluster, name: &str) -> serde_json::Value {
    eventually(&format!("{name} Established"), || {
        peer(cluster, name).filter(|peer| peer["state"] == "established")
    })
}

#[test]
fn a_new_configuration_is_told_first_and_resets_only_whose_identity_changed() {
    if !possible("a_new_configuration") || !has_etcd("a_new_configuration") {
        return;
    }
    let cluster = Cluster::new(super::POOL);
    let _left = Router::new(&cluster, 1, "left", &route("10.99.0.0/24", ""));
    let _right = Router::new(&cluster, 2, "right", &route("10.99.0.0/24", ""));
    let _agent = cluster.start_agent_with(&node_config());
    all_established(&cluster);
    let counts = || {
        let count = |name: &str| peer(&cluster, name).map(|peer| peer["established_count"].clone());
        ["router-1-v4", "router-2-v4"].map(|name| count(name).unwrap_or_default())
    };
    assert_eq!(counts(), [1, 1]);
    let file = cluster.folder().join("calidris.toml");
    let before = fs::read_to_string(&file).unwrap();

    // Policy: nobody is reset, and what the kernel has follows.
    kernel_has(&cluster, "10.99.0.0/24", &["metric 1024"]);
    fs::write(&file, before.replace("10.98.0.0/24", "10.99.0.0/24")).unwrap();
    let plan = bgp(&cluster, "plan");
    assert!(
        plan.contains("peer router-1-v4: its session stays; import policy"),
        "{plan}"
    );
    kernel_has(&cluster, "10.99.0.0/24", &["metric 1024"]);
    assert_eq!(bgp(&cluster, "reload"), format!("{plan}applied\n"));
    kernel_has(&cluster, "10.99.0.0/24", &["metric 512"]);
    kernel_lacks(&cluster, "10.99.0.0/24", "metric 1024");
    assert_eq!(counts(), [1, 1]);

    // Identity: one peer begins anew, the others do not notice.
    let identity = "address = \"10.0.2.2\"\nas_number = 65002\n";
    let after = before.replace(identity, &format!("{identity}local_as = 64999\n"));
    assert_ne!(after, before);
    fs::write(&file, after).unwrap();
    let plan = bgp(&cluster, "plan");
    assert!(plan.contains("peer router-2-v4: its session is RESET"), "{plan}");
    assert_eq!(plan.matches("is RESET").count(), 1, "{plan}");
    bgp(&cluster, "reload");
    eventually("the session of the other router to end", || {
        let peer = peer(&cluster, "router-2-v4")?;
        (peer["state"] != "established").then_some(())
    });
    assert_eq!(counts()[0], 1);

    // What is wrong changes nothing.
    fs::write(&file, before.replace("as_number = 65001", "as_number = 0")).unwrap();
    assert_eq!(bgp(&cluster, "reload"), "");
    assert_eq!(counts()[0], 1);
}

/// Writes a resource of Calico's.
fn put(cluster: &Cluster, plural: &str, name: &str, spec: &str) {
    cluster.put(
        &format!("/calico/resources/v3/projectcalico.org/{plural}/{name}"),
        &format!(r#"{{"kind":"K","apiVersion":"projectcalico.org/v3","metadata":{{"name":"{name}"}},"spec":{spec}}}"#),
    );
}

#[test]
fn resources_in_the_datastore_make_sessions_and_change_them_without_a_reset() {
    if !possible("resources_in_the_datastore") || !has_etcd("resources_in_the_datastore") {
        return;
    }
    let cluster = Cluster::new(super::POOL);
    let routes = [route("10.99.0.0/24", ""), route("10.98.0.0/24", "")].concat();
    let _router = Router::new(&cluster, 1, "left", &routes);
    put(
        &cluster,
        "bgpconfigurations",
        "default",
        r#"{"nodeToNodeMeshEnabled":false}"#,
    );
    let spec = r#""peerIP":"10.0.1.2","asNumber":65001,"sourceAddress":"None""#;
    let password = r#","password":{"secretKeyRef":{"name":"bgp","key":"tor"}}"#;
    put(&cluster, "bgppeers", "tor", &format!("{{{spec}{password}}}"));
    let secrets = cluster.folder().join("secrets");
    let config = format!(
        "\n[bgp]\nas_number = 64512\nrouter_id = \"192.0.2.11\"\n[peering]\nfrom_datastore = true\nsecrets = \"{}\"\n",
        secrets.display()
    );
    let _agent = cluster.start_agent_with(&config);

    // A secret that is not there: no session, and the reason.
    let why = eventually("the peer to be held down", || {
        let peer = peer(&cluster, "tor-10.0.1.2")?;
        Some(peer["held_down"].as_str()?.to_owned())
    });
    assert!(why.contains("secrets/bgp/tor: cannot read the password"), "{why}");
    put(&cluster, "bgppeers", "tor", &format!("{{{spec}}}"));
    established(&cluster, "tor-10.0.1.2");
    kernel_has(&cluster, "10.99.0.0/24", &["via 10.0.1.2"]);
    kernel_has(&cluster, "10.98.0.0/24", &["via 10.0.1.2"]);

    // A filter refuses a route by name, and nobody notices else.
    let rule = r#"{"importV4":[{"cidr":"10.98.0.0/24","matchOperator":"Equal","action":"Reject"}]}"#;
    put(&cluster, "bgpfilters", "quiet", rule);
    put(
        &cluster,
        "bgppeers",
        "tor",
        &format!("{{{spec},\"filters\":[\"quiet\"]}}"),
    );
    kernel_lacks(&cluster, "10.98.0.0/24", "10.98");
    let told = bgp(&cluster, "route 10.98.0.0/24");
    assert!(
        told.contains("refused: import term \"quiet importV4[0]\""),
        "{told}"
    );
    kernel_has(&cluster, "10.99.0.0/24", &["via 10.0.1.2"]);
    assert_eq!(peer(&cluster, "tor-10.0.1.2").unwrap()["established_count"], 1);

    // A peer that is reached through a gateway has a route, before there is any session with it.
    let behind = r#"{"peerIP":"10.77.0.1","asNumber":65009,"reachableBy":"10.0.1.2"}"#;
    put(&cluster, "bgppeers", "behind", behind);
    kernel_has(&cluster, "10.77.0.1", &["via 10.0.1.2"]);
    cluster.delete("/calico/resources/v3/projectcalico.org/bgppeers/behind");
    kernel_lacks(&cluster, "10.77.0.1", "via");

    cluster.delete("/calico/resources/v3/projectcalico.org/bgppeers/tor");
    kernel_lacks(&cluster, "10.99.0.0/24", "10.99");
    assert!(
        !bgp(&cluster, "peers").contains("tor-"),
        "{}",
        bgp(&cluster, "peers")
    );
}

/// Gives the endpoint of the only pod a label.
fn label(cluster: &Cluster, color: &str) {
    let mut keys = cluster.keys_of_pods();
    keys.retain(|key| key.contains("/workloadendpoints/"));
    let [key] = keys.try_into().unwrap();
    let mut endpoint: serde_json::Value = serde_json::from_str(&cluster.value(&key)).unwrap();
    endpoint["metadata"]["labels"]["color"] = color.into();
    cluster.put(&key, &endpoint.to_string());
}

#[test]
fn workloads_that_a_peer_selects_announce_what_lies_behind_them() {
    if !possible("workloads_that_a_peer_selects") || !has_etcd("workloads_that_a_peer_selects") {
        return;
    }
    let cluster = Cluster::new(super::POOL);
    put(
        &cluster,
        "bgpconfigurations",
        "default",
        r#"{"nodeToNodeMeshEnabled":false,"localWorkloadPeeringIPV4":"169.254.0.179"}"#,
    );
    put(
        &cluster,
        "bgpfilters",
        "nested",
        r#"{"importV4":[{"interface":"cali*","cidr":"10.123.0.0/16","matchOperator":"In","action":"Accept"},{"action":"Reject"}]}"#,
    );
    put(
        &cluster,
        "bgppeers",
        "nested",
        r#"{"localWorkloadSelector":"color == \"red\"","asNumber":65401,"filters":["nested"]}"#,
    );
    let agent = cluster.start_agent_with(
        "\n[bgp]\nas_number = 64512\nrouter_id = \"192.0.2.11\"\n[peering]\nfrom_datastore = true\n",
    );
    let pod = Pod::new("web-1", "c1");
    let added = agent.add(&pod).unwrap();
    let address = added.ips[0].address.ip();
    // A node of a cluster of its own, as seen from this one.
    pod.namespace.sh("ip addr add 10.123.0.1/32 dev lo");
    let config = cluster.folder().join("nested.toml");
    let routes = [route("10.123.0.0/26", ""), route("10.124.0.0/26", "")].concat();
    let text = format!(
        "[bgp]\nas_number = 65401\nrouter_id = \"{address}\"\n{routes}[[bgp.peers]]\nname = \"host\"\naddress = \"169.254.0.179\"\nas_number = 64512\nmultihop = 2\nconnect_retry = \"1s\"\nimport = \"accept\"\nexport = \"accept\"\n[control]\nsocket = \"{}\"\n",
        cluster.folder().join("nested.sock").display(),
    );
    fs::write(&config, text).unwrap();
    let command = format!(
        "{} speaker --config {}",
        env!("CARGO_BIN_EXE_calidris"),
        config.display()
    );
    let _speaker = Process::start("nested", &pod.namespace, &command);

    // Not selected: no session, and no address for one.
    let host_ends = || cluster.node.sh("ip -o -4 addr show to 169.254.0.179");
    assert_eq!(host_ends(), "");
    label(&cluster, "red");
    let name = format!("nested-{address}");
    let session = established(&cluster, &name);
    assert!(
        session["transport"][0]
            .as_str()
            .unwrap()
            .starts_with("169.254.0.179:179"),
        "{session}"
    );
    assert!(host_ends().contains("169.254.0.179/32"), "{}", host_ends());
    kernel_has(&cluster, "10.123.0.0/26", &[&format!("via {address} dev cali")]);
    kernel_lacks(&cluster, "10.124.0.0/26", "10.124");
    let told = bgp(&cluster, "route 10.124.0.0/26");
    assert!(
        told.contains("refused: import term \"nested importV4[1]\""),
        "{told}"
    );
    // Packets go there, and answers come from there.
    eventually("an answer from behind the pod", || {
        let pinged = cluster.node.try_sh("ping -c 1 -W 1 10.123.0.1");
        pinged.status.success().then_some(())
    });

    // Not selected any more: nothing of it stays.
    label(&cluster, "blue");
    kernel_lacks(&cluster, "10.123.0.0/26", "10.123");
    eventually("the address to go", || host_ends().is_empty().then_some(()));
    assert!(peer(&cluster, &name).is_none());
    // With the last address of a link the kernel forgets what leads there.
    eventually("the pod to be reached again", || {
        let pinged = cluster.node.try_sh(&format!("ping -c 1 -W 1 {address}"));
        pinged.status.success().then_some(())
    });

    // A pod that goes takes its session along; one of the same name later has its own.
    label(&cluster, "red");
    established(&cluster, &name);
    agent.del(&pod).unwrap();
    kernel_lacks(&cluster, "10.123.0.0/26", "10.123");
    eventually("the session to be gone", || {
        peer(&cluster, &name).is_none().then_some(())
    });
    let again = pod.started_again();
    agent.add(&again).unwrap();
    label(&cluster, "red");
    eventually("the address to be back", || {
        host_ends().contains("169.254.0.179").then_some(())
    });
}

/// Makes the files of a Secret as kubelet does: links to links to files, of which the middle one is exchanged at once.
fn write_secret(folder: &std::path::Path, generation: u32, key: &str, value: &str) {
    use std::os::unix::fs::symlink;
    let data = folder.join(format!("..{generation}"));
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join(key), value).unwrap();
    let next = folder.join("..data_tmp");
    symlink(format!("..{generation}"), &next).unwrap();
    fs::rename(&next, folder.join("..data")).unwrap();
    if generation == 1 {
        symlink(format!("..data/{key}"), folder.join(key)).unwrap();
    }
}

#[test]
fn a_secret_that_is_renewed_is_followed_without_a_reset() {
    if !possible("a_secret_that_is_renewed") || !has_etcd("a_secret_that_is_renewed") {
        return;
    }
    let cluster = Cluster::new(super::POOL);
    let secrets = cluster.folder().join("secrets");
    let secret = secrets.join("bgp-passwords");
    put(
        &cluster,
        "bgpconfigurations",
        "default",
        r#"{"nodeToNodeMeshEnabled":false}"#,
    );
    let spec = r#"{"peerIP":"10.0.1.2","asNumber":65001,"sourceAddress":"None","password":{"secretKeyRef":{"name":"bgp-passwords","key":"tor"}}}"#;
    put(&cluster, "bgppeers", "tor", spec);
    let password = cluster.folder().join("router-password");
    fs::write(&password, "first\n").unwrap();
    let router = Router::with_keys(
        &cluster,
        1,
        ("left", &route("10.99.0.0/24", "")),
        &format!("password_file = \"{}\"\nhold_time = \"6s\"\n", password.display()),
    );
    let _agent = cluster.start_agent_with(&format!(
        "\n[bgp]\nas_number = 64512\nrouter_id = \"192.0.2.11\"\n[peering]\nfrom_datastore = true\nsecrets = \"{}\"\n",
        secrets.display()
    ));
    eventually("the peer to be held down", || {
        let peer = peer(&cluster, "tor-10.0.1.2")?;
        peer["held_down"]
            .as_str()?
            .contains("cannot read the password")
            .then_some(())
    });

    // The Secret comes, and with it the session: nobody has to ask for it.
    write_secret(&secret, 1, "tor", "first");
    established(&cluster, "tor-10.0.1.2");

    // It changes on both sides. Packets with the new key pass, in both directions, for longer than the session would live without.
    write_secret(&secret, 2, "tor", "second");
    fs::write(&password, "second\n").unwrap();
    let heard = || {
        let peer = peer(&cluster, "tor-10.0.1.2")?;
        peer["counters"]["keepalives_in"].as_u64()
    };
    let before = eventually("the peer", heard);
    eventually("four more keepalives", || (heard()? >= before + 4).then_some(()));
    assert_eq!(peer(&cluster, "tor-10.0.1.2").unwrap()["established_count"], 1);
    drop(router);
}
