//! Restart and damage at scale: a thousand workloads, and whatever somebody breaks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};

use calidris_agent::apply::Dataplane;
use calidris_agent::kernel::{KernelChange, Linux};
use calidris_agent::model::{
    ClusterBlock, Encapsulation, Endpoint, EndpointId, Model, NodeFacts, Pool, TunnelKind,
};

use super::eventually::eventually;
use super::namespaces::{Namespace, possible};
use super::{IN_SYNC, Monitor, fresh, turn};

const WORKLOADS: u16 = 1000;

fn address(number: u16) -> [String; 2] {
    let [high, low] = number.to_be_bytes();
    [format!("10.65.{high}.{low}"), format!("fd00:10:65::{number:x}")]
}

/// A node with an uplink and a VXLAN pool of each family, another node, and workloads 1 to `workloads`, whose interfaces are
/// all in one namespace.
fn ground(workloads: u16) -> (Namespace, Namespace, Model) {
    let (node, pods) = (Namespace::new(), Namespace::new());
    node.sh("ip link add up0 type veth peer name up1; ip link set up1 up; ip link set up0 up");
    // Who has no way to an address does not answer for it (proxy ARP).
    node.sh("ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad; ip route add default via 192.0.2.254");
    let mut model = Model::new("node-a".into());
    model.in_sync = IN_SYNC;
    model.settings.ipv4_address = Some("192.0.2.1/24".parse().unwrap());
    model.settings.ipv6_address = Some("2001:db8::1/64".parse().unwrap());
    for (cidr, block, kind, tunnel) in [
        ("10.65.0.0/16", "10.65.0.0/22", TunnelKind::VxlanV4, "10.65.16.1"),
        (
            "fd00:10:65::/64",
            "fd00:10:65::/112",
            TunnelKind::VxlanV6,
            "fd00:10:65::1:1",
        ),
    ] {
        let pool = Pool {
            cidr: cidr.parse().unwrap(),
            nat_outgoing: true,
            encapsulation: Encapsulation::VxlanAlways,
            disable_bgp_export: false,
        };
        model.pools.insert(cidr.into(), pool);
        model.own_blocks.insert(block.parse().unwrap());
        model.tunnel_addresses.insert(kind, Some(tunnel.parse().unwrap()));
    }
    model.tunnel_addresses.insert(TunnelKind::Ipip, None);
    let mac = [0x66, 0, 0, 0, 0, 2];
    let other = NodeFacts {
        ipv4: Some("192.0.2.2/24".parse().unwrap()),
        ipv6: Some("2001:db8::2/64".parse().unwrap()),
        tunnels: [
            (TunnelKind::VxlanV4, "10.65.32.1".parse().unwrap()),
            (TunnelKind::VxlanV6, "fd00:10:65::2:1".parse().unwrap()),
        ]
        .into(),
        macs: [(TunnelKind::VxlanV4, mac), (TunnelKind::VxlanV6, mac)].into(),
    };
    model.cluster.nodes.insert("node-b".into(), other);
    for block in ["10.65.32.0/26", "fd00:10:65::2:0/112"] {
        let facts = ClusterBlock {
            owner: Some("node-b".into()),
            ..ClusterBlock::default()
        };
        model.cluster.blocks.insert(block.parse().unwrap(), facts);
    }
    let mut links = String::new();
    for number in 1..=workloads {
        let _ = writeln!(
            links,
            "link add cali{number} up type veth peer name eth{number} netns {}",
            pods.name()
        );
        let id = EndpointId {
            network: "n".into(),
            container_id: format!("c{number}"),
            ifname: "eth0".into(),
        };
        let endpoint = Endpoint {
            host_interface: format!("cali{number}"),
            addresses: address(number).map(|address| address.parse().unwrap()).into(),
            ..Endpoint::default()
        };
        model.endpoints.insert(id, endpoint);
    }
    node.sh(&format!("ip -batch - <<'END'\n{links}END"));
    (node, pods, model)
}

