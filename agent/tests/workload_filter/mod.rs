//! What workloads may send and be answered, and the ports of the node that lead to them, with real packets.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use calidris_agent::apply::Dataplane;
use calidris_agent::clock;
use calidris_agent::desired::compute;
use calidris_agent::kernel::{KernelChange, Linux};
use calidris_agent::model::{EndpointId, HostPort, InSync, Model, Protocol, SourceSpoofing};

use super::namespaces::{Namespace, possible};
use super::{PATIENCE, client_seen, client_seen_through, pod};

/// A node with two pods, and a machine outside that has a way to the pods.
struct Ground {
    node: Namespace,
    outside: Namespace,
    pods: [Namespace; 2],
    ids: [EndpointId; 2],
    model: Model,
    dataplane: Option<Dataplane<Linux>>,
}

impl Ground {
    fn new() -> Self {
        let (node, outside) = Namespace::node_and_outside();
        node.sh("ip addr add 192.0.2.5/24 dev up0; ip route add default via 192.0.2.9");
        outside.sh("ip route add 10.0.0.0/8 via 192.0.2.1; ip -6 route add fd00::/8 via 2001:db8::1");
        let mut model = Model::new("node-a".into());
        model.in_sync = InSync {
            datastore: true,
            bgp: true,
            cluster: true,
        };
        let (first, first_id, first_endpoint) = pod(&node, 2, ("10.65.0", "fd00:10:65"));
        let (second, second_id, second_endpoint) = pod(&node, 3, ("10.65.0", "fd00:10:65"));
        model.endpoints = [
            (first_id.clone(), first_endpoint),
            (second_id.clone(), second_endpoint),
        ]
        .into_iter()
        .collect();
        Self {
            node,
            outside,
            pods: [first, second],
            ids: [first_id, second_id],
            model,
            dataplane: None,
        }
    }

    fn apply(&mut self) {
        let Self {
            node,
            model,
            dataplane,
            ..
        } = self;
        node.run(|| {
            let dataplane = dataplane.get_or_insert_with(|| Dataplane::new(Linux::open().unwrap()));
            dataplane.note(KernelChange::Links);
            model.links = dataplane.links().unwrap().keys().cloned().collect();
            let report = dataplane.apply(&compute(model), model.in_sync, clock::now());
            assert!(report.failures.is_empty(), "{:#?}", report.failures);
        });
    }

    fn map(&mut self, pod: usize, ports: &[HostPort]) {
        let id = &self.ids[pod];
        let mut endpoint = self.model.endpoints[id].clone();
        endpoint.host_ports = ports.iter().copied().collect();
        self.model.endpoints.insert(id.clone(), endpoint);
    }

    /// Whom a server in `at` that listens on `listen` sees when somebody in `from` connects to `to`.
    fn seen(&self, from: &Namespace, at: &Namespace, listen: &str, to: &str) -> String {
        client_seen_through(from, at, listen.parse().unwrap(), to.parse().unwrap()).to_string()
    }
}

fn port(protocol: Protocol, host_address: Option<&str>, host_port: u16, container_port: u16) -> HostPort {
    HostPort {
        protocol,
        host_address: host_address.map(|address| address.parse().unwrap()),
        host_port,
        port: container_port,
    }
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    if !possible("host_ports_lead_to_the_pod") {
        return;
    }
    let mut ground = Ground::new();
    ground.map(
        0,
        &[
            port(Protocol::Tcp, None, 8080, 80),
            port(Protocol::Tcp, Some("192.0.2.5"), 8081, 81),
        ],
    );
    ground.apply();
    let (node, outside, [pod, other]) = (&ground.node, &ground.outside, &ground.pods);
    let v4 = "10.65.0.2:80";
    for (from, to, seen, case) in [
        (outside, "192.0.2.1:8080", "192.0.2.9", "from outside"),
        (outside, "192.0.2.5:8080", "192.0.2.9", "on every address"),
        (node, "192.0.2.1:8080", "192.0.2.1", "from the node"),
        (
            node,
            "127.0.0.1:8080",
            "192.0.2.1",
            "from the node by way of loopback",
        ),
        (other, "192.0.2.1:8080", "10.65.0.3", "from the pod beside"),
        (pod, "192.0.2.1:8080", "192.0.2.1", "from the pod itself"),
    ] {
        assert_eq!(ground.seen(from, pod, v4, to), seen, "{case}");
    }
    let v6 = "[fd00:10:65::2]:80";
    for (from, to, seen, case) in [
        (outside, "[2001:db8::1]:8080", "2001:db8::9", "from outside, IPv6"),
        (
            other,
            "[2001:db8::1]:8080",
            "fd00:10:65::3",
            "from the pod beside, IPv6",
        ),
    ] {
        assert_eq!(ground.seen(from, pod, v6, to), seen, "{case}");
    }
    let listen = "10.65.0.2:81";
    assert_eq!(
        ground.seen(outside, pod, listen, "192.0.2.5:8081"),
        "192.0.2.9",
        "on one address"
    );
    let refused = |to: &str| {
        let to: SocketAddr = to.parse().unwrap();
        outside.run(|| TcpStream::connect_timeout(&to, PATIENCE).is_err())
    };
    assert!(refused("192.0.2.1:8081"), "another address of the node");

    // A restart keeps them without writing; without the pod they are gone.
    let rules = node.sh("nft -a list ruleset");
    ground.dataplane = None;
    ground.apply();
    assert_eq!(ground.node.sh("nft -a list ruleset"), rules);
    ground.map(0, &[]);
    ground.apply();
    let (outside, to) = (&ground.outside, SocketAddr::from(([192, 0, 2, 1], 8080)));
    assert!(outside.run(|| TcpStream::connect_timeout(&to, PATIENCE).is_err()));
}

