//! Who may send to the ends of a node's tunnels, with real packets.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};

use calidris_agent::apply::Dataplane;
use calidris_agent::clock;
use calidris_agent::desired::{Desired, TunnelPeers, VXLAN_PORT};
use calidris_agent::kernel::Linux;
use calidris_agent::model::{InSync, TunnelKind};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::PATIENCE;
use super::namespaces::{Namespace, possible};

/// Protocol number of IP in IP (RFC 2003).
const IPIP: i32 = 4;

/// A socket for what carries a tunnel's packets: UDP at the port of VXLAN, or the raw protocol.
fn carrier(kind: TunnelKind, address: &str) -> Socket {
    let domain = if kind.is_ipv6() {
        Domain::IPV6
    } else {
        Domain::IPV4
    };
    let socket = match kind {
        TunnelKind::Ipip => Socket::new(domain, Type::RAW, Some(Protocol::from(IPIP))),
        TunnelKind::VxlanV4 | TunnelKind::VxlanV6 => Socket::new(domain, Type::DGRAM, None),
    }
    .unwrap();
    socket.bind(&at(kind, address)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn at(kind: TunnelKind, address: &str) -> SockAddr {
    let port = if kind == TunnelKind::Ipip { 0 } else { VXLAN_PORT };
    let address: IpAddr = address.parse().unwrap();
    SocketAddr::new(address, port).into()
}

#[test]
fn tunnels_take_packets_of_the_other_nodes_only() {
    if !possible("tunnels_take_packets_of_the_other_nodes_only") {
        return;
    }
    let (node, outside) = Namespace::node_and_outside();
    outside.sh("ip addr add 192.0.2.8/24 dev up0; ip addr add 2001:db8::8/64 dev up0 nodad");
    let ends = |kind: TunnelKind| {
        if kind.is_ipv6() {
            ["2001:db8::1", "2001:db8::8", "2001:db8::9"]
        } else {
            ["192.0.2.1", "192.0.2.8", "192.0.2.9"]
        }
    };
    let desired = |known: &[&str]| Desired {
        tunnel_peers: TunnelKind::ALL
            .map(|kind| {
                let addresses = known.iter().map(|address| address.parse().unwrap());
                let of_family = addresses.filter(|address: &IpAddr| address.is_ipv6() == kind.is_ipv6());
                let peers = TunnelPeers {
                    own: ends(kind)[0].parse().unwrap(),
                    others: of_family.collect(),
                };
                (kind, peers)
            })
            .into(),
        ..Desired::default()
    };
    let in_sync = InSync {
        datastore: true,
        bgp: true,
        cluster: true,
    };
    let mut dataplane = node.run(|| Dataplane::new(Linux::open().unwrap()));
    let mut apply = |known: &[&str]| {
        let report = node.run(|| dataplane.apply(&desired(known), in_sync, clock::now()));
        assert!(report.failures.is_empty(), "{:#?}", report.failures);
    };
    for kind in TunnelKind::ALL {
        let [own, stranger, other] = ends(kind);
        let end = node.run(|| carrier(kind, own));
        let [stranger_end, other_end] = [stranger, other].map(|from| outside.run(|| carrier(kind, from)));
        // What is there first tells whether the stranger's was dropped: both take the same way.
        let first = || {
            stranger_end.send_to(b"stranger", &at(kind, own)).unwrap();
            other_end.send_to(b"other", &at(kind, own)).unwrap();
            let mut buffer = [0; 128];
            let length = (&end).read(&mut buffer).unwrap();
            // A raw socket of IPv4 shows the IP header too.
            String::from_utf8_lossy(&buffer[length.saturating_sub(5)..length]).into_owned()
        };
        apply(&[other]);
        assert_eq!(first(), "other", "{kind:?}: the stranger is unknown");
        apply(&[other, stranger]);
        assert_eq!(first(), "anger", "{kind:?}: the stranger is a node now");
    }
}