/// Turns until what is seen is what was seen before. The names of the objects that failed last are in the message if it never is.
fn settle(dataplane: &mut Dataplane<Linux>, model: &mut Model, at: &str) {
    let mut failures = Vec::new();
    for _ in 0..10 {
        let report = turn(dataplane, model);
        if report.ops.is_empty() && report.failures.is_empty() {
            return;
        }
        failures = report.failures;
    }
    panic!("{at}: does not settle: {failures:#?}");
}

/// Says that it is over when dropped: also when the test fails, or the flood would go on for ever.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_restart_beside_a_thousand_workloads_writes_nothing_and_loses_no_packet() {
    if !possible("a_restart_beside_a_thousand_workloads") {
        return;
    }
    let (node, pods, mut model) = ground(WORKLOADS);
    // Two of the workloads talk: from one to the node, which sends it on to the other.
    let other = Namespace::new();
    pods.sh(&format!("ip link set eth2 netns {}", other.name()));
    for (pod, number) in [(&pods, 1), (&other, 2)] {
        let [v4, _] = address(number);
        pod.sh(&format!(
            "ip link set eth{number} up; ip addr add {v4}/32 dev eth{number}; ip route add 169.254.1.1 dev eth{number}; ip route add default via 169.254.1.1"
        ));
    }
    node.run(|| {
        settle(&mut fresh(), &mut model, "at first");
        eventually("the links are ready", || {
            let states = node.sh("cat /sys/class/net/cali[12]/operstate");
            (states == "up\nup\n").then_some(())
        });
    });
    let socket =
        |pod: &Namespace, number| pod.run(|| UdpSocket::bind((address(number)[0].as_str(), 7)).unwrap());
    let (sender, receiver) = (socket(&pods, 1), socket(&other, 2));
    receiver.set_read_timeout(Some(super::PATIENCE)).unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let is_over = AtomicBool::new(false);
    let (sent, received) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut sent = 0_u32;
            let mut received = 0_u32;
            // One at a time, each answered by its arrival: as fast as the way is, and never more than the buffers hold.
            while !is_over.load(Ordering::Relaxed) {
                sender.send(&sent.to_be_bytes()).unwrap();
                sent += 1;
                received += u32::from(receiver.recv(&mut [0; 4]).is_ok());
            }
            (sent, received)
        });
        let end = AtEnd(&is_over);
        node.run(|| {
            let monitor = Monitor::open();
            let ruleset = node.sh("nft -a list ruleset");
            let mut second = fresh();
            for _ in 0..3 {
                second.note(KernelChange::Everything);
                let report = turn(&mut second, &mut model);
                assert_eq!(report.ops, [], "a second start writes");
                assert!(report.failures.is_empty(), "{:#?}", report.failures);
            }
            assert_eq!((second.writes(), monitor.heard()), (0, 0));
            assert!(
                node.sh("nft -a list ruleset") == ruleset,
                "handles differ: a table was written"
            );
        });
        drop(end);
        flood.join().unwrap()
    });
    assert!(sent > 10, "{sent} packets only");
    assert_eq!(received, sent, "packets lost");
}

/// All there is of ours, in words, and how often each is there: what must be the same after the repair. In what order the kernel
/// names the elements of a set is its own affair.
fn picture(node: &Namespace) -> BTreeMap<String, usize> {
    // A device that was made anew has another index and other link-local addresses: those are not ours to choose.
    let text = node.sh(
        "for n in 202 203 204; do ip route show table all proto $n; ip -6 route show table all proto $n; done; \
         ip -4 -o addr show dev vxlan.calico | sed 's/^[0-9]*//'; ip -6 -o addr show dev vxlan-v6.calico scope global | sed 's/^[0-9]*//'; \
         for d in vxlan.calico vxlan-v6.calico; do ip neigh show dev $d nud permanent; bridge fdb show dev $d; cat /sys/class/net/$d/address /sys/class/net/$d/mtu; done; \
         grep -H . /proc/sys/net/ipv4/conf/cali*/proxy_arp /proc/sys/net/ipv4/conf/cali*/rp_filter /proc/sys/net/ipv4/ip_forward; \
         grep -H . /sys/class/net/cali*/address; nft --stateless list ruleset",
    );
    let mut words = BTreeMap::new();
    for word in text.split([' ', '\t', '\n', ',']) {
        *words.entry(word.to_owned()).or_default() += 1;
    }
    words
}

