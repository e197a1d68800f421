//! Pod links on the real kernel, in namespaces: a pod is made, talks to the host, and goes without a trace.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

mod namespaces;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd as _;

use calidris_agent::kernel::{Kernel as _, Linux};
use calidris_agent::model::EndpointId;
use calidris_agent::pod_link::{
    self, Earlier, GATEWAY_V4, GATEWAY_V6, PodLink, PodLinkError, Remover, ResultSays, container_mac,
};
use namespaces::{Namespace, possible};

const HOST_INTERFACE: &str = "cali0123456789a";

fn pod_link(addresses: &[&str]) -> PodLink {
    let id = EndpointId {
        network: "test".into(),
        container_id: "c1".into(),
        ifname: "eth0".into(),
    };
    PodLink {
        host_interface: HOST_INTERFACE.into(),
        addresses: addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect::<BTreeSet<IpAddr>>(),
        mac: Some(container_mac(&id)),
        mtu: 1400,
        id,
    }
}

fn create(host: &Namespace, pod: &Namespace, link: &PodLink) -> Result<pod_link::Created, PodLinkError> {
    let pod = pod.open();
    host.run(|| pod_link::create(pod.as_fd(), link))
}

fn remove(host: &Namespace, host_interface: &str, id: &EndpointId) -> Result<bool, PodLinkError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let remover = host.run(|| Remover::start(runtime.handle().clone()))?;
    runtime.block_on(remover.remove(host_interface, id))
}

fn inspect(host: &Namespace, pod: &Namespace, link: &PodLink) -> Vec<String> {
    let pod = pod.open();
    let result = ResultSays {
        mac: None,
        default_routes: [GATEWAY_V4.into(), GATEWAY_V6.into()].into(),
    };
    host.run(|| pod_link::inspect(pod.as_fd(), link, &result))
        .unwrap()
}

/// What the dataplane does after ADD.
fn add_host_routes(host: &Namespace, link: &PodLink) {
    for address in &link.addresses {
        host.sh(&format!(
            "ip route add {address} dev {HOST_INTERFACE} scope link metric 1024"
        ));
    }
}

#[test]
fn a_new_pod_pings_the_host_by_ipv4_and_ipv6_with_its_first_packet() {
    if !possible("a_new_pod_pings_the_host") {
        return;
    }
    let (host, pod) = (Namespace::new(), Namespace::new());
    host.sh("ip addr add 192.0.2.1/32 dev lo; ip addr add 2001:db8::1/128 dev lo");
    host.sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
    let link = pod_link(&["10.65.0.2", "fd00:10:65::2"]);
    let created = create(&host, &pod, &link).unwrap();
    assert_eq!(Some(created.pod_mac), link.mac);
    add_host_routes(&host, &link);
    pod.sh("ping -c 1 -W 1 192.0.2.1");
    pod.sh("ping -6 -c 1 -W 1 2001:db8::1");
    host.sh("ping -c 1 -W 1 10.65.0.2");
    assert_eq!(inspect(&host, &pod, &link), Vec::<String>::new());
    // Without the permanent neighbour, ARP and neighbour discovery find the gateways, once the host has a default route.
    host.sh(
        "ip link add up0 type veth peer name up1; ip link set up0 up; ip addr add 198.51.100.1/24 dev up0",
    );
    host.sh("ip link set up1 up; ip route add default via 198.51.100.2");
    pod.sh("ip neigh flush all nud permanent; ip neigh del 169.254.1.1 dev eth0; ip neigh");
    pod.sh("ping -c 1 -W 1 192.0.2.1");
    pod.sh("ip neigh del fe80::ecee:eeff:feee:eeee dev eth0; ping -6 -c 1 -W 1 2001:db8::1");

    let eth0 = pod.sh("ip addr show eth0");
    assert!(
        eth0.contains("inet 10.65.0.2/32") && eth0.contains("mtu 1400"),
        "{eth0}"
    );
    let routes = pod.sh("ip route");
    assert!(routes.contains("default via 169.254.1.1 dev eth0"), "{routes}");
    assert!(routes.contains("169.254.1.1 dev eth0 scope link"), "{routes}");
    let routes = pod.sh("ip -6 route");
    assert!(
        routes.contains("default via fe80::ecee:eeff:feee:eeee dev eth0"),
        "{routes}"
    );
    let shown = host.sh(&format!("ip link show {HOST_INTERFACE}"));
    assert!(
        shown.contains("ee:ee:ee:ee:ee:ee") && shown.contains("alias calidris:test/c1/eth0"),
        "{shown}"
    );
    assert!(
        shown.contains("mtu 1400") && shown.contains("state UP"),
        "{shown}"
    );
    for (name, value) in [
        ("conf", "proxy_arp=1"),
        ("neigh", "proxy_delay=0"),
        ("conf", "rp_filter=1"),
    ] {
        let (name, value) = value
            .split_once('=')
            .map(|(key, value)| (format!("{name}/{HOST_INTERFACE}/{key}"), value))
            .unwrap();
        assert_eq!(
            host.sh(&format!("cat /proc/sys/net/ipv4/{name}")).trim(),
            value,
            "{name}"
        );
    }
}