#[test]
fn a_flow_of_udp_follows_its_host_port_to_another_pod() {
    if !possible("a_flow_of_udp_follows") {
        return;
    }
    let mut ground = Ground::new();
    let listen = |pod: &Namespace, address: &str| -> UdpSocket {
        let socket = pod.run(|| UdpSocket::bind((address, 53)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let servers = [
        listen(&ground.pods[0], "10.65.0.2"),
        listen(&ground.pods[1], "10.65.0.3"),
    ];
    let client = ground.outside.run(|| UdpSocket::bind("192.0.2.9:0").unwrap());
    let mapping = [port(Protocol::Udp, None, 5353, 53)];
    for number in [0, 1, 0] {
        ground.map(number, &mapping);
        ground.map(1 - number, &[]);
        ground.apply();
        client.send_to(&[7], ("192.0.2.1", 5353)).unwrap();
        let (_, from) = servers[number].recv_from(&mut [0; 8]).unwrap();
        assert_eq!(
            from,
            client.local_addr().unwrap(),
            "the pod that has the port now"
        );
    }
}

#[test]
fn a_pod_sends_with_its_own_addresses_only() {
    if !possible("a_pod_sends_with_its_own_addresses_only") {
        return;
    }
    let mut ground = Ground::new();
    let allowed = "10.70.0.0/24".parse().unwrap();
    let id = ground.ids[1].clone();
    let mut endpoint = ground.model.endpoints[&id].clone();
    endpoint.allowed_sources = [allowed].into();
    ground.model.endpoints.insert(id, endpoint);
    ground.model.source_spoofing = SourceSpoofing::Any;
    ground.apply();
    let server = |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        let socket = ground.outside.run(|| UdpSocket::bind((address, 0)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    // The first datagram that comes is the last one sent: those before it had no right to.
    for (pod, to, sources) in [
        (0, "192.0.2.9", ["10.65.0.3", "10.70.0.1", "10.65.0.2"].as_slice()),
        (
            0,
            "2001:db8::9",
            &["fd00:10:65::3", "2001:db8:9::1", "fd00:10:65::2"],
        ),
        (1, "192.0.2.9", &["10.65.0.2", "10.71.0.1", "10.70.0.1"]),
        (1, "192.0.2.9", &["10.65.0.3"]),
    ] {
        let server = server(to);
        let pod = &ground.pods[pod];
        for source in sources {
            pod.try_sh(&format!("ip addr add {source} dev lo nodad"));
            let source: IpAddr = source.parse().unwrap();
            pod.run(|| {
                let client = UdpSocket::bind((source, 0)).unwrap();
                client.send_to(&[7], server.local_addr().unwrap()).unwrap();
            });
        }
        let from = loop {
            match server.recv_from(&mut [0; 8]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                received => break received.unwrap().1,
            }
        };
        assert_eq!(
            from.ip().to_string(),
            sources[sources.len() - 1],
            "of {sources:?}"
        );
    }
}

#[test]
fn an_unknown_interface_with_our_prefix_is_closed() {
    if !possible("an_unknown_interface_is_closed") {
        return;
    }
    let mut ground = Ground::new();
    ground.apply();
    // A third pod that the agent does not know of; its route is there.
    let (unknown, id, endpoint) = pod(&ground.node, 4, ("10.65.0", "fd00:10:65"));
    ground
        .node
        .sh(&format!("ip route add 10.65.0.4 dev {}", endpoint.host_interface));
    let server = ground.outside.run(|| UdpSocket::bind("192.0.2.9:0").unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let send = |from: &Namespace| {
        from.run(|| {
            let client = UdpSocket::bind("0.0.0.0:0").unwrap();
            let _ = client.send_to(&[7], server.local_addr().unwrap());
        });
    };
    // The host does not even answer its ARP requests: given by hand what that would tell.
    unknown.sh("ip neigh replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0");
    send(&unknown);
    send(&ground.pods[0]);
    let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(
        from.ip().to_string(),
        "10.65.0.2",
        "the known one's is the first to come"
    );

    ground.node.sh("ip route del 10.65.0.4");
    ground.model.endpoints.insert(id, endpoint);
    ground.apply();
    assert_eq!(
        client_seen(&unknown, &ground.outside, "192.0.2.9").to_string(),
        "10.65.0.4",
        "open once it is known"
    );
}

#[test]
fn arp_is_answered_for_everything_but_the_pods_own_address() {
    if !possible("arp_is_answered") {
        return;
    }
    let mut ground = Ground::new();
    ground.apply();
    let [pod, _] = &ground.pods;
    // As a pod that makes sure that its address is free: it asks before it has it.
    pod.sh("ip addr add 10.65.0.99/32 dev eth0; ip addr del 10.65.0.2/32 dev eth0; ip route replace 169.254.1.1 dev eth0");
    // The worst case: the host would forward to it elsewhere. It answers only who it has a way back to.
    let interface = ground.model.endpoints[&ground.ids[0]].host_interface.clone();
    ground.node.sh(&format!(
        "ip route del 10.65.0.2; ip route add 10.65.0.99 dev {interface}"
    ));
    let answer = |address: &str| -> String {
        pod.sh("ip neigh flush dev eth0");
        pod.sh(&format!("ip route replace {address} dev eth0"));
        pod.try_sh(&format!("ping -c1 -W2 {address}"));
        pod.sh(&format!("ip neigh show {address}"))
    };
    for address in ["10.65.0.3", "192.0.2.9", "10.65.0.77"] {
        assert!(
            answer(address).contains("lladdr ee:ee:ee:ee:ee:ee"),
            "{address}: {}",
            answer(address)
        );
    }
    assert!(!answer("10.65.0.2").contains("lladdr"), "{}", answer("10.65.0.2"));
}