/// What somebody may do to a node, `$N` being a workload's number.
const DAMAGES: [&str; 22] = [
    "ip route flush proto 202",
    "ip -6 route flush proto 202",
    "ip route flush proto 204; ip -6 route flush proto 204",
    "ip route del 10.65.0.$N dev cali$N proto 202",
    "ip route replace 10.65.0.$N dev up0 metric 1024 proto 202",
    "ip route replace prohibit 10.65.32.0/26 metric 1024 proto 204",
    "ip route add 10.65.9.$N dev cali$N metric 1024 proto 202",
    "ip link del vxlan.calico",
    "ip link del vxlan-v6.calico",
    "ip link set vxlan.calico down",
    "ip link set vxlan.calico mtu 1300; ip link set vxlan-v6.calico address 02:00:00:00:00:01",
    "ip addr flush dev vxlan.calico",
    "ip addr add 10.65.17.$N/32 dev vxlan.calico",
    "ip neigh flush dev vxlan.calico nud permanent; ip neigh del 10.65.32.1 dev vxlan.calico",
    "bridge fdb del 66:00:00:00:00:02 dev vxlan.calico dst 192.0.2.2 self",
    "ip link set cali$N down",
    "ip link set cali$N address 02:00:00:00:00:0$N",
    "echo 0 > /proc/sys/net/ipv4/conf/cali$N/proxy_arp; echo 0 > /proc/sys/net/ipv4/ip_forward",
    "nft delete table inet calidris",
    "nft flush ruleset",
    "nft delete element inet calidris workload-interfaces '{ \"cali'$N'\" }'",
    "nft add rule inet calidris nat-outgoing accept; nft add chain inet calidris more",
];

/// A reproducible sequence (the constants are those of Knuth's MMIX generator).
struct Sequence(u64);

impl Sequence {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

#[test]
fn whatever_somebody_damages_the_node_becomes_what_it_was() {
    if !possible("whatever_somebody_damages") {
        return;
    }
    let (node, _pods, mut model) = ground(9);
    node.run(|| {
        settle(&mut fresh(), &mut model, "at first");
        let before = picture(&node);
        let mut done: BTreeMap<&str, u32> = BTreeMap::new();
        for seed in 0..12 {
            let mut sequence = Sequence(seed);
            let mut dataplane = fresh();
            settle(&mut dataplane, &mut model, "before the damage");
            let mut at = format!("seed {seed}:");
            for _ in 0..=sequence.below(4) {
                let damage = DAMAGES[sequence.below(DAMAGES.len())];
                let number = 1 + sequence.below(9);
                let _ = write!(at, " {damage} (N={number});");
                // One that an earlier one made impossible is none.
                if node.try_sh(&format!("N={number}; {damage}")).status.success() {
                    *done.entry(damage).or_default() += 1;
                }
            }
            dataplane.note(KernelChange::Everything);
            settle(&mut dataplane, &mut model, &at);
            let after = picture(&node);
            let only = |these: &BTreeMap<String, usize>, those: &BTreeMap<String, usize>| {
                let differs = |(word, count): &(&String, &usize)| those.get(*word) != Some(*count);
                these
                    .iter()
                    .filter(differs)
                    .map(|(word, count)| format!("{word} ({count})"))
                    .collect::<Vec<_>>()
            };
            assert_eq!(only(&before, &after), only(&after, &before), "{at}");
        }
        assert!(done.len() > 10, "{done:#?}");
    });
}
