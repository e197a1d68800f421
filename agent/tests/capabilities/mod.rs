//! What a runtime hands over beside the container, as it is seen on the wire: ports of the node, pools and addresses that
//! the pod's annotations name, ranges that it may send from.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use calidris_cni::error::ErrorCode;
use calidris_cni::result::AddResult;
use rustix::net::{AddressFamily, Protocol, SocketType};

use super::POOL;
use super::cluster::{Cluster, Pod, has_etcd};
use super::eventually::eventually;
use super::namespaces::{Namespace, possible};

/// How long anything may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);
const V6_POOL: &str = r#"{"cidr":"fd00:10:65::/64","blockSize":122}"#;
/// Addresses of the node.
const NODE: [&str; 2] = ["192.0.2.11", "2001:db8::11"];

/// What a runtime passes on of a pod with both families and three ports.
const PORTS: &str = r#""ipam":{"assign_ipv4":"true","assign_ipv6":"true"},"runtimeConfig":{"portMappings":[
    {"hostPort":8080,"containerPort":80,"protocol":"tcp"},
    {"hostPort":5353,"containerPort":53,"protocol":"udp"},
    {"hostPort":3868,"containerPort":38,"protocol":"sctp"}]}"#;
/// How nftables shows the ports of [`PORTS`].
const SHOWN: [&str; 3] = ["8080", "5353", "3868"];

macro_rules! require {
    ($test:literal) => {
        if !possible($test) || !has_etcd($test) {
            return;
        }
    };
}

/// A node with both families.
fn dual_stack() -> Cluster {
    let cluster = Cluster::new(POOL);
    cluster.put_pool("pool6", V6_POOL);
    cluster
        .node
        .sh(&format!("ip addr add {}/64 dev up0 nodad", NODE[1]));
    cluster
}

#[test]
fn host_ports_of_every_protocol_come_with_add_and_go_with_del_and_gc() {
    require!("host_ports_of_every_protocol");
    let cluster = dual_stack();
    let agent = cluster.start_agent();
    let node = &cluster.node;
    let rules = || node.sh("nft list ruleset");
    let others = rules();
    for collected in [false, true] {
        let pod = Pod::new("web-1", if collected { "c0ffee02" } else { "c0ffee01" });
        let result = agent.add_with(&pod, PORTS).unwrap();
        assert_eq!(result.ips.len(), 2, "{result:?}");
        for address in NODE {
            lead_to(node, &pod.namespace, address.parse().unwrap());
        }
        sctp_leads_to(node, &pod.namespace);

        agent.check_with(&pod, &result, PORTS).unwrap();
        let more = PORTS.replace("5353", "5354");
        let error = agent.check_with(&pod, &result, &more).unwrap_err();
        assert_eq!(error.code, ErrorCode::CHECK_FAILED, "{error:?}");
        assert!(error.details.contains("udp host port 5354"), "{error:?}");

        if collected {
            let living = Pod::new("web-2", "c0ffee03");
            agent.collect(&living, &[&living]).unwrap();
        } else {
            agent.del(&pod).unwrap();
        }
        let left = rules();
        assert!(!SHOWN.iter().any(|port| left.contains(port)), "{left}");
        let to = SocketAddr::new(NODE[0].parse().unwrap(), 8080);
        assert!(node.run(|| TcpStream::connect_timeout(&to, PATIENCE).is_err()));
    }
    assert_eq!(rules(), others);
}

/// TCP and UDP of [`PORTS`] on an address of the node lead to the pod.
fn lead_to(node: &Namespace, pod: &Namespace, address: IpAddr) {
    let any: IpAddr = if address.is_ipv6() { "::" } else { "0.0.0.0" }.parse().unwrap();
    // A test beside this one may be starting a program: until it runs, it has our closed sockets too, and their ports.
    let _server = eventually("port 80 is free", || {
        pod.run(|| TcpListener::bind((any, 80)).ok())
    });
    let to = SocketAddr::new(address, 8080);
    node.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();

    let server = eventually("port 53 is free", || pod.run(|| UdpSocket::bind((any, 53)).ok()));
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = node.run(|| UdpSocket::bind((address, 0)).unwrap());
    client.send_to(b"ask", (address, 5353)).unwrap();
    let mut heard = [0; 8];
    let (length, asker) = server.recv_from(&mut heard).unwrap();
    assert_eq!(&heard[..length], b"ask");
    // The answer finds its way back, and comes from whom was asked.
    server.send_to(b"answer", asker).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (_, from) = client.recv_from(&mut heard).unwrap();
    assert_eq!(from, SocketAddr::new(address, 5353));
}

