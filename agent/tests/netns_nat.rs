//! NAT outgoing with real packets: a pod, its node, and a host outside that has no route to the pods.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

mod eventually;
mod namespaces;
mod tunnel_filter;
mod workload_filter;

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use calidris_agent::apply::Dataplane;
use calidris_agent::clock;
use calidris_agent::desired::compute;
use calidris_agent::kernel::Linux;
use calidris_agent::model::{Encapsulation, Endpoint, EndpointId, InSync, Model, Pool};
use calidris_agent::pod_link::{self, PodLink};
use eventually::eventually;
use namespaces::{Namespace, possible};

const PATIENCE: Duration = Duration::from_secs(5);

/// Whom a server in `at` sees when somebody in `from` connects to `address`.
fn client_seen(from: &Namespace, at: &Namespace, address: &str) -> IpAddr {
    let address: IpAddr = address.parse().unwrap();
    let listener = at.run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let to = listener.local_addr().unwrap();
    seen_by(&listener, from, at, to)
}

/// Whom a server in `at` that listens on `listen` sees when somebody in `from` connects to `to`.
fn client_seen_through(from: &Namespace, at: &Namespace, listen: SocketAddr, to: SocketAddr) -> IpAddr {
    // A test beside this one may be starting a program: until it runs, it has our closed sockets too.
    let bound = || at.run(|| TcpListener::bind(listen).ok());
    let listener = eventually(&format!("a listener on {listen}"), bound);
    seen_by(&listener, from, at, to)
}

fn seen_by(listener: &TcpListener, from: &Namespace, at: &Namespace, to: SocketAddr) -> IpAddr {
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let _ = stream.read(&mut [0; 1]);
            peer.ip()
        });
        from.run(|| {
            let connected = TcpStream::connect_timeout(&to, PATIENCE);
            if connected.is_err() {
                // So that the server ends too; it then sees itself.
                let local = listener.local_addr().unwrap();
                let _ = at.run(|| TcpStream::connect_timeout(&local, PATIENCE));
            }
            connected
                .map(|_| ())
                .unwrap_or_else(|error| eprintln!("connecting to {to}: {error}"));
        });
        server.join().unwrap()
    })
}

fn pod(node: &Namespace, number: u8, pool: (&str, &str)) -> (Namespace, EndpointId, Endpoint) {
    let pod = Namespace::new();
    let id = EndpointId {
        network: "n".into(),
        container_id: format!("c{number}"),
        ifname: "eth0".into(),
    };
    let host_interface = pod_link::host_interface_name(None, &id.container_id, &id.ifname);
    let addresses = [format!("{}.{number}", pool.0), format!("{}::{number}", pool.1)];
    let link = PodLink {
        id: id.clone(),
        host_interface: host_interface.clone(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        mac: None,
        mtu: 1500,
    };
    let namespace = pod.open();
    node.run(|| pod_link::create(namespace.as_fd(), &link)).unwrap();
    let endpoint = Endpoint {
        host_interface,
        addresses: link.addresses,
        mac: None,
        namespace: None,
        pod: None,
        ..Endpoint::default()
    };
    (pod, id, endpoint)
}

#[test]
fn pods_are_translated_to_the_outside_and_to_nobody_else() {
    if !possible("pods_are_translated_to_the_outside") {
        return;
    }
    let (node, outside) = Namespace::node_and_outside();
    // The other end stands for another node, too, with a pod address of another pool.
    outside.sh("ip addr add 10.66.0.9/32 dev lo; ip addr add fd00:10:66::9/128 dev lo");
    outside.sh("ip route add 10.65.0.0/16 via 192.0.2.1; ip -6 route add fd00:10:65::/64 via 2001:db8::1");
    node.sh("ip route add 10.66.0.0/16 via 192.0.2.9; ip -6 route add fd00:10:66::/64 via 2001:db8::9");

    let mut model = Model::new("node-a".into());
    model.in_sync = InSync {
        datastore: true,
        bgp: true,
        cluster: true,
    };
    let pools = [
        ("10.65.0.0/16", true),
        ("fd00:10:65::/64", true),
        ("10.66.0.0/16", false),
        ("fd00:10:66::/64", false),
    ];
    for (cidr, nat_outgoing) in pools {
        let cidr = cidr.parse().unwrap();
        let pool = Pool {
            cidr,
            nat_outgoing,
            encapsulation: Encapsulation::None,
            disable_bgp_export: false,
        };
        model.pools.insert(cidr.to_string(), pool);
    }
    let (first, first_id, first_endpoint) = pod(&node, 2, ("10.65.0", "fd00:10:65"));
    let (second, second_id, second_endpoint) = pod(&node, 3, ("10.65.0", "fd00:10:65"));
    model.endpoints = [(first_id, first_endpoint), (second_id, second_endpoint)]
        .into_iter()
        .collect();
    node.run(|| {
        let mut dataplane = Dataplane::new(Linux::open().unwrap());
        model.links = dataplane.links().unwrap().keys().cloned().collect();
        let report = dataplane.apply(&compute(&model), model.in_sync, clock::now());
        assert!(report.failures.is_empty(), "{:#?}", report.failures);
    });

    let seen = |from: &Namespace, at: &Namespace, address: &str| client_seen(from, at, address).to_string();
    assert_eq!(seen(&first, &outside, "192.0.2.9"), "192.0.2.1", "outside, IPv4");
    assert_eq!(
        seen(&first, &outside, "2001:db8::9"),
        "2001:db8::1",
        "outside, IPv6"
    );
    assert_eq!(
        seen(&first, &second, "10.65.0.3"),
        "10.65.0.2",
        "the pod beside, IPv4"
    );
    assert_eq!(
        seen(&first, &second, "fd00:10:65::3"),
        "fd00:10:65::2",
        "the pod beside, IPv6"
    );
    assert_eq!(
        seen(&first, &outside, "10.66.0.9"),
        "10.65.0.2",
        "a pod of another pool, IPv4"
    );
    assert_eq!(
        seen(&first, &outside, "fd00:10:66::9"),
        "fd00:10:65::2",
        "a pod of another pool, IPv6"
    );
    assert_eq!(seen(&first, &node, "192.0.2.1"), "10.65.0.2", "the own node");
    assert_eq!(seen(&outside, &first, "10.65.0.2"), "192.0.2.9", "from outside");
    assert_eq!(
        seen(&node, &second, "10.65.0.3"),
        "192.0.2.1",
        "from the own node"
    );
}