#[test]
fn the_host_end_is_told_as_the_kernel_has_it() {
    if !possible("the_host_end_is_told") {
        return;
    }
    let (host, pod) = (Namespace::new(), Namespace::new());
    let link = pod_link(&["10.65.0.2", "fd00:10:65::2"]);
    let pod = pod.open();
    host.run(|| {
        let prepared = pod_link::prepare(pod.as_fd(), link.without_addresses(), Earlier::Goes).unwrap();
        let told = prepared.host_end();
        prepared.complete(&link.addresses).unwrap();
        let mut kernel = Linux::open().unwrap();
        assert_eq!(kernel.links().unwrap()[HOST_INTERFACE], told.link);
        assert!(told.sysctls.len() >= 10, "{:?}", told.sysctls);
        for (path, value) in told.sysctls {
            assert_eq!(kernel.sysctl(&path).unwrap(), Some(value), "{path}");
        }
    });
}

#[test]
fn removing_is_idempotent_and_leaves_foreign_links_alone() {
    if !possible("removing_is_idempotent") {
        return;
    }
    let (host, pod) = (Namespace::new(), Namespace::new());
    let link = pod_link(&["10.65.0.2"]);
    create(&host, &pod, &link).unwrap();
    let older = EndpointId {
        container_id: "c0".into(),
        ..link.id.clone()
    };
    assert!(
        !remove(&host, HOST_INTERFACE, &older).unwrap(),
        "an older container's"
    );
    assert!(remove(&host, HOST_INTERFACE, &link.id).unwrap());
    assert!(!remove(&host, HOST_INTERFACE, &link.id).unwrap());
    assert!(
        !pod.try_sh("ip link show eth0").status.success(),
        "the pod's end is still there"
    );

    host.sh(&format!("ip link add {HOST_INTERFACE} type veth peer name other"));
    let refused = remove(&host, HOST_INTERFACE, &link.id);
    assert!(matches!(refused, Err(PodLinkError::NameTaken(_))), "{refused:?}");
    let refused = create(&host, &pod, &link);
    assert!(matches!(refused, Err(PodLinkError::NameTaken(_))), "{refused:?}");
    host.sh(&format!("ip link show {HOST_INTERFACE}"));
    assert!(
        !pod.try_sh("ip link show eth0").status.success(),
        "a refused creation left a link in the pod"
    );
}

#[test]
fn links_that_go_together_are_gone_when_it_is_said_and_others_stay() {
    if !possible("links_that_go_together") {
        return;
    }
    let (host, pod) = (Namespace::new(), Namespace::new());
    let link = |number: usize| {
        let mut link = pod_link(&["10.65.0.2"]);
        link.id.ifname = format!("eth{number}");
        link.host_interface = format!("cali{number}");
        link
    };
    let links: Vec<PodLink> = (0..40).map(link).collect();
    for link in &links {
        create(&host, &pod, link).unwrap();
    }
    host.sh("ip link del cali7; ip link add other type veth peer name its");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let remover = host.run(|| Remover::start(runtime.handle().clone())).unwrap();
    let going = async |link: &PodLink| {
        let removed = remover.remove(&link.host_interface, &link.id).await;
        // Not a moment later.
        let is_there = host
            .run(|| pod_link::is_there(&link.host_interface, &link.id))
            .unwrap();
        (removed.unwrap(), is_there)
    };
    let gone = runtime.block_on(futures_util::future::join_all(links.iter().skip(1).map(going)));
    for (number, (was_there, is_there)) in (1..).zip(gone) {
        assert_eq!((was_there, is_there), (number != 7, false), "cali{number}");
    }
    let names = |namespace: &Namespace| {
        let names = namespace.sh("ip -o link | cut -d: -f2 | cut -d@ -f1");
        names
            .split_whitespace()
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
    };
    let expected = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(names(&host), expected(&["lo", "cali0", "other", "its"]));
    assert_eq!(names(&pod), expected(&["lo", "eth0"]));
}