/// A kernel need not have SCTP itself to translate its ports: the chunk that opens an association (RFC 9260 §3.3.2) is sent
/// and looked at by hand.
fn sctp_leads_to(node: &Namespace, pod: &Namespace) {
    let raw = |namespace: &Namespace| -> UdpSocket {
        let sctp = Some(Protocol::from_raw(132.try_into().unwrap()));
        let socket =
            namespace.run(|| rustix::net::socket(AddressFamily::INET, SocketType::RAW, sctp).unwrap());
        UdpSocket::from(socket)
    };
    let (server, client) = (raw(pod), raw(node));
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut packet = Vec::new();
    packet.extend(40_000_u16.to_be_bytes());
    packet.extend(3868_u16.to_be_bytes());
    // Verification tag 0, as an INIT has; the checksum is nobody's business on the way.
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend(7_u32.to_be_bytes());
    packet.extend(65_536_u32.to_be_bytes());
    packet.extend([0, 1, 0, 1, 0, 0, 0, 1]);
    client.send_to(&packet, (NODE[0], 0)).unwrap();
    let mut heard = [0; 128];
    let (length, _) = server.recv_from(&mut heard).unwrap();
    let header = usize::from(heard[0] & 0xf) * 4;
    let port = u16::from_be_bytes([heard[header + 2], heard[header + 3]]);
    assert_eq!(port, 38, "{:?}", &heard[..length]);
}

#[test]
fn annotations_choose_pools_addresses_and_mac_address() {
    require!("annotations_choose");
    let cluster = dual_stack();
    cluster.put_pool("second", r#"{"cidr":"10.66.0.0/24"}"#);
    cluster.put_pool("second6", r#"{"cidr":"fd00:10:66::/64","blockSize":122}"#);
    let agent = cluster.start_agent();
    let both = r#""ipam":{"assign_ipv4":"true","assign_ipv6":"true"}"#;
    let with = |annotations: &str| {
        format!(r#"{both},"runtimeConfig":{{"io.kubernetes.cri.pod-annotations":{{{annotations}}}}}"#)
    };
    let pools = with(
        r#""cni.projectcalico.org/ipv4pools":"[\"second\"]","cni.projectcalico.org/ipv6pools":"[\"fd00:10:66::/64\"]""#,
    );
    let result = agent.add_with(&Pod::new("web-1", "c0ffee01"), &pools).unwrap();
    let [v4, v6] = both_addresses(&result);
    assert!(
        v4.starts_with("10.66.0.") && v6.starts_with("fd00:10:66:"),
        "{v4} {v6}"
    );

    let named = with(
        r#""cni.projectcalico.org/ipAddrs":"[\"10.65.9.9\",\"fd00:10:65::99\"]","cni.projectcalico.org/hwAddr":"02:00:00:11:22:33""#,
    );
    let pod = Pod::new("web-2", "c0ffee02");
    let result = agent.add_with(&pod, &named).unwrap();
    assert_eq!(both_addresses(&result), ["10.65.9.9", "fd00:10:65::99"]);
    let link = pod.namespace.sh("ip addr show eth0");
    for part in ["02:00:00:11:22:33", "10.65.9.9/32", "fd00:10:65::99/128"] {
        assert!(link.contains(part), "no {part} in {link}");
    }
    cluster
        .node
        .sh("ping -c1 -W5 10.65.9.9; ping -c1 -W5 fd00:10:65::99");
    let error = agent
        .add_with(&Pod::new("web-3", "c0ffee03"), &named)
        .unwrap_err();
    assert!(error.msg.contains("10.65.9.9"), "given already: {error:?}");
}

fn both_addresses(result: &AddResult) -> [String; 2] {
    [0, 1].map(|number: usize| result.ips[number].address.ip().to_string())
}

#[test]
fn allowed_source_prefixes_count_where_the_operator_lets_them() {
    require!("allowed_source_prefixes");
    let keys = r#""runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"cni.projectcalico.org/allowedSourcePrefixes":"[\"203.0.113.0/24\"]"}}"#;
    for (setting, first_to_come) in [("any", "203.0.113.5"), ("disabled", "10.65.")] {
        // Without NAT, so that sources arrive as they are.
        let cluster = Cluster::new(r#"{"cidr":"10.65.0.0/16"}"#);
        let outside = Namespace::new();
        cluster
            .node
            .sh(&format!("ip link set up1 netns {}", outside.name()));
        outside.sh(
            "ip addr add 192.0.2.9/24 dev up1; ip link set up1 up; ip route add 10.65.0.0/16 via 192.0.2.11",
        );
        let agent =
            cluster.start_agent_with(&format!("[dataplane]\nworkload_source_spoofing = \"{setting}\""));
        let pod = Pod::new("web-1", "c0ffee01");
        let own = super::address(&agent.add_with(&pod, keys).unwrap());
        let server = outside.run(|| UdpSocket::bind("192.0.2.9:0").unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        pod.namespace
            .sh("ip addr add 203.0.113.5/32 dev lo; ip addr add 203.0.114.5/32 dev lo");
        // The first to come is the first that may; its own address always may.
        for source in ["203.0.114.5", "203.0.113.5", own.as_str()] {
            pod.namespace.run(|| {
                let client = UdpSocket::bind((source, 0)).unwrap();
                client.send_to(&[7], server.local_addr().unwrap()).unwrap();
            });
        }
        let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
        let from = from.ip().to_string();
        assert!(from.starts_with(first_to_come), "{setting}: {from}");
    }
}
