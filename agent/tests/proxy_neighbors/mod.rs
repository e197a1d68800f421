//! Pods with addresses of the uplink's own subnet, on the real kernel: hosts there reach them while the node answers for them.

use calidris_agent::cleanup::{self, Mode};
use calidris_agent::kernel::Linux;
use calidris_agent::model::{Encapsulation, Endpoint, EndpointId, Model, Pool};

use super::eventually::eventually;
use super::namespaces::{Namespace, possible};
use super::{IN_SYNC, Monitor, fresh, settle};

/// Entries of others: one for an address that nobody has, one for a pod's.
const FOREIGN: &str = "\
ip neigh add proxy 192.0.2.200 dev up0 proto static
ip neigh add proxy 192.0.2.78 dev up0
ip neigh add proxy 2001:db8::200 dev up0";

fn id(number: u8) -> EndpointId {
    EndpointId {
        network: "n".into(),
        container_id: format!("c{number}"),
        ifname: "eth0".into(),
    }
}

/// A node, a host on its link, and a pod each for 77 and 78 of both subnets.
fn ground() -> (Namespace, Namespace, [Namespace; 2], Model) {
    let (node, outside) = Namespace::node_and_outside();
    // Who has no way to an address does not answer for it (the pods' gateway).
    node.sh("ip route add default via 192.0.2.9");
    let mut model = Model::new("node-a".into());
    model.in_sync = IN_SYNC;
    model.settings.proxy_neighbors = true;
    for (name, cidr) in [("v4", "192.0.2.64/26"), ("v6", "2001:db8::40/122")] {
        let pool = Pool {
            cidr: cidr.parse().unwrap(),
            nat_outgoing: false,
            encapsulation: Encapsulation::None,
            disable_bgp_export: false,
        };
        model.pools.insert(name.into(), pool);
    }
    let pods = [77_u8, 78].map(|number| {
        let pod = Namespace::new();
        node.sh(&format!(
            "ip link add cali{number} type veth peer name eth0 netns {}; ip link set cali{number} address ee:ee:ee:ee:ee:ee up",
            pod.name()
        ));
        pod.sh(&format!(
            "ip link set eth0 up; ip addr add 192.0.2.{number}/32 dev eth0; ip addr add 2001:db8::{number}/128 dev eth0 nodad; \
             ip route add 169.254.1.1 dev eth0; ip route add default via 169.254.1.1; ip route add default via fe80::ecee:eeff:feee:eeee dev eth0"
        ));
        let addresses = [format!("192.0.2.{number}"), format!("2001:db8::{number}")];
        let endpoint = Endpoint {
            host_interface: format!("cali{number}"),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ..Endpoint::default()
        };
        model.endpoints.insert(id(number), endpoint);
        pod
    });
    (node, outside, pods, model)
}

fn proxies(node: &Namespace, are_ours: bool) -> Vec<String> {
    let text = node.sh("ip neigh show proxy | sed 's/ *$//'");
    let lines = text.lines().filter(|line| line.contains("proto 202") == are_ours);
    let mut lines: Vec<String> = lines.map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

/// Whether the host reaches an address that it knows nothing of.
fn reaches(outside: &Namespace, address: &str) -> bool {
    outside.sh("ip neigh flush dev up0");
    let output = outside.try_sh(&format!("ping -c1 -W3 {address}"));
    output.status.success()
}

#[test]
fn hosts_of_the_uplinks_subnet_reach_pods_in_it_while_the_node_answers_for_them() {
    if !possible("hosts_of_the_uplinks_subnet") {
        return;
    }
    let (node, outside, _pods, mut model) = ground();
    node.run(|| {
        node.sh(FOREIGN);
        let theirs = proxies(&node, false);
        let mut dataplane = fresh();
        model.settings.proxy_neighbors = false;
        settle(&mut dataplane, &mut model);
        assert_eq!(proxies(&node, true), [""; 0]);
        let parameter = || node.sh("cat /proc/sys/net/ipv6/conf/up0/proxy_ndp").trim().to_owned();
        assert_eq!(parameter(), "0", "set although nobody wants it");
        assert!(!reaches(&outside, "192.0.2.77"), "it answers unasked");

        model.settings.proxy_neighbors = true;
        settle(&mut dataplane, &mut model);
        // For the other IPv4 address somebody has made an entry already.
        let ours = [
            "192.0.2.77 dev up0 proxy proto 202",
            "2001:db8::77 dev up0 proxy proto 202",
            "2001:db8::78 dev up0 proxy proto 202",
        ];
        assert_eq!(proxies(&node, true), ours);
        assert_eq!(parameter(), "1");
        for address in ["192.0.2.77", "192.0.2.78", "2001:db8::77", "2001:db8::78"] {
            // The host ends may still be making up their minds about addresses.
            eventually(address, || reaches(&outside, address).then_some(()));
        }
        let monitor = Monitor::open();
        let mut second = fresh();
        settle(&mut second, &mut model);
        assert_eq!((second.writes(), monitor.heard()), (0, 0), "a second start writes");

        for damage in [
            "ip neigh del proxy 192.0.2.77 dev up0; ip -6 neigh del proxy 2001:db8::78 dev up0",
            "ip neigh add proxy 192.0.2.99 dev up0 proto 202; ip neigh add proxy 10.9.9.9 dev cali77 proto 202",
            "echo 0 > /proc/sys/net/ipv6/conf/up0/proxy_ndp",
        ] {
            node.sh(damage);
            settle(&mut dataplane, &mut model);
            assert_eq!((proxies(&node, true), parameter()), (ours.map(str::to_owned).into(), "1".to_owned()), "{damage}");
            assert_eq!(proxies(&node, false), theirs, "{damage}");
        }

        // One pod goes, the other moves to another address.
        model.endpoints.remove(&id(78));
        let mut moved = model.endpoints.remove(&id(77)).unwrap();
        moved.addresses = ["192.0.2.79".parse().unwrap()].into();
        model.endpoints.insert(id(77), moved);
        settle(&mut dataplane, &mut model);
        assert_eq!(proxies(&node, true), ["192.0.2.79 dev up0 proxy proto 202"]);
        assert!(!reaches(&outside, "192.0.2.77"));

        let report = cleanup::clean(&mut Linux::open().unwrap(), Mode::Remove).unwrap();
        assert!(report.failed.is_empty(), "{:#?}", report.failed);
        assert_eq!(proxies(&node, true), [""; 0]);
        assert_eq!(proxies(&node, false), theirs);
    });
}