#[test]
fn a_host_end_has_no_ipv6_address_that_nobody_gave_it() {
    if !possible("a_host_end_has_no_ipv6_address") {
        return;
    }
    for (addresses, expected) in [
        (&["10.65.0.2"][..], ""),
        (&["10.65.0.2", "fd00:10:65::2"], "fe80::ecee:eeff:feee:eeee/64"),
    ] {
        let (host, pod) = (Namespace::new(), Namespace::new());
        create(&host, &pod, &pod_link(addresses)).unwrap();
        let shown = host.sh(&format!(
            "ip -6 -o addr show dev {HOST_INTERFACE} | awk '{{print $4}}'"
        ));
        assert_eq!(shown.trim(), expected);
    }
}

#[test]
fn a_stale_link_of_an_earlier_container_is_replaced() {
    if !possible("a_stale_link_is_replaced") {
        return;
    }
    let (host, old, new) = (Namespace::new(), Namespace::new(), Namespace::new());
    let link = pod_link(&["10.65.0.2"]);
    create(&host, &old, &link).unwrap();
    create(&host, &new, &link).unwrap();
    assert!(
        !old.try_sh("ip link show eth0").status.success(),
        "the old pod still has its link"
    );
    new.sh("ip link show eth0");

    // As a process killed between creation and marking leaves it.
    host.sh(&format!("ip link del {HOST_INTERFACE}"));
    host.sh(&format!(
        "ip link add {HOST_INTERFACE} address ee:ee:ee:ee:ee:ee type veth peer name other"
    ));
    create(&host, &new, &link).unwrap();
    add_host_routes(&host, &link);
    assert_eq!(inspect(&host, &new, &link), Vec::<String>::new());
}

#[test]
fn a_failed_creation_leaves_nothing() {
    if !possible("a_failed_creation_leaves_nothing") {
        return;
    }
    let (host, pod) = (Namespace::new(), Namespace::new());
    pod.sh("ip link add eth0 type veth peer name other");
    let error = create(&host, &pod, &pod_link(&["10.65.0.2"]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("eth0") && error.contains("File exists"), "{error}");
    pod.sh("ip link del eth0");
    // The kernel makes the pair, then refuses the address.
    let error = create(&host, &pod, &pod_link(&["10.65.0.2", "ff02::1"]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("add address ff02::1/128"), "{error}");
    for namespace in [&host, &pod] {
        let links = namespace.sh("ip -o link");
        assert_eq!(links.lines().count(), 1, "only lo: {links}");
    }
}

#[test]
fn the_hosts_namespace_and_things_that_are_no_namespace_are_refused() {
    if !possible("the_hosts_namespace_is_refused") {
        return;
    }
    let host = Namespace::new();
    let link = pod_link(&["10.65.0.2"]);
    let refused = create(&host, &host, &link);
    assert!(matches!(refused, Err(PodLinkError::HostNamespace)), "{refused:?}");
    let file = std::fs::File::open("/proc/self/status").unwrap();
    let refused = host.run(|| pod_link::create(file.as_fd(), &link));
    assert!(matches!(refused, Err(PodLinkError::Namespace(_))), "{refused:?}");
    assert_eq!(host.sh("ip -o link").lines().count(), 1);
}

#[test]
fn inspection_names_everything_that_is_wrong() {
    if !possible("inspection_names_everything") {
        return;
    }
    let (host, pod) = (Namespace::new(), Namespace::new());
    let link = pod_link(&["10.65.0.2", "fd00:10:65::2"]);
    create(&host, &pod, &link).unwrap();
    assert_eq!(
        inspect(&host, &pod, &link),
        [
            format!("the host has no route to 10.65.0.2 through {HOST_INTERFACE}"),
            format!("the host has no route to fd00:10:65::2 through {HOST_INTERFACE}"),
        ]
    );
    add_host_routes(&host, &link);
    assert_eq!(inspect(&host, &pod, &link), [""; 0], "nothing is damaged yet");
    // Damage, repair, and what is said in between: that and nothing else.
    let damages = [
        (
            "pod",
            "ip route del default",
            "ip route add default via 169.254.1.1 dev eth0",
            "no default route through 169.254.1.1",
        ),
        (
            "pod",
            "ip -6 route del default",
            "ip -6 route add default via fe80::ecee:eeff:feee:eeee dev eth0",
            "no default route through fe80::ecee:eeff:feee:eeee",
        ),
        (
            "pod",
            "ip neigh del 169.254.1.1 dev eth0",
            "ip neigh add 169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee nud permanent",
            "lacks the permanent neighbour 169.254.1.1",
        ),
        (
            "pod",
            "ip neigh replace fe80::ecee:eeff:feee:eeee dev eth0 lladdr 02:00:00:00:00:09 nud permanent",
            "ip neigh replace fe80::ecee:eeff:feee:eeee dev eth0 lladdr ee:ee:ee:ee:ee:ee nud permanent",
            "lacks the permanent neighbour fe80::ecee:eeff:feee:eeee",
        ),
        (
            "pod",
            "ip addr del fd00:10:65::2/128 dev eth0",
            "ip addr add fd00:10:65::2/128 dev eth0 nodad",
            "lacks the address fd00:10:65::2",
        ),
        (
            "host",
            "ip link set cali0123456789a alias x",
            "ip link set cali0123456789a alias calidris:test/c1/eth0",
            "was not made by Calidris",
        ),
        (
            "host",
            "ip link set cali0123456789a address 02:00:00:00:00:01",
            "ip link set cali0123456789a address ee:ee:ee:ee:ee:ee",
            "another MAC address",
        ),
        (
            "host",
            "sysctl -qw net.ipv4.conf.cali0123456789a.proxy_arp=0",
            "sysctl -qw net.ipv4.conf.cali0123456789a.proxy_arp=1",
            "proxy_arp is 0 instead of 1",
        ),
        (
            "host",
            "sysctl -qw net.ipv6.conf.cali0123456789a.accept_ra=1",
            "sysctl -qw net.ipv6.conf.cali0123456789a.accept_ra=0",
            "accept_ra is 1 instead of 0",
        ),
        (
            "host",
            "ip route del 10.65.0.2",
            "ip route add 10.65.0.2 dev cali0123456789a scope link metric 1024",
            "no route to 10.65.0.2",
        ),
    ];
    for (place, damage, repair, complaint) in damages {
        let namespace = if place == "pod" { &pod } else { &host };
        namespace.sh(damage);
        let wrong = inspect(&host, &pod, &link);
        assert!(
            wrong.len() == 1 && wrong[0].contains(complaint),
            "after {damage}: {wrong:?}"
        );
        namespace.sh(repair);
        assert_eq!(inspect(&host, &pod, &link), [""; 0], "after {repair}");
    }
    // What cannot be mended one by one, since more goes with it.
    for (place, damage, complaint) in [
        ("pod", "ip addr flush dev eth0", "lacks the address 10.65.0.2"),
        ("pod", "ip link set eth0 down", "eth0 in the pod is down"),
        ("host", "ip link set cali0123456789a down", "on the host is down"),
    ] {
        let namespace = if place == "pod" { &pod } else { &host };
        namespace.sh(damage);
        let wrong = inspect(&host, &pod, &link);
        assert!(
            wrong.iter().any(|line| line.contains(complaint)),
            "after {damage}: {wrong:?}"
        );
    }
    host.sh(&format!("ip link del {HOST_INTERFACE}"));
    let wrong = inspect(&host, &pod, &link);
    assert!(
        wrong.iter().any(|line| line.contains("no link eth0 in the pod")),
        "{wrong:?}"
    );
    assert!(
        wrong
            .iter()
            .any(|line| line.contains("no link cali0123456789a on the host")),
        "{wrong:?}"
    );
}
